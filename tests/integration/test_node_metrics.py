"""What metrics tell of a node: limits and how near they are, states, handshakes, the drain."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway import metrics
from gateway.server import Gateway
from tests.integration.test_server import gateway_for
from tests.support.clients import connect, eventually

pytestmark = pytest.mark.anyio


@pytest.fixture
def user() -> str:
    return f"user-{uuid.uuid4().hex[:12]}"


def told(name: str, **labels: str) -> float:
    """Give the sum of a metric's values, as a scrape tells them."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(metrics.exposition().decode())
        for sample in family.samples
        if sample.name == f"pushgate_gateway_{name}" and labels.items() <= sample.labels.items()
    )


@asynccontextmanager
async def running(gateway: Gateway) -> AsyncIterator[None]:
    task = asyncio.create_task(gateway.run())
    try:
        await gateway.started()
        yield
    finally:
        for _ in range(2):
            gateway.stop()
        async with asyncio.timeout(8.0):
            await task


async def test_a_scrape_tells_a_nodes_limits_states_and_drain(redis_url: str, user: str) -> None:
    gateway = gateway_for(redis_url, max_connections=4, max_memory_bytes=1 << 40)
    assert told("ready") == 0
    ways = ("websocket", "sse", "poll")
    handshakes = {way: told("handshake_seconds_count", transport=way) for way in ways}
    spent = told("handshake_seconds_sum", transport="websocket")
    asked = {call: told("registry_seconds_count", call=call) for call in ("heartbeat", "write")}
    others = told("connections")  # of gateways that ended with their connections in other tests
    async with running(gateway), AsyncExitStack() as clients:
        for transport in ("ws-v1", "ws-plain", "sse", "poll"):
            await clients.enter_async_context(connect(transport, gateway.port, user))
        assert told("ready") == 0, "a full node is not ready"
        assert told("connections") - others == told("connections_limit") == 4
        assert told("connections_by_state", state="open") == 4
        assert told("connections_by_state", transport="websocket", state="open") == 2
        assert 4 <= told("sockets") < told("sockets_limit")
        assert (told("memory_limit_bytes"), told("short_of_memory")) == (1 << 40, 0)
        for way, before in handshakes.items():
            connected = 2 if way == "websocket" else 1
            assert told("handshake_seconds_count", transport=way) == before + connected
        assert 0 < told("handshake_seconds_sum", transport="websocket") - spent < 60
        assert (told("draining"), told("drain_left_seconds"), told("drain_told_clients")) == (
            0,
        ) * 3
        gateway.stop()
        assert told("draining") == 1
        assert 200 < told("drain_left_seconds") <= 240
        gateway.stop()  # hastened: everybody is told, and no time is left
        assert told("drain_left_seconds") == 0
        await eventually(lambda: told("connections") == others, "all are closed")
    for call, before in asked.items():
        assert told("registry_seconds_count", call=call) > before


async def test_a_client_that_is_told_to_reconnect_is_parting(redis_url: str, user: str) -> None:
    gateway = gateway_for(redis_url, drain_seconds=20.0, drain_settle_seconds=0.0)
    async with running(gateway), connect("ws-v1", gateway.port, user):
        gateway.stop()
        await eventually(lambda: told("connections_by_state", state="parting") == 1, "it parts")
        assert told("connections_by_state", state="open") == 0
        assert told("drain_told_clients") == 1
