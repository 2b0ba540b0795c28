"""Redis as operators run it: Sentinels with accounts of their own, TLS to servers of every kind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError

from registry.directory import Node, RegistryUnavailable
from registry.redis_store import RedisRegistry
from registry.settings import RedisAccess
from tests.support.certificate import write_certificate
from tests.support.processes import wait_until
from tests.support.valkey import Files, RedisServer, redis_is_installed
from tests.support.valkey_groups import RedisCluster, Sentinel

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not redis_is_installed(), reason="redis-server is not in the PATH"),
]

NODE = Node("gw-a", "e1", "127.0.0.1:8081")
PASSWORD = "of the Sentinels' own"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return write_certificate(tmp_path_factory.mktemp("redis-tls"))


@pytest.fixture(scope="module", params=["single", "sentinel", "cluster"])
def encrypted(request: pytest.FixtureRequest, files: Files) -> Iterator[str]:
    """Give the URL of servers that speak TLS alone."""
    with ExitStack() as stack:
        if request.param == "cluster":
            yield stack.enter_context(RedisCluster("redis", tls=files)).url
            return
        server = stack.enter_context(RedisServer("redis", tls=files))
        if request.param == "single":
            yield server.url.replace("redis://", "rediss://")
            return
        sentinel = stack.enter_context(Sentinel(server))
        _await_master(sentinel)
        yield sentinel.url


@asynccontextmanager
async def registry_at(url: str, access: RedisAccess) -> AsyncIterator[RedisRegistry]:
    made = RedisRegistry(url, timeout_seconds=5.0, access=access)
    try:
        yield made
    finally:
        await made.close()


async def test_a_registry_over_tls_finds_whom_it_registered(encrypted: str, files: Files) -> None:
    async with registry_at(encrypted, RedisAccess(ca_file=str(files[0]))) as registry:
        await registry.heartbeat(NODE, claim=True)
        users = [f"user-{number}" for number in range(200)]
        await registry.write(NODE, users, [])
        assert await registry.lookup(users) == [(NODE,)] * 200


async def test_a_certificate_of_another_ca_is_refused(encrypted: str, tmp_path: Path) -> None:
    other_ca, _ = write_certificate(tmp_path)
    async with registry_at(encrypted, RedisAccess(ca_file=str(other_ca))) as registry:
        with pytest.raises(RegistryUnavailable):
            await registry.heartbeat(NODE, claim=True)


@pytest.fixture(scope="module", params=["password", "user"])
def guarded(request: pytest.FixtureRequest) -> Iterator[tuple[str, RedisAccess]]:
    """Give the URL of a Sentinel with an account of its own, and that account."""
    if request.param == "password":
        lines = [f'requirepass "{PASSWORD}"']
        access = RedisAccess(sentinel_password=PASSWORD)
    else:
        lines = [
            "user default off",
            "user watcher on >watchword allchannels +@all",
        ]
        access = RedisAccess(sentinel_username="watcher", sentinel_password="watchword")
    with RedisServer("redis") as server, _Guarded(server, access, lines) as sentinel:
        _await_master(sentinel)
        yield sentinel.url, access


async def test_a_sentinel_that_asks_for_an_account_is_asked_with_it(
    guarded: tuple[str, RedisAccess],
) -> None:
    url, access = guarded
    async with registry_at(url, access) as registry:
        await registry.heartbeat(NODE, claim=True)
        assert await registry.nodes() == [NODE]


async def test_without_its_account_a_sentinel_is_no_registry(
    guarded: tuple[str, RedisAccess],
) -> None:
    async with registry_at(guarded[0], RedisAccess()) as registry:
        with pytest.raises(RegistryUnavailable):
            await registry.heartbeat(NODE, claim=True)


class _Guarded(Sentinel):
    def __init__(self, master: RedisServer, access: RedisAccess, lines: list[str]) -> None:
        super().__init__(master, lines=lines)
        self._access = access

    def client(self) -> Any:
        asked = super().client()
        asked.connection_pool.connection_kwargs |= {
            "username": self._access.sentinel_username,
            "password": self._access.sentinel_password,
        }
        return asked


def _await_master(sentinel: Sentinel) -> None:
    def knows_it() -> bool:
        with sentinel.client() as asked:
            try:
                state: Any = asked.sentinel_master("main")
            except RedisError:
                return False
        return not state["is_disconnected"] and not state["is_master_down"]

    wait_until(knows_it, "the Sentinel has reached the master")
