"""A gateway in this process, from bind to exit: how it is told to leave."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from gateway.server import Gateway
from gateway.settings import GatewaySettings
from pushgate.embedded import LOOPBACK
from registry.directory import TIMINGS
from tests.support.clients import WebSocketClient, connect
from tests.support.processes import INTERNAL_SECRET, JWT_SECRET

pytestmark = pytest.mark.anyio

#: Longer than a test waits: who leaves sooner was hastened.
WINDOW_SECONDS = 240.0
SETTLE_SECONDS = 60.0


def gateway_for(redis_url: str, **settings: object) -> Gateway:
    given: dict[str, Any] = {
        "host": LOOPBACK,
        "port": 0,
        "internal_port": 0,
        "redis_url": redis_url,
        "jwt_secret": JWT_SECRET,
        "internal_secret": INTERNAL_SECRET,
        "drain_seconds": WINDOW_SECONDS,
        "drain_settle_seconds": SETTLE_SECONDS,
        **settings,
    }
    return Gateway(GatewaySettings(**given))


@pytest.mark.parametrize("stops", [1, 2, 3])
async def test_a_second_stop_in_the_same_turn_of_the_loop_hastens_the_first(
    redis_url: str, user: str, stops: int
) -> None:
    gateway = gateway_for(redis_url)
    running = asyncio.create_task(gateway.run())
    await gateway.started()
    async with connect("ws-v1", gateway.port, user):
        for _ in range(stops):
            gateway.stop()
        done, _ = await asyncio.wait((running,), timeout=8.0 if stops > 1 else 1.0)
    gateway.stop()
    async with asyncio.timeout(8.0):
        await running
    assert bool(done) == (stops > 1)


async def test_stops_before_it_runs_count_too(redis_url: str) -> None:
    gateway = gateway_for(redis_url)
    gateway.stop()
    gateway.stop()
    assert gateway.node.status == "draining"
    async with asyncio.timeout(SETTLE_SECONDS / 2):
        await gateway.run()


@pytest.mark.parametrize(
    ("lost_node_seconds", "away_seconds", "is_told"),
    [
        (30.0, TIMINGS.lease_seconds + 10.0, False),
        (30.0, 100.0, True),
        # Without a time as a lost node, it is gone with its lease, and not earlier.
        (0.0, TIMINGS.lease_seconds - 1.5 * TIMINGS.heartbeat_seconds, False),
        (0.0, TIMINGS.lease_seconds, True),
    ],
)
async def test_clients_are_told_of_a_gap_where_the_node_was_gone_for_so_long_as_to_be_given_up(
    redis_url: str, user: str, lost_node_seconds: float, away_seconds: float, is_told: bool
) -> None:
    """Until then messages for its clients wait at processors (PUSHGATE_LOST_NODE_SECONDS)."""
    gateway = gateway_for(redis_url, lost_node_seconds=lost_node_seconds)
    running = asyncio.create_task(gateway.run())
    await gateway.started()
    told: list[object] = []
    async with connect("ws-v1", gateway.port, user) as client:
        assert isinstance(client, WebSocketClient)
        gateway.node.registrar._held_at -= away_seconds  # as if the process had been frozen
        with suppress(TimeoutError):
            told.append(await client.next(3 * TIMINGS.heartbeat_seconds))
    gateway.stop()
    gateway.stop()
    async with asyncio.timeout(8.0):
        await running
    assert told == ([{"control": "gap"}] if is_told else [])


@pytest.fixture
def user(request: pytest.FixtureRequest) -> str:
    return f"server-{request.node.name[:60]}"
