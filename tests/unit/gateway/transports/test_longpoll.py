"""The long-poll session: what a cursor acknowledges, what it repeats, and how a session ends."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from gateway.connections.closes import GOING_AWAY
from gateway.connections.connection import State
from gateway.connections.identity import Identity
from gateway.transports.longpoll import PollSessions
from gateway.transports.poll_cursor import PollCursor, read_poll_cursor
from gateway.transports.poll_session import ParkedPoll, PollSession
from tests.unit.gateway.fakes import (
    BOUNDS,
    FakeKeeper,
    FakeResume,
    FakeWire,
    give,
    identity,
    message,
)


class Poll:
    """A poll of one client: answered at once, or parked on a socket of its own."""

    def __init__(self, node: "Node", cursor: str | None, wait: float, *, persists: bool) -> None:
        self.wire = FakeWire()
        self.resume = FakeResume()
        self.parked: ParkedPoll | None = None
        self.said_goodbye = False
        came_with = read_poll_cursor(cursor) if cursor else None
        found = node.sessions.take_up(came_with, node.who)
        self.session = found or node.open(gap=bool(cursor))
        body = self.session.poll(came_with if found else None)
        if body is not None or not wait or self.session.state is not State.OPEN:
            self._body: bytes | None = body or self.session.empty_answer()
            self.said_goodbye = self.session.take_goodbye()
            if not self.said_goodbye:
                self.session.await_next_poll()
            return
        self._body = None
        self.parked = ParkedPoll(self.session, cors_lines=b"vary: origin\r\n", wait_seconds=wait)
        self.parked.attach(self.wire, self.resume, last=not persists)

    @property
    def parked_poll(self) -> ParkedPoll:
        assert self.parked is not None, "it was answered at once"
        return self.parked

    @property
    def waits(self) -> bool:
        return self._body is None and not self.wire.sent

    @property
    def answer(self) -> dict[str, Any]:
        """What the client got, once."""
        if self._body is not None:
            return json.loads(self._body)  # type: ignore[no-any-return]
        head, _, body = self.wire.sent.partition(b"\r\n\r\n")
        status, *fields = head.split(b"\r\n")
        assert status == b"HTTP/1.1 200 OK"
        assert fields[-1] == b"content-length: %d" % len(body)
        assert fields[:3] == [
            b"content-type: application/json",
            b"cache-control: no-store",
            b"vary: origin",
        ]
        assert fields[3:-1] == ([b"connection: close"] if self.last else [])
        assert not self.wire.closed, "HTTP closes"
        return json.loads(body)  # type: ignore[no-any-return]

    @property
    def last(self) -> bool:
        """Whether the answer was its connection's last, and said so."""
        assert self.resume.early is not None
        return self.resume.last

    @property
    def cursor(self) -> str:
        cursor: str = self.answer["cursor"]
        return cursor

    @property
    def data(self) -> list[str]:
        return [form["data"] for form in self.answer["messages"]]

    @property
    def gap(self) -> bool:
        return bool(self.answer.get("gap", False))


class Node:
    """A node's sessions, of which one user polls."""

    def __init__(self) -> None:
        self.who = identity()
        self.keeper = FakeKeeper()
        self._soon: list[Callable[[], None]] = []
        self.sessions = PollSessions(soon=self._soon.append)

    def open(self, *, gap: bool) -> PollSession:
        session = self.sessions.open(self.who, self.keeper)
        session.begin(gap=gap)
        return session

    def take_up(self, cursor: str, who: Identity | None = None) -> PollSession | None:
        return self.sessions.take_up(read_poll_cursor(cursor), who or self.who)

    def poll(self, cursor: str | None = None, *, wait: float = 25.0, persists: bool = True) -> Poll:
        return Poll(self, cursor, wait, persists=persists)

    def push(self, session: PollSession, *payloads: str) -> list[bool]:
        """Deliver within one turn of the event loop."""
        taken = [give(session, message(text, f"id-{text[:9]}")) for text in payloads]
        self.end_turn()
        return taken

    def end_turn(self) -> None:
        due = self._soon.copy()
        self._soon.clear()
        for call in due:
            call()


@pytest.fixture
def node() -> Node:
    return Node()


def test_the_first_poll_opens_a_session_and_waits(node: Node) -> None:
    poll = node.poll(wait=12.0)
    assert poll.waits
    assert node.keeper.wake_in == 12.0
    assert poll.session.state is State.OPEN


def test_a_poll_that_does_not_wait_is_answered_at_once(node: Node) -> None:
    poll = node.poll(wait=0)
    assert poll.answer == {"cursor": poll.cursor, "messages": []}
    assert node.keeper.wake_in == BOUNDS.poll_grace_seconds


def test_a_message_ends_the_wait(node: Node) -> None:
    poll = node.poll()
    node.push(poll.session, "one")
    assert poll.answer["messages"] == [{"id": "id-one", "type": None, "data": "one"}]
    assert not poll.gap
    assert poll.resume.early == b""
    assert node.keeper.wake_in == BOUNDS.poll_grace_seconds


def test_all_that_comes_in_one_turn_goes_in_one_answer(node: Node) -> None:
    poll = node.poll()
    node.push(poll.session, "one", "two", "three")
    assert poll.data == ["one", "two", "three"]


def test_what_comes_between_polls_waits_for_the_next(node: Node) -> None:
    first = node.poll(wait=0)
    node.push(first.session, "one", "two")
    assert node.poll(first.cursor).data == ["one", "two"]


def test_a_message_waits_only_where_no_poll_does(node: Node) -> None:
    first = node.poll()
    backlogs = [first.session.has_backlog()]
    give(first.session, message("one"))
    backlogs.append(first.session.has_backlog())  # the answer is due in this turn
    node.end_turn()
    node.push(first.session, "two")
    backlogs.append(first.session.has_backlog())
    assert backlogs == [False, False, True]


def test_the_end_of_the_wait_is_an_empty_list(node: Node) -> None:
    poll = node.poll()
    node.keeper.wake(poll.session)
    assert poll.answer == {"cursor": poll.cursor, "messages": []}
    assert node.keeper.wake_in == BOUNDS.poll_grace_seconds


def test_a_cursor_acknowledges_all_before_it(node: Node) -> None:
    first = node.poll()
    node.push(first.session, "one", "two")
    second = node.poll(first.cursor)
    assert second.waits
    node.push(first.session, "three")
    assert second.data == ["three"]
    assert second.cursor != first.cursor


def test_the_same_cursor_again_gives_the_same_answer_again(node: Node) -> None:
    start = node.poll(wait=0)
    node.push(start.session, "one", "two")
    answers = [node.poll(start.cursor).answer for _ in range(3)]
    assert answers == [answers[0]] * 3
    assert len(answers[0]["messages"]) == 2


def test_the_same_answer_again_has_none_of_what_came_since(node: Node) -> None:
    start = node.poll(wait=0)
    node.push(start.session, "one")
    answer = node.poll(start.cursor).answer
    node.push(start.session, "two")
    again = node.poll(start.cursor)
    assert again.answer == answer
    assert node.poll(again.cursor).data == ["two"]


def test_nothing_is_lost_or_repeated_over_many_polls(node: Node) -> None:
    poll = node.poll()
    session, got = poll.session, []
    for number in range(50):
        node.push(session, *(f"{number}-{part}" for part in range(number % 4 + 1)))
        got += poll.data
        poll = node.poll(poll.cursor)
    assert got == [f"{number}-{part}" for number in range(50) for part in range(number % 4 + 1)]
    assert poll.session is session


def test_a_second_poll_ends_the_first_with_an_empty_list(node: Node) -> None:
    start = node.poll(wait=0)
    first = node.poll(start.cursor)
    second = node.poll(start.cursor)
    assert first.answer == {"cursor": start.cursor, "messages": []}
    assert first.resume.early == b""
    assert second.waits
    node.push(start.session, "one")
    assert second.data == ["one"]


def test_a_second_poll_in_the_turn_of_a_message_gets_the_message(node: Node) -> None:
    start = node.poll(wait=0)
    first = node.poll(start.cursor)
    give(start.session, message("one"))
    second = node.poll(start.cursor)
    node.end_turn()
    assert (first.data, second.data) == ([], ["one"])


def test_a_client_that_goes_away_while_it_waits_loses_nothing(node: Node) -> None:
    start = node.poll(wait=0)
    poll = node.poll(start.cursor)
    assert poll.parked is not None
    poll.parked.lost()
    assert node.keeper.wake_in == BOUNDS.poll_grace_seconds
    node.push(start.session, "one")
    assert poll.wire.sent == b""
    assert node.poll(start.cursor).data == ["one"]


def test_an_answer_that_the_wire_refused_is_given_again(node: Node) -> None:
    start = node.poll(wait=0)
    poll = node.poll(start.cursor)
    poll.wire.gone = True
    node.push(start.session, "one")
    assert poll.resume.early is None
    assert poll.wire.aborted
    assert node.poll(start.cursor).data == ["one"]


def test_the_late_end_of_a_socket_does_not_disturb_the_next_poll(node: Node) -> None:
    start = node.poll(wait=0)
    first = node.poll(start.cursor)
    second = node.poll(start.cursor)
    assert first.parked is not None
    first.parked.lost()
    node.push(start.session, "one")
    assert second.data == ["one"]


def test_what_does_not_fit_the_buffer_is_refused_and_no_gap(node: Node) -> None:
    start = node.poll(wait=0)
    taken = node.push(start.session, *"a" * 200)
    room = taken.count(True)
    assert taken == [True] * room + [False] * (200 - room)
    answer = node.poll(start.cursor)
    assert not answer.gap
    assert answer.data == ["a"] * room
    assert len(answer.wire.sent) <= BOUNDS.poll_buffer_bytes
    again = node.poll(start.cursor)
    assert again.answer == answer.answer


def test_a_gap_is_told_once_it_was_acknowledged_no_more(node: Node) -> None:
    told = node.poll("unknown.0", wait=0)
    assert told.gap
    assert node.poll("unknown.0", wait=0).gap, "in another session"
    node_after = node.poll(told.cursor, wait=0)
    assert node_after.answer == {"cursor": told.cursor, "messages": []}


def test_an_acknowledged_message_makes_room(node: Node) -> None:
    start = node.poll(wait=0)
    room = node.push(start.session, *"a" * 200).count(True)
    told = node.poll(start.cursor)
    node.poll(told.cursor, wait=0)
    assert node.push(start.session, *"a" * 200).count(True) == room


def test_an_empty_buffer_takes_a_message_of_any_length(node: Node) -> None:
    start = node.poll(wait=0)
    assert node.push(start.session, "x" * 10_000, "y") == [True, False]
    told = node.poll(start.cursor, wait=0)
    assert told.data == ["x" * 10_000]
    assert node.push(start.session, "y") == [False]
    node.poll(told.cursor, wait=0)
    assert node.push(start.session, "y") == [True]


def test_a_gap_alone_is_told_again_to_the_same_cursor(node: Node) -> None:
    start = node.open(gap=True)
    cursor = f"{start.key}.{start.name}.0"
    answer = node.poll(cursor, wait=0).answer
    assert answer["gap"]
    assert node.poll(cursor, wait=0).answer == answer


def test_what_a_session_has_not_answered_is_unsent_at_its_end(node: Node) -> None:
    start = node.poll("unknown.0", wait=0)
    node.push(start.session, "one")
    node.poll(start.cursor, wait=0)
    node.push(start.session, "two", "three")
    start.session.close(GOING_AWAY)
    start.session.close(GOING_AWAY)
    assert node.keeper.unsent_messages == [(2, GOING_AWAY.reason)]
    assert len(start.session._buffer) == 0, "a session that has ended holds no message"


def test_a_token_of_another_device_does_not_speak_for_a_session(node: Node) -> None:
    start = node.poll(wait=0)
    other = Identity(node.who.user, "another device", node.who.expires_at)
    assert start.session.belongs_to(node.who)
    assert not start.session.belongs_to(other)
    assert node.take_up(start.cursor, other) is None


def test_a_later_token_of_the_same_user_and_device_speaks_for_a_session(node: Node) -> None:
    start = node.poll(wait=0)
    later = Identity(node.who.user, node.who.device, node.who.expires_at + 600)
    assert node.take_up(start.cursor, later) is start.session


@pytest.mark.parametrize(
    "cursor",
    ["", ".", "x", "x.0", "..", ".0", "{key}", "{key}.", "{key}.x", "{key}.-1", "{key}.9",
     "{key}. 0", "{key}.0 ", "{key}.1e0", "{key}.٠", "{key}." + "9" * 5_000, "\x00", "{key}.0.0"],
)  # fmt: skip
def test_an_unknown_cursor_gives_a_new_session_and_a_gap(node: Node, cursor: str) -> None:
    known = node.poll(wait=0)
    given = cursor.replace("{key}", known.session.key)
    assert node.take_up(given) is None
    if given:
        poll = node.poll(given)
        assert poll.session is not known.session
        assert (poll.gap, poll.data) == (True, [])
        assert node.poll(poll.cursor).waits


def test_an_acknowledged_cursor_is_unknown(node: Node) -> None:
    start = node.poll(wait=0)
    node.push(start.session, "one")
    first = node.poll(start.cursor)
    node.push(start.session, "two")
    node.poll(first.cursor)
    assert node.take_up(start.cursor) is None


def test_the_cursor_of_another_user_opens_nothing_of_theirs(node: Node) -> None:
    theirs = node.poll(wait=0)
    assert node.take_up(theirs.cursor, identity("mallory")) is None
    assert node.take_up(theirs.cursor) is theirs.session


def test_cursors_can_not_be_guessed(node: Node) -> None:
    keys = {node.poll(wait=0).session.key for _ in range(100)}
    assert len(keys) == 100
    assert min(map(len, keys)) >= 12


def test_a_session_that_nobody_polls_ends_after_its_grace(node: Node) -> None:
    poll = node.poll(wait=0)
    assert node.keeper.wake_in == BOUNDS.poll_grace_seconds
    node.keeper.wake(poll.session)
    assert poll.session.state is State.CLOSED
    assert node.keeper.released == ["expired"]
    assert node.keeper.forgotten == 1
    assert node.poll(poll.cursor).gap


def test_a_close_answers_the_parked_poll_and_ends_the_session(node: Node) -> None:
    poll = node.poll()
    poll.session.close(GOING_AWAY)
    poll.session.close(GOING_AWAY)
    assert poll.answer == {"cursor": poll.cursor, "messages": []}
    assert poll.session.state is State.CLOSED
    assert node.keeper.released == ["node is leaving"]
    assert node.keeper.forgotten == 1
    assert node.keeper.wake_in is None
    assert node.take_up(poll.cursor) is None


def test_a_close_is_the_last_answer_of_its_connection(node: Node) -> None:
    poll = node.poll()
    poll.session.close(GOING_AWAY)
    assert poll.last
    assert not poll.answer["messages"]


def test_a_session_that_is_aborted_is_over_and_its_poll_gets_no_answer(node: Node) -> None:
    poll = node.poll()
    give(poll.session, message("one"))
    poll.session.abort("failed")
    node.end_turn()
    assert poll.wire.aborted
    assert poll.wire.sent == b""
    assert poll.session.state is State.CLOSED
    assert node.keeper.released == ["failed"]
    assert not node.sessions.holds(PollCursor(poll.session.key, poll.session.name, 0, ""))


def test_a_session_that_is_to_part_is_answered_at_once_and_over(node: Node) -> None:
    poll = node.poll()
    give(poll.session, message("one"))
    poll.session.part(GOING_AWAY, 5.0)
    assert (poll.data, poll.last) == (["one"], True)
    assert node.keeper.released == ["node is leaving"]
    assert node.take_up(poll.cursor) is None


@pytest.mark.parametrize("texts", [[], ["two"], ["two", "three"]])
def test_a_session_that_is_to_part_between_two_polls_ends_with_its_next_answer(
    node: Node, texts: list[str]
) -> None:
    first = node.poll()
    node.push(first.session, "one")
    first.session.part(GOING_AWAY, 5.0)
    assert first.session.state is State.PARTING
    assert node.keeper.released == []
    for text in texts:
        give(first.session, message(text))
    last = node.poll(first.cursor)
    assert (last.data, last.said_goodbye) == (texts, True)
    assert node.keeper.released == ["node is leaving"]
    assert node.take_up(last.cursor) is None
    assert node.keeper.unsent_messages == []


def test_a_session_that_is_to_part_repeats_an_answer_before_its_last(node: Node) -> None:
    first = node.poll(wait=0)
    give(first.session, message("one"))
    answered = node.poll(first.cursor)
    give(first.session, message("two"))
    first.session.part(GOING_AWAY, 5.0)
    again = node.poll(first.cursor)
    assert (again.data, again.said_goodbye) == (["one"], False)
    last = node.poll(again.cursor)
    assert (last.data, last.said_goodbye) == (["two"], True)
    assert answered.data == ["one"]


def test_a_session_that_is_to_part_and_is_not_polled_ends_with_its_grace(node: Node) -> None:
    poll = node.poll(wait=0)
    poll.session.part(GOING_AWAY, 5.0)
    assert node.keeper.wake_in == BOUNDS.poll_grace_seconds
    node.keeper.wake(poll.session)
    assert poll.session.state is State.CLOSED


def test_without_keep_alive_an_answer_is_the_last_and_the_session_lives_on(node: Node) -> None:
    poll = node.poll(persists=False)
    node.push(poll.session, "one")
    assert (poll.data, poll.last) == (["one"], True)
    again = node.poll(poll.cursor)
    assert again.waits
    node.push(again.session, "two")
    assert (again.data, again.last) == (["two"], False)
    assert node.keeper.released == []


def test_what_came_behind_a_last_poll_is_nobodys(node: Node) -> None:
    poll = node.poll(persists=False)
    assert poll.parked is not None
    poll.parked.received(b"GET /poll HTTP/1.1\r\n")
    node.push(poll.session, "one")
    assert poll.last, "HTTP discards it"


def test_an_age_ends_no_session_and_disturbs_no_poll_that_waits(node: Node) -> None:
    poll = node.poll()
    poll.session.aged()
    assert poll.waits
    assert poll.session.state is State.OPEN
    node.push(poll.session, "one")
    assert poll.data == ["one"]
    assert not poll.last
    assert poll.session.take_move()


def test_a_session_that_moved_has_its_age_drawn_again(node: Node) -> None:
    session = node.poll(wait=0).session
    session.aged()
    assert session.take_move()
    assert not session.take_move()
    assert node.keeper.ages == [None]


def test_a_token_that_runs_out_answers_the_parked_poll_and_keeps_the_session(node: Node) -> None:
    poll = node.poll()
    poll.session.expired()
    assert poll.answer == {"cursor": poll.cursor, "messages": []}
    assert not poll.last
    assert node.keeper.released == []
    assert node.keeper.wake_in == BOUNDS.poll_grace_seconds
    node.push(poll.session, "meanwhile")
    assert node.poll(poll.cursor).data == ["meanwhile"]


def test_a_token_that_runs_out_between_polls_changes_nothing(node: Node) -> None:
    start = node.poll(wait=0)
    start.session.expired()
    assert start.session.state is State.OPEN
    assert node.poll(start.cursor).waits


def test_a_cursor_of_a_session_that_is_here_is_known_whoever_asks(node: Node) -> None:
    start = node.poll(wait=0)
    cursors = [read_poll_cursor(start.cursor), read_poll_cursor("another.session.0")]
    assert [node.sessions.holds(each) for each in cursors if each] == [True, False]
    node.keeper.wake(start.session)
    assert [node.sessions.holds(each) for each in cursors if each] == [False, False]


def test_a_client_that_does_not_read_its_answers_is_cut_off_and_may_come_again(node: Node) -> None:
    start = node.poll(wait=0)
    poll = node.poll(start.cursor)
    assert poll.parked is not None
    poll.wire.full = True
    node.push(start.session, "one")
    assert poll.wire.aborted
    assert (poll.wire.sent, poll.resume.early) == (b"", None)
    assert node.poll(start.cursor).data == ["one"]


def test_no_answer_is_longer_than_is_said(node: Node) -> None:
    start = node.poll(wait=0)
    node.push(start.session, *(str(number) for number in range(300)))
    poll = node.poll(start.cursor)
    assert len(json.dumps(poll.answer)) <= start.session.most_answer_bytes


def test_a_close_takes_along_what_came_in_the_same_turn(node: Node) -> None:
    poll = node.poll()
    give(poll.session, message("one"))
    poll.session.close(GOING_AWAY)
    node.end_turn()
    assert poll.data == ["one"]


def test_what_is_sent_behind_a_parked_poll_is_given_back_with_the_socket(node: Node) -> None:
    poll = node.poll()
    assert poll.parked is not None
    poll.parked.received(b"GET /poll ")
    poll.parked.received(b"HTTP/1.1\r\n")
    node.push(poll.session, "one")
    assert poll.resume.early == b"GET /poll HTTP/1.1\r\n"


def test_a_flood_behind_a_parked_poll_is_cut_off(node: Node) -> None:
    poll = node.poll()
    assert poll.parked is not None
    for _ in range(20):
        poll.parked.received(b"x" * 1_024)
    assert poll.wire.aborted
    node.push(poll.session, "one")
    assert poll.wire.sent == b""
    assert poll.session.state is State.OPEN
    assert node.keeper.wake_in == BOUNDS.poll_grace_seconds


def test_a_client_that_vanishes_while_its_poll_waits_has_a_shorter_grace(node: Node) -> None:
    poll = node.poll()
    assert poll.parked is not None
    poll.parked.unheard()
    poll.parked.lost()
    assert node.keeper.wake_in == BOUNDS.poll_vanished_seconds
    node.push(poll.session, "one")
    assert node.poll(f"{poll.session.key}.{poll.session.name}.0").data == ["one"], (
        "it may come again on another network"
    )
    assert node.keeper.wake_in == BOUNDS.poll_grace_seconds


def test_a_client_that_vanished_before_its_wait_ended_has_the_rest_of_that_grace(
    node: Node,
) -> None:
    poll = node.poll()
    node.keeper.wake(poll.session)
    assert node.keeper.wake_in == BOUNDS.poll_grace_seconds
    poll.parked_poll.unheard()
    rest = BOUNDS.poll_vanished_seconds - BOUNDS.heartbeat_timeout_seconds
    assert node.keeper.wake_in == rest
    node.keeper.wake(poll.session)
    assert node.keeper.released == ["expired"]
    poll.parked_poll.unheard()
    assert node.keeper.wake_in is None, "an ended session has no clock"


def test_a_client_whose_messages_got_lost_has_the_whole_grace(node: Node) -> None:
    poll = node.poll()
    node.push(poll.session, "one")
    poll.parked_poll.unheard()
    assert node.keeper.wake_in == BOUNDS.poll_grace_seconds


def test_an_old_socket_that_vanishes_does_not_touch_a_newer_poll(node: Node) -> None:
    first = node.poll()
    node.keeper.wake(first.session)
    second = node.poll(first.cursor, wait=20)
    first.parked_poll.unheard()
    assert second.waits
    assert node.keeper.wake_in == 20
    node.push(first.session, "one")
    first.parked_poll.unheard()
    assert node.keeper.wake_in == BOUNDS.poll_grace_seconds


def test_hostile_payloads_come_back_whole(node: Node) -> None:
    payloads = ["\r\n\r\n", "\x00", "\u2028\u2029", "\ufeffbom", '"]}', "😀", "\\u0000", ""]
    poll = node.poll()
    node.push(poll.session, *payloads)
    assert poll.data == payloads


def test_a_payload_that_is_no_text_is_base64(node: Node) -> None:
    poll = node.poll()
    give(poll.session, message(b"\xff\x00"))
    node.end_turn()
    assert poll.answer["messages"] == [
        {"id": "m-1", "type": None, "data": "/wA=", "encoding": "base64"}
    ]
