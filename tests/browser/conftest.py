"""The browser that these tests share, where its pages are from, and whole systems for them."""

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack

import pytest
from aiokafka import AIOKafkaProducer

from tests.browser.chromium import Chromium, chromium_binary
from tests.browser.dev import DevProcess
from tests.browser.publisher import Publisher
from tests.support.kafka import KafkaServer
from tests.support.processes import GatewayProcess, ProcessorProcess
from tests.support.valkey import RedisServer

StartGateway = Callable[..., GatewayProcess]
StartProcessor = Callable[..., ProcessorProcess]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    """Give a Chromium; skip where there is none, fail where PUSHGATE_REQUIRE_CHROMIUM is 1."""
    binary = chromium_binary()
    if binary is None:
        missing = "no chromium: apt-get install chromium"
        if os.environ.get("PUSHGATE_REQUIRE_CHROMIUM") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    with Chromium(binary) as browser:
        yield browser


@pytest.fixture(scope="module")
def dev() -> Iterator[DevProcess]:
    """Give the whole system of `pushgate dev`."""
    with DevProcess() as process:
        yield process


@pytest.fixture(scope="module")
def origin(valkey: RedisServer) -> Iterator[GatewayProcess]:
    """Give a gateway that serves pages their script."""
    with GatewayProcess("origin", redis_url=valkey.url) as process:
        yield process


@pytest.fixture
def processes() -> Iterator[ExitStack]:
    """Give what ends a test's processes with the test."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def start_gateway(processes: ExitStack, valkey: RedisServer, topic: str) -> StartGateway:
    """Give a function that starts a gateway by its name."""

    def start(name: str, **settings: object) -> GatewayProcess:
        gateway = GatewayProcess(f"{name}-{topic}", redis_url=valkey.url, **settings)
        return processes.enter_context(gateway)

    return start


@pytest.fixture
def start_processor(
    processes: ExitStack, valkey: RedisServer, kafka: KafkaServer, topic: str
) -> StartProcessor:
    """Give a function that starts a processor of the test's topic."""

    def start(**settings: object) -> ProcessorProcess:
        processor = ProcessorProcess(
            "processor",
            redis_url=valkey.url,
            bootstrap=kafka.bootstrap,
            topic=topic,
            group=f"group-{topic}",
            **settings,
        )
        return processes.enter_context(processor)

    return start


@pytest.fixture
async def publisher(kafka: KafkaServer, topic: str) -> AsyncIterator[Publisher]:
    """Give what publishes to the test's topic."""
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, acks="all")
    await producer.start()
    yield Publisher(producer, topic)
    await producer.stop()
