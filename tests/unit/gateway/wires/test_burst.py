"""A batch's writes over real sockets: in order for each connection, whole, and told where not."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Literal

import pytest

from gateway.transports.sse import SseConnection
from gateway.wires.burst import write_at_once
from gateway.wires.choice import Wires
from tests.support.clients import eventually
from tests.unit.gateway.fakes import BOUNDS, FakeKeeper, identity

pytestmark = pytest.mark.anyio

LIMIT = 64_000_000


def write_all(connections: list[SseConnection], datas: list[bytes]) -> list[int]:
    """Write as the hub does; give the positions that were not taken."""
    later = write_at_once([connection.wire for connection in connections], datas)
    return [position for position in later if not connections[position].write(datas[position])]


def direct(connection: SseConnection) -> int:
    return -1 if connection.wire is None else connection.wire.direct


Choice = Literal["epoll", "transport"]


@pytest.fixture(params=["epoll", "transport"])
def choice(request: pytest.FixtureRequest) -> Choice:
    name: Choice = request.param
    return name


@asynccontextmanager
async def connected(wires: Wires) -> AsyncIterator[tuple[SseConnection, socket.socket]]:
    """Give an open connection and its peer's end, which nobody reads yet."""
    ours, peer = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8_192)
    for end in (ours, peer):
        end.setblocking(False)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, ours)
    connection = SseConnection(identity(), FakeKeeper(replace(BOUNDS, drops_oldest=False)))
    connection.attach(wires.hold(transport, connection))
    connection.open(b"head\n")
    try:
        yield connection, peer
    finally:
        connection.abort("over")
        peer.close()
        ours.close()


@asynccontextmanager
async def crowd(
    choice: Choice, count: int
) -> AsyncIterator[list[tuple[SseConnection, socket.socket]]]:
    wires = Wires(choice, loop=asyncio.get_running_loop(), send_buffer_bytes=LIMIT)
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(connected(wires)) for _ in range(count)]
        await asyncio.sleep(0)  # those that are aborted are told so
    wires.close()


async def read(peer: socket.socket, *, count: int) -> bytes:
    loop, data = asyncio.get_running_loop(), b""
    async with asyncio.timeout(10):
        while len(data) < count:
            data += await loop.sock_recv(peer, 65_536)
    return data


async def test_each_gets_its_own_in_order(choice: Choice) -> None:
    async with crowd(choice, 3) as held:
        (one, _), (two, _), (three, _) = held
        assert write_all([one, two, one, three, one], [b"a", b"b", b"c", b"d", b"e"]) == []
        assert write_all([three, three], [b"f", b"g"]) == []
        expected = [b"head\nace", b"head\nb", b"head\ndfg"]
        for (_, peer), data in zip(held, expected, strict=True):
            assert await read(peer, count=len(data)) == data


@pytest.mark.parametrize("size", [1, 1_000, 60_000, 300_000])
async def test_what_the_kernel_does_not_take_follows_whole_and_in_order(
    choice: Choice, size: int
) -> None:
    async with crowd(choice, 2) as held:
        (slow, peer), (other, others_peer) = held
        rounds = max(2, min(200, 300_000 // size))
        datas = [b"%06d" % number * size for number in range(3 * rounds)]
        for start in range(0, len(datas), 3):
            first, second, third = datas[start : start + 3]
            assert write_all([slow, slow, other, slow], [first, second, b"x", third]) == []
        expected = b"head\n" + b"".join(datas)
        assert await read(peer, count=len(expected)) == expected
        assert await read(others_peer, count=5 + rounds) == b"head\n" + b"x" * rounds
        assert write_all([slow], [b"more"]) == []
        assert await read(peer, count=4) == b"more"


async def test_a_socket_is_lent_only_while_nothing_waits() -> None:
    async with crowd("epoll", 1) as [(connection, peer)]:
        descriptor = direct(connection)
        assert descriptor >= 0
        assert write_all([connection], [b"x" * 500_000]) == []
        assert direct(connection) == -1
        assert len(await read(peer, count=500_005)) == 500_005
        await eventually(lambda: direct(connection) == descriptor, "the socket is lent again")
        connection.abort("over")
        assert direct(connection) == -1


async def test_those_that_are_gone_are_told_and_no_other_misses_anything(choice: Choice) -> None:
    async with crowd(choice, 4) as held:
        connections = [connection for connection, _ in held]
        held[1][1].close()
        held[3][1].close()
        written: list[list[int]] = []

        def both_are_missed() -> bool:
            written.append(write_all(connections * 2, [b"a"] * 4 + [b"b"] * 4))
            return written[-1] == [1, 3, 5, 7]

        await eventually(both_are_missed, "a transport notices a turn later")
        expected = b"head\n" + b"ab" * len(written)
        for _, peer in (held[0], held[2]):
            assert await read(peer, count=len(expected)) == expected


async def test_before_its_head_is_out_a_connection_is_not_written_to() -> None:
    connection = SseConnection(identity(), FakeKeeper())
    assert direct(connection) == -1
    assert write_all([connection], [b"early"]) == []  # it waits for the handshake


@pytest.mark.parametrize(
    "sizes", [[700] * 200, [40_000, 40_000, 1], [1, 70_000, 1, 1], [9_000] * 9]
)
async def test_of_a_joined_write_the_kernel_may_take_any_part(
    choice: Choice, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[int] = []
    write = os.write

    def taking(most: int, descriptor: int, data: bytes) -> int:
        writes.append(len(data))
        if not most:
            raise BlockingIOError
        return write(descriptor, data[:most])

    datas = [bytes([65 + number % 26]) * size for number, size in enumerate(sizes)]
    # In the midst of each message, before it, and behind it: none may be lost or come twice.
    for most in sorted({edge + by for edge in accumulate(sizes, initial=0) for by in (0, 1)}):
        async with crowd(choice, 2) as held:
            (one, peer), (other, others_peer) = held
            with monkeypatch.context() as patch:
                patch.setattr(os, "write", partial(taking, most))
                connections = [one, other, *[one] * (len(datas) - 1)]
                assert write_all(connections, [datas[0], b"x", *datas[1:]]) == []
            expected = b"head\n" + b"".join(datas)
            assert await read(peer, count=len(expected)) == expected
            assert await read(others_peer, count=6) == b"head\nx"
    if choice == "epoll":
        assert max(writes) <= max(64 * 1024, *sizes), "what is joined is bounded"
        assert max(writes) > sizes[0] or sizes[0] + sizes[1] > 64 * 1024, "messages are joined"
