"""Users whose messages waited lately: as long as marks need them, and within a bound."""

from __future__ import annotations

import pytest

from processor import metrics
from processor.replay import waited as module
from processor.replay.waited import Waited

KEEP_MS = 125_000
NOW_MS = 1_764_360_000_000


@pytest.fixture
def waited() -> Waited:
    return Waited(KEEP_MS)


def test_a_user_counts_up_to_the_last_note(waited: Waited) -> None:
    waited.note(NOW_MS, ["alice", "bob"])
    waited.note(NOW_MS + 1_000, ["bob"])
    waited.note(NOW_MS + 2_000, [])
    found = [(user, waited.since(user, NOW_MS + 1_000)) for user in ("alice", "bob", "carol")]
    assert found == [("alice", False), ("bob", True), ("carol", False)]
    assert waited.since("alice", NOW_MS)
    assert not waited.since("bob", NOW_MS + 1_001)


def test_users_are_forgotten_when_no_mark_needs_them(waited: Waited) -> None:
    for second in range(300):
        waited.note(NOW_MS + second * 1_000, [f"user {second}"])
    last_ms = NOW_MS + 299_000
    assert waited.since("user 180", last_ms - KEEP_MS)
    assert not waited.since("user 100", NOW_MS)
    assert len(waited._last_ms) < 140
    assert len(waited._times_ms) < 140


def test_after_an_outage_the_last_note_before_counts(waited: Waited) -> None:
    """Without notes there are no marks either: the last mark is as old."""
    waited.note(NOW_MS, ["alice"])
    waited.note(NOW_MS + 10 * KEEP_MS, ["bob"])
    assert waited.since("alice", NOW_MS)
    waited.note(NOW_MS + 12 * KEEP_MS, [])
    assert not waited.since("alice", NOW_MS)


def test_beyond_so_many_users_all_count(waited: Waited, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_USERS", 2)
    name = "pushgate_processor_waited_overflows_total "
    waited.note(NOW_MS, ["alice", "bob", "alice"])
    assert not waited.since("carol", NOW_MS)
    waited.note(NOW_MS + 1_000, ["alice", "bob", "carol", "dave"])
    assert name + "1.0" in metrics.exposition().decode()
    assert waited.since("anybody", NOW_MS + 1_000)
    assert waited.since("carol", NOW_MS)
    assert not waited.since("carol", NOW_MS + 1_001)
