"""Where a new group starts, where it resumes, and what waits for what at a start."""

import asyncio
import contextlib
import resource
import shutil
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Final

import pytest
from aiokafka import AIOKafkaProducer

from tests.support.clients import connect, eventually
from tests.support.kafka import KafkaServer
from tests.support.processes import (
    GatewayProcess,
    ProcessorProcess,
    PushgateProcess,
    free_port,
)
from tests.support.valkey import RedisServer
from tests.system.conftest import StartProcessor
from tests.system.steps import publish, publish_all, take, until_outcomes

pytestmark = pytest.mark.anyio

DELIVERED: Final = ("delivered", "")


async def test_a_new_group_starts_at_the_end_and_misses_nothing_after_ready(
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    users = [f"{user}-{number}" for number in range(12)]  # on every partition
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(connect("ws-v1", gateways[0].port, name))
            for name in users
        ]
        for name in users:
            await publish(backend, topic, name, b"before")
        processor = start_processor()
        for name in users:
            await publish(backend, topic, name, b"after")
        for client in clients:
            assert (await client.message(timeout=10.0)).payload == b"after"
    await until_outcomes([processor], {DELIVERED: 12})


async def test_a_group_resumes_where_it_committed(
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    processor = start_processor()
    async with connect("sse", gateways[0].port, user) as client:
        await publish(backend, topic, user, b"1")
        assert (await take(client, 1))[0].payload == b"1"
        assert await asyncio.to_thread(processor.terminate) == 0
        await publish_all(backend, topic, user, ["2", "3"])
        await asyncio.to_thread(processor.start)
        await publish(backend, topic, user, b"4")
        assert [m.payload for m in await take(client, 3)] == [b"2", b"3", b"4"]
        await until_outcomes([processor], {DELIVERED: 3})


async def test_a_new_group_that_is_told_so_starts_at_the_earliest(
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    async with connect("ws-v1", gateways[0].port, user) as client:
        await publish_all(backend, topic, user, ["1", "2"])
        start_processor(kafka_start="earliest")
        assert [m.payload for m in await take(client, 2)] == [b"1", b"2"]


async def test_a_gateway_without_redis_waits_and_says_so(processes: ExitStack, user: str) -> None:
    with contextlib.closing(_Late()) as late:
        gateway = GatewayProcess("early-gateway", redis_url=late.valkey.url)
        processes.callback(gateway.close)
        gateway.start(until_ready=False)
        await eventually(lambda: gateway.readyz() == 503, "readyz is 503", timeout_seconds=10.0)
        await eventually(
            lambda: f"127.0.0.1:{late.valkey.port}" in gateway.log, "the log names Redis"
        )
        await asyncio.to_thread(late.valkey.start)
        await eventually(lambda: gateway.readyz() == 200, "ready", timeout_seconds=10.0)
        async with connect("sse", gateway.port, user):
            assert await asyncio.to_thread(gateway.terminate) == 0


async def test_a_gateway_that_waits_for_redis_ends_when_told(processes: ExitStack) -> None:
    with contextlib.closing(_Late()) as late:
        gateway = GatewayProcess("early-gateway", redis_url=late.valkey.url)
        processes.callback(gateway.close)
        gateway.start(until_ready=False)
        await eventually(lambda: gateway.readyz() == 503, "readyz is 503", timeout_seconds=10.0)
        assert await asyncio.to_thread(gateway.terminate, 6.0) == 0


async def test_a_processor_without_redis_waits_and_says_so(
    processes: ExitStack,
    kafka: KafkaServer,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    with contextlib.closing(_Late()) as late:
        processor = _processor(late.valkey.url, kafka.bootstrap, topic)
        processes.callback(processor.close)
        processor.start(until_ready=False)
        await eventually(lambda: processor.readyz() == 503, "503", timeout_seconds=10.0)
        await eventually(
            lambda: f"127.0.0.1:{late.valkey.port}" in processor.log, "the log names Redis"
        )
        await asyncio.to_thread(late.valkey.start)
        await asyncio.to_thread(processor.wait_until_ready)
        gateway = processes.enter_context(GatewayProcess("late", redis_url=late.valkey.url))
        async with connect("ws-v1", gateway.port, user) as client:
            await publish(backend, topic, user, b"x")
            assert (await take(client, 1))[0].payload == b"x"


async def test_a_processor_without_kafka_waits_and_says_so(
    processes: ExitStack,
    gateways: list[GatewayProcess],
    valkey: RedisServer,
    kafka: KafkaServer,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    port = free_port()
    processor = _processor(valkey.url, f"127.0.0.1:{port}", topic)
    processes.callback(processor.close)
    processor.start(until_ready=False)
    await eventually(lambda: processor.readyz() == 503, "readyz is 503", timeout_seconds=10.0)
    await eventually(lambda: f"127.0.0.1:{port}" in processor.log, "the log names Kafka")
    async with relay(port, kafka.bootstrap), connect("ws-v1", gateways[0].port, user) as client:
        await asyncio.to_thread(processor.wait_until_ready)
        await publish(backend, topic, user, b"x")
        assert (await take(client, 1))[0].payload == b"x"
        assert await asyncio.to_thread(processor.terminate) == 0


async def test_a_processor_that_waits_for_kafka_ends_when_told(
    processes: ExitStack, valkey: RedisServer
) -> None:
    processor = _processor(valkey.url, f"127.0.0.1:{free_port()}", "nowhere")
    processes.callback(processor.close)
    processor.start(until_ready=False)
    await eventually(lambda: processor.readyz() == 503, "readyz is 503", timeout_seconds=10.0)
    assert await asyncio.to_thread(processor.terminate, 6.0) == 0


@pytest.mark.parametrize("command", ["gateway", "processor"])
async def test_a_server_may_open_as_many_files_as_the_hard_limit_allows(
    processes: ExitStack, valkey: RedisServer, command: str
) -> None:
    if shutil.which("prlimit") is None:
        pytest.skip("needs prlimit, which is not installed: apt-get install util-linux")
    server: PushgateProcess = (
        GatewayProcess("few-files", redis_url=valkey.url)
        if command == "gateway"
        else _processor(valkey.url, f"127.0.0.1:{free_port()}", "nowhere")
    )
    server.through = ("prlimit", "--nofile=256:1024")
    processes.callback(server.close)
    server.start(until_ready=False)
    await eventually(lambda: server.readyz() in (200, 503), "it answers", timeout_seconds=10.0)
    assert resource.prlimit(server.pid, resource.RLIMIT_NOFILE) == (1_024, 1_024)


class _Late:
    """A Valkey that is started later."""

    def __init__(self) -> None:
        self.valkey = RedisServer()

    def close(self) -> None:
        self.valkey.stop()


def _processor(redis_url: str, bootstrap: str, topic: str) -> ProcessorProcess:
    return ProcessorProcess(
        "early-processor",
        redis_url=redis_url,
        bootstrap=bootstrap,
        topic=topic,
        group=f"group-{topic}",
    )


@asynccontextmanager
async def relay(port: int, bootstrap: str) -> AsyncIterator[None]:
    """Let a broker appear on `port`: a way to the real one, which says where it is itself."""
    host, _, upstream_port = bootstrap.partition(",")[0].rpartition(":")
    ways: set[asyncio.Task[None]] = set()

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError), contextlib.closing(sink):
            while chunk := await source.read(65_536):
                sink.write(chunk)
                await sink.drain()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection(host, int(upstream_port))
        for way in (pump(reader, upstream_writer), pump(upstream_reader, writer)):
            task = asyncio.ensure_future(way)
            ways.add(task)
            task.add_done_callback(ways.discard)

    server = await asyncio.start_server(forward, "127.0.0.1", port)
    try:
        yield
    finally:
        server.close()
        for way in list(ways):
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
