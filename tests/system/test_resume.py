"""Clients that come back with a cursor: nothing missed, nothing twice, in order, or a gap."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from aiokafka import AIOKafkaProducer

from tests.support.clients import connect, eventually
from tests.support.kafka import KafkaServer
from tests.support.processes import GatewayProcess
from tests.system.conftest import StartGateway, StartProcessor
from tests.system.returning import (
    RESUMING,
    Returning,
    cursor_of,
    everything,
    gone,
    wrong_through,
)
from tests.system.steps import administering, metric, publish, publish_all
from tests.system.traffic import measure

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("transport", RESUMING)
async def test_what_comes_between_two_connections_is_replayed_once_and_in_order(
    transport: str,
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    await asyncio.to_thread(start_processor)
    texts = [f"message {number}" for number in range(30)]
    async with connect(transport, gateways[0].port, user) as client:
        await publish_all(backend, topic, user, texts[:10])
        assert await everything(client, texts[9].encode()) == texts[:10]
        cursor = cursor_of(client)
    await publish_all(backend, topic, user, texts[10:20])
    async with connect(transport, gateways[1].port, user, cursor=cursor) as client:
        await publish_all(backend, topic, user, texts[20:])
        assert await everything(client, texts[29].encode()) == texts[10:]
        assert cursor_of(client) != cursor


@pytest.mark.parametrize("transport", RESUMING)
async def test_a_client_that_got_nothing_yet_resumes_too(
    transport: str,
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    await asyncio.to_thread(start_processor)
    async with gone(transport, gateways[0], user) as [cursor]:
        await publish(backend, topic, user, b"missed")
        async with connect(transport, gateways[1].port, user, cursor=cursor) as client:
            assert await everything(client, b"missed") == ["missed"]
            await publish(backend, topic, user, b"live")
            assert await everything(client, b"live") == ["live"]


@pytest.mark.parametrize("transport", RESUMING)
async def test_the_cursor_outlives_its_gateway(
    transport: str,
    start_gateway: StartGateway,
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    await asyncio.to_thread(start_processor)
    dying = await asyncio.to_thread(start_gateway)
    texts = [f"message {number}" for number in range(20)]
    async with connect(transport, dying.port, user) as client:
        await publish_all(backend, topic, user, texts[:5])
        assert await everything(client, texts[4].encode()) == texts[:5]
        cursor = cursor_of(client)
        await asyncio.to_thread(dying.kill)
    await publish_all(backend, topic, user, texts[5:15])
    async with connect(transport, gateways[0].port, user, cursor=cursor) as client:
        await publish_all(backend, topic, user, texts[15:])
        assert await everything(client, texts[19].encode()) == texts[5:]


@pytest.mark.parametrize("transport", RESUMING)
async def test_a_new_owner_reads_back_what_the_last_one_took_in(
    transport: str,
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    real_kafka: KafkaServer,
    topic: str,
    user: str,
) -> None:
    first = await asyncio.to_thread(start_processor)
    texts = [f"message {number}" for number in range(20)]
    async with connect(transport, gateways[0].port, user) as client:
        await publish_all(backend, topic, user, texts[:5])
        assert await everything(client, texts[4].encode()) == texts[:5]
        cursor = cursor_of(client)
    await publish_all(backend, topic, user, texts[5:15])
    await until_committed(real_kafka, topic, 15)
    await asyncio.to_thread(first.kill)
    await asyncio.to_thread(start_processor)
    async with connect(transport, gateways[1].port, user, cursor=cursor) as client:
        await publish_all(backend, topic, user, texts[15:])
        assert await everything(client, texts[19].encode()) == texts[5:]


@pytest.mark.parametrize("transport", RESUMING)
async def test_what_a_processor_has_no_room_for_is_read_again_and_is_no_gap(
    transport: str,
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    processor = await asyncio.to_thread(start_processor, resume_bytes=1024 * 1024)
    texts = [f"message {number}" for number in range(30)]
    async with gone(transport, gateways[0], f"{user}-idle") as [idle_cursor]:
        async with connect(transport, gateways[0].port, user) as client:
            await publish_all(backend, topic, user, texts[:5])
            assert await everything(client, texts[4].encode()) == texts[:5]
            cursor = cursor_of(client)
        await publish_all(backend, topic, user, texts[5:20])
        for other in range(16):  # in every partition
            await publish_all(backend, topic, f"{user}-{other}", ["x" * 60_000] * 8)
        evicted = "pushgate_processor_window_evicted_total"
        await eventually(partial(metric, processor, evicted), "payloads are evicted")
        async with connect(transport, gateways[1].port, user, cursor=cursor) as client:
            await publish_all(backend, topic, user, texts[20:])
            assert await everything(client, texts[29].encode()) == texts[5:]
        assert await metric(processor, "pushgate_processor_read_again_messages_total") >= 15
        idle = f"{user}-idle"
        async with connect(transport, gateways[1].port, idle, cursor=idle_cursor) as client:
            await publish(backend, topic, idle, b"live")
            assert await everything(client, b"live") == ["live"]


@pytest.mark.parametrize(
    "cursor", ["%%%", "1,2,3", "zzzzzzzzzzzz", "0", "k" * 11, "a," + ",".join(["t-0-1"] * 65)]
)
@pytest.mark.parametrize("transport", RESUMING)
async def test_a_cursor_that_says_nothing_is_a_gap(
    transport: str,
    cursor: str,
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    await asyncio.to_thread(start_processor)
    if transport == "ws-v1" and "%" in cursor:
        cursor = cursor.replace("%", "$")
    unreadable = 'pushgate_gateway_resumes_total{result="unreadable"}'
    before = await measure(gateways[0], unreadable)
    async with connect(transport, gateways[0].port, user, cursor=cursor) as client:
        await publish(backend, topic, user, b"live")
        assert await everything(client, b"live") == ["control gap", "live"]
    assert await measure(gateways[0], unreadable) == before + 1


async def test_a_cursor_of_another_user_gives_nothing_of_the_other(
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    await asyncio.to_thread(start_processor)
    async with gone("ws-v1", gateways[0], user) as [cursor]:
        await publish(backend, topic, user, b"for the first")
        other = f"{user}-other"
        async with connect("ws-v1", gateways[0].port, other, cursor=cursor) as client:
            await publish(backend, topic, other, b"for the other")
            assert await everything(client, b"for the other") == ["for the other"]


async def until_committed(kafka: KafkaServer, topic: str, count: int) -> None:
    """Return when the group has committed so many messages of a new topic."""
    async with administering(kafka) as admin:

        async def committed() -> bool:
            commits = await admin.list_consumer_group_offsets(f"group-{topic}")
            return sum(max(0, commit.offset) for commit in commits.values()) >= count

        await eventually(committed, "all are committed")


@pytest.mark.parametrize("topic", [4], indirect=True)
async def test_nothing_is_missed_or_repeated_while_gateways_and_processors_are_killed(
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    real_kafka: KafkaServer,
    topic: str,
    user: str,
) -> None:
    starts = [asyncio.to_thread(start_gateway, heartbeat_seconds=2) for _ in range(3)]
    gateways = list(await asyncio.gather(*starts))
    processors = [await asyncio.to_thread(start_processor) for _ in range(2)]
    users = [f"{user}-{number}" for number in range(40)]
    clients = [Returning(RESUMING[n % 2], name, gateways) for n, name in enumerate(users)]

    async def fail_in_turn() -> None:
        for victim in (gateways[0], processors[0], gateways[1], processors[1], gateways[2]):
            await asyncio.sleep(3.0)
            await asyncio.to_thread(victim.kill)
            await asyncio.to_thread(victim.start)
        await asyncio.sleep(3.0)

    assert not await wrong_through(fail_in_turn(), clients, backend, topic)
    assert sum(client.connections for client in clients) > 2 * len(clients)
