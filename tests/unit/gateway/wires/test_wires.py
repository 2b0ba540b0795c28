"""One suite for both wires, over real sockets with small kernel buffers."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pytest

from gateway.wires import CONTROL_BYTES, Wire
from gateway.wires.choice import Wires
from gateway.wires.transport import LentWire
from tests.support.clients import eventually

pytestmark = pytest.mark.anyio

LIMIT = 1_000_000
NOTICE = b"gap\n"


class Holder:
    """Whoever holds the wire: remembers what it was told."""

    id = "the holder"

    def __init__(self) -> None:
        self.got = b""
        self.backlogs = 0
        self.losses = 0
        self.unsent = 0
        self.gone = asyncio.Event()
        self.heard = asyncio.Event()
        self.wire: Wire | None = None
        self.unheard_of = 0

    def received(self, data: bytes) -> None:
        self.got += data
        self.heard.set()

    def backlogged(self) -> None:
        self.backlogs += 1

    def unheard(self) -> None:
        self.unheard_of += 1

    def lost(self, unsent: int = 0) -> None:
        self.losses += 1
        self.unsent += unsent
        self.gone.set()


@pytest.fixture(params=["epoll", "transport"])
def choice(request: pytest.FixtureRequest) -> Literal["epoll", "transport"]:
    name: Literal["epoll", "transport"] = request.param
    return name


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Give the two ends of a TCP connection; the second receives into a small buffer."""
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8_192)
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer.connect(server.getsockname())
        ours, _ = server.accept()
    return ours, peer


@asynccontextmanager
async def held(
    choice: Literal["epoll", "transport"], *, tcp: bool = False
) -> AsyncIterator[tuple[Wire, Holder, socket.socket]]:
    """Give a held socket, its holder, and the peer's end, which nobody reads."""
    loop = asyncio.get_running_loop()
    ours, peer = tcp_pair() if tcp else socket.socketpair()
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
        assert not wire.waits()
        assert all(wire.write(chunk) for chunk in chunks)
        assert wire.waits()
        assert await read_to_end(peer, count=600_000) == b"".join(chunks)
        await eventually(lambda: not wire.waits(), "nothing waits any more")
        assert wire.write(b"more")
        assert await read_to_end(peer, count=4) == b"more"
        assert holder.backlogs > 0
        assert not wire.waits()


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
        assert holder.unsent == 0


async def test_a_full_buffer_refuses_and_takes_again_when_there_is_room(
    choice: Literal["epoll", "transport"],
) -> None:
    async with held(choice) as (wire, _, peer):
        taken = await fill(wire)
        assert LIMIT // 2 < taken < 3 * LIMIT
        assert not wire.write(b"x" * 50_000)
        assert wire.waits()
        assert await read_to_end(peer, count=taken) == b"x" * taken
        assert wire.write(b"y" * 50_000)
        assert await read_to_end(peer, count=50_000) == b"y" * 50_000


async def fill(wire: Wire) -> int:
    """Write until a write is refused; give how many bytes were taken."""
    taken = 0
    while wire.write(b"x" * 50_000):
        taken += 50_000
        await asyncio.sleep(0)
        assert taken < 3 * LIMIT
    return taken


async def test_an_empty_backlog_takes_a_write_of_any_length(
    choice: Literal["epoll", "transport"],
) -> None:
    async with held(choice) as (wire, _, peer):
        for _ in range(2):
            assert wire.write(b"x" * 2 * LIMIT)
            assert await read_to_end(peer, count=2 * LIMIT) == b"x" * 2 * LIMIT


async def test_a_full_backlog_takes_controls_to_a_bound_and_a_flood_of_them_ends_it(
    choice: Literal["epoll", "transport"],
) -> None:
    async with held(choice) as (wire, holder, _):
        await fill(wire)
        for _ in range(CONTROL_BYTES // 1_000):
            wire.write_control(b"y" * 1_000)
        assert not wire.write(b"x" * 50_000)
        await asyncio.sleep(0)
        assert holder.losses == 0
        for _ in range(100):
            wire.write_control(b"y" * 1_000)
        await asyncio.wait_for(holder.gone.wait(), 5)


async def test_a_control_behind_a_write_longer_than_the_limit_ends_nobody(
    choice: Literal["epoll", "transport"],
) -> None:
    async with held(choice) as (wire, holder, peer):
        long = LIMIT + 20 * CONTROL_BYTES
        writes = [b"x" * long] if choice == "epoll" else [b"x" * long, b"x" * long]
        for write in writes:
            assert wire.write(write)
        wire.write_control(b"bye")
        assert await read_to_end(peer, count=long * len(writes) + 3) == b"".join(writes) + b"bye"
        assert holder.losses == 0


async def test_a_goodbye_goes_out_behind_all_that_was_taken(
    choice: Literal["epoll", "transport"],
) -> None:
    async with held(choice) as (wire, holder, peer):
        taken = await fill(wire)
        wire.write_control(b"bye")
        wire.close()
        assert await read_to_end(peer) == b"x" * taken + b"bye"
        await leave(peer, holder)
        assert holder.unsent == 0


async def test_messages_that_are_unsent_at_the_end_are_told_and_controls_are_not(
    choice: Literal["epoll", "transport"],
) -> None:
    async with held(choice) as (wire, holder, _):
        first = 200_000  # more than the kernel takes
        assert wire.write(b"x" * first)
        assert wire.write(b"one")
        wire.write_control(b"pong")
        assert wire.write(b"two")
        wire.abort()
        await asyncio.wait_for(holder.gone.wait(), 5)
        # The event loop's transport has taken the first write whole.
        assert holder.unsent == (3 if choice == "epoll" else 2)


async def test_progress_changes_when_the_peer_takes_bytes_and_only_then(
    choice: Literal["epoll", "transport"],
) -> None:
    async with held(choice) as (wire, holder, peer):
        await fill(wire)
        assert holder.backlogs == 1
        before = wire.progress()
        for _ in range(20):
            await asyncio.sleep(0)
        assert wire.progress() == before
        await read_to_end(peer, count=300_000)
        await eventually(lambda: wire.progress() != before, "the peer has taken bytes")


async def test_over_tcp_the_kernel_tells_the_progress_of_a_peer_that_reads_slowly(
    choice: Literal["epoll", "transport"],
) -> None:
    """The kernel takes bytes from a wire only when a third of its buffer is free again."""
    if not hasattr(socket, "TCP_INFO"):
        pytest.skip("needs TCP_INFO, which is Linux's")
    async with held(choice, tcp=True) as (wire, _, peer):
        await fill(wire)
        for _ in range(5):
            before = wire.progress()
            await read_to_end(peer, count=20_000)
            await eventually(lambda: wire.progress() > before, "acknowledged")  # noqa: B023
            assert not wire.all_taken()
        wire.bear(7.5)
        if choice == "transport":
            transport = wire._transport  # type: ignore[attr-defined]
            plug = transport.get_extra_info("socket")
        else:
            plug = socket.socket(fileno=os.dup(wire._descriptor))  # type: ignore[attr-defined]
        assert plug.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7_500
        if choice == "epoll":
            plug.close()


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


def displace(wire: Wire, data: bytes) -> int:
    """Write as where the oldest is dropped; give how many messages were dropped."""
    return 0 if wire.write(data) else wire.displace(data, NOTICE)


async def test_where_the_oldest_is_dropped_the_newest_arrive_whole_behind_one_notice(
    choice: Literal["epoll", "transport"],
) -> None:
    count = 5 * LIMIT // len(line(0))
    async with held(choice) as (wire, holder, peer):
        dropped = sum(displace(wire, line(number)) for number in range(count))
        assert dropped > 1
        wire.close()
        read = numbers(await read_to_end(peer))
        await leave(peer, holder)
    assert read.count(None) == 1
    got = [number for number in read if number is not None]
    assert all(earlier < later for earlier, later in pairwise(got))
    assert len(got) + dropped == count
    assert got[-1] == count - 1
    before = read.index(None)
    assert read[:before] == list(range(before))
    assert read[before + 1 :] == list(range(count - len(read) + before + 1, count))
    assert LIMIT * 0.9 < len(read[before:]) * len(line(0)) < LIMIT * 1.1


async def test_a_write_of_which_a_part_is_out_arrives_whole(
    choice: Literal["epoll", "transport"],
) -> None:
    first = b"a" * 400_000
    async with held(choice) as (wire, holder, peer):
        assert wire.write(first)
        dropped = sum(displace(wire, line(number)) for number in range(2 * LIMIT // len(line(0))))
        wire.close()
        received = await read_to_end(peer)
        await leave(peer, holder)
    assert received.startswith(first + NOTICE)
    assert dropped > 0


async def test_where_nothing_waits_there_is_nothing_to_drop(
    choice: Literal["epoll", "transport"],
) -> None:
    async with held(choice) as (wire, _, peer):
        assert wire.write(b"hello")
        assert wire.displace(b"x", NOTICE) == 0
        assert wire.write(b" world")
        assert await read_to_end(peer, count=11) == b"hello world"


async def test_a_wire_without_a_socket_drops_nothing(
    choice: Literal["epoll", "transport"],
) -> None:
    async with held(choice) as (wire, holder, _):
        wire.abort()
        await asyncio.wait_for(holder.gone.wait(), 5)
        assert wire.displace(b"x", NOTICE) == 0
        assert not wire.write(b"x")
        wire.write_control(b"x")
        wire.bear(1.0)
        assert not wire.waits()


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
    wire.abort()
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


async def test_a_flood_before_listen_waits_in_the_kernel(
    choice: Literal["epoll", "transport"],
) -> None:
    flood = b"".join(b"%07d\n" % number for number in range(500_000))
    async with held(choice) as (wire, holder, peer):
        loop = asyncio.get_running_loop()
        sending = loop.create_task(loop.sock_sendall(peer, flood))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(sending), 0.2)
        assert holder.got == b""
        wire.listen()
        await asyncio.wait_for(sending, 5)
        await eventually(lambda: len(holder.got) == len(flood), "all of it has come")
        assert holder.got == flood


async def test_a_peer_that_ends_is_lost(choice: Literal["epoll", "transport"]) -> None:
    async with held(choice) as (wire, holder, peer):
        wire.listen()
        peer.close()
        await asyncio.wait_for(holder.gone.wait(), 5)
        assert not wire.write(b"x")


async def test_a_peer_that_ends_before_listen_is_lost(
    choice: Literal["epoll", "transport"],
) -> None:
    """Its handshake is not answered yet: a message for it must not count as delivered."""
    async with held(choice) as (wire, holder, peer):
        peer.send(b"early")
        peer.shutdown(socket.SHUT_WR)
        await asyncio.wait_for(holder.gone.wait(), 5)
        assert holder.got == b""
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


def descriptors() -> int:
    """Give how many descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


class NoWatches:
    """An epoll set that has no watch left (epoll_ctl(2), ENOSPC)."""

    def register(self, *_: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")


async def test_where_no_watch_is_left_a_socket_is_held_over_its_transport(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    ours, peer = socket.socketpair()
    peer.setblocking(False)
    transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, ours)
    wires = Wires("epoll", loop=loop, send_buffer_bytes=LIMIT)
    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(wires._epoll, "_epoll", NoWatches())
        wire = wires.hold(transport, holder := Holder())
    assert descriptors() == before
    wire.listen()
    assert wire.write(b"here")
    assert await loop.sock_recv(peer, 10) == b"here"
    await loop.sock_sendall(peer, b"there")
    await asyncio.wait_for(holder.heard.wait(), 5)
    assert holder.got == b"there"
    wire.abort()
    await asyncio.wait_for(holder.gone.wait(), 5)
    wires.close()
    peer.close()
    ours.close()
