"""The manifests of deploy/kubernetes: valid, and right in what schemas don't say.

They are what the Helm chart renders (test_chart.py, where helm is installed).
"""

import json
import tomllib
from pathlib import Path
from typing import Any, Final

import jsonschema
import pytest
import yaml

from gateway.metrics import CONNECTIONS
from gateway.server import Gateway
from loadtest.sizing import WAITING_BYTES
from processor.server import Processor
from pushgate.environment import known_variables
from pushgate.settings import GatewayCommandSettings, ProcessorCommandSettings
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
from tests.support.markdown import Page

ROOT: Final = Path(__file__).parents[3]
FILES: Final = sorted(MANIFESTS.glob("*/*.yaml"))
OBJECTS: Final = {
    named(manifest): manifest
    for folder in ("base", "autoscaling", "monitoring")
    for file in sorted((MANIFESTS / folder).glob("*.yaml"))
    if file.name != "kustomization.yaml"
    for manifest in manifests(file.read_text())
}
GATEWAY: Final = OBJECTS["Deployment pushgate-gateway"]
PROCESSOR: Final = OBJECTS["Deployment pushgate-processor"]
DEPLOYMENTS: Final = pytest.mark.parametrize("deployment", [GATEWAY, PROCESSOR], ids=named)
#: The keys of the Secret: those without which nothing starts, and those for gateways alone.
SECRETS: Final = {
    "PUSHGATE_INTERNAL_SECRET": "internal secret of thirty-two bytes",
    "PUSHGATE_REDIS_URL": "redis://redis:6379/0",
    "PUSHGATE_JWT_SECRET": "a secret for tokens of thirty-two bytes",
}
#: Kernel memory of a connection (docs/operations.md, Limits): a control group counts that too.
KERNEL_BYTES: Final = 4_600
PROCESS_BYTES: Final = 80 * 1024 * 1024


def variables_of(deployment: Manifest) -> dict[str, str]:
    return environment(deployment, secrets=SECRETS, pod_ip="10.1.2.3")


def gateway_settings(monkeypatch: pytest.MonkeyPatch) -> GatewayCommandSettings:
    for name, value in variables_of(GATEWAY).items():
        monkeypatch.setenv(name, value)
    return GatewayCommandSettings.model_validate({})


def bytes_of(quantity: str) -> int:
    units = {"Mi": 1024**2, "Gi": 1024**3}
    return int(quantity[:-2]) * units[quantity[-2:]]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(MANIFESTS)))
def test_every_manifest_is_valid(file: Path, version: str) -> None:
    objects = manifests(file.read_text())
    assert objects
    if file.name == "kustomization.yaml":
        (kustomization,) = objects
        named_files = {*kustomization.get("resources", ())}
        named_files |= {
            patch["path"] for patch in kustomization.get("patches", ()) if "path" in patch
        }
        assert named_files == {other.name for other in file.parent.glob("*.yaml")} - {file.name}
    elif file.parent.name in ("aws", "azure", "gcp"):
        assert all(named(patch) in OBJECTS for patch in objects)
    else:
        assert list(faults(objects, version)) == []


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["audit", "tools"])
def test_a_pod_of_the_docs_is_valid_and_may_reach_gateways_and_processors(
    version: str, name: str
) -> None:
    blocks = (b.text for b in Page(ROOT / "docs/kubernetes.md").blocks if "kind: Pod" in b.text)
    (pod,) = (pod for text in blocks for pod in manifests(text) if pod["metadata"]["name"] == name)
    assert list(faults([pod], version)) == []
    for kind, rule in (("gateway", 1), ("processor", 0)):
        policy = OBJECTS[f"NetworkPolicy pushgate-{kind}"]["spec"]
        (parts, _) = policy["ingress"][rule]["from"]
        assert chosen(parts["podSelector"], pod["metadata"]["labels"])


@DEPLOYMENTS
def test_every_variable_is_a_setting(deployment: Manifest) -> None:
    assert variables_of(deployment).keys() - known_variables() <= {"POD_IP"}


def test_a_gateway_starts_with_its_variables_and_is_reached_at_its_pod(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = gateway_settings(monkeypatch)
    ports = {port["name"]: port["containerPort"] for port in container(GATEWAY)["ports"]}
    assert ports == {"public": settings.port, "internal": settings.internal_port}
    assert settings.advertise_address == f"10.1.2.3:{ports['internal']}"
    assert (settings.host, settings.internal_host) == ("0.0.0.0", "0.0.0.0")
    assert settings.node_name == "pushgate-gateway-7d9c9c7b5d-x2x4z"


def test_a_processor_starts_with_its_variables_and_tools_reach_its_pod(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables_of(PROCESSOR).items():
        monkeypatch.setenv(name, value)
    settings = ProcessorCommandSettings.model_validate({})
    assert container(PROCESSOR)["ports"] == [
        {"name": "internal", "containerPort": settings.processor_port}
    ]
    assert settings.processor_host == "0.0.0.0"
    port = settings.port_for_tools()
    assert port is not None
    assert port.address == f"10.1.2.3:{settings.processor_port}"


@DEPLOYMENTS
def test_secrets_are_references(deployment: Manifest) -> None:
    literal = {v["name"] for v in container(deployment)["env"] if "value" in v}
    assert not literal & SECRETS.keys()
    assert not [name for name in literal if "PASSWORD" in name or name.endswith("SECRET")]


def test_processors_have_no_key_of_tokens() -> None:
    assert "PUSHGATE_JWT_SECRET" in variables_of(GATEWAY)
    assert "PUSHGATE_JWT_SECRET" not in variables_of(PROCESSOR)


def test_a_gateway_has_time_to_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = gateway_settings(monkeypatch)
    spec = GATEWAY["spec"]["template"]["spec"]
    command, pause = container(GATEWAY)["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    leaving = leave_seconds(Gateway, settings)
    assert leaving > settings.drain_seconds > 0
    assert spec["terminationGracePeriodSeconds"] > int(pause) + leaving
    # The next old pods go when those before them have left.
    assert GATEWAY["spec"]["minReadySeconds"] >= spec["terminationGracePeriodSeconds"]
    assert GATEWAY["spec"]["progressDeadlineSeconds"] >= GATEWAY["spec"]["minReadySeconds"] + 600


def test_a_processor_has_time_to_leave() -> None:
    grace = PROCESSOR["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > leave_seconds(Processor)


def leave_seconds(kind: type[Gateway | Processor], settings: object = None) -> float:
    """Return how long a server takes to leave at most. It is not made, and binds no port."""
    server = object.__new__(kind)
    vars(server)["_settings"] = settings
    return server.leave_seconds


@DEPLOYMENTS
def test_pods_can_do_no_more_than_their_job(deployment: Manifest) -> None:
    spec = deployment["spec"]["template"]["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    dockerfile = (ROOT / "deploy/docker/Dockerfile").read_text()
    assert f"USER {spec['securityContext']['runAsUser']}\n" in dockerfile
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(deployment)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@DEPLOYMENTS
def test_probes_ask_the_internal_port(deployment: Manifest) -> None:
    only = container(deployment)
    asked = {kind: only[kind]["httpGet"] for kind in ("readinessProbe", "livenessProbe")}
    assert asked["readinessProbe"]["path"] == "/readyz"
    assert asked["livenessProbe"]["path"] == "/healthz"
    assert {probe["port"] for probe in asked.values()} == {"internal"}
    liveness = only["livenessProbe"]
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 60


def test_only_the_public_port_is_a_service() -> None:
    services = [manifest for manifest in OBJECTS.values() if manifest["kind"] == "Service"]
    assert [port["targetPort"] for s in services for port in s["spec"]["ports"]] == ["public"]


def test_the_internal_port_is_for_parts_of_the_system_and_for_prometheus() -> None:
    policy = OBJECTS["NetworkPolicy pushgate-gateway"]["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    rules = {rule["ports"][0]["port"]: rule.get("from") for rule in policy["ingress"]}
    public, internal = (port["containerPort"] for port in container(GATEWAY)["ports"])
    assert rules.keys() == {public, internal}
    assert rules[public] is None
    parts, prometheus = rules[internal]
    labels = PROCESSOR["spec"]["template"]["metadata"]["labels"]
    assert chosen(parts["podSelector"], labels)
    assert not chosen(parts["podSelector"], GATEWAY["spec"]["template"]["metadata"]["labels"])
    assert not chosen(parts["podSelector"], {})
    assert "namespaceSelector" in prometheus


def chosen(selector: Manifest, labels: dict[str, str]) -> bool:
    """Whether a selector chooses a pod with these labels."""
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    assert all(rule["operator"] == "In" for rule in selector.get("matchExpressions", ()))
    return selector["matchLabels"].items() <= labels.items() and all(
        labels.get(rule["key"]) in rule["values"] for rule in selector.get("matchExpressions", ())
    )


@DEPLOYMENTS
def test_everything_finds_its_pods(deployment: Manifest) -> None:
    name, spec = deployment["metadata"]["name"], deployment["spec"]
    labels = spec["template"]["metadata"]["labels"]
    own = {kind: m["spec"] for m in OBJECTS.values() if m["metadata"]["name"] == name
           and (kind := m["kind"])}  # fmt: skip
    selectors = [
        spec["selector"],
        own["PodDisruptionBudget"]["selector"],
        own["NetworkPolicy"]["podSelector"],
        own["PodMonitor"]["selector"],
        *(rule["labelSelector"] for rule in spec["template"]["spec"]["topologySpreadConstraints"]),
    ]
    if "Service" in own:
        selectors.append({"matchLabels": own["Service"]["selector"]})
    others = [other for other in (GATEWAY, PROCESSOR) if other is not deployment]
    (other,) = (other["spec"]["template"]["metadata"]["labels"] for other in others)
    assert all(chosen(selector, labels) for selector in selectors)
    assert not any(chosen(selector, other) for selector in selectors)


def test_gateways_are_spread_over_zones_and_hosts() -> None:
    rules = GATEWAY["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert [rule["topologyKey"] for rule in rules] == [
        "topology.kubernetes.io/zone",
        "kubernetes.io/hostname",
    ]


def test_gateways_are_scaled_by_their_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    autoscaler = OBJECTS["HorizontalPodAutoscaler pushgate-gateway"]["spec"]
    assert autoscaler["scaleTargetRef"]["name"] == GATEWAY["metadata"]["name"]
    pods = autoscaler["metrics"][0]["pods"]
    (family,) = CONNECTIONS.collect()
    assert pods["metric"]["name"] == family.name
    full = gateway_settings(monkeypatch).max_connections
    assert full is not None
    assert int(pods["target"]["averageValue"]) == full * 7 // 10


def test_processors_are_scaled_by_the_lag_of_their_own_group() -> None:
    scaled = OBJECTS["ScaledObject pushgate-processor"]["spec"]
    assert scaled["scaleTargetRef"]["name"] == PROCESSOR["metadata"]["name"]
    variables = variables_of(PROCESSOR)
    (trigger,) = scaled["triggers"]
    assert trigger["metadata"]["topic"] == variables["PUSHGATE_KAFKA_TOPICS"]
    assert trigger["metadata"]["consumerGroup"] == variables["PUSHGATE_KAFKA_GROUP"]
    assert trigger["metadata"]["bootstrapServers"] == variables["PUSHGATE_KAFKA_BOOTSTRAP"]
    assert trigger["metadata"]["allowIdleConsumers"] == "false"


def test_a_full_gateway_has_the_memory_that_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    idle = json.loads((ROOT / "loadtest/results/idle.json").read_text())["figures"]["ws"]["epoll"]
    settings = gateway_settings(monkeypatch)
    assert settings.max_connections is not None
    held = settings.max_connections * (idle["anonymous_after_burst"] + KERNEL_BYTES)
    repeats = 2 * settings.repeat_window_messages * 75
    resources = container(GATEWAY)["resources"]
    assert bytes_of(resources["requests"]["memory"]) > held + repeats + PROCESS_BYTES
    # Nine tenths of the limit, above which no client is admitted, must not come before.
    assert bytes_of(resources["limits"]["memory"]) * 0.9 > bytes_of(resources["requests"]["memory"])


def test_a_processor_has_the_memory_of_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables_of(PROCESSOR).items():
        monkeypatch.setenv(name, value)
    window = ProcessorCommandSettings.model_validate({}).resume_bytes
    resources = container(PROCESSOR)["resources"]
    assert bytes_of(resources["requests"]["memory"]) > PROCESS_BYTES + window
    bound = PROCESS_BYTES + window + WAITING_BYTES
    assert bytes_of(resources["limits"]["memory"]) > 2 * bound - PROCESS_BYTES


@pytest.mark.parametrize("cloud", sorted(file.stem for file in CLOUDS.glob("*.yaml")))
def test_a_cloud_is_the_same_for_helm_and_kustomize(cloud: str) -> None:
    values = yaml.safe_load((CLOUDS / f"{cloud}.yaml").read_text())
    (service,) = manifests((MANIFESTS / cloud / "service.yaml").read_text())
    assert service["metadata"]["annotations"] == values["service"].pop("annotations")
    assert service.get("spec", {}) == values["service"]
    (gateway,) = manifests((MANIFESTS / cloud / "gateway.yaml").read_text())
    (own,) = gateway["spec"]["template"]["spec"]["containers"]
    pause = values["gateway"]["preStopSeconds"]
    assert own["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", str(pause)]
    base = GATEWAY["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    longer = pause - int(container(GATEWAY)["lifecycle"]["preStop"]["exec"]["command"][1])
    grace = gateway["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace == gateway["spec"]["minReadySeconds"] == base + longer
    assert gateway["spec"]["progressDeadlineSeconds"] == grace + 600


def schema() -> dict[str, Any]:
    read: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
    return read


@pytest.mark.parametrize(
    "file", [CHART / "values.yaml", *sorted(CLOUDS.glob("*.yaml"))], ids=lambda file: file.stem
)
def test_values_are_as_their_schema_says(file: Path) -> None:
    jsonschema.validate(yaml.safe_load(file.read_text()), schema())


def test_the_schema_knows_every_value() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    properties = schema()["properties"]
    assert properties.keys() - values.keys() == {"global"}
    for name in ("image", "gateway", "processor", "service", "networkPolicy", "podMonitor"):
        assert properties[name]["properties"].keys() == values[name].keys(), name


@pytest.mark.parametrize(
    "values",
    [
        {"gatewy": {}},
        {"gateway": {"replica": 3}},
        {"gateway": {"settings": {"PUSHGATE_RESUME_BYTES": 67108864}}},
        {"settings": {"pushgate_origins": "*"}},
        {"settings": {"PUSHGATE_INTERNAL_SECRET": "in the open"}},
        {"gateway": {"settings": {"PUSHGATE_DRAIN_SECONDS": "600"}}},
        {"service": {"type": "Ingress"}},
    ],
    ids=str,
)
def test_bad_values_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, schema())


def test_the_chart_is_of_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == version
    assert chart["version"].replace("-dev", ".dev") == version
    assert container(GATEWAY)["image"] == container(PROCESSOR)["image"] == f"pushgate:{version}"
