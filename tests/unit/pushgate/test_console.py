"""The console of `pushgate dev`: one readable line each, at a bounded rate, with the cure."""

from __future__ import annotations

import pytest
from starlette.exceptions import HTTPException

from gateway import metrics
from processor.reading.kafka import Record, TopicPartition
from processor.reading.message import Message, Rejection
from processor.reading.progress import Progress
from pushgate.console import Console, Lines
from pushgate.settings import DevSettings
from registry.message import Envelope, Push, RejectedRecord


class Screen:
    """A console whose clock is moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.written: list[str] = []
        self.console = Console(DevSettings(), self.written.append, clock=lambda: self.now)

    @property
    def lines(self) -> list[str]:
        """The lines without their times of day."""
        return [" ".join(line.split()[1:]) for line in self.written]


def message(user: str = "bob", *, device: str | None = None) -> Message:
    progress = Progress(TopicPartition("push", 0), lane=0)
    progress.begin(7, size=0, timestamp_ms=0)
    push = Push(user=user, data=b"", id="push-0-7", device=device)
    return Message(Envelope(push=push, published_ms=0, ttl_seconds=5), progress, 7)


def rejection(reason: str, detail: str) -> Rejection:
    record = Record("push", 3, 21, 0, 0, b"", b"", None, 0, 0, [])
    progress = Progress(TopicPartition("push", 3), lane=0)
    return Rejection(progress, record, RejectedRecord(reason, detail), 0)


def test_each_outcome_but_delivered_has_a_line_with_the_cure() -> None:
    screen = Screen()
    delivered, failed, expired = message(), message(), message()
    delivered.took = 1
    failed.failure = "overloaded"
    expired.expired = True
    screen.console.settled([message(), delivered, failed, expired])
    screen.console.rejected([rejection("push-ttl", "whole seconds, 0 or more")])
    assert screen.lines == [
        "offline push-0-7 for bob: no connection of this user; pushgate listen bob is one",
        "failed push-0-7 for bob: overloaded; the client does not read; "
        "PUSHGATE_OVERLOADED_SECONDS is how long it may",
        "expired push-0-7 for bob: older than its push-ttl of 5 s",
        "rejected push-3-21: push-ttl: whole seconds, 0 or more: kept in push.dead",
    ]


def test_a_message_for_a_device_that_is_not_here_names_the_device() -> None:
    screen = Screen()
    screen.console.settled([message(device="phone")])
    assert screen.lines[0].endswith("no connection of the device 'phone', whose token names it")


@pytest.mark.parametrize(
    ("status", "reason", "cure"),
    [
        (401, "token refused: expired 12 s ago", "pushgate token USER prints a good one"),
        (403, "this origin is not allowed", "allow the page's origin with PUSHGATE_ORIGINS"),
        (503, "full", "PUSHGATE_MAX_CONNECTIONS"),
        (503, "too many connections of this user", "PUSHGATE_MAX_CONNECTIONS_PER_USER"),
        (503, "not taking connections now", "the client tries again"),
    ],
)
def test_a_refused_client_has_a_line_with_the_reason_and_the_setting(
    status: int, reason: str, cure: str
) -> None:
    screen = Screen()
    screen.console.refused(HTTPException(status, reason))
    assert screen.lines == [f"refused {status} {reason}: {cure}"]


def test_a_request_that_is_no_clients_has_none() -> None:
    screen = Screen()
    screen.console.refused(HTTPException(404, "Not Found"))
    assert screen.lines == []


def test_gaps_are_told_with_their_number() -> None:
    screen = Screen()
    screen.console.advance()
    assert screen.lines == []
    metrics.GAPS.inc(2)
    screen.console.advance()
    assert screen.lines[0].startswith("gap clients told that messages may be missing: 2: ")
    assert "PUSHGATE_RESUME_SECONDS (120)" in screen.lines[0]


def test_a_flood_of_a_kind_is_two_lines_a_second_and_holds_no_other_kind_back() -> None:
    written: list[str] = []
    lines = Lines(written.append)
    for count in range(1_000):
        lines.tell("offline", f"message {count}", now=count / 2_000)
    lines.tell("rejected", "one", now=0.5)
    lines.advance(0.9)
    assert [line.split() for line in written] == [
        ["offline", "message", "0"],
        ["rejected", "one"],
    ]
    lines.advance(1.5)
    assert written[2:] == ["offline      999 more within a second"]
    lines.tell("offline", "again", now=1.6)
    assert written[3:] == ["offline      again"]


def test_a_name_that_a_publisher_chose_takes_nothing_over() -> None:
    screen = Screen()
    screen.console.settled([message("\u202e\u200b" + "x" * 1_000)])
    assert len(screen.written[0]) < 500  # both parts of the line are cut
    assert screen.written[0].isprintable()
