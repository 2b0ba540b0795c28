"""Frames and descriptors between two processes: their order, and how many are under way."""

from __future__ import annotations

import asyncio
import itertools
import os
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.takeover.channel import (
    MOST_UNACKNOWLEDGED,
    BrokenChannel,
    Channel,
    Delivered,
    Inbox,
    framed,
    peer_of,
)
from gateway.takeover.format import (
    Connections,
    Held,
    HttpRecord,
    Message,
    PollRecord,
    Push,
    Ready,
    Taken,
)
from tests.support.clients import eventually

pytestmark = pytest.mark.anyio


class End:
    """One process's end: what it was sent."""

    def __init__(self, plug: socket.socket) -> None:
        self.channel = Channel(plug)
        self.got: list[Message] = []
        self.descriptors: list[int] = []
        self.end: str | None = None
        self.channel.begin(self)

    def received(self, delivered: Delivered) -> None:
        self.got.append(delivered.message)
        self.descriptors += delivered.descriptors

    def ended(self, reason: str) -> None:
        assert self.end is None, "it has ended before"
        self.end = reason


@asynccontextmanager
async def two_ends() -> AsyncIterator[tuple[End, End]]:
    ends = [End(plug) for plug in socket.socketpair()]
    yield ends[0], ends[1]
    for end in ends:
        end.channel.close()
        for descriptor in end.descriptors:
            os.close(descriptor)


def batch(count: int) -> tuple[Connections, list[int]]:
    """Give a batch of HTTP sockets, and as many descriptors."""
    records = [HttpRecord(("192.0.2.7", number)) for number in range(count)]
    return Connections([*records]), [os.open(os.devnull, os.O_RDONLY) for _ in range(count)]


def descriptors_for(room: int) -> int:
    """Return the limit of descriptors with which this process can open so many more."""
    used = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
    free = (number for number in itertools.count() if number not in used)
    return next(itertools.islice(free, room, None))


def close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


async def test_messages_and_descriptors_come_in_their_order() -> None:
    async with two_ends() as (one, other):
        (first, first_sockets), (second, second_sockets) = batch(250), batch(3)
        one.channel.send(Ready())
        one.channel.send(first, first_sockets)
        one.channel.send(Push(0, b"x" * 1_000_000))
        one.channel.send(second, second_sockets)
        await eventually(lambda: len(other.got) == 4, "all have come")
        assert other.got == [Ready(), first, Push(0, b"x" * 1_000_000), second]
        assert len(other.descriptors) == 253
        assert not any(os.get_inheritable(descriptor) for descriptor in other.descriptors)
        close([*first_sockets, *second_sockets])


async def test_a_session_without_a_socket_takes_no_descriptor() -> None:
    async with two_ends() as (one, other):
        _, sockets = batch(1)
        message = Connections([PollRecord(Held("alice"), "key", 1), HttpRecord()])
        one.channel.send(message, sockets)
        await eventually(lambda: other.got == [message], "it has come")
        assert len(other.descriptors) == 1
        close(sockets)


async def test_what_is_behind_unacknowledged_descriptors_waits() -> None:
    async with two_ends() as (one, other):
        batches = [batch(1) for _ in range(MOST_UNACKNOWLEDGED + 1)]
        for message, descriptors in batches:
            one.channel.send(message, descriptors)
        one.channel.send(Push(1, b"behind"))
        other.channel.send(Taken())
        await eventually(lambda: one.got == [Taken()], "the answer has come")
        assert len(other.got) == MOST_UNACKNOWLEDGED
        assert not one.channel.flushed.is_set()
        one.channel.acknowledged()
        await eventually(lambda: len(other.got) == MOST_UNACKNOWLEDGED + 2, "the rest comes")
        assert other.got[-1] == Push(1, b"behind")
        assert one.channel.flushed.is_set()
        for _, descriptors in batches:
            close(descriptors)


async def test_without_room_for_descriptors_a_batch_comes_without_any() -> None:
    async with two_ends() as (one, other):
        message, sockets = batch(20)
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors_for(4), limit[1]))
        try:
            one.channel.send(message, sockets)
            await eventually(lambda: other.got == [message], "it has come")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        assert other.descriptors == []
        again, more = batch(1)
        one.channel.send(again, more)
        await eventually(lambda: other.got == [message, again], "it has come")
        assert other.descriptors == [], "what comes behind might be another's"
        close([*sockets, *more])


async def test_the_end_of_the_partner_is_told_once() -> None:
    async with two_ends() as (one, other):
        one.channel.close()
        await eventually(lambda: other.end is not None, "the end is told")
        other.channel.send(Ready())
        assert not other.channel.is_open


async def test_what_is_no_message_ends_the_channel() -> None:
    ours, theirs = socket.socketpair()
    end = End(ours)
    theirs.sendall(b"\0\0\0\1" + b"\0" * 8 + b"\xc1")
    await eventually(lambda: end.end is not None, "the end is told")
    theirs.close()


def test_descriptors_that_are_missing_are_an_error() -> None:
    ours, theirs = socket.socketpair()
    message, sockets = batch(2)
    with ours, theirs:
        socket.send_fds(theirs, [framed(message, 0)], sockets[:1])
        inbox = Inbox(ours)
        assert inbox.receive()
        with pytest.raises(BrokenChannel, match="1 descriptors came, and not 2"):
            inbox.next()
        inbox.close()
    close(sockets)


def test_the_kernel_names_the_peer() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert peer_of(ours) == (os.getpid(), os.geteuid())


async def test_silence_is_counted_from_the_last_byte() -> None:
    async with two_ends() as (one, other):
        other.channel.silent_ticks = 7
        one.channel.send(Ready())
        await eventually(lambda: other.got == [Ready()], "it has come")
        assert other.channel.silent_ticks == 0
        await asyncio.sleep(0)
