"""A connection to Kafka that is reset before aiokafka hears of the reset; and ends of clients."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka import client as aiokafka_client
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.conn import AIOKafkaConnection
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.structs import BrokerMetadata

from processor.reading.kafka import KafkaError, ended
from pushgate.embedded import LOOPBACK

pytestmark = pytest.mark.anyio

NODE = 1
ASKED = MetadataRequest([])


async def connect(connection: Any) -> None:
    """Connect, and ask the broker for nothing."""
    reader, writer = await asyncio.open_connection(connection.host, connection.port)
    connection._reader, connection._writer = reader, writer
    connection._read_task, connection._closed_fut = asyncio.Future(), asyncio.Future()
    connection._closed_fut.set_result(None)
    connection._versions = {ASKED.API_KEY: (0, 0)}


def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


@pytest.fixture
async def reset(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    """Give a connection that was reset, as uvloop knows and aiokafka does not yet."""
    monkeypatch.setattr(AIOKafkaConnection, "connect", connect)
    create_conn = vars(aiokafka_client)["create_conn"]  # by which clients make connections
    async with await asyncio.start_server(say_nothing, LOOPBACK, 0) as server:
        connection = await create_conn(*server.sockets[0].getsockname())
        connection._writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await connection._reader.read()  # until the loop has ended the connection
        connection._reader = asyncio.StreamReader()
        assert connection.connected()
        yield connection
        connection.close()


async def test_a_write_to_it_fails_with_an_error_of_kafkas(reset: Any) -> None:
    with pytest.raises(KafkaError):
        await reset.send(ASKED)
    assert not reset.connected(), "the next request would be written to it too"


async def test_metadata_is_fetched_again_later_and_who_waits_for_it_goes_on(reset: Any) -> None:
    """Or a leader that has just joined the group would wait, and never assign a partition."""
    client: Any = AIOKafkaClient()
    client.cluster._brokers = {NODE: BrokerMetadata(NODE, reset.host, reset.port, None)}
    client._conns = {(NODE, ConnectionGroup.DEFAULT): reset}
    client._sync_task = asyncio.create_task(client._md_synchronizer())
    async with asyncio.timeout(10):
        assert not await client.force_metadata_update()
    assert not client._sync_task.done()
    await client.close()


async def test_a_request_that_the_broker_does_not_know_ends_no_connection(reset: Any) -> None:
    reset._versions = {ASKED.API_KEY: (1_000, 1_000)}
    with pytest.raises(NotImplementedError):
        await reset.send(ASKED)
    assert reset.connected()


async def test_a_cancellation_during_a_clients_end_reaches_the_caller() -> None:
    """AIOKafkaClient.close() takes it for the end of its own task, and swallows it."""
    ending = asyncio.Event()

    async def synchronize() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ending.set()
            await asyncio.sleep(0.05)

    client: Any = AIOKafkaClient()
    client._sync_task = asyncio.create_task(synchronize())
    await asyncio.sleep(0)
    caller = asyncio.create_task(ended(client.close(), timeout_seconds=5.0))
    await ending.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller


async def test_an_end_that_cannot_be_cancelled_is_left_behind() -> None:
    go_on = asyncio.Event()

    async def stubborn() -> None:
        while not go_on.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await go_on.wait()

    async with asyncio.timeout(5):
        assert not await ended(stubborn(), timeout_seconds=0.01)
    go_on.set()


@pytest.mark.parametrize("error", [KafkaError, RuntimeError, asyncio.CancelledError])
async def test_an_end_that_fails_is_none(error: type[BaseException]) -> None:
    async def fail() -> None:
        raise error

    assert not await ended(fail(), timeout_seconds=5.0)


async def test_an_error_that_nobody_foresaw_is_the_callers() -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await ended(fail(), timeout_seconds=5.0)
