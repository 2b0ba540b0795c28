"""The next gateway process takes over from the running one, and no client notices."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from processor.sending.forward import Forwarder
from processor.sending.reach import Reach
from registry.calls import GatewayCalls
from registry.directory import Node
from registry.message import Push
from tests.support.clients import Client, connect, eventually, pusher_to, request
from tests.support.processes import INTERNAL_SECRET, GatewayProcess
from tests.support.valkey import RedisServer

pytestmark = pytest.mark.anyio

KINDS: Final = ("ws", "ws-v1", "sse", "poll")
SECRET: Final = {"Authorization": f"Bearer {INTERNAL_SECRET}"}

_numbers = itertools.count(1)


class Successions:
    """Gateway processes of one node, each of which takes over from the one before."""

    def __init__(self, stack: ExitStack, redis_url: str, folder: Path) -> None:
        self._stack = stack
        self._redis_url = redis_url
        self._path = folder / "takeover"
        self._made: GatewayProcess | None = None

    def make(self, **settings: object) -> GatewayProcess:
        """Give a further process of the node, for the test to start."""
        given = {"takeover_socket": self._path} | settings
        process = GatewayProcess(f"heir-{next(_numbers)}", redis_url=self._redis_url, **given)
        if self._made is not None:
            for name in ("HOST", "PORT", "INTERNAL_PORT", "NODE_NAME"):
                process.env[f"PUSHGATE_{name}"] = self._made.env[f"PUSHGATE_{name}"]
            process.port = self._made.port
            process.internal_port = process.operators_port = self._made.internal_port
        self._made = process
        self._stack.callback(process.close)
        return process

    def start(self, **settings: object) -> GatewayProcess:
        """Start a process of the node; it is ready."""
        return self.make(**settings).start()


@pytest.fixture
def successions(valkey: RedisServer, tmp_path: Path) -> Iterator[Successions]:
    with ExitStack() as stack:
        yield Successions(stack, valkey.url, tmp_path)


@asynccontextmanager
async def forwarding() -> AsyncIterator[Forwarder]:
    forwarder = Forwarder(Reach(GatewayCalls(secret=INTERNAL_SECRET)), timeout_seconds=10.0)
    yield forwarder
    await forwarder.close()


async def node_of(gateway: GatewayProcess) -> Node:
    """Give the node as it registers itself."""
    listing = (await request(gateway.internal_port, "GET", "/connections", SECRET)).json
    return Node(listing["node"], listing["epoch"], f"127.0.0.1:{gateway.internal_port}")


class Flow:
    """Messages to all users, one after the other, for as long as it goes on."""

    def __init__(self, forwarder: Forwarder, node: Node, users: list[str]) -> None:
        self._forwarder = forwarder
        self._node = node
        self._users = users
        self.sent = 0
        self._going = True

    async def run(self) -> None:
        while self._going:
            pushes = [Push(user, b"%d" % self.sent, f"{self.sent}") for user in self._users]
            answer = await self._forwarder.forward(self._node, pushes)
            assert answer == [1] * len(pushes), answer
            self.sent += 1
            await asyncio.sleep(0.002)

    def stop(self) -> None:
        self._going = False


async def numbers_of(client: Client, count: int) -> list[int]:
    return [int((await client.message(10.0)).payload) for _ in range(count)]


async def test_every_kind_of_connection_is_taken_over_under_a_flow_of_messages(
    successions: Successions,
) -> None:
    first = successions.start()
    async with AsyncExitStack() as stack:
        clients = {
            f"user-{kind}-{number}": await stack.enter_async_context(
                connect(kind, first.port, f"user-{kind}-{number}")
            )
            for kind in KINDS
            for number in range(10)
        }
        forwarder = await stack.enter_async_context(forwarding())
        node = await node_of(first)
        flow = Flow(forwarder, node, list(clients))
        async with asyncio.TaskGroup() as tasks:
            flowing = tasks.create_task(flow.run())
            await eventually(lambda: flow.sent > 20, "messages flow")
            second = successions.make()
            await asyncio.to_thread(second.start)
            assert await asyncio.to_thread(first.wait, 10.0) == 0, first.log
            before = flow.sent
            await eventually(lambda: flow.sent > before + 20, "messages flow on")
            flow.stop()
            await flowing
        assert await node_of(second) == node
        for user, client in clients.items():
            assert await numbers_of(client, flow.sent) == list(range(flow.sent)), user
        async with pusher_to(second.internal_port) as pusher:
            assert await pusher.connections() == len(clients)
            assert await pusher.opened() == 0
