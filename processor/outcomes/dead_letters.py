"""The dead-letter topic keeps records that break the publishing rules.

A rejected record is never fatal to the processor, and never in the way of other records.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from processor.reading.kafka import (
    AIOKafkaProducer,
    KafkaError,
    MessageSizeTooLargeError,
    Record,
    producer,
)
from processor.reading.message import Rejection
from processor.settings import ProcessorSettings
from processor.tasks import Spawn
from registry.message import RejectedRecord

#: The bound of a letter's key, of the value and of the headers, in bytes. So a letter is at most
#: three times as long, within a broker's default of 1 MiB.
_MAX_CUT_BYTES: Final = 300 * 1024
_RETRY_SECONDS: Final = (0.1, 0.5, 1.0, 2.0)

log = structlog.get_logger("processor.dead_letters")

#: Takes rejections whose records are in the topic.
Kept = Callable[[Sequence[Rejection]], None]


class DeadLetters:
    """Writes rejected records to the dead-letter topic."""

    def __init__(self, settings: ProcessorSettings, kept: Kept, *, spawn: Spawn) -> None:
        """`kept` gets rejections once their records are in the topic."""
        self._kept = kept
        self._spawn = spawn
        self._keeping: set[asyncio.Task[None]] = set()
        self._topic = settings.dead_letter_topic
        self._cut_at = min(settings.max_payload_bytes, _MAX_CUT_BYTES)
        self._producer: AIOKafkaProducer = producer(settings)

    async def start(self) -> None:
        """Connect.

        Raises:
            KafkaError: no broker answers.
        """
        await self._producer.start()

    async def stop(self) -> None:
        """Flush the producer and disconnect."""
        await self._producer.stop()

    def take(self, rejections: Sequence[Rejection]) -> None:
        """Write rejected records to the topic; call `kept` once Kafka has acknowledged them all."""
        keeping = self._spawn(self._keep(rejections))
        self._keeping.add(keeping)
        keeping.add_done_callback(self._keeping.discard)

    def abandon(self) -> None:
        """Stop writing: the records' partitions are lost, and Kafka may not answer for long."""
        for keeping in self._keeping:
            keeping.cancel()

    async def _keep(self, rejections: Sequence[Rejection]) -> None:
        await self._write(
            [_letter(rejected.record, rejected.error, self._cut_at) for rejected in rejections]
        )
        self._kept(rejections)

    async def _write(self, letters: list[_Letter]) -> None:
        """Return when Kafka has acknowledged every letter; failed letters are sent again for ever.

        Until then the records have no outcome, so their partitions' commits wait.
        """
        unacknowledged = letters
        for attempt in itertools.count():
            results = await asyncio.gather(*map(self._send, unacknowledged), return_exceptions=True)
            unacknowledged = _still_to_send(unacknowledged, results)
            if not unacknowledged:
                return
            if attempt == 0:
                errors = {str(result) for result in results if isinstance(result, KafkaError)}
                log.error("can't keep rejected records", topic=self._topic, errors=sorted(errors))
            await asyncio.sleep(_RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)])

    async def _send(self, letter: _Letter) -> None:
        await self._producer.send_and_wait(
            self._topic, letter.value, key=letter.key, headers=letter.headers
        )


@dataclass(frozen=True, slots=True)
class _Letter:
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]

    def bare(self) -> _Letter:
        """Return a letter without content, for a topic that takes little: the coordinates alone."""
        coordinates = [(name, data) for name, data in self.headers if name in _COORDINATES]
        return _Letter(None, b"", coordinates)


_COORDINATES: Final = frozenset(
    {"pushgate-topic", "pushgate-partition", "pushgate-offset", "pushgate-reason"}
)


def _letter(record: Record, rejected: RejectedRecord, cut_at: int) -> _Letter:
    marks = {
        "pushgate-topic": record.topic,
        "pushgate-partition": str(record.partition),
        "pushgate-offset": str(record.offset),
        "pushgate-reason": rejected.reason,
        "pushgate-detail": rejected.detail,
    }
    value = record.value
    if value is None and record.key is None:
        # aiokafka refuses to send a record with neither key nor value.
        marks["pushgate-value"], value = "null", b""
    if value is not None and len(value) > cut_at:
        marks["pushgate-cut-from"], value = str(len(value)), value[:cut_at]
    key = None if record.key is None else record.key[:cut_at]
    mark_headers = [(name, text.encode()) for name, text in marks.items()]
    return _Letter(key, value, [*_headers(record, cut_at), *mark_headers])


def _headers(record: Record, limit: int) -> list[tuple[str, bytes]]:
    """Return a record's first headers, as many as fit: the headers may be what is too large."""
    kept, size = [], 0
    for name, data in record.headers:
        size += len(name) + len(data or b"")
        if size <= limit:
            kept.append((name, data))
    return kept


def _still_to_send(
    letters: Sequence[_Letter], results: Sequence[BaseException | None]
) -> list[_Letter]:
    """Return the letters that Kafka did not acknowledge; too large letters lose their content.

    An error that is not Kafka's is raised.
    """
    unacknowledged = []
    for letter, result in zip(letters, results, strict=True):
        if isinstance(result, MessageSizeTooLargeError):
            unacknowledged.append(letter.bare())
        elif isinstance(result, KafkaError):
            unacknowledged.append(letter)
        elif result is not None:
            raise result
    return unacknowledged
