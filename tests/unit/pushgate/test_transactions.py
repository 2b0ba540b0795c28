"""What the embedded broker holds for transactions is bounded, and belongs to its producer."""

from __future__ import annotations

import struct

import pytest

from pushgate.embedded import transactions as module
from pushgate.embedded.kafka_wire import (
    ADD_PARTITIONS_TO_TXN,
    API_VERSIONS,
    END_TXN,
    INT16,
    INT32,
    PRODUCE,
    Head,
    Reader,
    Writer,
)
from pushgate.embedded.transactions import Transactions

pytestmark = pytest.mark.anyio

PRODUCER = struct.pack(">qh", 7, 0)
TOO_LARGE, INVALID_EPOCH = 18, 47


class Broker:
    """Takes every request; keeps those that are the proxy's own."""

    def __init__(self) -> None:
        self.calls: list[bytes] = []
        self.transactions = Transactions(self.call)

    async def call(self, request: bytes) -> bytes:
        self.calls.append(request)
        return INT32.pack(0) + INT32.pack(0)  # an answer to Produce without topics

    async def begin(self, name: bytes, producer: bytes = PRODUCER) -> None:
        head = Head(ADD_PARTITIONS_TO_TXN, 0, 1)
        await self.transactions.requested(head, head.request(text(name) + producer))

    async def produce(
        self, name: bytes, size: int, *, version: int = 7, producer: bytes = PRODUCER
    ) -> int:
        """Send a batch of a transaction; return the error code of the answer."""
        head = Head(PRODUCE, version, 5)
        body = Writer(flexible=head.is_flexible)
        body.text(name)
        body.number(INT16, -1)
        body.number(INT32, 1_000)
        body.count(1)
        body.text(b"t")
        body.count(1)
        body.number(INT32, 3)
        body.data(b"\0" * 43 + producer + b"\0" * (size - 53))
        for _ in range(3):
            body.end_structure()
        passed_on, change = await self.transactions.requested(head, head.request(bytes(body.frame)))
        assert Head.of(passed_on)[:2] == (API_VERSIONS, 0), "no record reaches the broker"
        assert change is not None
        return error_code(await change(b""), head)

    async def commit(self, name: bytes, refusal: int = 0) -> bytes:
        head = Head(END_TXN, 1, 6)
        request = head.request(text(name) + PRODUCER + b"\1")
        passed_on, change = await self.transactions.requested(head, request)
        assert (passed_on, change is not None) == (request, True)
        assert change is not None
        return await change(INT32.pack(6) + INT32.pack(0) + INT16.pack(refusal))


def text(name: bytes) -> bytes:
    return INT16.pack(len(name)) + name


def error_code(answer: bytes, head: Head) -> int:
    body = Reader(answer, flexible=head.is_flexible)
    assert body.number(INT32) == head.correlation
    body.skip_tags()
    assert (body.count(), body.text(), body.count(), body.number(INT32)) == (1, b"t", 1, 3)
    return body.number(INT16)


@pytest.mark.parametrize("version", [3, 5, 8, 9, 10])
async def test_records_reach_the_broker_at_the_commit_in_every_version(version: int) -> None:
    broker = Broker()
    await broker.begin(b"x" * 200)
    assert await broker.produce(b"x" * 200, 100, version=version) == 0
    assert broker.calls == []
    assert await broker.commit(b"x" * 200) == INT32.pack(6) + INT32.pack(0) + INT16.pack(0)
    [written] = broker.calls
    assert Head.of(written)[:2] == (PRODUCE, 3)
    assert PRODUCER in written


async def test_what_the_broker_refuses_to_commit_is_not_written() -> None:
    broker = Broker()
    await broker.begin(b"x")
    await broker.produce(b"x", 100)
    await broker.commit(b"x", refusal=INVALID_EPOCH)
    assert broker.calls == []


async def test_a_batch_beyond_the_bound_is_refused_until_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_MAX_HELD_BYTES", 200)
    broker = Broker()
    await broker.begin(b"x")
    await broker.begin(b"y")
    assert await broker.produce(b"x", 150) == 0
    assert await broker.produce(b"y", 51) == TOO_LARGE
    await broker.commit(b"x")
    assert await broker.produce(b"y", 60) == 0


async def test_a_batch_of_another_producer_or_of_no_transaction_is_refused() -> None:
    broker = Broker()
    await broker.begin(b"x")
    other = struct.pack(">qh", 8, 0)
    assert await broker.produce(b"x", 100, producer=other) == INVALID_EPOCH
    assert await broker.produce(b"unknown", 100) == INVALID_EPOCH
