"""A link to Redis: URL, time-outs, masters, scripts, pipelines.

The keys and their meaning are in redis_store.py; slot_moves.py has what is a Cluster's alone. This
file uses privates of redis-py: a Cluster's `nodes_manager`, to find the master of a slot, and to
find masters anew after a time-out of this file cut redis-py's own attempt short.
tests/unit/test_privates.py fails when a used private changes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from hashlib import sha1
from importlib.resources import files
from typing import Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import (
    NoScriptError,
    RedisClusterException,
    RedisError,
    TryAgainError,
)

from registry.directory import RegistryRefuses, RegistryUnavailable
from registry.redis_pipe import RedisPipe
from registry.refusals import READ_ONLY, refusal_code
from registry.settings import RedisAccess
from registry.slot_moves import ClusterCommands, Command

_T = TypeVar("_T")

_REDIS_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script and its SHA-1, by which a server knows a script that was run there before."""

    source: str
    sha: str

    @classmethod
    def named(cls, name: str) -> Script:
        """Read `lua/<name>.lua`."""
        source = files("registry").joinpath(f"lua/{name}.lua").read_text("utf-8")
        return cls(source, sha1(source.encode(), usedforsecurity=False).hexdigest())

    def call(
        self,
        keys: Sequence[bytes],
        *args: bytes | str | int,
        split: Callable[[], Sequence[ScriptCall]] | None = None,
    ) -> ScriptCall:
        """Return a call of the script; on a Cluster all of `keys` are in one slot."""
        return ScriptCall(self, keys, args, split)


@dataclass(frozen=True, slots=True)
class ScriptCall:
    """A call of a script, to be sent with the script's SHA-1 or with the script's source."""

    script: Script
    keys: Sequence[bytes]
    args: Sequence[bytes | str | int]
    #: Makes calls of one key each, to be run in place of this call while the slot moves and its
    #: keys are on two masters. The result of the first stands for the result of this call.
    split: Callable[[], Sequence[ScriptCall]] | None = None

    def by_sha(self) -> Command:
        """Return the command for a server that knows the script."""
        return self.keys[0], ("EVALSHA", self.script.sha, len(self.keys), *self.keys, *self.args)

    def with_source(self) -> Command:
        """Return the command for a server that does not know the script."""
        return self.keys[0], ("EVAL", self.script.source, len(self.keys), *self.keys, *self.args)


class RedisLink:
    """Clients of one Redis, of a Sentinel's master, or of a Cluster."""

    def __init__(self, url: str, *, timeout_seconds: float, access: RedisAccess) -> None:
        """Connect lazily to `url`; one `ask` takes at most `timeout_seconds` in all."""
        self.timeout_seconds = timeout_seconds
        self.client, self._sentinels = _client(url, timeout_seconds, access)
        self._cluster = self.client if isinstance(self.client, RedisCluster) else None
        self._cluster_commands = ClusterCommands(self._cluster) if self._cluster else None
        self._where = _without_credentials(url)
        self._masters_known = True
        self._pipe: RedisPipe | None = None
        self._pipe_opening = asyncio.Lock()
        self._ended_connections: list[Any] = []  # redis-py's, of pipes that have ended

    @property
    def is_cluster(self) -> bool:
        """Whether keys are spread over masters by their slots."""
        return self._cluster is not None

    async def ask(self, commands: Callable[[], Awaitable[_T]]) -> _T:
        """Return what `commands` returns, in bounded time.

        Raises:
            RegistryRefuses: Redis answers, and refuses a command.
            RegistryUnavailable: a command failed, or there was no answer in time.
        """
        try:
            async with _heeding_cancellation():
                # redis-py's own time-outs bound each step of a command, not the command.
                async with asyncio.timeout(self.timeout_seconds):
                    await self._find_masters()
                    return await commands()
        except (RedisError, RedisClusterException, OSError, TimeoutError) as error:
            self._masters_known = False
            raise await self._translated(error) from error

    async def command(self, *command: Any) -> Any:
        """Run a short command, for use within `ask`; on a Cluster its keys share a slot.

        Returns the reply; raises redis-py's errors, which `ask` translates.
        """
        if self._cluster is not None:
            return await self._cluster.execute_command(*command)
        return _raise_first_error(await self._ask_pipe([command]))[0]

    async def each(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands, for use within `ask`; commands for the same server go in a single write.

        Returns the replies in order; raises the first error among the replies.
        """
        return _raise_first_error(await self.replies(commands))

    async def replies(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands as `each` does; errors stand in place of replies."""
        if self._cluster_commands is not None:
            replies = await self._cluster_commands.replies(commands)
            if any(_is_of_a_master(reply) for reply in replies):
                self._masters_known = False
            return replies
        pipeline = self.client.pipeline(transaction=False)
        for _, command in commands:
            pipeline.execute_command(*command)
        return list(await pipeline.execute(raise_on_error=False))

    async def evaluate(self, calls: Sequence[ScriptCall]) -> list[Any]:
        """Run scripts, for use within `ask`; return their results, or raise the first error."""
        if not calls:
            return []
        replies = await self._script_replies([call.by_sha() for call in calls])
        unknown = [n for n, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            again = await self._script_replies([calls[n].with_source() for n in unknown])
            for n, reply in zip(unknown, again, strict=True):
                replies[n] = reply
        for n, call in enumerate(calls):
            if isinstance(replies[n], TryAgainError) and call.split is not None:
                replies[n] = (await self.evaluate(call.split()))[0]
        return _raise_first_error(replies)

    async def info(self, section: str) -> list[dict[str, Any]]:
        """Return a section of INFO, for use within `ask`.

        On a Cluster, of every master that answers.
        """
        if self._cluster is None:
            return [await self.client.info(section)]
        infos = await asyncio.gather(
            *(
                self._cluster.info(section, target_nodes=master)
                for master in self._cluster.get_primaries()
            ),
            return_exceptions=True,
        )
        return [info for info in infos if not isinstance(info, BaseException)]

    def one_a_master(self, keys: Sequence[bytes]) -> list[bytes]:
        """Return the first of `keys` that each master has; for use within `ask`."""
        if self._cluster is None:
            return list(keys[:1])
        nodes = self._cluster.nodes_manager
        key_by_master: dict[str, bytes] = {}
        for key in keys:
            master = nodes.get_node_from_slot(self._cluster.keyslot(key))
            key_by_master.setdefault(master.name, key)
        return list(key_by_master.values())

    async def scan(self, pattern: bytes, *, count: int) -> AsyncIterator[bytes]:
        """Iterate over the keys that match `pattern`, on every master; SCAN's guarantees apply.

        Raises:
            RegistryUnavailable: a command failed.
        """
        keys = aiter(self.client.scan_iter(match=pattern, count=count))
        try:
            while True:
                async with _heeding_cancellation():
                    key = await anext(keys, None)
                if key is None:
                    return
                yield key
        except (RedisError, RedisClusterException, OSError) as error:
            raise self._unavailable(str(error)) from error

    async def close(self) -> None:
        """Close every connection."""
        await self.client.aclose()
        if self._cluster is not None:
            # After a failure redis-py looks for the masters anew, and keeps the connections to the
            # old and the new masters open.
            await self._cluster.nodes_manager.aclose()
            await self._cluster.nodes_manager.aclose("startup_nodes")
        for sentinel in self._sentinels:
            await sentinel.aclose()

    async def _script_replies(self, commands: Sequence[Command]) -> list[Any]:
        if self._cluster is not None:
            return await self.replies(commands)
        return await self._ask_pipe([command for _, command in commands])

    async def _ask_pipe(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        pipe = self._pipe
        if pipe is None or not pipe.usable:
            pipe = await self._open_pipe()
        return await pipe.ask(commands)

    async def _open_pipe(self) -> RedisPipe:
        """Take a connection of redis-py's pool over; raise redis-py's errors."""
        async with self._pipe_opening:
            if self._pipe is not None and self._pipe.usable:
                return self._pipe
            client: Any = self.client  # no Cluster's
            await self._release_ended()
            connection: Any = await client.connection_pool.get_connection()
            transport = connection._writer.transport
            stream = transport.get_protocol()

            def ended(error: Exception | None) -> None:
                stream.connection_lost(error)
                self._ended_connections.append(connection)

            self._pipe = RedisPipe(
                transport,
                parse_error=connection._parser.parse_error,
                broken=RedisConnectionError,
                ended=ended,
            )
            transport.set_protocol(self._pipe)
            return self._pipe

    async def _release_ended(self) -> None:
        """Give the connections of pipes that have ended back to redis-py's pool."""
        client: Any = self.client
        while self._ended_connections:
            connection = self._ended_connections.pop()
            await connection.disconnect(nowait=True)
            await client.connection_pool.release(connection)

    async def _find_masters(self) -> None:
        if self._cluster is None:
            return
        await self._cluster.initialize()
        if not self._masters_known:
            # redis-py's own search for the masters may have been cut short by the time-out of
            # `ask`, and redis-py does not start the search again by itself.
            await self._cluster.nodes_manager.initialize()
            self._masters_known = True

    async def _translated(self, error: Exception) -> RegistryUnavailable:
        # redis-py takes the codes that it knows out of an error's text.
        code_and_text = f"{getattr(error, 'status_code', None) or ''} {error}".strip()
        code = refusal_code(code_and_text)
        if code is None:
            return self._unavailable(str(error) or f"no answer in {self.timeout_seconds} s")
        if code == READ_ONLY:
            await self._drop_connections()
        return RegistryRefuses(code, str(error), where=self._where)

    async def _drop_connections(self) -> None:
        """Let the next command find the master: these connections are to a master of before.

        A Cluster's servers say MOVED instead, and its masters are searched for after any error.
        """
        if isinstance(self.client, Redis):
            # Connections in use too: a connection that only reads would stay for good.
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                await self.client.connection_pool.disconnect()

    def _unavailable(self, reason: str) -> RegistryUnavailable:
        return RegistryUnavailable(reason, where=self._where)


@contextlib.asynccontextmanager
async def _heeding_cancellation() -> AsyncIterator[None]:
    """Raise CancelledError at the end of the body where the task was cancelled meanwhile.

    redis-py uses asyncio.wait_for(), which in Python 3.11 may swallow a cancellation, or raise the
    error of the awaited command in its place. A cancellation from before the body is the caller's
    business: a task that cleans up after its cancellation may still ask.
    """
    task = asyncio.current_task()
    cancellations = task.cancelling() if task is not None else 0
    try:
        yield
    finally:
        if task is not None and task.cancelling() > cancellations:
            raise asyncio.CancelledError


def addresses(url: str) -> list[tuple[str, int]]:
    """Return host and port of each server, or each Sentinel, that `url` names."""
    default = _SENTINEL_PORT if urlsplit(url).scheme.endswith("+sentinel") else _REDIS_PORT
    return [_host_port(host, default) for host in _without_credentials(url).split(",")]


def _client(
    url: str, timeout_seconds: float, access: RedisAccess
) -> tuple[Redis | RedisCluster, Sequence[Redis]]:
    """Return a client of what `url` names, and the clients of its Sentinels, if any."""
    scheme, _, kind = urlsplit(url).scheme.partition("+")
    tls = {"ssl_ca_certs": access.ca_file} if scheme == "rediss" else {}
    # No retries here: only the callers know what a late answer is worth.
    options: dict[str, Any] = {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "retry": Retry(NoBackoff(), 0),
        **tls,
    }
    if not kind:
        return Redis.from_url(url, **options), ()
    if tls:
        options["ssl"] = True  # implied by the scheme of a single server's URL
    if kind == "cluster":
        return _cluster(url, options), ()
    return _sentinels_master(url, options, access)


def _cluster(url: str, options: dict[str, Any]) -> RedisCluster:
    nodes = [ClusterNode(host, port) for host, port in addresses(url)]
    return RedisCluster(startup_nodes=nodes, **_login(url), **options)


def _sentinels_master(
    url: str, options: dict[str, Any], access: RedisAccess
) -> tuple[Redis, Sequence[Redis]]:
    sentinels = addresses(url)
    name, _, database = urlsplit(url).path.strip("/").partition("/")
    # Sentinels are asked in turn: a frozen one must leave time for the next, and for the master.
    share = options["socket_timeout"] / 2 / len(sentinels)
    sentinel_options = options | {
        "socket_timeout": share,
        "socket_connect_timeout": share,
        "username": access.sentinel_username,
        "password": access.sentinel_password,
    }
    sentinel = Sentinel(sentinels, sentinel_kwargs=sentinel_options)
    master: Redis = sentinel.master_for(
        name or "mymaster", db=int(database or 0), **_login(url), **options
    )
    # The master's client does not close those of the Sentinels.
    return master, sentinel.sentinels


def _login(url: str) -> dict[str, Any]:
    credentials = urlsplit(url).netloc.rpartition("@")[0]
    username, _, password = map(unquote, credentials.partition(":"))
    return {"username": username or None, "password": password or None}


def _host_port(text: str, default: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    return parts.hostname or "localhost", parts.port or default


def _without_credentials(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


def _is_of_a_master(reply: Any) -> bool:
    """Whether a reply is an error that may end when the masters are found anew."""
    return isinstance(reply, Exception) and not isinstance(reply, NoScriptError | TryAgainError)


def _raise_first_error(replies: list[Any]) -> list[Any]:
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies
