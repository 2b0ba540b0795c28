"""Transactions of the embedded broker: a transaction's records are held until the commit.

The mock cluster keeps producers' ids and epochs, and refuses old epochs. But consumers of the mock
cluster see uncommitted and aborted records, and the markers of a transaction's end have no
checksum: a consumer that verifies checksums reads a partition with a marker no further. So the mock
cluster gets no record of a transaction before the commit, and then all records at once. An aborted
transaction leaves nothing behind, and an abandoned transaction holds no consumer up. Two
differences to a real Kafka: the producer is told no offsets, and consumers of uncommitted records
see none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple

from pushgate.embedded.kafka_wire import (
    ADD_PARTITIONS_TO_TXN,
    API_VERSIONS,
    END_TXN,
    INIT_PRODUCER_ID,
    INT16,
    INT32,
    INT64,
    PRODUCE,
    Head,
    Reader,
    Writer,
)

#: Bytes that are held for all transactions; a batch beyond is refused.
_MAX_HELD_BYTES: Final = 64 * 1024 * 1024
#: Time-out of a transaction whose producer has named none: Kafka's default.
_DEFAULT_SECONDS: Final = 60.0
#: A producer's id and epoch in a request, and where they are in a batch of records.
_PRODUCER_BYTES: Final = 10
_IN_BATCH: Final = slice(43, 43 + _PRODUCER_BYTES)
_NULL: Final = -1
#: Error codes.
_RECORD_LIST_TOO_LARGE: Final = 18
_INVALID_PRODUCER_EPOCH: Final = 47

#: Sends a request to the broker, and returns the answer.
Call = Callable[[bytes], Awaitable[bytes]]
#: Makes the client's answer from the broker's.
Change = Callable[[bytes], Awaitable[bytes]]


class _Batch(NamedTuple):
    topic: bytes
    partition: int
    records: bytes


@dataclass(slots=True)
class _Open:
    """A transaction in progress."""

    producer: bytes
    expiry: asyncio.TimerHandle
    batches: list[_Batch] = field(default_factory=list)

    @property
    def size(self) -> int:
        """The bytes that are held."""
        return sum(len(batch.records) for batch in self.batches)


class Transactions:
    """Follows the requests of all clients; sends requests of its own through `call`."""

    def __init__(self, call: Call) -> None:
        self._call = call
        #: By transactional id, one of each at most, as in Kafka.
        self._open: dict[bytes, _Open] = {}
        #: Time-outs in seconds, of the producers that were started.
        self._timeouts: dict[bytes, float] = {}
        self._fencing: set[asyncio.Task[None]] = set()

    async def requested(self, head: Head, request: bytes) -> tuple[bytes, Change | None]:
        """Return the request to pass on to the broker, and how its answer is to be changed."""
        if head.api_key == PRODUCE and head.version >= 3:
            return self._produced(head, request)
        if head.api_key == INIT_PRODUCER_ID:
            await self._started(Reader.of_body(request, head))
        elif head.api_key == ADD_PARTITIONS_TO_TXN:
            body = Reader.of_body(request, head)
            self._begin(body.text(), body.raw(_PRODUCER_BYTES))
        elif head.api_key == END_TXN:
            body = Reader.of_body(request, head)
            transactional_id, producer = body.text(), body.raw(_PRODUCER_BYTES)
            commits = body.raw(1) != b"\0"
            return request, partial(self._ended, transactional_id, producer, commits)
        return request, None

    def _produced(self, head: Head, request: bytes) -> tuple[bytes, Change | None]:
        """Hold the batches of a transaction.

        The broker is asked its versions meanwhile: answers keep the order of their requests.
        """
        body = Reader.of_body(request, head)
        transactional_id = body.text()
        if not transactional_id:
            return request, None
        results = [(batch, self._hold(transactional_id, batch)) for batch in _batches(body)]
        answer = _answer(head, results)

        async def answered(_: bytes) -> bytes:
            return answer

        return Head(API_VERSIONS, 0, head.correlation).request(), answered

    def _hold(self, transactional_id: bytes, batch: _Batch) -> int:
        """Hold a batch; return an error code, 0 for none."""
        transaction = self._open.get(transactional_id)
        if transaction is None or batch.records[_IN_BATCH] != transaction.producer:
            return _INVALID_PRODUCER_EPOCH
        held = sum(transaction.size for transaction in self._open.values())
        if held + len(batch.records) > _MAX_HELD_BYTES:
            return _RECORD_LIST_TOO_LARGE
        transaction.batches.append(batch)
        return 0

    async def _started(self, body: Reader) -> None:
        """Note a producer's time-out; end what an earlier producer of the same name left open."""
        transactional_id, timeout_ms = body.text(), body.number(INT32)
        if not transactional_id:
            return
        self._timeouts[transactional_id] = timeout_ms / 1000
        transaction = self._close(transactional_id)
        # A producer that asks for its own next epoch (KIP-360) gets it from the broker.
        if transaction is not None and transaction.producer != body.raw(_PRODUCER_BYTES):
            await self._fence(transactional_id, transaction.producer)

    def _begin(self, transactional_id: bytes, producer: bytes) -> None:
        if transactional_id in self._open:
            return
        seconds = self._timeouts.get(transactional_id, _DEFAULT_SECONDS)
        expiry = asyncio.get_running_loop().call_later(seconds, self._expired, transactional_id)
        self._open[transactional_id] = _Open(producer, expiry)

    def _expired(self, transactional_id: bytes) -> None:
        transaction = self._close(transactional_id)
        if transaction is not None:
            fencing = asyncio.create_task(self._fence(transactional_id, transaction.producer))
            self._fencing.add(fencing)
            fencing.add_done_callback(self._fencing.discard)

    async def _fence(self, transactional_id: bytes, producer: bytes) -> None:
        """Have the broker refuse the producer from now on, by a next epoch (KIP-360)."""
        body = Writer(flexible=True)
        body.text(transactional_id)
        body.number(INT32, int(_DEFAULT_SECONDS * 1000))
        body.frame += producer
        body.end_structure()
        await self._call(Head(INIT_PRODUCER_ID, 3, 0).request(bytes(body.frame)))

    async def _ended(
        self, transactional_id: bytes, producer: bytes, commits: bool, answer: bytes
    ) -> bytes:
        """Write what was held, where the broker has agreed to the commit; return its answer."""
        refused = answer[8:10] != b"\0\0"  # behind correlation id and throttle time
        transaction = self._open.get(transactional_id)
        if refused or transaction is None or transaction.producer != producer:
            return answer
        self._close(transactional_id)
        if not (commits and transaction.batches):
            return answer
        error_code = _first_error(await self._call(_write_request(transaction.batches)))
        return answer[:8] + INT16.pack(error_code) + answer[10:]

    def _close(self, transactional_id: bytes) -> _Open | None:
        transaction = self._open.pop(transactional_id, None)
        if transaction is not None:
            transaction.expiry.cancel()
        return transaction


def _batches(body: Reader) -> list[_Batch]:
    """Read the batches of a Produce request, behind its transactional id."""
    body.number(INT16)  # acks
    body.number(INT32)  # time-out
    batches = []
    for _ in range(body.count()):
        topic = body.text()
        for _ in range(body.count()):
            batches.append(_Batch(topic, body.number(INT32), body.data()))
            body.skip_tags()
        body.skip_tags()
    return batches


def _answer(head: Head, results: list[tuple[_Batch, int]]) -> bytes:
    """Return the answer to a Produce request: an error code for each batch, and no offsets."""
    answer = Writer(flexible=head.is_flexible)
    answer.number(INT32, head.correlation)
    answer.end_structure()
    answer.count(len(results))
    for batch, error_code in results:
        answer.text(batch.topic)
        answer.count(1)
        answer.number(INT32, batch.partition)
        answer.number(INT16, error_code)
        answer.number(INT64, _NULL)  # offset
        answer.number(INT64, _NULL)  # time of writing
        if head.version >= 5:
            answer.number(INT64, _NULL)  # the log's first offset
        if head.version >= 8:
            answer.count(0)  # errors by record
            answer.text(None)
        answer.end_structure()
        answer.end_structure()
    answer.number(INT32, 0)  # throttle time
    answer.end_structure()
    return bytes(answer.frame)


def _write_request(batches: list[_Batch]) -> bytes:
    """Return a Produce request that writes batches outside of any transaction.

    Their bits say that they are transactional, which their checksums cover. For consumers they are
    records of a transaction that is not among the aborted.
    """
    body = Writer(flexible=False)
    body.text(None)  # transactional id
    body.number(INT16, -1)  # acks of all replicas
    body.number(INT32, 10_000)
    body.count(len(batches))
    for batch in batches:
        body.text(batch.topic)
        body.count(1)
        body.number(INT32, batch.partition)
        body.data(batch.records)
    return Head(PRODUCE, 3, 0).request(bytes(body.frame))


def _first_error(answer: bytes) -> int:
    """Return the first error code of an answer to Produce of version 3; 0 for none."""
    body = Reader(answer, flexible=False, at=INT32.size)
    for _ in range(body.count()):
        body.text()
        for _ in range(body.count()):
            body.number(INT32)
            if error_code := body.number(INT16):
                return error_code
            body.raw(2 * INT64.size)
    return 0
