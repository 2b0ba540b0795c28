"""Reads messages again from Kafka: those of an earlier owner, and those that were evicted."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Final

import structlog

from processor import metrics
from processor.errors import ProcessorError
from processor.reading.kafka import (
    KafkaError,
    Record,
    TopicPartition,
    compaction_lag_seconds,
    size_of,
)
from processor.reading.log_reader import LogReader
from processor.reading.message import Message, envelope_of
from processor.reading.progress import Progress
from processor.settings import ProcessorSettings
from registry.message import Envelope, RejectedRecord

#: Bytes of a fetch: of a long part, and of scattered messages, some 450 of 200 bytes.
_FETCH_BYTES: Final = 1024 * 1024
_SCATTERED_FETCH_BYTES: Final = 128 * 1024
#: Messages so near to each other are read in one go: a fetch costs the CPU of some 130 records.
_NEAR: Final = 100
#: Bounds of scattered messages that are read for an ask; the answer has room for less.
MOST_BYTES: Final = 4 * 1024 * 1024
_SCATTERED_SECONDS: Final = 1.0
#: What a message takes in memory beside its record's bytes, while an answer is made.
_MESSAGE_BYTES: Final = 1_000
#: How long reading an earlier owner's messages may take; gateways ask again meanwhile.
_SECONDS: Final = 10.0

log = structlog.get_logger("processor.resume")


class Unavailable(ProcessorError):
    """Messages can't be read now; later they may be."""


#: Takes messages in order, some at a time.
TakeMessages = Callable[[Sequence[Message]], None]


class Reader:
    """Reads parts of the log again."""

    def __init__(self, settings: ProcessorSettings) -> None:
        self._settings = settings
        self._scattered = LogReader(settings, fetch_bytes=_SCATTERED_FETCH_BYTES)
        self._reading = asyncio.Lock()  # one ask's messages at a time
        self._blind_to: set[str] = set()  # topics whose settings the broker does not say

    async def earlier(
        self, partition: TopicPartition, start: int, end: int, take: TakeMessages
    ) -> int:
        """Give `take` the messages from `start` to before `end`, in order, some at a time.

        Return from which offset on these are all messages: later than `start` where retention took
        the first ones; `end` where compaction may have taken any.

        Raises:
            Unavailable: Kafka does not answer, or takes too long.
        """
        metrics.READ_BACK.inc()
        progress = Progress(partition, lane=0)  # nobody's: these messages have their outcomes
        reader = LogReader(self._settings, fetch_bytes=_FETCH_BYTES)
        try:
            async with asyncio.timeout(_SECONDS):
                if await self._is_compacted(partition.topic):
                    return end
                first = max(start, await reader.first_offset(partition))
                async with aclosing(reader.between(partition, first, end)) as parts:
                    async for records in parts:
                        take(self._messages(progress, records))
        except (KafkaError, TimeoutError) as error:
            raise _unavailable(error) from error
        finally:
            await reader.close()
        return first

    async def scattered(
        self, partition: TopicPartition, offsets: Sequence[int], *, most_bytes: int
    ) -> dict[int, Envelope | None]:
        """Read the messages at `offsets`, which are in order, as far as bytes and time allow.

        Return the messages by offset, with None for a message that Kafka has no more. The messages
        are the first of `offsets`: later messages that were not reached are left out.

        Raises:
            Unavailable: Kafka does not answer, or brought no message in time.
        """
        found: dict[int, Envelope | None] = {}
        room = most_bytes
        async with self._reading:
            try:
                async with asyncio.timeout(_SCATTERED_SECONDS):
                    for stretch in _stretches(offsets):
                        room -= await self._read_stretch(partition, stretch, found, most_bytes=room)
                        if room <= 0:
                            break
            except KafkaError as error:
                await self._scattered.close()
                raise _unavailable(error) from error
            except TimeoutError as error:
                if not found:
                    await self._scattered.close()
                    raise _unavailable(error) from error
        metrics.READ_AGAIN.inc(len(found))
        return found

    async def _is_compacted(self, topic: str) -> bool:
        """Whether records of a topic may be gone that are newer than a window is long.

        Where the broker does not say, the topic is taken for one without compaction.
        """
        try:
            lag_seconds = await compaction_lag_seconds(self._settings, topic)
        except KafkaError as error:
            if topic not in self._blind_to:
                self._blind_to.add(topic)
                log.warning("can't see whether a topic is compacted", topic=topic, error=str(error))
            return False
        return lag_seconds < self._settings.resume_seconds

    @property
    def is_idle(self) -> bool:
        """Whether the connection for scattered messages has not been used for a minute."""
        return self._scattered.is_idle

    async def close(self) -> None:
        """End the connection for scattered messages."""
        await self._scattered.close()

    async def _read_stretch(
        self,
        partition: TopicPartition,
        offsets: Sequence[int],
        found: dict[int, Envelope | None],
        *,
        most_bytes: int,
    ) -> int:
        """Add messages at offsets that are near to each other, within bytes; return their bytes."""
        size, missing = 0, deque(offsets)
        parts = self._scattered.between(partition, offsets[0], offsets[-1] + 1)
        async with aclosing(parts):
            async for records in parts:
                for record in records:
                    while missing and missing[0] < record.offset:
                        found[missing.popleft()] = None
                    if missing and missing[0] == record.offset:
                        found[missing.popleft()] = self._envelope(record)
                        size += size_of(record) + _MESSAGE_BYTES
                if size >= most_bytes:
                    return size
        found.update(dict.fromkeys(missing))
        return size

    def _messages(self, progress: Progress, records: Sequence[Record]) -> list[Message]:
        envelopes = ((record.offset, self._envelope(record)) for record in records)
        return [Message(each, progress, offset) for offset, each in envelopes if each is not None]

    def _envelope(self, record: Record) -> Envelope | None:
        """Return the message in a record; None in place of a record that was rejected."""
        # As when the record was taken in: Kafka has -1 for a record without a timestamp.
        published_ms = record.timestamp if record.timestamp >= 0 else int(time.time() * 1_000)
        try:
            return envelope_of(record, published_ms, self._settings.max_payload_bytes)
        except RejectedRecord:
            return None


def _stretches(offsets: Sequence[int]) -> Iterator[Sequence[int]]:
    """Yield runs of offsets in order, so far apart that each run is read in one go."""
    first = 0
    for at in range(1, len(offsets) + 1):
        if at == len(offsets) or offsets[at] - offsets[at - 1] > _NEAR:
            yield offsets[first:at]
            first = at


def _unavailable(error: Exception) -> Unavailable:
    reason = str(error) or type(error).__name__
    log.warning("messages can't be read again now", error=reason)
    return Unavailable(reason)
