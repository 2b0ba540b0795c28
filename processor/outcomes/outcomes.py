"""What became of messages, for who counts and for publishers: metrics, and a Kafka topic if set."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Final, NamedTuple
from zlib import crc32

import msgspec
import structlog

from processor import metrics
from processor.outcomes.outcome import Kind, Outcome, outcome, outcome_of
from processor.reading.kafka import (
    AIOKafkaProducer,
    BatchBuilder,
    KafkaError,
    MessageSizeTooLargeError,
    Record,
    partition_of,
    producer,
    size_of,
)
from processor.reading.message import Message, Rejection
from processor.reading.progress import Progress
from processor.settings import ProcessorSettings
from processor.tasks import Spawn
from registry.message import MAX_USER_BYTES, RejectedRecord

#: So much goes to a partition of the topic at once at most, and so long it gathers.
_BATCH_BYTES: Final = 512 * 1024
_GATHER_SECONDS: Final = 0.02
_ALL: Final = 2**32
_MOST_ROWS: Final = 4_096
_RETRY_SECONDS: Final = (0.1, 0.5, 1.0, 2.0)
#: Partitions of users that were computed lately: aiokafka's murmur2 is Python (2–3 µs).
_MAX_USERS: Final = 65_536

log = structlog.get_logger("processor.outcomes")

Advanced = Callable[[Iterable[Progress]], None]


class Report(msgspec.Struct, gc=False):
    """A record's value in the outcomes topic, as JSON; its key is the user. Times in epoch ms."""

    id: str
    outcome: str
    reason: str | None
    node: str | None  # the first that took it
    device: str | None  # the one it was for
    connections: int  # that took it
    published_ms: int
    settled_ms: int
    topic: str
    partition: int
    offset: int


class _Place(NamedTuple):
    """A message's place in its partition."""

    progress: Progress
    offset: int
    size: int


_Placed = _Place | Message
#: A record of the topic: key and value.
_Row = tuple[bytes | None, bytes]
_Told = tuple[bytes | None, Report]
_encode = msgspec.json.Encoder().encode


class Outcomes:
    """Counts outcomes and, where there is a topic for them, tells them before they are committed.

    So a crash may repeat a report, and lose none.
    """

    def __init__(
        self,
        settings: ProcessorSettings,
        advanced: Advanced,
        *,
        spawn: Spawn,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
    ) -> None:
        """`advanced` hears which partitions have come further."""
        self._advanced = advanced
        self._spawn = spawn
        self._now_ms = now_ms
        self._topic = settings.outcomes_topic
        self._sampled = int(settings.outcomes_sample * _ALL)
        self._producer = producer(settings, batch_bytes=_BATCH_BYTES) if self._topic else None
        self._places: list[_Placed] = []  # of what is to be told, and of what is not sampled
        self._rows: list[_Row] = []
        self._most_rows = _MOST_ROWS  # of a batch
        self._telling: asyncio.Task[None] | None = None
        self._partition = lru_cache(_MAX_USERS)(partition_of)

    async def start(self) -> None:
        """Connect.

        Raises:
            KafkaError: no broker answers.
        """
        if self._producer is not None:
            await self._producer.start()

    async def stop(self) -> None:
        """Disconnect. What is not told yet is not committed either."""
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.wait((self._telling,))
        if self._producer is not None:
            await self._producer.stop()

    def settled(self, messages: Sequence[Message]) -> None:
        """Take messages that have their outcome."""
        ours = [message for message in messages if not message.progress.lost]
        found = [outcome_of(message) for message in ours]
        _count(found)
        if self._producer is None:
            self._done(ours)
        elif ours:
            now_ms = self._now_ms()
            pairs = zip(ours, found, strict=True)
            self._tell_soon(ours, [_report(message, each, now_ms) for message, each in pairs])

    def rejected(self, rejections: Sequence[Rejection]) -> None:
        """Take records that are kept in the dead-letter topic."""
        ours = [rejection for rejection in rejections if not rejection.progress.lost]
        _count(outcome(Kind.REJECTED, error.reason) for _, _, error in ours)
        places = [_Place(progress, record.offset, size_of(record)) for progress, record, _ in ours]
        if self._producer is None:
            self._done(places)
        elif places:
            now_ms = self._now_ms()
            told = [(_key(record), _rejection(record, why, now_ms)) for _, record, why in ours]
            self._tell_soon(places, told)

    def _tell_soon(self, places: Sequence[_Placed], told: Sequence[_Told]) -> None:
        self._places += places
        if self._sampled < _ALL:
            told = [each for each in told if crc32(each[1].id.encode()) < self._sampled]
        self._rows += [(key, _encode(report)) for key, report in told]
        if self._telling is None or self._telling.done():
            self._telling = self._spawn(self._tell())

    def _done(self, places: Sequence[_Placed]) -> None:
        for place in places:
            place.progress.settle(place.offset, size=place.size)
        self._advanced(dict.fromkeys(place.progress for place in places))

    async def _tell(self) -> None:
        await asyncio.sleep(_GATHER_SECONDS)
        while self._places:
            places, self._places = self._places, []
            rows, self._rows = self._rows, []
            await self._publish(rows)
            self._done(places)

    async def _publish(self, rows: Sequence[_Row]) -> None:
        """Return when Kafka has acknowledged all; while it does not, what is in hand grows full."""
        for attempt in itertools.count():
            try:
                await self._send(rows)
            except MessageSizeTooLargeError as error:
                # No row is over some 2 KB: it is the topic that takes smaller batches.
                if self._most_rows == 1:
                    raise
                self._most_rows = max(1, self._most_rows // 4)
                log.warning("smaller batches of outcomes", rows=self._most_rows, error=str(error))
            except KafkaError as error:
                metrics.OUTCOME_ERRORS.inc()
                if attempt == 0:
                    log.error("can't tell outcomes", topic=self._topic, error=str(error))
                await asyncio.sleep(_RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)])
            else:
                return

    async def _send(self, rows: Sequence[_Row]) -> None:
        assert self._producer is not None  # noqa: S101 - else nothing waits
        assert self._topic is not None  # noqa: S101
        partitions = len(await self._producer.partitions_for(self._topic))
        by_partition: dict[int, list[_Row]] = {}
        for row in rows:
            partition = self._partition(row[0], partitions)
            by_partition.setdefault(partition, []).append(row)
        acknowledged = [
            await self._producer.send_batch(batch, self._topic, partition=partition)
            for partition, told in by_partition.items()
            for some in _some(told, self._most_rows)
            for batch in _batches(self._producer, some, self._now_ms())
        ]
        await asyncio.gather(*acknowledged)


def _count(outcomes: Iterable[Outcome]) -> None:
    """Count outcomes: a counter takes a lock each time, so equal ones at once."""
    for each, number in Counter(outcomes).items():
        metrics.OUTCOMES.labels(each.name, each.reason).inc(number)


def _report(message: Message, found: Outcome, now_ms: int) -> _Told:
    partition = message.progress.partition
    report = Report(
        message.push.id,
        found.name,
        found.reason or None,
        message.node.name if message.node else None,
        message.push.device,
        message.took,
        message.envelope.published_ms,
        now_ms,
        partition.topic,
        partition.partition,
        message.offset,
    )
    return message.push.user.encode(), report


def _key(record: Record) -> bytes | None:
    """Return a rejected record's key, unless it is none of a user."""
    return record.key if record.key is not None and len(record.key) <= MAX_USER_BYTES else None


def _rejection(record: Record, why: RejectedRecord, now_ms: int) -> Report:
    """Tell of a record by its coordinates: what it says of itself is not to be trusted."""
    return Report(
        f"{record.topic}-{record.partition}-{record.offset}",
        Kind.REJECTED.value,
        why.reason,
        None,
        None,
        0,
        record.timestamp,
        now_ms,
        record.topic,
        record.partition,
        record.offset,
    )


def _some(rows: Sequence[_Row], most: int) -> Iterator[Sequence[_Row]]:
    for start in range(0, len(rows), most):
        yield rows[start : start + most]


def _batches(kafka: AIOKafkaProducer, rows: Sequence[_Row], now_ms: int) -> Iterator[BatchBuilder]:
    batch = kafka.create_batch()
    for key, value in rows:
        if batch.append(timestamp=now_ms, key=key, value=value) is None:  # it is full
            yield batch
            batch = kafka.create_batch()
            batch.append(timestamp=now_ms, key=key, value=value)
    if batch.record_count():
        yield batch
