"""What INFO and CLUSTER INFO say, judged. tests/integration/test_doctor.py asks real servers."""

from __future__ import annotations

from typing import Any, Final

import pytest

from pushgate.doctor.finding import Severity
from pushgate.doctor.redis import judge_cluster, judge_latency, judge_servers
from tests.support.findings import bad, only

URL: Final = "redis://127.0.0.1:6379/0"
REPLICA: Final = {"ip": "10.0.0.2", "state": "online", "lag": 0}
GOOD: Final[dict[str, Any]] = {
    "redis_version": "7.4.1",
    "cluster_enabled": 0,
    "role": "master",
    "maxmemory": 1_000,
    "maxmemory_policy": "noeviction",
    "used_memory": 100,
    "rdb_last_bgsave_status": "ok",
    "slave0": REPLICA,
}


def test_a_good_server_has_no_finding() -> None:
    found = judge_servers(URL, [GOOD])
    assert bad(found) == []
    assert "Redis 7.4.1: one server" in found[0].what
    edge = {"redis_version": "6.2.0", "used_memory": 800}
    assert bad(judge_servers(URL, [GOOD | edge])) == []


@pytest.mark.parametrize(
    ("info", "severity", "words"),
    [
        ({"redis_version": "6.0.16"}, Severity.FAULT, "version 6.0.16"),
        ({"cluster_enabled": 1}, Severity.FAULT, "part of a Cluster"),
        ({"maxmemory_policy": "allkeys-lru", "evicted_keys": 7}, Severity.WARNING, "7 keys were"),
        ({"used_memory": 900}, Severity.WARNING, "90% of maxmemory"),
        ({"role": "slave"}, Severity.FAULT, "is a replica"),
        ({"slave0": REPLICA | {"state": "wait_bgsave"}}, Severity.WARNING, "1 of 1 replicas"),
        ({"rdb_last_bgsave_status": "err"}, Severity.WARNING, "last snapshot"),
    ],
)
def test_each_trouble_of_a_server_is_found(
    info: dict[str, Any], severity: Severity, words: str
) -> None:
    finding = only(judge_servers(URL, [GOOD | info]))
    assert finding.severity is severity
    assert words in finding.what


def test_a_master_without_a_replica_is_noted() -> None:
    found = judge_servers(URL, [{key: value for key, value in GOOD.items() if key != "slave0"}])
    assert [each.severity for each in found] == [Severity.OK, Severity.NOTE]
    assert "no replica" in found[1].what


def test_equal_findings_of_the_masters_of_a_cluster_are_one() -> None:
    info = GOOD | {"cluster_enabled": 1, "maxmemory_policy": "volatile-ttl"}
    found = judge_servers("redis+cluster://127.0.0.1:7000", [info] * 3)
    assert "a Cluster, 3 masters" in found[0].what
    assert "volatile-ttl" in only(found).what


@pytest.mark.parametrize(
    ("seconds", "is_slow"), [([0.001] * 9, False), ([0.03] * 9, True), ([0.001] * 8 + [0.6], True)]
)
def test_latency_is_judged_by_the_median_and_by_the_slowest(
    seconds: list[float], is_slow: bool
) -> None:
    finding = judge_latency(seconds, 1.0)
    assert finding.severity is (Severity.WARNING if is_slow else Severity.OK)
    assert ("PUSHGATE_REDIS_TIMEOUT_SECONDS" in finding.why) is is_slow


@pytest.mark.parametrize(
    "state", [{"cluster_state": "fail", "cluster_slots_fail": "5461"}, {"cluster_slots_pfail": "1"}]
)
def test_a_cluster_that_is_not_whole_is_a_fault(state: dict[str, str]) -> None:
    good = {"cluster_state": "ok", "cluster_slots_assigned": "16384"}
    assert bad(judge_cluster(good)) == []
    assert only(judge_cluster(good | state)).severity is Severity.FAULT
