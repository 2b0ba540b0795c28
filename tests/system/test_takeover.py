"""The next gateway process takes over from the running one, and no client notices."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from processor.sending.forward import Forwarder
from processor.sending.reach import Reach
from registry.calls import GatewayCalls
from registry.directory import Node
from registry.message import Push
from registry.redis_store import RedisRegistry
from tests.support.clients import (
    TEXT,
    Client,
    Ended,
    PollClient,
    WebSocketClient,
    connect,
    eventually,
    frame,
    pusher_to,
    request,
    token,
)
from tests.support.processes import INTERNAL_SECRET, START_SECONDS, GatewayProcess
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
        self._first: GatewayProcess | None = None

    def make(self, **settings: object) -> GatewayProcess:
        """Give a further process of the node, for the test to start."""
        given = {"takeover_socket": self._path} | settings
        process = GatewayProcess(f"heir-{next(_numbers)}", redis_url=self._redis_url, **given)
        if self._first is None:
            self._first = process
        for name in ("PORT", "INTERNAL_PORT", "NODE_NAME"):
            process.env[f"PUSHGATE_{name}"] = self._first.env[f"PUSHGATE_{name}"]
        process.port = self._first.port
        process.internal_port = process.operators_port = self._first.internal_port
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
        await until_logged(second, "taken over from the earlier gateway process")
        assert await node_of(second) == node
        assert await metric(second, "pushgate_gateway_registry_reasserted_total") == 0
        assert await metric(second, 'pushgate_gateway_registry_seconds_count{call="write"}') == 0
        assert await metric(second, "pushgate_gateway_taken_over_connections") >= len(clients)
        assert 0 < await metric(second, "pushgate_gateway_takeover_seconds") < 5
        assert 0 < await metric(second, "pushgate_gateway_takeover_longest_pause_seconds") < 1
        for user, client in clients.items():
            assert await numbers_of(client, flow.sent) == list(range(flow.sent)), user
        async with pusher_to(second.internal_port) as pusher:
            assert await pusher.connections() == len(clients)
            assert await pusher.opened() == 0


async def metric(gateway: GatewayProcess, name: str) -> float:
    """Give the sum of a metric's samples."""
    text = (await request(gateway.internal_port, "GET", "/metrics")).body.decode()
    rows = [row for row in text.splitlines() if row.startswith((f"{name} ", f"{name}{{"))]
    assert rows, name
    return sum(float(row.split()[-1]) for row in rows)


async def until_logged(gateway: GatewayProcess, words: str) -> None:
    await eventually(lambda: words in gateway.log, words, timeout_seconds=20.0)


async def test_what_is_half_way_goes_along(successions: Successions) -> None:
    """A frame that is half here, bytes that wait for a client, and polls, parked or in between."""
    first = successions.start()
    async with AsyncExitStack() as stack:
        speaker = await stack.enter_async_context(connect("ws-v1", first.port, "speaker"))
        reader = await stack.enter_async_context(
            connect("ws", first.port, "reader", receive_buffer_bytes=4_096)
        )
        parked = await stack.enter_async_context(connect("poll", first.port, "parked"))
        resting = await stack.enter_async_context(connect("poll", first.port, "resting"))
        assert isinstance(speaker, WebSocketClient)
        assert isinstance(parked, PollClient)
        assert isinstance(resting, PollClient)
        refresh = b'{"control": "refresh", "token": "%s"}' % token("speaker").encode()
        refresh = frame(TEXT, refresh)
        await speaker.wire.send(refresh[:50])
        async with pusher_to(first.internal_port) as pusher:
            for number in range(4):
                await pusher.push_one("reader", b"x" * (60_000 + number))
            await pusher.push_one("resting", b"before")
        await parked.send(wait=20.0)
        second = successions.make()
        await asyncio.to_thread(second.start)
        assert await asyncio.to_thread(first.wait, 10.0) == 0
        await speaker.wire.send(refresh[50:])
        assert (await speaker.control())["control"] == "refreshed"
        async with pusher_to(second.internal_port) as pusher:
            for user in ("reader", "parked", "resting"):
                await pusher.push_one(user, b"behind")
        sizes = [len((await reader.message()).payload) for _ in range(5)]
        assert sizes == [60_000, 60_001, 60_002, 60_003, len(b"behind")]
        assert (await parked.message()).payload == b"behind"
        assert [(await resting.message()).payload for _ in range(2)] == [b"before", b"behind"]
        assert parked.gaps == resting.gaps == 0


async def test_what_a_process_can_not_pass_is_drained_and_gets_messages_meanwhile(
    successions: Successions,
) -> None:
    first = successions.start(wire="transport", drain_seconds=8, reconnect_delay_seconds=1)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(connect("ws-v1", first.port, "alice"))
        assert isinstance(client, WebSocketClient)
        second = successions.make(reconnect_delay_seconds=1)
        await asyncio.to_thread(second.start)
        await until_logged(second, "gateway starts")
        forwarder = await stack.enter_async_context(forwarding())
        node = await node_of(second)
        assert await forwarder.forward(node, [Push("alice", b"one", "1")]) == [1]
        assert (await client.message()).payload == b"one"
        assert (await client.next(15.0))["control"] == "reconnect"  # type: ignore[index]
        again = await stack.enter_async_context(connect("ws-v1", first.port, "alice"))
        assert await forwarder.forward(node, [Push("alice", b"two", "2")]) == [2]
        assert (await client.message()).payload == b"two"
        assert (await again.message()).payload == b"two"
        await client.wire.close()
        assert await asyncio.to_thread(first.wait, 15.0) == 0
        assert await forwarder.forward(node, [Push("alice", b"three", "3")]) == [1]
        assert (await again.message()).payload == b"three"
        assert await metric(second, "pushgate_gateway_takeover_drained_users") == 1


def test_a_stale_path_is_no_take_over(successions: Successions) -> None:
    first = successions.start()
    first.kill()
    second = successions.start()
    assert "taken over" not in second.log


async def test_a_process_that_can_not_take_over_ends_and_the_earlier_one_goes_on(
    successions: Successions,
) -> None:
    first = successions.start()
    async with connect("ws", first.port, "alice") as client, pusher_to(first.internal_port) as push:
        for settings, through, words in (
            ({"PUSHGATE_PORT": "1"}, (), "PUSHGATE_PORT is 1, and"),
            ({"PUSHGATE_NODE_NAME": "another"}, (), "this would be node another at"),
            ({}, ("prlimit", "--nofile=80:80"), "descriptors are needed, and the next process has"),
        ):
            heir = successions.make()
            heir.env |= settings
            heir.through = through
            heir.start(until_ready=False)
            assert await asyncio.to_thread(heir.wait, 10.0) == 1
            assert words in heir.log
            await push.push_one("alice", words.encode())
            assert (await client.message()).payload == words.encode()
        assert "no take-over; this process goes on" in first.log


CROWD: Final = 120
#: Clients who do not come back.
LEAVERS: Final = 30


class Returning:
    """A client of `pushgate.v1` that comes back with its cursor whenever its connection ends."""

    def __init__(self, port: int, user: str) -> None:
        self.user = user
        self.got: list[int] = []
        self.reconnects = -1
        self._port = port
        self._goes_on = True

    def stop(self, running: asyncio.Task[None]) -> None:
        """End, also where a time-out at the same moment takes the cancellation away."""
        self._goes_on = False
        running.cancel()

    async def run(self) -> None:
        cursor: str | None = None
        while self._goes_on:
            with contextlib.suppress(OSError, Ended, AssertionError, TimeoutError):
                async with connect("ws-v1", self._port, self.user, cursor=cursor) as client:
                    assert isinstance(client, WebSocketClient)
                    self.reconnects += 1
                    cursor = client.cursor or cursor
                    while True:
                        message = await client.message(60.0)
                        cursor = message.cursor or cursor
                        self.got.append(int(message.payload))
            await asyncio.sleep(0.1)


async def here(gateway: GatewayProcess, users: list[str]) -> int:
    """Give how many of the users have a connection on a gateway."""
    asked = [request(gateway.internal_port, "GET", f"/push/{user}", SECRET) for user in users]
    return sum(answer.status == 200 for answer in await asyncio.gather(*asked))


def end_in_the_middle(
    earlier: GatewayProcess, ending: GatewayProcess, end: Callable[[GatewayProcess], None]
) -> None:
    """End a process as soon as the earlier one hands over: in a thread, for it takes some 20 ms."""
    deadline = time.monotonic() + START_SECONDS
    while "the next gateway process takes over" not in earlier.log:
        assert time.monotonic() < deadline, earlier.log
        time.sleep(0.000_5)
    end(ending)


@pytest.mark.parametrize("end", [GatewayProcess.kill, GatewayProcess.freeze], ids=["dead", "hung"])
@pytest.mark.parametrize("whose", ["next", "earlier"])
async def test_when_one_of_the_two_ends_in_the_middle_the_other_is_the_node(
    successions: Successions, valkey: RedisServer, whose: str, end: Callable[[GatewayProcess], None]
) -> None:
    first = successions.start()
    clients = [Returning(first.port, f"user-{number}") for number in range(CROWD)]
    async with AsyncExitStack() as stack:
        running = [asyncio.create_task(client.run()) for client in clients]
        stack.push_async_callback(asyncio.wait, running, timeout=10.0)
        for client, task in zip(clients, running, strict=True):
            stack.callback(client.stop, task)
        node = await node_of(first)
        leavers = [f"leaver-{number}" for number in range(LEAVERS)]
        for user in leavers:
            await stack.enter_async_context(connect("sse", first.port, user))

        async def connections(of: GatewayProcess) -> int:
            async with pusher_to(of.internal_port) as pusher:
                return await pusher.connections()

        async def all_are_on(process: GatewayProcess) -> bool:
            return await connections(process) == CROWD + await here(process, leavers)

        await eventually(lambda: all_are_on(first), "all are connected", timeout_seconds=20.0)
        second = successions.make()
        second.start(until_ready=False)
        ending, staying = (second, first) if whose == "next" else (first, second)
        await asyncio.to_thread(end_in_the_middle, first, ending, end)
        words = "this process goes on" if whose == "next" else "ended in the take-over"
        await until_logged(staying, words)
        await eventually(lambda: ending.returncode == -signal.SIGKILL, "its end")
        await eventually(lambda: all_are_on(staying), "all are back", timeout_seconds=20.0)
        assert await node_of(staying) == node
        forwarder = await stack.enter_async_context(forwarding())
        pushes = [Push(client.user, b"1", f"{client.user}-1") for client in clients]
        assert await forwarder.forward(node, pushes) == [1] * CROWD
        await eventually(lambda: all(client.got == [1] for client in clients), "all have it")
        registry = RedisRegistry(valkey.url)
        stack.push_async_callback(registry.close)
        await registry.refresh()
        nodes = await registry.lookup([client.user for client in clients])
        assert nodes == [(node,)] * CROWD

        async def no_phantoms() -> bool:
            found = await registry.lookup(leavers)
            return found.count((node,)) == await here(staying, leavers) == LEAVERS - found.count(())

        await eventually(no_phantoms, "who has left is in no entry")
    third = successions.make()
    await asyncio.to_thread(third.start)
    assert await asyncio.to_thread(staying.wait, 10.0) == 0
