"""A registry that answers reads and refuses writes: known by its name, and nobody is offline."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from pushgate.embedded import LOOPBACK
from registry.directory import Node, RegistryRefuses, RegistryUnavailable
from registry.redis_store import RedisRegistry
from registry.refusals import CURES
from tests.integration.gateways import USERS, Gateway
from tests.support.clients import eventually
from tests.support.processes import wait_until
from tests.support.timings import AnyTimings
from tests.support.valkey import RedisServer
from tests.support.valkey_groups import RedisCluster

pytestmark = pytest.mark.anyio

#: Longer than a busy machine lets a call wait: that Redis is slow is another event.
PATIENT_SECONDS = 5.0
NODE = Node("gw-a", "e1", "10.0.0.1:8081")
REFUSED = "the registry refuses writes; clients stay, trying on"
BACK = "registry is back; every entry is asserted again"


def fail_a_save(client: Any) -> None:
    settings = client.config_get("dir") | client.config_get("dbfilename")
    Path(settings["dir"], settings["dbfilename"]).mkdir()  # where the snapshot belongs
    client.config_set("save", "3600 1")
    client.bgsave()
    wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", "it failed")


REFUSALS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "MISCONF": (fail_a_save, lambda c: c.config_set("stop-writes-on-bgsave-error", "no")),
    "OOM": (lambda c: c.config_set("maxmemory", "1"), lambda c: c.config_set("maxmemory", "0")),
    "NOREPLICAS": (
        lambda c: c.config_set("min-replicas-to-write", "1"),
        lambda c: c.config_set("min-replicas-to-write", "0"),
    ),
    "NOPERM": (
        lambda c: c.execute_command("ACL", "SETUSER", "default", "-set"),
        lambda c: c.execute_command("ACL", "SETUSER", "default", "+set"),
    ),
    "READONLY": (
        lambda c: c.execute_command("REPLICAOF", LOOPBACK, "1"),
        lambda c: c.execute_command("REPLICAOF", "NO", "ONE"),
    ),
}


@pytest.fixture
async def registry(own_valkey: RedisServer) -> AsyncIterator[RedisRegistry]:
    timings = AnyTimings(lease_seconds=0.3, registration_seconds=0.0)
    made = RedisRegistry(own_valkey.url, timings=timings, lost_seconds=0.3)
    await made.heartbeat(NODE, claim=True)
    await made.write(NODE, ["alice"], [])
    await made.probe()
    yield made
    await made.close()


@pytest.mark.parametrize("code", REFUSALS)
async def test_while_writes_are_refused_nobody_is_offline(
    own_valkey: RedisServer, registry: RedisRegistry, code: str
) -> None:
    refuse, mend = REFUSALS[code]
    assert await registry.lookup(["alice", "newcomer"]) == [(NODE,), ()]
    with own_valkey.client() as client:
        refuse(client)
        with pytest.raises(RegistryUnavailable):
            await registry.heartbeat(NODE)
        with pytest.raises(RegistryRefuses, match=f"{code}: .*; ") as refusal:
            await registry.probe()
        assert refusal.value.code == code
        for _ in range(8):  # for longer than the node is live and lost
            await asyncio.sleep(0.1)
            await registry.refresh()
        assert await registry.lookup(["alice", "newcomer"]) == [(NODE,), None]
        assert registry.lost(NODE)
        mend(client)
        await registry.probe()
        await registry.heartbeat(NODE)
        assert await registry.lookup(["alice", "newcomer"]) == [(NODE,), ()]


@pytest.mark.parametrize("code", REFUSALS)
async def test_a_gateway_names_the_refusal_until_a_write_is_accepted(
    own_valkey: RedisServer, code: str
) -> None:
    refuse, mend = REFUSALS[code]
    gateway = Gateway(own_valkey.url, timeout_seconds=PATIENT_SECONDS)
    async with gateway.running():
        # No user is connected, to be asserted again meanwhile: that would be a real write.
        with own_valkey.client() as client, capture_logs() as logs:
            refuse(client)
            gateway.connect("u2")
            assert not await gateway.registrar.written("u2", timeout_seconds=1.0)
            gateway.disconnect("u2")
            # Nothing is to be changed, so Redis accepts the write.
            assert await gateway.registrar.written("u2", timeout_seconds=5.0)
            for _ in range(10):
                assert f"({code}): {CURES[code]}" in gateway.registrar.warning
                await asyncio.sleep(0.1)
            assert [entry["event"] for entry in logs] == [REFUSED]
            assert f"{code}: {CURES[code]}" in logs[0]["error"]
            mend(client)
            gateway.connect("u3")
            await eventually(lambda: not gateway.registrar.warning, "no warning any more")
        await gateway.in_step()
    assert [entry["event"] for entry in logs if entry["log_level"] != "warning"] == [REFUSED, BACK]


async def test_a_cluster_is_back_when_every_master_accepts_writes() -> None:
    with RedisCluster() as cluster:
        refusing = (cluster.owner_of(b"{pg-nodes}") + 1) % 3
        gateway = Gateway(cluster.url, timeout_seconds=PATIENT_SECONDS)
        async with gateway.running():
            gateway.connect(*USERS[:100])
            await gateway.in_step()
            with cluster.masters[refusing].client() as client, capture_logs() as logs:
                client.config_set("maxmemory", "1")
                gateway.connect(*USERS[100:200])
                await eventually(lambda: gateway.registrar.warning, "it is noticed")
                gateway.disconnect(*USERS[100:200])
                # Leases are written all the time, and so are the users of the other masters.
                for _ in range(20):
                    assert "(OOM)" in gateway.registrar.warning
                    await asyncio.sleep(0.1)
                assert [entry["event"] for entry in logs] == [REFUSED]
                client.config_set("maxmemory", "0")
                await eventually(lambda: not gateway.registrar.warning, "no warning any more")
            await gateway.in_step()
        assert [entry["event"] for entry in logs] == [REFUSED, BACK]


def documented_account() -> tuple[str, list[str]]:
    """Give the pattern of keys and the commands that docs/operations.md asks an account for."""
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    found = re.search(r"needs the keys `([^`]+)` and the commands `([^`]+)`", text)
    assert found is not None
    return found[1], found[2].split()


async def test_an_account_as_the_docs_name_it_may_do_all_that_pushgate_does(
    own_valkey: RedisServer,
) -> None:
    keys, commands = documented_account()
    rules = ("resetkeys", f"~{keys}*", "-@all", *(f"+{command.lower()}" for command in commands))
    with own_valkey.client() as client:
        client.execute_command("ACL", "SETUSER", "pushgate", "on", ">secret", *rules)
    url = own_valkey.url.replace("//", "//pushgate:secret@")
    registry = RedisRegistry(url, lost_seconds=30.0)
    try:
        await registry.heartbeat(NODE, claim=True)
        await registry.write(NODE, ["alice"], ["bob"])
        assert await registry.lookup(["alice"]) == [(NODE,)]
        assert [user async for user, _ in registry.entries()] == ["alice"]
        await registry.probe()
        assert (await registry.keep_processor("p1")).names == {"p1"}
        assert (await registry.processors()).names == {"p1"}
        await registry.retire_processor("p1")
        await registry.retire(NODE)
    finally:
        await registry.close()
