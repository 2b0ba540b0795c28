"""`pushgate audit`: a registry that agrees with its nodes, and one that does not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from redis.asyncio import Redis

from registry.redis_store import _key
from tests.support.clients import connect
from tests.support.valkey import RedisServer
from tests.system.conftest import StartGateway
from tests.system.tools import tool

pytestmark = pytest.mark.anyio


async def audit(redis_url: str, *arguments: str) -> tuple[int, str]:
    """Run the command; give its exit status and what it printed."""
    done = await tool(redis_url, "audit", "--pause", "0.2", *arguments)
    return done.exit_code, done.stdout + done.stderr


async def test_a_registry_that_agrees_with_its_nodes_is_clean(
    start_gateway: StartGateway, own_valkey: RedisServer, user: str
) -> None:
    one, two = (start_gateway(redis_url=own_valkey.url) for _ in range(2))
    async with (
        connect("ws-plain", one.port, user),
        connect("sse", two.port, user),
        connect("poll", two.port, f"{user}-2"),
    ):
        status, told = await audit(own_valkey.url)
    assert status == 0, told
    assert told.startswith("2 users on 2 nodes: 0 registered without a connection, 0 connected")


async def test_each_kind_of_difference_is_found_and_told(
    start_gateway: StartGateway, own_valkey: RedisServer, user: str, tmp_path: Path
) -> None:
    gateway = start_gateway(redis_url=own_valkey.url)
    async with (
        connect("ws-plain", gateway.port, user),
        connect("ws-plain", gateway.port, f"{user}-lost"),
        Redis.from_url(own_valkey.url) as store,
    ):
        entry = await store.get(_key(user))
        assert entry is not None
        await store.set(_key(f"{user}-ghost"), entry)
        await store.delete(_key(f"{user}-lost"))
        metrics = tmp_path / "registry.prom"
        status, told = await audit(own_valkey.url, "--textfile", str(metrics))
    assert status == 3, told
    assert f"phantom: '{user}-ghost' at {gateway.name}" in told
    assert f"missing: '{user}-lost' at {gateway.name}" in told
    assert f"'{user}' at" not in told
    assert "pushgate_registry_phantom_users 1.0" in metrics.read_text()
    assert "pushgate_registry_missing_users 1.0" in metrics.read_text()


async def test_what_a_dead_node_left_behind_is_no_finding(
    start_gateway: StartGateway, own_valkey: RedisServer, user: str
) -> None:
    gateway = start_gateway(redis_url=own_valkey.url)
    async with connect("ws-plain", gateway.port, user), Redis.from_url(own_valkey.url) as store:
        await store.set(_key(f"{user}-old"), b"gone:e1:99999999999")
        status, told = await audit(own_valkey.url)
    assert status == 0, told


async def test_a_node_that_does_not_answer_is_an_error_and_no_finding(
    start_gateway: StartGateway, own_valkey: RedisServer, user: str
) -> None:
    gateway = start_gateway(redis_url=own_valkey.url)
    await asyncio.to_thread(gateway.kill)
    status, told = await audit(own_valkey.url)
    assert status == 1, told
    assert gateway.name in told


async def test_a_node_that_refuses_the_secret_is_an_error_that_names_the_setting(
    start_gateway: StartGateway, own_valkey: RedisServer
) -> None:
    start_gateway(redis_url=own_valkey.url)
    status, told = await audit(own_valkey.url, "--internal-secret", "another" * 6)
    assert status == 1, told
    assert "403" in told
    assert "PUSHGATE_INTERNAL_SECRET" in told
    assert "another" * 6 not in told
