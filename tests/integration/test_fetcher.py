"""The fetcher on a real broker: by its own connection, and back on aiokafka's way in trouble."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.client import ConnectionGroup

from processor.reading import fetcher as module
from processor.reading import kafka as kafka_module
from processor.reading.kafka import fetch_directly
from tests.support.kafka import KafkaServer

pytestmark = pytest.mark.anyio


class Rig:
    """A consumer of partition 0 of a topic, and a producer; no group."""

    def __init__(self, consumer: AIOKafkaConsumer, producer: AIOKafkaProducer, topic: str) -> None:
        self.consumer = consumer
        self.partition = TopicPartition(topic, 0)
        self._producer = producer

    @property
    def fetcher(self) -> Any:
        return self.consumer._fetcher

    @property
    def pipe(self) -> Any:
        (pipe,) = self.fetcher._pipes.values()
        return pipe

    async def publish(self, numbers: Iterable[int], *, partition: int = 0) -> None:
        topic = self.partition.topic
        for number in numbers:
            await self._producer.send_and_wait(topic, b"%d" % number, partition=partition)

    async def read(self, count: int) -> list[int]:
        """Read so many records."""
        found: list[int] = []
        async with asyncio.timeout(20):
            while len(found) < count:
                batch = await self.consumer.getmany(timeout_ms=100)
                found += [int(record.value or b"") for each in batch.values() for record in each]
        return found

    async def has_pipe(self) -> None:
        """Wait for a connection of the fetcher's own, with a fetch on it."""
        async with asyncio.timeout(20):
            while not (self.fetcher._pipes and self.pipe.under_way):
                await self.consumer.getmany(timeout_ms=10)


@asynccontextmanager
async def rig_at(kafka: KafkaServer, topic: str, *, wait_ms: int = 500) -> AsyncIterator[Rig]:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=kafka.bootstrap,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        fetch_max_wait_ms=wait_ms,
    )
    await consumer.start()
    await fetch_directly(consumer)
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap)
    await producer.start()
    consumer.assign([TopicPartition(topic, 0)])
    try:
        yield Rig(consumer, producer, topic)
    finally:
        await producer.stop()
        await consumer.stop()


async def test_records_come_by_the_fetchers_own_connection_in_order(
    real_kafka: KafkaServer, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig_at(real_kafka, topic) as rig:
        await rig.has_pipe()

        def another_way(*_: object) -> Any:
            raise AssertionError("aiokafka's way")

        monkeypatch.setattr(rig.fetcher, "_proc_fetch_request", another_way)
        for start in range(0, 100, 10):
            await rig.publish(range(start, start + 10))
            assert await rig.read(10) == list(range(start, start + 10))
        assert rig.consumer.highwater(rig.partition) == 100


async def test_after_the_end_of_its_connection_nothing_is_lost_or_repeated(
    real_kafka: KafkaServer, topic: str
) -> None:
    async with rig_at(real_kafka, topic) as rig:
        for start in range(0, 30, 10):
            await rig.has_pipe()
            rig.pipe.abort()
            await rig.publish(range(start, start + 10))
            assert await rig.read(10) == list(range(start, start + 10))


async def test_a_connection_that_goes_silent_is_given_up(
    real_kafka: KafkaServer, topic: str
) -> None:
    async with rig_at(real_kafka, topic) as rig:
        await rig.has_pipe()
        silent = rig.pipe
        silent._transport.pause_reading()
        rig.fetcher._give_up_seconds = 0.5
        await rig.publish(range(10))
        assert await rig.read(10) == list(range(10))
        assert silent not in rig.fetcher._pipes.values()


async def test_an_offset_that_the_broker_does_not_have_is_found_aiokafkas_way(
    real_kafka: KafkaServer, topic: str
) -> None:
    async with rig_at(real_kafka, topic) as rig:
        await rig.publish(range(5))
        assert await rig.read(5) == list(range(5))
        await rig.has_pipe()
        rig.consumer.seek(rig.partition, 1_000)
        assert await rig.read(5) == list(range(5)), "from the earliest, as the consumer is set"
        await rig.has_pipe()
        await rig.publish(range(5, 9))
        assert await rig.read(4) == list(range(5, 9))


async def test_a_new_assignment_does_not_wait_for_a_fetch_of_the_last(
    real_kafka: KafkaServer, topic: str
) -> None:
    async with rig_at(real_kafka, topic, wait_ms=20) as rig:
        await rig.publish([1], partition=1)
        await rig.has_pipe()
        pipe = rig.pipe
        rig.fetcher._fetch_max_wait_ms = 30_000
        longer_from = time.monotonic()
        async with asyncio.timeout(20):
            while not (pipe.under_way and pipe.asked_at > longer_from):
                await rig.consumer.getmany(timeout_ms=10)
        rig.consumer.assign([TopicPartition(rig.partition.topic, 1)])
        assert await rig.read(1) == [1]
        assert pipe.under_way, "else the broker has answered the last assignment's fetch before"


async def test_a_broker_too_old_for_the_fetchers_requests_is_read_aiokafkas_way(
    real_kafka: KafkaServer, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "VERSION", 1_000)
    async with rig_at(real_kafka, topic) as rig:
        await rig.publish(range(10))
        assert await rig.read(10) == list(range(10))
        await rig.publish(range(10, 20))
        assert await rig.read(10) == list(range(10, 20))
        assert not rig.fetcher._pipes


async def test_a_broker_that_takes_no_further_connection_is_tried_now_and_then_alone(
    real_kafka: KafkaServer, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More tries at once would queue for the client's one lock, and nothing else could connect.
    monkeypatch.setattr(module, "_OPEN_SECONDS", 0.05)
    monkeypatch.setattr(module, "_FIRST_PAUSE_SECONDS", 0.02)
    async with rig_at(real_kafka, topic, wait_ms=10) as rig:
        connect = rig.fetcher._client._get_conn
        tries: list[int] = []
        under_way = 0

        async def never_connect(node_id: int, *, group: Any = ConnectionGroup.DEFAULT) -> Any:
            nonlocal under_way
            if group != module._GROUP:
                return await connect(node_id, group=group)
            under_way += 1
            tries.append(under_way)
            try:
                await asyncio.Event().wait()
            finally:
                under_way -= 1

        monkeypatch.setattr(rig.fetcher._client, "_get_conn", never_connect)
        for start in range(0, 1_000, 10):
            await rig.publish(range(start, start + 10))
            assert await rig.read(10) == list(range(start, start + 10))
            if len(tries) == 3:
                break
        assert tries == [1, 1, 1]
        (pause,) = rig.fetcher._pauses.values()
        assert pause == 0.08
        assert not rig.fetcher._pipes


async def test_an_answer_in_many_pieces_is_whole(real_kafka: KafkaServer, topic: str) -> None:
    # More than a socket's buffer and uvloop's reads have.
    async with rig_at(real_kafka, topic) as rig:
        await rig.has_pipe()
        value = b"7" * 900_000
        await rig._producer.send_and_wait(topic, value, partition=0)
        async with asyncio.timeout(20):
            batch: dict[TopicPartition, list[Any]] = {}
            while not batch:
                batch = await rig.consumer.getmany(timeout_ms=100)
        assert [record.value for record in batch[rig.partition]] == [value]


async def test_a_consumer_that_can_not_leave_its_group_fetches_no_more(
    real_kafka: KafkaServer, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_module, "_LEAVE_SECONDS", 0.1)
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=real_kafka.bootstrap, group_id=topic)
    await consumer.start()
    await fetch_directly(consumer)
    async with asyncio.timeout(20):
        while not consumer.assignment():
            await consumer.getmany(timeout_ms=10)

    async def never_leave() -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(consumer._coordinator, "_maybe_leave_group", never_leave)
    fetcher: Any = consumer._fetcher
    client: Any = consumer._client
    try:
        await kafka_module.leave(consumer)
        assert fetcher._fetch_task.done()
        assert not any(connection.connected() for connection in client._conns.values())
    finally:
        await fetcher.close()
        await client.close()
