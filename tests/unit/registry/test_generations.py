"""Another server's marker: its slot has moved for certain, or keys may be lost."""

from __future__ import annotations

from typing import Any

import pytest

from registry.generations import Look, has_moved

LOOK = Look(b"old 1790000000000000", b"new", b"0")
#: What a server that was never a replica has for its second replication id, as redis-py reads it.
NEVER_PROMOTED = 0
PROMOTED = "8f2c" * 10
BEFORE = {b"old": b"0", b"new": b"0"}


def info(**changed: object) -> dict[str, Any]:
    usual = {"role": "master", "evicted_keys": 0, "uptime_in_seconds": 1_000}
    return {**usual, "master_replid2": NEVER_PROMOTED, **changed}


def moved(
    look: Look = LOOK,
    *,
    old: dict[str, Any] | None = None,
    new: dict[str, Any] | None = None,
    before: dict[bytes, bytes] = BEFORE,
) -> bool:
    masters = {b"old": info() if old is None else old, b"new": info() if new is None else new}
    return has_moved(
        look,
        {run_id: master for run_id, master in masters.items() if master},
        evicted=before,
        running_seconds=2.0,
    )


def test_between_two_masters_that_have_run_all_the_time_a_slot_moves() -> None:
    assert moved()
    assert moved(new=info(uptime_in_seconds=1, master_replid2=PROMOTED)), "known from before"


def test_to_a_master_that_had_no_slot_of_ours_a_slot_moves() -> None:
    assert moved(before={b"old": b"0"})


@pytest.mark.parametrize(
    "new",
    [
        info(master_replid2=PROMOTED),  # a failover
        info(uptime_in_seconds=1),  # a restart, from a snapshot
        info(evicted_keys=1),
        info(role="slave"),
        {"role": "master"},
        {},
    ],
)
def test_a_server_that_may_lack_writes_is_in_doubt(new: dict[str, Any]) -> None:
    assert not moved(new=new, before={b"old": b"0"})


@pytest.mark.parametrize("old", [{}, info(role="slave"), info(evicted_keys=1)])
def test_an_old_master_that_is_gone_or_demoted_or_evicts_is_no_move(old: dict[str, Any]) -> None:
    assert not moved(old=old)


def test_a_known_master_that_has_evicted_keys_since_is_in_doubt() -> None:
    before = {b"old": b"5", b"new": b"7"}
    old = info(evicted_keys=5)
    assert moved(LOOK._replace(evicted=b"7"), old=old, new=info(evicted_keys=7), before=before)
    assert not moved(LOOK._replace(evicted=b"8"), old=old, new=info(evicted_keys=8), before=before)


def test_where_info_is_forbidden_nothing_is_certain() -> None:
    assert not has_moved(LOOK, {}, evicted=BEFORE, running_seconds=2.0)
