"""Writing rows to a topic in batches, each row once.

The producer is idempotent: a batch that is sent again, because its answer was lost, is not written
again. A batch that Kafka refuses for good ends the producer, whose sequence numbers would have a
gap: the caller closes the writer and goes on with another.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import structlog

from processor.errors import ProcessorError
from processor.reading.kafka import (
    AIOKafkaProducer,
    BatchBuilder,
    KafkaError,
    MessageSizeTooLargeError,
    ended,
    partition_of,
    producer,
)
from processor.settings import ProcessorSettings

#: Bytes of the largest batch for a partition. A single larger row is a batch of its own.
_BATCH_BYTES: Final = 512 * 1024
#: Rows of one batch at most; fewer and fewer where the topic refuses the bytes of a batch.
_MOST_ROWS: Final = 4_096
#: Keys whose partition is remembered: aiokafka's murmur2 is pure Python (2–3 µs a key).
_MAX_KEYS: Final = 65_536
#: Time until a request without an answer is sent again, on a new connection.
_REQUEST_TIMEOUT_MS: Final = 10_000
#: How long the end of a producer is waited for: with batches in flight a producer does not stop
#: while the topic can't be written to.
_CLOSE_SECONDS: Final = 0.5

log = structlog.get_logger("processor.writer")


class Row(NamedTuple):
    """A record to be written."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()
    #: A smaller row to write instead where the topic refuses this row as too large.
    smaller: Row | None = None

    @property
    def size(self) -> int:
        """Bytes of key, value and headers."""
        size = len(self.key or b"") + len(self.value or b"")
        for name, data in self.headers:
            size += len(name) + len(data or b"")
        return size


class Refused(ProcessorError):
    """Kafka refused rows for good. `rows` are all rows that are not written."""

    def __init__(self, error: KafkaError, rows: list[Row]) -> None:
        super().__init__(str(error))
        self.rows = rows


class TopicWriter:
    """Writes to one topic through a producer of its own."""

    def __init__(self, settings: ProcessorSettings, topic: str, *, idempotent: bool) -> None:
        self._topic = topic
        self._producer: AIOKafkaProducer = producer(
            settings,
            batch_bytes=_BATCH_BYTES,
            idempotent=idempotent,
            request_timeout_ms=_REQUEST_TIMEOUT_MS,
        )
        self._most_rows = _MOST_ROWS
        self._partition = lru_cache(_MAX_KEYS)(partition_of)

    async def connect(self) -> None:
        """Connect.

        Raises:
            KafkaError: no broker answers, or the broker refuses the producer.
        """
        await self._producer.start()

    async def close(self) -> None:
        """Disconnect, within half a second."""
        await ended(self._producer.stop(), timeout_seconds=_CLOSE_SECONDS)

    async def write(self, rows: Sequence[Row]) -> int:
        """Return when Kafka has acknowledged the rows; return how many are too large for the topic.

        Waits for as long as Kafka gives no answer.

        Raises:
            Refused: some rows were refused; close this writer.
            KafkaError: the topic is unknown by now; nothing was written.
        """
        partitions = len(await self._producer.partitions_for(self._topic))
        rows_by_partition: dict[int, list[Row]] = {}
        for row in rows:
            partition = self._partition(row.key, partitions)
            rows_by_partition.setdefault(partition, []).append(row)
        parts = [_Part(partition, rows) for partition, rows in rows_by_partition.items()]
        await asyncio.gather(*map(self._write_part, parts))
        errors = [part.error for part in parts if part.error is not None]
        if errors:
            raise Refused(errors[0], [row for part in parts for row in part.rows])
        return sum(part.too_large for part in parts)

    async def _write_part(self, part: _Part) -> None:
        """Write a partition's rows, batch after batch, until an error."""
        while part.rows and part.error is None:
            batch, taken = _batch(self._producer, part.rows[: self._most_rows])
            try:
                acknowledged = await self._producer.send_batch(
                    batch, self._topic, partition=part.partition
                )
                await acknowledged
            except MessageSizeTooLargeError as error:
                self._refused_as_too_large(part, taken, error)
            except KafkaError as error:
                part.error = error
            else:
                del part.rows[:taken]

    def _refused_as_too_large(self, part: _Part, taken: int, error: KafkaError) -> None:
        """Make the next batch smaller; a single row is replaced, or given up."""
        if taken > 1:
            self._most_rows = max(1, taken // 4)
            log.warning("smaller batches", topic=self._topic, rows=self._most_rows)
            return
        row = part.rows.pop(0)
        if row.smaller is not None:
            part.rows.insert(0, row.smaller)
        else:
            part.too_large += 1
            log.error("a record is too large for the topic", topic=self._topic, error=str(error))


class _Part:
    """The rows of one partition in a write; `rows` are those that are not written yet."""

    __slots__ = ("error", "partition", "rows", "too_large")

    def __init__(self, partition: int, rows: list[Row]) -> None:
        self.partition = partition
        self.rows = rows
        self.too_large = 0
        self.error: KafkaError | None = None


def _batch(kafka: AIOKafkaProducer, rows: Sequence[Row]) -> tuple[BatchBuilder, int]:
    """Return a batch of the first rows, and their number: sending single rows costs 9 µs a row."""
    batch = kafka.create_batch()
    now_ms = int(time.time() * 1000)
    for row in rows:
        headers = list(row.headers) if row.headers else []
        added = batch.append(timestamp=now_ms, key=row.key, value=row.value, headers=headers)
        if added is None:  # the batch is full
            break
    return batch, batch.record_count()
