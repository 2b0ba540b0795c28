"""Outcomes of messages, for operators and publishers: metrics, and a Kafka topic if one is set.

A message that has its outcome is counted, reported, and only then taken off its partition's
progress, so that its offset can be committed (commits.py). With a topic, the last step waits until
Kafka has acknowledged the report: a crash, or a write that has to be repeated, may repeat a report,
and loses none. Where only a sample is reported, the other messages wait for the write that they
were gathered with.
"""

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
from registry.message import MAX_USER_BYTES

#: Bytes of the largest batch for a partition of the topic.
_BATCH_BYTES: Final = 512 * 1024
#: How long reports are gathered before the first write; while one write is under way, the reports
#: for the next are gathered.
_GATHER_SECONDS: Final = 0.02
#: The number of CRC-32 values. A message is in the sample if its id's checksum is below the
#: sample's share of them: a repeated message is sampled again, or again not.
_CHECKSUMS: Final = 2**32
#: Rows of one batch at most; fewer and fewer where the topic refuses the bytes of a batch.
_MOST_ROWS: Final = 4_096
_RETRY_SECONDS: Final = (0.1, 0.5, 1.0, 2.0)
#: Keys whose partition of the outcomes topic is remembered: aiokafka's murmur2 is pure Python (2–3
#: µs a key).
_MAX_KEYS: Final = 65_536

log = structlog.get_logger("processor.outcomes")

#: Is called with the partitions (their `Progress`) of which messages were settled.
Advanced = Callable[[Iterable[Progress]], None]


class Report(msgspec.Struct, gc=False):
    """A record's value in the outcomes topic, as JSON; the key is the user. Times in epoch ms.

    `topic`, `partition` and `offset` are those of the message's own record; `settled_ms` is when
    the outcome was known.
    """

    id: str
    outcome: str
    reason: str | None
    node: str | None  # the first node that took the message
    device: str | None  # the device that the message was for
    connections: int  # connections that took the message
    missed: int  # nodes with connections of the user that may be without the message
    published_ms: int
    settled_ms: int
    topic: str
    partition: int
    offset: int


class _Place(NamedTuple):
    """The place of a rejected record in its partition; a `Message` has the same attributes.

    `size` is the number of bytes that `progress` counts for the record.
    """

    progress: Progress
    offset: int
    size: int


#: A message or a rejected record, to be taken off the progress of its partition.
_Placed = _Place | Message
#: A report with its key, which is None for a rejected record whose key can be no user's.
_KeyedReport = tuple[bytes | None, Report]
#: The same as a record of the outcomes topic: key and encoded report.
_Row = tuple[bytes | None, bytes]
_encode = msgspec.json.Encoder().encode


class Outcomes:
    """Counts outcomes, reports them where a topic is set, and then settles their messages.

    `settled` and `rejected` return at once; reports are written by one task, write after write. The
    gathered reports are bounded by the messages in hand: a partition with too many is not read.
    """

    def __init__(
        self,
        settings: ProcessorSettings,
        advanced: Advanced,
        *,
        spawn: Spawn,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
    ) -> None:
        """`advanced` is told the partitions of which messages were settled."""
        self._advanced = advanced
        self._spawn = spawn
        self._now_ms = now_ms
        self._topic = settings.outcomes_topic
        self._sample_below = int(settings.outcomes_sample * _CHECKSUMS)
        self._producer = producer(settings, batch_bytes=_BATCH_BYTES) if self._topic else None
        # Gathered for the next write: all messages with an outcome, and reports of the sample.
        self._places: list[_Placed] = []
        self._rows: list[_Row] = []
        self._most_rows = _MOST_ROWS  # in one batch; less where the topic takes less
        self._publishing: asyncio.Task[None] | None = None
        self._partition = lru_cache(_MAX_KEYS)(partition_of)

    async def start(self) -> None:
        """Connect.

        Raises:
            KafkaError: no broker answers.
        """
        if self._producer is not None:
            await self._producer.start()

    async def stop(self) -> None:
        """Disconnect. Messages whose report is not written yet are not committed either."""
        if self._publishing is not None:
            self._publishing.cancel()
            await asyncio.wait((self._publishing,))
        if self._producer is not None:
            await self._producer.stop()

    def settled(self, messages: Sequence[Message]) -> None:
        """Count and report messages that have their outcome, then take them off the progress.

        Messages of a lost partition (revoked from this member of the group) are another member's,
        and are left out.
        """
        held = [message for message in messages if not message.progress.lost]
        outcomes = [outcome_of(message) for message in held]
        _count(outcomes)
        if self._producer is None:
            self._settle(held)
        elif held:
            now_ms = self._now_ms()
            pairs = zip(held, outcomes, strict=True)
            reports = [_report(message, result, now_ms) for message, result in pairs]
            self._publish_soon(held, reports)

    def rejected(self, rejections: Sequence[Rejection]) -> None:
        """Do the same for rejected records, which are in the dead-letter topic by now."""
        held = [rejection for rejection in rejections if not rejection.progress.lost]
        _count(outcome(Kind.REJECTED, rejection.error.reason) for rejection in held)
        places = [
            _Place(rejection.progress, rejection.record.offset, size_of(rejection.record))
            for rejection in held
        ]
        if self._producer is None:
            self._settle(places)
        elif places:
            now_ms = self._now_ms()
            reports = [
                (_key(rejection.record), _rejection(rejection, now_ms)) for rejection in held
            ]
            self._publish_soon(places, reports)

    def _publish_soon(self, places: Sequence[_Placed], reports: Sequence[_KeyedReport]) -> None:
        """Gather reports for the next write; `_settle` places once the write is acknowledged."""
        self._places += places
        if self._sample_below < _CHECKSUMS:
            below = self._sample_below
            reports = [keyed for keyed in reports if crc32(keyed[1].id.encode()) < below]
        self._rows += [(key, _encode(report)) for key, report in reports]
        if self._publishing is None or self._publishing.done():
            self._publishing = self._spawn(self._publish_gathered())

    def _settle(self, places: Sequence[_Placed]) -> None:
        """Take messages off their partitions' progress; harmless for a partition lost meanwhile."""
        for place in places:
            place.progress.settle(place.offset, size=place.size)
        partitions = dict.fromkeys(place.progress for place in places)  # once each
        self._advanced(partitions)

    async def _publish_gathered(self) -> None:
        await asyncio.sleep(_GATHER_SECONDS)
        while self._places:
            places, self._places = self._places, []
            rows, self._rows = self._rows, []
            await self._publish(rows)
            self._settle(places)

    async def _publish(self, rows: Sequence[_Row]) -> None:
        """Return when Kafka has acknowledged every row; failed writes are repeated for ever.

        Until then the messages stay in hand, so their partitions become full and are not read. A
        repeated write sends every row again, also rows that Kafka has acknowledged.

        Raises:
            MessageSizeTooLargeError: the topic takes no single row, which ends the process (see
                tasks.py). A row has some 2 KB at most: user, id, node and topic are bounded.
        """
        for attempt in itertools.count():
            try:
                await self._send(rows)
            except MessageSizeTooLargeError as error:
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
        assert self._producer is not None  # noqa: S101 - without a producer there are no rows
        assert self._topic is not None  # noqa: S101
        partitions = len(await self._producer.partitions_for(self._topic))
        rows_by_partition: dict[int, list[_Row]] = {}
        for row in rows:
            partition = self._partition(row[0], partitions)
            rows_by_partition.setdefault(partition, []).append(row)
        acknowledgements = [  # futures: send_batch() returns when the batch is queued
            await self._producer.send_batch(batch, self._topic, partition=partition)
            for partition, partition_rows in rows_by_partition.items()
            for rows_slice in _slices(partition_rows, self._most_rows)
            for batch in _batches(self._producer, rows_slice, self._now_ms())
        ]
        await asyncio.gather(*acknowledgements)


def _count(outcomes: Iterable[Outcome]) -> None:
    """Count outcomes, equal outcomes in one step: every increment of a metric takes a lock."""
    for result, number in Counter(outcomes).items():
        metrics.OUTCOMES.labels(result.name, result.reason).inc(number)


def _report(message: Message, result: Outcome, now_ms: int) -> _KeyedReport:
    partition = message.progress.partition
    report = Report(
        message.push.id,
        result.name,
        result.reason or None,
        message.node.name if message.node else None,
        message.push.device,
        message.took,
        message.missed,
        message.envelope.published_ms,
        now_ms,
        partition.topic,
        partition.partition,
        message.offset,
    )
    return message.push.user.encode(), report


def _key(record: Record) -> bytes | None:
    """Return a rejected record's key; None where the key is too long for a user's."""
    return record.key if record.key is not None and len(record.key) <= MAX_USER_BYTES else None


def _rejection(rejection: Rejection, now_ms: int) -> Report:
    """Return the report of a rejected record.

    The id is made of the record's coordinates: the record's own id is not to be trusted.
    """
    record = rejection.record
    return Report(
        f"{record.topic}-{record.partition}-{record.offset}",
        Kind.REJECTED.value,
        rejection.error.reason,
        None,
        None,
        0,
        0,
        rejection.published_ms,
        now_ms,
        record.topic,
        record.partition,
        record.offset,
    )


def _slices(rows: Sequence[_Row], most: int) -> Iterator[Sequence[_Row]]:
    for start in range(0, len(rows), most):
        yield rows[start : start + most]


def _batches(kafka: AIOKafkaProducer, rows: Sequence[_Row], now_ms: int) -> Iterator[BatchBuilder]:
    """Yield full batches of rows, and the last batch; sending rows singly would cost 9 µs a row."""
    batch = kafka.create_batch()
    for key, value in rows:
        if batch.append(timestamp=now_ms, key=key, value=value) is None:  # the batch is full
            yield batch
            batch = kafka.create_batch()
            batch.append(timestamp=now_ms, key=key, value=value)
    if batch.record_count():
        yield batch
