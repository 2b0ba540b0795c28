"""What the reader relies on in aiokafka and no documentation promises, on a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from tests.support.kafka import KafkaServer

pytestmark = pytest.mark.anyio

NOT_ASSIGNED = TopicPartition("", 0)


@asynccontextmanager
async def reading(kafka: KafkaServer, topic: str) -> AsyncIterator[AIOKafkaConsumer]:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest", fetch_max_wait_ms=20
    )
    await consumer.start()
    consumer.assign([TopicPartition(topic, 0), TopicPartition(topic, 1)])
    try:
        yield consumer
    finally:
        await consumer.stop()


async def publish(kafka: KafkaServer, topic: str) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap)
    await producer.start()
    try:
        await producer.send_and_wait(topic, b"value", key=b"key", partition=0)
    finally:
        await producer.stop()


async def test_a_poll_of_no_assigned_partition_reads_nothing_and_loses_nothing(
    kafka: KafkaServer, topic: str
) -> None:
    await publish(kafka, topic)
    async with reading(kafka, topic) as consumer, asyncio.timeout(20):
        for _ in range(3):
            assert await consumer.getmany(NOT_ASSIGNED, timeout_ms=100) == {}
        found: dict[TopicPartition, list[Any]] = {}
        while not found:
            found = await consumer.getmany(timeout_ms=500)
        assert {partition.partition: len(records) for partition, records in found.items()} == {0: 1}
