"""A long-poll client that polls now on one node and now on another, always with its cursor."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from gateway.connections.connection import State
from gateway.connections.cursor import read_cursor
from gateway.connections.delivery import Delivery
from gateway.connections.gate import Gate
from gateway.transports.longpoll import PollSessions
from gateway.transports.poll_cursor import MAX_POLL_CURSOR_BYTES, PollCursor, read_poll_cursor
from gateway.transports.poll_session import RESUME_WAIT_SECONDS, ParkedPoll, PollSession
from tests.unit.gateway.fakes import BOUNDS, FakeKeeper, FakeResume, FakeWire, identity

MINUTE_MS = 60_000
START_MS = 36**7


def base36(number: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
    return digits


class Node:
    """A node's sessions; the time of its cursors is set by the test."""

    def __init__(self, now_ms: int = START_MS) -> None:
        self.keeper = FakeKeeper()
        self.now_ms = now_ms
        self._soon: list[Callable[[], None]] = []
        self.sessions = PollSessions(soon=self._soon.append)

    def poll(self, cursor: str | None = None, *, user: str = "alice") -> dict[str, Any]:
        """Poll without a wait, as the way in does; return the answer."""
        self.keeper.cursors = base36(self.now_ms)
        came_with = read_poll_cursor(cursor) if cursor else None
        session = self.sessions.take_up(came_with, identity(user))
        if session is None:
            if came_with is not None and self.sessions.holds(came_with):
                came_with = None
            session = self.sessions.open(identity(user), self.keeper, came_with)
            session.begin(gap=False)
            body = session.poll()
        else:
            body = session.poll(came_with)
        self.session = session
        answer: dict[str, Any] = json.loads(body or session.empty_answer())
        return answer

    def give(self, *offsets: int, topic: str = "t") -> list[bool]:
        """Deliver messages of partition 0, each with its offset for a payload."""
        form = self.session.form
        return [self.session.write(form(logged(offset, topic))) for offset in offsets]

    def end_turn(self) -> None:
        due = self._soon.copy()
        self._soon.clear()
        for call in due:
            call()


def logged(offset: int, topic: str = "t") -> Delivery:
    return Delivery(b"%d" % offset, message_id=f"{topic}{offset}", position=f"{topic}-0-{offset}")


def unlogged(payload: bytes) -> Delivery:
    return Delivery(payload, message_id="pushed")


def data(answer: dict[str, Any]) -> list[str]:
    return [message["data"] for message in answer["messages"]]


def resume_part(answer: dict[str, Any]) -> str:
    _, _, resume = answer["cursor"].partition(",")
    return str(resume)


Roaming = tuple[Node, Node, str]


@pytest.fixture
def roaming() -> Roaming:
    """Two nodes that have a session of the client, who has no message yet, and its cursor."""
    first, second = Node(), Node()
    cursor = second.poll(first.poll()["cursor"])["cursor"]
    return first, second, cursor


def test_a_client_gets_from_the_next_node_what_it_lacks(roaming: Roaming) -> None:
    first, second, cursor = roaming
    first.give(1, 2)
    second.give(1, 2, 3)
    got = first.poll(cursor)
    assert data(got) == ["1", "2"]
    assert data(second.poll(got["cursor"])) == ["3"]


def test_both_sessions_have_the_clients_key() -> None:
    first, second = Node(), Node()
    cursor = first.poll()["cursor"]
    second.poll(cursor)
    assert first.session.key == second.session.key
    assert first.session.name != second.session.name


def test_going_round_loses_and_repeats_nothing() -> None:
    ring = [Node(), Node(), Node()]
    cursor, got = None, []
    for number in range(300):
        node = ring[number % 3]
        answer = node.poll(cursor)
        got += data(answer)
        cursor = answer["cursor"]
        if number >= 3:  # the client has been everywhere
            for each in ring:
                each.give(number * 2, number * 2 + 1)
    assert got == [str(offset) for offset in range(6, 598)]
    assert [node.keeper.released for node in ring] == [[], [], []]


def test_a_late_copy_of_what_another_node_has_answered_is_taken_and_dropped(
    roaming: Roaming,
) -> None:
    first, second, cursor = roaming
    second.give(7)
    got = second.poll(cursor)
    assert data(got) == ["7"]
    assert data(first.poll(got["cursor"])) == []
    assert first.give(7) == [True]
    assert data(first.poll(got["cursor"])) == []
    assert first.give(8) == [True]
    assert data(first.poll(got["cursor"])) == ["8"]


def test_an_answer_that_was_lost_comes_from_the_next_node_too(roaming: Roaming) -> None:
    first, second, cursor = roaming
    first.give(1)
    second.give(1)
    assert data(first.poll(cursor)) == ["1"], "and lost on its way"
    assert data(second.poll(cursor)) == ["1"]
    assert data(second.poll(cursor)) == ["1"], "again and again"
    assert data(first.poll(cursor)) == ["1"]


def test_a_session_that_has_dropped_what_the_client_lacks_is_replaced(
    roaming: Roaming,
) -> None:
    _, second, early = roaming
    second.give(1)
    second.poll(second.poll(early)["cursor"])
    before = second.session
    second.poll(early)
    assert second.session is not before
    assert before.state is State.CLOSED
    assert second.keeper.released == ["replaced"]
    assert second.session.key == before.key


def test_a_session_that_began_later_than_the_clients_last_answer_is_replaced() -> None:
    early, late = Node(), Node(START_MS + MINUTE_MS)
    cursor = early.poll()["cursor"]
    late.poll()
    shared = PollCursor(late.session.key, "elsewhere", 0, resume_part({"cursor": cursor}))
    assert not late.session.continues(shared)


def test_leading_zeros_make_no_time_later() -> None:
    node = Node(START_MS + MINUTE_MS)
    node.poll()
    padded = PollCursor(node.session.key, "elsewhere", 0, "00" + base36(START_MS))
    assert not node.session.continues(padded)


def test_a_time_in_the_future_is_no_ones(roaming: Roaming) -> None:
    first, _, _ = roaming
    for ahead_ms, continues in ((30_000, True), (30_001, False)):
        text = base36(START_MS + ahead_ms)
        future = PollCursor(first.session.key, "elsewhere", 0, text)
        assert first.session.continues(future) is continues


def test_the_time_does_not_pass_what_is_left_in_the_buffer(roaming: Roaming) -> None:
    _, node, cursor = roaming
    node.give(1)
    lost = node.poll(cursor)
    node.give(2)
    node.now_ms += MINUTE_MS
    again = node.poll(cursor)
    assert again == lost
    acknowledged = node.poll(again["cursor"])
    assert data(acknowledged) == ["2"]
    resume = read_cursor(resume_part(acknowledged))
    assert resume is not None
    assert resume.as_of_ms == START_MS + MINUTE_MS


def test_a_poll_that_ends_empty_as_a_message_comes_has_the_time_before() -> None:
    node = Node()
    before = node.poll()
    parked = ParkedPoll(node.session, cors_lines=b"", wait_seconds=5.0)
    wire = FakeWire()
    parked.attach(wire, FakeResume(), last=False)
    node.now_ms += MINUTE_MS
    node.keeper.cursors = base36(node.now_ms)
    node.give(1)
    node.keeper.wake(node.session)
    answer = json.loads(wire.sent.partition(b"\r\n\r\n")[2])
    assert data(answer) == []
    assert resume_part(answer) == resume_part(before)
    node.end_turn()
    assert data(node.poll(answer["cursor"])) == ["1"]


def test_positions_go_with_the_cursor_until_the_window_has_passed() -> None:
    node = Node()
    cursor = node.poll()["cursor"]
    node.give(5)
    node.give(9, topic="other")
    answer = node.poll(cursor)
    assert resume_part(answer) == f"{base36(START_MS)},t-0-5,other-0-9"
    kept = node.poll(answer["cursor"])
    assert resume_part(kept) == f"{base36(START_MS)},t-0-5,other-0-9"
    node.now_ms += int(BOUNDS.resume_seconds * 1_000)
    dropped = node.poll(kept["cursor"])
    assert resume_part(dropped) == base36(node.now_ms)


def test_a_cursor_from_before_forgotten_positions_is_answered_by_no_buffer() -> None:
    node = Node()
    start = node.poll()
    node.give(5)
    node.now_ms += MINUTE_MS
    got = node.poll(start["cursor"])
    node.now_ms += int(BOUNDS.resume_seconds * 1_000) + MINUTE_MS
    later = node.poll(node.poll(got["cursor"])["cursor"])
    assert "-" not in resume_part(later)
    ancient = PollCursor(node.session.key, "elsewhere", 0, resume_part(start))
    assert not node.session.continues(ancient)


def test_a_gap_is_told_at_the_next_node_no_more(roaming: Roaming) -> None:
    first, second, cursor = roaming
    first.session.tell_gap()
    told = first.poll(cursor)
    assert told["gap"]
    assert "gap" not in second.poll(told["cursor"])


def test_a_message_in_no_log_stays_for_a_client_that_comes_from_elsewhere(
    roaming: Roaming,
) -> None:
    first, second, cursor = roaming
    second.session.write(second.session.form(unlogged(b"pushed")))
    second.give(3)
    first.give(3)
    got = first.poll(cursor)
    assert data(got) == ["3"]
    assert data(second.poll(got["cursor"])) == ["pushed"]


def test_another_users_key_opens_a_session_with_a_key_of_its_own() -> None:
    node, elsewhere = Node(), Node()
    cursor = node.poll()["cursor"]
    alices = node.session
    node.poll(cursor, user="mallory")
    assert node.session.key != alices.key
    assert alices.state is State.OPEN
    elsewhere.poll(cursor, user="mallory")
    assert elsewhere.session.user == "mallory"


def test_a_position_in_a_topic_made_anew_is_forgotten() -> None:
    first, second = Node(), Node()
    cursor = first.poll()["cursor"]
    first.give(100)
    answer = second.poll(first.poll(cursor)["cursor"])
    second.session.forget_position(("t", 0))
    assert second.give(0) == [True]
    assert data(second.poll(answer["cursor"])) == ["0"]


class TestFull:
    """A buffer without room, and nobody who polls."""

    def full(self, node: Node) -> PollSession:
        node.poll()
        while all(node.give(*range(100))):
            pass
        return node.session

    def test_the_session_ends_soon_since_its_client_can_resume_elsewhere(self) -> None:
        node = Node()
        session = self.full(node)
        assert node.keeper.wake_in == 1.0
        node.give(1)
        node.keeper.wake(session)
        assert node.keeper.released == ["expired"]

    def test_a_poll_keeps_the_session(self) -> None:
        node = Node()
        session = self.full(node)
        parked = ParkedPoll(session, cors_lines=b"", wait_seconds=5.0)
        node.keeper.cursors = base36(node.now_ms)
        assert session.poll(PollCursor(session.key, session.name, 0, "")) is not None
        session.park(parked, wait_seconds=5.0)
        assert node.keeper.wake_in == 5.0

    def test_a_message_in_no_log_keeps_the_session(self) -> None:
        node = Node()
        node.poll()
        node.session.write(node.session.form(unlogged(b"pushed")))
        while all(node.give(*range(100))):
            pass
        assert node.keeper.wake_in == BOUNDS.poll_grace_seconds

    def test_without_resuming_the_session_has_its_whole_grace(self) -> None:
        node = Node()
        session = node.sessions.open(identity(), node.keeper)
        session.begin(gap=False)
        node.session = session
        while all(node.give(*range(100))):
            pass
        assert node.keeper.wake_in == BOUNDS.poll_grace_seconds


class TestResuming:
    """A session whose missed messages are being asked for."""

    def resuming(self, node: Node) -> PollSession:
        text = f"key.elsewhere.4,{base36(START_MS - MINUTE_MS)},t-0-3"
        cursor = read_poll_cursor(text)
        assert cursor is not None
        resume = read_cursor(cursor.resume)
        assert resume is not None
        session = node.sessions.open(identity(), node.keeper, cursor)
        session.screen = Gate(resume, most_bytes=1_000)
        node.keeper.cursors = session.screen.cursor(node.now_ms)
        session.begin(gap=False)
        node.session = session
        return session

    def park(self, session: PollSession, wait_seconds: float) -> FakeWire:
        wire = FakeWire()
        parked = ParkedPoll(session, cors_lines=b"", wait_seconds=wait_seconds)
        parked.attach(wire, FakeResume(), last=False)
        return wire

    def test_its_answers_have_the_time_that_the_client_came_with(self) -> None:
        node = Node()
        session = self.resuming(node)
        wire = self.park(session, 25.0)
        node.give(4)
        node.end_turn()
        answer = json.loads(wire.sent.partition(b"\r\n\r\n")[2])
        assert data(answer) == ["4"]
        assert resume_part(answer) == f"{base36(START_MS - MINUTE_MS)},t-0-4"
        assert answer["cursor"].startswith("key.")

    def test_a_short_poll_waits_until_it_is_whole(self) -> None:
        node = Node()
        session = self.resuming(node)
        wire = self.park(session, 0)
        assert node.keeper.wake_in == RESUME_WAIT_SECONDS
        session.screen = None
        session.resumed()
        assert data(json.loads(wire.sent.partition(b"\r\n\r\n")[2])) == []

    def test_a_long_poll_goes_on_waiting_when_it_is_whole(self) -> None:
        node = Node()
        session = self.resuming(node)
        wire = self.park(session, 25.0)
        session.screen = None
        session.resumed()
        assert not wire.sent

    def test_replayed_messages_wait_in_the_gate_only_where_the_buffer_is_full(self) -> None:
        node = Node()
        session = self.resuming(node)
        assert session.takes_replay()
        node.give(4, 5, 6)
        assert session.has_backlog()
        assert session.takes_replay()


@pytest.mark.parametrize(
    "text",
    ["", "key", "key.0", "k y.s.0", "key.s.x", "key.s.-1", "key..0", "key.s." + "9" * 19,
     "é.s.0", "key.s.٣", "k" * 33 + ".s.0", "key." + "s" * 25 + ".0", "key.s.0" + "," * 20_000],
)  # fmt: skip
def test_what_no_gateway_has_written_is_no_cursor(text: str) -> None:
    assert read_poll_cursor(text) is None


def test_the_longest_cursor_is_read() -> None:
    head = f"{'k' * 32}.{'s' * 24}.{'9' * 18}"
    resume = "x" * (MAX_POLL_CURSOR_BYTES - len(head) - 1)
    assert read_poll_cursor(f"{head},{resume}") == PollCursor(
        "k" * 32, "s" * 24, int("9" * 18), resume
    )
