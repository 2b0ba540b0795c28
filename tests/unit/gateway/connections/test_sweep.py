"""One clock tells everybody of what is due, when it is due, however time passes."""

import pytest

from gateway.connections.connection import EXPIRY_NOTICE_SECONDS, NEVER, TICK_SECONDS, State
from gateway.connections.sweep import Sweep
from tests.unit.gateway.fakes import FakeConnection

START = 1_000.1
#: How far the wheel reaches; what lies beyond is placed again on the way.
WHEEL_SECONDS = 1_024 * TICK_SECONDS


def wake_at(sweep: Sweep, connection: FakeConnection, when: float) -> None:
    connection.wake_tick = sweep.tick_at(when)
    sweep.place(connection)


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


@pytest.mark.parametrize(
    "delay", [0.1, 1.0, 24.9, 100.0, WHEEL_SECONDS - 1, WHEEL_SECONDS, WHEEL_SECONDS + 1, 3_600.0]
)
def test_a_connection_is_woken_when_it_asked_and_never_early(sweep: Sweep, delay: float) -> None:
    connection = FakeConnection()
    wake_at(sweep, connection, START + delay)
    woken = woken_at(sweep, connection, until=START + delay + 10)
    assert woken is not None
    assert START + delay <= woken <= START + delay + TICK_SECONDS + 0.06


def test_a_wake_up_is_for_once(sweep: Sweep) -> None:
    connection = FakeConnection()
    wake_at(sweep, connection, START + 1)
    for second in range(1_000):
        sweep.advance(START + second)
    assert connection.woken() == 1


def test_a_time_in_the_past_is_the_next_tick(sweep: Sweep) -> None:
    connection = FakeConnection()
    wake_at(sweep, connection, START - 100)
    sweep.advance(START)
    assert not connection.woken()
    sweep.advance(START + TICK_SECONDS)
    assert connection.woken() == 1


def test_the_last_call_counts(sweep: Sweep) -> None:
    connection = FakeConnection()
    wake_at(sweep, connection, START + 1)
    wake_at(sweep, connection, START + 50)
    sweep.advance(START + 49)
    assert not connection.woken()
    sweep.advance(START + 51)
    assert connection.woken() == 1


def test_who_is_forgotten_is_not_woken(sweep: Sweep) -> None:
    connection = FakeConnection()
    wake_at(sweep, connection, START + 1)
    sweep.forget(connection)
    sweep.forget(connection)
    sweep.advance(START + 10)
    assert not connection.woken()


def test_who_is_gone_is_not_woken_though_it_was_due_with_whoever_ended_it(sweep: Sweep) -> None:
    first, second = FakeConnection(), FakeConnection()
    for connection, other in ((first, second), (second, first)):
        wake_at(sweep, connection, START + 1)
        connection.on_wake = other.gone
    sweep.advance(START + 2)
    assert first.woken() + second.woken() == 1


def test_what_lies_beyond_the_wheel_is_told_once_in_its_time(sweep: Sweep) -> None:
    month = 30 * 86_400.0
    connection = FakeConnection()
    wake_at(sweep, connection, START + month)
    now = START
    while now < START + month - 100:
        now += 97.3
        sweep.advance(now)
    assert not connection.woken()
    sweep.advance(START + month - 1)
    assert not connection.woken()
    sweep.advance(START + month + 1)
    assert connection.woken() == 1


def test_a_token_an_age_and_a_heartbeat_each_come_due_in_their_time(sweep: Sweep) -> None:
    connection = FakeConnection()
    connection.age_tick = sweep.tick_at(START + 400)
    connection.expiry_tick = sweep.tick_at(START + 1_000)
    wake_at(sweep, connection, START + 25)
    seen: list[tuple[int, int, list[str]]] = []
    for second in range(1_010):
        sweep.advance(START + second)
        state = (connection.woken(), len(connection.told), connection.told.copy())
        if not seen or seen[-1] != state:
            seen.append(state)
            if connection.told:
                assert second in (400, 401, 970, 971, 1_000, 1_001)
    assert [told for _, _, told in seen] == [
        [],
        [],
        ["aged"],
        ["aged", "warned"],
        ["aged", "warned", "expired"],
    ]
    assert connection.warnings[0] == pytest.approx(EXPIRY_NOTICE_SECONDS, abs=1.0)


def test_what_never_comes_takes_no_place(sweep: Sweep) -> None:
    connection = FakeConnection()
    assert connection.next_tick() <= NEVER
    sweep.place(connection)
    assert connection.slot == -1


@pytest.mark.parametrize("pause", [10, WHEEL_SECONDS, 3_600, 10_000_000])
def test_a_loop_that_was_held_up_wakes_everybody_once(sweep: Sweep, pause: float) -> None:
    connections = [FakeConnection() for _ in range(100)]
    for number, connection in enumerate(connections):
        wake_at(sweep, connection, START + number / 20)
    sweep.advance(START + pause)
    assert {connection.woken() for connection in connections} == {1}


@pytest.mark.parametrize("pause", [10, 240, 3_600])
def test_after_a_pause_whoever_asks_again_is_woken_again(sweep: Sweep, pause: float) -> None:
    connection = FakeConnection()

    def ask_again() -> None:
        if connection.woken() == 1:
            wake_at(sweep, connection, START + pause + 25)

    connection.on_wake = ask_again
    wake_at(sweep, connection, START + 1)
    sweep.advance(START + pause)
    assert connection.woken() == 1
    sweep.advance(START + pause + 24)
    assert connection.woken() == 1
    sweep.advance(START + pause + 26)
    assert connection.woken() == 2


def test_a_clock_that_goes_backwards_wakes_nobody(sweep: Sweep) -> None:
    connection = FakeConnection()
    sweep.advance(START - 7_200)
    wake_at(sweep, connection, START + 1)
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
        wake_at(sweep, connection, START + 1)
    sweep.advance(START + 2)
    assert [connection.woken() for connection in connections] == [1, 1, 1]
    assert {connection.state for connection in connections} == {State.CLOSED}
