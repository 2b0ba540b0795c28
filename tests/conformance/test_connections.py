"""Who gets a message, and what the registry says of them, on every transport."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest

from pushgate.embedded import LOOPBACK
from registry.redis_store import RedisRegistry
from tests.conformance.steps import metric
from tests.support.clients import (
    Pusher,
    bearer,
    connect,
    eventually,
    head,
    open_sse,
    open_websocket,
    pusher_to,
    upgrade_headers,
    wire_to,
)
from tests.support.processes import GatewayProcess

pytestmark = pytest.mark.anyio


async def nodes_of(registry: RedisRegistry, user: str) -> list[str]:
    """Give the names of the nodes that a processor would forward to."""
    await registry.refresh()
    (nodes,) = await registry.lookup([user])
    return [node.name for node in nodes or ()]


async def until_gone(registry: RedisRegistry, user: str) -> None:
    async def gone() -> bool:
        return await nodes_of(registry, user) == []

    await eventually(gone, f"no entry of {user} is left")


async def test_every_connection_of_a_user_gets_each_message(
    gateway: GatewayProcess, pusher: Pusher, transport: str, user: str
) -> None:
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(connect(transport, gateway.port, user))
            for _ in range(3)
        ]
        assert await pusher.push([{"user": user, "data": "to all"}]) == [3]
        assert [(await client.message()).payload for client in clients] == [b"to all"] * 3


async def test_a_user_on_every_transport_gets_each_message_on_each(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(connect(transport, gateway.port, user))
            for transport in ("ws-plain", "ws-v1", "sse", "poll")
        ]
        assert await pusher.push([{"user": user, "data": "to all", "id": "1"}]) == [4]
        assert [(await client.message()).payload for client in clients] == [b"to all"] * 4


async def test_nobody_gets_what_is_for_somebody_else(
    gateway: GatewayProcess, pusher: Pusher, transport: str, user: str
) -> None:
    other = f"{user}-other"
    async with (
        connect(transport, gateway.port, user) as client,
        connect(transport, gateway.port, other) as stranger,
    ):
        await pusher.push_one(other, b"not yours")
        await pusher.push_one(user, b"yours")
        assert (await client.message()).payload == b"yours"
        assert (await stranger.message()).payload == b"not yours"


async def test_a_message_for_one_device_reaches_it_alone(
    gateway: GatewayProcess, pusher: Pusher, transport: str, user: str
) -> None:
    async with (
        connect(transport, gateway.port, user, device="phone") as phone,
        connect(transport, gateway.port, user, device="desk") as desk,
        connect(transport, gateway.port, user) as nameless,
    ):
        results = await pusher.push(
            [{"user": user, "data": "one", "device": "phone"}, {"user": user, "data": "all"}]
        )
        assert results == [1, 3]
        assert [(await phone.message()).payload for _ in range(2)] == [b"one", b"all"]
        assert (await desk.message()).payload == b"all"
        assert (await nameless.message()).payload == b"all"


async def test_a_push_the_moment_the_handshake_answers_arrives(
    gateway: GatewayProcess, pusher: Pusher, transport: str, user: str
) -> None:
    for number in range(20):
        name = f"{user}-{number}"
        async with connect(transport, gateway.port, name) as client:
            await pusher.push_one(name, b"at once")
            assert (await client.message()).payload == b"at once"


async def test_the_registry_knows_the_user_before_the_handshake_answers(
    gateway: GatewayProcess, registry: RedisRegistry, transport: str, user: str
) -> None:
    await registry.refresh()
    for number in range(20):
        name = f"{user}-{number}"
        async with connect(transport, gateway.port, name):
            (nodes,) = await registry.lookup([name])
            assert [node.name for node in nodes or ()] == [gateway.name]


@pytest.mark.parametrize("stream", ["ws-plain", "sse"])
async def test_clients_that_gave_up_while_a_gateway_was_frozen_are_not_held(
    start_gateway: Callable[..., GatewayProcess], stream: str, user: str
) -> None:
    """A message for one of them would count as delivered, and be lost."""
    gateway = start_gateway()
    transport, asks = {
        "sse": ("sse", head("GET", "/sse", bearer(user))),
        "ws-plain": ("websocket", head("GET", "/ws", upgrade_headers() | bearer(user))),
    }[stream]
    opened = f'pushgate_gateway_connections_opened_total{{transport="{transport}"}}'
    gateway.freeze()
    try:
        for _ in range(20):
            with socket.create_connection((LOOPBACK, gateway.port), timeout=5) as plug:
                plug.sendall(asks)
    finally:
        gateway.thaw()
    async with (
        connect(stream, gateway.port, f"{user}-there") as client,
        pusher_to(gateway.internal_port) as pusher,
    ):
        assert await metric(pusher, opened) == 1
        assert await pusher.push([{"user": user, "data": "x"}]) == [0]
        await pusher.push_one(f"{user}-there", b"for who is there")
        assert (await client.message()).payload == b"for who is there"


@pytest.mark.parametrize("stream", ["ws-plain", "ws-v1", "sse"])
async def test_the_last_close_removes_the_entry(
    gateway: GatewayProcess, registry: RedisRegistry, pusher: Pusher, stream: str, user: str
) -> None:
    async with connect(stream, gateway.port, user):
        assert await nodes_of(registry, user) == [gateway.name]
    await until_gone(registry, user)
    assert await pusher.push([{"user": user, "data": "x"}]) == [0]


@pytest.mark.parametrize("stream", ["ws-plain", "ws-v1", "sse"])
async def test_a_late_close_keeps_the_entry_of_a_newer_connection(
    gateway: GatewayProcess, registry: RedisRegistry, pusher: Pusher, stream: str, user: str
) -> None:
    async with connect(stream, gateway.port, user) as newer:
        async with connect(stream, gateway.port, user):
            assert await pusher.push([{"user": user, "data": "both"}]) == [2]

        async def one_is_left() -> bool:
            return bool(await pusher.push([{"user": user, "data": "left"}]) == [1])

        await eventually(one_is_left, "the older connection is gone")
        # A write of the registry after the close: what the close wrote is there by then.
        async with connect(stream, gateway.port, f"{user}-later"):
            assert await nodes_of(registry, user) == [gateway.name]
        assert (await newer.message()).payload == b"both"
        assert (await newer.message()).payload == b"left"


@pytest.mark.parametrize("stream", ["ws-plain", "sse"])
async def test_a_user_who_comes_and_goes_quickly_ends_where_they_are(
    gateway: GatewayProcess, registry: RedisRegistry, stream: str, user: str
) -> None:
    for _ in range(30):
        async with connect(stream, gateway.port, user):
            pass
    async with connect(stream, gateway.port, user):
        assert await nodes_of(registry, user) == [gateway.name]
    await until_gone(registry, user)


async def test_many_connect_at_once_and_all_are_registered(
    gateway: GatewayProcess, registry: RedisRegistry, pusher: Pusher, transport: str, user: str
) -> None:
    names = [f"{user}-{number}" for number in range(100)]
    async with AsyncExitStack() as stack:
        clients = await asyncio.gather(
            *(stack.enter_async_context(connect(transport, gateway.port, name)) for name in names)
        )
        await registry.refresh()
        found = await registry.lookup(names)
        assert [[node.name for node in nodes or ()] for nodes in found] == [[gateway.name]] * 100
        assert await pusher.push([{"user": names, "data": "x"}]) == [[1] * 100]
        for client in clients:
            assert (await client.message()).payload == b"x"


async def test_a_poll_session_outlives_its_connection_until_its_grace_time(
    start_gateway: object, registry: RedisRegistry, user: str
) -> None:
    assert callable(start_gateway)
    brief: GatewayProcess = start_gateway(poll_grace_seconds=1.0)
    async with connect("poll", brief.port, user):
        pass
    assert await nodes_of(registry, user) == [brief.name]
    await until_gone(registry, user)


async def test_a_websocket_is_held_with_the_identity_of_its_own_token(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    async with wire_to(gateway.port) as first, wire_to(gateway.port) as second:
        websocket = await open_websocket(first, bearer(user, device="a"))
        stream = await open_sse(second, bearer(user, device="b"))
        assert await pusher.push([{"user": user, "data": "x", "device": "b"}]) == [1]
        assert await pusher.push([{"user": user, "data": "y", "device": "a"}]) == [1]
        assert (await websocket.message()).payload == b"y"
        assert (await stream.message()).payload == b"x"
