"""The door: which sockets it admits, and when it cuts off those that owe it something."""

from __future__ import annotations

from typing import Any, cast

import pytest
import structlog

from gateway.http.door import Door, DoorBounds


class FakeTransport:
    def __init__(self) -> None:
        self.aborted = False
        self.closed = False

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        self.closed = True


class FakeSocket:
    """An accepted socket on which nothing has arrived."""

    def __init__(self, *, unused: bool = True) -> None:
        self.transport = cast("Any", FakeTransport())
        self.unused = unused
        self.shut = False

    def shutdown(self) -> None:
        self.shut = True

    @property
    def cut_off(self) -> bool:
        return bool(self.transport.aborted)

    @property
    def closed(self) -> bool:
        return bool(self.transport.closed)


def door(*, sockets: int | None = None, detached: int = 0) -> Door:
    bounds = DoorBounds(10.0, 1_000, sockets, idle_seconds=75.0)
    return Door(bounds, count_detached=lambda: detached)


def test_a_socket_that_sends_no_head_is_cut_off_at_its_limit_and_not_before() -> None:
    made, early, late = door(), FakeSocket(), FakeSocket()
    assert made.admit(early, 100.0, http_sockets=0)
    assert made.admit(late, 101.0, http_sockets=1)
    made.advance(109.99)
    assert not early.cut_off
    made.advance(110.0)
    assert early.cut_off
    assert not late.cut_off
    made.advance(111.0)
    assert late.cut_off


def test_a_limit_ends_with_the_head_and_the_next_begins_with_the_next_head() -> None:
    made, socket = door(), FakeSocket()
    made.admit(socket, 0.0, http_sockets=0)
    made.satisfied(socket)
    assert not made.expects(socket)
    made.advance(50.0)
    assert not socket.cut_off
    made.expect(socket, 60.0)
    made.advance(69.9)
    assert not socket.cut_off
    made.advance(70.0)
    assert socket.cut_off
    assert not made.expects(socket)


def test_more_bytes_of_a_head_do_not_prolong_its_limit() -> None:
    made, socket = door(), FakeSocket()
    made.expect(socket, 0.0)
    made.expect(socket, 9.0)
    made.advance(10.0)
    assert socket.cut_off


def test_an_idle_socket_is_closed_after_its_time_and_not_cut_off() -> None:
    made, early, late = door(), FakeSocket(), FakeSocket()
    made.rest(early, 100.0)
    made.rest(late, 101.0)
    made.advance(174.99)
    assert not early.closed
    made.advance(175.0)
    assert (early.closed, late.closed) == (True, False)
    made.advance(176.0)
    assert late.closed
    assert not early.cut_off
    assert not late.cut_off


def test_a_socket_is_idle_until_its_next_head_begins_and_anew_after_the_next_answer() -> None:
    made, socket = door(), FakeSocket()
    made.rest(socket, 0.0)
    made.expect(socket, 70.0)
    made.satisfied(socket)
    made.advance(76.0)
    made.rest(socket, 80.0)
    made.advance(154.9)
    assert not socket.closed
    made.advance(155.0)
    assert socket.closed


def test_a_socket_whose_next_head_has_begun_before_its_answer_is_not_idle() -> None:
    made, socket = door(), FakeSocket()
    made.expect(socket, 0.0)
    made.rest(socket, 1.0)
    made.satisfied(socket)
    made.advance(100.0)
    assert not socket.closed
    assert not socket.cut_off


@pytest.mark.parametrize(
    ("http", "detached", "admitted"), [(3, 0, True), (1, 3, False), (4, 0, False)]
)
def test_sockets_count_whether_they_speak_http_or_have_left_it(
    http: int, detached: int, admitted: bool
) -> None:
    made, socket = door(sockets=4, detached=detached), FakeSocket()
    assert made.is_full(http) is not admitted
    assert made.admit(socket, 0.0, http_sockets=http) is admitted
    assert socket.cut_off is not admitted
    assert made.expects(socket) is admitted


def test_without_a_bound_no_number_of_sockets_is_too_large() -> None:
    assert not door(detached=10**6).is_full(10**6)


def test_sockets_that_are_turned_away_are_logged_with_their_number_once_a_second_at_most() -> None:
    made = door(sockets=0)
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            made.admit(FakeSocket(), 0.0, http_sockets=0)
        made.advance(5.0)
        made.admit(FakeSocket(), 5.0, http_sockets=0)
        made.advance(5.5)
        made.advance(6.0)
    assert [(entry["reason"], entry["closed"]) for entry in logs] == [
        ("no descriptors for more clients", 3),
        ("no descriptors for more clients", 1),
    ]


def test_while_a_node_drains_a_socket_that_was_never_used_goes_after_half_a_second() -> None:
    made, unused, used = door(), FakeSocket(), FakeSocket(unused=False)
    for socket in (unused, used):
        made.admit(socket, 0.0, http_sockets=0)
    made.close_unused(0.4)
    assert not unused.shut
    made.close_unused(0.5)
    assert unused.shut
    assert not used.shut
