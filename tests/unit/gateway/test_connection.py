"""The life of a connection: OPENING → OPEN → CLOSING → CLOSED, released and forgotten once."""

from collections.abc import Callable
from typing import ClassVar

import pytest

from gateway.closes import GOING_AWAY, Close
from gateway.connection import MAX_BACKLOG, State, StreamConnection
from gateway.delivery import Delivery
from tests.unit.gateway.fakes import FakeKeeper, FakeWire, identity, message


class Line(StreamConnection):
    """A transport of one line a message."""

    transport: ClassVar[str] = "line"

    def deliver(self, delivery: Delivery) -> bool:
        return self.write(delivery.payload + b"\n")

    def received(self, data: bytes) -> None:
        self.ended("client left", b"last words\n")

    def opened(self) -> None:
        self._keeper.wake_at(self, 1.0)

    def wake(self) -> None:
        self.abort("no answer")

    def say_goodbye(self, close: Close) -> None:
        if self._wire is not None:
            self._wire.write(b"bye\n")
            self._wire.close()


class Rig:
    """A connection with its node and its socket."""

    def __init__(self) -> None:
        self.keeper = FakeKeeper()
        self.wire = FakeWire()
        self.line = Line(identity(), self.keeper)
        self.line.attach(self.wire)

    def open(self) -> None:
        self.line.open(b"head\n")


@pytest.fixture
def opening() -> Rig:
    return Rig()


@pytest.fixture
def rig(opening: Rig) -> Rig:
    opening.open()
    opening.wire.take()
    return opening


def test_nothing_is_written_before_the_handshakes_answer(opening: Rig) -> None:
    assert opening.line.state is State.OPENING
    assert opening.line.deliver(message(b"one"))
    assert opening.wire.sent == b""


def test_what_came_meanwhile_follows_the_answer_in_order(opening: Rig) -> None:
    opening.line.deliver(message(b"one"))
    opening.line.deliver(message(b"two"))
    opening.open()
    opening.line.deliver(message(b"three"))
    assert opening.wire.sent == b"head\none\ntwo\nthree\n"
    assert opening.line.state is State.OPEN
    assert opening.keeper.wake_in == 1.0


def test_the_backlog_is_bounded_and_its_overflow_is_refused(opening: Rig) -> None:
    taken = [opening.line.deliver(message(b"x")) for _ in range(MAX_BACKLOG + 1)]
    assert taken == [True] * MAX_BACKLOG + [False]
    opening.open()
    assert opening.wire.sent == b"head\n" + b"x\n" * MAX_BACKLOG


def test_opening_twice_answers_once(rig: Rig) -> None:
    rig.open()
    assert rig.wire.sent == b""


def test_a_connection_that_ended_before_its_answer_gets_none(opening: Rig) -> None:
    opening.line.lost()
    opening.open()
    assert opening.wire.sent == b""
    assert opening.line.state is State.CLOSED
    assert opening.keeper.wake_in is None


def test_a_close_before_the_answer_has_no_goodbye(opening: Rig) -> None:
    opening.line.deliver(message())
    opening.line.close(GOING_AWAY)
    opening.open()
    assert opening.wire.sent == b""
    assert opening.wire.aborted
    assert opening.keeper.released == ["node is leaving"]


def test_a_peer_that_ends_before_the_answer_is_sent_nothing(opening: Rig) -> None:
    opening.line.received(b"early")
    opening.open()
    assert opening.wire.sent == b""
    assert opening.wire.closed or opening.wire.aborted
    assert opening.keeper.released == ["client left"]


def test_a_close_says_goodbye_once_and_releases_once(rig: Rig) -> None:
    rig.line.close(GOING_AWAY)
    rig.line.close(GOING_AWAY)
    assert rig.wire.sent == b"bye\n"
    assert rig.line.state is State.CLOSING
    assert rig.keeper.released == ["node is leaving"]
    assert rig.keeper.forgotten == 0


def test_the_end_of_the_socket_closes_and_forgets_once(rig: Rig) -> None:
    rig.line.lost()
    rig.line.lost()
    assert rig.line.state is State.CLOSED
    assert rig.keeper.released == ["lost"]
    assert rig.keeper.forgotten == 1


def test_a_message_after_the_release_is_refused(rig: Rig) -> None:
    rig.line.close(GOING_AWAY)
    rig.wire.take()
    assert not rig.line.deliver(message())
    rig.line.lost()
    assert not rig.line.deliver(message())
    assert rig.wire.sent == b""


def test_a_wire_that_is_gone_ends_the_connection(rig: Rig) -> None:
    rig.wire.gone = True
    assert not rig.line.deliver(message())
    assert rig.line.state is State.CLOSING
    assert rig.wire.aborted
    assert rig.keeper.released == ["lost"]


def test_an_overflow_within_a_write_releases_once_under_its_own_name(rig: Rig) -> None:
    def fill() -> None:
        rig.wire.gone = True
        rig.line.overflowed()

    rig.wire.on_write = fill
    assert not rig.line.deliver(message())
    assert rig.keeper.released == ["too slow"]
    assert rig.wire.aborted


def test_the_peers_end_is_answered_with_last_words_once(rig: Rig) -> None:
    rig.line.received(b"x")
    rig.line.received(b"x")
    assert rig.wire.sent == b"last words\n"
    assert rig.wire.closed
    assert rig.keeper.released == ["client left"]


def test_an_end_that_answers_our_goodbye_gets_no_more_words(rig: Rig) -> None:
    rig.line.close(GOING_AWAY)
    rig.line.received(b"x")
    assert rig.wire.sent == b"bye\n"
    assert rig.wire.closed


def test_after_the_socket_is_gone_nothing_touches_it(rig: Rig) -> None:
    rig.line.lost()
    rig.line.close(GOING_AWAY)
    rig.line.abort("late")
    rig.line.ended("late", b"late")
    rig.line.overflowed()
    assert (rig.wire.sent, rig.wire.closed, rig.wire.aborted) == (b"", False, False)
    assert rig.keeper.released == ["lost"]


ENDINGS: dict[str, Callable[[Line], object]] = {
    "close": lambda line: line.close(GOING_AWAY),
    "abort": lambda line: line.abort("aborted"),
    "overflowed": lambda line: line.overflowed(),
    "ended": lambda line: line.ended("ended", b""),
    "lost": lambda line: line.lost(),
}


@pytest.mark.parametrize("opened", [True, False], ids=["open", "opening"])
@pytest.mark.parametrize("first", ENDINGS)
@pytest.mark.parametrize("second", ENDINGS)
def test_however_it_ends_it_is_released_and_forgotten_exactly_once(
    opening: Rig, opened: bool, first: str, second: str
) -> None:
    if opened:
        opening.open()
    ENDINGS[first](opening.line)
    ENDINGS[second](opening.line)
    opening.line.lost()
    assert len(opening.keeper.released) == 1
    assert opening.keeper.forgotten == 1
    assert opening.line.state is State.CLOSED
