"""Short commands by a connection of their own: replies, errors, and connections that end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha1
from typing import Any

import pytest

from registry.directory import RegistryRefuses, RegistryUnavailable
from registry.redis_link import RedisLink, Script
from registry.settings import RedisAccess
from tests.support.valkey import RedisServer

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def link_to(valkey: RedisServer, *, seconds: float = 5.0) -> AsyncIterator[RedisLink]:
    link = RedisLink(valkey.url, timeout_seconds=seconds, access=RedisAccess())
    try:
        yield link
    finally:
        await link.close()


async def ask(link: RedisLink, *command: Any) -> Any:
    return await link.ask(lambda: link.command(*command))


async def test_every_command_gets_its_own_reply(valkey: RedisServer) -> None:
    async with link_to(valkey) as link:
        texts = [b"%d" % number for number in range(200)]
        assert await asyncio.gather(*(ask(link, "ECHO", text) for text in texts)) == texts
        assert connections_of(link) == 1


async def test_scripts_that_are_sent_together_have_their_results_in_order(
    own_valkey: RedisServer,
) -> None:
    # A server of its own: it must not know the scripts by their SHA-1 yet.
    async with link_to(own_valkey) as link:
        script = Script("return {KEYS[1], ARGV[1]}", sha1(b"return {KEYS[1], ARGV[1]}").hexdigest())
        calls = [script.call([b"%d" % number], number) for number in range(50)]
        results = await link.ask(lambda: link.evaluate(calls))
        assert results == [[b"%d" % number] * 2 for number in range(50)]


async def test_an_error_is_of_its_command_alone(valkey: RedisServer) -> None:
    async with link_to(valkey) as link:
        replies = await asyncio.gather(
            ask(link, "ECHO", b"before"),
            ask(link, "NO-SUCH-COMMAND"),
            ask(link, "ECHO", b"behind"),
            return_exceptions=True,
        )
        assert [*replies[0::2]] == [b"before", b"behind"]
        assert isinstance(replies[1], RegistryUnavailable | RegistryRefuses)
        assert "unknown command" in str(replies[1])


async def test_when_redis_ends_the_connection_the_next_command_has_another(
    valkey: RedisServer,
) -> None:
    async with link_to(valkey) as link:
        for _ in range(3):
            await end_while_a_command_waits(link)
            assert await ask(link, "ECHO", b"again") == b"again"
        assert connections_of(link) == 1


async def end_while_a_command_waits(link: RedisLink) -> None:
    name = await ask(link, "CLIENT", "ID")
    pipe = link._pipe
    assert pipe is not None
    waiting = asyncio.create_task(ask(link, "BLPOP", "nothing-is-ever-here", 0))
    await until(lambda: bool(pipe._calls))
    await link.ask(lambda: link.client.execute_command("CLIENT", "KILL", "ID", name))
    with pytest.raises(RegistryUnavailable):
        await waiting


async def test_a_command_without_a_reply_in_time_ends_the_connection(valkey: RedisServer) -> None:
    async with link_to(valkey, seconds=0.5) as link:
        name = await ask(link, "CLIENT", "ID")
        with pytest.raises(RegistryUnavailable, match=r"no answer in 0\.5 s"):
            await ask(link, "BLPOP", "nothing-is-ever-here", 0)
        assert await ask(link, "CLIENT", "ID") != name


async def test_a_write_that_a_reset_connection_refuses_is_an_error_of_the_registry(
    valkey: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reset:
        """The transport of a connection that was reset, before the loop tells."""

        def write(self, data: bytes) -> None:
            raise RuntimeError("the handler is closed")

        def is_closing(self) -> bool:
            return False

    async with link_to(valkey) as link:
        name = await ask(link, "CLIENT", "ID")
        assert link._pipe is not None
        monkeypatch.setattr(link._pipe, "_transport", Reset())
        with pytest.raises(RegistryUnavailable, match="the handler is closed"):
            await ask(link, "ECHO", b"text")
        assert await ask(link, "CLIENT", "ID") != name


async def test_no_command_goes_to_a_connection_that_is_closing(valkey: RedisServer) -> None:
    async with link_to(valkey) as link:
        name = await ask(link, "CLIENT", "ID")
        assert link._pipe is not None
        link._pipe._transport.close()
        assert await ask(link, "CLIENT", "ID") != name


async def test_a_caller_that_gives_up_as_its_reply_comes_disturbs_no_other(
    valkey: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with link_to(valkey) as link:
        name = await ask(link, "CLIENT", "ID")
        pipe = link._pipe
        assert pipe is not None
        caller = asyncio.create_task(pipe.ask([("ECHO", b"text")]))
        received = pipe.data_received

        def receive_and_cancel(data: bytes) -> None:
            received(data)
            caller.cancel()

        transport: Any = pipe._transport
        monkeypatch.setattr(pipe, "data_received", receive_and_cancel)
        transport.set_protocol(pipe)
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert await ask(link, "CLIENT", "ID") == name


async def test_a_reply_that_nobody_asked_for_ends_the_connection(valkey: RedisServer) -> None:
    async with link_to(valkey) as link:
        name = await ask(link, "CLIENT", "ID")
        assert link._pipe is not None
        link._pipe.data_received(b"-ERR this connection is closed\r\n")
        assert not link._pipe.usable
        assert await ask(link, "CLIENT", "ID") != name


async def test_a_master_that_only_reads_is_left(own_valkey: RedisServer) -> None:
    # As after a failover: the connection of before is to a replica now (see `_drop_connections`).
    async with link_to(own_valkey) as link:
        name = await ask(link, "CLIENT", "ID")
        await link.ask(lambda: link.client.execute_command("REPLICAOF", "127.0.0.1", "1"))
        with pytest.raises(RegistryRefuses):
            await link.ask(lambda: link.client.execute_command("SET", "key", "value"))
        assert await ask(link, "CLIENT", "ID") != name


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what the conditions read has no event
            await asyncio.sleep(0.001)


def connections_of(link: RedisLink) -> int:
    pool: Any = link.client.connection_pool  # type: ignore[union-attr]
    return len(pool._in_use_connections)
