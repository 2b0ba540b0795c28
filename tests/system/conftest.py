"""The whole path, with real processes: gateways, processors, Kafka, Valkey and HAProxy."""

import itertools
import os
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack

import pytest
from aiokafka import AIOKafkaProducer

from registry.redis_store import RedisRegistry
from tests.support.kafka import KafkaError, KafkaServer, start_strict_kafka
from tests.support.processes import GatewayProcess, ProcessorProcess
from tests.support.valkey import RedisServer

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def module_processes() -> Iterator[ExitStack]:
    """Give what ends a module's processes with the module."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def processes() -> Iterator[ExitStack]:
    """Give what ends a test's processes with the test."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def gateways(module_processes: ExitStack, valkey: RedisServer) -> list[GatewayProcess]:
    """Give two gateways that a module's tests share, and leave running."""
    names = [f"system-{next(_numbers)}" for _ in range(2)]
    return [
        module_processes.enter_context(GatewayProcess(name, redis_url=valkey.url)) for name in names
    ]


StartGateway = Callable[..., GatewayProcess]
StartProcessor = Callable[..., ProcessorProcess]


@pytest.fixture
def start_gateway(processes: ExitStack, valkey: RedisServer) -> StartGateway:
    """Give a function that starts a gateway of the test's own."""

    def start(*, redis_url: str = valkey.url, **settings: object) -> GatewayProcess:
        name = f"system-{next(_numbers)}"
        return processes.enter_context(GatewayProcess(name, redis_url=redis_url, **settings))

    return start


@pytest.fixture
def start_processor(
    processes: ExitStack, valkey: RedisServer, kafka: KafkaServer, topic: str
) -> StartProcessor:
    """Give a function that starts a processor of the test's topic and, by default, one group."""

    def start(*, redis_url: str = valkey.url, **settings: object) -> ProcessorProcess:
        processor = ProcessorProcess(
            f"processor-{next(_numbers)}",
            redis_url=redis_url,
            bootstrap=kafka.bootstrap,
            topic=topic,
            group=f"group-{topic}",
            **settings,
        )
        return processes.enter_context(processor)

    return start


@pytest.fixture
async def registry(valkey: RedisServer) -> AsyncIterator[RedisRegistry]:
    """Give the registry as a processor sees it."""
    store = RedisRegistry(valkey.url)
    yield store
    await store.close()


@pytest.fixture
async def backend(kafka: KafkaServer) -> AsyncIterator[AIOKafkaProducer]:
    """Give a plain producer, as any backend service has one."""
    producer = AIOKafkaProducer(
        bootstrap_servers=kafka.bootstrap, acks="all", max_request_size=4 * 1024 * 1024
    )
    await producer.start()
    yield producer
    await producer.stop()


@pytest.fixture(scope="session")
def strict_kafka() -> Iterator[KafkaServer]:
    """Give a broker that creates no topic by itself, and has a user who can be restricted."""
    try:
        server = start_strict_kafka()
    except KafkaError as error:
        if os.environ.get("PUSHGATE_REQUIRE_REAL_KAFKA") == "1":
            raise
        pytest.skip(f"needs a broker that creates no topics: {error}")
    yield server
    server.stop()


@pytest.fixture
def user() -> str:
    """Give a user whom no other test has."""
    return f"user-{uuid.uuid4().hex[:12]}"
