"""The registry in a real Valkey, Redis, Redis Cluster and behind a Sentinel."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis

from pushgate.embedded import LOOPBACK, choose_port
from registry.directory import Lease, Node, RegistryUnavailable
from registry.redis_store import BUCKETS, RedisRegistry
from tests.support.clients import eventually
from tests.support.processes import wait_until
from tests.support.timings import AnyTimings
from tests.support.valkey import Kind, RedisServer, redis_is_installed
from tests.support.valkey_groups import RedisCluster, Sentinel

pytestmark = pytest.mark.anyio

A = Node("gw-a", "e1", "10.0.0.1:8081")
A_AGAIN = Node("gw-a", "e2", "10.0.0.1:8081")
B = Node("gw-b", "e1", "10.0.0.2:8081")
FAR = 9_999_999_999  # epoch seconds
needs_redis = pytest.mark.skipif(not redis_is_installed(), reason="redis-server is not in the PATH")


class Store:
    """One store under test, with a client of its own to look behind the registry's back."""

    def __init__(self, url: str, raw: redis.Redis | redis.RedisCluster) -> None:
        self.url = url
        self.raw: Any = raw  # its types do not know in which of two ways it answers
        self._keys: dict[str, bytes] = {}

    def entry_of(self, user: str) -> bytes | None:
        entry: bytes | None = self.raw.get(self.key_of(user))
        return entry

    def poison(self, user: str, entry: bytes) -> None:
        self.raw.set(self.key_of(user), entry)

    def key_of(self, user: str) -> bytes:
        """The user's key, wherever it is kept: found and not computed."""
        with contextlib.suppress(KeyError):
            return self._keys[user]
        found: list[bytes] = [
            key for key in self._all_keys() if key.endswith(b"user:" + user.encode())
        ]
        assert len(found) == 1, f"{user} has the keys {found}"
        self._keys[user] = found[0]
        return found[0]

    def keys_ending(self, suffix: str) -> list[bytes]:
        return [key for key in self._all_keys() if key.endswith(suffix.encode())]

    def _all_keys(self) -> list[bytes]:
        everywhere = {"target_nodes": redis.RedisCluster.PRIMARIES}
        keys: list[bytes] = self.raw.keys(
            "*", **everywhere if isinstance(self.raw, redis.RedisCluster) else {}
        )
        return keys

    def flush(self) -> None:
        self._keys.clear()
        self.raw.flushall()


@contextlib.contextmanager
def single(kind: Kind) -> Iterator[Store]:
    with RedisServer(kind) as server, server.client() as raw:
        yield Store(server.url, raw)


@contextlib.contextmanager
def cluster() -> Iterator[Store]:
    with RedisCluster("redis") as servers, contextlib.closing(servers.client()) as raw:
        yield Store(servers.url, raw)


@contextlib.contextmanager
def sentinel() -> Iterator[Store]:
    with RedisServer("redis") as master, master.client() as raw, Sentinel(master) as watching:
        # The first of them is gone.
        yield Store(watching.url.replace("//", f"//{LOOPBACK}:1,"), raw)


@pytest.fixture(
    scope="module",
    params=[
        "valkey",
        pytest.param("redis", marks=needs_redis),
        pytest.param("cluster", marks=needs_redis),
        pytest.param("sentinel", marks=needs_redis),
    ],
)
def running_store(request: pytest.FixtureRequest) -> Iterator[Store]:
    made = {
        "valkey": lambda: single("valkey"),
        "redis": lambda: single("redis"),
        "cluster": cluster,
        "sentinel": sentinel,
    }
    with made[request.param]() as store:
        yield store


@pytest.fixture
def store(running_store: Store) -> Store:
    running_store.flush()
    return running_store


@asynccontextmanager
async def open_registry(
    url: str, *, timeout_seconds: float = 1.0, lost_seconds: float = 0.0, **timings: Any
) -> AsyncIterator[RedisRegistry]:
    # Whatever is about doubt asks for a time to doubt.
    given = AnyTimings(**{"registration_seconds": 0.0} | timings)
    registry = RedisRegistry(
        url, timeout_seconds=timeout_seconds, timings=given, lost_seconds=lost_seconds
    )
    try:
        yield registry
    finally:
        await registry.close()


@pytest.fixture
async def registry(store: Store) -> AsyncIterator[RedisRegistry]:
    async with open_registry(store.url, timeout_seconds=5.0) as made:
        yield made


async def holding(registry: RedisRegistry, *nodes: Node) -> None:
    """Let nodes start."""
    for node in nodes:
        await registry.heartbeat(node, claim=True)
    await registry.refresh()


async def where(registry: RedisRegistry, user: str) -> set[Node]:
    (found,) = await registry.lookup([user])
    assert found is not None, f"it is not known where {user} is"
    return set(found)


# Processors


async def test_processors_are_listed_with_the_servers_time(registry: RedisRegistry) -> None:
    before_ms = int(time.time() * 1_000)
    assert (await registry.processors()).names == frozenset()
    assert (await registry.keep_processor("p1")).names == {"p1"}
    kept = await registry.keep_processor("p2")
    assert kept.names == {"p1", "p2"}
    seen = await registry.processors()
    assert seen.names == {"p1", "p2"}
    after_ms = int(time.time() * 1_000)
    assert before_ms - 1 <= kept.now_ms <= seen.now_ms <= after_ms + 1


async def test_a_processor_that_retires_is_listed_no_more(registry: RedisRegistry) -> None:
    for name in ("p1", "p2"):
        await registry.keep_processor(name)
    await registry.retire_processor("p1")
    await registry.retire_processor("p1")
    await registry.retire_processor("never there")
    assert (await registry.processors()).names == {"p2"}


async def test_a_processors_lease_lapses_and_its_name_goes(store: Store) -> None:
    async with (
        open_registry(store.url, lease_seconds=1.0, heartbeat_seconds=0.2) as short,
        open_registry(store.url) as lasting,
    ):
        await short.keep_processor("p1")
        await lasting.keep_processor("p2")

        async def lapsed() -> bool:
            return "p1" not in (await lasting.processors()).names

        await eventually(lapsed, "the lease has lapsed")
        assert (await lasting.processors()).names == {"p2"}
        await lasting.keep_processor("p2")
        assert store.raw.zrange("{pg-nodes}processors", 0, -1) == [b"p2"]


async def test_processors_ports_are_found_until_they_leave_or_lapse(store: Store) -> None:
    async with (
        open_registry(store.url, lease_seconds=1.0, heartbeat_seconds=0.2) as short,
        open_registry(store.url) as lasting,
    ):
        assert await lasting.processor_ports() == []
        for port in (A, B):
            await lasting.keep_processor_port(port)
        assert set(await lasting.processor_ports()) == {A, B}
        assert (await lasting.processors()).names == frozenset()
        await lasting.retire_processor_port(A)
        assert await lasting.processor_ports() == [B]
        store.raw.zadd("{pg-nodes}ports", {b"a b": FAR, b"a b http://x": FAR, b"\xff": FAR})
        await short.keep_processor_port(A)
        assert set(await lasting.processor_ports()) == {A, B}

        async def lapsed() -> bool:
            return A not in await lasting.processor_ports()

        await eventually(lapsed, "the port has lapsed")


async def test_a_killed_start_of_a_processor_gives_way_to_the_next_at_its_port(
    store: Store,
) -> None:
    async with (
        open_registry(store.url, lease_seconds=5.0, heartbeat_seconds=1.0) as before,
        open_registry(store.url) as registry,
    ):
        await before.keep_processor_port(A_AGAIN)
        await registry.keep_processor_port(A)
        assert await registry.processor_ports() == [A]


async def test_a_processor_that_keeps_its_lease_stays(store: Store) -> None:
    async with open_registry(store.url, lease_seconds=1.0, heartbeat_seconds=0.2) as registry:
        deadline = time.monotonic() + 2.5
        while time.monotonic() < deadline:
            assert (await registry.keep_processor("p1")).names == {"p1"}
            await asyncio.sleep(0.2)


# Leases


async def test_the_first_heartbeat_finds_no_lease(registry: RedisRegistry) -> None:
    assert await registry.heartbeat(A, claim=True) is Lease.LAPSED
    assert await registry.heartbeat(A) is Lease.HELD
    assert await registry.heartbeat(A, claim=True) is Lease.HELD


async def test_a_heartbeat_without_a_claim_makes_a_lease_where_there_is_none(
    registry: RedisRegistry,
) -> None:
    assert await registry.heartbeat(A) is Lease.LAPSED
    assert await registry.heartbeat(A) is Lease.HELD


async def test_a_new_start_takes_the_name_over_and_the_old_is_told(
    registry: RedisRegistry,
) -> None:
    await registry.heartbeat(A, claim=True)
    assert await registry.heartbeat(A_AGAIN, claim=True) is Lease.LAPSED
    assert await registry.heartbeat(A) is Lease.TAKEN
    assert await registry.heartbeat(A_AGAIN) is Lease.HELD


async def test_an_epoch_that_begins_like_another_is_another(registry: RedisRegistry) -> None:
    await registry.heartbeat(Node("gw-a", "e11", "h:1"), claim=True)
    assert await registry.heartbeat(A) is Lease.TAKEN


async def test_a_lease_lapses_by_itself(store: Store) -> None:
    async with (
        open_registry(store.url, timeout_seconds=5.0) as with_time,
        open_registry(store.url, timeout_seconds=5.0, lease_seconds=0.2) as registry,
    ):
        await holding(with_time, A)
        await with_time.write(A, ["alice"], [])
        assert await where(registry, "alice") == {A}
        await registry.heartbeat(A)
        await asyncio.to_thread(wait_until, lambda: not store.keys_ending("lease:gw-a"), "a lapse")
        await registry.refresh()
        assert await where(registry, "alice") == set()
        assert await registry.heartbeat(A) is Lease.LAPSED


async def test_who_retires_counts_no_more_at_once(registry: RedisRegistry) -> None:
    await holding(registry, A)
    await registry.write(A, ["alice"], [])
    await registry.retire(A)
    await registry.refresh()
    assert await where(registry, "alice") == set()
    await registry.retire(A)


async def test_a_late_retirement_leaves_the_newer_start_alone(registry: RedisRegistry) -> None:
    await holding(registry, A)
    await registry.heartbeat(A_AGAIN, claim=True)
    await registry.write(A_AGAIN, ["alice"], [])
    await registry.retire(A)
    await registry.refresh()
    assert await where(registry, "alice") == {A_AGAIN}
    assert await registry.heartbeat(A_AGAIN) is Lease.HELD


async def test_a_node_that_retired_is_no_name_any_more(
    registry: RedisRegistry, store: Store
) -> None:
    await registry.heartbeat(A, claim=True)
    await registry.retire(A)
    assert store.keys_ending("lease:gw-a") == []
    assert store.keys_ending("names") == []


# Lost nodes


async def lapse(store: Store, node: Node) -> None:
    """Return when the node's lease has lapsed."""
    lease = f"lease:{node.name}"
    await asyncio.to_thread(wait_until, lambda: not store.keys_ending(lease), "a lapse")


@asynccontextmanager
async def losing(store: Store, *, lost_seconds: float = 30.0) -> AsyncIterator[RedisRegistry]:
    """Give a processor's registry, as of the time when A, with alice and bob, has been lost.

    B is live, and has bob too.
    """
    async with (
        open_registry(
            store.url, timeout_seconds=5.0, lease_seconds=0.2, lost_seconds=lost_seconds
        ) as gateway,
        open_registry(store.url, timeout_seconds=5.0, lost_seconds=30.0) as processor,
    ):
        await gateway.heartbeat(A, claim=True)
        await processor.heartbeat(B, claim=True)
        await gateway.write(A, ["alice", "bob"], [])
        await processor.write(B, ["bob"], [])
        await lapse(store, A)
        await processor.refresh()
        yield processor


async def test_a_node_whose_lease_lapses_without_a_goodbye_is_lost(store: Store) -> None:
    async with losing(store) as registry:
        assert await registry.lookup(["alice", "bob", "nobody"]) == [(A,), (A, B), ()]
        assert (registry.present(A), registry.lost(A)) == (True, True)
        assert (registry.present(B), registry.lost(B)) == (True, False)
        assert (registry.present(A_AGAIN), registry.lost(A_AGAIN)) == (False, False)


async def test_a_lost_node_is_no_live_node(store: Store) -> None:
    async with losing(store) as registry:
        assert await registry.nodes() == [B]
        assert {user: nodes async for user, nodes in registry.entries()} == {
            "alice": (),
            "bob": (B,),
        }


async def test_a_processor_that_has_just_started_knows_lost_nodes(store: Store) -> None:
    async with (
        losing(store),
        open_registry(store.url, timeout_seconds=5.0, lost_seconds=30.0) as newcomer,
    ):
        assert await newcomer.lookup(["alice"]) == [(A,)]
        assert newcomer.lost(A)


async def test_who_does_not_ask_for_lost_nodes_gets_none(store: Store) -> None:
    async with losing(store), open_registry(store.url, timeout_seconds=5.0) as other:
        assert await other.lookup(["alice", "bob"]) == [(), (B,)]
        assert not other.present(A)


async def test_a_node_is_lost_for_so_long_and_no_longer(store: Store) -> None:
    async with losing(store, lost_seconds=0.5) as registry:
        await asyncio.to_thread(wait_until, lambda: not store.keys_ending("seen:gw-a"), "its end")
        await registry.refresh()
        assert await registry.lookup(["alice", "bob"]) == [(), (B,)]
        assert not registry.present(A)


async def test_no_node_is_lost_where_that_is_off(store: Store) -> None:
    async with open_registry(store.url, timeout_seconds=5.0) as registry:
        await registry.heartbeat(A, claim=True)
        assert store.keys_ending("seen:gw-a") == []


async def test_a_node_that_says_goodbye_is_not_lost(store: Store) -> None:
    async with open_registry(store.url, timeout_seconds=5.0, lost_seconds=30.0) as registry:
        await holding(registry, A)
        await registry.write(A, ["alice"], [])
        await registry.retire(A)
        assert await registry.lookup(["alice"]) == [()]
        assert not registry.present(A)
        assert store.keys_ending("seen:gw-a") == []


async def test_a_late_goodbye_ends_a_lost_node_at_once(store: Store) -> None:
    async with losing(store) as registry:
        await registry.retire(A)
        assert await registry.lookup(["alice", "bob"]) == [(), (B,)]
        assert not registry.present(A)


async def test_another_starts_goodbye_does_not_end_a_lost_node(store: Store) -> None:
    async with losing(store) as registry:
        await registry.retire(A_AGAIN)
        await registry.refresh()
        assert registry.lost(A)


async def test_a_new_start_ends_the_lost_one_at_once(store: Store) -> None:
    async with losing(store) as registry:
        await registry.heartbeat(A_AGAIN, claim=True)
        assert await registry.lookup(["alice", "bob"]) == [(), (B,)]
        assert (registry.present(A), registry.lost(A)) == (False, False)
        assert (registry.present(A_AGAIN), registry.lost(A_AGAIN)) == (True, False)


async def test_a_lost_node_that_goes_on_is_live_at_once(store: Store) -> None:
    async with losing(store) as registry:
        await registry.heartbeat(A)
        assert await registry.lookup(["alice"]) == [(A,)]
        assert (registry.present(A), registry.lost(A)) == (True, False)


async def test_another_nodes_writes_keep_a_lost_nodes_element(store: Store) -> None:
    async with losing(store) as registry:
        await registry.write(B, ["alice"], ["bob"])
        assert await registry.lookup(["alice", "bob"]) == [(A, B), (A,)]


# Entries


async def test_a_user_is_where_they_were_written(registry: RedisRegistry) -> None:
    await holding(registry, A, B)
    await registry.write(A, ["alice", "bob"], [])
    await registry.write(B, ["bob"], [])
    assert await registry.lookup(["bob", "nobody", "alice"]) == [(A, B), (), (A,)]


async def test_everyone_can_be_gone_through(registry: RedisRegistry) -> None:
    await registry.heartbeat(A)
    await registry.heartbeat(B)
    users = [f"u-{number}" for number in range(1_200)]
    await registry.write(A, users, [])
    await registry.write(B, users[:3], [])
    await registry.write(A, [], users[1_000:])
    found = {user: set(nodes) async for user, nodes in registry.entries()}
    assert found == {user: {A, B} if user in users[:3] else {A} for user in users[:1_000]}
    assert set(await registry.nodes()) == {A, B}


async def test_a_user_who_is_gone_is_nowhere_and_leaves_no_key(
    registry: RedisRegistry, store: Store
) -> None:
    await holding(registry, A)
    await registry.write(A, ["alice"], [])
    await registry.write(A, [], ["alice", "nobody"])
    assert await where(registry, "alice") == set()
    assert store.keys_ending("user:alice") == []
    assert store.keys_ending("user:nobody") == []


async def test_a_write_touches_only_its_own_element(registry: RedisRegistry) -> None:
    await holding(registry, A, B)
    await registry.write(A, ["alice"], [])
    await registry.write(B, ["alice"], [])
    await registry.write(A, [], ["alice"])
    assert await where(registry, "alice") == {B}


async def test_a_write_again_is_no_second_element(registry: RedisRegistry, store: Store) -> None:
    await holding(registry, A)
    for _ in range(3):
        await registry.write(A, ["alice"], [])
    entry = store.entry_of("alice")
    assert entry is not None
    assert entry.count(b"gw-a") == 1


async def test_the_late_close_of_an_earlier_start_evicts_no_newer_session(
    registry: RedisRegistry,
) -> None:
    await holding(registry, A)
    await registry.write(A, ["alice"], [])
    await holding(registry, A_AGAIN)
    await registry.write(A_AGAIN, ["alice"], [])
    await registry.write(A, [], ["alice"])
    assert await where(registry, "alice") == {A_AGAIN}


async def test_what_an_earlier_start_has_written_does_not_count(registry: RedisRegistry) -> None:
    await holding(registry, A)
    await registry.write(A, ["alice"], [])
    await holding(registry, A_AGAIN)
    assert await where(registry, "alice") == set()


async def test_two_nodes_that_write_at_once_keep_both_elements(store: Store) -> None:
    users = [f"u{number}" for number in range(50)]
    async with (
        open_registry(store.url, timeout_seconds=10.0) as first,
        open_registry(store.url, timeout_seconds=10.0) as second,
    ):
        await holding(first, A, B)
        await second.refresh()
        for _ in range(5):
            await asyncio.gather(
                first.write(A, users[:30], users[30:]), second.write(B, users[20:], users[:20])
            )
        found = await first.lookup(users)
    assert [set(nodes or ()) for nodes in found] == [{A}] * 20 + [{A, B}] * 10 + [{B}] * 20


async def test_a_write_drops_what_has_expired(registry: RedisRegistry, store: Store) -> None:
    await holding(registry, A, B)
    await registry.write(A, ["alice"], [])
    store.poison("alice", b"gw-old:e1:1 gw-older:e2:1000000000")
    await registry.write(B, ["alice"], [])
    entry = store.entry_of("alice")
    assert entry is not None
    assert b"gw-old" not in entry
    assert await where(registry, "alice") == {B}


async def test_the_last_write_of_a_user_removes_what_has_expired_too(
    registry: RedisRegistry, store: Store
) -> None:
    await holding(registry, A)
    await registry.write(A, ["alice"], [])
    store.poison("alice", b"gw-old:e1:1")
    await registry.write(A, [], ["alice"])
    assert store.keys_ending("user:alice") == []


async def test_an_entry_lives_by_the_clock_of_redis(store: Store) -> None:
    async with open_registry(store.url, timeout_seconds=5.0, entry_seconds=90) as registry:
        await holding(registry, A)
        seconds, _ = client_time(store)
        await registry.write(A, ["alice"], [])
        entry = store.entry_of("alice")
        assert entry is not None
        expires = int(entry.rpartition(b":")[2])
        assert seconds + 90 <= expires <= seconds + 90 + 60 + 1
        assert expires % 60 == 0, "equal entries are equal bytes"
        assert store.raw.execute_command("EXPIRETIME", store.key_of("alice")) == expires


async def test_a_key_lives_as_long_as_its_longest_element(
    registry: RedisRegistry, store: Store
) -> None:
    await holding(registry, A, B)
    await registry.write(A, ["alice"], [])
    later = client_time(store)[0] + 100_000
    store.poison("alice", b"gw-b:e1:%d" % later)
    await registry.write(A, ["alice"], [])
    assert store.raw.execute_command("EXPIRETIME", store.key_of("alice")) == later


def client_time(store: Store) -> tuple[int, int]:
    anywhere = {"target_nodes": redis.RedisCluster.RANDOM}
    now: tuple[int, int] = store.raw.time(
        **anywhere if isinstance(store.raw, redis.RedisCluster) else {}
    )
    return now


async def test_thousands_are_written_and_looked_up_in_order(registry: RedisRegistry) -> None:
    users = [f"u{number}" for number in range(2_500)]
    await holding(registry, A, B)
    await registry.write(A, users[::2], [])
    await registry.write(B, users[1::2], users[::2])
    found = await registry.lookup(users[:1_000])
    assert found == [(A,), (B,)] * 500
    assert await registry.lookup([*reversed(users)]) == [(B,), (A,)] * 1_250
    await registry.write(A, [], users)
    assert await registry.lookup(users[:1_000]) == [(), (B,)] * 500


async def test_nobody_may_be_looked_up_or_written(registry: RedisRegistry) -> None:
    assert await registry.lookup([]) == []
    await registry.write(A, [], [])


async def test_a_user_may_be_looked_up_twice(registry: RedisRegistry) -> None:
    await holding(registry, A)
    await registry.write(A, ["alice"], [])
    assert await registry.lookup(["alice", "bob", "alice"]) == [(A,), (), (A,)]


@pytest.mark.parametrize(
    "user", ["a b", "a:b", "}{pg-1}", "{x}", "é€😀", "*", "u" * 256, "-1", '"']
)
async def test_any_user_id_is_a_user_of_its_own(registry: RedisRegistry, user: str) -> None:
    await holding(registry, A)
    await registry.write(A, [user], [])
    assert await registry.lookup([user, user[:-1] + "?"]) == [(A,), ()]


# The node table


async def test_a_node_that_is_newer_than_the_table_is_found_by_a_fresh_look(
    store: Store, registry: RedisRegistry
) -> None:
    await registry.refresh()
    async with open_registry(store.url, timeout_seconds=5.0) as gateway:
        await gateway.heartbeat(A, claim=True)
        await gateway.write(A, ["alice"], [])
    assert await where(registry, "alice") == {A}


async def test_a_processor_that_never_refreshed_finds_users(
    store: Store, registry: RedisRegistry
) -> None:
    await registry.heartbeat(A, claim=True)
    await registry.write(A, ["alice"], [])
    async with open_registry(store.url, timeout_seconds=5.0) as processor:
        assert await where(processor, "alice") == {A}


async def test_a_node_that_comes_back_under_its_old_epoch_counts_at_once(store: Store) -> None:
    async with (
        open_registry(store.url, timeout_seconds=5.0, lease_seconds=0.2) as gateway,
        open_registry(store.url, timeout_seconds=5.0) as gateway_with_time,
        open_registry(store.url, timeout_seconds=5.0) as processor,
    ):
        await holding(gateway, A)
        await gateway.write(A, ["alice"], [])
        await asyncio.to_thread(wait_until, lambda: not store.keys_ending("lease:gw-a"), "a lapse")
        await processor.refresh()
        assert await where(processor, "alice") == set()
        # For a longer lease: on a busy machine the first might lapse before the look-up.
        await gateway_with_time.heartbeat(A)
        assert await where(processor, "alice") == {A}


async def test_leases_that_are_given_up_or_taken_over_count_no_more_at_once(
    store: Store, registry: RedisRegistry
) -> None:
    await holding(registry, A, B)
    await registry.write(A, ["alice"], [])
    await registry.write(B, ["bob"], [])
    async with open_registry(store.url, timeout_seconds=5.0) as processor:
        assert await processor.lookup(["alice", "bob"]) == [(A,), (B,)]
        await registry.heartbeat(A_AGAIN, claim=True)
        await registry.retire(B)
        assert await processor.lookup(["alice", "bob"]) == [(), ()]


# Doubt


async def test_in_an_empty_registry_nobody_is_offline(registry: RedisRegistry) -> None:
    assert await registry.lookup(["alice", "bob"]) == [None, None]
    assert registry.in_doubt


async def test_who_is_nowhere_is_offline_once_all_had_time_to_register(store: Store) -> None:
    async with open_registry(store.url, timeout_seconds=5.0, registration_seconds=0.5) as registry:
        await holding(registry, A)
        await registry.write(A, ["alice"], [])
        began = time.monotonic()
        while (found := await registry.lookup(["nobody", "alice"])) == [None, (A,)]:
            assert time.monotonic() < began + 5.0, "it is in doubt for ever"
            await asyncio.sleep(0.01)
        assert found == [(), (A,)]
        assert not registry.in_doubt
        assert time.monotonic() > began + 0.4


async def test_of_all_who_look_up_nobody_needs_to_have_been_there(store: Store) -> None:
    async with open_registry(store.url, timeout_seconds=5.0) as gateway:
        await holding(gateway, A)
    bounds = {"timeout_seconds": 5.0, "registration_seconds": 60.0}
    async with open_registry(store.url, **bounds) as newcomer:
        assert await newcomer.lookup(["nobody"]) == [None]


async def test_keys_that_are_lost_under_a_live_lease_are_told_to_every_gateway(
    store: Store, registry: RedisRegistry
) -> None:
    await holding(registry, A)
    await registry.write(A, ["alice"], [])
    async with open_registry(store.url, timeout_seconds=5.0) as other:
        await holding(other, B)
        assert (await registry.heartbeat(A), await other.heartbeat(B)) == (Lease.HELD, Lease.HELD)
        tag = store.key_of("alice").partition(b"}")[0]
        bucket = [key for key in store.keys_ending("generation") if key.startswith(tag + b"}")]
        marker = (bucket or store.keys_ending("{pg-nodes}generation"))[0]
        store.raw.delete(store.key_of("alice"), marker)
        assert await registry.lookup(["alice"]) == [None]
        assert (await registry.heartbeat(A), await other.heartbeat(B)) == (
            Lease.LAPSED,
            Lease.LAPSED,
        )
        assert (await registry.heartbeat(A), await other.heartbeat(B)) == (Lease.HELD, Lease.HELD)
        assert await registry.lookup(["alice"]) == [()]


MARKERS = [
    b"",
    b"x",
    b"0123456789abcdef 1000",  # of another server: a failover, an old dump
    b"%s 9999999999999999",  # from the future: a clock was set back
    b"%s 1000000000000000000000000",
    b"%s -1",
    b"%s 1000 x",
    b"\xff" * 100,
]


@pytest.mark.parametrize("marker", [*MARKERS, None], ids=repr)
async def test_a_marker_that_is_not_this_servers_own_is_made_anew(
    store: Store, marker: bytes | None
) -> None:
    async with open_registry(store.url, timeout_seconds=5.0, registration_seconds=60.0) as registry:
        await holding(registry, A)
        for key in store.keys_ending("generation"):
            own = store.raw.get(key).split()[0]
            if marker is None:
                store.raw.delete(key)
                store.raw.execute_command("HSET", key, "a", "b")
            else:
                store.raw.set(key, marker % own if b"%" in marker else marker)
        assert await registry.heartbeat(A) is Lease.LAPSED
        assert await registry.heartbeat(A) is Lease.HELD
        assert await registry.lookup(["nobody"]) == [None]


@pytest.mark.parametrize("running_store", ["cluster"], indirect=True)
@needs_redis
async def test_every_bucket_of_a_cluster_has_its_marker(
    store: Store, registry: RedisRegistry
) -> None:
    await holding(registry, A)
    assert len(store.keys_ending("generation")) == BUCKETS + 1


async def test_after_an_outage_nobody_is_offline_for_a_while(own_valkey: RedisServer) -> None:
    async with open_registry(own_valkey.url, registration_seconds=0.0) as gateway:
        await holding(gateway, A)
        await gateway.write(A, ["alice"], [])
    bounds = {"timeout_seconds": 0.3, "registration_seconds": 1.0}
    async with open_registry(own_valkey.url, **bounds) as registry:
        await settled(registry)
        own_valkey.freeze()
        with pytest.raises(RegistryUnavailable):
            await registry.lookup(["nobody"])
        own_valkey.thaw()
        await recovered(registry)
        assert await registry.lookup(["nobody", "alice"]) == [None, (A,)]
        await settled(registry)
        assert await registry.lookup(["nobody", "alice"]) == [(), (A,)]


async def settled(registry: RedisRegistry) -> None:
    """Return once who is nowhere is offline."""
    deadline = time.monotonic() + 10
    while await registry.lookup(["nobody"]) != [()]:
        assert time.monotonic() < deadline, "it is in doubt for ever"
        await asyncio.sleep(0.02)


# Poison


POISON = [
    b"",
    b" ",
    b"\x00\xff\r\n",
    b"http://evil.example/:1:9999999999",
    b"gw-a:e1:-5 gw-a:e1:x gw-a:e1",
    b"gw-a:e1:9999999999\r\nhost: evil",
    b"gw-c:e1:" + b"9" * 15,
    b"gw-c:e1:" + b"9" * 16,
    b"gw-c:e1:" + b"9" * 20,
    b"gw-c:e1:" + b"9" * 400,
    b"evil:evil:9999999999 " * 50_000,
]


@pytest.mark.parametrize("poison", POISON, ids=lambda poison: repr(poison[:32]))
async def test_a_poisoned_entry_stands_in_nobodys_way(
    registry: RedisRegistry, store: Store, poison: bytes
) -> None:
    await holding(registry, A)
    await registry.write(A, ["alice", "bob"], [])
    store.poison("alice", poison)
    found = await registry.lookup(["alice", "bob"])
    assert found[1] == (A,)
    assert found[0] in ((), (A,))
    await registry.write(A, ["alice", "bob", "carol"], [])
    assert (await registry.lookup(["bob", "carol"])) == [(A,), (A,)]
    await registry.write(A, [], ["alice", "bob"])
    assert await where(registry, "bob") == set()


@pytest.mark.parametrize("poison", POISON[:-1], ids=lambda poison: repr(poison[:32]))
async def test_a_user_whose_entry_was_poisoned_can_register(
    registry: RedisRegistry, store: Store, poison: bytes
) -> None:
    await holding(registry, A)
    await registry.write(A, ["alice"], [])
    store.poison("alice", poison)
    await registry.write(A, ["alice"], [])
    assert await where(registry, "alice") == {A}


@pytest.mark.parametrize("poison", [b"x" * 1_048_576, b"x" * 65_536, b"x:" * 500_000])
async def test_a_huge_entry_does_not_keep_redis_busy(
    own_valkey: RedisServer, poison: bytes
) -> None:
    with own_valkey.client() as raw:
        store = Store(own_valkey.url, raw)
        store.flush()
        async with open_registry(own_valkey.url, timeout_seconds=1.0) as registry:
            await holding(registry, A)
            await registry.write(A, ["alice"], [])
            store.poison("alice", poison)
            await registry.lookup(["alice"])
            await registry.write(A, ["alice", "bob"], [])
            assert await registry.lookup(["alice", "bob"]) == [(A,), (A,)]


async def test_an_entry_of_another_type_is_replaced(registry: RedisRegistry, store: Store) -> None:
    await holding(registry, A)
    await registry.write(A, ["alice", "bob"], [])
    key = store.key_of("alice")
    for make in (["LPUSH", key, "x"], ["HSET", key, "a", "b"], ["SADD", key, "x"]):
        store.raw.execute_command("DEL", key)
        store.raw.execute_command(*make)
        assert await registry.lookup(["alice", "bob"]) == [(), (A,)]
        await registry.write(A, ["alice"], [])
        assert await where(registry, "alice") == {A}


@pytest.mark.parametrize(
    "lease",
    [
        b"",
        b"e1",
        b"e1 http://evil.example/",
        b"e1 10.0.0.1:8081 x",
        b"e1 10.0.0.1:8081\r\nx: y",
        b"e1  10.0.0.1:8081",
        b"e1 user@evil:80",
        b"\xff\xfe",
        b"e1 " + b"x" * 1_048_576,
    ],
    ids=lambda lease: repr(lease[:32]),
)
async def test_a_poisoned_lease_is_no_node_and_spoils_no_other(
    registry: RedisRegistry, store: Store, lease: bytes
) -> None:
    await holding(registry, A, B)
    await registry.write(A, ["alice"], [])
    await registry.write(B, ["bob"], [])
    (key,) = store.keys_ending("lease:gw-a")
    store.raw.execute_command("SET", key, lease)
    await registry.refresh()
    assert await registry.lookup(["alice", "bob"]) == [(), (B,)]


async def test_poisoned_names_are_no_nodes(registry: RedisRegistry, store: Store) -> None:
    await holding(registry, B)
    await registry.write(B, ["bob"], [])
    (names,) = store.keys_ending("names")
    prefix = names.removesuffix(b"names")
    for name in (b"http://evil/", b"a b", b"\xff", b"", b"x" * 100_000, b"a\r\nb"):
        store.raw.execute_command("ZADD", names, FAR, name)
        store.raw.execute_command("SET", prefix + b"lease:" + name, b"e1 evil.example:80")
    await registry.refresh()
    assert await where(registry, "bob") == {B}


@pytest.mark.parametrize("suffix", ["names", "lease:gw-a"])
async def test_a_nodes_key_of_another_type_is_an_outage_and_no_crash(
    registry: RedisRegistry, store: Store, suffix: str
) -> None:
    await holding(registry, A)
    (key,) = store.keys_ending(suffix)
    store.raw.execute_command("DEL", key)
    store.raw.execute_command("HSET", key, "a", "b")
    with pytest.raises(RegistryUnavailable, match="WRONGTYPE"):
        await registry.heartbeat(A)


# Outages


COMMANDS: dict[str, Callable[[RedisRegistry], Any]] = {
    "heartbeat": lambda registry: registry.heartbeat(A),
    "retire": lambda registry: registry.retire(A),
    "write": lambda registry: registry.write(A, ["alice"], []),
    "refresh": lambda registry: registry.refresh(),
    "lookup": lambda registry: registry.lookup(["alice"]),
}


@pytest.mark.parametrize("command", COMMANDS)
async def test_a_frozen_redis_is_unavailable_within_the_time_out(
    own_valkey: RedisServer, command: str
) -> None:
    async with open_registry(own_valkey.url, timeout_seconds=0.3) as registry:
        await registry.refresh()
        own_valkey.freeze()
        try:
            began = time.monotonic()
            with pytest.raises(RegistryUnavailable):
                await COMMANDS[command](registry)
            assert time.monotonic() - began < 1.0
        finally:
            own_valkey.thaw()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("peer", ["silent", "black hole"])
@pytest.mark.parametrize("scheme", ["redis", "redis+sentinel", "redis+cluster"])
async def test_peers_that_never_answer_are_unavailable_within_the_time_out(
    scheme: str, peer: str, command: str
) -> None:
    with contextlib.ExitStack() as peers:
        # Asked in turn, they would take a time-out each.
        number = 1 if scheme == "redis" else 8
        ports = [peers.enter_context(unanswering(peer)) for _ in range(number)]
        url = f"{scheme}://" + ",".join(f"{LOOPBACK}:{port}" for port in ports)
        async with open_registry(url, timeout_seconds=0.3) as registry:
            await unavailable_in_time(registry, command)


@pytest.mark.parametrize("command", COMMANDS)
async def test_a_frozen_master_behind_a_sentinel_is_unavailable_within_the_time_out(
    frozen_master: str, command: str
) -> None:
    async with open_registry(frozen_master, timeout_seconds=0.3) as registry:
        await unavailable_in_time(registry, command)


@pytest.fixture(scope="module")
def frozen_master() -> Iterator[str]:
    with RedisServer() as master, Sentinel(master) as watching:
        master.freeze()
        yield watching.url


@pytest.mark.parametrize("command", COMMANDS)
async def test_a_cluster_with_a_frozen_master_is_unavailable_within_the_time_out(
    frozen_cluster: RedisCluster, command: str
) -> None:
    """At least to those whose keys it has; nobody waits for it longer."""
    async with open_registry(frozen_cluster.url, timeout_seconds=0.5) as registry:
        for _ in range(3):
            began = time.monotonic()
            with contextlib.suppress(RegistryUnavailable):
                await COMMANDS[command](registry)
            assert time.monotonic() - began < 2.0


@pytest.fixture(scope="module")
def frozen_cluster() -> Iterator[RedisCluster]:
    with RedisCluster() as servers:
        servers.masters[servers.owner_of(b"{pg-nodes}")].freeze()
        yield servers


@pytest.mark.parametrize("peer", ["silent", "black hole"])
async def test_a_sentinel_that_never_answers_leaves_time_for_the_next(peer: str) -> None:
    with RedisServer() as master, Sentinel(master) as watching, unanswering(peer) as port:
        url = watching.url.replace("//", f"//{LOOPBACK}:{port},")
        async with open_registry(url, timeout_seconds=2.0) as registry:
            await holding(registry, A)
            await registry.write(A, ["alice"], [])
            assert await where(registry, "alice") == {A}


@pytest.mark.parametrize("peer", ["silent", "black hole"])
async def test_a_cluster_is_found_beside_a_host_that_never_answers(peer: str) -> None:
    with RedisCluster(masters=1) as servers, unanswering(peer) as port:
        url = servers.url.replace("//", f"//{LOOPBACK}:{port},")
        async with open_registry(url, timeout_seconds=0.5) as registry:
            await recovered(registry)
            await holding(registry, A)


async def test_closed_in_an_outage_of_a_cluster_it_leaves_no_connection() -> None:
    with RedisCluster() as servers, contextlib.ExitStack() as asked:
        leases = servers.owner_of(b"{pg-nodes}")
        others = [
            asked.enter_context(server.client())
            for number, server in enumerate(servers.masters)
            if number != leases
        ]
        async with open_registry(servers.url, timeout_seconds=5.0) as registry:
            await holding(registry, A)
            await registry.lookup([f"u{number}" for number in range(200)])
            assert all(len(other.client_list()) > 1 for other in others)
            servers.masters[leases].kill()
            # What redis-py does when a command of one key fails: it wants to find the masters anew.
            with contextlib.suppress(redis.RedisError):
                await registry._link.command("GET", "{pg-nodes}names")
        await asyncio.to_thread(
            wait_until,
            lambda: all(len(other.client_list()) == 1 for other in others),
            "no connection but the test's is left",
        )


async def unavailable_in_time(registry: RedisRegistry, command: str) -> None:
    for _ in range(2):
        began = time.monotonic()
        with pytest.raises(RegistryUnavailable):
            await COMMANDS[command](registry)
        assert time.monotonic() - began < 1.5


@contextlib.contextmanager
def unanswering(peer: str) -> Iterator[int]:
    """Give a port that takes connections and says nothing, or takes none and drops who comes."""
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.create_server((LOOPBACK, 0), backlog=0))
        port: int = listener.getsockname()[1]
        if peer == "silent":
            listener.listen(100)
        for _ in range(8 if peer == "black hole" else 0):
            # Those whom nobody accepts fill its queue; the kernel drops who comes after them.
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex((LOOPBACK, port))
        yield port


async def test_after_a_thaw_answers_are_those_of_their_own_questions(
    own_valkey: RedisServer,
) -> None:
    async with open_registry(own_valkey.url, timeout_seconds=0.3) as registry:
        await holding(registry, A)
        await registry.write(A, ["alice"], [])
        own_valkey.freeze()
        for command in COMMANDS.values():
            with pytest.raises(RegistryUnavailable):
                await command(registry)
        own_valkey.thaw()
        await recovered(registry)
        for _ in range(5):
            assert await registry.heartbeat(A) in (Lease.HELD, Lease.LAPSED)
            await registry.refresh()
            await registry.write(A, ["bob"], [])
            assert await registry.lookup(["nobody", "bob"]) == [(), (A,)]


async def test_a_redis_that_is_gone_is_named_without_credentials(own_valkey: RedisServer) -> None:
    url = f"redis://user:marker@{LOOPBACK}:{own_valkey.port}/0"
    own_valkey.kill()
    async with open_registry(url, timeout_seconds=1.0) as registry:
        for command in COMMANDS.values():
            with pytest.raises(RegistryUnavailable) as caught:
                await command(registry)
            assert f"{LOOPBACK}:{own_valkey.port}" in str(caught.value)
            assert "marker" not in f"{caught.value!r}"


async def test_wrong_credentials_are_an_outage_that_does_not_repeat_them(
    own_valkey: RedisServer,
) -> None:
    url = f"redis://user:marker@{LOOPBACK}:{own_valkey.port}/0"
    async with open_registry(url, timeout_seconds=1.0) as registry:
        with pytest.raises(RegistryUnavailable) as caught:
            await registry.refresh()
        assert "marker" not in f"{caught.value!r}"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("scheme", ["redis+cluster", "redis+sentinel"])
async def test_a_cluster_or_sentinel_that_is_gone_is_unavailable_too(
    scheme: str, command: str
) -> None:
    url = f"{scheme}://user:marker@{LOOPBACK}:{choose_port()}"
    async with open_registry(url, timeout_seconds=1.0) as registry:
        with pytest.raises(RegistryUnavailable) as caught:
            await COMMANDS[command](registry)
    assert "marker" not in f"{caught.value!r}"


async def test_a_redis_that_is_back_answers_again(own_valkey: RedisServer) -> None:
    async with open_registry(own_valkey.url, timeout_seconds=1.0) as registry:
        await holding(registry, A)
        own_valkey.restart()
        await recovered(registry)
        assert await registry.heartbeat(A) is Lease.LAPSED
        await registry.write(A, ["alice"], [])  # the scripts are gone there, too
        await registry.refresh()
        assert await where(registry, "alice") == {A}


async def recovered(registry: RedisRegistry) -> None:
    """Return once it answers."""
    deadline = time.monotonic() + 10
    while True:
        try:
            await registry.refresh()
            return
        except RegistryUnavailable:
            assert time.monotonic() < deadline, "Redis did not come back"
            await asyncio.sleep(0.02)


async def test_a_cancelled_command_is_cancelled(own_valkey: RedisServer) -> None:
    async with open_registry(own_valkey.url, timeout_seconds=5.0) as registry:
        await registry.refresh()
        own_valkey.freeze()
        try:
            task = asyncio.create_task(registry.lookup(["alice"]))
            await asyncio.wait((task,), timeout=0.05)
            task.cancel()
            began = time.monotonic()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert time.monotonic() - began < 1.0
        finally:
            own_valkey.thaw()
        assert await registry.lookup(["alice"]) == [None]


@pytest.mark.parametrize("asking", ["refresh", "entries"])
async def test_a_cancellation_is_never_swallowed_whenever_it_comes(
    registry: RedisRegistry, asking: str
) -> None:
    async def ask_for_ever() -> None:
        while True:
            if asking == "refresh":
                await registry.refresh()
            else:
                _ = [entry async for entry in registry.entries()]

    for turns in range(60):
        task = asyncio.create_task(ask_for_ever())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait((task,), timeout=2.0)
        assert done, f"a cancellation after {turns} turns was swallowed"
        assert task.cancelled()


async def test_a_task_that_cleans_up_after_its_cancellation_may_ask(
    registry: RedisRegistry,
) -> None:
    started = asyncio.Event()

    async def live_and_retire() -> None:
        await registry.heartbeat(A, claim=True)
        try:
            started.set()
            await asyncio.Event().wait()
        finally:
            await registry.retire(A)
            await registry.write(A, [], ["alice"])
            cleaned_up.set()

    cleaned_up = asyncio.Event()
    task = asyncio.create_task(live_and_retire())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cleaned_up.is_set()


# Other ways to reach Redis


@needs_redis
async def test_any_host_of_a_cluster_is_a_way_in() -> None:
    with RedisCluster("redis", masters=1) as servers:
        url = servers.url.replace("//", f"//{LOOPBACK}:{choose_port()},")
        async with open_registry(url, timeout_seconds=5.0) as registry:
            await holding(registry, A)
            await registry.write(A, ["alice"], [])
            assert await where(registry, "alice") == {A}


@pytest.mark.parametrize("scheme", ["redis", "redis+sentinel"])
@needs_redis
async def test_a_password_may_be_percent_encoded(scheme: str) -> None:
    password = "p@ss/w:rd%"
    encoded = "p%40ss%2Fw%3Ard%25"
    with RedisServer("redis") as master, master.client() as raw:
        raw.config_set("requirepass", password)
        if scheme == "redis":
            async with open_registry(f"redis://:{encoded}@{LOOPBACK}:{master.port}/0") as registry:
                await registry.refresh()
            return
        with Sentinel(master, password=password) as watching:
            url = watching.url.replace("//", f"//:{encoded}@")
            async with open_registry(url, timeout_seconds=5.0) as registry:
                await registry.refresh()


async def test_a_database_of_its_own_is_kept_apart(valkey: RedisServer) -> None:
    valkey.flush()
    one, two = valkey.url, f"redis://{LOOPBACK}:{valkey.port}/2"
    async with (
        open_registry(one, timeout_seconds=5.0) as first,
        open_registry(two, timeout_seconds=5.0) as second,
    ):
        await holding(first, A)
        await first.write(A, ["alice"], [])
        await holding(second, B)
        assert await where(second, "alice") == set()


async def test_a_cancellation_that_comes_out_as_an_error_is_a_cancellation_all_the_same() -> None:
    # As Python 3.11's asyncio.wait_for() does it, which redis-py uses.
    async def replaced() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ConnectionError("in place of it") from None

    registry = RedisRegistry("redis://127.0.0.1:1")
    asking = asyncio.create_task(registry._ask(replaced))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await registry.close()
