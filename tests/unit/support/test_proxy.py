"""The proxy that stands between parts: forwards, goes silent one way, resets."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import pytest

from pushgate.embedded import LOOPBACK
from tests.support.clients import Wire, eventually, wire_to
from tests.support.proxy import Direction, KafkaProxy, Proxy

pytestmark = pytest.mark.anyio

#: How long nothing may come; what comes at all comes in a thousandth of it.
SILENT_SECONDS: Final = 0.3
_FETCH, _COMMIT = 1, 8


class Echo:
    """A server that sends back what it gets, and notes it."""

    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self.got = b""
        self.lost = 0
        self._answer = answer

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(65_536):
                self.got += chunk
                writer.write(self._answer(chunk))
                await writer.drain()
        except ConnectionResetError:
            self.lost += 1
        finally:
            writer.close()


@asynccontextmanager
async def echoing(answer: Callable[[bytes], bytes] = bytes) -> AsyncIterator[tuple[Echo, int]]:
    echo = Echo(answer)
    server = await asyncio.start_server(echo.serve, LOOPBACK)
    async with server:
        yield echo, server.sockets[0].getsockname()[1]


async def silent(wire: Wire) -> None:
    with pytest.raises(TimeoutError):
        await wire.exactly(1, SILENT_SECONDS)


async def test_it_forwards_both_ways_and_the_end_of_a_stream_too() -> None:
    sent = bytes(range(256)) * 4_000
    async with echoing() as (_, port), Proxy(port) as proxy, wire_to(proxy.port) as wire:
        sending = asyncio.create_task(wire.send(sent))
        assert await wire.exactly(len(sent)) == sent
        await sending
    async with echoing() as (echo, port), Proxy(port) as proxy:
        async with wire_to(proxy.port) as wire:
            await wire.send(b"x")
            assert await wire.exactly(1) == b"x"
        assert echo.got == b"x"


async def test_requests_that_are_held_come_late_and_whole() -> None:
    async with echoing() as (echo, port), Proxy(port) as proxy, wire_to(proxy.port) as wire:
        await wire.send(b"1")
        assert await wire.exactly(1) == b"1"
        proxy.silence(Direction.TO_SERVER)
        await wire.send(b"2")
        await silent(wire)
        assert echo.got == b"1"
        async with wire_to(proxy.port) as newcomer:
            await newcomer.send(b"3")
            await silent(newcomer)
            proxy.release()
            assert await newcomer.exactly(1) == b"3"
        assert await wire.exactly(1) == b"2"


async def test_answers_that_are_held_come_late_and_whole() -> None:
    async with echoing() as (echo, port), Proxy(port) as proxy, wire_to(proxy.port) as wire:
        proxy.silence(Direction.TO_CLIENT)
        await wire.send(b"1")
        await eventually(lambda: echo.got == b"1", "the request is there")
        await silent(wire)
        proxy.release()
        assert await wire.exactly(1) == b"1"


async def test_a_held_direction_takes_no_more_than_a_bounded_amount() -> None:
    async with echoing() as (echo, port), Proxy(port) as proxy, wire_to(proxy.port) as wire:
        proxy.silence(Direction.TO_SERVER)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SILENT_SECONDS):
                await wire.send(bytes(64 * 1024 * 1024))
        assert echo.got == b""


async def test_a_reset_is_one_on_both_sides_and_loses_what_is_held() -> None:
    async with echoing() as (echo, port), Proxy(port) as proxy, wire_to(proxy.port) as wire:
        await wire.send(b"1")
        assert await wire.exactly(1) == b"1"
        proxy.silence(Direction.TO_SERVER)
        await wire.send(b"2")
        await silent(wire)
        proxy.reset()
        proxy.release()
        with pytest.raises(ConnectionResetError):
            await wire._reader.readexactly(1)  # Wire.rest() would not tell a reset from an end
        await eventually(lambda: echo.lost == 1, "the server sees it too")
        assert echo.got == b"1"
        async with wire_to(proxy.port) as again:
            await again.send(b"3")
            assert await again.exactly(1) == b"3"


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4) + body


async def test_a_broker_is_named_by_the_proxys_address() -> None:
    async with echoing() as (_, port), KafkaProxy(f"{LOOPBACK}:{port}") as proxy:
        host = b"\x00\x09" + LOOPBACK.encode()
        async with wire_to(proxy.port) as wire:
            await wire.send(frame(b"\x00\x03 " + host + port.to_bytes(4) + b" end"))
            expected = frame(b"\x00\x03 " + host + proxy.port.to_bytes(4) + b" end")
            assert await wire.exactly(len(expected)) == expected


async def test_commits_are_held_with_what_follows_and_other_connections_go_on() -> None:
    async with (
        echoing() as (echo, port),
        KafkaProxy(f"{LOOPBACK}:{port}") as proxy,
        wire_to(proxy.port) as coordinator,
        wire_to(proxy.port) as reader,
    ):
        fetch, commit = (frame(key.to_bytes(2) + b"...") for key in (_FETCH, _COMMIT))
        await coordinator.send(commit)
        assert await coordinator.exactly(len(commit)) == commit
        proxy.hold_commits()
        await coordinator.send(commit + fetch)
        await silent(coordinator)
        assert proxy.held_commits == 1
        await reader.send(fetch)
        assert await reader.exactly(len(fetch)) == fetch
        assert echo.got == commit + fetch
        proxy.let_through()
        assert await coordinator.exactly(len(commit + fetch)) == commit + fetch
