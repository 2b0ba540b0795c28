"""The Helm chart, by helm itself: it renders what deploy/kubernetes has, and other values too."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.support.kubernetes import (
    CHART,
    CLOUDS,
    MANIFESTS,
    VERSIONS,
    Manifest,
    container,
    environment,
    faults,
    manifests,
    named,
)

#: Values of parts that are off by default, and of what pods get from elsewhere.
EVERYTHING: Final = """
settings: {PUSHGATE_RESUME_SECONDS: "60", PUSHGATE_INTERNAL_HOST: "::"}
internalTlsSecretName: internal-tls
filesSecretName: files
imagePullSecrets: [{name: registry}]
gateway:
  maxConnections: 1000000
  settings:
    PUSHGATE_ADVERTISE_ADDRESS: "[$(POD_IP)]:8081"
    PUSHGATE_MAX_MEMORY_BYTES: "1073741824"
  nodeSelector: {pool: gateways}
  tolerations: [{key: pool, operator: Exists}]
  sysctls: [{name: net.core.somaxconn, value: "4096"}]
  autoscaling: {enabled: true}
processor:
  settings: {PUSHGATE_KAFKA_TOPICS: "push, push.slow"}
  autoscaling: {enabled: true, lag: 12000000, authenticationName: kafka}
service: {type: NodePort, loadBalancerSourceRanges: [192.0.2.0/24]}
podMonitor: {enabled: true, labels: {release: kube-prometheus-stack}}
"""
#: Helm takes a cluster of 1.20 for granted where Go built helm.
VERSION: Final = ("--kube-version", f"{VERSIONS[-1]}.0")
PARTS: Final = ["base", "autoscaling", "monitoring"]
#: The values that render what a folder has beside the base.
VALUES: Final = {
    "autoscaling": ["--set=gateway.autoscaling.enabled=true,processor.autoscaling.enabled=true"],
    "monitoring": ["--set=podMonitor.enabled=true"],
    **{file.stem: [f"--values={file}"] for file in sorted(CLOUDS.glob("*.yaml"))},
}


def program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        required = os.environ.get(f"PUSHGATE_REQUIRE_{name.upper()}") == "1"
        assert not required, f"{name} is required and missing"
        pytest.skip(f"needs {name}: deploy/helm/README.md says how it is built")
    return path


def rendered(*options: str) -> str:
    return subprocess.run(
        [program("helm"), "template", "pushgate", CHART, *VERSION, *options],
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def by_name(objects: list[Manifest]) -> dict[str, Manifest]:
    assert len({named(manifest) for manifest in objects}) == len(objects)
    return {named(manifest): manifest for manifest in objects}


def everything(tmp_path: Path) -> dict[str, Manifest]:
    file = tmp_path / "values.yaml"
    file.write_text(EVERYTHING)
    return by_name(manifests(rendered(f"--values={file}")))


def test_the_manifests_are_what_the_chart_renders(tmp_path: Path) -> None:
    program("helm")
    kubernetes = tmp_path / "deploy" / "kubernetes"
    shutil.copytree(MANIFESTS.parent, tmp_path / "deploy")
    for part in PARTS:
        for file in (kubernetes / part).glob("[!k]*.yaml"):
            file.unlink()
    subprocess.run([kubernetes / "render.sh"], check=True)
    for part in PARTS:
        again = {file.name: file.read_text() for file in (kubernetes / part).iterdir()}
        kept = {file.name: file.read_text() for file in (MANIFESTS / part).iterdir()}
        assert again == kept, "the chart has changed: make manifests"


@pytest.mark.parametrize("part", VALUES)
def test_kustomize_builds_what_helm_renders(part: str, tmp_path: Path) -> None:
    (tmp_path / "kubernetes").symlink_to(MANIFESTS)
    (tmp_path / "kustomization.yaml").write_text(
        f"resources: [kubernetes/base]\ncomponents: [kubernetes/{part}]\n"
    )
    built = subprocess.run(
        [program("kustomize"), "build", tmp_path], check=True, capture_output=True, text=True
    ).stdout
    assert by_name(manifests(built)) == by_name(manifests(rendered(*VALUES[part])))


@pytest.mark.parametrize("version", VERSIONS)
def test_other_values_render_valid_objects_too(version: str, tmp_path: Path) -> None:
    objects = everything(tmp_path)
    assert list(faults(list(objects.values()), version)) == []


def test_settings_are_merged_in_order(tmp_path: Path) -> None:
    gateway = everything(tmp_path)["Deployment pushgate-gateway"]
    secrets = {"PUSHGATE_INTERNAL_SECRET": "s", "PUSHGATE_REDIS_URL": "redis://r"}
    variables = environment(gateway, secrets=secrets, pod_ip="fd00::7")
    assert variables["PUSHGATE_RESUME_SECONDS"] == "60"
    assert variables["PUSHGATE_INTERNAL_HOST"] == "::"
    assert variables["PUSHGATE_ADVERTISE_ADDRESS"] == "[fd00::7]:8081"
    assert variables["PUSHGATE_MAX_CONNECTIONS"] == "1000000"
    assert variables["PUSHGATE_MAX_MEMORY_BYTES"] == "1073741824"


def test_internal_tls_is_at_both_ends_and_a_processor_has_no_key(tmp_path: Path) -> None:
    objects = everything(tmp_path)
    for kind, files in (("gateway", {"tls.crt", "tls.key"}), ("processor", {"ca.crt"})):
        deployment = objects[f"Deployment pushgate-{kind}"]
        (tls,) = (
            volume["secret"]
            for volume in deployment["spec"]["template"]["spec"]["volumes"]
            if volume["name"] == "internal-tls"
        )
        assert {item["key"] for item in tls["items"]} == files
        paths = {v["value"] for v in container(deployment)["env"] if "_INTERNAL_TLS_" in v["name"]}
        assert paths == {f"/etc/pushgate/internal-tls/{name}" for name in files}
    probe = container(objects["Deployment pushgate-gateway"])["readinessProbe"]
    assert probe["httpGet"]["scheme"] == "HTTPS"
    (endpoint,) = objects["PodMonitor pushgate-gateway"]["spec"]["podMetricsEndpoints"]
    assert endpoint["scheme"] == "https"


def test_a_long_drain_leaves_a_rollout_its_time() -> None:
    """Kubernetes refuses a deadline that is not above `minReadySeconds`; it is 600 s by default."""
    objects = by_name(manifests(rendered("--set=gateway.drainSeconds=3600")))
    spec = objects["Deployment pushgate-gateway"]["spec"]
    assert spec["minReadySeconds"] == spec["template"]["spec"]["terminationGracePeriodSeconds"]
    assert spec["progressDeadlineSeconds"] == spec["minReadySeconds"] + 600 > 4_200


def test_prometheus_operators_choose_pod_monitors_by_labels_of_their_own(tmp_path: Path) -> None:
    objects = everything(tmp_path)
    for kind in ("gateway", "processor"):
        labels = objects[f"PodMonitor pushgate-{kind}"]["metadata"]["labels"]
        assert labels["release"] == "kube-prometheus-stack"
        assert labels["app.kubernetes.io/component"] == kind


def test_each_topic_has_a_trigger(tmp_path: Path) -> None:
    triggers = everything(tmp_path)["ScaledObject pushgate-processor"]["spec"]["triggers"]
    assert [trigger["metadata"]["topic"] for trigger in triggers] == ["push", "push.slow"]
    assert {trigger["metadata"]["lagThreshold"] for trigger in triggers} == {"12000000"}
    assert {trigger["authenticationRef"]["name"] for trigger in triggers} == {"kafka"}


def test_helm_refuses_a_misspelt_value() -> None:
    refused = subprocess.run(
        [program("helm"), "template", "pushgate", CHART, *VERSION, "--set=gatewy.replicas=3"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert refused.returncode != 0
    assert "gatewy" in refused.stderr


def test_helm_finds_nothing_to_say() -> None:
    linted = subprocess.run(
        [program("helm"), "lint", "--strict", CHART], check=False, capture_output=True, text=True
    )
    assert linted.returncode == 0, linted.stdout
