"""A node that leaves, leaves slowly: what a drain shows its balancer and each kind of client."""

import asyncio
import signal
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Final

import httpx
import pytest

from registry.redis_store import RedisRegistry
from tests.conformance.steps import is_registered, leave, until_gone
from tests.support.clients import (
    Ended,
    PollClient,
    Pusher,
    SseClient,
    WebSocketClient,
    bearer,
    connect,
    head,
    pusher_to,
    request,
    upgrade_headers,
    wire_to,
)
from tests.support.processes import INTERNAL_SECRET, GatewayProcess

pytestmark = pytest.mark.anyio

Start = Callable[..., GatewayProcess]

WINDOW: Final = 6.0
SETTLE: Final = 1.0
#: Of a short window, what is left for the farewell of those told last.
TOLD_BY: Final = 4.5
CROWD: Final = 28
GRACE: Final = 4.0
#: What a busy machine may add to any of these.
SLACK: Final = 0.7


async def open_v1(stack: AsyncExitStack, gateway: GatewayProcess, user: str) -> WebSocketClient:
    client = await stack.enter_async_context(connect("ws-v1", gateway.port, user))
    assert isinstance(client, WebSocketClient)
    return client


async def open_parked(stack: AsyncExitStack, gateway: GatewayProcess, user: str) -> PollClient:
    client = await stack.enter_async_context(connect("poll", gateway.port, user))
    assert isinstance(client, PollClient)
    await client.send(wait=30)
    await request(gateway.port, "GET", "/healthz")
    return client


class Leaving:
    """A gateway that was sent SIGTERM, and what should be seen of that."""

    def __init__(self, gateway: GatewayProcess, registry: RedisRegistry, pusher: Pusher) -> None:
        self.gateway = gateway
        self.registry = registry
        self.pusher = pusher
        self.began = time.monotonic()
        gateway.signal(signal.SIGTERM)

    @property
    def seconds(self) -> float:
        """How long the drain has been going on."""
        return time.monotonic() - self.began

    async def sees_new_clients(self, user: str) -> None:
        """Readyz is 503 at once; new clients are taken while that settles, and then refused."""
        while await asyncio.to_thread(self.gateway.readyz) != 503:
            assert self.seconds < SETTLE / 2, "readyz is 503 at once"
        taken = 0
        while await self._is_taken(user):
            taken += 1
            assert self.seconds < SETTLE + SLACK, "a node that has settled takes nobody"
        assert taken, "a node that settles still takes clients"
        assert self.seconds >= SETTLE
        credential = bearer(user)
        for path in ("/ws", "/sse", "/poll"):
            async with wire_to(self.gateway.port) as wire:
                headers = upgrade_headers() if path == "/ws" else {}
                await wire.send(head("GET", path, {**headers, **credential}))
                answer = await wire.answer()
                assert answer.status == 503
                assert 1 <= int(answer.headers["retry-after"]) <= 10
                assert answer.headers["connection"] == "close"
                await wire.ended()
        accepts = {"Accept": "text/event-stream", **credential}
        answer = await request(self.gateway.port, "GET", "/sse", accepts)
        assert (answer.status, answer.body[:6]) == (200, b"retry:")

    async def _is_taken(self, user: str) -> bool:
        async with wire_to(self.gateway.port) as wire:
            await wire.send(head("GET", "/ws", {**upgrade_headers(), **bearer(user)}))
            return (await wire.answer(bodiless=True)).status == 101

    async def tells(self, client: WebSocketClient) -> float:
        """Return when, in seconds of the drain, a client was told to reconnect."""
        told = await client.control(timeout=WINDOW + SLACK)
        assert told.keys() - {"cursor"} == {"control", "after_ms", "code"}
        assert ("cursor" in told) is (client.subprotocol == "pushgate.v1")
        assert (told["control"], told["code"]) == ("reconnect", 1001)
        assert 0 <= told["after_ms"] <= WINDOW * 1_000
        return self.seconds

    async def tells_one_that_goes(self, client: WebSocketClient) -> float:
        """Tell a client, see it close first, and return when it was told."""
        told_at = await self.tells(client)
        await leave(client)
        return told_at

    async def delivers_meanwhile(self, client: WebSocketClient, user: str, other: str) -> None:
        """A client that was told gets its messages until it goes, and then its entry goes."""
        await self.tells(client)
        for number in range(3):
            await self.pusher.push_one(user, b"%d" % number)
            assert (await client.message()).payload == b"%d" % number
        assert await is_registered(self.registry, user)
        await leave(client)
        await until_gone(self.registry, user)
        assert await is_registered(self.registry, other), "who has not left yet keeps an entry"
        assert self.seconds < TOLD_BY
        assert await self.pusher.push([{"user": user, "data": "x"}]) == [0]

    async def closes_one_that_stays(self, client: WebSocketClient, user: str) -> float:
        """Close a client that was told and stays, which does not answer that; return when."""
        told_at = await self.tells(client)
        await self.pusher.push_one(user, b"still here")
        assert (await client.message()).payload == b"still here"
        with pytest.raises(Ended) as ended:
            await client.message(timeout=WINDOW)
        assert ended.value.code == 1001
        assert self.seconds <= min(told_at + GRACE, WINDOW) + SLACK
        return self.seconds

    async def closes_plain(self, client: WebSocketClient) -> None:
        """What has no control frames gets its Close frame when its turn has come."""
        ended = await client.ended(timeout=TOLD_BY + SLACK)
        assert (ended.code, ended.reason) == (1001, "node is leaving")
        assert self.seconds >= SETTLE

    async def ends_stream(self, client: SseClient) -> None:
        """An event stream is told by an event, and ends where its client stays."""
        told = await client.control(timeout=TOLD_BY + SLACK)
        assert (told["control"], told["code"]) == ("reconnect", 1001)
        assert told["after_ms"] >= 0
        assert client.retry_ms is not None
        closed = await client.control(timeout=GRACE + SLACK)
        assert (closed["control"], closed["code"]) == ("close", 1001)
        await client.wire.ended()

    async def answers_poll(self, client: PollClient) -> None:
        """A parked poll is answered when its turn has come, long before its wait ends."""
        answer = await client.take(timeout=TOLD_BY + SLACK)
        assert answer.headers["connection"] == "close"
        assert not client.waiting
        await client.wire.ended()

    async def keeps_polling(self, client: PollClient, user: str) -> None:
        """A client that polls again and again stays until its turn, and misses nothing."""
        sent: list[bytes] = []
        answer = client.answer
        while answer.headers.get("connection") != "close":
            sent.append(b"%d" % len(sent))
            await self.pusher.push_one(user, sent[-1])
            for wait in (0.0, 0.1):  # answered at once, and parked
                if answer.headers.get("connection") != "close":
                    await client.send(wait=wait)
                    answer = await client.take()
        assert SETTLE <= self.seconds <= TOLD_BY + SLACK
        assert [message.payload for message in client.waiting] == sent
        await client.wire.ended()


async def test_a_drain_tells_everybody_over_its_window_and_leaves_in_time(
    start_gateway: Start, registry: RedisRegistry, user: str
) -> None:
    gateway = start_gateway(drain_seconds=WINDOW, drain_settle_seconds=SETTLE)
    async with AsyncExitStack() as stack:
        # In this order they are told.
        reading = await open_v1(stack, gateway, f"{user}-reading")
        early = await open_v1(stack, gateway, f"{user}-early")
        plain = await stack.enter_async_context(connect("ws-plain", gateway.port, f"{user}-plain"))
        stream = await stack.enter_async_context(connect("sse", gateway.port, f"{user}-sse"))
        poll = await open_parked(stack, gateway, f"{user}-poll")
        polling = await stack.enter_async_context(connect("poll", gateway.port, f"{user}-polls"))
        assert isinstance(polling, PollClient)
        crowd = [await open_v1(stack, gateway, f"{user}-{n}") for n in range(CROWD)]
        late = await open_v1(stack, gateway, f"{user}-late")
        assert isinstance(plain, WebSocketClient)
        assert isinstance(stream, SseClient)
        pusher = await stack.enter_async_context(pusher_to(gateway.internal_port))
        leaving = Leaving(gateway, registry, pusher)
        async with asyncio.TaskGroup() as group:
            group.create_task(leaving.sees_new_clients(f"{user}-new"))
            group.create_task(
                leaving.delivers_meanwhile(reading, f"{user}-reading", f"{user}-late")
            )
            group.create_task(leaving.closes_plain(plain))
            group.create_task(leaving.ends_stream(stream))
            group.create_task(leaving.answers_poll(poll))
            group.create_task(leaving.keeps_polling(polling, f"{user}-polls"))
            telling = [group.create_task(leaving.tells_one_that_goes(one)) for one in crowd]
            staying = group.create_task(leaving.closes_one_that_stays(early, f"{user}-early"))
            refusing = group.create_task(leaving.closes_one_that_stays(late, f"{user}-late"))
        assert staying.result() < WINDOW
        assert refusing.result() > WINDOW - SLACK
        check_pace([task.result() for task in telling])
        assert await asyncio.to_thread(gateway.wait, WINDOW + 5.0 - leaving.seconds) == 0


def check_pace(times: list[float]) -> None:
    """Check that clients were told evenly, and in no burst."""
    assert min(times) >= SETTLE
    assert max(times) <= TOLD_BY + SLACK
    assert max(times) - min(times) >= (TOLD_BY - SETTLE) / 2
    for start in times:
        at_once = sum(start <= moment < start + 0.5 for moment in times)
        assert at_once <= CROWD / 2, sorted(times)


async def test_a_drain_keeps_to_its_rate_and_closes_those_it_did_not_come_to(
    start_gateway: Start, user: str
) -> None:
    gateway = start_gateway(drain_seconds=4, drain_settle_seconds=1, drain_rate=2)
    async with AsyncExitStack() as stack:
        clients = [await open_v1(stack, gateway, f"{user}-{n}") for n in range(20)]
        gateway.signal(signal.SIGTERM)
        told = await asyncio.gather(*(was_told(client) for client in clients))
        assert 4 <= sum(told) <= 7  # three seconds of two each, and one at the first tick
        assert await asyncio.to_thread(gateway.wait, 9.0) == 0


async def was_told(client: WebSocketClient) -> bool:
    """Tell whether a client is told before it is closed; it goes either way."""
    try:
        await client.control(timeout=6.0)
    except Ended:
        return False
    await leave(client)
    return True


def by_sigterm(gateway: GatewayProcess) -> None:
    gateway.signal(signal.SIGTERM)


def by_request(gateway: GatewayProcess) -> None:
    with httpx.Client(trust_env=False) as http:
        answer = http.post(
            f"http://127.0.0.1:{gateway.internal_port}/drain",
            headers={"Authorization": f"Bearer {INTERNAL_SECRET}"},
        )
        assert answer.status_code == 202


@pytest.mark.parametrize("drain", [by_sigterm, by_request])
async def test_asked_twice_a_node_leaves_at_once(
    start_gateway: Start, user: str, drain: Callable[[GatewayProcess], None]
) -> None:
    gateway = start_gateway(drain_seconds=600, drain_settle_seconds=600)
    async with AsyncExitStack() as stack:
        v1 = await open_v1(stack, gateway, f"{user}-v1")
        plain = await stack.enter_async_context(connect("ws-plain", gateway.port, user))
        stream = await stack.enter_async_context(connect("sse", gateway.port, user))
        poll = await open_parked(stack, gateway, user)
        drain(gateway)
        while gateway.readyz() != 503:
            assert gateway.returncode is None
        async with connect("ws-v1", gateway.port, user):
            assert gateway.returncode is None  # it settles, for minutes
        began = time.monotonic()
        drain(gateway)
        assert isinstance(stream, SseClient)
        ends = await asyncio.gather(v1.ended(), plain.ended())
        assert [end.code for end in ends] == [1001, 1001]
        assert (await stream.control())["code"] == 1001
        await stream.wire.ended()
        assert (await poll.take()).headers["connection"] == "close"
        assert await asyncio.to_thread(gateway.wait, 5.0) == 0
        assert time.monotonic() - began < 5.0
