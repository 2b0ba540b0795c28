"""The negative controls of the fault tests: whatever goes wrong with one message is found."""

import pytest

from tests.support.clock import Clock
from tests.support.ledger import Ledger

NAMES = [str(number) for number in range(10)]


def ledger_of(arrived: list[str]) -> Ledger:
    """Give a ledger where alice's ten messages came as said, and bob's as they should."""
    ledger = Ledger()
    for name in NAMES:
        ledger.publish("alice", f"a{name}")
        ledger.publish("bob", f"b{name}")
        ledger.arrive("bob", f"b{name}")
    for name in arrived:
        ledger.arrive("alice", f"a{name}")
    return ledger


def test_what_arrives_once_and_in_order_is_whole() -> None:
    ledger = ledger_of(NAMES)
    ledger.check()
    assert ledger.names() == {f"{user}{name}" for user in "ab" for name in NAMES}


@pytest.mark.parametrize("dropped", ["0", "5", "9"])
def test_a_dropped_message_is_missing(dropped: str) -> None:
    ledger = ledger_of([name for name in NAMES if name != dropped])
    assert ledger.missing() == [f"a{dropped}"]
    assert not ledger.repeated()
    assert not ledger.disordered()
    with pytest.raises(AssertionError, match=f"1 missing: \\['a{dropped}'\\]"):
        ledger.check()
    ledger.check(excused=[f"a{dropped}"])
    with pytest.raises(AssertionError, match="1 missing"):
        ledger.check(excused=["b1"])


@pytest.mark.parametrize("arrived", [["0", *NAMES], [*NAMES, "0"], [*NAMES, "9"]])
def test_a_repeated_message_is_repeated_and_nothing_else(arrived: list[str]) -> None:
    ledger = ledger_of(arrived)
    assert ledger.repeated() == [f"a{max(NAMES, key=arrived.count)}"]
    assert not ledger.missing()
    assert not ledger.disordered()
    with pytest.raises(AssertionError, match="1 repeated"):
        ledger.check(excused=[f"a{name}" for name in NAMES])


def test_swapped_messages_are_out_of_order() -> None:
    ledger = ledger_of(["0", "2", "1", *NAMES[3:]])
    assert ledger.disordered() == ["a1"]
    with pytest.raises(AssertionError, match="1 out of order"):
        ledger.check()


def test_everything_behind_one_that_came_too_early_is_out_of_order() -> None:
    assert ledger_of(["9", *NAMES[:9]]).disordered() == [f"a{name}" for name in NAMES[:9]]


def test_a_gap_is_no_disorder() -> None:
    assert not ledger_of(["0", "3", "9"]).disordered()


def test_a_message_of_somebody_elses_is_strange() -> None:
    ledger = ledger_of(NAMES)
    ledger.arrive("alice", "b0")
    assert ledger.strange() == ["b0"]
    with pytest.raises(AssertionError, match="1 never published"):
        ledger.check()


def test_a_name_is_a_users_only_once() -> None:
    ledger = Ledger()
    ledger.publish("alice", "1")
    with pytest.raises(AssertionError, match="already"):
        ledger.publish("alice", "1")


def test_the_slowest_is_of_those_who_are_asked_for_and_by_first_arrivals() -> None:
    clock = Clock()
    ledger = Ledger(clock=clock)
    for user in ("alice", "bob"):
        ledger.publish(user, "1")
        ledger.publish(user, "2")
    clock.now = 1.0
    ledger.arrive("alice", "1")
    ledger.arrive("alice", "2")
    clock.now = 3.0
    ledger.arrive("bob", "1")
    ledger.arrive("alice", "1")
    assert ledger.slowest(["alice"]) == 1.0
    assert ledger.slowest(["bob"]) == 3.0
    assert ledger.slowest(["alice", "bob"]) == 3.0
    assert ledger.slowest([]) == 0.0


def test_users_are_reached_by_what_was_published_since() -> None:
    clock = Clock()
    ledger = Ledger(clock=clock)
    for clock.now in (1.0, 2.0):
        for user in ("alice", "bob"):
            ledger.publish(user, f"at {clock.now:g}")
    assert not ledger.reached(["alice"], since=0.0)
    ledger.arrive("alice", "at 2")
    ledger.arrive("bob", "at 1")
    assert ledger.reached(["alice"], since=2.0)
    assert not ledger.reached(["alice", "bob"], since=2.0)
    assert ledger.reached(["alice", "bob"], since=1.0)
