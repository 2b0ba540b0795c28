"""Reads messages back from Kafka that an earlier owner of a partition took in."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from typing import Final, NamedTuple

import structlog

from processor import metrics
from processor.errors import ProcessorError
from processor.reading.kafka import (
    KafkaError,
    Record,
    TopicPartition,
    records_between,
    size_of,
)
from processor.reading.message import Message, envelope_of
from processor.reading.progress import Progress
from processor.settings import ProcessorSettings
from registry.message import RejectedRecord

#: What a message takes in memory beside its record's bytes, while it is read back.
_MESSAGE_BYTES: Final = 1_000
#: How long reading back may take; gateways ask again.
_SECONDS: Final = 10.0

log = structlog.get_logger("processor.resume")


class Unreadable(ProcessorError):
    """Messages can't be read back, now or later; the text says which, and why."""


class ReadBack(NamedTuple):
    """Messages from `start` on, in order, up to where the partition's window began."""

    start: int
    messages: Sequence[Message]


class Reader:
    """Reads parts of the log again, one after the other."""

    def __init__(self, settings: ProcessorSettings) -> None:
        self._settings = settings

    async def read(self, partition: TopicPartition, start: int, end: int) -> ReadBack | None:
        """Return the messages from `start`, or from where the log begins, to before `end`.

        None where they could not be read now.

        Raises:
            Unreadable: they have more bytes than PUSHGATE_RESUME_BYTES, or a record can't be
                decoded.
        """
        metrics.READ_BACK.inc()
        progress = Progress(partition, lane=0)  # nobody's: these messages have their outcomes
        first, room = start, self._settings.resume_bytes
        messages: list[Message] = []
        try:
            async with (
                asyncio.timeout(_SECONDS),
                aclosing(records_between(self._settings, partition, start, end)) as parts,
            ):
                async for begins, records in parts:
                    first = begins
                    room -= sum(map(size_of, records)) + _MESSAGE_BYTES * len(records)
                    if room < 0:
                        raise Unreadable(f"{_from(partition, start)}: more than there is room for")
                    messages += self._messages(progress, records)
        except (KafkaError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            log.warning("messages can't be read back", error=reason)
            return None
        except UnicodeDecodeError as error:
            raise Unreadable(f"{_from(partition, start)}: {error}") from error
        return ReadBack(first, messages)

    def _messages(self, progress: Progress, records: Sequence[Record]) -> Iterator[Message]:
        limit = self._settings.max_payload_bytes
        for record in records:
            try:
                envelope = envelope_of(record, max(0, record.timestamp), limit)
            except RejectedRecord:
                continue
            yield Message(envelope, progress, record.offset)


def _from(partition: TopicPartition, start: int) -> str:
    return f"{partition.topic}-{partition.partition} from {start} on"
