"""A Cluster whose slot is on its way to another master: everybody is found, and can be written."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from zlib import crc32

import pytest

from registry.directory import Lease, Node
from registry.redis_store import BUCKETS, RedisRegistry
from tests.support.timings import AnyTimings
from tests.support.valkey_groups import RedisCluster

pytestmark = pytest.mark.anyio

NODE = Node("gw-a", "e1", "10.0.0.1:8081")
USERS = [f"u{number}" for number in range(640)]
#: 0: keys are answered by ASK from the new master alone when they are new; 1: all of them are.
SHARES = (0.0, 0.5, 1.0)


@pytest.fixture
def cluster() -> Iterator[RedisCluster]:
    with RedisCluster() as servers:
        yield servers


@contextlib.asynccontextmanager
async def _registry(cluster: RedisCluster) -> AsyncIterator[RedisRegistry]:
    # The doubt after a marker that has moved to another server is not what is tried here.
    timings = AnyTimings(lease_seconds=0.5, registration_seconds=-5.0)
    registry = RedisRegistry(cluster.url, timings=timings, lost_seconds=1.0)
    try:
        yield registry
    finally:
        await registry.close()


def _in_bucket(bucket: int, prefix: str, count: int) -> list[str]:
    names = (f"{prefix}{number}" for number in range(100_000))
    users = (name for name in names if crc32(name.encode()) % BUCKETS == bucket)
    return [next(users) for _ in range(count)]


@pytest.mark.parametrize("share", SHARES)
async def test_while_a_buckets_slot_moves_its_users_are_found_and_written(
    cluster: RedisCluster, share: float
) -> None:
    old, new, gone = (_in_bucket(17, prefix, 10) for prefix in ("old", "new", "gone"))
    everybody = [*USERS, *old, *new, *gone]
    async with _registry(cluster) as gateway, _registry(cluster) as processor:
        await gateway.heartbeat(NODE, claim=True)
        await gateway.write(NODE, [*USERS, *old, *gone], [])
        with cluster.moving(b"{pg-17}", share=share) as complete:
            await gateway.heartbeat(NODE)
            assert await processor.lookup([*USERS, *old]) == [(NODE,)] * 650
            await gateway.write(NODE, [*new, *old], gone)
            found = [(NODE,)] * 660 + [()] * 10
            assert await processor.lookup(everybody) == found
            await processor.probe()
            complete()
            assert await processor.lookup(everybody) == found
            await gateway.write(NODE, gone, new)
        await gateway.heartbeat(NODE)
        found = [(NODE,)] * 650 + [()] * 10 + [(NODE,)] * 10
        assert await processor.lookup(everybody) == found


@pytest.mark.parametrize("share", SHARES)
async def test_while_the_nodes_slot_moves_nodes_come_stay_and_go(
    cluster: RedisCluster, share: float
) -> None:
    other, newcomer = Node("gw-b", "e2", "10.0.0.2:8081"), Node("gw-c", "e3", "10.0.0.3:8081")
    async with _registry(cluster) as gateway, _registry(cluster) as processor:
        for node in (NODE, other):
            await gateway.heartbeat(node, claim=True)
            await gateway.write(node, USERS, [])
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
            await gateway.retire(other)
            await processor.refresh()
            assert not processor.present(other)
            await processor.probe()
            complete()
            assert await gateway.heartbeat(NODE) is not Lease.TAKEN
            assert set(await processor.nodes()) == {NODE, newcomer}
        await gateway.retire(newcomer)
        assert await processor.nodes() == [NODE]


async def test_a_move_in_the_midst_of_traffic_makes_nobody_wait_or_offline(
    cluster: RedisCluster,
) -> None:
    async with _registry(cluster) as gateway, _registry(cluster) as processor:
        await gateway.heartbeat(NODE, claim=True)
        await gateway.write(NODE, USERS, [])
        moved, looked_up = asyncio.Event(), asyncio.Event()

        async def look_up() -> None:
            while not moved.is_set():
                assert await processor.lookup(USERS) == [(NODE,)] * len(USERS)
                await gateway.write(NODE, USERS[:100], [])
                await gateway.heartbeat(NODE)
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
