"""A stop while other parts do not answer: each process leaves in bounded time, and cleanly."""

import asyncio
import signal
from contextlib import ExitStack
from typing import Final

import pytest
from aiokafka import AIOKafkaProducer

from tests.support.clients import connect, eventually
from tests.support.kafka import KafkaServer
from tests.support.processes import GatewayProcess, ProcessorProcess, PushgateProcess
from tests.support.valkey import RedisServer
from tests.system.conftest import StartGateway, StartProcessor
from tests.system.steps import publish, publish_all, take

pytestmark = pytest.mark.anyio

#: Eight for the messages in hand, and the time-outs of Kafka's last commit and of Redis.
MOST_SECONDS: Final = 15.0


async def leaves(process: PushgateProcess) -> None:
    """Return when a process has ended with 0 after a SIGTERM."""
    process.signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.wait, MOST_SECONDS) == 0, process.log
    assert "not left in time" not in process.log


async def starts_to(process: PushgateProcess, words: str) -> None:
    process.start(until_ready=False)
    await eventually(lambda: words in process.log, words, timeout_seconds=20.0)


async def test_a_processor_that_waits_for_redis_at_its_start(
    processes: ExitStack, own_valkey: RedisServer, kafka: KafkaServer, topic: str
) -> None:
    processor = ProcessorProcess(
        f"processor-{topic}",
        redis_url=own_valkey.url,
        bootstrap=kafka.bootstrap,
        topic=topic,
        group=f"group-{topic}",
        outcomes_topic=f"{topic}.outcomes",
    )
    processes.callback(processor.close)
    own_valkey.freeze()
    await starts_to(processor, "processor starts")
    await leaves(processor)


async def test_a_gateway_that_waits_for_redis_at_its_start(
    processes: ExitStack, own_valkey: RedisServer, topic: str
) -> None:
    gateway = GatewayProcess(f"gateway-{topic}", redis_url=own_valkey.url)
    processes.callback(gateway.close)
    own_valkey.freeze()
    await starts_to(gateway, "gateway starts")
    await leaves(gateway)


async def test_a_frozen_redis_while_messages_wait_for_look_ups(
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    own_valkey: RedisServer,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    gateway = start_gateway(redis_url=own_valkey.url)
    processor = start_processor(redis_url=own_valkey.url)
    async with connect("ws-v1", gateway.port, user) as client:
        await publish(backend, topic, user, b"1")
        assert [message.payload for message in await take(client, 1)] == [b"1"]
        own_valkey.freeze()
        await publish_all(backend, topic, f"{user}-unknown", ["2", "3"])
        await eventually(lambda: "can't look users up" in processor.log, "look-ups fail")
        await leaves(processor)
        await leaves(gateway)


async def test_a_gateway_that_does_not_answer_while_messages_wait_for_it(
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    own_valkey: RedisServer,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    gateway = start_gateway(redis_url=own_valkey.url)
    processor = start_processor(redis_url=own_valkey.url)
    async with connect("ws-v1", gateway.port, user) as client:
        await publish(backend, topic, user, b"1")
        assert [message.payload for message in await take(client, 1)] == [b"1"]
        gateway.freeze()
        try:
            await publish(backend, topic, user, b"2")
            await eventually(lambda: "does not answer" in processor.log, "the gateway is silent")
            await leaves(processor)
        finally:
            gateway.thaw()
