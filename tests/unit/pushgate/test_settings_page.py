"""docs/settings.md has every setting of every command, as the code has them."""

from __future__ import annotations

import click
import pytest

from pushgate.cli import cli
from pushgate.environment import known_variables
from pushgate.options import PREFIX
from pushgate.settings import COMMAND_SETTINGS
from pushgate.settings_page import page
from tests.support.markdown import ROOT, Page, codes

PAGE = Page(ROOT / "docs" / "settings.md")
#: Variables that are no setting for operators: a worker's number, and the image's health check.
NO_SETTINGS = {"PUSHGATE_WORKER_INDEX", "PUSHGATE_LAUNCHED", "PUSHGATE_HEALTH_URL"}
CONTEXT = click.Context(cli)


def variables_of(command: str) -> list[str]:
    """Return the variables that the help of a command's flags names."""
    known = cli.get_command(CONTEXT, command)
    assert known is not None
    helps = [getattr(option, "help", None) or "" for option in known.params]
    return [text.rpartition("$")[2] for text in helps if f"${PREFIX}" in text]


def rows() -> dict[tuple[str, str], list[str]]:
    """Return the rows of all sections, by variable and command."""
    found: dict[tuple[str, str], list[str]] = {}
    sections = [line[3:] for line in PAGE.prose if line.startswith("## ")]
    for row in (row for section in sections for row in PAGE.rows(section)):
        for command in row[1].split(", "):
            key = codes(row[0])[0], command
            assert key not in found
            found[key] = row
    return found


def test_the_page_is_what_the_settings_classes_say() -> None:
    assert page() == PAGE.path.read_text("utf-8"), "run make settings"


def test_each_setting_of_each_command_has_one_row_and_no_other_does() -> None:
    commands = cli.list_commands(CONTEXT)
    assert set(rows()) == {
        (variable, command) for command in commands for variable in variables_of(command)
    }


@pytest.mark.parametrize("command", cli.list_commands(CONTEXT))
def test_a_command_has_the_flags_of_its_settings(command: str) -> None:
    settings = COMMAND_SETTINGS.get(command)
    names = settings.model_fields if settings is not None else ()
    assert variables_of(command) == [f"{PREFIX}{name.upper()}" for name in names]


def test_each_known_variable_is_there() -> None:
    assert {variable for variable, _ in rows()} == known_variables() - NO_SETTINGS


@pytest.mark.parametrize(
    ("variable", "command", "cells"),
    [
        ("PUSHGATE_PORT", "gateway", ["from 0 to 65,535", "`8080`"]),
        ("PUSHGATE_INTERNAL_SECRET", "processor", ["a secret", "required"]),
        ("PUSHGATE_LOG_JSON", "gateway", ["`true`, `false`", "`false`"]),
        ("PUSHGATE_SLOW_CONSUMER", "gateway", ["`close`, `drop-oldest`", "`close`"]),
        ("PUSHGATE_FORWARD_TIMEOUT_SECONDS", "processor", ["above 0 to 60", "`2`"]),
        ("PUSHGATE_DRAIN_SECONDS", "gateway", ["from 0 to 86,400", "`60`"]),
        ("PUSHGATE_DRAIN_SECONDS", "dev", ["from 0 to 86,400", "`0`"]),
        ("PUSHGATE_MAX_CONNECTIONS", "gateway", ["from 1", "–"]),
        ("PUSHGATE_NODE_NAME", "gateway", ["text", "–"]),
    ],
)
def test_values_and_defaults_are_said(variable: str, command: str, cells: list[str]) -> None:
    assert rows()[variable, command][2:4] == cells
