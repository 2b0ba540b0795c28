"""Bursts: far more at once than a connection has room for. All of it arrives, in order, once.

The tests play the processor: what was overloaded is sent again, in order, until all is taken.
"""

import asyncio
import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import pytest

from tests.conformance.steps import metric, open_on, tls_to
from tests.support.certificate import write_certificate
from tests.support.clients import Client, Pusher, connect, eventually, pusher_to, wire_to
from tests.support.processes import GatewayProcess
from tests.support.proxy import Direction, Proxy

pytestmark = pytest.mark.anyio

Start = Callable[..., GatewayProcess]
Push = dict[str, object]

#: By the size of a payload in bytes, how many messages a burst has.
COUNTS: Final = {200: 3_000, 1_000: 1_000, 65_536: 100}
BATCH_MESSAGES: Final = 1_000
BATCH_BYTES: Final = 4_000_000
#: How long a burst may take to arrive, on a busy machine.
PATIENCE: Final = 40.0
#: After how many seconds without progress a client is too slow.
SILENCE: Final = 3.0
READ_SECONDS: Final = 20.0


@pytest.fixture(scope="module")
def gateway(start_gateway: Start) -> GatewayProcess:
    """Give a gateway as it is set by default, but for when a client is too slow: soon."""
    return start_gateway(heartbeat_timeout_seconds=SILENCE)


def burst(user: str, size: int, count: int) -> list[Push]:
    return [
        {"user": user, "data": (b"%06d" % number).ljust(size, b"."), "id": f"m-{number}"}
        for number in range(count)
    ]


def numbers(payloads: Sequence[bytes], size: int) -> list[int]:
    """Give the numbers of messages, which must be whole."""
    assert all(len(payload) == size for payload in payloads)
    return [int(payload[:6]) for payload in payloads]


class Gone(Exception):
    """A connection that should have had all messages is gone."""


class Processor:
    """Sends messages of one user, and again what was overloaded, in order."""

    def __init__(self, pusher: Pusher, messages: Sequence[Push], *, connections: int = 1) -> None:
        self.pusher = pusher
        self.user = str(messages[0]["user"])
        self.pending = list(messages)
        self.connections = connections
        self.refusals = 0
        self.attempts = 0

    async def send_all(self) -> None:
        await eventually(self.try_once, "all is taken", timeout_seconds=PATIENCE)

    async def try_once(self) -> bool:
        """Send one batch; tell whether everything is taken."""
        most = BATCH_BYTES // (len(self.pending[0]["data"]) + 100)  # type: ignore[arg-type]
        batch = self.pending[: min(BATCH_MESSAGES, most)]
        results = await self.pusher.push(batch, packed=True)
        self.attempts += 1
        again = [push for push, result in zip(batch, results, strict=True) if not self.ok(result)]
        self.refusals += len(again)
        self.pending = again + self.pending[len(batch) :]
        return not self.pending

    def ok(self, result: Any) -> bool:
        """Whether all connections have a message.

        Raises:
            Gone: there are fewer connections.
        """
        if isinstance(result, dict):
            if result != {"error": "overloaded"}:
                assert result["taken"] + result["overloaded"] == self.connections, result
            return False
        if result != self.connections:
            raise Gone
        return True


async def read(client: Client, count: int) -> list[bytes]:
    return [(await client.message(READ_SECONDS)).payload for _ in range(count)]


async def arrives(processor: Processor, client: Client, size: int) -> None:
    """Send all, and see it arrive once, in order, and nothing behind it."""
    count = len(processor.pending)
    reading = asyncio.create_task(read(client, count))
    await processor.send_all()
    assert numbers(await reading, size) == list(range(count))
    await processor.pusher.push_one(processor.user, b"last", id="last")
    assert (await client.message()).payload == b"last"


@pytest.mark.parametrize("size", COUNTS)
async def test_a_burst_arrives_whole_in_order_and_once(
    gateway: GatewayProcess, transport: str, user: str, size: int
) -> None:
    async with (
        connect(transport, gateway.port, user) as client,
        pusher_to(gateway.internal_port) as pusher,
    ):
        processor = Processor(pusher, burst(user, size, COUNTS[size]))
        await arrives(processor, client, size)
        assert processor.refusals or COUNTS[size] * size < 2_000_000, "the burst was none"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Give a certificate's file and its key's."""
    return write_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def secured(start_gateway: Start, files: tuple[Path, Path]) -> GatewayProcess:
    """Give a gateway with TLS."""
    return start_gateway(tls_cert=files[0], tls_key=files[1], heartbeat_timeout_seconds=SILENCE)


async def test_a_burst_arrives_over_tls(
    secured: GatewayProcess, files: tuple[Path, Path], transport: str, user: str
) -> None:
    size, count = 16_384, 200
    trust = ssl.create_default_context(cafile=str(files[0]))
    subprotocol = {"ws-plain": "pushgate.plain", "ws-v1": "pushgate.v1"}.get(transport, transport)
    async with (
        tls_to(secured.port, trust) as wire,
        pusher_to(secured.internal_port) as pusher,
    ):
        client = await open_on(wire, subprotocol, user)
        await arrives(Processor(pusher, burst(user, size, count)), client, size)


async def test_a_burst_arrives_over_a_long_path_with_a_small_window(
    gateway: GatewayProcess, transport: str, user: str
) -> None:
    size, count = 1_000, 1_000
    async with (
        Proxy(gateway.port, window_bytes=16_384, latency_seconds=0.05) as path,
        connect(transport, path.port, user) as client,
        pusher_to(gateway.internal_port) as pusher,
    ):
        processor = Processor(pusher, burst(user, size, count))
        await arrives(processor, client, size)
        # A poll session's own buffer holds nearly all.
        assert processor.refusals > (0 if transport != "poll" else -1), "the path was none"


@pytest.mark.parametrize(("stream", "over_tls"), [("pushgate.plain", False), ("sse", True)])
async def test_a_client_that_reads_little_but_reads_is_kept_and_who_stops_is_cut(
    gateway: GatewayProcess,
    secured: GatewayProcess,
    files: tuple[Path, Path],
    user: str,
    stream: str,
    over_tls: bool,
) -> None:
    node = secured if over_tls else gateway
    trust = ssl.create_default_context(cafile=str(files[0]))
    async with AsyncExitStack() as stack:
        # 32 kB/s through a window that is smaller than the kernel's segments on loopback.
        path = Proxy(node.port, window_bytes=16_384, latency_seconds=0.5)
        await stack.enter_async_context(path)
        to_path = tls_to(path.port, trust) if over_tls else wire_to(path.port)
        client = await open_on(await stack.enter_async_context(to_path), stream, user)
        pusher = await stack.enter_async_context(pusher_to(node.internal_port))
        slow = f"pushgate_gateway_connections_closed_total{{{closed_as(stream)}}}"
        before = await metric(pusher, slow)
        processor = Processor(pusher, burst(user, 1_000, 1_000))
        began, got = time.monotonic(), 0
        while time.monotonic() - began < 2.5 * SILENCE:
            if got % 50 == 0:
                # 330 kB fit at once, and would be out after 8 s. Who has no backlog is not slow.
                assert not await processor.try_once(), "nothing waits for the client"
            assert (await client.message()).payload.startswith(b"%06d" % got)
            got += 1
        assert await metric(pusher, slow) == before
        path.silence(Direction.TO_CLIENT)

        async def is_cut() -> bool:
            return await metric(pusher, slow) == before + 1

        await eventually(is_cut, "it is cut, and told why", timeout_seconds=3 * SILENCE)


def closed_as(stream: str) -> str:
    """Give the labels of a connection that was closed as too slow."""
    transport = "sse" if stream == "sse" else "websocket"
    return f'reason="too slow: reconnect and resume",transport="{transport}"'


async def test_of_two_devices_the_slow_one_misses_nothing_and_the_fast_one_gets_nothing_twice(
    gateway: GatewayProcess, user: str
) -> None:
    size, count = 4_096, 600
    async with AsyncExitStack() as stack:
        path = Proxy(gateway.port, window_bytes=16_384, latency_seconds=0.02)
        await stack.enter_async_context(path)
        slow = await stack.enter_async_context(connect("sse", path.port, user, device="phone"))
        fast = await stack.enter_async_context(
            connect("ws-plain", gateway.port, user, device="desk")
        )
        pusher = await stack.enter_async_context(pusher_to(gateway.internal_port))
        partial = await metric(pusher, 'pushgate_gateway_pushed_total{result="partial"}')
        reading = [asyncio.create_task(read(client, count)) for client in (slow, fast)]
        processor = Processor(pusher, burst(user, size, count), connections=2)
        await processor.send_all()
        for payloads in await asyncio.gather(*reading):
            assert numbers(payloads, size) == list(range(count))
        results = await pusher.push([{"user": user, "data": "last", "id": "last"}])
        assert results == [2]
        for client in (slow, fast):
            assert (await client.message()).payload == b"last"
        assert await metric(pusher, 'pushgate_gateway_pushed_total{result="partial"}') > partial
        assert await metric(pusher, "pushgate_gateway_partly_taken_messages") == 0


async def test_where_one_of_two_devices_never_reads_the_other_has_all_and_is_not_told_twice(
    gateway: GatewayProcess, user: str
) -> None:
    size, count = 16_384, 200
    async with (
        connect("ws-plain", gateway.port, user, receive_buffer_bytes=8_192),
        connect("ws-plain", gateway.port, user) as reader,
        pusher_to(gateway.internal_port) as pusher,
    ):
        reading = asyncio.create_task(read(reader, count))
        processor = Processor(pusher, burst(user, size, count), connections=2)
        with pytest.raises(Gone):
            await processor.send_all()  # until the one that never reads is cut
        processor.connections = 1
        results = await pusher.push(processor.pending[:100], packed=True)
        assert results == [1] * len(results)
        await processor.send_all()
        assert numbers(await reading, size) == list(range(count))


async def test_one_body_of_which_some_connection_has_no_room_is_delivered(
    start_gateway: Start, user: str
) -> None:
    small = start_gateway(poll_buffer_bytes=4_096)
    async with (
        connect("poll", small.port, user),
        connect("ws-plain", small.port, user) as reader,
        pusher_to(small.internal_port) as pusher,
    ):
        for taken in (2, 1, 1):
            response = await pusher.http.post(f"/push/{user}", content=b"x" * 3_000)
            assert (response.status_code, response.text) == (200, f"delivered to {taken}\n")
            await reader.message()


async def test_dropping_the_oldest_refuses_nothing_and_the_newest_arrives(
    start_gateway: Start, user: str
) -> None:
    dropping = start_gateway(slow_consumer="drop-oldest")
    count = COUNTS[1_000]
    async with (
        # The buffers on the way hold less than the burst, however soon the client begins to read.
        connect("ws-v1", dropping.port, user, receive_buffer_bytes=8_192) as client,
        pusher_to(dropping.internal_port) as pusher,
    ):
        results = await pusher.push(burst(user, 1_000, count), packed=True)
        assert results == [1] * count
        dropped = int(await metric(pusher, 'pushgate_gateway_dropped_total{transport="websocket"}'))
        assert dropped > 0
        got = numbers(await read(client, count - dropped), 1_000)
        assert got == sorted(set(got))
        assert got[-1] == count - 1
