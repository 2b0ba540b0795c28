"""One clock wakes who asked, when they asked, however time passes."""

import pytest

from gateway.sweep import HORIZON_SECONDS, TICK_SECONDS, Sweep
from tests.unit.gateway.fakes import FakeConnection

START = 1_000.1


@pytest.fixture
def sweep() -> Sweep:
    return Sweep(now=START)


def woken_at(sweep: Sweep, connection: FakeConnection, *, until: float) -> float | None:
    """Let time pass in small steps and say when the connection was woken."""
    now = START
    while now < until and not connection.woken():
        now += 0.05
        sweep.advance(now)
    return now if connection.woken() else None


@pytest.mark.parametrize("delay", [0.1, 1.0, 24.9, 100.0, HORIZON_SECONDS - 1])
def test_a_connection_is_woken_when_it_asked_and_never_early(sweep: Sweep, delay: float) -> None:
    connection = FakeConnection()
    sweep.wake_at(connection, START + delay)
    woken = woken_at(sweep, connection, until=START + delay + 10)
    assert woken is not None
    assert START + delay <= woken <= START + delay + TICK_SECONDS + 0.06


def test_a_wake_up_is_for_once(sweep: Sweep) -> None:
    connection = FakeConnection()
    sweep.wake_at(connection, START + 1)
    for second in range(1_000):
        sweep.advance(START + second)
    assert connection.woken() == 1


def test_a_time_in_the_past_is_the_next_tick(sweep: Sweep) -> None:
    connection = FakeConnection()
    sweep.wake_at(connection, START - 100)
    sweep.advance(START)
    assert not connection.woken()
    sweep.advance(START + TICK_SECONDS)
    assert connection.woken() == 1


def test_the_last_call_counts(sweep: Sweep) -> None:
    connection = FakeConnection()
    sweep.wake_at(connection, START + 1)
    sweep.wake_at(connection, START + 50)
    sweep.advance(START + 49)
    assert not connection.woken()
    sweep.advance(START + 51)
    assert connection.woken() == 1


def test_who_is_forgotten_is_not_woken(sweep: Sweep) -> None:
    connection = FakeConnection()
    sweep.wake_at(connection, START + 1)
    sweep.forget(connection)
    sweep.forget(connection)
    sweep.advance(START + 10)
    assert not connection.woken()


def test_beyond_the_horizon_is_refused(sweep: Sweep) -> None:
    with pytest.raises(ValueError, match="ahead"):
        sweep.wake_at(FakeConnection(), START + HORIZON_SECONDS + 1)


@pytest.mark.parametrize("pause", [10, HORIZON_SECONDS, 3_600, 10_000_000])
def test_a_loop_that_was_held_up_wakes_everybody_once(sweep: Sweep, pause: float) -> None:
    connections = [FakeConnection() for _ in range(100)]
    for number, connection in enumerate(connections):
        sweep.wake_at(connection, START + number / 20)
    sweep.advance(START + pause)
    assert {connection.woken() for connection in connections} == {1}


@pytest.mark.parametrize("pause", [10, 240, 3_600])
def test_after_a_pause_whoever_asks_again_is_woken_again(sweep: Sweep, pause: float) -> None:
    connection = FakeConnection()

    def ask_again() -> None:
        if connection.woken() == 1:
            sweep.wake_at(connection, START + pause + 25)

    connection.on_wake = ask_again
    sweep.wake_at(connection, START + 1)
    sweep.advance(START + pause)
    assert connection.woken() == 1
    sweep.advance(START + pause + 24)
    assert connection.woken() == 1
    sweep.advance(START + pause + 26)
    assert connection.woken() == 2


def test_a_clock_that_goes_backwards_wakes_nobody(sweep: Sweep) -> None:
    connection = FakeConnection()
    sweep.advance(START - 7_200)
    sweep.wake_at(connection, START + 1)
    sweep.advance(START - 7_200)
    assert not connection.woken()
    sweep.advance(START + 2)
    assert connection.woken() == 1


def test_a_connection_that_fails_to_wake_stops_nobody_else(sweep: Sweep) -> None:
    def fail() -> None:
        raise RuntimeError("a fault of its own")

    connections = [FakeConnection() for _ in range(3)]
    for connection in connections:
        connection.on_wake = fail
        sweep.wake_at(connection, START + 1)
    sweep.advance(START + 2)
    assert [connection.woken() for connection in connections] == [1, 1, 1]
