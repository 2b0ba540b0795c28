"""WebSocket clients that mean harm: what they get, what they cost, and who notices."""

import asyncio
import os
import ssl
import struct
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import pytest

from tests.conformance.steps import tls_to
from tests.support.clients import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    Ended,
    Pusher,
    WebSocketClient,
    bearer,
    eventually,
    frame,
    open_websocket,
    wire_to,
)
from tests.support.processes import GatewayProcess

pytestmark = pytest.mark.anyio

ATTACKERS: Final = 25
MORE_BYTES: Final = 20 * 1024 * 1024
PROMPT_CPU_SECONDS: Final = 1.0
"""How long the gateway may be busy with others before it delivers a message."""
_PUSH_SECONDS: Final = 0.02
MOST_BYTES: Final = 65_536
KEY: Final = os.urandom(4)


def compressed() -> bytes:
    """Spell a frame of permessage-deflate (RFC 7692 §7.2.1) that would be 60 MiB."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = deflate.compress(bytes(60 * 1024 * 1024)) + deflate.flush(zlib.Z_SYNC_FLUSH)[:-4]
    plain = frame(BINARY, data)
    return bytes([plain[0] | 0x40]) + plain[1:]


def endless() -> bytes:
    """Spell the start of a message in fragments that goes on for 8 MiB."""
    begun = frame(BINARY, bytes(8_192), fin=False)
    return begun + frame(0x0, bytes(8_192), fin=False) * 1_023


ATTACKS: Final[dict[str, tuple[Callable[[], bytes], int]]] = {
    "one-byte-too-big": (lambda: frame(BINARY, bytes(MOST_BYTES + 1)), 1009),
    "one-byte-too-big-in-fragments": (
        lambda: frame(TEXT, b"x" * MOST_BYTES, fin=False) + frame(0x0, b"x"),
        1009,
    ),
    "endless-message": (endless, 1009),
    "claims-2-GiB": (lambda: b"\x82\xff" + struct.pack("!Q", 1 << 31) + KEY, 1009),
    "deflate-bomb": (compressed, 1002),
    "rsv1": (lambda: b"\xc1\x80" + KEY, 1002),
    "empty-fragments": (
        lambda: frame(BINARY, fin=False) + frame(0x0, fin=False) * 9_999,
        1008,
    ),
    "empty-messages": (lambda: frame(TEXT) * 10_000, 1008),
    "pings": (lambda: frame(PING) * 10_000, 1008),
    "long-pings": (lambda: frame(PING, bytes(125)) * 10_000, 1008),
    "pongs": (lambda: frame(PONG) * 10_000, 1008),
    "bad-utf-8": (lambda: frame(TEXT, b"\xc0\xaf"), 1007),
    "bad-utf-8-across-fragments": (
        lambda: frame(TEXT, b"\xe2\x82", fin=False) + frame(0x0, b"\x28"),
        1007,
    ),
    "half-a-character": (lambda: frame(TEXT, b"\xe2\x82"), 1007),
}


@asynccontextmanager
async def bystander(
    gateway: GatewayProcess, pusher: Pusher, user: str, *, trust: ssl.SSLContext | None = None
) -> AsyncIterator[None]:
    """Have a client beside, which gets a message every now and then, each of them promptly.

    The client speaks TLS where it has a certificate to trust.
    """
    over = asyncio.Event()

    async def pushing(client: WebSocketClient) -> int:
        number = 0
        while not over.is_set() or not number:
            began = gateway.cpu_seconds
            await pusher.push_one(user, b"%d" % number)
            assert (await client.message()).payload == b"%d" % number
            assert gateway.cpu_seconds - began < PROMPT_CPU_SECONDS
            number += 1
            await asyncio.sleep(_PUSH_SECONDS)  # the pace of messages, not a wait
        return number

    port = gateway.port
    async with wire_to(port) if trust is None else tls_to(port, trust) as wire:
        client = await open_websocket(wire, bearer(user))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pushing(client))
            yield
            over.set()


async def send(client: WebSocketClient, data: bytes) -> None:
    """Send as much as the gateway takes."""
    try:
        await client.wire.send(data)
    except ConnectionError:
        return


async def until_ended(client: WebSocketClient) -> Ended:
    """Read pongs and whatever else comes, up to the Close frame."""
    with pytest.raises(Ended) as ended:
        await client.message()
    return ended.value


async def attack(client: WebSocketClient, data: bytes) -> Ended:
    """Send and read at once, as a flood that waits for nobody does."""
    sending = asyncio.create_task(send(client, data))
    try:
        return await until_ended(client)
    finally:
        sending.cancel()
        await asyncio.wait((sending,))


@pytest.mark.parametrize("name", ATTACKS)
async def test_it_is_closed_with_its_code_costs_little_and_nobody_else_notices(
    gateway: GatewayProcess, pusher: Pusher, user: str, name: str
) -> None:
    spelled, code = ATTACKS[name]
    data = spelled()
    async with AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(wire_to(gateway.port)) for _ in range(ATTACKERS)]
        clients = [await open_websocket(wire, bearer(f"{user}-bad")) for wire in wires]
        gateway.forget_peak()
        before = gateway.resident_bytes
        async with bystander(gateway, pusher, user):
            ends = await asyncio.gather(*(attack(client, data) for client in clients))
        assert [end.code for end in ends] == [code] * ATTACKERS
        assert gateway.peak_bytes - before < MORE_BYTES
    await nobody(pusher, f"{user}-bad")


async def test_messages_that_never_end_cost_no_more_than_their_bound(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    begun = frame(BINARY, bytes(MOST_BYTES - 1_024), fin=False)
    async with AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(wire_to(gateway.port)) for _ in range(ATTACKERS)]
        clients = [await open_websocket(wire, bearer(f"{user}-bad")) for wire in wires]
        gateway.forget_peak()
        before = gateway.resident_bytes
        async with bystander(gateway, pusher, user):
            for client in clients:
                await client.wire.send(begun + frame(PING, b"are you there"))
            for client in clients:  # the ping is answered: all before it was taken
                assert (await client.frame())[:2] == (PONG, b"are you there")
        assert gateway.peak_bytes - before < MORE_BYTES
    await nobody(pusher, f"{user}-bad")


async def test_a_flood_that_reads_no_answer_is_cut(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    async with wire_to(gateway.port, receive_buffer_bytes=4_096) as wire:
        client = await open_websocket(wire, bearer(f"{user}-bad"))
        gateway.forget_peak()
        before = gateway.resident_bytes
        async with bystander(gateway, pusher, user):
            await send(client, frame(PING, bytes(125)) * 10_000)
            await nobody(pusher, f"{user}-bad")
        assert gateway.peak_bytes - before < MORE_BYTES


async def test_what_is_within_the_bounds_is_taken(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    async with wire_to(gateway.port) as wire:
        client = await open_websocket(wire, bearer(user))
        await wire.send(frame(BINARY, bytes(MOST_BYTES)))
        await wire.send(frame(TEXT, b"\xe2\x82", fin=False) + frame(0x0, b"\xac"))
        for _ in range(10):
            await wire.send(frame(BINARY, fin=False) + frame(0x0) + frame(PING) + frame(PONG))
            assert (await client.frame())[:2] == (PONG, b"")
        await pusher.push_one(user, b"still here")
        assert (await client.message()).payload == b"still here"
        await wire.send(frame(CLOSE))


async def nobody(pusher: Pusher, user: str) -> None:
    """Return when a user has no connection any more."""

    async def gone() -> bool:
        return (await pusher.http.get(f"/push/{user}")).status_code == 404

    await eventually(gone, f"{user} is not here any more")
