"""Publishing through Kafka, for `pushgate send` and the demo page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from processor.reading.kafka import producer
from processor.settings import KafkaSettings


class Publisher:
    """Publishes records as any backend service would."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._producer = producer(settings)
        self._topic = settings.topics[0]

    async def publish(self, user: str, payload: bytes, headers: Mapping[str, str]) -> str:
        """Return `topic-partition-offset`, the default id, once Kafka has the record."""
        raw = [(name, value.encode()) for name, value in headers.items()]
        kept = await self._producer.send_and_wait(
            self._topic, payload, key=user.encode(), headers=raw
        )
        return f"{kept.topic}-{kept.partition}-{kept.offset}"

    async def start(self) -> None:
        """Connect.

        Raises:
            KafkaError: no broker answers.
        """
        await self._producer.start()

    async def stop(self) -> None:
        """Flush and disconnect."""
        await self._producer.stop()


@asynccontextmanager
async def publisher(settings: KafkaSettings) -> AsyncIterator[Publisher]:
    """A connected publisher."""
    made = Publisher(settings)
    try:
        await made.start()
        yield made
    finally:
        await made.stop()
