"""How connections end that the client does not end: silence, slowness, and a node that leaves."""

import asyncio
import json
import signal
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

import httpx
import pytest

from registry.redis_store import RedisRegistry, _key
from tests.conformance.steps import is_registered, until_gone
from tests.support.clients import (
    PING,
    TEXT,
    TRANSPORTS,
    Client,
    Ended,
    PollClient,
    Pusher,
    SseClient,
    WebSocketClient,
    bearer,
    connect,
    eventually,
    pusher_to,
    request,
)
from tests.support.processes import GatewayProcess

pytestmark = pytest.mark.anyio

Start = Callable[..., GatewayProcess]


@pytest.fixture(scope="module")
def quick(start_gateway: Start) -> GatewayProcess:
    """Give a gateway with a fast pulse."""
    return start_gateway(heartbeat_seconds=0.5, heartbeat_timeout_seconds=0.5)


@pytest.fixture(scope="module")
def narrow(start_gateway: Start) -> GatewayProcess:
    """Give a gateway that lets little wait for a client, and not for long."""
    return start_gateway(send_buffer_bytes=65_536, heartbeat_timeout_seconds=3.0)


@pytest.mark.parametrize("stream", ["ws-plain", "ws-v1"])
async def test_a_client_that_answers_no_ping_is_cut_and_its_entry_removed(
    quick: GatewayProcess, registry: RedisRegistry, stream: str, user: str
) -> None:
    async with connect(stream, quick.port, user, answers_pings=False) as client:
        began = time.monotonic()
        with pytest.raises(Ended):
            await client.message(timeout=4.0)
        assert time.monotonic() - began < 3.0
        assert isinstance(client, WebSocketClient)
        assert client.pings == 1
        await until_gone(registry, user)


@pytest.mark.parametrize("stream", ["ws-plain", "ws-v1"])
async def test_a_client_that_answers_pings_stays(
    quick: GatewayProcess, registry: RedisRegistry, stream: str, user: str
) -> None:
    async with connect(stream, quick.port, user) as client, pusher_to(quick.internal_port) as push:
        assert isinstance(client, WebSocketClient)
        with pytest.raises(TimeoutError):
            await client.message(timeout=3.0)
        assert client.pings >= 3
        assert (client.heartbeats >= 3) is (stream == "ws-v1"), "a page sees no Ping"
        assert await is_registered(registry, user)
        await push.push_one(user, b"still here")
        assert (await client.message()).payload == b"still here"


async def test_pings_are_within_the_heartbeat(quick: GatewayProcess, user: str) -> None:
    async with connect("ws-plain", quick.port, user) as client:
        assert isinstance(client, WebSocketClient)
        assert (await client.frame(timeout=1.0))[0] == PING


async def test_a_page_is_told_of_the_heartbeat_first_and_then_sees_each(
    quick: GatewayProcess, user: str
) -> None:
    async with connect("ws-v1", quick.port, user) as client:
        assert isinstance(client, WebSocketClient)
        first = [await client.frame(timeout=1.0) for _ in range(3)]
    hello, heartbeat = {"control": "hello", "heartbeat_ms": 500}, {"control": "heartbeat"}
    assert [opcode for opcode, _, _ in first] == [TEXT, PING, TEXT]
    forms = [json.loads(payload) for _, payload, _ in (first[0], first[2])]
    cursors = [form.pop("cursor") for form in forms]
    assert forms == [hello, heartbeat]
    assert all(int(cursor, 36) for cursor in cursors), "a time, and no message yet"


async def test_an_event_stream_gets_heartbeats_and_stays(quick: GatewayProcess, user: str) -> None:
    async with connect("sse", quick.port, user) as client, pusher_to(quick.internal_port) as push:
        assert isinstance(client, SseClient)
        with pytest.raises(TimeoutError):
            await client.message(timeout=4.0)
        assert client.heartbeat_ms == 500
        assert client.heartbeats >= 3
        assert client.last_event_id is not None
        assert int(client.last_event_id, 36)
        await push.push_one(user, b"still here")
        assert (await client.message()).payload == b"still here"


async def test_a_poll_outlasts_heartbeats(quick: GatewayProcess, user: str) -> None:
    async with connect("poll", quick.port, user) as client, pusher_to(quick.internal_port) as push:
        assert isinstance(client, PollClient)
        await client.send(wait=30)
        with pytest.raises(TimeoutError):
            await client.wire.exactly(1, timeout=1.5)
        await push.push_one(user, b"still here")
        assert (await client.message()).payload == b"still here"


async def until_refused(push: Pusher, user: str, payload: bytes) -> int:
    """Push until the gateway has no room for the user; give how many bytes it took."""
    taken = 0
    async with asyncio.timeout(20):
        while await push.push([{"user": user, "data": payload}], packed=True) == [1]:
            taken += len(payload)
    return taken


@pytest.mark.parametrize("stream", ["ws-plain", "ws-v1", "sse"])
async def test_a_client_that_never_reads_is_cut_and_others_get_their_messages(
    narrow: GatewayProcess, registry: RedisRegistry, stream: str, user: str
) -> None:
    other = f"{user}-other"
    async with (
        connect(stream, narrow.port, user, receive_buffer_bytes=8_192),
        connect(stream, narrow.port, other) as reading,
        pusher_to(narrow.internal_port) as push,
    ):
        taken = await until_refused(push, user, b"x" * 32_768)
        # What the kernel takes for a peer that does not read, and the bound of our own.
        assert taken < 8 * 1024 * 1024
        for _ in range(3):
            again = await push.push([{"user": user, "data": "x" * 32_768}])
            assert again == [{"error": "overloaded"}]
        await until_gone(registry, user)
        assert await push.push([{"user": user, "data": "x"}]) == [0]
        for number in range(10):
            await push.push_one(other, b"%d" % number)
            assert (await reading.message(timeout=1.0)).payload == b"%d" % number


async def test_a_slow_connection_does_not_cost_the_users_other_one(
    narrow: GatewayProcess, user: str
) -> None:
    async with (
        connect("ws-plain", narrow.port, user, receive_buffer_bytes=8_192),
        connect("ws-plain", narrow.port, user) as reading,
        pusher_to(narrow.internal_port) as push,
    ):
        for number in range(300):
            (took,) = await push.push(
                [{"user": user, "data": b"%05d" % number * 6_000}], packed=True
            )
            assert took in (1, 2, {"taken": 1, "overloaded": 1})
            assert (await reading.message()).payload[:5] == b"%05d" % number
        assert took in (1, {"taken": 1, "overloaded": 1})


async def opened(stack: AsyncExitStack, gateway: GatewayProcess, user: str) -> list[Client]:
    """Connect once by each transport; the poll is parked."""
    clients = [
        await stack.enter_async_context(connect(transport, gateway.port, f"{user}-{transport}"))
        for transport in TRANSPORTS
    ]
    poll = clients[-1]
    assert isinstance(poll, PollClient)
    await poll.send(wait=30)
    await request(gateway.port, "GET", "/healthz")
    return clients


def by_sigterm(gateway: GatewayProcess) -> None:
    gateway.signal(signal.SIGTERM)


def by_request(gateway: GatewayProcess) -> None:
    with httpx.Client(trust_env=False) as http:
        address = f"http://127.0.0.1:{gateway.internal_port}/drain"
        assert http.post(address).status_code == 401
        secret = gateway.env["PUSHGATE_INTERNAL_SECRET"]
        answer = http.post(address, headers={"Authorization": f"Bearer {secret}"})
        assert answer.is_success


@pytest.mark.parametrize("drain", [by_sigterm, by_request])
async def test_a_drain_ends_every_client_in_its_way_and_exits_0(
    start_gateway: Start,
    registry: RedisRegistry,
    user: str,
    drain: Callable[[GatewayProcess], None],
) -> None:
    gateway = start_gateway()
    async with AsyncExitStack() as stack:
        clients = await opened(stack, gateway, user)
        began = time.monotonic()
        drain(gateway)
        plain, v1, sse, poll = await asyncio.gather(*(client.ended() for client in clients))
        assert (plain.code, v1.code) == (1001, 1001)
        assert (sse.code, poll.code) == (None, None)
        assert isinstance(clients[2], SseClient)
        assert clients[2].retry_ms is not None
    assert await asyncio.to_thread(gateway.wait, 10.0) == 0
    assert time.monotonic() - began < 5.0
    await registry.refresh()
    found = await registry.lookup([f"{user}-{transport}" for transport in TRANSPORTS])
    assert not any(found)


async def test_a_drain_leaves_no_entry_in_the_registry_itself(
    start_gateway: Start, registry: RedisRegistry, user: str
) -> None:
    gateway = start_gateway()
    async with connect("sse", gateway.port, user):
        assert await is_registered(registry, user)
        await asyncio.to_thread(gateway.terminate)
    await registry.refresh()
    assert gateway.name not in {node.name for node in registry._table.live}
    assert (await registry._read([_key(user)])).entries == [None]


async def test_readyz_is_503_while_a_client_refuses_to_leave_and_the_exit_comes_all_the_same(
    start_gateway: Start, user: str
) -> None:
    gateway = start_gateway()
    async with connect("ws-plain", gateway.port, user):  # which never answers the Close frame
        gateway.signal(signal.SIGTERM)
        await eventually(lambda: gateway.readyz() == 503, "readyz is 503")
        assert (await request(gateway.internal_port, "GET", "/healthz")).status == 200
        assert await asyncio.to_thread(gateway.wait, 10.0) == 0


async def test_a_push_into_a_draining_node_says_not_here(start_gateway: Start, user: str) -> None:
    gateway = start_gateway()
    async with connect("ws-plain", gateway.port, user), pusher_to(gateway.internal_port) as push:
        gateway.signal(signal.SIGTERM)
        await eventually(lambda: gateway.readyz() == 503, "readyz is 503")
        assert await push.push([{"user": user, "data": "x"}]) == [0]


async def test_a_gateway_ends_at_once_while_nobody_is_there(start_gateway: Start) -> None:
    gateway = start_gateway()
    began = time.monotonic()
    assert await asyncio.to_thread(gateway.terminate) == 0
    assert time.monotonic() - began < 2.0


async def test_a_gateway_with_a_half_sent_request_ends_in_time(start_gateway: Start) -> None:
    gateway = start_gateway()
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"GET /sse HTTP/1.1\r\nHost:")
    await writer.drain()
    assert await asyncio.to_thread(gateway.terminate) == 0
    writer.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_killed_gateway_comes_back_under_its_name_and_serves(
    start_gateway: Start, registry: RedisRegistry, user: str, transport: str
) -> None:
    gateway = start_gateway()
    async with connect(transport, gateway.port, user):
        await asyncio.to_thread(gateway.kill)
    await asyncio.to_thread(gateway.start)
    assert not await is_registered(registry, user)  # an earlier epoch's entry does not count
    async with connect(transport, gateway.port, user) as client:
        assert await is_registered(registry, user)
        async with pusher_to(gateway.internal_port) as push:
            await push.push_one(user, b"after")
            assert (await client.message()).payload == b"after"


async def test_a_token_is_in_no_log_line(start_gateway: Start, user: str) -> None:
    gateway = start_gateway()
    credential = bearer(user)["Authorization"].removeprefix("Bearer ")
    await request(gateway.port, "GET", f"/poll?wait=0&token={credential}")
    await request(gateway.port, "GET", f"/poll?wait=0&token=x{credential}")
    await asyncio.to_thread(gateway.terminate)
    assert credential not in gateway.log
