"""Manifests: those that deploy/ has, and what schemas of Kubernetes say of one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import kubernetes_validate
import yaml

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
CHART: Final = DEPLOY / "helm" / "pushgate"
CLOUDS: Final = DEPLOY / "helm" / "values"
MANIFESTS: Final = DEPLOY / "kubernetes"
#: The oldest and the newest Kubernetes that manifests are checked against.
VERSIONS: Final = ("1.27", "1.37")
#: Kinds of other projects', without a schema of Kubernetes; named, so that nothing else goes
#: unchecked.
FOREIGN_KINDS: Final = frozenset({"ScaledObject", "PodMonitor"})

#: An object of Kubernetes, or a part of one.
Manifest = dict[str, Any]


def manifests(text: str) -> list[Manifest]:
    """Return the objects of a file, or of what helm or kustomize prints."""
    return [manifest for manifest in yaml.safe_load_all(text) if manifest is not None]


def named(manifest: Manifest) -> str:
    return f"{manifest['kind']} {manifest['metadata']['name']}"


def faults(objects: list[Manifest], version: str) -> Iterator[str]:
    """Yield where objects are not as the schemas of a version of Kubernetes have them."""
    for manifest in objects:
        if manifest["kind"] in FOREIGN_KINDS:
            continue
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            place = ".".join(str(step) for step in error.absolute_path)
            yield f"{named(manifest)}: {place}: {error.message}"


def container(deployment: Manifest) -> Manifest:
    """Return the only container of a Deployment's pods."""
    (only,) = deployment["spec"]["template"]["spec"]["containers"]
    return dict(only)


def environment(deployment: Manifest, *, secrets: dict[str, str], pod_ip: str) -> dict[str, str]:
    """Return the variables of a Deployment's container, as a kubelet would set them.

    `secrets` are the keys of the Secret. A key that is missing and not optional is a KeyError.
    """
    fields = {"status.podIP": pod_ip, "metadata.name": "pushgate-gateway-7d9c9c7b5d-x2x4z"}
    variables: dict[str, str] = {}
    for variable in container(deployment)["env"]:
        name, source = variable["name"], variable.get("valueFrom", {})
        if "fieldRef" in source:
            variables[name] = fields[source["fieldRef"]["fieldPath"]]
        elif "secretKeyRef" in source:
            key, optional = source["secretKeyRef"]["key"], source["secretKeyRef"].get("optional")
            if key in secrets or not optional:
                variables[name] = secrets[key]
        else:
            # A variable is known to those behind it.
            variables[name] = variable["value"].replace("$(POD_IP)", variables.get("POD_IP", ""))
    return variables
