"""Reads parts of a partition's log again, apart from any group."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Final

from processor.reading.kafka import (
    AIOKafkaConsumer,
    KafkaError,
    Record,
    TopicPartition,
    leave,
    log_consumer,
)
from processor.settings import KafkaSettings

#: How long one fetch may wait for the first record.
_WAIT_MS: Final = 200
#: Records decoded in one turn of the event loop: some 3 ms, with their messages.
_RECORDS_A_TURN: Final = 500
#: An idle consumer is kept for so long: with a new one the first record takes 20 ms more.
_IDLE_SECONDS: Final = 60.0


class LogReader:
    """Reads records of partitions from any offset on; one part of one log at a time.

    The consumer stays connected from part to part. Between two parts the partition is paused, so
    that nothing is fetched in vain.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        *,
        fetch_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A fetch has `fetch_bytes` at most: few for scattered records, many for a long part."""
        self._settings = settings
        self._fetch_bytes = fetch_bytes
        self._clock = clock
        self._consumer: AIOKafkaConsumer | None = None
        self._used_at = 0.0

    @property
    def is_idle(self) -> bool:
        """Whether the consumer is connected, and has not been used for a minute."""
        return self._consumer is not None and self._clock() - self._used_at > _IDLE_SECONDS

    async def first_offset(self, partition: TopicPartition) -> int:
        """Return the offset where the log begins now.

        Raises:
            KafkaError: no broker answers, or the request failed.
        """
        consumer = await self._assigned(partition)
        offset: int = (await consumer.beginning_offsets([partition]))[partition]
        return offset

    async def between(
        self, partition: TopicPartition, start: int, end: int
    ) -> AsyncGenerator[Sequence[Record], None]:
        """Yield the records from `start` to before `end` in order, some at a time.

        A record that can't be decoded is left out: it was never a message. The caller bounds how
        much is read, and how long.

        Raises:
            KafkaError: no broker answers, a request failed, or the log ends in front of `start`:
                the topic was made anew.
        """
        consumer = await self._assigned(partition)
        consumer.seek(partition, start)
        consumer.resume(partition)
        most, has_skipped = _RECORDS_A_TURN, False
        try:
            while (position := await consumer.position(partition)) < end:
                if position < start:  # aiokafka's answer to an offset beyond the end
                    raise KafkaError(f"{partition.topic} was made anew: {start} is beyond its end")
                count = min(most, end - position)
                try:
                    found = await consumer.getmany(
                        partition, timeout_ms=_WAIT_MS, max_records=count
                    )
                except UnicodeDecodeError:
                    # aiokafka can't decode a header's name (reader.py), and has dropped the
                    # records in front: these are read singly, up to the bad one.
                    has_skipped = most == 1
                    consumer.seek(partition, position + 1 if has_skipped else position)
                    most = 1
                    continue
                if has_skipped:
                    most, has_skipped = _RECORDS_A_TURN, False
                yield [record for record in found.get(partition, ()) if record.offset < end]
                await asyncio.sleep(0)  # getmany does not wait where records are at hand
        finally:
            self._used_at = self._clock()
            if consumer is self._consumer:
                consumer.pause(partition)

    async def close(self) -> None:
        """End the consumer, if any; the next part has a new one."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await leave(consumer)

    async def _assigned(self, partition: TopicPartition) -> AIOKafkaConsumer:
        """Return the consumer, with the partition assigned and paused."""
        if self._consumer is None:
            consumer = log_consumer(self._settings, fetch_bytes=self._fetch_bytes)
            try:
                await consumer.start()
            except BaseException:
                await leave(consumer)
                raise
            self._consumer = consumer
        self._used_at = self._clock()
        if partition not in self._consumer.assignment():
            self._consumer.assign([partition])
            self._consumer.pause(partition)
        return self._consumer
