"""`pushgate doctor` at real servers of Redis, in good health and with each trouble."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pushgate.doctor.finding import Finding, Severity
from pushgate.doctor.redis import check_redis
from pushgate.embedded import LOOPBACK
from pushgate.settings import DoctorSettings
from tests.support.certificate import write_certificate
from tests.support.findings import bad, only
from tests.support.processes import free_port
from tests.support.valkey import RedisServer, redis_is_installed
from tests.support.valkey_groups import RedisCluster, ReplicatedRedis

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def replicated() -> Iterator[ReplicatedRedis]:
    """A master and a replica behind a Sentinel, which a module's tests share."""
    with ReplicatedRedis() as redis:
        yield redis


async def check(
    url: str, *, ahead_seconds: float = 0.0, ca_file: str | None = None
) -> Sequence[Finding]:
    """Look at Redis, by a clock of this host that may be wrong."""
    return await check_redis(
        DoctorSettings(redis_url=url, redis_ca_file=ca_file),
        clock=time.monotonic,
        wall=lambda: time.time() + ahead_seconds,
    )


async def test_a_good_server_is_well_in_every_way(redis_url: str) -> None:
    found = await check(redis_url)
    assert bad(found) == []
    told = " ".join(each.what for each in found)
    for words in ("one server", "for a short command", "takes the writes", "at most", "no replica"):
        assert words in told


async def test_a_clock_that_is_wrong_is_found(redis_url: str) -> None:
    finding = only(await check(redis_url, ahead_seconds=60.0))
    assert finding.severity is Severity.FAULT
    assert "the clock of Redis is" in finding.what
    assert "behind this host's clock" in finding.what


async def test_a_policy_that_evicts_is_found(own_valkey: RedisServer) -> None:
    with own_valkey.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    assert "allkeys-lru" in only(await check(own_valkey.url)).what


async def test_a_full_server_is_found_by_its_refusal(own_valkey: RedisServer) -> None:
    with own_valkey.client() as client:
        client.config_set("maxmemory", 1)
    memory, refusal = bad(await check(own_valkey.url))
    assert "of maxmemory are in use" in memory.what
    assert refusal.severity is Severity.FAULT
    assert "OOM" in refusal.what
    assert "maxmemory" in refusal.cure


async def test_a_replica_is_found_and_a_master_with_a_replica_is_well(
    replicated: ReplicatedRedis,
) -> None:
    role, refusal = bad(await check(replicated.replica.url))
    assert "is a replica" in role.what
    assert "READONLY" in refusal.what
    behind_sentinel = await check(replicated.url)
    assert bad(behind_sentinel) == []
    assert not any("no replica" in each.what for each in behind_sentinel)


async def test_a_sentinel_that_is_away_is_found_beside_one_that_answers(
    replicated: ReplicatedRedis,
) -> None:
    away = free_port()
    finding = only(await check(replicated.url.replace("/main", f",127.0.0.1:{away}/main")))
    assert finding.severity is Severity.WARNING
    assert f"127.0.0.1:{away} of PUSHGATE_REDIS_URL: nothing listens there" in finding.what


async def test_a_login_that_is_refused_is_named_without_the_password(
    own_valkey: RedisServer,
) -> None:
    with own_valkey.client() as client:
        client.execute_command("ACL", "SETUSER", "gate", "on", ">right", "~*", "+@all")
    wrong = own_valkey.url.replace("//", "//gate:wrong-password@")
    finding = only(await check(wrong))
    assert "refuses the login" in finding.what
    assert "wrong-password" not in str(finding)
    with own_valkey.client() as client:
        client.config_set("requirepass", "needed")
    try:
        assert "refuses the login" in only(await check(own_valkey.url)).what
    finally:
        own_valkey.kill()


async def test_an_account_without_rights_is_found(own_valkey: RedisServer) -> None:
    with own_valkey.client() as client:
        client.execute_command("ACL", "SETUSER", "blind", "on", ">pw", "~*", "+@all", "-info")
        client.execute_command("ACL", "SETUSER", "mute", "on", ">pw", "~*", "+@all", "-set")
    blind = await check(own_valkey.url.replace("//", "//blind:pw@"))
    assert bad(blind) == []
    assert any("may not ask INFO" in each.what for each in blind)
    refusal = only(await check(own_valkey.url.replace("//", "//mute:pw@")))
    assert refusal.severity is Severity.FAULT
    assert "NOPERM" in refusal.what


async def test_a_cluster_is_told_from_a_single_server_and_its_losses_are_found() -> None:
    with RedisCluster() as cluster:
        whole = await check(cluster.url)
        assert bad(whole) == []
        assert any("the Cluster is whole: 16384 slots" in each.what for each in whole)
        single = await check(cluster.masters[0].url)
        assert any("redis+cluster://" in each.cure for each in bad(single))
        for server in cluster.masters:
            with server.client() as client:
                client.execute_command("CLUSTER", "DELSLOTS", 0)
        assert "16383 of 16384 slots are assigned" in told_of(await check(cluster.url))
        cluster.masters[0].kill()  # a client asks it first, and would know no more
        lost = told_of(await check(cluster.url))
    assert "16383 of 16384 slots are assigned" in lost
    assert f"127.0.0.1:{cluster.masters[0].port}: nothing listens there" in lost
    assert "a Redis answers there" not in lost


def told_of(findings: Sequence[Finding]) -> str:
    return " ".join(each.what for each in bad(findings))


async def test_a_server_that_is_no_cluster_is_found(redis_url: str) -> None:
    finding = only(await check(redis_url.replace("redis:", "redis+cluster:").removesuffix("/0")))
    assert "redis+cluster" in finding.cure


async def test_nothing_and_a_frozen_server_are_named(own_valkey: RedisServer) -> None:
    nothing = only(await check(f"redis://127.0.0.1:{free_port()}/0"))
    assert "nothing listens there" in nothing.what
    own_valkey.freeze()
    began = time.monotonic()
    frozen = only(await check(own_valkey.url))
    assert time.monotonic() - began < 10.0
    assert "answers nothing" in frozen.what


async def test_tls_on_one_side_alone_is_named(redis_url: str, tmp_path: Path) -> None:
    cert_file, key_file = write_certificate(tmp_path)
    if not redis_is_installed():
        pytest.skip("needs a redis-server with TLS: Valkey's wheel has none")
    with RedisServer("redis", tls=(cert_file, key_file)) as server:
        plain = only(await check(server.url))
        assert f"no Redis at {LOOPBACK}:{server.port}: a server with TLS" in plain.what
        assert "write rediss" in plain.cure
        untrusted = only(await check(server.url.replace("redis", "rediss")))
        assert f"Redis at {LOOPBACK}:{server.port} can't be used" in untrusted.what
        assert "PUSHGATE_REDIS_CA_FILE" in untrusted.cure
        trusted = await check(server.url.replace("redis", "rediss"), ca_file=str(cert_file))
        assert bad(trusted) == []
    needless = only(await check(redis_url.replace("redis", "rediss")))
    assert "can't be used: a Redis answers there, without TLS" in needless.what
    assert "write redis in" in needless.cure
