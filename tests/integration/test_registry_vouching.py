"""A node cut off from Redis that still answers forwards counts, for as long as it answers."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from registry.directory import Node
from registry.redis_store import RedisRegistry
from tests.support.clock import Clock
from tests.support.timings import AnyTimings
from tests.support.valkey import RedisServer

pytestmark = pytest.mark.anyio

NODE = Node("gw-a", "e1", "10.0.0.1:8081")
LOST_SECONDS = 30.0


@pytest.fixture
def clock() -> Clock:
    return Clock(1_000.0)


@pytest.fixture
async def registry(own_valkey: RedisServer, clock: Clock) -> AsyncIterator[RedisRegistry]:
    made = RedisRegistry(
        own_valkey.url,
        timings=AnyTimings(registration_seconds=0.0),
        lost_seconds=LOST_SECONDS,
        clock=clock,
    )
    await made.heartbeat(NODE, claim=True)
    await made.write(NODE, ["alice"], [])
    assert await made.lookup(["alice"]) == [(NODE,)]
    yield made
    await made.close()


def _lose_every_sign_of(node: Node, server: RedisServer) -> None:
    """Delete what expires by itself: the lease, and where the node was seen."""
    with server.client() as client:
        assert client.delete(f"{{pg-nodes}}lease:{node.name}", f"{{pg-nodes}}seen:{node.name}")


async def test_a_node_that_answers_forwards_is_found_without_a_lease(
    own_valkey: RedisServer, registry: RedisRegistry, clock: Clock
) -> None:
    registry.vouch(NODE)
    _lose_every_sign_of(NODE, own_valkey)
    for _ in range(5):  # 100 s: far longer than a node is live and lost
        clock.now += LOST_SECONDS - 10.0
        await registry.refresh()
        assert await registry.lookup(["alice"]) == [(NODE,)]
        assert registry.present(NODE)
        assert registry.lost(NODE)
        assert await registry.nodes() == []  # an audit and row 1 count live ones
        registry.vouch(NODE)
    clock.now += LOST_SECONDS
    await registry.refresh()
    assert await registry.lookup(["alice"]) == [()]
    assert not registry.present(NODE)


async def test_its_name_in_the_list_may_be_gone_too(
    own_valkey: RedisServer, registry: RedisRegistry
) -> None:
    registry.vouch(NODE)
    _lose_every_sign_of(NODE, own_valkey)
    with own_valkey.client() as client:
        client.delete("{pg-nodes}names")
    await registry.refresh()
    assert await registry.lookup(["alice"]) == [(NODE,)]


@pytest.mark.parametrize("cut_off", [False, True])
async def test_a_goodbye_ends_it_at_once(
    own_valkey: RedisServer, registry: RedisRegistry, *, cut_off: bool
) -> None:
    registry.vouch(NODE)
    if cut_off:
        _lose_every_sign_of(NODE, own_valkey)
        await registry.refresh()
        assert registry.present(NODE)
    await registry.retire(NODE)
    registry.vouch(NODE)  # an answer from before the goodbye that comes in late
    assert await registry.lookup(["alice"]) == [()]
    assert not registry.present(NODE)


async def test_another_epoch_of_its_name_ends_it(
    own_valkey: RedisServer, registry: RedisRegistry
) -> None:
    registry.vouch(NODE)
    _lose_every_sign_of(NODE, own_valkey)
    successor = Node("gw-a", "e2", "10.0.0.1:8081")
    await registry.heartbeat(successor, claim=True)
    assert await registry.lookup(["alice"]) == [()]
    assert registry.present(successor)
    assert not registry.present(NODE)


async def test_a_node_that_comes_back_with_its_epoch_is_live(registry: RedisRegistry) -> None:
    await registry.retire(NODE)
    assert await registry.lookup(["alice"]) == [()]
    await registry.heartbeat(NODE)
    assert await registry.lookup(["alice"]) == [(NODE,)]
    assert await registry.nodes() == [NODE]


async def test_without_lost_nodes_nobody_vouches(own_valkey: RedisServer) -> None:
    registry = RedisRegistry(own_valkey.url, timings=AnyTimings(registration_seconds=0.0))
    await registry.heartbeat(NODE, claim=True)
    registry.vouch(NODE)
    _lose_every_sign_of(NODE, own_valkey)
    await registry.refresh()
    assert not registry.present(NODE)
    await registry.close()


async def test_two_readings_at_once_both_see_a_goodbye(registry: RedisRegistry) -> None:
    registry.vouch(NODE)
    await registry.retire(NODE)
    await asyncio.gather(*(registry.refresh() for _ in range(5)))
    assert not registry.present(NODE)
    assert await registry.lookup(["alice"]) == [()]
