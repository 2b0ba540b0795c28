"""Clients that come back oddly: many at once, without reading, behind aborted transactions."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
from aiokafka import AIOKafkaProducer

from tests.support.clients import Client, connect
from tests.support.kafka import KafkaServer
from tests.support.processes import GatewayProcess
from tests.system.conftest import StartProcessor
from tests.system.returning import RESUMING, everything, gone
from tests.system.steps import publish, publish_all

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("transport", RESUMING)
async def test_ten_connections_with_one_cursor_get_everything_each(
    transport: str,
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    await asyncio.to_thread(start_processor)
    texts = [f"message {number}" for number in range(20)]
    async with gone(transport, gateways[0], user) as [cursor], AsyncExitStack() as stack:
        await publish_all(backend, topic, user, texts[:10])

        async def come_back(number: int) -> Client:
            gateway = gateways[number % 2]
            connecting = connect(transport, gateway.port, user, cursor=cursor)
            return await stack.enter_async_context(connecting)

        clients = await asyncio.gather(*map(come_back, range(10)))
        await publish_all(backend, topic, user, texts[10:])
        got = await asyncio.gather(*(everything(client, texts[-1].encode()) for client in clients))
        assert got == [texts] * 10


@pytest.mark.parametrize("transport", RESUMING)
async def test_who_does_not_read_what_was_missed_stops_nobody_and_gets_all_of_it_later(
    transport: str,
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    await asyncio.to_thread(start_processor)
    texts = [f"message {number} " + "x" * 1_500 for number in range(1_600)]
    others = [f"live {number}" for number in range(100)]
    async with gone(transport, gateways[0], user) as [cursor]:
        await publish_all(backend, topic, user, texts[:1_400])
        async with (
            connect(
                transport, gateways[1].port, user, cursor=cursor, receive_buffer_bytes=4_096
            ) as client,
            connect(transport, gateways[1].port, f"{user}-other") as other,
        ):
            await publish_all(backend, topic, user, texts[1_400:])
            await publish_all(backend, topic, f"{user}-other", others)
            assert await everything(other, others[-1].encode()) == others
            assert await everything(client, texts[-1].encode()) == texts


@pytest.mark.parametrize("transport", RESUMING)
async def test_aborted_transactions_are_neither_replayed_nor_a_gap(
    transport: str,
    real_kafka: KafkaServer,
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    await asyncio.to_thread(start_processor)
    producer = AIOKafkaProducer(
        bootstrap_servers=real_kafka.bootstrap, transactional_id=f"of-{topic}-{transport}"
    )
    await producer.start()
    try:
        async with gone(transport, gateways[0], user) as [cursor]:
            for number in range(4):
                await producer.begin_transaction()
                for part in range(50):
                    text = f"{number} {part}"
                    await producer.send(topic, text.encode(), key=user.encode())
                await producer.flush()
                if number % 2:
                    await producer.commit_transaction()
                else:
                    await producer.abort_transaction()
            await publish(backend, topic, user, b"last")
            expected = [f"{number} {part}" for number in (1, 3) for part in range(50)]
            async with connect(transport, gateways[1].port, user, cursor=cursor) as client:
                assert await everything(client, b"last") == [*expected, "last"]
    finally:
        await producer.stop()
