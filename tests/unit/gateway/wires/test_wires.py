"""One suite for both wires, over real sockets with small kernel buffers."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Literal

import pytest

from gateway.wires import Wire
from gateway.wires.choice import Wires
from gateway.wires.transport import LentWire

pytestmark = pytest.mark.anyio

LIMIT = 1_000_000
NOTICE = b"gap\n"


class Holder:
    """Whoever holds the wire: remembers what it was told."""

    def __init__(self) -> None:
        self.got = b""
        self.overflows = 0
        self.losses = 0
        self.gone = asyncio.Event()
        self.heard = asyncio.Event()
        self.direct = -1
        self.wire: Wire | None = None
        self.makes_room = False
        self.dropped = 0
        self.unheard_of = 0

    def received(self, data: bytes) -> None:
        self.got += data
        self.heard.set()

    def overflowed(self) -> bool:
        self.overflows += 1
        assert self.wire is not None
        if self.makes_room:
            self.dropped += self.wire.drop_oldest(NOTICE)
        else:
            self.wire.abort()
        return self.makes_room

    def unheard(self) -> None:
        self.unheard_of += 1

    def lost(self) -> None:
        self.losses += 1
        self.gone.set()


@pytest.fixture(params=["epoll", "transport"])
def choice(request: pytest.FixtureRequest) -> Literal["epoll", "transport"]:
    name: Literal["epoll", "transport"] = request.param
    return name


@asynccontextmanager
async def held(
    choice: Literal["epoll", "transport"],
) -> AsyncIterator[tuple[Wire, Holder, socket.socket]]:
    """Give a held socket, its holder, and the peer's end, which nobody reads."""
    loop = asyncio.get_running_loop()
    ours, peer = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8_192)
    for end in (ours, peer):
        end.setblocking(False)
    transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, ours)
    wires = Wires(choice, loop=loop, send_buffer_bytes=LIMIT)
    holder = Holder()
    wire = holder.wire = wires.hold(transport, holder)
    try:
        yield wire, holder, peer
    finally:
        wire.abort()
        await asyncio.wait_for(holder.gone.wait(), 5)
        wires.close()
        peer.close()
        ours.close()
    assert holder.losses == 1


async def read_to_end(peer: socket.socket, *, count: int | None = None) -> bytes:
    loop, data = asyncio.get_running_loop(), b""
    async with asyncio.timeout(10):
        while count is None or len(data) < count:
            chunk = await loop.sock_recv(peer, 65_536)
            if not chunk:
                break
            data += chunk
    return data


async def leave(peer: socket.socket, holder: Holder) -> None:
    """Close the peer's side too; the holder is told."""
    peer.shutdown(socket.SHUT_WR)
    await asyncio.wait_for(holder.gone.wait(), 5)


async def test_what_a_slow_reader_has_not_read_waits_in_order(
    choice: Literal["epoll", "transport"],
) -> None:
    chunks = [b"%06d" % number * 500 for number in range(200)]
    async with held(choice) as (wire, holder, peer):
        assert all(wire.write(chunk) for chunk in chunks)
        assert await read_to_end(peer, count=600_000) == b"".join(chunks)
        assert wire.write(b"more")
        assert await read_to_end(peer, count=4) == b"more"
        assert holder.overflows == 0


async def test_a_close_sends_what_was_written_and_then_ends(
    choice: Literal["epoll", "transport"],
) -> None:
    async with held(choice) as (wire, holder, peer):
        assert wire.write(b"x" * 500_000)
        wire.close()
        wire.close()
        assert not wire.write(b"too late")
        assert await read_to_end(peer) == b"x" * 500_000
        await leave(peer, holder)


async def test_bytes_behind_a_close_are_discarded_until_the_peer_closes_too(
    choice: Literal["epoll", "transport"],
) -> None:
    async with held(choice) as (wire, holder, peer):
        wire.listen()
        peer.send(b"before")
        await asyncio.wait_for(holder.heard.wait(), 5)
        assert wire.write(b"x" * 500_000)
        wire.close()
        async with asyncio.timeout(5):  # a peer that reads nothing before all of it is sent
            await asyncio.get_running_loop().sock_sendall(peer, b"y" * 1_000_000)
        assert await read_to_end(peer) == b"x" * 500_000
        async with asyncio.timeout(5):  # nor is it reset afterwards
            await asyncio.get_running_loop().sock_sendall(peer, b"z" * 1_000_000)
        assert holder.got == b"before"
        assert holder.losses == 0
        await leave(peer, holder)


async def test_a_close_before_listen_sees_the_peers_end(
    choice: Literal["epoll", "transport"],
) -> None:
    async with held(choice) as (wire, holder, peer):
        peer.send(b"early")
        wire.close()
        wire.listen()
        assert await read_to_end(peer) == b""
        await leave(peer, holder)
        assert holder.got == b""


async def test_a_peer_that_never_closes_is_ended_by_an_abort(
    choice: Literal["epoll", "transport"],
) -> None:
    async with held(choice) as (wire, holder, peer):
        wire.close()
        assert await read_to_end(peer) == b""
        assert holder.losses == 0
        wire.abort()
        await asyncio.wait_for(holder.gone.wait(), 5)


async def test_a_full_buffer_is_told_and_refuses(choice: Literal["epoll", "transport"]) -> None:
    async with held(choice) as (wire, holder, _):
        taken = 0
        while wire.write(b"x" * 50_000):
            taken += 50_000
            await asyncio.sleep(0)
            assert taken < 3 * LIMIT
        assert holder.overflows == 1
        assert not wire.write(b"x")


def line(number: int) -> bytes:
    return (b"%06d" % number) * 500 + b"\n"


def numbers(received: bytes) -> list[int | None]:
    """Read lines back; a notice is None. Fails on what is torn."""
    *lines, rest = received.split(b"\n")
    assert rest == b"", "the last line is torn"
    read = [None if text + b"\n" == NOTICE else int(text[:6]) for text in lines]
    for number, text in zip(read, lines, strict=True):
        assert number is None or text + b"\n" == line(number), "a line is torn"
    return read


async def test_where_the_holder_makes_room_the_newest_arrive_whole_behind_one_notice(
    choice: Literal["epoll", "transport"],
) -> None:
    count = 5 * LIMIT // len(line(0))
    async with held(choice) as (wire, holder, peer):
        holder.makes_room = True
        assert all(wire.write(line(number)) for number in range(count))
        assert holder.overflows > 1
        wire.close()
        read = numbers(await read_to_end(peer))
        await leave(peer, holder)
    assert read.count(None) == 1
    got = [number for number in read if number is not None]
    assert all(earlier < later for earlier, later in pairwise(got))
    assert len(got) + holder.dropped == count
    assert got[-1] == count - 1
    before = read.index(None)
    assert read[:before] == list(range(before))
    assert read[before + 1 :] == list(range(count - len(read) + before + 1, count))
    assert LIMIT * 0.9 < len(read[before:]) * len(line(0)) < LIMIT * 1.1


@pytest.mark.parametrize("all_at_once", [True, False])
async def test_a_write_of_which_a_part_is_out_arrives_whole(
    choice: Literal["epoll", "transport"], all_at_once: bool
) -> None:
    first = b"a" * 400_000
    async with held(choice) as (wire, holder, peer):
        holder.makes_room = True
        assert wire.write(first)
        assert all(wire.write(line(number)) for number in range(2 * LIMIT // len(line(0))))
        if all_at_once:
            wire.drop_all()
            assert wire.write(NOTICE)
        wire.close()
        received = await read_to_end(peer)
        await leave(peer, holder)
    assert received.startswith(first + NOTICE)
    assert (received == first + NOTICE) is all_at_once
    assert holder.dropped > 0


async def test_what_waits_can_be_dropped_for_a_goodbye(
    choice: Literal["epoll", "transport"],
) -> None:
    async with held(choice) as (wire, holder, peer):
        written = 0
        while written * len(line(0)) < LIMIT // 2:
            assert wire.write(line(written))
            written += 1
        wire.drop_all()
        assert wire.write(b"999999" * 500 + b"\n")
        wire.close()
        read = numbers(await read_to_end(peer))
        await leave(peer, holder)
    assert read[-1] == 999_999
    assert read[:-1] == list(range(len(read) - 1))
    assert len(read) < written // 2
    assert holder.overflows == 0


async def test_where_nothing_waits_there_is_nothing_to_drop(
    choice: Literal["epoll", "transport"],
) -> None:
    async with held(choice) as (wire, _, peer):
        assert wire.write(b"hello")
        assert wire.drop_oldest(NOTICE) == 0
        wire.drop_all()
        assert wire.write(b" world")
        assert await read_to_end(peer, count=11) == b"hello world"


async def test_a_wire_without_a_socket_drops_nothing(
    choice: Literal["epoll", "transport"],
) -> None:
    async with held(choice) as (wire, holder, _):
        wire.abort()
        await asyncio.wait_for(holder.gone.wait(), 5)
        assert wire.drop_oldest(NOTICE) == 0
        wire.drop_all()
        assert not wire.write(b"x")


async def test_a_lent_socket_answers_all_that_was_agreed_and_no_more() -> None:
    loop = asyncio.get_running_loop()
    ours, peer = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8_192)
    peer.setblocking(False)
    transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, ours)
    wires = Wires("auto", loop=loop, send_buffer_bytes=50_000)
    holder = Holder()
    wire = holder.wire = wires.lend(transport, holder, answer_bytes=300_000)
    assert wire.write(b"x" * 300_000)
    assert not wire.write(b"y" * 100_000)
    assert holder.overflows == 1
    await asyncio.wait_for(holder.gone.wait(), 5)
    wires.close()
    peer.close()


@pytest.mark.parametrize(
    ("error", "vanished"),
    [
        (None, 0),
        (ConnectionResetError(errno.ECONNRESET, "reset"), 0),
        (TimeoutError(errno.ETIMEDOUT, "timed out"), 1),
        (OSError(errno.EHOSTUNREACH, "no route"), 1),
    ],
    ids=["closed", "reset", "timed-out", "unreachable"],
)
async def test_a_lent_wire_tells_a_peer_that_has_vanished_from_one_that_has_closed(
    error: Exception | None, vanished: int
) -> None:
    ours, peer = socket.socketpair()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, ours)
    holder = Holder()
    wires = Wires("auto", loop=loop, send_buffer_bytes=50_000)
    wire = wires.lend(transport, holder, answer_bytes=1_000)
    assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert isinstance(wire, LentWire)
    wire.connection_lost(error)
    assert (holder.unheard_of, holder.losses) == (vanished, 1)
    wire.abort()
    wires.close()
    peer.close()


async def test_an_abort_does_not_wait_for_the_peer_and_tells_later(
    choice: Literal["epoll", "transport"],
) -> None:
    async with held(choice) as (wire, holder, _):
        wire.write(b"x" * 500_000)
        wire.abort()
        wire.abort()
        assert holder.losses == 0
        await asyncio.wait_for(holder.gone.wait(), 5)


async def test_nothing_is_received_before_listen(choice: Literal["epoll", "transport"]) -> None:
    async with held(choice) as (wire, holder, peer):
        peer.send(b"early")
        for _ in range(20):
            await asyncio.sleep(0)
        assert holder.got == b""
        wire.listen()
        await asyncio.wait_for(holder.heard.wait(), 5)
        assert holder.got == b"early"


async def test_a_peer_that_ends_is_lost(choice: Literal["epoll", "transport"]) -> None:
    async with held(choice) as (wire, holder, peer):
        wire.listen()
        peer.close()
        await asyncio.wait_for(holder.gone.wait(), 5)
        assert not wire.write(b"x")


async def test_a_descriptor_that_is_used_again_is_another_wires(
    choice: Literal["epoll", "transport"],
) -> None:
    for _ in range(50):
        async with held(choice) as (wire, _, peer):
            wire.listen()
            assert wire.write(b"hello")
            assert await read_to_end(peer, count=5) == b"hello"


async def test_a_holder_that_fails_loses_its_own_connection(
    choice: Literal["epoll", "transport"],
) -> None:
    reported: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(context))
    try:
        async with held(choice) as (wire, holder, peer):

            def fail(data: bytes) -> None:
                raise RuntimeError("injected")

            holder.received = fail  # type: ignore[method-assign]
            wire.listen()
            peer.send(b"x")
            await asyncio.wait_for(holder.gone.wait(), 5)
    finally:
        loop.set_exception_handler(None)
