"""A connection to a broker that carries fetches alone: Kafka's Fetch request, version 11.

aiokafka's own connection makes every fetch of a task, three futures, two reads and some forty
objects of the schema. At a moderate rate a fetch brings a message or two, and these objects are
most of the cost of reading. Here a fetch is a `write` of packed bytes, and the answer is a call.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import structlog

from processor.errors import ProcessorError

log = structlog.get_logger("processor.fetcher")

#: The version of the request and of the answer (KIP-392). Brokers know it since Kafka 2.3.
VERSION: Final = 11
API_KEY: Final = 1

#: The size of the rest, then request header 1 up to the client's id.
_REQUEST_HEAD: Final = struct.Struct(">ihhih")
#: The replica, wait, least and most bytes, isolation level, session and its epoch, and topics.
_REQUEST: Final = struct.Struct(">iiiibiii")
#: A partition, its leader's epoch, the offset, the log's start, and most bytes.
_ASKED: Final = struct.Struct(">iiqqi")
#: No topics to forget, and no rack.
_REQUEST_END: Final = struct.pack(">ih", 0, 0)
_NO_SESSION: Final = (0, -1)
_SIZE_BYTES: Final = 4
#: The correlation id, throttling, error, session, and topics.
_ANSWER_HEAD: Final = struct.Struct(">iihii")
#: A partition, its error, its end, its last stable offset, the log's start, aborted transactions.
_ANSWERED: Final = struct.Struct(">ihqqqi")
_ABORTED: Final = struct.Struct(">qq")
#: The preferred replica, and the size of the records.
_RECORDS_HEAD: Final = struct.Struct(">ii")
_INT16: Final = struct.Struct(">h")
_INT32: Final = struct.Struct(">i")


class BadAnswer(ProcessorError):
    """A broker's answer is not to the last fetch, or is cut off."""


class Bounds(NamedTuple):
    """Bounds of the answer to a fetch; the broker waits `wait_ms` for the least bytes."""

    wait_ms: int
    least_bytes: int
    most_bytes: int
    isolation_level: int


class Fetched(NamedTuple):
    """The answer for one partition; `records` are batches as in the broker's log."""

    topic: str
    partition: int
    error_code: int
    end: int
    last_stable: int
    aborted: Sequence[tuple[int, int]]
    records: bytes


#: By topic: partitions with the offset to read from, and how many bytes at most.
Asked = Sequence[tuple[str, Sequence[tuple[int, int, int]]]]


def request(correlation_id: int, client_id: str, bounds: Bounds, asked: Asked) -> bytes:
    """Return a fetch of partitions, without a session."""
    client = client_id.encode()
    parts = [client, _REQUEST.pack(-1, *bounds, *_NO_SESSION, len(asked))]
    for topic, partitions in asked:
        name = topic.encode()
        parts += (_INT16.pack(len(name)), name, _INT32.pack(len(partitions)))
        parts += [_ASKED.pack(number, -1, offset, -1, most) for number, offset, most in partitions]
    parts.append(_REQUEST_END)
    size = _REQUEST_HEAD.size - _SIZE_BYTES + sum(map(len, parts))
    head = _REQUEST_HEAD.pack(size, API_KEY, VERSION, correlation_id, len(client))
    return b"".join((head, *parts))


def answer(frame: bytes, correlation_id: int) -> tuple[int, list[Fetched]]:
    """Return the error code of an answer without the size, and the answer for every partition.

    Raises:
        BadAnswer: the answer is to another request, or is cut off.
    """
    try:
        correlated, _, error_code, _, topics = _ANSWER_HEAD.unpack_from(frame)
        if correlated != correlation_id:
            raise BadAnswer(f"the answer is to {correlated}, and {correlation_id} was asked")
        return error_code, list(_partitions(frame, _ANSWER_HEAD.size, topics))
    except (struct.error, UnicodeDecodeError) as error:
        raise BadAnswer(str(error)) from error


def _partitions(frame: bytes, at: int, topics: int) -> Iterator[Fetched]:
    for _ in range(topics):
        (length,) = _INT16.unpack_from(frame, at)
        at += _INT16.size
        topic = frame[at : at + length].decode()
        at += length
        (partitions,) = _INT32.unpack_from(frame, at)
        at += _INT32.size
        for _ in range(partitions):
            partition, error_code, end, last_stable, _, count = _ANSWERED.unpack_from(frame, at)
            at += _ANSWERED.size
            aborted = [_ABORTED.unpack_from(frame, at + n * _ABORTED.size) for n in range(count)]
            at += len(aborted) * _ABORTED.size
            _, size = _RECORDS_HEAD.unpack_from(frame, at)
            at += _RECORDS_HEAD.size
            records = frame[at : at + size] if size > 0 else b""
            if len(records) < size:
                raise BadAnswer(f"{size} bytes of records are cut off")
            at += len(records)
            yield Fetched(topic, partition, error_code, end, last_stable, aborted, records)


class FetchPipe(asyncio.Protocol):
    """One connection to one broker, with one fetch under way at a time.

    The transport has been through TLS and SASL; this protocol takes the transport over.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        *,
        client_id: str,
        ended: Callable[[Exception | None], None],
    ) -> None:
        """`ended` is called once, when the connection has ended, with or without an error."""
        self._transport = transport
        self._client_id = client_id
        self._ended = ended
        self._answered: Callable[[int, list[Fetched]], None] | None = None
        self._correlation_id = 0
        self._parts: list[bytes] = []  # of an answer that is still incomplete
        self._missing = 0  # bytes of that answer; unknown, and 0, without the answer's size
        self.asked_at = 0.0  # by the caller's clock

    @property
    def under_way(self) -> bool:
        """Whether a fetch has no answer yet."""
        return self._answered is not None

    def ask(
        self,
        bounds: Bounds,
        asked: Asked,
        answered: Callable[[int, list[Fetched]], None],
        *,
        now: float,
    ) -> None:
        """Send a fetch.

        `answered` is called with the answer's error code, and the answer for every partition. Where
        the connection ends before, or the answer is bad, `ended` is called instead.
        """
        self._correlation_id = (self._correlation_id + 1) & 0x7FFF_FFFF
        self._answered = answered
        self.asked_at = now
        data = request(self._correlation_id, self._client_id, bounds, asked)
        try:
            self._transport.write(data)
        except RuntimeError:
            # After a reset uvloop refuses a write, and tells `connection_lost` some turns later.
            self._transport.abort()

    def abort(self) -> None:
        """End the connection at once."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take bytes of an answer."""
        if self._missing > len(data):
            self._parts.append(data)
            self._missing -= len(data)
            return
        if self._parts:
            data = b"".join((*self._parts, data))
            self._parts = []
        self._missing = 0
        if len(data) < _SIZE_BYTES:
            self._parts = [data]
            return
        (size,) = _INT32.unpack_from(data)
        self._missing = _SIZE_BYTES + size - len(data)
        if self._missing > 0:
            self._parts = [data]
        else:
            self._complete(data[_SIZE_BYTES:])

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the connection's end."""
        self._answered = None
        self._ended(exc)

    def _complete(self, frame: bytes) -> None:
        answered, self._answered = self._answered, None
        try:
            if answered is None or self._missing < 0:
                raise BadAnswer("more was answered than was asked")
            error_code, fetched = answer(frame, self._correlation_id)
        except BadAnswer as error:
            log.warning("a broker's answer to a fetch is bad", error=str(error))
            self.abort()
            return
        answered(error_code, fetched)
