"""Clients that come back with a cursor: nothing missed, nothing twice, in order, or a gap."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient

from tests.support.clients import (
    Client,
    Control,
    Ended,
    Message,
    SseClient,
    WebSocketClient,
    connect,
    eventually,
)
from tests.support.kafka import KafkaServer
from tests.support.processes import GatewayProcess
from tests.system.conftest import StartGateway, StartProcessor
from tests.system.steps import publish, publish_all
from tests.system.traffic import measure

pytestmark = pytest.mark.anyio

RESUMING: Final = ("ws-v1", "sse")


def cursor_of(client: Client) -> str:
    """Return what the client comes back with."""
    if isinstance(client, SseClient):
        assert client.last_event_id is not None
        return client.last_event_id
    assert isinstance(client, WebSocketClient)
    assert client.cursor is not None
    return client.cursor


async def everything(client: Client, last: bytes, *, seconds: float = 30.0) -> list[str]:
    """Return all payloads and controls up to the message with the payload `last`."""
    assert isinstance(client, SseClient | WebSocketClient)
    got: list[str] = []
    async with asyncio.timeout(seconds):
        while not got or got[-1] != last.decode():
            found: Message | Control = await client.next(seconds)
            got.append(
                found.payload.decode()
                if isinstance(found, Message)
                else f"control {found['control']}"
            )
    return got


@asynccontextmanager
async def gone(transport: str, gateway: GatewayProcess, user: str) -> AsyncIterator[list[str]]:
    """Connect and leave; give a list with the cursor that the client had."""
    async with connect(transport, gateway.port, user) as client:
        assert isinstance(client, SseClient | WebSocketClient)
        with pytest.raises(TimeoutError):
            await client.next(0.3)  # the opening event, and nothing else
        cursor = cursor_of(client)
    yield [cursor]


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
    async with admin_of(kafka) as admin:

        async def committed() -> bool:
            commits = await admin.list_consumer_group_offsets(f"group-{topic}")
            return sum(max(0, commit.offset) for commit in commits.values()) >= count

        await eventually(committed, "all are committed")


@asynccontextmanager
async def admin_of(kafka: KafkaServer) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


class Returning:
    """A client that comes back with its cursor whenever its connection ends, to any gateway."""

    def __init__(self, transport: str, user: str, gateways: list[GatewayProcess]) -> None:
        self.transport = transport
        self.user = user
        self.got: list[str] = []
        self.gaps = 0
        self.connections = 0
        self._gateways = gateways
        self._cursor: str | None = None
        self.open = asyncio.Event()

    async def run(self) -> None:
        """Receive until cancelled."""
        while True:
            gateway = random.choice(self._gateways)
            is_connected = False
            try:
                async with connect(
                    self.transport, gateway.port, self.user, cursor=self._cursor
                ) as client:
                    is_connected = True
                    self.connections += 1
                    self.open.set()
                    await self._receive(client)
            except (Ended, OSError, TimeoutError):
                pass  # it comes back
            except AssertionError:  # the answer to the handshake: a node that starts says 503
                if is_connected:
                    raise
            await asyncio.sleep(random.uniform(0.1, 0.5))

    async def _receive(self, client: Client) -> None:
        assert isinstance(client, SseClient | WebSocketClient)
        try:
            while True:
                found = await client.next(20.0)
                if isinstance(found, Message):
                    self.got.append(found.payload.decode())
                elif found["control"] == "gap":
                    self.gaps += 1
                elif found["control"] == "reconnect":
                    return
        finally:
            if client.cursor if isinstance(client, WebSocketClient) else client.last_event_id:
                self._cursor = cursor_of(client)


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
    sent: dict[str, list[str]] = {name: [] for name in users}
    over = asyncio.Event()

    async def publish_steadily() -> None:
        for number in itertools.count():
            name = users[number % len(users)]
            sent[name].append(f"{number}")
            await backend.send(topic, b"%d" % number, key=name.encode())
            if over.is_set() and number % len(users) == len(users) - 1:
                break
            await asyncio.sleep(0.005)
        await backend.flush()

    async def fail_in_turn() -> None:
        for victim in (gateways[0], processors[0], gateways[1], processors[1], gateways[2]):
            await asyncio.sleep(3.0)
            await asyncio.to_thread(victim.kill)
            await asyncio.to_thread(victim.start)
        await asyncio.sleep(3.0)
        over.set()

    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(client.run()) for client in clients]
        for client in clients:
            await asyncio.wait_for(client.open.wait(), 10.0)
        await asyncio.gather(publish_steadily(), fail_in_turn())
        await eventually(
            lambda: all(client.got[-1:] == sent[client.user][-1:] for client in clients),
            "everybody has the last message",
            timeout_seconds=40.0,
        )
        for task in running:
            task.cancel()
    wrong = {
        client.user: (client.transport, _differences(sent[client.user], client.got), client.gaps)
        for client in clients
        if client.got != sent[client.user] or client.gaps
    }
    assert not wrong
    assert sum(client.connections for client in clients) > 2 * len(clients)


def _differences(sent: list[str], got: list[str]) -> str:
    lost, twice = set(sent) - set(got), sorted(text for text in set(got) if got.count(text) > 1)
    return f"lost {sorted(lost)}, twice {twice}, in order: {got == sorted(got, key=int)}"
