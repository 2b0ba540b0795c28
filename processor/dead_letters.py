"""Where records go that break the publishing rules: kept, never fatal, never in the way."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Final

import structlog

from processor.kafka import AIOKafkaProducer, KafkaError, Record, producer
from processor.settings import ProcessorSettings
from registry.message import RejectedRecord

_RETRY_SECONDS: Final = (0.1, 0.5, 1.0, 2.0)

log = structlog.get_logger("processor.dead_letters")

DeadLetter = tuple[Record, RejectedRecord]


class DeadLetters:
    """Writes rejected records to the dead-letter topic."""

    def __init__(self, settings: ProcessorSettings) -> None:
        self._topic = settings.dead_letter_topic
        self._cut_at = settings.max_payload_bytes
        self._producer: AIOKafkaProducer = producer(settings)

    async def start(self) -> None:
        """Connect.

        Raises:
            KafkaError: no broker answers.
        """
        await self._producer.start()

    async def stop(self) -> None:
        """Flush and disconnect."""
        await self._producer.stop()

    async def keep(self, letters: Sequence[DeadLetter]) -> None:
        """Return when Kafka has acknowledged all of them; while it does not, the batch waits."""
        for attempt in itertools.count():
            try:
                await asyncio.gather(*[await self._send(*letter) for letter in letters])
            except KafkaError as error:
                if attempt == 0:
                    log.error("can't keep rejected records", topic=self._topic, error=str(error))
                await asyncio.sleep(_RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)])
                continue
            return

    async def _send(self, record: Record, rejected: RejectedRecord) -> asyncio.Future[object]:
        coordinates = {
            "pushgate-topic": record.topic,
            "pushgate-partition": str(record.partition),
            "pushgate-offset": str(record.offset),
            "pushgate-reason": rejected.reason,
            "pushgate-detail": rejected.detail,
        }
        value: bytes | None = record.value
        if value is not None and len(value) > self._cut_at:
            coordinates["pushgate-cut-from"] = str(len(value))
            value = value[: self._cut_at]
        ours = [(name, text.encode()) for name, text in coordinates.items()]
        future: asyncio.Future[object] = await self._producer.send(
            self._topic,
            value,
            key=_kept(record.key, self._cut_at),
            headers=[*_headers(record, self._cut_at), *ours],
        )
        return future


def _kept(data: bytes | None, limit: int) -> bytes | None:
    return None if data is None else data[:limit]


def _headers(record: Record, limit: int) -> list[tuple[str, bytes]]:
    """Keep the record's headers as long as they fit: they may be what was too large."""
    kept, size = [], 0
    for name, data in record.headers:
        size += len(name) + len(data or b"")
        if size <= limit:
            kept.append((name, data))
    return kept
