"""The time of a node's cursors: no further than the lease, and than each live processor vouches."""

from __future__ import annotations

from gateway.connections.as_of import AsOf


def test_before_the_first_lease_there_is_no_time() -> None:
    as_of = AsOf()
    as_of.stamped("p1", 1_000)
    assert (as_of.ms, as_of.text, as_of.processors) == (0, "", frozenset())


def test_it_begins_with_the_first_lease_though_no_processor_has_stamped() -> None:
    as_of = AsOf()
    as_of.held(1_000, {"p1"}, at=0.0)
    assert (as_of.ms, int(as_of.text, 36)) == (1_000, 1_000)
    assert as_of.processors == {"p1"}


def test_it_moves_as_far_as_the_last_of_all_that_vouch() -> None:
    as_of = AsOf()
    as_of.held(1_000, {"p1", "p2"}, at=0.0)
    as_of.held(5_000, {"p1", "p2"}, at=0.0)
    assert as_of.ms == 1_000
    as_of.stamped("p1", 4_000)
    assert as_of.ms == 1_000, "p2 has not vouched for anything"
    as_of.stamped("p2", 3_000)
    assert as_of.ms == 3_000
    as_of.stamped("p2", 9_000)
    assert as_of.ms == 4_000
    as_of.stamped("p1", 9_000)
    assert as_of.ms == 5_000, "the lease was held then, and nobody knows of later"
    assert int(as_of.text, 36) == 5_000


def test_it_never_goes_back() -> None:
    as_of = AsOf()
    as_of.held(5_000, {"p1"}, at=0.0)
    as_of.stamped("p1", 6_000)
    as_of.stamped("p1", 100)
    as_of.held(4_000, {"p1"}, at=0.0)  # another server's clock
    assert as_of.ms == 5_000
    as_of.held(7_000, {"p1"}, at=0.0)
    assert as_of.ms == 6_000, "an old stamp takes nothing back"


def test_a_new_processor_holds_it_up_until_it_stamps() -> None:
    as_of = AsOf()
    as_of.held(1_000, {"p1"}, at=0.0)
    as_of.stamped("p1", 9_000)
    as_of.held(2_000, {"p1"}, at=0.0)
    assert as_of.ms == 2_000
    as_of.held(5_000, {"p1", "p2"}, at=0.0)
    assert as_of.ms == 2_000
    as_of.stamped("p2", 4_000)
    assert as_of.ms == 4_000


def test_a_processor_that_is_gone_holds_nothing_up() -> None:
    as_of = AsOf()
    as_of.held(1_000, {"p1", "p2"}, at=0.0)
    as_of.stamped("p1", 8_000)
    as_of.held(7_000, {"p1", "p2"}, at=0.0)
    assert as_of.ms == 1_000
    as_of.held(7_000, {"p1"}, at=0.0)
    assert as_of.ms == 7_000


def test_what_a_processor_said_before_it_was_gone_does_not_count_when_it_is_back() -> None:
    as_of = AsOf()
    as_of.held(1_000, {"p1"}, at=0.0)
    as_of.stamped("p1", 90_000)
    as_of.held(1_500, {"p1", "p2"}, at=0.0)
    as_of.stamped("p2", 2_000)
    as_of.held(2_000, {"p2"}, at=0.0)
    as_of.held(5_000, {"p1"}, at=0.0)
    assert as_of.ms == 2_000
    as_of.stamped("p1", 5_500)
    assert as_of.ms == 5_000
