"""Publishing through Kafka, for `pushgate send` and the demo page."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from processor.reading.kafka import producer
from processor.settings import KafkaSettings
from registry.message import from_record


def as_bytes(text: str) -> bytes:
    """Encode an argument; bytes that Python could not decode from the command line stay as is."""
    return text.encode(errors="surrogateescape")


def coordinates_of(record: Any) -> str:
    """Return `topic-partition-offset` of a record that Kafka has acknowledged."""
    return f"{record.topic}-{record.partition}-{record.offset}"


def check_record(
    user: str, payload: bytes, headers: Mapping[str, str], *, max_payload_bytes: int
) -> None:
    """Check a record by the rules of processors, before it is published.

    Raises:
        RejectedRecord: processors would reject the record; `reason` names the rule.
    """
    now_ms = int(time.time() * 1000)
    from_record(
        topic="",
        partition=0,
        offset=0,
        timestamp_ms=now_ms,
        published_ms=now_ms,
        key=as_bytes(user),
        value=payload,
        headers=_raw_headers(headers),
        max_payload_bytes=max_payload_bytes,
    )


class Publisher:
    """Publishes records as any backend service would."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._producer = producer(settings)
        self._topic = settings.topics[0]

    async def publish(self, user: str, payload: bytes, headers: Mapping[str, str]) -> str:
        """Publish a record; return `topic-partition-offset`, the default id, once Kafka has it."""
        return coordinates_of(await (await self.hand_over(user, payload, headers)))

    async def hand_over(
        self, user: str, payload: bytes, headers: Mapping[str, str]
    ) -> Awaitable[Any]:
        """Give a record to the producer, which keeps the order of a user's records.

        Waits while the producer has no room. The result, once awaited, is for `coordinates_of`.
        """
        acknowledged: Awaitable[Any] = await self._producer.send(
            self._topic, payload, key=as_bytes(user), headers=_raw_headers(headers)
        )
        return acknowledged

    async def start(self) -> None:
        """Connect to Kafka.

        Raises:
            KafkaError: no broker answers.
        """
        await self._producer.start()

    async def stop(self) -> None:
        """Flush pending records and disconnect."""
        await self._producer.stop()


@asynccontextmanager
async def publisher(settings: KafkaSettings) -> AsyncIterator[Publisher]:
    """Yield a connected publisher.

    Raises:
        KafkaError: no broker answers.
    """
    connecting = Publisher(settings)
    try:
        await connecting.start()
        yield connecting
    finally:
        await connecting.stop()


def _raw_headers(headers: Mapping[str, str]) -> list[tuple[str, bytes]]:
    return [(name, as_bytes(value)) for name, value in headers.items()]
