"""Slow clients: bytes wait, and the client takes none for a while. A burst alone is no slowness."""

import pytest

from gateway.connections.closes import TOO_SLOW
from gateway.connections.connection import TICK_SECONDS, State, StreamConnection
from gateway.connections.slowness import Slowness
from gateway.transports.sse import SseConnection
from tests.unit.gateway.fakes import FakeKeeper, FakeWire, identity

SILENCE = 10.0


class Rig:
    """A backlogged connection, and a clock that ticks."""

    def __init__(self, silence_seconds: float = SILENCE) -> None:
        self.slowness = Slowness(silence_seconds=silence_seconds)
        self.now = 1_000.0
        self.wire = FakeWire()
        self.wire.waiting = True
        self.keeper = FakeKeeper()
        self.connection = SseConnection(identity(), self.keeper)
        self.connection.attach(self.wire)
        self.connection.open(b"head")
        self.slowness.watch(self.connection, self.now)

    def tick(self, seconds: float = TICK_SECONDS) -> list[StreamConnection]:
        """Let time pass, a tick at a time; give the connections that were found slow."""
        slow: list[StreamConnection] = []
        for _ in range(int(seconds / TICK_SECONDS)):
            self.now += TICK_SECONDS
            slow += self.slowness.advance(self.now)
        return slow

    def seconds_to_slow(self) -> float:
        began = self.now
        while not self.tick():
            assert self.now - began < 1_000, "never found slow"
        return self.now - began


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.mark.parametrize("silence", [0.5, 1.0, 3.0, 10.0, 240.0])
def test_who_takes_nothing_is_slow_after_the_time_that_it_may_be_silent(silence: float) -> None:
    seconds = Rig(silence).seconds_to_slow()
    assert silence - 2 * TICK_SECONDS <= seconds <= silence + 2 * TICK_SECONDS


def test_the_kernels_clock_is_off_while_a_connection_is_watched(rig: Rig) -> None:
    for _ in range(3):
        rig.tick()
        rig.wire.taken += 1
    assert rig.wire.borne == [0.0]
    rig.wire.waiting = False
    rig.tick()
    assert rig.wire.borne == [0.0, SILENCE]
    slow = Rig()
    slow.seconds_to_slow()
    assert slow.wire.borne == [0.0], "the goodbye has its grace"


def test_who_is_slow_is_told_of_once(rig: Rig) -> None:
    assert rig.tick(SILENCE) == [rig.connection]
    assert rig.tick(10 * SILENCE) == []
    assert len(rig.slowness) == 0


def test_the_least_progress_begins_the_time_afresh(rig: Rig) -> None:
    for _ in range(100):
        assert rig.tick(SILENCE - 4 * TICK_SECONDS) == []
        rig.wire.taken += 1
    assert rig.tick(SILENCE) == [rig.connection]


def test_without_a_backlog_nothing_is_watched(rig: Rig) -> None:
    rig.wire.waiting = False
    assert rig.tick() == []
    assert len(rig.slowness) == 0
    rig.wire.waiting = True
    rig.slowness.watch(rig.connection, rig.now)
    assert rig.seconds_to_slow() >= SILENCE / 2


def test_a_second_backlog_soon_after_the_first_does_not_begin_the_time_afresh(rig: Rig) -> None:
    rig.tick(SILENCE / 2)
    rig.slowness.watch(rig.connection, rig.now)
    assert rig.seconds_to_slow() <= SILENCE / 2 + 2 * TICK_SECONDS


def test_connections_that_end_are_forgotten(rig: Rig) -> None:
    rig.connection.close(TOO_SLOW)
    assert rig.tick() == []
    assert len(rig.slowness) == 0
    other = Rig()
    other.connection.lost()
    assert other.tick() == []
    assert len(other.slowness) == 0


def test_time_that_stood_still_for_the_node_counts_as_one_look(rig: Rig) -> None:
    rig.tick()
    rig.wire.taken += 1  # while the loop was busy for long
    rig.now += 10 * SILENCE
    assert rig.tick() == []


def test_a_fault_of_one_connection_ends_that_connection_alone(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty = FakeWire()
    faulty.waiting = True
    connection = SseConnection(identity(), rig.keeper)
    connection.attach(faulty)
    connection.open(b"head")
    rig.slowness.watch(connection, rig.now)

    def fail() -> int:
        raise RuntimeError("injected")

    monkeypatch.setattr(faulty, "progress", fail)
    assert rig.tick(SILENCE) == [rig.connection]
    assert connection.state not in (State.OPEN, State.PARTING)
    assert len(rig.slowness) == 0
