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
        """Publish a record; return `topic-partition-offset`, the default id, once Kafka has it."""
        raw_headers = [(name, value.encode()) for name, value in headers.items()]
        record = await self._producer.send_and_wait(
            self._topic, payload, key=user.encode(), headers=raw_headers
        )
        return f"{record.topic}-{record.partition}-{record.offset}"

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
