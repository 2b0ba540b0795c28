"""What waits for a peer that does not read: whole writes, in order, and none of them torn."""

import random
from itertools import pairwise

import pytest

from gateway.wires.backlog import Backlog, Control

NOTICE = b"<gap>"
NOTHING = b""


def filled(*writes: bytes, begun: bool = False) -> Backlog:
    backlog = Backlog(writes[0], begun=begun)
    for write in writes[1:]:
        backlog.append(write)
    return backlog


def drain(backlog: Backlog, step: int = 1 << 30) -> list[bytes]:
    """Send all, at most `step` bytes at once; return the pieces."""
    pieces: list[bytes] = []
    while backlog:
        piece = bytes(backlog.first()[:step])
        pieces.append(piece)
        backlog.sent(len(piece))
    assert backlog.size == 0
    return pieces


def test_writes_leave_in_the_order_in_which_they_came() -> None:
    assert drain(filled(b"one", b"two", b"three")) == [b"one", b"two", b"three"]


@pytest.mark.parametrize("step", [1, 2, 3, 4, 100])
def test_writes_may_leave_in_parts(step: int) -> None:
    assert b"".join(drain(filled(b"one", b"two", b"three"), step)) == b"onetwothree"


def test_the_size_is_what_waits() -> None:
    backlog = filled(b"one", b"two")
    assert backlog.size == 6
    backlog.sent(2)
    assert (backlog.size, backlog.first()) == (4, b"e")
    backlog.sent(1)
    assert (backlog.size, backlog.first()) == (3, b"two")
    backlog.sent(3)
    assert backlog.size == 0
    assert not backlog


def test_the_oldest_are_dropped_until_the_rest_fits() -> None:
    backlog = filled(b"aaaa", b"bbbb", b"cccc", b"dddd")
    assert backlog.drop_oldest(8, NOTHING) == 2
    assert backlog.size == 8
    assert drain(backlog) == [b"cccc", b"dddd"]


def test_no_more_are_dropped_than_must_be() -> None:
    backlog = filled(b"aaaa", b"bbbb", b"cccc")
    assert backlog.drop_oldest(11, NOTHING) == 1
    assert drain(backlog) == [b"bbbb", b"cccc"]


def test_the_notice_stands_where_the_dropped_stood_and_counts() -> None:
    backlog = filled(b"aaaa", b"bbbb", b"cccc", b"dddd")
    assert backlog.drop_oldest(len(NOTICE) + 8, NOTICE) == 2
    assert backlog.size == len(NOTICE) + 8
    assert drain(backlog) == [NOTICE, b"cccc", b"dddd"]


def test_the_last_write_is_kept_though_it_does_not_fit() -> None:
    backlog = filled(b"a", b"b" * 100)
    assert backlog.drop_oldest(10, NOTICE) == 1
    assert drain(backlog) == [NOTICE, b"b" * 100]


@pytest.mark.parametrize("begun", [True, False])
def test_a_write_of_which_a_part_is_out_is_never_dropped(begun: bool) -> None:
    backlog = filled(b"aaaa", b"bbbb", b"cccc", begun=begun)
    if not begun:
        backlog.sent(1)
    rest = b"aaaa" if begun else b"aaa"
    assert backlog.drop_oldest(0, NOTICE) == 1
    assert drain(backlog) == [rest, NOTICE, b"cccc"]


def test_a_write_that_is_out_whole_leaves_none_begun() -> None:
    backlog = filled(b"aaaa", b"bbbb", b"cccc", begun=True)
    backlog.sent(4)
    assert backlog.drop_oldest(0, NOTHING) == 1
    assert drain(backlog) == [b"cccc"]


def test_the_notice_stands_once_however_often_something_is_dropped() -> None:
    backlog = filled(b"aaaa", b"bbbb")
    dropped = 0
    for number in range(20):
        backlog.append(b"%04d" % number)
        dropped += backlog.drop_oldest(8 + len(NOTICE), NOTICE)
    assert dropped == 20
    assert drain(backlog) == [NOTICE, b"0018", b"0019"]


def test_a_second_loss_behind_a_notice_that_is_on_its_way_is_told_too() -> None:
    backlog = filled(b"aaaa", b"bbbb")
    assert backlog.drop_oldest(0, NOTICE) == 1
    backlog.sent(2)  # of the notice
    backlog.append(b"cccc")
    assert backlog.drop_oldest(0, NOTICE) == 1
    assert drain(backlog) == [NOTICE[2:], NOTICE, b"cccc"]


def test_where_nothing_can_be_dropped_no_gap_is_told() -> None:
    backlog = filled(b"a" * 100, b"bbbb", begun=True)
    assert backlog.drop_oldest(10, NOTICE) == 0
    assert drain(backlog) == [b"a" * 100, b"bbbb"]


def test_a_gap_that_was_told_stays_told_though_nothing_more_is_dropped() -> None:
    backlog = filled(b"a" * 100, b"bbbb", b"cccc", begun=True)
    assert backlog.drop_oldest(10, NOTICE) == 1
    assert backlog.drop_oldest(10, NOTICE) == 0
    assert drain(backlog) == [b"a" * 100, NOTICE, b"cccc"]


def test_a_notice_is_no_message_that_was_dropped() -> None:
    backlog = filled(b"aaaa", b"bbbb")
    assert backlog.drop_oldest(0, NOTICE) == 1
    backlog.append(b"cccc")
    assert backlog.drop_oldest(0, NOTICE) == 1


def test_controls_and_notices_are_no_messages() -> None:
    backlog = filled(b"aaaa", Control(b"pong"), b"bbbb", Control(b"pong"), b"cccc")
    assert backlog.messages() == 3
    backlog.sent(1)
    assert backlog.messages() == 3
    assert backlog.drop_oldest(0, NOTICE) == 1
    assert backlog.messages() == 2
    assert backlog.control_bytes == 2 * len(b"pong") + len(NOTICE)
    # The client waits for what controls say: only messages are dropped.
    assert drain(backlog) == [b"aaa", NOTICE, b"pong", b"pong", b"cccc"]
    assert (backlog.messages(), backlog.control_bytes, backlog.size) == (0, 0, 0)


def test_what_was_sent_is_counted_in_bytes() -> None:
    backlog = filled(b"one", b"two")
    backlog.sent(2)
    assert backlog.sent_bytes == 2
    drain(backlog)
    assert backlog.sent_bytes == 6


@pytest.mark.parametrize("seed", range(50))
def test_whatever_happens_nothing_is_torn_or_out_of_order(seed: int) -> None:
    chance = random.Random(seed)
    limit = chance.randrange(20, 200)
    sent = 0
    backlog: Backlog | None = None
    out, dropped = b"", 0
    for _ in range(500):
        if chance.random() < 0.6:
            write = b"%d%s\n" % (sent, b"." * chance.randrange(20))
            sent += 1
            if backlog:
                backlog.append(write)
            else:
                backlog = Backlog(write, begun=False)
            if backlog.size > limit:
                dropped += backlog.drop_oldest(limit, b"gap\n")
        elif backlog:
            piece = backlog.first()[: chance.randrange(1, 30)]
            out += piece
            backlog.sent(len(piece))
    out += b"".join(drain(backlog)) if backlog else b""
    lines = out.decode().split("\n")
    assert lines.pop() == ""
    numbers = [int(line.rstrip(".")) for line in lines if line != "gap"]
    assert all(earlier < later for earlier, later in pairwise(numbers))
    assert len(numbers) + dropped == sent
    told = 0
    expected = 0
    for line in lines:
        if line == "gap":
            told += 1
            continue
        number = int(line.rstrip("."))
        assert (number > expected) == (told > 0), "a gap is told where there is one, alone"
        expected, told = number + 1, 0
