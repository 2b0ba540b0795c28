"""The command line: which commands there are, and what a command imports."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

from pushgate.cli import cli


def test_the_help_lists_every_command_with_a_sentence() -> None:
    result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0
    listed = result.output.partition("Commands:")[2].split("\n")
    sentences = {line.split()[0]: line.split()[1:] for line in listed if line.strip()}
    servers, tools = {"dev", "gateway", "processor"}, {"send", "listen", "token", "audit"}
    operators = {"doctor", "top", "who", "kick", "drain", "reload", "tail"}
    assert set(sentences) == {*servers, *tools, *operators, "completion"}
    assert all(sentences.values())


def test_a_name_that_is_no_commands_is_refused() -> None:
    result = CliRunner().invoke(cli, ["running"])
    assert result.exit_code == 2
    assert "No such command 'running'" in result.output


@pytest.mark.parametrize(
    ("command", "unneeded"),
    [
        ("gateway", ("aiokafka", "httpx", "processor.server", "pushgate.client")),
        ("processor", ("sse_starlette", "httpx", "gateway.server", "pushgate.client")),
        ("token", ("aiokafka", "redis", "gateway.server", "processor.server")),
        ("top", ("aiokafka", "gateway.server", "processor.server")),
        ("who", ("aiokafka", "gateway.server", "processor.server", "pushgate.top")),
    ],
)
def test_a_command_imports_no_other_commands_packages(
    command: str, unneeded: tuple[str, ...]
) -> None:
    code = f"import sys, pushgate.commands.{command}; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert not set(unneeded) & set(run.stdout.split())


@pytest.mark.parametrize("bad", ["nan", "inf", "-1", "soon"])
@pytest.mark.parametrize(
    "words",
    [
        ["audit", "--pause"],
        ["audit", "--every"],
        ["doctor", "--for"],
        ["send", "alice", "hello", "--timeout"],
        ["tail", "outcomes", "--since"],
        ["top", "--every"],
    ],
)
def test_seconds_are_a_finite_number(words: list[str], bad: str) -> None:
    result = CliRunner().invoke(cli, [*words, bad])
    assert result.exit_code == 2
    assert f"Invalid value for '{words[-1]}'" in result.output
