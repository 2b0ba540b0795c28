"""The dead-letter topic keeps records that break the publishing rules.

A rejected record is never fatal to the processor, and never in the way of other records.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from processor.outcomes.accessory import Accessory
from processor.outcomes.writer import Row
from processor.reading.kafka import Record
from processor.reading.message import Rejection
from processor.settings import ProcessorSettings
from processor.tasks import Spawn
from registry.message import RejectedRecord

#: The bound of a letter's key, of the value and of the headers, in bytes. So a letter is at most
#: three times as long, within a broker's default of 1 MiB.
_MAX_CUT_BYTES: Final = 300 * 1024

#: Takes rejections whose records are in the topic, or kept for it, or lost.
Kept = Callable[[Sequence[Rejection]], None]


class DeadLetters:
    """Writes rejected records to the dead-letter topic."""

    def __init__(self, settings: ProcessorSettings, kept: Kept, *, spawn: Spawn) -> None:
        """`kept` gets rejections once their records are in the topic, or not waited for."""
        self._kept = kept
        self._spawn = spawn
        self._keeping: set[asyncio.Task[None]] = set()
        self._cut_at = min(settings.max_payload_bytes, _MAX_CUT_BYTES)
        self.accessory = Accessory(
            settings, settings.dead_letter_topic, name="dead-letter", spawn=spawn
        )

    def take(self, rejections: Sequence[Rejection]) -> None:
        """Write rejected records to the topic; then call `kept`."""
        keeping = self._spawn(self._keep(rejections))
        self._keeping.add(keeping)
        keeping.add_done_callback(self._keeping.discard)

    def abandon(self) -> None:
        """Stop writing: the records' partitions are lost, and Kafka may not answer for long."""
        for keeping in self._keeping:
            keeping.cancel()

    async def _keep(self, rejections: Sequence[Rejection]) -> None:
        await self.accessory.write(
            [_letter(rejected.record, rejected.error, self._cut_at) for rejected in rejections]
        )
        self._kept(rejections)


def _letter(record: Record, rejected: RejectedRecord, cut_at: int) -> Row:
    coordinates = {
        "pushgate-topic": record.topic,
        "pushgate-partition": str(record.partition),
        "pushgate-offset": str(record.offset),
        "pushgate-reason": rejected.reason,
    }
    marks = {**coordinates, "pushgate-detail": rejected.detail}
    value = record.value
    if value is None and record.key is None:
        # aiokafka refuses to send a record with neither key nor value.
        marks["pushgate-value"], value = "null", b""
    if value is not None and len(value) > cut_at:
        marks["pushgate-cut-from"], value = str(len(value)), value[:cut_at]
    key = None if record.key is None else record.key[:cut_at]
    # For a topic that takes little: the coordinates alone.
    smaller = Row(None, b"", _as_headers(coordinates))
    return Row(key, value, [*_headers(record, cut_at), *_as_headers(marks)], smaller)


def _as_headers(marks: Mapping[str, str]) -> list[tuple[str, bytes | None]]:
    return [(name, text.encode()) for name, text in marks.items()]


def _headers(record: Record, limit: int) -> list[tuple[str, bytes | None]]:
    """Return a record's first headers, as many as fit: the headers may be what is too large."""
    kept: list[tuple[str, bytes | None]] = []
    size = 0
    for name, data in record.headers:
        size += len(name) + len(data or b"")
        if size <= limit:
            kept.append((name, data))
    return kept
