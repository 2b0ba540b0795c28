"""A Cluster whose slot is on its way to another master: everybody is found, and can be written."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any
from zlib import crc32

import pytest

from registry.directory import Lease, Node, RegistryUnavailable
from registry.redis_store import BUCKETS, RedisRegistry
from tests.support.timings import AnyTimings
from tests.support.valkey_groups import RedisCluster

pytestmark = pytest.mark.anyio

NODE = Node("gw-a", "e1", "10.0.0.1:8081")
USERS = [f"u{number}" for number in range(640)]
#: 0: keys are answered by ASK from the new master alone when they are new; 1: all of them are.
SHARES = (0.0, 0.5, 1.0)


#: Longer than a test takes: a doubt that begins in a test lasts until its end.
REGISTRATION_SECONDS = 600.0
#: Some in each bucket, to be offline, and never unknown.
ABSENT = [f"absent-{number}" for number in range(640)]


@pytest.fixture
def cluster() -> Iterator[RedisCluster]:
    with RedisCluster() as servers:
        yield servers


@contextlib.asynccontextmanager
async def _registry(
    cluster: RedisCluster, *, lease_seconds: float = 60.0
) -> AsyncIterator[RedisRegistry]:
    timings = AnyTimings(lease_seconds=lease_seconds, registration_seconds=REGISTRATION_SECONDS)
    registry = RedisRegistry(cluster.url, timings=timings, lost_seconds=1.0)
    try:
        yield registry
    finally:
        await registry.close()


async def _serve(gateway: RedisRegistry, cluster: RedisCluster, users: list[str]) -> None:
    """Register users of NODE, and let the time of a registration pass for the markers."""
    await gateway.heartbeat(NODE, claim=True)
    await gateway.write(NODE, users, [])
    with contextlib.closing(cluster.client()) as everywhere:
        client: Any = everywhere
        for tag in (b"{pg-nodes}", *(b"{pg-%d}" % bucket for bucket in range(BUCKETS))):
            maker, made = client.get(tag + b"generation").split()
            older = int(made) - int(2 * REGISTRATION_SECONDS * 1e6)
            client.set(tag + b"generation", b"%s %d" % (maker, older))
    await gateway.heartbeat(NODE)


def _in_bucket(bucket: int, prefix: str, count: int) -> list[str]:
    names = (f"{prefix}{number}" for number in range(100_000))
    users = (name for name in names if crc32(name.encode()) % BUCKETS == bucket)
    return [next(users) for _ in range(count)]


@pytest.mark.parametrize("share", SHARES)
async def test_while_a_buckets_slot_moves_its_users_are_found_and_written(
    cluster: RedisCluster, share: float
) -> None:
    old, new, gone = (_in_bucket(17, prefix, 10) for prefix in ("old", "new", "gone"))
    everybody = [*USERS, *old, *new, *gone, *ABSENT]
    async with _registry(cluster) as gateway, _registry(cluster) as processor:
        await _serve(gateway, cluster, [*USERS, *old, *gone])
        with cluster.moving(b"{pg-17}", share=share) as complete:
            assert await gateway.heartbeat(NODE) is Lease.HELD
            assert await processor.lookup([*USERS, *old]) == [(NODE,)] * 650
            await gateway.write(NODE, [*new, *old], gone)
            found = [(NODE,)] * 660 + [()] * (10 + len(ABSENT))
            assert await processor.lookup(everybody) == found
            await processor.probe()
            complete()
            assert await processor.lookup(everybody) == found
            await gateway.write(NODE, gone, new)
        for _ in range(2):
            assert await gateway.heartbeat(NODE) is Lease.HELD
        found = [(NODE,)] * 650 + [()] * 10 + [(NODE,)] * 10 + [()] * len(ABSENT)
        assert await processor.lookup(everybody) == found


@pytest.mark.parametrize("share", SHARES)
async def test_while_the_nodes_slot_moves_nodes_come_stay_and_go(
    cluster: RedisCluster, share: float
) -> None:
    other, newcomer = Node("gw-b", "e2", "10.0.0.2:8081"), Node("gw-c", "e3", "10.0.0.3:8081")
    async with (
        _registry(cluster, lease_seconds=0.5) as gateway,
        _registry(cluster) as processor,
    ):
        await _serve(gateway, cluster, USERS)
        await gateway.heartbeat(other, claim=True)
        await gateway.write(other, USERS, [])
        with cluster.moving(b"{pg-nodes}", share=share) as complete:
            for _ in range(8):  # for longer than a lease lives
                assert await gateway.heartbeat(NODE) is not Lease.TAKEN
                assert await gateway.heartbeat(other) is not Lease.TAKEN
                await asyncio.sleep(0.1)
            taken = Node("gw-a", "e9", "10.0.0.9:8081")
            assert await gateway.heartbeat(taken) is Lease.TAKEN
            assert set(await processor.nodes()) == {NODE, other}
            assert await gateway.heartbeat(newcomer, claim=True) is Lease.LAPSED
            await gateway.write(newcomer, USERS[:1], [])
            assert await processor.lookup(USERS[:2]) == [(NODE, other, newcomer), (NODE, other)]
            assert await processor.lookup(ABSENT) == [()] * len(ABSENT)
            await gateway.retire(other)
            # By the change that is read with the entries, not by the refresh of every second.
            assert await processor.lookup(USERS[:2]) == [(NODE, newcomer), (NODE,)]
            assert not processor.present(other)
            await processor.probe()
            complete()
            assert await gateway.heartbeat(NODE) is not Lease.TAKEN
            assert set(await processor.nodes()) == {NODE, newcomer}
        await gateway.retire(newcomer)
        assert await processor.nodes() == [NODE]
        assert await processor.lookup(ABSENT) == [()] * len(ABSENT)


async def test_a_move_in_the_midst_of_traffic_makes_nobody_wait_or_offline(
    cluster: RedisCluster,
) -> None:
    async with _registry(cluster) as gateway, _registry(cluster) as processor:
        await _serve(gateway, cluster, USERS)
        moved, looked_up = asyncio.Event(), asyncio.Event()

        async def look_up() -> None:
            while not moved.is_set():
                assert await processor.lookup(USERS) == [(NODE,)] * len(USERS)
                assert await processor.lookup(ABSENT) == [()] * len(ABSENT)
                await gateway.write(NODE, USERS[:100], [])
                assert await gateway.heartbeat(NODE) is Lease.HELD
                looked_up.set()

        traffic = asyncio.create_task(look_up())
        for tag in (b"{pg-nodes}", b"{pg-17}", b"{pg-18}"):
            with cluster.moving(tag, share=0.5) as complete:
                for _ in range(2):  # the second began while the slot was moving
                    looked_up.clear()
                    async with asyncio.timeout(20):
                        await looked_up.wait()
                await asyncio.to_thread(complete)
        moved.set()
        await traffic


async def test_users_of_a_bucket_that_cannot_be_read_are_unknown_and_others_are_found(
    cluster: RedisCluster,
) -> None:
    away = (cluster.owner_of(b"{pg-nodes}") + 1) % 3
    async with _registry(cluster) as registry:
        await registry.heartbeat(NODE, claim=True)
        await registry.write(NODE, USERS, [])
        assert await registry.lookup(USERS) == [(NODE,)] * len(USERS)
        with cluster.masters[away].client() as client:
            client.execute_command("ACL", "SETUSER", "default", "-mget")
            found = await registry.lookup(USERS)
            client.execute_command("ACL", "SETUSER", "default", "+mget")
        lacking = [
            cluster.owner_of(b"{pg-%d}" % (crc32(user.encode()) % BUCKETS)) == away
            for user in USERS
        ]
        assert found == [None if lacks else (NODE,) for lacks in lacking]
        assert 0 < sum(lacking) < len(USERS)


async def test_a_slot_that_moves_to_a_new_master_is_no_loss() -> None:
    with RedisCluster(spare=True) as cluster:
        async with _registry(cluster) as gateway, _registry(cluster) as processor:
            await _serve(gateway, cluster, USERS)
            for tag in (b"{pg-nodes}", b"{pg-17}"):
                with cluster.moving(tag, share=0.5, to_spare=True) as complete:
                    await asyncio.to_thread(complete)
                assert await gateway.heartbeat(NODE) is Lease.HELD
            assert await processor.lookup(USERS) == [(NODE,)] * len(USERS)
            assert await processor.lookup(ABSENT) == [()] * len(ABSENT)
            with cluster.spares[0].client() as client:  # the next move is told from this one
                run_id = client.info("server")["run_id"].encode()
                assert client.get("{pg-17}generation").startswith(run_id)


async def test_a_slot_that_has_left_a_master_which_lost_its_keys_is_in_doubt(
    cluster: RedisCluster,
) -> None:
    absent = _in_bucket(17, "absent", 1)
    async with _registry(cluster) as gateway, _registry(cluster) as processor:
        await _serve(gateway, cluster, USERS)
        assert await processor.lookup(absent) == [()]
        with cluster.moving(b"{pg-17}", share=0.5) as complete:
            complete()
        cluster.masters[cluster.owner_of(b"{pg-17}")].restart()
        cluster.await_ok(cluster.masters)
        with contextlib.suppress(RegistryUnavailable):  # by the connections of before
            await gateway.heartbeat(NODE)
        assert await gateway.heartbeat(NODE) is Lease.LAPSED
        with contextlib.suppress(RegistryUnavailable):
            await processor.lookup(absent)
        assert await processor.lookup(absent) == [None]
