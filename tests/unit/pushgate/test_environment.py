"""PUSHGATE_… variables that are no settings: named once, with the cure."""

from __future__ import annotations

import os
import re
from typing import Any

import click
import pytest
from click.testing import CliRunner
from pydantic_settings import BaseSettings
from structlog.testing import capture_logs

from pushgate.cli import cli
from pushgate.environment import known_variables, remarks
from pushgate.options import load
from pushgate.settings import GatewayCommandSettings, ProcessorCommandSettings

SECRETS: dict[str, Any] = {"jwt_secret": "x" * 32, "internal_secret": "y" * 32}
SECRET_VARIABLES = {"PUSHGATE_JWT_SECRET": "x" * 32, "PUSHGATE_INTERNAL_SECRET": "y" * 32}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PUSHGATE_")]:
        monkeypatch.delenv(name)


def links_to(
    service: str, port: int, *, protocol: str = "tcp", host: str = "10.0.0.1"
) -> dict[str, str]:
    """Give what Kubernetes sets in every pod for a Service with one port, named `http`."""
    name = service.upper().replace("-", "_")
    of_port = f"{name}_PORT_{port}_{protocol.upper()}"
    url = f"{protocol}://{host}:{port}"
    return {
        f"{name}_SERVICE_HOST": host,
        f"{name}_SERVICE_PORT": str(port),
        f"{name}_SERVICE_PORT_HTTP": str(port),
        f"{name}_PORT": url,
        of_port: url,
        f"{of_port}_PROTO": protocol,
        f"{of_port}_PORT": str(port),
        f"{of_port}_ADDR": host,
    }


SERVICES = {
    "pushgate": links_to("pushgate", 8080),
    "pushgate-processor": links_to("pushgate-processor", 8082),
    "pushgate-internal": links_to("pushgate-internal", 8081, host="[fd00::1]"),
    "pushgate-some-udp": links_to("pushgate-some-udp", 53, protocol="udp"),
}


@pytest.mark.parametrize("service", SERVICES)
def test_service_links_are_ignored_with_one_remark_that_names_the_cure(service: str) -> None:
    links = SERVICES[service]
    environment = {**links, "PUSHGATE_NODE_NAME": "gw-a", "PATH": "/bin", "OTHER_PORT": "tcp://x:1"}
    (remark,) = remarks(environment)
    assert environment == {"PUSHGATE_NODE_NAME": "gw-a", "PATH": "/bin", "OTHER_PORT": "tcp://x:1"}
    assert "enableServiceLinks: false" in remark
    assert all(name in remark for name in links)
    assert remarks(environment) == []


def test_the_links_of_many_services_are_one_remark() -> None:
    environment = {name: value for links in SERVICES.values() for name, value in links.items()}
    assert len(remarks(environment)) == 1
    assert environment == {}


@pytest.mark.parametrize(
    ("settings", "name", "default"),
    [
        (GatewayCommandSettings, "port", 8080),
        (GatewayCommandSettings, "internal_port", 8081),
        (ProcessorCommandSettings, "processor_port", 8082),
    ],
)
def test_a_start_beside_a_service_of_that_name_has_the_default(
    monkeypatch: pytest.MonkeyPatch, settings: type[BaseSettings], name: str, default: int
) -> None:
    for links in SERVICES.values():
        for variable, value in links.items():
            monkeypatch.setenv(variable, value)
    with pytest.raises(click.UsageError, match="tcp://"):
        load(settings, SECRETS)
    remarks(os.environ)
    assert getattr(load(settings, SECRETS), name) == default


@pytest.mark.parametrize(
    "value", ["9000", "eighty", "tcp://", "tcp://10.0.0.1", "http://x:8080", ""]
)
def test_a_port_that_is_no_link_is_left_to_be_judged_as_a_setting(value: str) -> None:
    environment = {"PUSHGATE_PORT": value}
    assert remarks(environment) == []
    assert environment == {"PUSHGATE_PORT": value}


def test_no_setting_has_the_name_of_a_link() -> None:
    environment = dict.fromkeys(known_variables(), "8080")
    assert remarks(environment) == []
    assert environment.keys() == known_variables()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("PUSHGATE_REDIS_ULR", "PUSHGATE_REDIS_URL"),
        ("PUSHGATE_JWT_SECERT", "PUSHGATE_JWT_SECRET"),
        ("PUSHGATE_KAFKA_TOPIC", "PUSHGATE_KAFKA_TOPICS"),
        ("PUSHGATE_MAX_CONNECTION_PER_USER", "PUSHGATE_MAX_CONNECTIONS_PER_USER"),
        ("pushgate_prot", "PUSHGATE_PORT"),
    ],
)
def test_a_name_that_no_command_knows_is_told_with_the_nearest_one(name: str, nearest: str) -> None:
    environment = {name: "marker"}
    (remark,) = remarks(environment)
    assert f"{name} (nearest: {nearest})" in remark
    assert "marker" not in remark
    assert environment == {name: "marker"}


def test_all_names_that_no_command_knows_are_one_remark() -> None:
    names = ("PUSHGATE_B", "PUSHGATE_A", "PUSHGATE", "PUSHGATEWAY_X")
    (remark,) = remarks(dict.fromkeys(names, "x"))
    assert re.findall(r"(PUSHGATE\w*) \(nearest", remark) == ["PUSHGATE_A", "PUSHGATE_B"]


def all_commands() -> list[click.Command]:
    context = click.Context(cli)
    found = [cli.get_command(context, name) for name in cli.list_commands(context)]
    return [command for command in found if command is not None]


def test_what_any_command_knows_is_known_to_all() -> None:
    helps = [
        parameter.help or ""
        for command in all_commands()
        for parameter in command.params
        if isinstance(parameter, click.Option)
    ]
    variables = {variable for text in helps for variable in re.findall(r"\$(PUSHGATE_\w+)", text)}
    assert "PUSHGATE_KAFKA_GROUP" in variables
    assert variables <= known_variables()
    assert remarks(dict.fromkeys(known_variables(), "x")) == []
    assert remarks({"pushgate_port": "80", "PUSHGATE_WORKER_INDEX": "0"}) == []


def started(
    monkeypatch: pytest.MonkeyPatch, command: str, **variables: str
) -> tuple[Any, list[str]]:
    """Run a server's command up to the start; give its settings, and what it has logged."""
    made: list[Any] = []
    # The log stays as the tests have it.
    monkeypatch.setattr("pushgate.commands.running.logs.configure", lambda **_: None)
    module = f"pushgate.commands.{command}"
    monkeypatch.setattr(f"{module}.serve", lambda make, *_: made.append(make()))
    monkeypatch.setattr(f"{module}.{command.title()}", lambda settings: settings)
    with capture_logs() as entries:
        result = CliRunner().invoke(cli, [command], env={**SECRET_VARIABLES, **variables})
    assert result.exit_code == 0, result.output
    assert {entry["log_level"] for entry in entries} == {"warning"}
    return made[0], [entry["which"] for entry in entries]


def test_a_server_starts_with_the_default_and_logs_each_warning_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings, warnings = started(
        monkeypatch, "gateway", PUSHGATE_REDIS_ULR="redis://x", **SERVICES["pushgate"]
    )
    assert settings.port == 8080
    of_links, of_names = warnings
    assert "enableServiceLinks: false" in of_links
    assert "PUSHGATE_REDIS_ULR (nearest: PUSHGATE_REDIS_URL)" in of_names
    settings, warnings = started(monkeypatch, "processor", **SERVICES["pushgate-processor"])
    assert settings.processor_port == 8082
    assert len(warnings) == 1


def test_a_start_that_fails_names_the_misspelt_variable_too() -> None:
    result = CliRunner().invoke(cli, ["processor"], env={"PUSHGATE_INTERNAL_SECERT": "y" * 32})
    assert result.exit_code == 2
    assert "PUSHGATE_INTERNAL_SECRET is not set" in result.output
    assert "PUSHGATE_INTERNAL_SECERT (nearest: PUSHGATE_INTERNAL_SECRET)" in result.output
    assert "y" * 32 not in result.output


def test_a_tool_warns_on_standard_error_alone() -> None:
    variables = {"PUSHGATE_JWT_SECRET": "x" * 32, "PUSHGATE_TOKEN": "t"}
    result = CliRunner().invoke(cli, ["token", "alice"], env=variables)
    assert result.exit_code == 0
    assert result.stdout.count(".") == 2
    assert "PUSHGATE_TOKEN (nearest: " in result.stderr
