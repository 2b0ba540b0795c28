"""The push registry in Redis: the only file that imports redis.

Keys, laid out for Cluster (a hash tag first, so that a bucket is one slot):

    {pg-17}user:alice     a user's entry, a string; see lua/write.lua
    {pg-nodes}lease:gw-a  a node's lease with a TTL; see lua/heartbeat.lua
    {pg-nodes}names       the names of nodes

An entry is a plain string so that a look-up is a plain MGET: one for all users on one Redis, one a
bucket on a Cluster. Only commands of Redis 6.2 and later are used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from importlib.resources import files
from typing import Any, Final, TypeVar
from urllib.parse import unquote, urlsplit
from zlib import crc32

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError

from registry.directory import Lease, Node, RegistryUnavailable
from registry.node_table import NodeTable

BUCKETS: Final = 64
#: Keys in one script call: Lua's unpack() takes some 8,000, and a call blocks Redis while it runs.
MAX_WRITE_KEYS: Final = 500
_NAMES_KEY: Final = b"{pg-nodes}names"
_PREFIXES: Final = tuple(b"{pg-%d}user:" % bucket for bucket in range(BUCKETS))

_T = TypeVar("_T")


class RedisRegistry:
    """The Registry protocol (registry/directory.py) over redis-py."""

    def __init__(
        self,
        url: str,
        *,
        timeout_seconds: float = 1.0,
        lease_seconds: float = 15.0,
        entry_seconds: int = 1_800,
    ) -> None:
        """Connect lazily to `url`; a command takes at most `timeout_seconds` in all."""
        self._redis, self._clustered, self._sentinels = _client(url, timeout_seconds)
        self._where = _without_credentials(url)
        self._timeout = timeout_seconds
        self._lease_ms = int(lease_seconds * 1000)
        self._entry_seconds = entry_seconds
        self._table = NodeTable()
        self._write = self._script("write")
        self._heartbeat = self._script("heartbeat")
        self._retire = self._script("retire")

    async def heartbeat(self, node: Node, *, claim: bool = False) -> Lease:
        """Renew the node's lease; `claim` takes it over from an earlier process of that name."""
        args = [node.name, node.epoch, node.address, self._lease_ms, "1" if claim else "0"]
        found: bytes = await self._ask(
            lambda: self._heartbeat(keys=[_lease_key(node.name), _NAMES_KEY], args=args)
        )
        return Lease[found.decode()]

    async def retire(self, node: Node) -> None:
        """Give up the node's lease, if it is still this node's."""
        keys = [_lease_key(node.name), _NAMES_KEY]
        await self._ask(lambda: self._retire(keys=keys, args=[node.name, node.epoch]))

    async def write(self, node: Node, here: Sequence[str], gone: Sequence[str]) -> None:
        """Assert the node's elements of users that are `here`, remove those that are `gone`."""
        changes = [(_key(user), "1") for user in here] + [(_key(user), "0") for user in gone]
        groups = _by_bucket(changes) if self._clustered else [changes]
        calls = [
            group[start : start + MAX_WRITE_KEYS]
            for group in groups
            for start in range(0, len(group), MAX_WRITE_KEYS)
        ]
        head = [node.tag, self._entry_seconds]

        def write(call: list[tuple[bytes, str]]) -> Awaitable[Any]:
            keys = [key for key, _ in call]
            return self._write(keys=keys, args=head + [change for _, change in call])

        for call in calls:
            await self._ask(lambda call=call: write(call))  # type: ignore[misc]

    async def refresh(self) -> None:
        """Read the node table afresh."""
        self._table = await self._ask(self._read_nodes)

    async def lookup(self, users: Sequence[str]) -> list[tuple[Node, ...]]:
        """Return, for each user, the live nodes that hold a connection of theirs."""
        entries = await self._ask(lambda: self._entries([_key(user) for user in users]))
        table = self._table
        found = [() if entry is None else table.live(entry) for entry in entries]
        if table.strangers:
            # The snapshot may be older than the entry: a node registers before its users do.
            await self.refresh()
            strangers, table = table.strangers, self._table
            table.take_for_dead(strangers)
            found = [() if entry is None else table.live(entry) for entry in entries]
        return found

    async def close(self) -> None:
        """Let go of the connections."""
        await self._redis.aclose()
        for sentinel in self._sentinels:
            await sentinel.aclose()

    async def _entries(self, keys: list[bytes]) -> list[bytes | None]:
        if not keys:
            return []
        if not self._clustered:
            values: list[bytes | None] = await self._redis.execute_command("MGET", *keys)
            return values
        groups = _by_bucket(list(enumerate(keys)), key=lambda pair: pair[1])
        replies = await asyncio.gather(
            *(self._redis.execute_command("MGET", *(key for _, key in group)) for group in groups)
        )
        entries: list[bytes | None] = [None] * len(keys)
        for group, reply in zip(groups, replies, strict=True):
            for (position, _), entry in zip(group, reply, strict=True):
                entries[position] = entry
        return entries

    async def _read_nodes(self) -> NodeTable:
        execute = self._redis.execute_command
        names: list[bytes] = await execute("ZRANGE", _NAMES_KEY, 0, -1)
        leases = await execute("MGET", *map(_lease_key, names)) if names else []
        seconds = int((await self._time())[0])
        pairs = zip(names, leases, strict=True)
        nodes = (_node(name, lease) for name, lease in pairs if lease is not None)
        return NodeTable((node for node in nodes if node is not None), now=seconds)

    async def _time(self) -> Any:
        if isinstance(self._redis, RedisCluster):
            return await self._redis.execute_command("TIME", target_nodes=RedisCluster.RANDOM)
        return await self._redis.execute_command("TIME")

    async def _ask(self, command: Callable[[], Awaitable[_T]]) -> _T:
        task = asyncio.current_task()
        before = task.cancelling() if task is not None else 0
        try:
            # redis-py's own time-outs bound each step of a command, not the command.
            async with asyncio.timeout(self._timeout):
                answer = await command()
        except (RedisError, RedisClusterException, OSError, TimeoutError) as error:
            reason = str(error) or f"no answer in {self._timeout} s"
            raise RegistryUnavailable(f"Redis at {self._where}: {reason}") from error
        # Python 3.11's asyncio.wait_for(), which redis-py uses, can swallow a cancellation.
        # One that came before is the caller's business: who cleans up after it may ask.
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError
        return answer

    def _script(self, name: str) -> Callable[..., Awaitable[Any]]:
        source = files("registry").joinpath(f"lua/{name}.lua").read_text("utf-8")
        return self._redis.register_script(source)


def _client(url: str, timeout_seconds: float) -> tuple[Redis | RedisCluster, bool, Sequence[Redis]]:
    # Retrying is for those who know what a late answer is worth: the callers.
    options: dict[str, Any] = {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "retry": Retry(NoBackoff(), 0),
    }
    parts = urlsplit(url)
    if parts.scheme not in ("redis+cluster", "redis+sentinel"):
        return Redis.from_url(url, **options), False, ()
    credentials, _, hosts = parts.netloc.rpartition("@")
    username, _, password = map(unquote, credentials.partition(":"))
    login: dict[str, Any] = {"username": username or None, "password": password or None}
    if parts.scheme == "redis+cluster":
        nodes = [ClusterNode(*_host_port(host, 6379)) for host in hosts.split(",")]
        return RedisCluster(startup_nodes=nodes, **login, **options), True, ()
    name, _, database = parts.path.strip("/").partition("/")
    addresses = [_host_port(host, 26379) for host in hosts.split(",")]
    sentinel = Sentinel(addresses, sentinel_kwargs=options)
    master: Redis = sentinel.master_for(
        name or "mymaster", db=int(database or 0), **login, **options
    )
    # Its clients are closed by nobody else.
    return master, False, sentinel.sentinels


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


_Item = TypeVar("_Item")


def _by_bucket(
    items: list[_Item],
    *,
    key: Callable[[_Item], bytes] = lambda item: item[0],  # type: ignore[index]
) -> list[list[_Item]]:
    groups: dict[bytes, list[_Item]] = {}
    for item in items:
        groups.setdefault(key(item).partition(b"}")[0], []).append(item)
    return list(groups.values())


def _node(name: bytes, lease: bytes) -> Node | None:
    """Read a lease; what is not one of ours is nobody's."""
    try:
        epoch, address = lease.decode().split(" ")
        return Node(name.decode(), epoch, address)
    except ValueError:
        return None
