"""Clients that come back with their cursors, and what is wrong with what they got."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Final

import pytest
from aiokafka import AIOKafkaProducer

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
from tests.support.processes import GatewayProcess

#: The transports of held connections that have cursors.
RESUMING: Final = ("ws-v1", "sse")
#: How long everything may take to arrive when the faults are over.
_SETTLE_SECONDS: Final = 60.0


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


async def cursor_after(transport: str, gateway: GatewayProcess, user: str) -> str:
    """Connect, and leave with the first cursor."""
    async with connect(transport, gateway.port, user) as client:
        assert isinstance(client, SseClient | WebSocketClient)
        with pytest.raises(TimeoutError):
            await client.next(0.3)  # the opening event, and nothing else
        return cursor_of(client)


@asynccontextmanager
async def gone(transport: str, gateway: GatewayProcess, user: str) -> AsyncIterator[list[str]]:
    """Connect and leave; give a list with the cursor that the client had."""
    yield [await cursor_after(transport, gateway, user)]


class Returning:
    """A client that comes back with its cursor whenever its connection ends, to any gateway."""

    def __init__(self, transport: str, user: str, gateways: Sequence[GatewayProcess]) -> None:
        self.transport = transport
        self.user = user
        self.sent: list[str] = []
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

    @property
    def wrong(self) -> str:
        """What is wrong with what the client got, in words; empty where all is right."""
        if self.got == self.sent and not self.gaps:
            return ""
        lost = sorted(set(self.sent) - set(self.got))
        twice = sorted(text for text in set(self.got) if self.got.count(text) > 1)
        in_order = self.got == sorted(self.got, key=int)
        return (
            f"{self.user} ({self.transport}): lost {lost}, twice {twice}, in order: {in_order}, "
            f"{self.gaps} gaps"
        )

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


async def wrong_through(
    faults: Coroutine[None, None, None],
    clients: Sequence[Returning],
    backend: AIOKafkaProducer,
    topic: str,
) -> list[str]:
    """Publish to all clients in turn while faults go on; return in words what they got wrongly.

    A client of each user; 100 messages a second.
    """
    over = asyncio.Event()

    async def publish_steadily() -> None:
        for number in itertools.count():
            client = clients[number % len(clients)]
            client.sent.append(f"{number}")
            await backend.send(topic, b"%d" % number, key=client.user.encode())
            if over.is_set() and number % len(clients) == len(clients) - 1:
                break
            await asyncio.sleep(0.01)
        await backend.flush()

    async def fail() -> None:
        await faults
        over.set()

    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(client.run()) for client in clients]
        for client in clients:
            await asyncio.wait_for(client.open.wait(), 10.0)
        await asyncio.gather(publish_steadily(), fail())
        await eventually(
            lambda: all(client.got[-1:] == client.sent[-1:] for client in clients),
            "everybody has the last message",
            timeout_seconds=_SETTLE_SECONDS,
        )
        for task in running:
            task.cancel()
    return [client.wrong for client in clients if client.wrong]
