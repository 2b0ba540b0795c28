"""What is passed: every format that a version has written is read for ever."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
import pytest

from gateway.takeover.format import (
    FORMATS,
    Connections,
    Done,
    DrainRecord,
    GateRecord,
    Held,
    Hello,
    HttpRecord,
    Message,
    ParkedRecord,
    PartlyTakenRecord,
    PollRecord,
    Push,
    Pushed,
    ReplayedRecord,
    SseRecord,
    Stalled,
    Stream,
    Switch,
    Unsent,
    Waiting,
    WebSocketRecord,
    Welcome,
    decode,
    encode,
)

RECORDED: Final = Path(__file__).parent / "recorded"
HELD: Final = Held(
    "alice",
    "phone",
    "node is leaving",
    1_900_000_000_123,
    "kf12a,orders-3-17",
    12,
    4_000,
    9_000,
    True,
    "192.0.2.7",
    False,
    GateRecord(
        1_900_000_000_000,
        [("orders", 3, 17)],
        True,
        [Waiting(b"{}", "m-1", "orders-3-18", "order", 1_900_000_000_001, "orders", "kf12a")],
    ),
)
#: All that a process of format 1 passes, every field of it.
FORMAT_1: Final[list[Message]] = [
    Hello([1], 20_000, "0.2.0"),
    Welcome(
        1,
        "gw-a",
        "e1",
        "127.0.0.1:8081",
        ["alice", "bob"],
        1.5,
        1_900_000_000_000,
        3,
        "aBcDeFgH",
        17.5,
        DrainRecord(1.0, 60.0, 50.0, 5.0, 100.0, 7),
        [b"generation 1"],
        {b"server": b"0"},
    ),
    Connections(
        [
            WebSocketRecord(
                HELD,
                Stream(Unsent([b"rest", b"whole"], [1], True), Stalled(3.5, 1_234)),
                True,
                -1,
                9,
                b"\x81\x85\0\0\0\0he",
                2,
            ),
            SseRecord(Held("bob", screen=ReplayedRecord([("t", 0, 9)], [("t", 0, 8)])), Stream()),
            PollRecord(
                Held("carol"),
                "key",
                5,
                [b"\n{}", b""],
                3,
                4,
                [("orders", 3, 17)],
                [("orders", 3, 18)],
                "kf12a",
                "kf129",
                "kf128",
                True,
                True,
                ParkedRecord(25.0, b"vary: origin\r\n", True, b"GET", ("192.0.2.7", 4_711)),
            ),
            HttpRecord(("192.0.2.7", 4_711), True, True, True),
        ],
        ["bob"],
        [PartlyTakenRecord("alice", "m-1", "phone", "orders", [0, 2])],
        12.5,
    ),
    Push(7, b"batch"),
    Pushed(7, b"results"),
    Switch(["dora"], ["emil"], 42, (b"\1" * 8, b"\2" * 4), (b"\3" * 8, b"\4" * 4)),
    Done(0.25),
]


def test_what_the_first_format_has_is_read() -> None:
    recorded = msgspec.msgpack.decode((RECORDED / "format-1.msgpack").read_bytes())
    assert [decode(body) for body in recorded] == FORMAT_1
    assert 1 in FORMATS


def test_what_is_written_is_read_alike() -> None:
    assert [decode(encode(message)) for message in FORMAT_1] == FORMAT_1


def test_a_field_of_a_later_version_is_passed_over() -> None:
    body = msgspec.msgpack.encode({"type": "push", "number": 1, "body": b"x", "of-later": [1]})
    assert decode(body) == Push(1, b"x")


@pytest.mark.parametrize("body", [b"", b"\xc1", msgspec.msgpack.encode({"type": "of-later"})])
def test_what_is_no_message_is_an_error(body: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode(body)
