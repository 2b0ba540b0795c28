"""What is wrong is found, and what the rules of publishing allow is not called wrong."""

from __future__ import annotations

from typing import Any

import pytest

from tests.drill.owed import Published, Received, Session, wrongs


def message(number: int, lane: str = "a", **fields: Any) -> Published:
    return Published(number, "alice", lane, published_ms=1_000 * number, **fields)


def client(*sessions: list[Published], resumes: bool = True, **fields: Any) -> Received:
    """Give a client of alice that was there before message 0, and what each connection brought."""
    device = fields.pop("device", None)
    made = Received("c", "alice", device, resumes, owed_from=0, **fields)
    made.sessions = [Session(0, payloads=[each.payload for each in got]) for got in sessions]
    return made


def found(published: list[Published], received: Received) -> list[str]:
    return [what.removeprefix("c: ") for what in wrongs(published, [received])]


PLAIN = [message(number) for number in range(4)]


def test_all_once_and_in_order_over_several_connections_is_right() -> None:
    assert found(PLAIN, client(PLAIN[:1], [], PLAIN[1:])) == []


def test_lanes_have_an_order_each() -> None:
    first, second = message(0, "a"), message(1, "b")
    assert found([first, second], client([second, first])) == []


@pytest.mark.parametrize(
    ("sessions", "wrong"),
    [
        ([PLAIN[:2], PLAIN[3:]], "message 2 (a) is missing"),
        ([PLAIN[:2], PLAIN[1:]], "message 1 (a) came twice"),
        ([[PLAIN[0], PLAIN[2]], [PLAIN[1], PLAIN[3]]], "message 1 (a) came behind 2"),
    ],
    ids=["lost", "repeated", "disordered"],
)
def test_a_message_lost_repeated_or_out_of_order_is_found(
    sessions: list[list[Published]], wrong: str
) -> None:
    assert found(PLAIN, client(*sessions)) == [wrong]


def test_a_gap_is_wrong_though_nothing_is_missing() -> None:
    received = client(PLAIN)
    received.sessions[0].gaps = 1
    assert found(PLAIN, received) == ["1 gaps told where nothing was missing"]


def test_what_was_published_before_a_client_is_neither_owed_nor_wrong() -> None:
    received = client(PLAIN[1:])
    received.owed_from = 2
    assert found(PLAIN, received) == []
    received.sessions[0].payloads = [each.payload for each in PLAIN[2:]]
    assert found(PLAIN, received) == []


def test_messages_of_others_are_found() -> None:
    phones = message(0, device="phone")
    assert found([phones], client([phones], device="tablet")) == [
        "message 0 (a, device phone) is another's"
    ]
    assert found([phones], client([phones], device="phone")) == []
    assert found([phones], client([], device="phone")) == ["message 0 (a, device phone) is missing"]
    assert found([], client([phones])) == ["b'alice a 0' was never published"]


def test_a_message_that_a_newer_one_replaces_may_be_missing_and_the_newest_may_not() -> None:
    published = [message(number, collapse_key="k") for number in range(3)]
    assert found(published, client(published[2:])) == []
    assert found(published, client(published)) == []
    assert found(published, client(published[:2])) == ["message 2 (a, key k) is missing"]


def test_collapse_keys_are_of_a_lane_and_a_device() -> None:
    published = [
        message(0, collapse_key="k"),
        message(1, "b", collapse_key="k"),
        message(2, collapse_key="k", device="phone"),
    ]
    received = client(published[1:], device="phone")
    assert found(published, received) == ["message 0 (a, key k) is missing"]


def test_a_short_ttl_may_run_out_and_a_long_one_does_not() -> None:
    published = [message(0, ttl_seconds=1), message(1, ttl_seconds=600)]
    assert found(published, client([])) == ["message 1 (a, ttl 600) is missing"]


def test_what_comes_on_a_connection_that_began_after_its_ttl_is_found() -> None:
    published = [message(0, ttl_seconds=1)]
    received = client(published)
    received.sessions[0].began_ms = 1_000
    assert found(published, received) == []
    received.sessions[0].began_ms = 1_001
    assert found(published, received) == ["message 0 (a, ttl 1) came 1 ms after its TTL"]


LATE = "message 0 (a, ttl 1) came {} ms after its TTL"


@pytest.mark.parametrize(
    ("connections", "wrong"),
    [
        ([("a", 900), ("a", 31_000)], None),
        ([("a", 900), ("a", 31_001)], LATE.format(30_001)),
        ([("a", 900), ("a", 31_000), ("a", 61_000)], None),
        ([("a", 900), ("b", 31_000), ("a", 61_000)], LATE.format(60_000)),
        ([("b", 900), ("a", 1_500)], LATE.format(500)),
        ([("a", 1_001)], LATE.format(1)),
    ],
    ids=[
        "a session holds it",
        "for no longer than a session lives",
        "again, where an answer was lost",
        "not where the client left the session alone",
        "not at a node that it came to later",
        "not in a session that began later",
    ],
)
def test_a_poll_session_may_hold_a_message_beyond_its_ttl_for_as_long_as_it_lives(
    connections: list[tuple[str, int]], wrong: str | None
) -> None:
    published = [message(0, ttl_seconds=1)]
    received = client(is_polling=True)
    received.sessions = [Session(began_ms, node) for node, began_ms in connections]
    received.sessions[-1].payloads = [published[0].payload]
    assert found(published, received) == ([] if wrong is None else [wrong])


def test_a_ttl_of_0_is_owed_to_a_connection_that_was_there_and_stays() -> None:
    received = client([])
    published = [message(0, ttl_seconds=0, present=tuple(received.sessions))]
    assert found(published, received) == ["message 0 (a, ttl 0) is missing"]
    received.sessions[0].has_ended = True
    assert found(published, received) == []
    assert found([message(0, ttl_seconds=0)], client([])) == []


def test_a_plain_connection_may_miss_and_gets_nothing_twice_or_out_of_order() -> None:
    assert found(PLAIN, client(PLAIN[2:], PLAIN[:3], resumes=False)) == []
    assert found(PLAIN, client([PLAIN[1], PLAIN[0]], resumes=False)) == [
        "message 0 (a) came behind 1"
    ]
    assert found(PLAIN, client([PLAIN[1], PLAIN[1]], resumes=False)) == ["message 1 (a) came twice"]
