"""Clients that do not read: what they find when they wake up, and what they cost the others."""

import os
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import pytest

from registry.redis_store import RedisRegistry
from tests.conformance.steps import metric, until_gone
from tests.support.clients import (
    Client,
    Control,
    Ended,
    Message,
    Pusher,
    SseClient,
    WebSocketClient,
    connect,
    eventually,
    pusher_to,
)
from tests.support.processes import GatewayProcess

pytestmark = pytest.mark.anyio

Start = Callable[..., GatewayProcess]

STREAMS: Final = pytest.mark.parametrize("stream", ["ws-plain", "ws-v1", "sse"])
#: More than kernels, transports and our own buffer hold for one client, in messages of 4 KB.
COUNT: Final = 400
BATCH: Final = 10
PADDING: Final = b"x" * 4_000
SMALL: Final = 8_192
NARROW: Final = 65_536
MEGABYTE: Final = 1024 * 1024
UNSENT: Final = 'pushgate_gateway_unsent_at_close_total{reason="too slow: reconnect and resume"}'
#: After how many seconds without progress a client is too slow.
SILENCE: Final = 3.0


@pytest.fixture(scope="module")
def closing(start_gateway: Start) -> GatewayProcess:
    """Give a gateway that refuses what has no room, and closes who does not read for a while."""
    return start_gateway(
        send_buffer_bytes=NARROW, slow_consumer="close", heartbeat_timeout_seconds=SILENCE
    )


@pytest.fixture(scope="module")
def dropping(start_gateway: Start) -> GatewayProcess:
    """Give a gateway that drops the oldest messages of who is too slow."""
    return start_gateway(send_buffer_bytes=NARROW, slow_consumer="drop-oldest")


def spelled(number: int) -> bytes:
    return b"%06d" % number + PADDING


def number_of(message: Message) -> int:
    """Give the number of a message, which must be whole."""
    number = int(message.payload[:6])
    assert message.payload == spelled(number)
    return number


async def push_all(pusher: Pusher, sleeping: str, reading: Client, other: str) -> list[int]:
    """Push to both; see that the one who reads gets all; give which the other one's took."""
    took: list[int] = []
    for start in range(0, COUNT, BATCH):
        numbers = range(start, start + BATCH)
        results = await pusher.push(
            [{"user": [sleeping, other], "data": spelled(number)} for number in numbers],
            packed=True,
        )
        for number, (to_sleeping, to_other) in zip(numbers, results, strict=True):
            assert to_other == 1
            assert number_of(await reading.message()) == number
            took += [number] * (to_sleeping == 1)
    return took


async def read_on(client: Client) -> tuple[list[int], list[Control], Ended | None]:
    """Read until the end, or the last message: the numbers, what was told, and the end."""
    assert isinstance(client, WebSocketClient | SseClient)
    numbers: list[int] = []
    told: list[Control] = []
    while COUNT - 1 not in numbers:
        try:
            found = await client.next()
        except Ended as ended:
            return numbers, told, ended
        if isinstance(found, Message):
            numbers.append(number_of(found))
        else:
            told.append({**found, "after": len(numbers)})
    return numbers, told, None


@STREAMS
async def test_a_late_reader_gets_all_that_was_taken_and_then_why_it_was_closed(
    closing: GatewayProcess, registry: RedisRegistry, stream: str, user: str
) -> None:
    other = f"{user}-other"
    transport = "sse" if stream == "sse" else "websocket"
    async with (
        connect(stream, closing.port, user, receive_buffer_bytes=SMALL) as late,
        connect(stream, closing.port, other) as reading,
        pusher_to(closing.internal_port) as pusher,
    ):
        unsent = await metric(pusher, UNSENT)
        took = await push_all(pusher, user, reading, other)
        # Of the kernels' buffers and our own.
        assert NARROW / 2 < len(took) * len(PADDING) < MEGABYTE / 2
        await until_gone(registry, user)
        assert await pusher.push([{"user": user, "data": "x"}]) == [0]
        numbers, told, ended = await read_on(late)
        assert ended is not None
        assert numbers == took
        if stream == "sse":
            (close,) = told
            assert (close["control"], close["code"]) == ("close", 4001)
        else:
            assert (ended.code, told) == (4001, [])
        dropped = f'pushgate_gateway_dropped_total{{transport="{transport}"}}'
        assert await metric(pusher, dropped) == 0
        assert await metric(pusher, UNSENT) == unsent


@STREAMS
async def test_what_a_client_that_never_reads_has_not_been_sent_is_counted(
    closing: GatewayProcess, registry: RedisRegistry, stream: str, user: str
) -> None:
    other = f"{user}-other"
    async with (
        connect(stream, closing.port, user, receive_buffer_bytes=SMALL),
        connect(stream, closing.port, other) as reading,
        pusher_to(closing.internal_port) as pusher,
    ):
        unsent = await metric(pusher, UNSENT)
        began = time.monotonic()
        took = await push_all(pusher, user, reading, other)
        await until_gone(registry, user)
        assert time.monotonic() - began > SILENCE / 2, "a full buffer alone is no slowness"

        async def counted_once() -> bool:
            return await metric(pusher, UNSENT) > unsent

        await eventually(counted_once, "its grace is over", timeout_seconds=8.0)
        counted = int(await metric(pusher, UNSENT) - unsent)
        assert NARROW // len(PADDING) // 2 < counted < len(took)


@STREAMS
async def test_a_late_reader_is_told_of_the_gap_and_has_the_newest(
    dropping: GatewayProcess, stream: str, user: str
) -> None:
    other = f"{user}-other"
    transport = "sse" if stream == "sse" else "websocket"
    sample = f'pushgate_gateway_dropped_total{{transport="{transport}"}}'
    async with (
        connect(stream, dropping.port, user, receive_buffer_bytes=SMALL) as late,
        connect(stream, dropping.port, other) as reading,
        pusher_to(dropping.internal_port) as pusher,
    ):
        before = await metric(pusher, sample)
        assert len(await push_all(pusher, user, reading, other)) == COUNT
        dropped = int(await metric(pusher, sample) - before)
        assert 0 < dropped < COUNT
        numbers, told, ended = await read_on(late)
        assert ended is None
        assert len(numbers) == COUNT - dropped
        newest = next(n for n in range(len(numbers)) if numbers[n] != n)
        assert numbers == [*range(newest), *range(newest + dropped, COUNT)]
        assert len(numbers) - newest >= NARROW // len(PADDING) - 2, "what fits is kept"
        notice = [] if stream == "ws-plain" else [{"control": "gap", "after": newest}]
        assert told == notice
        await pusher.push_one(user, spelled(COUNT))
        assert isinstance(late, WebSocketClient | SseClient)
        following = await late.next()
        assert isinstance(following, Message), "of one gap one is told once"
        assert number_of(following) == COUNT


@STREAMS
async def test_a_close_comes_behind_all_that_was_taken(
    closing: GatewayProcess, stream: str, user: str
) -> None:
    async with (
        connect(stream, closing.port, user, receive_buffer_bytes=SMALL) as late,
        pusher_to(closing.internal_port) as pusher,
    ):
        batch = [{"user": user, "data": spelled(number)} for number in range(COUNT)]
        took = (await pusher.push(batch, packed=True)).count(1)
        assert NARROW / 2 < took * len(PADDING) < MEGABYTE / 2
        response = await pusher.http.delete(f"/connections/{user}")
        assert response.json() == {"closed": 1}
        assert await pusher.push([{"user": user, "data": "x"}]) == [0]
        numbers, told, ended = await read_on(late)
        assert ended is not None
        assert numbers == list(range(took))
        assert (told[0]["code"] if stream == "sse" else ended.code) == 4003


@pytest.mark.parametrize("slow_consumer", ["drop-oldest", "close"])
async def test_clients_that_never_read_and_are_kept_cost_bounded_memory(
    start_gateway: Start, user: str, slow_consumer: str
) -> None:
    keeping = start_gateway(
        send_buffer_bytes=NARROW, slow_consumer=slow_consumer, heartbeat_timeout_seconds=60.0
    )
    users = [f"{user}-{number}" for number in range(20)]
    async with AsyncExitStack() as stack:
        for number, name in enumerate(users):
            stream = ("ws-plain", "ws-v1", "sse")[number % 3]
            await stack.enter_async_context(
                connect(stream, keeping.port, name, receive_buffer_bytes=SMALL)
            )
        pusher = await stack.enter_async_context(pusher_to(keeping.internal_port))
        batch = [{"user": users, "data": b"y" * 32_768}] * 60
        await pusher.push(batch, packed=True)  # what one batch takes for itself, it keeps
        before = resident_bytes(keeping.pid)
        for _ in range(25):
            await pusher.push(batch, packed=True)
        # 47 MiB were pushed, in each of three forms.
        assert resident_bytes(keeping.pid) - before < 12 * MEGABYTE
        assert await pusher.connections() == len(users)


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")
