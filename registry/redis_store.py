"""The push registry in Redis: the only file that imports redis.

Keys, laid out for Cluster (a hash tag first, so that a bucket is one slot):

    {pg-17}user:alice     a user's entry, a string; see lua/write.lua
    {pg-nodes}lease:gw-a  a node's lease with a TTL; see lua/heartbeat.lua
    {pg-nodes}names       the names of nodes
    {pg-nodes}changed     the last change among leases
    {pg-nodes}generation  is lost when keys are; see lua/generation.lua
    {pg-17}generation     the same for a bucket: a Cluster can lose one alone

An entry is a plain string so that a look-up is a plain MGET: one for all users on one Redis, one a
bucket on a Cluster. Their generation comes with the same MGET: it speaks of the entries as read.
Only commands of Redis 6.2 and later are used.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from hashlib import sha1
from importlib.resources import files
from typing import Any, Final, TypeVar
from urllib.parse import unquote, urlsplit
from zlib import crc32

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisClusterException, RedisError

from registry.directory import Lease, Node, RegistryUnavailable
from registry.doubt import Doubt
from registry.node_table import AsOf, NodeTable

BUCKETS: Final = 64
#: Keys in one script call: Lua's unpack() takes some 8,000, and a call blocks Redis while it runs.
MAX_WRITE_KEYS: Final = 500
#: Keys that are gone through at once.
_SCANNED: Final = 500
_NAMES_KEY: Final = b"{pg-nodes}names"
_CHANGED_KEY: Final = b"{pg-nodes}changed"
_GENERATION_KEY: Final = b"{pg-nodes}generation"
_PREFIXES: Final = tuple(b"{pg-%d}user:" % bucket for bucket in range(BUCKETS))
_BUCKETS_GENERATION_KEYS: Final = tuple(b"{pg-%d}generation" % bucket for bucket in range(BUCKETS))

_T = TypeVar("_T")
#: A command and its arguments, behind a key that says which server of a Cluster it is for.
_Command = tuple[bytes, tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class _Script:
    """A Lua script; a server that has run it knows it by its SHA-1."""

    source: str
    sha: str

    @classmethod
    def named(cls, name: str) -> _Script:
        source = files("registry").joinpath(f"lua/{name}.lua").read_text("utf-8")
        return cls(source, sha1(source.encode(), usedforsecurity=False).hexdigest())

    def call(self, keys: Sequence[bytes], *args: bytes | str | int) -> _Call:
        return _Call(self, keys, args)


@dataclass(frozen=True, slots=True)
class _Call:
    """A script's call, by its SHA-1 or with its source. All its keys are in one slot."""

    script: _Script
    keys: Sequence[bytes]
    args: Sequence[bytes | str | int]

    def by_sha(self) -> _Command:
        return self.keys[0], ("EVALSHA", self.script.sha, len(self.keys), *self.keys, *self.args)

    def with_source(self) -> _Command:
        return self.keys[0], ("EVAL", self.script.source, len(self.keys), *self.keys, *self.args)


_HEARTBEAT: Final = _Script.named("heartbeat")
_GENERATION: Final = _Script.named("generation")
_RETIRE: Final = _Script.named("retire")
_WRITE: Final = _Script.named("write")


@dataclass(frozen=True, slots=True)
class _Reading:
    """Users' entries, the positions of those in doubt, and what the leases then were as of."""

    entries: Sequence[bytes | None]
    doubtful: Sequence[int]
    as_of: AsOf


class RedisRegistry:
    """The Registry protocol (registry/directory.py) over redis-py."""

    def __init__(
        self,
        url: str,
        *,
        timeout_seconds: float = 1.0,
        lease_seconds: float = 15.0,
        entry_seconds: int = 1_800,
        registration_seconds: float = 7.0,
    ) -> None:
        """Connect lazily to `url`; a command takes at most `timeout_seconds` in all.

        For `registration_seconds` after a loss or an outage a look-up calls nobody offline: what
        gateways need to register everybody again, a heartbeat of theirs and five seconds.
        """
        self._redis, self._sentinels = _client(url, timeout_seconds)
        self._cluster = self._redis if isinstance(self._redis, RedisCluster) else None
        self._where = _without_credentials(url)
        self._timeout = timeout_seconds
        self._lease_ms = int(lease_seconds * 1000)
        self._entry_seconds = entry_seconds
        self._table = NodeTable()
        self._doubt = Doubt(registration_seconds)
        self._generations: list[bytes] = []
        self._masters_known = True

    async def heartbeat(self, node: Node, *, claim: bool = False) -> Lease:
        """Renew the node's lease; `claim` takes it over from an earlier process of that name."""
        keys = [_lease_key(node.name), _NAMES_KEY, _CHANGED_KEY]
        args = (node.name, node.epoch, node.address, self._lease_ms, "1" if claim else "0")
        marked = () if self._cluster is None else _BUCKETS_GENERATION_KEYS
        calls = [
            _HEARTBEAT.call(keys, *args),
            *(_GENERATION.call([key]) for key in (_GENERATION_KEY, *marked)),
        ]
        found, *generations = await self._ask(lambda: self._evaluate(calls))
        lost, self._generations = generations != self._generations, generations
        lease = Lease[found.decode()]
        return Lease.LAPSED if lost and lease is Lease.HELD else lease

    async def retire(self, node: Node) -> None:
        """Give up the node's lease, if it is still this node's."""
        keys = [_lease_key(node.name), _NAMES_KEY, _CHANGED_KEY]
        await self._ask(lambda: self._evaluate([_RETIRE.call(keys, node.name, node.epoch)]))

    async def write(self, node: Node, here: Sequence[str], gone: Sequence[str]) -> None:
        """Assert the node's elements of users that are `here`, remove those that are `gone`."""
        changes = [(_key(user), "1") for user in here] + [(_key(user), "0") for user in gone]
        for start in range(0, len(changes), MAX_WRITE_KEYS):
            some = changes[start : start + MAX_WRITE_KEYS]
            await self._ask(lambda some=some: self._write(node, some))  # type: ignore[misc]

    async def refresh(self) -> None:
        """Read the node table afresh."""
        self._table = await self._ask(self._read_nodes)

    async def lookup(self, users: Sequence[str]) -> list[tuple[Node, ...] | None]:
        """Return, for each user, the live nodes that hold a connection of theirs; None: unknown."""
        if not self._doubt.knows_the_time:
            await self.refresh()
        doubted = self._doubt.after_outage
        keys = [_key(user) for user in users]
        read = await self._ask(lambda: self._read(keys))
        if read.as_of != self._table.as_of:
            await self.refresh()
        table = self._table
        found = table.meanings(read.entries)
        if table.strangers:
            # On a Cluster entries are not read together with the leases, and may be newer.
            await self.refresh()
            strangers, table = table.strangers, self._table
            table.take_for_dead(strangers)
            found = table.meanings(read.entries)
        # What failed beside this, and what the refresh found, casts its doubt on this answer too.
        doubted |= self._doubt.after_outage or any(
            self._doubt.covers(generation)
            for generation in {read.as_of.generation, table.as_of.generation}
        )
        for position in range(len(found)) if doubted else read.doubtful:
            found[position] = found[position] or None
        return found

    async def nodes(self) -> list[Node]:
        """Return the live nodes."""
        await self.refresh()
        return list(self._table.nodes.values())

    async def entries(self) -> AsyncIterator[tuple[str, tuple[Node, ...]]]:
        """Go through all users with the live nodes that a look-up would return, in no order.

        What changes meanwhile may be missed, as with SCAN.
        """
        await self.refresh()
        some: list[bytes] = []
        try:
            async for key in self._redis.scan_iter(match=b"{pg-*}user:*", count=_SCANNED):
                some.append(key)
                if len(some) == _SCANNED:
                    for entry in await self._meanings(some):
                        yield entry
                    some.clear()
        except (RedisError, RedisClusterException, OSError) as error:
            raise RegistryUnavailable(f"Redis at {self._where}: {error}") from error
        for entry in await self._meanings(some) if some else ():
            yield entry

    async def _meanings(self, keys: Sequence[bytes]) -> list[tuple[str, tuple[Node, ...]]]:
        read = await self._ask(lambda: self._read(keys))
        users = (key.partition(b"}user:")[2].decode(errors="replace") for key in keys)
        found = self._table.meanings(read.entries)
        return [(user, nodes or ()) for user, nodes in zip(users, found, strict=True)]

    async def close(self) -> None:
        """Let go of the connections."""
        await self._redis.aclose()
        if self._cluster is not None:
            # redis-py keeps them open where a failure has made it want to find the masters anew.
            await self._cluster.nodes_manager.aclose()
            await self._cluster.nodes_manager.aclose("startup_nodes")
        for sentinel in self._sentinels:
            await sentinel.aclose()

    async def _read(self, keys: Sequence[bytes]) -> _Reading:
        if self._cluster is not None:
            return await self._read_buckets(keys)
        *entries, generation, changed = await self._redis.execute_command(
            "MGET", *keys, _GENERATION_KEY, _CHANGED_KEY
        )
        return _Reading(entries, (), AsOf(generation, changed))

    async def _read_buckets(self, keys: Sequence[bytes]) -> _Reading:
        buckets = _by_bucket(keys)
        *replies, as_of = _whole(
            await self._each(
                [
                    *(
                        (tag, ("MGET", tag + b"generation", *map(keys.__getitem__, positions)))
                        for tag, positions in buckets.items()
                    ),
                    (_NAMES_KEY, ("MGET", _GENERATION_KEY, _CHANGED_KEY)),
                ]
            )
        )
        entries: list[bytes | None] = [None] * len(keys)
        doubtful: list[int] = []
        for positions, (generation, *values) in zip(buckets.values(), replies, strict=True):
            for position, value in zip(positions, values, strict=True):
                entries[position] = value
            if self._doubt.covers(generation):
                doubtful += positions
        return _Reading(entries, doubtful, AsOf(*as_of))

    async def _read_nodes(self) -> NodeTable:
        # In this order: leases are as new as what they are as of, or newer.
        as_of, names, (seconds, micros) = _whole(
            await self._each(
                [
                    (_NAMES_KEY, ("MGET", _GENERATION_KEY, _CHANGED_KEY)),
                    (_NAMES_KEY, ("ZRANGE", _NAMES_KEY, 0, -1)),
                    (_NAMES_KEY, ("TIME",)),
                ]
            )
        )
        self._doubt.time_is(seconds + micros / 1e6)
        keys = [_lease_key(name) for name in names]
        leases = await self._redis.execute_command("MGET", *keys) if keys else []
        pairs = zip(names, leases, strict=True)
        nodes = (_node(name, lease) for name, lease in pairs if lease is not None)
        return NodeTable(
            (node for node in nodes if node is not None), now=seconds, as_of=AsOf(*as_of)
        )

    async def _write(self, node: Node, changes: Sequence[tuple[bytes, str]]) -> None:
        keys = [key for key, _ in changes]
        groups = _by_bucket(keys).values() if self._cluster is not None else [range(len(keys))]
        await self._evaluate(
            [
                _WRITE.call(
                    [keys[position] for position in group],
                    node.tag,
                    self._entry_seconds,
                    *(changes[position][1] for position in group),
                )
                for group in groups
            ]
        )

    async def _evaluate(self, calls: Sequence[_Call]) -> list[Any]:
        replies = await self._each([call.by_sha() for call in calls])
        unknown = [n for n, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            again = await self._each([calls[n].with_source() for n in unknown])
            for n, reply in zip(unknown, again, strict=True):
                replies[n] = reply
        return _whole(replies)

    async def _each(self, commands: Sequence[_Command]) -> list[Any]:
        """Run commands, those for one server in one write; return replies, or errors instead."""
        pipeline = self._redis.pipeline(transaction=False)
        for key, command in commands:
            if self._cluster is None:
                pipeline.execute_command(*command)
            else:
                # Without a target redis-py would hash every key of a command to find it.
                slot = self._cluster.keyslot(key)
                node = self._cluster.nodes_manager.get_node_from_slot(slot)
                pipeline.execute_command(*command, target_nodes=node)
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
        return replies

    async def _ask(self, command: Callable[[], Awaitable[_T]]) -> _T:
        task = asyncio.current_task()
        before = task.cancelling() if task is not None else 0
        try:
            # redis-py's own time-outs bound each step of a command, not the command.
            async with asyncio.timeout(self._timeout):
                await self._find_masters()
                answer = await command()
        except (RedisError, RedisClusterException, OSError, TimeoutError) as error:
            # Python 3.11's asyncio.wait_for() may raise what it was waiting for in place of it.
            if task is not None and task.cancelling() > before:
                raise asyncio.CancelledError from error
            self._masters_known = False
            self._doubt.failed()
            reason = str(error) or f"no answer in {self._timeout} s"
            raise RegistryUnavailable(f"Redis at {self._where}: {reason}") from error
        # Python 3.11's asyncio.wait_for(), which redis-py uses, can swallow a cancellation.
        # One that came before is the caller's business: who cleans up after it may ask.
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError
        self._doubt.answered()
        return answer

    async def _find_masters(self) -> None:
        if self._cluster is None:
            return
        await self._cluster.initialize()
        if not self._masters_known:
            # redis-py asks again by itself only where it was not cut short by our time-out.
            await self._cluster.nodes_manager.initialize()
            self._masters_known = True


def _client(url: str, timeout_seconds: float) -> tuple[Redis | RedisCluster, Sequence[Redis]]:
    # Retrying is for those who know what a late answer is worth: the callers.
    options: dict[str, Any] = {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "retry": Retry(NoBackoff(), 0),
    }
    parts = urlsplit(url)
    if parts.scheme not in ("redis+cluster", "redis+sentinel"):
        return Redis.from_url(url, **options), ()
    credentials, _, hosts = parts.netloc.rpartition("@")
    username, _, password = map(unquote, credentials.partition(":"))
    login: dict[str, Any] = {"username": username or None, "password": password or None}
    if parts.scheme == "redis+cluster":
        nodes = [ClusterNode(*_host_port(host, 6379)) for host in hosts.split(",")]
        return RedisCluster(startup_nodes=nodes, **login, **options), ()
    name, _, database = parts.path.strip("/").partition("/")
    addresses = [_host_port(host, 26379) for host in hosts.split(",")]
    # They are asked in turn, so one that is frozen must leave time for the next, and the master.
    share = timeout_seconds / 2 / len(addresses)
    bounds = {"socket_timeout": share, "socket_connect_timeout": share}
    sentinel = Sentinel(addresses, sentinel_kwargs=options | bounds)
    master: Redis = sentinel.master_for(
        name or "mymaster", db=int(database or 0), **login, **options
    )
    # Its clients are closed by nobody else.
    return master, sentinel.sentinels


def _host_port(text: str, default: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    return parts.hostname or "localhost", parts.port or default


def _without_credentials(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


def _key(user: str) -> bytes:
    name = user.encode()
    return _PREFIXES[crc32(name) % BUCKETS] + name


def _lease_key(name: str | bytes) -> bytes:
    return b"{pg-nodes}lease:" + (name.encode() if isinstance(name, str) else name)


def _by_bucket(keys: Sequence[bytes]) -> dict[bytes, list[int]]:
    """Give the positions of keys by their hash tag."""
    buckets: dict[bytes, list[int]] = {}
    for position, key in enumerate(keys):
        buckets.setdefault(key[: key.index(b"}") + 1], []).append(position)
    return buckets


def _whole(replies: list[Any]) -> list[Any]:
    """Return the replies, or raise the first error among them."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies


def _node(name: bytes, lease: bytes) -> Node | None:
    """Read a lease; what is not one of ours is nobody's."""
    try:
        epoch, address = lease.decode().split(" ")
        return Node(name.decode(), epoch, address)
    except ValueError:
        return None
