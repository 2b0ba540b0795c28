"""Prometheus as shipped scrapes a real system under load: every panel has data, and alerts fire.

loadtest/alerts.py plants all faults.
"""

from __future__ import annotations

import asyncio
import math
import runpy
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import pytest
from aiokafka import AIOKafkaProducer

from tests.support.clients import connect, eventually, head, wire_to
from tests.support.kafka import PARTITIONS
from tests.support.markdown import ROOT
from tests.support.prometheus import Prometheus, prometheus
from tests.support.valkey import RedisServer
from tests.system.conftest import StartGateway, StartProcessor
from tests.system.returning import cursor_of
from tests.system.steps import publish, take

pytestmark = pytest.mark.anyio

DASHBOARD = runpy.run_path(str(ROOT / "deploy" / "grafana" / "dashboard.py"))
DATA_SECONDS = 60.0
TRANSPORTS = ("ws-v1", "sse", "poll")
#: Grafana's variables, as Grafana fills them in where all is selected and a scrape takes a second.
VARIABLES = {"$__rate_interval": "10s", "$instance": ".*"}


def filled_in(query: str) -> str:
    for variable, value in VARIABLES.items():
        query = query.replace(variable, value)
    assert "$" not in query
    return query


def without_data(monitor: Prometheus) -> set[tuple[str, str]]:
    """Give panels and queries that say nothing, or no number."""
    return {
        (panel.title, query.text)
        for row in DASHBOARD["ROWS"]
        for panel in row.panels
        for query in panel.queries
        if not any(math.isfinite(s.values[0][1]) for s in monitor.query(filled_in(query.text)))
    }


def numbers(monitor: Prometheus) -> dict[str, float]:
    """Give the sums of gauges that alerts ask for."""
    names = [
        *(f"pushgate_gateway_{name}" for name in ("ready", "registry_out_of_order")),
        *(
            f"pushgate_processor_{name}"
            for name in ("ready", "gateways", "partitions", "registry_in_doubt")
        ),
    ]
    return {name: monitor.query(f"sum({name})")[0].values[0][1] for name in names}


@asynccontextmanager
async def load(backend: AIOKafkaProducer, topic: str, *ports: int) -> AsyncIterator[None]:
    """Have clients of every transport on every node, and messages for them, until the end."""
    users = [f"{topic}-{number}" for number in range(len(TRANSPORTS) * len(ports))]

    async def publish_on() -> None:
        while True:
            await asyncio.gather(*(publish(backend, topic, user, b"x") for user in users))
            await asyncio.sleep(0.05)

    async with AsyncExitStack() as clients:
        for number, user in enumerate(users):
            way = connect(TRANSPORTS[number % len(TRANSPORTS)], ports[number % len(ports)], user)
            await clients.enter_async_context(way)
        publishing = asyncio.create_task(publish_on())
        try:
            yield
        finally:
            publishing.cancel()
            await asyncio.wait((publishing,))


async def come_back(backend: AIOKafkaProducer, topic: str, user: str, port: int) -> None:
    """Connect, leave, miss a message, and get it."""
    async with connect("ws-v1", port, user) as client:
        await publish(backend, topic, user, b"first")
        await take(client, 1)
        cursor = cursor_of(client)
    await publish(backend, topic, user, b"missed")
    async with connect("ws-v1", port, user, cursor=cursor) as client:
        await take(client, 1)


async def be_refused(port: int) -> None:
    async with wire_to(port) as wire:
        await wire.send(head("GET", "/sse", {"Authorization": "Bearer no-token"}))
        assert (await wire.answer()).status == 401


async def test_every_panel_has_data_and_no_alert_fires_but_that_of_a_planted_fault(
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    own_valkey: RedisServer,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    # A Valkey of its own: nodes of other tests would be gateways of this processor too.
    start_gateway = partial(start_gateway, redis_url=own_valkey.url, max_memory_bytes=1 << 30)
    gateways = [await asyncio.to_thread(start_gateway) for _ in range(2)]
    processor = await asyncio.to_thread(partial(start_processor, redis_url=own_valkey.url))
    targets = {
        "pushgate-gateway": [gateway.internal_port for gateway in gateways],
        "pushgate-processor": [processor.port],
    }
    ports = [gateway.port for gateway in gateways]
    with prometheus(targets) as monitor:
        async with load(backend, topic, *ports):
            deadline = time.monotonic() + DATA_SECONDS
            while missing := await asyncio.to_thread(without_data, monitor):
                assert time.monotonic() < deadline, missing
                # Counters with labels begin with their first event: the second counts as a rate.
                await come_back(backend, topic, user, ports[0])
                await be_refused(ports[1])
            assert await asyncio.to_thread(numbers, monitor) == {
                "pushgate_gateway_ready": 2,
                "pushgate_gateway_registry_out_of_order": 0,
                "pushgate_processor_ready": 1,
                "pushgate_processor_gateways": 2,
                "pushgate_processor_partitions": PARTITIONS,
                "pushgate_processor_registry_in_doubt": 0,
            }
            assert await asyncio.to_thread(monitor.firing) == set()
            await asyncio.gather(*(backend.send_and_wait(topic, b"no key") for _ in range(20)))
            await eventually(
                lambda: asyncio.to_thread(monitor.firing), "bad records have their alert"
            )
            assert await asyncio.to_thread(monitor.firing) == {"PushgateDeadLettersGrow"}
