"""A registry that loses what it was told: nobody who is connected is called offline, ever.

Processors look up without end while the loss happens and gateways mend it. What they say becomes
unknown for a while, and must: a look-up that took unknown for offline would fail each of these
tests.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import redis

from registry.directory import Node, RegistryUnavailable
from registry.redis_store import RedisRegistry
from tests.integration.gateways import (
    HEARTBEAT_SECONDS,
    RECOVERY_SECONDS,
    TIMEOUT_SECONDS,
    USERS,
    Gateway,
)
from tests.support.timings import AnyTimings
from tests.support.valkey import RedisServer
from tests.support.valkey_groups import RedisCluster, ReplicatedRedis, await_promotion, part

pytestmark = pytest.mark.anyio

#: Long enough for gateways of this heartbeat on a busy machine, short enough to wait it out.
REGISTRATION_SECONDS = HEARTBEAT_SECONDS + 3.0
#: Servers notice a lost master, agree on another, and clients find it.
FAILOVER_SECONDS = 20.0
LIVE = USERS[:200]
#: So many that each bucket of a Cluster would have some.
ABSENT = [f"absent-{number}" for number in range(1_000)]

Answer = tuple[Node, ...] | None


class Processor:
    """Looks up those who are connected and those who are not, again and again."""

    def __init__(
        self, url: str, *, newcomer: bool = False, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> None:
        """`newcomer`: each look-up is the first of a processor that has just started."""
        self._url = url
        self._timeout_seconds = timeout_seconds
        self._newcomer = newcomer
        self._registry = self._open()
        self.users = list(LIVE)
        self.unknown = False  # whether any who is connected ever was
        self.absent: set[Answer] = {None}  # the last answers about who is not connected
        self.always_sure_of_some = True
        self._work: asyncio.Task[None] | None = None

    def _open(self) -> RedisRegistry:
        return RedisRegistry(
            self._url,
            timeout_seconds=self._timeout_seconds,
            timings=AnyTimings(registration_seconds=REGISTRATION_SECONDS),
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self._work = asyncio.create_task(self._look_up_for_ever())
        refreshing = asyncio.create_task(self._refresh_for_ever())
        try:
            yield
            self._check()
        finally:
            for task in (self._work, refreshing):
                task.cancel()
            await asyncio.gather(self._work, refreshing, return_exceptions=True)
            await self._registry.close()

    async def until(self, condition: Callable[[], object], what: str, *, within: float) -> None:
        """Return once it is so. Who is connected may not be called offline until then."""
        deadline = time.monotonic() + within
        while not condition():
            self._check()
            assert time.monotonic() < deadline, f"not within {within} s: {what}"
            await asyncio.sleep(0.01)

    def _check(self) -> None:
        if self._work is not None and self._work.done():
            self._work.result()

    async def until_sure(self) -> None:
        """Return once who is not connected is offline."""
        await self.until(
            lambda: self.absent == {()}, "it is sure", within=3 * REGISTRATION_SECONDS + 5.0
        )

    async def _look_up_for_ever(self) -> None:
        while True:
            if self._newcomer:
                await self._registry.close()
                self._registry = self._open()
            with contextlib.suppress(RegistryUnavailable):
                self._note(await self._registry.lookup([*self.users, *ABSENT]))
            await asyncio.sleep(0.005)

    async def _refresh_for_ever(self) -> None:
        while not self._newcomer:
            with contextlib.suppress(RegistryUnavailable):
                await self._registry.refresh()
            await asyncio.sleep(HEARTBEAT_SECONDS / 2)

    def _note(self, found: list[Answer]) -> None:
        connected, self.absent = found[: -len(ABSENT)], set(found[-len(ABSENT) :])
        self.always_sure_of_some &= () in self.absent
        self.unknown |= None in connected
        offline = sum(nodes == () for nodes in connected)
        assert not offline, f"{offline} who are connected are called offline"


@asynccontextmanager
async def in_service(
    url: str, *, newcomers: bool = True, timeout_seconds: float = TIMEOUT_SECONDS
) -> AsyncIterator[tuple[Gateway, list[Processor]]]:
    """Give a gateway whose users are registered, and processors that are sure of it.

    One has been there all the time; the look-ups of the other, if it is wanted, are newcomers'.
    """
    gateway = Gateway(url)
    processors = [
        Processor(url, newcomer=newcomer, timeout_seconds=timeout_seconds)
        for newcomer in (False, True)[: 1 + newcomers]
    ]
    async with gateway.running(), AsyncExitStack() as running:
        gateway.connect(*LIVE)
        await gateway.in_step()
        for processor in processors:
            await running.enter_async_context(processor.running())
        for processor in processors:
            await processor.until_sure()
            processor.unknown, processor.always_sure_of_some = False, True
        yield gateway, processors


async def see_through(
    gateway: Gateway, processors: list[Processor], lose: Callable[[], object], *, within: float
) -> None:
    """Let the registry lose users, and see that it is noticed before the gateway mends it."""
    gateway.hold()
    await asyncio.to_thread(lose)
    for processor in processors:
        await processor.until(lambda p=processor: p.unknown, "a loss is seen", within=within)  # type: ignore[misc]
        assert None in processor.absent
    gateway.let_go()
    await gateway.in_step(within_seconds=within)
    for processor in processors:
        await processor.until_sure()


@pytest.mark.parametrize("loss", ["flush", "restart"])
async def test_an_emptied_redis(own_valkey: RedisServer, loss: str) -> None:
    async with in_service(own_valkey.url) as (gateway, processors):
        other = Gateway(own_valkey.url, name="gw-b")
        async with other.running():
            other.connect(*USERS[1_000:])
            await other.in_step()
            lose = own_valkey.flush if loss == "flush" else own_valkey.restart
            await see_through(gateway, processors, lose, within=RECOVERY_SECONDS)
            # Whichever gateway sees the loss first, all do.
            await other.in_step()


@pytest.mark.parametrize("end", ["kill", "freeze"])
async def test_a_failover_that_loses_the_last_writes(end: str) -> None:
    with ReplicatedRedis() as servers:
        # A newcomer can't know before a gateway does, a heartbeat later.
        async with in_service(servers.url, newcomers=False) as (gateway, processors):
            await connect_unreplicated(gateway, processors, servers.master, servers.replica)

            def lose() -> None:
                getattr(servers.master, end)()
                await_promotion(servers.replica)

            await see_through(gateway, processors, lose, within=FAILOVER_SECONDS)
            if end == "freeze":
                servers.master.thaw()
                await gateway.in_step()


async def connect_unreplicated(
    gateway: Gateway, processors: list[Processor], master: RedisServer, replica: RedisServer
) -> None:
    """Register users of whom only the master hears."""
    await asyncio.to_thread(part, master, replica)
    late = USERS[200:400]
    gateway.connect(*late)
    await gateway.in_step()
    for processor in processors:
        processor.users += late


@pytest.fixture
def redis_cluster() -> Iterator[RedisCluster]:
    # Not shared: a server that a worker thread has restarted ends with that thread.
    with RedisCluster() as cluster:
        yield cluster


@pytest.mark.parametrize("master", ["of the leases", "of entries alone"])
async def test_a_cluster_whose_master_comes_back_empty(
    redis_cluster: RedisCluster, master: str
) -> None:
    leases = redis_cluster.owner_of(b"{pg-nodes}")
    lost = leases if master == "of the leases" else (leases + 1) % 3
    async with in_service(redis_cluster.url) as (gateway, processors):

        def lose() -> None:
            redis_cluster.masters[lost].restart()
            redis_cluster.await_ok(redis_cluster.masters)

        await see_through(gateway, processors, lose, within=FAILOVER_SECONDS)


async def test_a_cluster_that_loses_one_bucket(redis_cluster: RedisCluster) -> None:
    # On a busy machine half a second without an answer is no rarity, and puts all in doubt.
    async with in_service(redis_cluster.url, timeout_seconds=10.0) as (gateway, processors):

        def lose() -> None:
            with contextlib.closing(redis_cluster.client()) as client:
                everywhere: Any = client
                keys = everywhere.keys("*", target_nodes=redis.RedisCluster.PRIMARIES)
                tag = next(key for key in keys if b"}user:" in key).partition(b"}")[0]
                client.delete(*(key for key in keys if key.startswith(tag + b"}")))

        await see_through(gateway, processors, lose, within=RECOVERY_SECONDS)
        # The other buckets were in no doubt.
        assert all(processor.always_sure_of_some for processor in processors)


@pytest.mark.parametrize(
    ("replica", "end"), [("behind", "kill"), ("behind", "freeze"), ("in step", "freeze")]
)
async def test_a_cluster_that_makes_a_replica_the_master(replica: str, end: str) -> None:
    with RedisCluster(replicas=True) as servers:
        lost = servers.owner_of(b"{pg-nodes}")
        master, heir = servers.masters[lost], servers.replicas[lost]
        async with in_service(servers.url, newcomers=False) as (gateway, processors):

            def lose() -> None:
                getattr(master, end)()
                await_promotion(heir)

            if replica == "behind":
                await connect_unreplicated(gateway, processors, master, heir)
                await see_through(gateway, processors, lose, within=FAILOVER_SECONDS)
            else:  # nobody is lost, but who could know?
                (processor,) = processors
                await asyncio.to_thread(lose)
                await processor.until(
                    lambda: None in processor.absent, "doubt", within=FAILOVER_SECONDS
                )
                await gateway.in_step(within_seconds=FAILOVER_SECONDS)
                await processor.until_sure()
