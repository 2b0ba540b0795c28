"""A connection's life: OPENING, OPEN, PARTING, CLOSING, CLOSED; released and forgotten once."""

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import pytest
from structlog.testing import capture_logs

from gateway.connections.closes import CLOSE_GRACE_SECONDS, GOING_AWAY, TOO_OLD, TOO_SLOW, Close
from gateway.connections.connection import (
    EXPIRY_NOTICE_SECONDS,
    MAX_HANDSHAKE_BACKLOG,
    NEVER,
    TICK_SECONDS,
    State,
    StreamConnection,
)
from gateway.connections.delivery import Delivery
from tests.unit.gateway.fakes import (
    BOUNDS,
    FakeConnection,
    FakeKeeper,
    FakeWire,
    give,
    identity,
    message,
)

NOTICE_TICKS = int(EXPIRY_NOTICE_SECONDS / TICK_SECONDS)


class Line(StreamConnection):
    """A transport of one line a message."""

    transport: ClassVar[str] = "line"
    understands = True

    @staticmethod
    def form(delivery: Delivery) -> bytes:
        return delivery.payload + b"\n"

    def received(self, data: bytes) -> None:
        self.ended("client left", b"last words\n")

    def opened(self) -> None:
        self._keeper.wake_at(self, 1.0)

    def wake(self) -> None:
        self.abort("no answer")

    def understands_reconnect(self) -> bool:
        return self.understands

    def tell_to_reconnect(self, close: Close, delay_seconds: float) -> None:
        self.write_control(b"reconnect in %d: %d\n" % (delay_seconds, close.code))

    def gap_notice(self) -> bytes:
        return b"gap\n"

    def say_goodbye(self, close: Close) -> None:
        if self.wire is not None:
            self.wire.write_control(b"bye\n")
            self.wire.close()
            self._keeper.wake_at(self, CLOSE_GRACE_SECONDS)


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
    assert give(opening.line, message(b"one"))
    assert opening.wire.sent == b""


def test_what_came_meanwhile_follows_the_answer_in_order(opening: Rig) -> None:
    give(opening.line, message(b"one"))
    give(opening.line, message(b"two"))
    opening.open()
    give(opening.line, message(b"three"))
    assert opening.wire.sent == b"head\none\ntwo\nthree\n"
    assert opening.line.state is State.OPEN
    assert opening.keeper.wake_in == 1.0


def test_the_backlog_is_bounded_and_its_overflow_is_refused(opening: Rig) -> None:
    taken = [give(opening.line, message(b"x")) for _ in range(MAX_HANDSHAKE_BACKLOG + 1)]
    assert taken == [True] * MAX_HANDSHAKE_BACKLOG + [False]
    opening.open()
    assert opening.wire.sent == b"head\n" + b"x\n" * MAX_HANDSHAKE_BACKLOG


def test_the_backlog_is_bounded_in_bytes_too_and_takes_a_first_message_of_any_length(
    opening: Rig,
) -> None:
    limit = BOUNDS.send_buffer_bytes
    half = b"x" * (limit // 2 - 1)  # a line with its end
    assert [give(opening.line, message(half)) for _ in range(3)] == [True, True, False]
    assert not give(opening.line, message(b""))
    opening.open()
    assert opening.wire.sent == b"head\n" + (half + b"\n") * 2
    other = Rig()
    assert [give(other.line, message(b"x" * 2 * limit)) for _ in range(2)] == [True, False]


def test_a_connection_that_fails_is_cut_off_and_released_under_that_name(rig: Rig) -> None:
    with capture_logs() as entries:
        try:
            raise RuntimeError("a fault of its own")
        except RuntimeError:
            rig.line.failed()
    assert [entry["log_level"] for entry in entries] == ["error"]
    assert rig.wire.aborted
    assert rig.keeper.released == ["failed"]


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
    give(opening.line, message())
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
    assert not give(rig.line, message())
    rig.line.lost()
    assert not give(rig.line, message())
    assert rig.wire.sent == b""


def test_a_wire_that_is_gone_ends_the_connection(rig: Rig) -> None:
    rig.wire.gone = True
    assert not give(rig.line, message())
    assert rig.line.state is State.CLOSING
    assert rig.wire.aborted
    assert rig.keeper.released == ["lost"]


def test_a_message_without_room_is_refused_and_the_connection_lives(rig: Rig) -> None:
    rig.wire.full = True
    assert not give(rig.line, message())
    assert rig.line.takes_messages
    assert (rig.line.state, rig.wire.sent, rig.keeper.released) == (State.OPEN, b"", [])
    rig.wire.full = False
    assert give(rig.line, message())


def test_a_client_that_is_too_slow_is_told_once_behind_its_backlog(rig: Rig) -> None:
    rig.wire.full = True
    rig.line.too_slow()
    rig.line.too_slow()
    assert not give(rig.line, message())
    assert rig.wire.sent == b"bye\n"
    assert rig.line.state is State.CLOSING
    assert not rig.wire.aborted
    assert rig.keeper.released == [TOO_SLOW.reason]


def test_a_goodbye_to_one_who_is_too_slow_has_a_grace_and_no_longer(rig: Rig) -> None:
    rig.line.too_slow()
    assert rig.keeper.wake_in == CLOSE_GRACE_SECONDS
    rig.keeper.wake(rig.line)
    assert rig.wire.aborted
    assert rig.keeper.released == [TOO_SLOW.reason]


def test_with_a_backlog_a_connection_is_watched(rig: Rig) -> None:
    rig.line.backlogged()
    assert rig.keeper.watched == [rig.line]


def test_what_is_unsent_is_counted_by_the_reason_of_the_end(rig: Rig) -> None:
    rig.line.close(GOING_AWAY)
    rig.line.lost(3)
    assert rig.keeper.unsent_messages == [(3, GOING_AWAY.reason)]


def test_messages_that_waited_for_the_handshake_in_vain_are_unsent(opening: Rig) -> None:
    give(opening.line, message())
    opening.line.lost()
    assert opening.keeper.unsent_messages == [(1, "lost")]


def test_where_the_oldest_is_dropped_a_message_takes_its_place_and_is_counted(rig: Rig) -> None:
    rig.keeper.bounds = replace(BOUNDS, drops_oldest=True)
    rig.wire.full, rig.wire.droppable = True, 3
    assert give(rig.line, message(b"newest"))
    assert rig.wire.notices == [b"gap\n"]
    assert rig.keeper.dropped_messages == 3
    assert rig.line.state is State.OPEN
    assert (rig.wire.sent, rig.keeper.released) == (b"newest\n", [])


def test_who_is_told_to_part_still_gets_messages_until_the_grace_ends(rig: Rig) -> None:
    rig.line.part(TOO_OLD, 7.0)
    assert rig.line.state is State.PARTING
    assert rig.wire.take() == b"reconnect in 7: 4000\n"
    assert rig.keeper.ages == [7.0 + CLOSE_GRACE_SECONDS]
    assert rig.keeper.told_to_part == [rig.line]
    assert give(rig.line, message(b"meanwhile"))
    assert rig.wire.take() == b"meanwhile\n"
    assert rig.keeper.released == []
    rig.line.aged()
    assert rig.wire.take() == b"bye\n"
    assert rig.keeper.released == [TOO_OLD.reason]


def test_who_is_parting_already_is_not_told_again(rig: Rig) -> None:
    rig.line.part(TOO_OLD, 7.0)
    rig.wire.take()
    rig.line.part(GOING_AWAY, 1.0)
    assert rig.wire.sent == b""
    assert rig.keeper.ages == [7.0 + CLOSE_GRACE_SECONDS]
    assert rig.line.state is State.PARTING


def test_who_does_not_understand_is_closed_instead(rig: Rig) -> None:
    rig.line.understands = False
    rig.line.part(GOING_AWAY, 7.0)
    assert rig.wire.sent == b"bye\n"
    assert rig.keeper.released == ["node is leaving"]
    assert rig.keeper.told_to_part == []


def test_who_has_no_answer_yet_is_not_told_but_cut_off(opening: Rig) -> None:
    opening.line.part(GOING_AWAY, 7.0)
    opening.open()
    assert opening.wire.aborted
    assert opening.wire.sent == b""
    assert opening.keeper.released == ["node is leaving"]


def test_who_parts_of_its_own_accord_is_released_once_and_closed_no_more(rig: Rig) -> None:
    rig.line.part(TOO_OLD, 7.0)
    rig.wire.take()
    rig.line.received(b"x")
    rig.line.aged()
    rig.line.lost()
    assert rig.wire.sent == b"last words\n"
    assert rig.keeper.released == ["client left"]
    assert rig.keeper.forgotten == 1


def test_at_its_age_a_connection_is_told_to_part_after_the_delay_that_was_drawn(rig: Rig) -> None:
    rig.keeper.delay = 2.0
    rig.line.age_tick = 100
    rig.line.due(99)
    assert rig.wire.sent == b""
    rig.line.due(100)
    assert rig.wire.take() == b"reconnect in 2: 4000\n"
    rig.line.due(101)
    assert rig.line.state is State.PARTING


def test_a_token_that_runs_out_ends_the_connection_at_its_tick(rig: Rig) -> None:
    rig.line.expiry_tick = 1_000
    rig.line.due(999)
    assert rig.line.state is State.OPEN
    rig.line.due(1_000)
    assert rig.keeper.released == ["token expired"]


def test_a_token_runs_out_while_parting_too(rig: Rig) -> None:
    rig.line.part(TOO_OLD, 7.0)
    rig.line.expiry_tick = 10
    rig.line.due(10)
    assert rig.keeper.released == ["token expired"]


def test_a_client_is_warned_once_before_its_token_runs_out() -> None:
    connection = FakeConnection()
    connection.expiry_tick = 1_000
    for tick in range(900 - NOTICE_TICKS, 1_001):
        connection.due(tick)
    assert connection.told == ["warned", "expired"]
    assert connection.warnings == [EXPIRY_NOTICE_SECONDS]


def test_a_warning_that_comes_late_says_what_is_left() -> None:
    connection = FakeConnection()
    connection.expiry_tick = 1_000
    connection.due(1_000 - 8)
    assert connection.warnings == [8 * TICK_SECONDS]


def test_what_is_due_next_is_the_earliest() -> None:
    connection = FakeConnection()
    assert connection.next_tick() == NEVER - NOTICE_TICKS
    connection.expiry_tick = 1_000
    assert connection.next_tick() == 1_000 - NOTICE_TICKS
    connection.warned = True
    assert connection.next_tick() == 1_000
    connection.age_tick = 900
    assert connection.next_tick() == 900
    connection.wake_tick = 800
    assert connection.next_tick() == 800


def test_nothing_is_due_of_a_connection_that_was_released() -> None:
    connection = FakeConnection()
    connection.age_tick = connection.expiry_tick = 10
    connection.wake_tick = 10
    connection.on_wake = lambda: connection.close(GOING_AWAY)
    connection.due(10)
    assert connection.told == []
    assert connection.next_tick() > 1 << 60


def test_the_peers_end_is_answered_with_last_words_once(rig: Rig) -> None:
    rig.line.received(b"x")
    rig.line.received(b"x")
    assert rig.wire.sent == b"last words\n"
    assert rig.wire.closed
    assert rig.keeper.released == ["client left"]


def test_a_peer_that_has_ended_is_cut_off_when_it_does_not_close_in_its_grace(rig: Rig) -> None:
    rig.line.received(b"x")
    assert rig.keeper.wake_in == CLOSE_GRACE_SECONDS
    rig.keeper.wake(rig.line)
    assert rig.wire.aborted


def test_an_end_that_answers_our_goodbye_gets_no_more_words_and_no_more_time(rig: Rig) -> None:
    rig.line.close(GOING_AWAY)
    rig.keeper.wake_in = 1.0  # the rest of the goodbye's grace
    rig.line.received(b"x")
    assert rig.keeper.wake_in == 1.0
    assert rig.wire.sent == b"bye\n"
    assert rig.wire.closed


def test_after_the_socket_is_gone_nothing_touches_it(rig: Rig) -> None:
    rig.line.lost()
    rig.line.close(GOING_AWAY)
    rig.line.abort("late")
    rig.line.ended("late", b"late")
    rig.line.too_slow()
    assert (rig.wire.sent, rig.wire.closed, rig.wire.aborted) == (b"", False, False)
    assert rig.keeper.released == ["lost"]


ENDINGS: dict[str, Callable[[Line], object]] = {
    "close": lambda line: line.close(GOING_AWAY),
    "abort": lambda line: line.abort("aborted"),
    "too slow": lambda line: line.too_slow(),
    "ended": lambda line: line.ended("ended", b""),
    "part": lambda line: line.part(GOING_AWAY, 1.0),
    "age": lambda line: line.aged(),
    "expire": lambda line: line.expired(),
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
