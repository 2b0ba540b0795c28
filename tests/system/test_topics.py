"""Topics that are added to a setting, that are missing, or that grow, while messages flow."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Final

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import NewPartitions

from tests.support.clients import connect, eventually
from tests.support.kafka import KafkaServer
from tests.support.processes import GatewayProcess
from tests.system.conftest import StartProcessor
from tests.system.steps import (
    administering,
    create,
    publish,
    publishing,
    readyz,
    take,
    until_outcomes,
)

pytestmark = pytest.mark.anyio

DELIVERED: Final = ("delivered", "")


@pytest.mark.parametrize("rolling", [False, True], ids=["after a stop", "beside the old one"])
async def test_a_topic_that_is_added_to_a_group_at_work_starts_at_its_end(
    real_kafka: KafkaServer,
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
    rolling: bool,
) -> None:
    added = f"{topic}.added"
    users = [f"{user}-{number}" for number in range(12)]  # on every partition
    old = start_processor()
    await create(real_kafka, added, partitions=4)
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(connect("ws-v1", gateways[0].port, name))
            for name in users
        ]
        for name in users:
            await publish(backend, added, name, b"days ago")
        if not rolling:
            assert await asyncio.to_thread(old.terminate) == 0
        new = await asyncio.to_thread(start_processor, kafka_topics=f"{topic},{added}")
        for name in users:
            await publish(backend, added, name, b"new")
        for client in clients:
            assert (await client.message(timeout=10.0)).payload == b"new"
    await until_outcomes([new], {DELIVERED: 12})


async def test_partitions_that_are_added_to_a_topic_are_read_from_their_beginning(
    real_kafka: KafkaServer,
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    topic: str,
    user: str,
) -> None:
    start_processor()
    async with connect("ws-v1", gateways[0].port, user) as client:
        async with administering(real_kafka) as admin:
            await admin.create_partitions({topic: NewPartitions(5)})
        async with publishing(real_kafka) as producer:
            await eventually(
                lambda: _has_partitions(producer, topic, 5), "the new partition has a leader"
            )
            await producer.send_and_wait(topic, b"first", key=user.encode(), partition=4)
        assert (await take(client, 1, timeout=20.0))[0].payload == b"first"


async def _has_partitions(producer: AIOKafkaProducer, topic: str, count: int) -> bool:
    await producer.client.force_metadata_update()
    return len(await producer.partitions_for(topic)) == count


@pytest.mark.parametrize("meanwhile", ["runs", "is stopped"])
async def test_a_missing_topic_stops_no_other_is_named_and_starts_at_its_beginning(
    strict_kafka: KafkaServer,
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    user: str,
    meanwhile: str,
) -> None:
    present, missing = f"{user}.present", f"{user}.missing"
    await create(strict_kafka, present)
    await create(strict_kafka, f"{user}.dead")
    processor = start_processor(
        kafka_bootstrap=strict_kafka.bootstrap,
        kafka_topics=f"{present},{missing}",
        kafka_group=f"group-{user}",
        dead_letter_topic=f"{user}.dead",
    )
    async with (
        publishing(strict_kafka) as producer,
        connect("ws-v1", gateways[0].port, user) as client,
    ):
        await publish(producer, present, user, b"of the one that is there")
        assert (await take(client, 1))[0].payload == b"of the one that is there"

        async def named() -> bool:
            answer = await readyz(processor)
            assert answer.status_code == 200
            return missing in str(answer.json().get("warnings"))

        await eventually(named, "readyz names the topic", timeout_seconds=10.0)
        assert "topics do not exist" in processor.log
        if meanwhile == "is stopped":
            assert await asyncio.to_thread(processor.terminate) == 0
        await create(strict_kafka, missing)
        await publish(producer, missing, user, b"first")
        if meanwhile == "is stopped":
            await asyncio.to_thread(processor.start)
        assert (await take(client, 1, timeout=30.0))[0].payload == b"first"

        async def unnamed() -> bool:
            return bool((await readyz(processor)).json() == {"status": "ready"})

        await eventually(unnamed, "readyz names nothing any more", timeout_seconds=15.0)
