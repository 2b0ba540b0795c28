"""The newest reports of the outcomes topic, for the demo page."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import msgspec
import structlog

from processor.reading.kafka import (
    AIOKafkaConsumer,
    KafkaError,
    Record,
    leave,
    log_consumer,
    partitions_of,
)
from processor.settings import KafkaSettings

#: Reports that are kept; the oldest make room.
MOST_KEPT: Final = 1_000
#: The topic is read for so long after a page has asked last: an embedded broker is asked 50 times a
#: second by each consumer.
IDLE_SECONDS: Final = 15.0
_RETRY_SECONDS: Final = 1.0
_WAIT_MS: Final = 500
_FETCH_BYTES: Final = 256 * 1024

log = structlog.get_logger("pushgate.demo")


class Told(msgspec.Struct):
    """A report with its user, who is the record's key; empty for a key that is no user id."""

    user: str
    report: msgspec.Raw


class News(msgspec.Struct):
    """The reports since a page has asked last.

    `last` is the number of the last report, `forgotten` how many of the reports are not kept any
    more.
    """

    last: int
    forgotten: int
    reports: list[Told]


class Reports:
    """Keeps the newest reports, numbered from 1; reads the topic while pages ask."""

    def __init__(
        self, settings: KafkaSettings, topic: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Read `topic` from its end on, once a page asks."""
        self._settings = settings
        self._topic = topic
        self._clock = clock
        self._kept: deque[Told] = deque(maxlen=MOST_KEPT)
        self._count = 0
        self._asked_at = 0.0
        self._reading: asyncio.Task[None] | None = None

    def since(self, number: int) -> News:
        """Return the reports after a number, of those that are kept.

        A number of an earlier start of the process is beyond the last: then all are new.
        """
        self._asked_at = self._clock()
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
        new = self._count - (number if number <= self._count else 0)
        kept = list(self._kept)[-new:] if new else []
        return News(self._count, new - len(kept), kept)

    def take(self, records: Iterable[Record]) -> None:
        """Keep the reports in records of the topic; a record that is no report is left out."""
        for record in records:
            try:
                report = msgspec.json.decode(record.value or b"", type=msgspec.Raw)
            except msgspec.DecodeError:
                continue
            self._kept.append(Told((record.key or b"").decode(errors="replace"), report))
            self._count += 1

    async def close(self) -> None:
        """Stop reading."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait((self._reading,))

    async def _read(self) -> None:
        """Read until no page has asked for IDLE_SECONDS; where Kafka is away, try again."""
        while not self._is_idle:
            consumer = log_consumer(self._settings, fetch_bytes=_FETCH_BYTES)
            try:
                await consumer.start()
                await self._read_with(consumer)
            except KafkaError as error:
                log.warning("can't read the outcomes topic; trying on", error=str(error))
                await asyncio.sleep(_RETRY_SECONDS)
            finally:
                await leave(consumer)

    async def _read_with(self, consumer: AIOKafkaConsumer) -> None:
        partitions = await partitions_of(self._settings, [self._topic])
        if not partitions:
            raise KafkaError(f"topic {self._topic} does not exist")
        consumer.assign(partitions)
        await consumer.seek_to_end(*partitions)
        while not self._is_idle:
            batches = await consumer.getmany(timeout_ms=_WAIT_MS, max_records=MOST_KEPT)
            for records in batches.values():
                self.take(records)

    @property
    def _is_idle(self) -> bool:
        return self._clock() - self._asked_at > IDLE_SECONDS
