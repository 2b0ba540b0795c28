#!/usr/bin/env bash
# Renders the chart with its own values into the folders of manifests: `make manifests`.
set -euo pipefail
cd "$(dirname "$0")"

render() { # FOLDER TEMPLATE [OPTION…]
  helm template pushgate ../helm/pushgate --kube-version 1.37.0 --show-only "templates/$2.yaml" "${@:3}" | grep -v '^# Source:' >"$1/$2.yaml"
}

for template in gateway processor service disruption network; do
  render base "$template"
done
for part in gateway processor; do
  render autoscaling "$part-autoscaler" --set "$part.autoscaling.enabled=true"
done
render monitoring monitoring --set podMonitor.enabled=true
