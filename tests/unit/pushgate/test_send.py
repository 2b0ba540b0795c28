"""`pushgate send` refuses what processors would reject, before it looks for Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pushgate.cli import cli
from pushgate.commands import send as send_module
from pushgate.outcomes import Report
from registry.message import RejectedRecord, from_record

#: Nobody listens there: what is refused in time never asks.
NO_KAFKA = ("--kafka-bootstrap", "127.0.0.1:1")


def sent(*words: str) -> Result:
    return CliRunner().invoke(cli, ["send", *words, *NO_KAFKA])


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads the addresses of a `pushgate dev` that runs in this folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PUSHGATE_OUTCOMES_TOPIC", raising=False)


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (("a\tb", "x"), "key: a user id is 1–256 bytes of UTF-8 without control characters"),
        (("u" * 257, "x"), "key: "),
        (("", "x"), "key: "),
        (("u", "x", "--type", "open"), "push-type: 1–128 bytes without control characters; not "),
        (("u", "x", "--type", ""), "push-type: "),
        (("u", "x", "--id", "a b"), "push-id: 1–128 bytes of UTF-8 without spaces"),
        (("u", "x", "--device", ""), "push-device: "),
        (("u", "x", "--collapse-key", "k" * 129), "push-collapse-key: "),
        (("u", "x" * 65_537), "too-large: 65537 bytes; the limit is 65536"),
        (("u", "xx", "--max-payload-bytes", "1"), "too-large: 2 bytes; the limit is 1"),
    ],
)
def test_a_broken_rule_is_named_and_nothing_is_sent(words: tuple[str, ...], rule: str) -> None:
    result = sent(*words)
    assert result.exit_code == 6, result.output
    assert f"not sent, since a rule is broken: {rule}" in result.stderr


def test_the_rules_are_the_processors_own() -> None:
    """What `send` says is, word for word, what a processor would."""
    with pytest.raises(RejectedRecord) as rejected:
        from_record(
            topic="push", partition=0, offset=0, timestamp_ms=0, published_ms=0, key=b"u",
            value=b"", headers=[("push-type", b"error")], max_payload_bytes=1,
        )  # fmt: skip
    assert str(rejected.value) in sent("u", "", "--type", "error").stderr


def test_a_files_bytes_are_checked_too(tmp_path: Path) -> None:
    file = tmp_path / "payload"
    file.write_bytes(b"\0" * 70_000)
    result = sent("u", "--file", str(file))
    assert (result.exit_code, "too-large: 70000 bytes" in result.stderr) == (6, True)


@pytest.mark.parametrize(
    "words",
    [
        ("u",),
        ("u", "x", "--file", __file__),
        ("u", "x", "--ttl", "-1"),
        ("u", "x", "--ttl", "soon"),
        ("u", "x", "--urgency", "urgent"),
        ("u", "x", "--repeat", "0"),
        ("u", "x", "--id", "1", "--repeat", "2"),
        ("u", "--file", "/nowhere"),
    ],
)
def test_wrong_usage_has_a_status_of_its_own(words: tuple[str, ...]) -> None:
    assert sent(*words).exit_code == 2


def test_without_an_outcomes_topic_it_says_so_and_sends_nothing() -> None:
    result = sent("u", "x", "--wait")
    assert result.exit_code == 1
    assert "nothing was sent: without an outcomes topic" in result.stderr
    assert "PUSHGATE_OUTCOMES_TOPIC" in result.stderr


def test_a_kafka_that_does_not_answer_is_named() -> None:
    result = sent("u", "x")
    assert result.exit_code == 1
    assert "Kafka at 127.0.0.1:1: " in result.stderr


def test_no_report_takes_the_terminal_over(monkeypatch: pytest.MonkeyPatch) -> None:
    class Kafka:
        async def hand_over(self, *_: object) -> Awaitable[object]:
            acknowledged = asyncio.get_running_loop().create_future()
            acknowledged.set_result(None)
            return acknowledged

    class Reports:
        async def outcome_of(self, coordinates: str) -> Report:
            return {"outcome": "failed\x1b[2J", "reason": "\x1b]0;x\x07"}

    @asynccontextmanager
    async def given(*arguments: object) -> AsyncIterator[object]:
        yield Kafka() if len(arguments) == 1 else Reports()

    monkeypatch.setattr(send_module, "publisher", given)
    monkeypatch.setattr(send_module, "watching", given)
    monkeypatch.setattr(send_module, "coordinates_of", lambda _: "push-0-1")
    result = sent("u", "x", "--wait")
    assert result.exit_code == 1, result.output
    assert result.stdout == "push-0-1  failed\ufffd[2J: \ufffd]0;x\ufffd\n"


def test_the_help_lists_the_exit_statuses() -> None:
    help_text = " ".join(sent("--help").output.split())
    assert "3 offline; 4 expired; 5 replaced; 6 rejected" in help_text
