"""The command's report: exit status, text for people, JSON, wrong usage."""

from __future__ import annotations

import json
import logging
import os
import time
from typing import Any

import jwt
import pytest
from click.testing import CliRunner, Result

from pushgate import logs
from pushgate.commands import doctor as command
from pushgate.doctor.examination import Path
from pushgate.doctor.finding import Finding, Severity, Subject
from tests.support.processes import JWT_SECRET

HERE = Subject("here")
OK = HERE.ok("well")
NOTE = HERE.note("noted", why="a reason", cure="look again")
WARNING = HERE.warning("doubtful", why="for a reason", cure="set PUSHGATE_SETTING")
FAULT = HERE.fault("broken \x1b[31m\nname", why="for a reason", cure="set PUSHGATE_SETTING")


@pytest.fixture(autouse=True)
def _process_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the logging and the limits of the tests' process alone; have no settings of its own."""
    for name in [name for name in os.environ if name.startswith("PUSHGATE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(logs, "configure", lambda **_: None)
    monkeypatch.setattr(command, "raise_limit", lambda: None)


def run(monkeypatch: pytest.MonkeyPatch, found: list[Finding], *arguments: str) -> Result:
    async def examine(*_: Any, **__: Any) -> list[Finding]:
        return found

    monkeypatch.setattr(command, "examine", examine)
    return CliRunner().invoke(command.doctor, arguments)


@pytest.mark.parametrize(
    ("found", "status"),
    [([OK], 0), ([OK, NOTE], 0), ([WARNING, OK], 3), ([FAULT, WARNING], 4), ([WARNING, FAULT], 4)],
)
def test_the_worst_finding_decides_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, found: list[Finding], status: int
) -> None:
    assert run(monkeypatch, found).exit_code == status
    assert run(monkeypatch, found, "--json").exit_code == status


def test_people_read_lines_without_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = run(monkeypatch, [OK, FAULT, NOTE]).output.splitlines()
    assert lines == [
        "ok      here: well",
        "fault   here: broken �[31m�name",
        "        why: for a reason",
        "        do: set PUSHGATE_SETTING",
        "note    here: noted",
        "        why: a reason",
        "        do: look again",
        "1 fault, 0 warnings, 1 note",
    ]


def test_programs_read_an_object_with_all_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    report = json.loads(run(monkeypatch, [FAULT, OK], "--json").output)
    assert report["findings"] == [
        {
            "severity": "fault",
            "subject": "here",
            "what": FAULT.what,
            "why": "for a reason",
            "do": "set PUSHGATE_SETTING",
        },
        {"severity": "ok", "subject": "here", "what": "well", "why": "", "do": ""},
    ]
    assert report["seconds"] >= 0


def test_a_narrow_terminal_gets_whole_words(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = command._wrapped("redis: " + "word " * 20, 40).splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) <= 40
    assert " ".join(line.strip() for line in lines).split() == ["redis:", *["word"] * 20]


def test_lines_of_libraries_stay_out_of_the_report(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def examine(*_: Any, **__: Any) -> list[Finding]:
        logging.getLogger("aiokafka").critical("a library's line")
        return [OK]

    monkeypatch.setattr(command, "examine", examine)
    assert CliRunner().invoke(command.doctor).exit_code == 0
    assert caplog.records == []
    logging.getLogger("aiokafka").critical("as before")
    assert len(caplog.records) == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080", "https://push.example.com"])
def test_connections_through_a_balancer_have_the_token_that_was_given_or_one_for_long_enough(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    asked: list[dict[str, Any]] = []

    async def examine(*_: Any, **options: Any) -> list[Finding]:
        asked.append(options)
        return [OK]

    monkeypatch.setattr(command, "examine", examine)
    monkeypatch.setenv("PUSHGATE_JWT_SECRET", JWT_SECRET)
    arguments = ["--through", url, "--for", "5000"]
    assert CliRunner().invoke(command.doctor, [*arguments, "--token", "T"]).exit_code == 0
    assert CliRunner().invoke(command.doctor, [*arguments, "--token", "-"], "U\n").exit_code == 0
    assert CliRunner().invoke(command.doctor, arguments).exit_code == 0
    given, piped, made = asked
    assert (given["token"], given["path"]) == ("T", Path(url, "T", 5_000.0))
    assert (piped["token"], piped["path"]) == ("U", Path(url, "U", 5_000.0))
    assert made["token"] is None
    claims = jwt.decode(made["path"].token, JWT_SECRET, algorithms=["HS256"])
    assert claims["exp"] > time.time() + 5_000


@pytest.mark.parametrize(
    "arguments", [("--through", "127.0.0.1:8080"), ("--through", "http://127.0.0.1:8080")]
)
def test_a_look_without_an_address_or_a_token_is_wrong_usage(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.delenv("PUSHGATE_JWT_SECRET", raising=False)
    result = run(monkeypatch, [OK], *arguments)
    assert result.exit_code == 2
    assert "--through" in result.output


def test_every_severity_has_a_word_a_colour_and_a_status() -> None:
    assert set(command._STATUS) == set(command._COLOURS) == set(Severity)
