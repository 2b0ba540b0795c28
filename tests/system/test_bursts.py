"""Bursts from Kafka to one user: what is told delivered arrives, in order, once; nobody is closed.

The gateway's half alone, with more variants, is in tests/conformance/test_bursts.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pytest
from aiokafka import AIOKafkaProducer

from tests.support.clients import Wire, bearer, connect, eventually, open_websocket
from tests.support.processes import GatewayProcess
from tests.system.conftest import StartGateway, StartProcessor
from tests.system.steps import outcomes, publish_all, take, until_outcomes
from tests.system.traffic import measure

pytestmark = pytest.mark.anyio

DELIVERED: Final = ("delivered", "")
#: How long a burst may take to arrive, on a busy machine.
ARRIVAL_SECONDS: Final = 60.0


def burst(size: int, count: int) -> list[str]:
    """Give numbered payloads of `size` characters."""
    return [f"{number:06}".ljust(size, ".") for number in range(count)]


@asynccontextmanager
async def never_reading(gateway: GatewayProcess, user: str) -> AsyncIterator[None]:
    """Have a connection of a client with small buffers that reads no message."""
    wire = await Wire.open(gateway.port, receive_buffer_bytes=8_192)
    try:
        await open_websocket(wire, bearer(user))
        yield
    finally:
        await wire.close()


@pytest.mark.parametrize("wire", ["epoll", "transport"])
@pytest.mark.parametrize(
    ("transport", "size", "count"),
    [
        ("ws-plain", 200, 4_000),
        ("ws-plain", 1_000, 1_000),
        ("ws-v1", 1_000, 1_000),
        ("sse", 1_000, 1_000),
        ("poll", 1_000, 1_000),
        ("ws-plain", 65_536, 150),
    ],
)
async def test_a_burst_for_a_client_that_reads_arrives_whole_in_order_and_once(
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
    wire: str,
    transport: str,
    size: int,
    count: int,
) -> None:
    gateway = start_gateway(wire=wire)
    processor = start_processor(overloaded_seconds=60)
    payloads = burst(size, count)
    async with connect(transport, gateway.port, user) as client:
        await publish_all(backend, topic, user, payloads)
        got = [m.payload.decode() for m in await take(client, count, timeout=ARRIVAL_SECONDS)]
        assert got == payloads
        await until_outcomes([processor], {DELIVERED: count}, timeout=30.0)
        await publish_all(backend, topic, user, ["still there"])
        assert (await take(client, 1))[0].payload == b"still there"


async def test_a_backlog_of_a_processor_that_was_away_arrives_whole(
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    gateway = start_gateway()
    processor = start_processor()
    payloads = burst(800, 720)
    async with connect("ws-v1", gateway.port, user) as client:
        await publish_all(backend, topic, user, ["warm"])
        await take(client, 1)
        await until_outcomes([processor], {DELIVERED: 1})
        await asyncio.to_thread(processor.terminate)
        await publish_all(backend, topic, user, payloads)
        await asyncio.to_thread(processor.start)
        got = [m.payload.decode() for m in await take(client, 720, timeout=ARRIVAL_SECONDS)]
        assert got == payloads
        await until_outcomes([processor], {DELIVERED: 720}, timeout=30.0)


async def test_a_burst_for_a_client_that_never_reads_stops_nobody_else(
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    gateway = start_gateway()
    processor = start_processor(overloaded_seconds=2)
    other = f"{user}-other"
    async with never_reading(gateway, user), connect("ws-plain", gateway.port, other) as reads:
        await publish_all(backend, topic, user, burst(1_000, 3_000))
        for number in range(50):
            await publish_all(backend, topic, other, [str(number)])
            assert (await take(reads, 1))[0].payload == str(number).encode()

        async def all_told() -> bool:
            return sum((await outcomes(processor)).values()) == 3_050

        await eventually(all_told, "each message has its outcome", timeout_seconds=30.0)
        kinds = set(await outcomes(processor))
        assert ("failed", "overloaded") in kinds, "the patience ends before the client is cut"
        assert kinds <= {DELIVERED, ("failed", "overloaded"), ("offline", "")}
        waiting = 'pushgate_processor_waiting_messages{for="no-room"}'

        async def nothing_waits() -> bool:
            return await measure(processor, waiting) == 0

        await eventually(nothing_waits, "nothing waits")


async def test_of_two_devices_the_one_that_reads_gets_all_at_once_and_the_other_costs_it_nothing(
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    gateway = start_gateway()
    processor = start_processor(overloaded_seconds=3)
    payloads = burst(1_000, 1_500)
    async with never_reading(gateway, user), connect("ws-plain", gateway.port, user) as reads:
        await publish_all(backend, topic, user, payloads)
        got = [m.payload.decode() for m in await take(reads, 1_500, timeout=ARRIVAL_SECONDS)]
        assert got == payloads
        await until_outcomes([processor], {DELIVERED: 1_500}, timeout=30.0)
