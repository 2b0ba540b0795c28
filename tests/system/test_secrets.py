"""Fault 31: the internal secret is wrong on one side. Loud, at once, and no message is lost."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from aiokafka import AIOKafkaProducer

from tests.support.clients import connect, eventually
from tests.support.processes import ProcessorProcess, PushgateProcess
from tests.support.valkey import RedisServer
from tests.system.conftest import StartGateway, StartProcessor
from tests.system.steps import publish, take, until_outcomes
from tests.system.traffic import measure

pytestmark = pytest.mark.anyio

OTHER_SECRET = "another secret, which is as long as it has to be"
CURE = "PUSHGATE_INTERNAL_SECRET"
MESSAGES = 20


def says_the_cure(process: PushgateProcess) -> bool:
    return CURE in process.log


async def readiness(processor: ProcessorProcess) -> tuple[int, str]:
    async with httpx.AsyncClient(trust_env=False) as http:
        response = await http.get(f"http://127.0.0.1:{processor.port}/readyz")
    return response.status_code, response.json()["status"]


async def test_messages_for_a_gateway_that_refuses_the_secret_wait_and_others_flow(
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    wrong, right = start_gateway(internal_secret=OTHER_SECRET), start_gateway()
    processor = start_processor()
    await eventually(lambda: says_the_cure(processor), "the processor says so, unasked")
    await eventually(lambda: says_the_cure(wrong), "so does the gateway")
    assert not says_the_cure(right)
    async with connect("ws-v1", right.port, f"{user}-right") as flows:
        async with connect("ws-v1", wrong.port, user):
            await publish(backend, topic, user, b"waits")
            for number in range(20):
                await publish(backend, topic, f"{user}-right", str(number).encode())
            got = [message.payload for message in await take(flows, 20)]
            assert got == [str(number).encode() for number in range(20)]
            waiting = 'pushgate_processor_waiting_messages{for="silent"}'

            async def waits() -> bool:
                return await measure(processor, waiting) == 1

            await eventually(waits, "the message waits")
            assert await readiness(processor) == (200, "ready")
        async with connect("ws-v1", right.port, user) as elsewhere:
            assert (await take(elsewhere, 1))[0].payload == b"waits"
            await asyncio.to_thread(wrong.terminate)  # a goodbye
            await until_outcomes([processor], {("delivered", ""): 21})


async def test_a_processor_that_every_gateway_refuses_is_not_ready_and_loses_nothing(
    own_valkey: RedisServer,
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    right = start_gateway(redis_url=own_valkey.url)
    processor = start_processor(redis_url=own_valkey.url)
    start_gateway(redis_url=own_valkey.url, internal_secret=OTHER_SECRET)
    assert await readiness(processor) == (200, "ready")
    await asyncio.to_thread(right.terminate)

    async def not_ready() -> bool:
        status, text = await readiness(processor)
        return status == 503 and CURE in text

    await eventually(not_ready, "not ready, and it says why", timeout_seconds=15.0)
    for number in range(MESSAGES):
        await publish(backend, topic, user, b"%d" % number)

    async def reads_nothing() -> bool:
        """Whether records are seen to wait in Kafka (their lag), and none was ever taken in."""
        lag = await measure(processor, "pushgate_processor_lag_messages")
        in_hand = await measure(processor, "pushgate_processor_in_hand_messages")
        assert await measure(processor, "pushgate_processor_batch_messages_count") == 0
        return lag > 0 and in_hand == 0

    await eventually(reads_nothing, "the records stay in Kafka")
    again = start_gateway(redis_url=own_valkey.url)
    async with connect("ws-v1", again.port, user) as client:
        expected = [b"%d" % number for number in range(MESSAGES)]
        assert [message.payload for message in await take(client, MESSAGES)] == expected

    async def ready_again() -> bool:
        return await readiness(processor) == (200, "ready")

    await eventually(ready_again, "ready again")
