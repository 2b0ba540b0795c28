"""A link to a gateway, over a real socket: answers in order and in time, and what ends a link."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import msgspec
import pytest

from processor import metrics
from processor.sending.link import Link, LinkEnded
from processor.sending.upgrade import NoAnswer, upgraded
from registry.directory import Node
from registry.frames import MAX_ANSWER_BYTES
from registry.message import Push
from tests.support.clients import eventually
from tests.support.links import SWITCHING, Request, frame, link_server, listening, results

pytestmark = pytest.mark.anyio

TIMEOUT_SECONDS = 0.5
BATCH = b"\x90"  # an empty list in MessagePack
FRAME_BYTES = 12 + len(BATCH)

#: Answers batches by hand, from behind the upgrade.
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def linked(script: Script) -> AsyncIterator[Link]:
    """Give a link to a gateway that follows a script, and then holds the connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(SWITCHING)
        await script(reader, writer)
        await reader.read()

    async with listening(serve) as node:
        yield await link_to(node.address)


async def link_to(address: str, *, timeout_seconds: float = TIMEOUT_SECONDS) -> Link:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    transport, rest = await upgraded(f"http://{address}", {}, tls=tls)
    return Link(transport, rest, timeout_seconds=timeout_seconds)


def ended_by(reason: str) -> float:
    value: float = metrics.LINKS_ENDED.labels(reason)._value.get()
    return value


async def test_answers_go_to_their_batches() -> None:
    async def answer_to(request: Request) -> bytes:
        return b"answer to " + request.body

    async with link_server(answer_to) as made:
        link = await link_to(made.node.address)
        batches = [msgspec.msgpack.encode([Push("u", b"x", str(n))]) for n in range(5)]
        answers = await asyncio.gather(*map(link.ask, batches))
        assert answers == [b"answer to " + batch for batch in batches]
        assert not link.ended
        assert made.connections == 1


async def test_bytes_that_come_one_by_one_make_the_same_answers() -> None:
    async def dribble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(2 * FRAME_BYTES)
        for byte in frame(0, b"first") + frame(1, b""):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)

    async with linked(dribble) as link:
        assert [*await asyncio.gather(link.ask(BATCH), link.ask(BATCH))] == [b"first", b""]


async def test_an_answer_that_comes_with_the_upgrade_is_for_no_batch() -> None:
    async with link_server(upgrade=SWITCHING + frame(0, results())) as made:
        link = await link_to(made.node.address)
        assert link.ended
        with pytest.raises(LinkEnded, match="for no batch"):
            await link.ask(BATCH)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (frame(1, b"second") + frame(0, b"first"), "frame 1, where 0 was due"),
        (frame(0, b"first") + frame(0, b"again"), "frame 0, where 1 was due"),
        (frame(0, b"1") + frame(1, b"2") + frame(2, b"3"), "for no batch"),
        (b"\xff" * 12, f"at most {MAX_ANSWER_BYTES}"),
        ((MAX_ANSWER_BYTES + 1).to_bytes(4, "big") + bytes(8), f"{MAX_ANSWER_BYTES + 1} bytes"),
        (b"HTTP/1.1 500 X\r\n\r\n", "at most"),
    ],
    ids=["out of order", "twice", "too many", "no frame", "one byte too many", "HTTP"],
)
async def test_what_is_no_answer_ends_the_link(answer: bytes, told: str) -> None:
    before = ended_by("bad-frame")

    async def answer_so(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(2 * FRAME_BYTES)
        writer.write(answer)

    async with linked(answer_so) as link:
        found = await asyncio.gather(link.ask(BATCH), link.ask(BATCH), return_exceptions=True)
        for one in found:
            assert one in (b"first", b"1", b"2") or isinstance(one, LinkEnded)
        assert link.ended
        with pytest.raises(LinkEnded, match=told):
            await link.ask(BATCH)
    assert ended_by("bad-frame") == before + 1


async def test_a_gateway_that_stops_in_the_middle_of_an_answer_is_out_of_time() -> None:
    async def stop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(frame(0, b"whole") + frame(1, b"not whole")[:-1])

    async def asked(link: Link) -> bytes:
        return await link.ask(BATCH)

    async with linked(lambda reader, writer: after(reader, stop(reader, writer))) as link:
        first, second = await asyncio.gather(asked(link), asked(link), return_exceptions=True)
        assert first == b"whole"
        assert isinstance(second, TimeoutError)


async def after(reader: asyncio.StreamReader, then: Awaitable[None]) -> None:
    """Do something once two batches have come."""
    await reader.readexactly(2 * FRAME_BYTES)
    await then


@pytest.mark.parametrize("how", ["closed", "broken"])
async def test_when_the_gateway_ends_it_all_that_is_unanswered_ends(how: str) -> None:
    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(2 * FRAME_BYTES)
        writer.write(frame(0, b"whole"))
        await writer.drain()
        if how == "closed":
            writer.write_eof()
            return
        plug = writer.get_extra_info("socket")
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    before = ended_by(how)
    async with linked(leave) as link:
        first, second = await asyncio.gather(
            link.ask(BATCH), link.ask(BATCH), return_exceptions=True
        )
        assert first == b"whole" or how == "broken"  # a reset may overtake an answer
        assert isinstance(second, LinkEnded)
    assert ended_by(how) == before + 1


async def test_no_answer_in_time_ends_all_batches_in_flight_together() -> None:
    held, before = metrics.LINKS._value.get(), ended_by("timeout")

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer nothing."""

    async with linked(never) as link:
        assert metrics.LINKS._value.get() == held + 1
        began = time.monotonic()
        found = await asyncio.gather(link.ask(BATCH), link.ask(BATCH), return_exceptions=True)
        assert [type(one) for one in found] == [TimeoutError] * 2
        assert time.monotonic() - began >= TIMEOUT_SECONDS * 0.9
    assert (metrics.LINKS._value.get(), ended_by("timeout")) == (held, before + 1)


async def test_a_batch_behind_another_has_its_time_from_the_others_answer() -> None:
    go_on = asyncio.Event()

    async def answer_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go_on.wait()
        writer.write(frame(0, b"x"))

    async with linked(answer_one) as link:
        link._timeout_seconds = 1_000.0
        first, second = (asyncio.ensure_future(link.ask(BATCH)) for _ in range(2))
        await asyncio.sleep(0)
        link._due = 0.0
        go_on.set()
        assert await first == b"x"
        link._look_at_clock()
        assert not link.ended
        link._due = 0.0
        link._look_at_clock()
        with pytest.raises(TimeoutError):
            await second


async def test_an_idle_link_is_never_out_of_time() -> None:
    async with link_server() as made:
        link = await link_to(made.node.address, timeout_seconds=1_000.0)
        for _ in range(3):
            assert await link.ask(BATCH) == results()
            link._due = 0.0
            link._look_at_clock()
            assert not link.ended
        assert made.connections == 1


async def test_a_batch_that_is_given_up_ends_the_link() -> None:
    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer nothing."""

    async with linked(never) as link:
        given_up, other = (asyncio.ensure_future(link.ask(BATCH)) for _ in range(2))
        await asyncio.sleep(0)
        given_up.cancel()
        with pytest.raises(LinkEnded, match="given up"):
            await other
        with pytest.raises(asyncio.CancelledError):
            await given_up
        assert link.ended


async def test_ending_twice_counts_once() -> None:
    before = ended_by("retired"), ended_by("closed"), metrics.LINKS._value.get()
    async with link_server() as made:
        link = await link_to(made.node.address)
        for _ in range(2):
            link.end("retired", "as the test wants it")
        link.connection_lost(None)  # as the loop says a little later
    after_it = ended_by("retired"), ended_by("closed"), metrics.LINKS._value.get()
    assert after_it == (before[0] + 1, before[1], before[2])


def errors_that_live() -> list[object]:
    # By its type: `isinstance` asks a weak proxy for the class of its object, which may be gone.
    return [each for each in gc.get_objects() if issubclass(type(each), LinkEnded | NoAnswer)]


@pytest.mark.parametrize("answers", [b"", SWITCHING])
async def test_the_end_of_a_link_leaves_no_batch_behind_in_an_errors_frames(answers: bytes) -> None:
    """A processor's full collections are rare: what a circle keeps, is kept."""

    async def vanish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answers)
        if answers:
            await reader.readexactly(FRAME_BYTES)
        writer.transport.abort()

    async def ask(node: Node) -> None:
        link = await link_to(node.address)
        for _ in range(2):
            with suppress(LinkEnded):
                await link.ask(BATCH)

    before = errors_that_live()
    gc.disable()
    try:
        async with listening(vanish) as node:
            with suppress(NoAnswer):
                await ask(node)
            await eventually(lambda: errors_that_live() == before, "the errors are gone")
    finally:
        gc.enable()


async def test_the_kernel_probes_the_peer_of_an_idle_link() -> None:
    async with link_server() as made:
        link = await link_to(made.node.address)
        plug = link._transport.get_extra_info("socket")
        assert plug.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        link.end("retired", "as the test wants it")
