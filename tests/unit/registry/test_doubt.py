"""Whom the registry may have lost is in doubt, for as long as gateways need to say who is there."""

import pytest

from registry.doubt import Doubt
from tests.support.clock import Clock

NOW = 1_800_000_000


@pytest.fixture
def clock() -> Clock:
    return Clock(50.0)


@pytest.fixture
def doubt(clock: Clock) -> Doubt:
    made = Doubt(7.0, clock=clock)
    made.set_time(NOW)
    return made


def marker(age_seconds: float) -> bytes:
    return b"3f2a %d" % round((NOW - age_seconds) * 1_000_000)


def test_a_marker_as_old_as_registration_takes_is_beyond_doubt(doubt: Doubt) -> None:
    assert not doubt.may_lack_entries(marker(7.0))
    assert not doubt.may_lack_entries(marker(1_000_000))


@pytest.mark.parametrize("age_seconds", [6.9, 0.0, -7_200.0])
def test_a_young_marker_and_one_from_the_future_are_in_doubt(
    doubt: Doubt, age_seconds: float
) -> None:
    assert doubt.may_lack_entries(marker(age_seconds))


def test_a_marker_ages_as_time_passes(doubt: Doubt, clock: Clock) -> None:
    clock.now += 3.0
    assert doubt.may_lack_entries(marker(3.9))
    assert not doubt.may_lack_entries(marker(4.0))


def test_a_clock_that_was_set_anew_is_what_counts(doubt: Doubt) -> None:
    doubt.set_time(NOW + 7_200)
    assert not doubt.may_lack_entries(marker(0.0))


@pytest.mark.parametrize(
    "poison", [None, b"", b"1800000000000", b"a b", b"a -5", b"a 1 2", b"a " + b"9" * 400, b"\xff"]
)
def test_what_is_no_marker_is_in_doubt(doubt: Doubt, poison: bytes | None) -> None:
    assert doubt.may_lack_entries(poison)


def test_without_the_time_every_marker_is_in_doubt(clock: Clock) -> None:
    doubt = Doubt(7.0, clock=clock)
    assert not doubt.knows_the_time
    assert doubt.may_lack_entries(marker(1_000_000))
    doubt.set_time(NOW)
    assert doubt.knows_the_time
    assert not doubt.may_lack_entries(marker(1_000_000))


def test_an_outage_is_over_when_registration_is_after_the_first_answer(
    doubt: Doubt, clock: Clock
) -> None:
    assert not doubt.in_outage
    doubt.answered()
    assert not doubt.in_outage
    doubt.failed()
    clock.now += 1_000.0
    assert doubt.in_outage
    doubt.answered()
    clock.now += 6.9
    doubt.answered()
    assert doubt.in_outage
    clock.now += 0.1
    assert not doubt.in_outage


def test_a_second_outage_begins_anew(doubt: Doubt, clock: Clock) -> None:
    doubt.failed()
    doubt.answered()
    clock.now += 6.0
    doubt.failed()
    doubt.answered()
    clock.now += 6.0
    assert doubt.in_outage
