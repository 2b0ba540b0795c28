"""The bytes of a fetch and of its answer, beside aiokafka's; answers that come in pieces."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from aiokafka.protocol.fetch import FetchRequest, FetchRequest_v11, FetchResponse_v11

from processor.reading.fetch_pipe import (
    BadAnswer,
    Bounds,
    Fetched,
    FetchPipe,
    answer,
    request,
)

BOUNDS = Bounds(500, 1, 52_428_800, 1)
ASKED = [("push", [(0, 7, 1_048_576), (3, 2**40, 1_048_576)]), ("späte", [(1, 0, 10)])]
RECORDS = bytes(range(200))
TOPICS: list[Any] = [
    (
        "push",
        [(0, 0, 107, 105, 2, [(9, 80), (10, 90)], -1, RECORDS), (3, 1, 5, 5, 0, None, -1, b"")],
    ),
    ("späte", [(1, 0, -1, -1, -1, [], -1, None)]),
]
FETCHED = [
    Fetched("push", 0, 0, 107, 105, [(9, 80), (10, 90)], RECORDS),
    Fetched("push", 3, 1, 5, 5, [], b""),
    Fetched("späte", 1, 0, -1, -1, [], b""),
]


def frame(correlation_id: int, *, error_code: int = 0, topics: list[Any] = TOPICS) -> bytes:
    body = FetchResponse_v11.SCHEMA.encode([0, error_code, 0, topics])
    return correlation_id.to_bytes(4) + body


def sized(body: bytes) -> bytes:
    return len(body).to_bytes(4) + body


class Transport:
    def __init__(self) -> None:
        self.written = b""
        self.aborted = False
        self.reset = False

    def write(self, data: bytes) -> None:
        if self.reset:
            raise RuntimeError("the handler is closed")  # as uvloop does
        self.written += data

    def abort(self) -> None:
        self.aborted = True


class Rig:
    def __init__(self) -> None:
        self.transport = Transport()
        self.answers: list[tuple[int, list[Fetched]]] = []
        self.ends: list[Exception | None] = []
        self.pipe = FetchPipe(
            cast(asyncio.Transport, self.transport), client_id="pushgate", ended=self.ends.append
        )

    def ask(self) -> None:
        self.pipe.ask(BOUNDS, ASKED, lambda *answered: self.answers.append(answered), now=1.0)


def test_a_fetch_is_what_aiokafka_would_send() -> None:
    built = FetchRequest(*BOUNDS, ASKED).build(FetchRequest_v11)
    header = built.build_request_header(correlation_id=12, client_id="pushgate")
    assert request(12, "pushgate", BOUNDS, ASKED) == sized(header.encode() + built.encode())


def test_an_answer_is_read_as_aiokafka_would_read_it() -> None:
    assert answer(frame(12), 12) == (0, FETCHED)
    assert answer(frame(12, error_code=70, topics=[]), 12) == (70, [])


def test_an_answer_to_another_fetch_is_bad() -> None:
    with pytest.raises(BadAnswer, match="the answer is to 11, and 12 was asked"):
        answer(frame(11), 12)


@pytest.mark.parametrize("length", range(len(frame(12))))
def test_an_answer_that_is_cut_off_is_bad_wherever_it_is_cut(length: int) -> None:
    with pytest.raises(BadAnswer):
        answer(frame(12)[:length], 12)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 100, 1000])
def test_answers_are_put_together_from_pieces_of_any_size(size: int) -> None:
    rig = Rig()
    for correlation_id in (1, 2, 3):
        rig.ask()
        assert rig.pipe.under_way
        data = sized(frame(correlation_id))
        for start in range(0, len(data), size):
            rig.pipe.data_received(data[start : start + size])
        assert not rig.pipe.under_way
    assert rig.answers == [(0, FETCHED)] * 3
    assert not rig.transport.aborted


@pytest.mark.parametrize(
    "data",
    [
        sized(frame(2)),
        sized(frame(1)[:-1]),
        sized(b""),
        sized(frame(1)) + b"x",
        sized(frame(1)) + sized(frame(1)),
        (-1).to_bytes(4, signed=True) + b"x",
    ],
)
def test_a_bad_answer_ends_the_connection(data: bytes) -> None:
    rig = Rig()
    rig.ask()
    rig.pipe.data_received(data)
    assert rig.transport.aborted
    assert rig.answers == []
    assert not rig.pipe.under_way


def test_an_answer_that_nobody_asked_for_ends_the_connection() -> None:
    rig = Rig()
    rig.pipe.data_received(sized(frame(0)))
    assert rig.transport.aborted


def test_the_end_of_the_connection_is_told_and_leaves_no_fetch_under_way() -> None:
    rig = Rig()
    rig.ask()
    rig.pipe.data_received(sized(frame(1))[:20])
    lost = ConnectionResetError("reset")
    rig.pipe.connection_lost(lost)
    assert rig.ends == [lost]
    assert not rig.pipe.under_way
    assert rig.answers == []


def test_a_fetch_on_a_connection_that_was_reset_ends_with_the_connection() -> None:
    rig = Rig()
    rig.transport.reset = True
    rig.ask()
    assert rig.transport.aborted
    assert rig.pipe.under_way, "until the loop tells of the end"
    rig.pipe.connection_lost(None)
    assert rig.ends == [None]
    assert not rig.pipe.under_way
