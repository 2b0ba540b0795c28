"""The Kafka of a benchmark, and its topics."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from loadtest.processes import LoadtestError
from tests.support.kafka import start_kafka


@contextmanager
def real_kafka(address: str | None = None) -> Iterator[str]:
    """Yield the bootstrap servers of a Kafka: at `address`, or as tests/support/kafka.py says.

    Raises:
        LoadtestError: there is no real Kafka.
    """
    override = {"PUSHGATE_TEST_KAFKA": address} if address else {}
    kafka = start_kafka({**os.environ, **override})
    try:
        if kafka.kind == "embedded":
            raise LoadtestError(f"a real Kafka is needed: {kafka.missing}")
        yield kafka.bootstrap
    finally:
        kafka.stop()


def create_topics(kafka: str, topics: Sequence[str], *, partitions: int) -> None:
    """Create topics of one replica."""
    new = [NewTopic(topic, partitions, 1) for topic in topics]
    asyncio.run(_administer(kafka, lambda admin: admin.create_topics(new)))


def delete_topics(kafka: str, topics: Sequence[str]) -> None:
    """Remove topics."""
    asyncio.run(_administer(kafka, lambda admin: admin.delete_topics(topics)))


async def _administer(kafka: str, work: Callable[[Any], Any]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        await work(admin)
    finally:
        await admin.close()
