"""PUSHGATE_… variables that are no settings: named once, with the nearest name."""

from __future__ import annotations

import os
import re
from typing import Any

import click
import pytest
from click.testing import CliRunner
from structlog.testing import capture_logs

from pushgate.cli import cli
from pushgate.environment import known_variables, remarks

SECRET_VARIABLES = {"PUSHGATE_JWT_SECRET": "x" * 32, "PUSHGATE_INTERNAL_SECRET": "y" * 32}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PUSHGATE_")]:
        monkeypatch.delenv(name)


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


def test_what_any_command_knows_is_known_to_all() -> None:
    helps = [
        parameter.help or ""
        for command in cli.commands.values()
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
    monkeypatch.setattr("pushgate.cli.logs.configure", lambda **_: None)
    monkeypatch.setattr("pushgate.cli._serve", lambda make: made.append(make()))
    for server in ("Gateway", "Processor"):
        monkeypatch.setattr(f"pushgate.cli.{server}", lambda settings: settings)
    with capture_logs() as entries:
        result = CliRunner().invoke(cli, [command], env={**SECRET_VARIABLES, **variables})
    assert result.exit_code == 0, result.output
    assert {entry["log_level"] for entry in entries} == {"warning"}
    return made[0], [entry["event"] for entry in entries]


def test_a_server_starts_and_logs_the_name_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings, (warning,) = started(monkeypatch, "gateway", PUSHGATE_REDIS_ULR="redis://x")
    assert settings.port == 8080
    assert "PUSHGATE_REDIS_ULR (nearest: PUSHGATE_REDIS_URL)" in warning


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
