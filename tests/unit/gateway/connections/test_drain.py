"""Leaving slowly: nobody while it settles, then in equal steps, and everybody by the end."""

import math
import random
from itertools import pairwise

import pytest

from gateway.connections.closes import CLOSE_GRACE_SECONDS
from gateway.connections.drain import Drain

BEGAN = 5_000.0


def made(
    *, window: float = 60.0, settle: float = 5.0, delay: float = 5.0, rate: float = 0.0
) -> Drain:
    return Drain(
        began=BEGAN,
        window_seconds=window,
        settle_seconds=settle,
        reconnect_delay_seconds=delay,
        rate=rate,
    )


def told(
    drain: Drain, clients: int, *, step: float = 0.25, until: float
) -> list[tuple[float, int]]:
    """Let time pass and tell clients as the drain says; give when, and how many in all."""
    seen, untold = [], clients
    for number in range(math.ceil(until / step) + 1):
        count = drain.step(BEGAN + number * step, untold=untold)
        assert 0 <= count <= untold, "more than there are"
        untold -= count
        seen.append((number * step, clients - untold))
    return seen


def test_it_settles_before_anybody_is_told() -> None:
    drain = made()
    assert not drain.settled(BEGAN)
    assert drain.step(BEGAN, untold=1_000) == 0
    assert drain.step(BEGAN + 4.99, untold=1_000) == 0
    assert not drain.settled(BEGAN + 4.99)
    assert drain.settled(BEGAN + 5.0)
    assert drain.step(BEGAN + 6.0, untold=1_000) > 0


def test_settling_takes_a_quarter_of_the_window_at_most() -> None:
    drain = made(window=8.0, settle=30.0)
    assert drain.settled_at == BEGAN + 2.0
    assert not drain.has_ended(BEGAN + 7.99)
    assert drain.has_ended(BEGAN + 8.0)


def test_clients_are_told_in_equal_steps_between_settling_and_farewell() -> None:
    clients = 4_600
    seen = told(made(), clients, until=60.0)
    last = 60.0 - (5.0 + CLOSE_GRACE_SECONDS)
    for when, count in seen:
        share = min(1.0, max(0.0, (when - 5.0) / (last - 5.0)))
        assert count == pytest.approx(clients * share, abs=1)
    steps = [after - before for (_, before), (_, after) in pairwise(seen)]
    assert max(steps) <= clients / (last - 5.0) * 0.25 + 1


@pytest.mark.parametrize("clients", [0, 1, 2, 3, 17, 10_000])
@pytest.mark.parametrize("window", [0.0, 0.5, 10.0, 60.0, 600.0])
def test_all_are_told_early_enough_for_the_last_ones_delay_and_grace(
    clients: int, window: float
) -> None:
    drain = made(window=window)
    farewell = min(5.0 + CLOSE_GRACE_SECONDS, window / 4)
    seen = told(drain, clients, until=window)
    assert next(when for when, count in seen if count == clients) <= window - farewell + 0.25
    assert drain.longest_delay <= max(0.0, farewell - CLOSE_GRACE_SECONDS)


@pytest.mark.parametrize(
    ("window", "longest"), [(60.0, 5.0), (36.0, 5.0), (24.0, 2.0), (16.0, 0.0), (1.0, 0.0)]
)
def test_a_short_window_leaves_less_time_to_reconnect(window: float, longest: float) -> None:
    assert made(window=window).longest_delay == longest


def test_no_more_are_told_a_second_than_the_rate() -> None:
    drain = made(rate=10.0)
    seen = told(drain, 100_000, until=50.0)
    for when, count in seen:
        assert count <= math.ceil(max(0.0, when - 5.0) * 10.0)
    assert seen[-1][1] == 450
    for (_, before), (_, after) in zip(seen, seen[4:], strict=False):
        assert after - before <= 10


def test_a_rate_that_is_never_reached_changes_nothing() -> None:
    assert told(made(rate=1e9), 5_000, until=60.0) == told(made(), 5_000, until=60.0)


def test_a_loop_that_was_held_up_tells_no_more_than_are_there() -> None:
    drain = made()
    assert drain.step(BEGAN + 59.0, untold=7) == 7
    assert drain.step(BEGAN + 59.5, untold=0) == 0
    assert drain.step(BEGAN + 3_600.0, untold=0) == 0


def test_a_clock_that_stands_still_tells_nobody_twice() -> None:
    drain = made()
    count = drain.step(BEGAN + 20.0, untold=1_000)
    assert count > 0
    assert drain.step(BEGAN + 20.0, untold=1_000 - count) == 0


def test_who_comes_while_it_settles_is_told_too() -> None:
    drain, untold = made(), 0
    for number in range(60 * 4):
        now = number * 0.25
        untold += 10 if now < 5.0 else 0
        untold -= drain.step(BEGAN + now, untold=untold)
    assert untold == 0


@pytest.mark.parametrize("seed", range(20))
def test_clients_that_leave_by_themselves_do_not_hurry_the_others_beyond_the_end(
    seed: int,
) -> None:
    chance = random.Random(seed)
    drain, untold = made(window=chance.uniform(1, 100), settle=chance.uniform(0, 50)), 1_000
    now = BEGAN
    while not drain.has_ended(now):
        count = drain.step(now, untold=untold)
        assert 0 <= count <= untold
        untold -= count
        untold -= min(untold, chance.randrange(5))
        now += 0.25
    assert untold == 0


@pytest.mark.parametrize("when", [0.0, 1.0, 20.0, 59.0])
def test_in_haste_all_are_told_now(when: float) -> None:
    drain, untold = made(rate=1.0), 1_000
    untold -= drain.step(BEGAN + when, untold=untold)
    drain.hasten(BEGAN + when)
    assert drain.settled(BEGAN + when)
    assert drain.has_ended(BEGAN + when)
    assert drain.longest_delay == 0.0
    assert drain.step(BEGAN + when, untold=untold) == untold


def test_haste_after_the_end_puts_nothing_off() -> None:
    drain = made()
    drain.hasten(BEGAN + 1_000.0)
    assert drain.has_ended(BEGAN + 60.0)


def test_a_window_of_nothing_is_over_as_it_begins() -> None:
    drain = made(window=0.0)
    assert drain.has_ended(BEGAN)
    assert drain.step(BEGAN, untold=1_000) == 1_000
