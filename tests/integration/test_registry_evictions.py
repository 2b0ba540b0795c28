"""A Redis that evicts keys: noticed as a loss, and said at the start."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
import structlog

from registry.directory import Lease, Node
from registry.redis_store import RedisRegistry
from tests.integration.gateways import HEARTBEAT_SECONDS, USERS, Gateway
from tests.support.timings import AnyTimings
from tests.support.valkey import RedisServer

pytestmark = pytest.mark.anyio

NODE = Node("gw-a", "e1", "127.0.0.1:8081")
#: A marker is made anew for evictions alone once in this time (lua/generation.lua).
SETTLE_SECONDS = 5.0


def evict_some(server: RedisServer) -> None:
    """Let the server evict some keys with a TTL (entries have one, the marker has none)."""
    with server.client() as client:
        before = client.info("stats")["evicted_keys"]
        client.config_set("maxmemory-policy", "volatile-random")
        client.config_set("maxmemory", client.info("memory")["used_memory"] - 60_000)
        client.set("one", "more")  # room is made for a write, and not before
        client.config_set("maxmemory", "0")
        assert client.info("stats")["evicted_keys"] > before


def make_the_marker_older(server: RedisServer) -> None:
    with server.client() as client:
        made_by, made = client.get("{pg-nodes}generation").split()
        older = int(made) - int(2 * SETTLE_SECONDS * 1e6)
        client.set("{pg-nodes}generation", b"%s %d" % (made_by, older))


@pytest.fixture
async def registry(own_valkey: RedisServer) -> AsyncIterator[RedisRegistry]:
    made = RedisRegistry(own_valkey.url, timings=AnyTimings(registration_seconds=1.0))
    await made.heartbeat(NODE, claim=True)
    yield made
    await made.close()


async def test_evictions_are_a_loss_as_any_other(
    own_valkey: RedisServer, registry: RedisRegistry
) -> None:
    await registry.write(NODE, USERS, [])
    make_the_marker_older(own_valkey)
    assert await registry.heartbeat(NODE) is Lease.LAPSED, "the marker is another one"
    assert await registry.heartbeat(NODE) is Lease.HELD
    make_the_marker_older(own_valkey)
    async with contextlib.AsyncExitStack() as stack:
        processors = RedisRegistry(own_valkey.url)
        stack.push_async_callback(processors.close)
        assert await processors.lookup(["nobody"]) == [()]
        evict_some(own_valkey)
        await registry.heartbeat(NODE)
        found = set(await processors.lookup(USERS))
    assert found == {None, (NODE,)}, "who is not found may be among those evicted"
    assert await registry.heartbeat(NODE) is Lease.HELD, "one eviction is one loss"


async def test_every_user_is_registered_again_after_an_eviction(own_valkey: RedisServer) -> None:
    gateway = Gateway(own_valkey.url)
    async with gateway.running():
        gateway.connect(*USERS)
        await gateway.in_step()
        evict_some(own_valkey)
        assert await gateway.registered() < set(USERS)
        await gateway.in_step(within_seconds=SETTLE_SECONDS + HEARTBEAT_SECONDS + 5.0)


@pytest.mark.parametrize("policy", ["noeviction", "allkeys-lru", "volatile-ttl"])
async def test_a_policy_that_evicts_is_named_at_the_start(
    own_valkey: RedisServer, registry: RedisRegistry, policy: str
) -> None:
    with own_valkey.client() as client:
        client.config_set("maxmemory-policy", policy)
    with structlog.testing.capture_logs() as logs:
        await registry.heartbeat(NODE, claim=True)
    warned = [entry["maxmemory_policy"] for entry in logs if "maxmemory_policy" in entry]
    assert warned == ([] if policy == "noeviction" else [[policy]])
