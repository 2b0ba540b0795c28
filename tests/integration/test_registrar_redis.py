"""The registrar against a real Valkey that is frozen, killed, emptied and restarted."""

import asyncio
import time

import pytest

from tests.integration.gateways import HEARTBEAT_SECONDS, TIMEOUT_SECONDS, USERS, Gateway
from tests.support.valkey import RedisServer

pytestmark = pytest.mark.anyio


async def outage_noticed(gateway: Gateway) -> None:
    """Return once a user who changes is not written in time."""
    gateway.connect("u1499")
    assert not await gateway.registrar.written("u1499", timeout_seconds=TIMEOUT_SECONDS + 0.3)


async def test_every_user_is_registered_and_unregistered(own_valkey: RedisServer) -> None:
    gateway = Gateway(own_valkey.url)
    async with gateway.running():
        gateway.connect(*USERS[:1_400])
        await gateway.in_step()
        gateway.disconnect(*USERS[:700])
        await gateway.in_step()


async def test_after_a_freeze_the_registry_is_in_step_again(own_valkey: RedisServer) -> None:
    gateway = Gateway(own_valkey.url)
    async with gateway.running():
        gateway.connect(*USERS[:1_000])
        await gateway.in_step()
        own_valkey.freeze()
        gateway.disconnect(*USERS[:100])
        gateway.connect(*USERS[1_000:1_200])
        await outage_noticed(gateway)
        own_valkey.thaw()
        await gateway.in_step(within_seconds=2.0)


async def test_a_registry_that_was_emptied_has_every_user_again(own_valkey: RedisServer) -> None:
    gateway = Gateway(own_valkey.url)
    async with gateway.running():
        gateway.connect(*USERS[:1_400])
        await gateway.in_step()
        own_valkey.flush()
        await gateway.in_step()


async def test_after_a_kill_and_a_restart_every_user_is_there_again(
    own_valkey: RedisServer,
) -> None:
    gateway = Gateway(own_valkey.url)
    async with gateway.running():
        gateway.connect(*USERS[:1_400])
        await gateway.in_step()
        own_valkey.kill()
        gateway.disconnect(*USERS[:100])
        await outage_noticed(gateway)
        own_valkey.restart()
        await gateway.in_step()


async def test_a_restart_that_nobody_noticed_is_found_out_by_the_heartbeat(
    own_valkey: RedisServer,
) -> None:
    gateway = Gateway(own_valkey.url)
    async with gateway.running():
        gateway.connect(*USERS[:100])
        await gateway.in_step()
        own_valkey.restart()
        await gateway.in_step()


async def test_a_gateway_that_starts_before_its_registry_is_ready_after_it(
    own_valkey: RedisServer,
) -> None:
    own_valkey.kill()
    gateway = Gateway(own_valkey.url)
    gateway.connect(*USERS[:100])
    starting = asyncio.create_task(asyncio.wait_for(gateway.registrar.ready.wait(), 10))
    await asyncio.wait((starting,), timeout=0.05)
    assert not gateway.registrar.ready.is_set()
    own_valkey.restart()
    async with gateway.running():
        await starting
        await gateway.in_step()


async def test_a_lease_that_lapsed_is_taken_up_again_with_every_user(
    own_valkey: RedisServer,
) -> None:
    gateway = Gateway(own_valkey.url, lease_seconds=HEARTBEAT_SECONDS / 4)
    async with gateway.running():
        gateway.connect(*USERS[:100])
        # Between two heartbeats the lease lapses each time, and with it every entry.
        for _ in range(3):
            await gateway.in_step()
            await gone_from_view(gateway)


async def gone_from_view(gateway: Gateway) -> None:
    deadline = time.monotonic() + 5.0
    while await gateway.registered():
        assert time.monotonic() < deadline, "the lease never lapsed"
        await asyncio.sleep(0.005)


async def test_a_freeze_longer_than_the_lease_ends_in_step(own_valkey: RedisServer) -> None:
    gateway = Gateway(own_valkey.url, lease_seconds=0.5)
    async with gateway.running():
        gateway.connect(*USERS[:1_000])
        await gateway.in_step()
        own_valkey.freeze()
        await outage_noticed(gateway)
        own_valkey.thaw()
        await gateway.in_step()


async def test_a_node_that_leaves_counts_no_more_and_disturbs_no_other(
    own_valkey: RedisServer,
) -> None:
    leaving = Gateway(own_valkey.url, name="gw-a")
    staying = Gateway(own_valkey.url, name="gw-b")
    async with staying.running():
        async with leaving.running():
            leaving.connect(*USERS[:500])
            staying.connect(*USERS[400:900])
            await leaving.in_step()
            await staying.in_step()
            await leaving.registrar.retire(timeout_seconds=2.0)
            assert await leaving.registered() == set()
        await staying.in_step()


async def test_a_new_start_of_a_node_is_not_disturbed_by_the_old_ones_late_closes(
    own_valkey: RedisServer,
) -> None:
    old, new = Gateway(own_valkey.url), Gateway(own_valkey.url)
    async with old.running():
        old.connect(*USERS[:500])
        await old.in_step()
        async with new.running():
            new.connect(*USERS[:500])
            await new.in_step()
            old.disconnect(*USERS[:500])
            assert await old.registrar.written("u499", timeout_seconds=5.0)
            await new.in_step()
