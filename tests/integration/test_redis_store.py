"""The registry in a real Valkey, Redis, Redis Cluster and behind a Sentinel."""

import asyncio
import contextlib
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from pushgate.embedded import LOOPBACK, choose_port, tied_to_parent
from registry.directory import Lease, Node, RegistryUnavailable
from registry.redis_store import RedisRegistry
from tests.support.valkey import Kind, RedisServer, redis_is_installed

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
            key for key in self.raw.keys("*") if key.endswith(b"user:" + user.encode())
        ]
        assert len(found) == 1, f"{user} has the keys {found}"
        self._keys[user] = found[0]
        return found[0]

    def keys_ending(self, suffix: str) -> list[bytes]:
        return [key for key in self.raw.keys("*") if key.endswith(suffix.encode())]

    def flush(self) -> None:
        self._keys.clear()
        self.raw.flushall()


def run_server(*arguments: str, port: int, directory: Path) -> subprocess.Popen[bytes]:
    """Start Debian's redis-server and return once it answers."""
    binary = shutil.which("redis-server")
    assert binary is not None
    settings = ["--port", str(port), "--bind", LOOPBACK, "--dir", str(directory), "--save", ""]
    process = subprocess.Popen(
        tied_to_parent([binary, *arguments, *settings]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for(lambda: answers(port), f"redis-server {arguments}")
    return process


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"not in 10 s: {what}"
        time.sleep(0.02)


def answers(port: int) -> bool:
    try:
        with client(port) as asked:
            return bool(asked.ping())
    except redis.ConnectionError:
        return False


def client(port: int) -> redis.Redis:
    return redis.Redis(host=LOOPBACK, port=port, retry=Retry(NoBackoff(), 0))


@contextlib.contextmanager
def single(kind: Kind) -> Iterator[Store]:
    with RedisServer(kind) as server, client(server.port) as raw:
        yield Store(server.url, raw)


@contextlib.contextmanager
def cluster(directory: Path) -> Iterator[Store]:
    port = choose_port()
    bus = ["--cluster-enabled", "yes", "--cluster-port", str(choose_port())]
    process = run_server(*bus, port=port, directory=directory)
    try:
        with client(port) as node:
            node.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16_383)
            wait_for(lambda: cluster_info(node)["cluster_state"] == "ok", "every slot served")
        raw = redis.RedisCluster(host=LOOPBACK, port=port)
        try:
            yield Store(f"redis+cluster://{LOOPBACK}:{port}", raw)
        finally:
            raw.close()
    finally:
        process.kill()
        process.wait()


def cluster_info(node: redis.Redis) -> dict[str, str]:
    info: dict[str, str] = node.execute_command("CLUSTER INFO")
    return info


@contextlib.contextmanager
def sentinel(directory: Path) -> Iterator[Store]:
    with RedisServer("redis") as master, client(master.port) as raw:
        config = directory / "sentinel.conf"
        config.write_text(f"sentinel monitor main {LOOPBACK} {master.port} 1\n")
        port = choose_port()
        process = run_server(str(config), "--sentinel", port=port, directory=directory)
        try:
            yield Store(f"redis+sentinel://127.0.0.1:1,{LOOPBACK}:{port}/main/0", raw)
        finally:
            process.kill()
            process.wait()


@pytest.fixture(
    scope="module",
    params=[
        "valkey",
        pytest.param("redis", marks=needs_redis),
        pytest.param("cluster", marks=needs_redis),
        pytest.param("sentinel", marks=needs_redis),
    ],
)
def running_store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Store]:
    kind: str = request.param
    directory = tmp_path_factory.mktemp(kind)
    made = {
        "valkey": lambda: single("valkey"),
        "redis": lambda: single("redis"),
        "cluster": lambda: cluster(directory),
        "sentinel": lambda: sentinel(directory),
    }
    with made[kind]() as store:
        yield store


@pytest.fixture
def store(running_store: Store) -> Store:
    running_store.flush()
    return running_store


@asynccontextmanager
async def open_registry(url: str, **bounds: Any) -> AsyncIterator[RedisRegistry]:
    registry = RedisRegistry(url, **bounds)
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
    return set(found)


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
    async with open_registry(store.url, timeout_seconds=5.0, lease_seconds=0.2) as registry:
        await holding(registry, A)
        await registry.write(A, ["alice"], [])
        assert await where(registry, "alice") == {A}
        await asyncio.to_thread(wait_for, lambda: not store.keys_ending("lease:gw-a"), "a lapse")
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


# Entries


async def test_a_user_is_where_they_were_written(registry: RedisRegistry) -> None:
    await holding(registry, A, B)
    await registry.write(A, ["alice", "bob"], [])
    await registry.write(B, ["bob"], [])
    assert await registry.lookup(["bob", "nobody", "alice"]) == [(A, B), (), (A,)]


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
    assert [set(nodes) for nodes in found] == [{A}] * 20 + [{A, B}] * 10 + [{B}] * 20


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
    assert set(found[0]) <= {A}
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
    with client(own_valkey.port) as raw:
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
        assert await registry.lookup(["alice"]) == [()]


async def test_a_cancellation_is_never_swallowed_whenever_it_comes(
    registry: RedisRegistry,
) -> None:
    async def ask_for_ever() -> None:
        while True:
            await registry.refresh()

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
async def test_any_host_of_a_cluster_is_a_way_in(tmp_path: Path) -> None:
    with cluster(tmp_path) as store:
        host = store.url.removeprefix("redis+cluster://")
        url = f"redis+cluster://{LOOPBACK}:{choose_port()},{host}"
        async with open_registry(url, timeout_seconds=5.0) as registry:
            await holding(registry, A)
            await registry.write(A, ["alice"], [])
            assert await where(registry, "alice") == {A}


@pytest.mark.parametrize("scheme", ["redis", "redis+sentinel"])
@needs_redis
async def test_a_password_may_be_percent_encoded(tmp_path: Path, scheme: str) -> None:
    password = "p@ss/w:rd%"
    encoded = "p%40ss%2Fw%3Ard%25"
    with RedisServer("redis") as master, client(master.port) as raw:
        raw.config_set("requirepass", password)
        if scheme == "redis":
            async with open_registry(f"redis://:{encoded}@{LOOPBACK}:{master.port}/0") as registry:
                await registry.refresh()
            return
        config = tmp_path / "sentinel.conf"
        monitor = f"sentinel monitor main {LOOPBACK} {master.port} 1\n"
        config.write_text(f'{monitor}sentinel auth-pass main "{password}"\n')
        port = choose_port()
        process = run_server(str(config), "--sentinel", port=port, directory=tmp_path)
        try:
            url = f"redis+sentinel://:{encoded}@{LOOPBACK}:{port}/main/0"
            async with open_registry(url, timeout_seconds=5.0) as registry:
                await registry.refresh()
        finally:
            process.kill()
            process.wait()


async def test_a_database_of_its_own_is_kept_apart(valkey: RedisServer) -> None:
    valkey.flush()
    one, two = valkey.url, f"redis://{LOOPBACK}:{valkey.port}/2"
    async with (
        open_registry(one, timeout_seconds=5.0) as first,
        open_registry(two, timeout_seconds=5.0) as second,
    ):
        await holding(first, A)
        await first.write(A, ["alice"], [])
        await second.refresh()
        assert await where(second, "alice") == set()
