"""Lines of `pushgate tail`, from records that publishers and other writers may have made."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType, SimpleNamespace
from typing import cast

import msgspec
import pytest
from click.testing import CliRunner
from rich.cells import cell_len

from processor.reading.kafka import Record
from pushgate.cli import cli
from pushgate.commands.tail import _in_cells, _letter, _Line, _lines, _outcome
from pushgate.settings import TailSettings

REPORT = {
    "id": "m-7", "outcome": "delivered", "reason": None, "nodes": ["gw-1", "gw-2"],
    "connections": 3, "missed": 1, "settled_ms": 1_500, "ms": 12,
    "topic": "push", "partition": 2, "offset": 40,
}  # fmt: skip
LETTER = {
    "pushgate-topic": b"push",
    "pushgate-partition": b"2",
    "pushgate-offset": b"40",
    "pushgate-reason": b"push-ttl",
    "pushgate-detail": b"whole seconds",
}
HOSTILE = "eve\x1b[2J\u202e".encode()


def record(
    value: bytes | None,
    key: bytes | None = b"alice",
    headers: Mapping[str, bytes | None] = MappingProxyType({}),
    *,
    timestamp: int = 1_000,
) -> Record:
    fields = SimpleNamespace(
        key=key, value=value, timestamp=timestamp, headers=tuple(headers.items())
    )
    return cast("Record", fields)


def outcome(key: bytes | None = b"alice", **changes: object) -> _Line:
    line = _outcome(record(msgspec.json.encode(REPORT | changes), key))
    assert line is not None
    return line


def test_an_outcome_has_its_user_the_nodes_and_the_coordinates() -> None:
    line = outcome()
    assert (line.at_ms, line.user) == (1_500, "alice")
    words = "delivered to 3 connections; 1 node may lack it"
    assert line.parts == [words, "12 ms", "gw-1, gw-2", "m-7", "push-2-40"]
    assert line.value == {"user": "alice", **REPORT}
    assert outcome(id="push-2-40").parts[-2:] == ["gw-1, gw-2", "push-2-40"]
    assert outcome(replayed=True).parts[0].endswith(", replayed")
    assert outcome(outcome="offline", nodes=[], ms=None).parts[:3] == ["offline", "-", "-"]


def test_no_name_in_an_outcome_takes_the_terminal_over() -> None:
    hostile = "\x1b]0;x\x07\n"
    line = outcome(HOSTILE, id=hostile, outcome="failed", reason=hostile, nodes=[hostile], ms=None)
    assert _in_cells(line, None).partition("  ")[2] == (
        "eve\ufffd[2J\ufffd  failed: \ufffd]0;x\ufffd\ufffd  -  "
        "\ufffd]0;x\ufffd\ufffd  \ufffd]0;x\ufffd\ufffd  push-2-40"
    )
    assert line.value["user"] == HOSTILE.decode()
    assert outcome(None).user == "-"
    assert outcome(b"\xff").value["user"] == "\\xff"


@pytest.mark.parametrize("seconds", ["-1", "1e10", "inf"])
def test_a_time_that_kafka_does_not_take_is_wrong_usage(seconds: str) -> None:
    result = CliRunner().invoke(cli, ["tail", "dead", "--since", seconds])
    assert result.exit_code == 2
    assert "is not in the range 0<=x<=1000000000" in result.output


@pytest.mark.parametrize("cells", [1, 12, 24, 40, 200])
def test_a_line_fits_a_narrow_terminal_and_keeps_its_user(cells: int) -> None:
    shown = _in_cells(outcome("ผู้ใช้-漢字漢字漢字漢字".encode()), cells)
    assert cell_len(shown) <= cells
    assert cells < 24 or "ผู้ใช้-" in shown
    assert cells < 40 or "delivered" in shown


def test_a_time_that_is_none_is_not_shown() -> None:
    assert _in_cells(outcome(settled_ms=10**18), None).startswith("-  alice  ")


@pytest.mark.parametrize(
    "value",
    [
        None, b"", b"no JSON", b"[]", b'{"outcome": "delivered"}',
        msgspec.json.encode(REPORT | {"nodes": [1]}),
        msgspec.json.encode(REPORT | {"settled_ms": "now"}),
    ],
)  # fmt: skip
def test_a_record_that_is_no_report_is_passed_over(value: bytes | None) -> None:
    assert _outcome(record(value)) is None


def test_a_letter_has_the_reason_the_size_and_the_beginning_of_the_value() -> None:
    line = _letter(record(b"z\xff\n" * 40, headers=LETTER | {"push-ttl": b"soon"}))
    assert line is not None
    assert line.parts[:3] == ["push-ttl: whole seconds", "push-2-40", "120 bytes"]
    assert line.parts[3] == r"z\xff\n" * 20 + "…"
    assert (line.value["coordinates"], line.value["headers"]) == ("push-2-40", {"push-ttl": "soon"})
    assert line.value["encoding"] == "base64"


def test_a_letter_that_was_cut_has_the_size_it_had() -> None:
    line = _letter(record(b"x", headers=LETTER | {"pushgate-cut-from": b"70000"}))
    assert line is not None
    assert line.parts[2] == "70000 bytes"
    assert line.value["cut_from"] == 70_000


def test_a_letter_without_a_value_is_empty_and_another_writers_record_is_passed_over() -> None:
    line = _letter(record(None, None, LETTER | {"pushgate-detail": None}))
    assert line is not None
    assert line.parts == ["push-ttl", "push-2-40", "0 bytes", ""]
    assert _letter(record(b"x", headers={"push-ttl": b"soon"})) is None


@pytest.mark.anyio
async def test_older_records_and_other_users_records_are_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    records = [
        record(msgspec.json.encode(REPORT | {"offset": offset}), key, timestamp=at_ms)
        for offset, (key, at_ms) in enumerate([(b"alice", 999), (b"bob", 1_000), (b"alice", 1_000)])
    ]

    @asynccontextmanager
    async def reading(*_: object, **__: object) -> AsyncIterator[AsyncIterator[Record]]:
        async def each() -> AsyncIterator[Record]:
            for one in records:
                yield one

        yield each()

    monkeypatch.setattr("pushgate.commands.tail.reading", reading)
    settings = TailSettings(outcomes_topic="o")

    async def offsets(key: bytes | None, since_ms: int | None) -> list[int]:
        lines = _lines(settings, "outcomes", key, since_ms)
        return [line.value["offset"] async for line in lines]

    assert await offsets(None, None) == [0, 1, 2]
    assert await offsets(None, 1_000) == [1, 2]
    assert await offsets(b"alice", 1_000) == [2]
