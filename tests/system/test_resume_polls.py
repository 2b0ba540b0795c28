"""Long-poll clients that poll on any node: all messages, in order, once, and no gap."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from contextlib import suppress

import pytest
from aiokafka import AIOKafkaProducer

from tests.support.clients import Ended, PollClient, connect
from tests.support.processes import GatewayProcess
from tests.system.conftest import StartGateway, StartProcessor
from tests.system.steps import publish, publish_all

pytestmark = pytest.mark.anyio


async def roam(
    gateways: Sequence[GatewayProcess], user: str, last: str, *, cursor: str = "", wait: float = 5.0
) -> list[str]:
    """Poll on one gateway after the other until the message `last`; return the payloads and gaps.

    A poll that fails is tried again on the next gateway, as a client behind a balancer does.
    """
    got: list[str] = []
    async with asyncio.timeout(60.0):
        for gateway in itertools.cycle(gateways):
            with suppress(OSError, Ended, EOFError):
                async with connect("poll", gateway.port, user, cursor=cursor, wait=wait) as client:
                    assert isinstance(client, PollClient)
                    got += ["gap"] * client.gaps
                    got += [message.payload.decode() for message in client.waiting]
                    cursor = client.cursor
            if last in got:
                return got
    raise AssertionError("never")


async def begin(gateway: GatewayProcess, user: str) -> str:
    """Return the cursor of a client's first poll."""
    async with connect("poll", gateway.port, user) as client:
        assert isinstance(client, PollClient)
        return client.cursor


async def test_round_robin_over_three_nodes(
    gateways: list[GatewayProcess],
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    await asyncio.to_thread(start_processor)
    await asyncio.to_thread(start_processor)
    nodes = [*gateways[:2], await asyncio.to_thread(start_gateway)]
    texts = [f"message {number}" for number in range(1_000)]
    cursor = await begin(nodes[0], user)

    async def publish_steadily() -> None:
        for text in texts:
            await publish(backend, topic, user, text.encode())
            await asyncio.sleep(0.005)  # 200 a second: the load, no wait for anything

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(publish_steadily())
        polling = tasks.create_task(roam(nodes[1:] + nodes[:1], user, texts[-1], cursor=cursor))
    assert polling.result() == texts


async def test_a_short_poll_each_time_on_another_node_gets_everything(
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    await asyncio.to_thread(start_processor)
    cursor = await begin(gateways[0], user)
    await publish_all(backend, topic, user, ["one", "two"])
    async with connect("poll", gateways[1].port, user, cursor=cursor, wait=0) as client:
        assert isinstance(client, PollClient)
        got = [message.payload for message in client.waiting]
        if got != [b"one", b"two"]:  # published, perhaps not taken in yet
            got += [(await client.message()).payload for _ in range(2 - len(got))]
    assert got == [b"one", b"two"]
    assert client.gaps == 0


async def test_a_kill_and_a_drain_lose_nothing(
    gateways: list[GatewayProcess],
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    await asyncio.to_thread(start_processor)
    dying, leaving = [await asyncio.to_thread(start_gateway) for _ in range(2)]
    nodes = [dying, leaving, gateways[0]]
    texts = [f"message {number}" for number in range(300)]
    cursor = await begin(nodes[0], user)
    polling = asyncio.create_task(roam(nodes, user, texts[-1], cursor=cursor))
    await publish_all(backend, topic, user, texts[:100])
    await asyncio.to_thread(dying.kill)
    await publish_all(backend, topic, user, texts[100:200])
    await asyncio.to_thread(leaving.terminate)
    await publish_all(backend, topic, user, texts[200:])
    assert await polling == texts


async def test_an_old_or_foreign_cursor_gets_a_gap_and_goes_on(
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    await asyncio.to_thread(start_processor)
    for cursor in ("x", "key.session.0", "key.session.0,1", "key.session.0,zzzzzzzzzzz,t-0-1"):
        async with connect("poll", gateways[0].port, user, cursor=cursor) as client:
            assert isinstance(client, PollClient)
            assert client.gaps == 1
            await publish(backend, topic, user, cursor.encode())
            assert (await client.message()).payload == cursor.encode()
            assert client.gaps == 1
