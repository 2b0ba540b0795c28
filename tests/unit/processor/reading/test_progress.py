"""How far a partition has come: only what has nothing unsettled before it is committable."""

from __future__ import annotations

import random

import pytest

from processor.reading.kafka import TopicPartition
from processor.reading.progress import (
    MAX_BYTES,
    MAX_MESSAGES,
    MAX_SPAN,
    MAX_WAITING_SPAN,
    Progress,
)


@pytest.fixture
def progress() -> Progress:
    return Progress(TopicPartition("push", 0), lane=0)


def begin(progress: Progress, *offsets: int, size: int = 1) -> None:
    for offset in offsets:
        progress.begin(offset, size=size, timestamp_ms=offset * 10)


def test_nothing_begun_is_nothing_to_commit(progress: Progress) -> None:
    assert (progress.committable, progress.oldest_ms, len(progress)) == (None, None, 0)


def test_what_is_begun_is_not_committable(progress: Progress) -> None:
    begin(progress, 5, 6)
    assert (progress.committable, progress.oldest_ms, len(progress)) == (5, 50, 2)


def test_it_is_committable_up_to_the_first_that_is_not_settled(progress: Progress) -> None:
    begin(progress, 5, 6, 9)  # offsets may have gaps
    progress.settle(6, size=1)
    assert (progress.committable, len(progress)) == (5, 2)
    progress.settle(5, size=1)
    assert (progress.committable, progress.oldest_ms, len(progress)) == (9, 90, 1)
    progress.settle(9, size=1)
    assert (progress.committable, progress.oldest_ms, len(progress)) == (10, None, 0)


def test_in_whatever_order_they_settle_nothing_unsettled_is_passed(progress: Progress) -> None:
    offsets = list(range(300))
    begin(progress, *offsets)
    left = set(offsets)
    for offset in random.Random(7).sample(offsets, len(offsets)):
        progress.settle(offset, size=1)
        left.discard(offset)
        assert progress.committable == min(left, default=300)
        assert len(progress) == len(left)


def test_what_follows_the_last_message_is_committable_when_all_is_settled(
    progress: Progress,
) -> None:
    assert progress.follow(5)
    assert progress.committable == 5
    assert not progress.follow(5)
    begin(progress, 5, 6)
    assert not progress.follow(7)
    assert not progress.follow(9), "a message before is unsettled"
    assert (progress.committable, progress.next_offset) == (5, 9)
    progress.settle(5, size=1)
    progress.settle(6, size=1)
    assert progress.committable == 9
    assert progress.follow(10)
    assert progress.committable == 10
    assert not progress.follow(3), "aiokafka starts over: what comes from there is begun again"
    assert progress.committable == 10


@pytest.mark.parametrize(("count", "size"), [(MAX_MESSAGES, 1), (64, MAX_BYTES // 64)])
def test_one_with_much_in_hand_is_full_until_half_of_it_is_settled(
    progress: Progress, count: int, size: int
) -> None:
    begin(progress, *range(count - 1), size=size)
    assert not progress.full
    begin(progress, count - 1, size=size)
    assert progress.full
    for offset in range(count // 2 - 1):
        progress.settle(count - 1 - offset, size=size)
    assert progress.full
    progress.settle(0, size=size)
    assert not progress.full


def test_one_message_that_never_settles_holds_up_what_would_come_again_with_it(
    progress: Progress,
) -> None:
    begin(progress, 0)
    for offset in range(1, MAX_SPAN):
        assert not progress.full
        begin(progress, offset)
        progress.settle(offset, size=1)
    assert progress.full
    progress.settle(0, size=1)
    assert not progress.full
    assert progress.committable == MAX_SPAN


def wait(progress: Progress, offset: int, *, number: int | None = None) -> None:
    progress.wait(
        offset, size=1, timestamp_ms=offset * 10, number=offset if number is None else number
    )


def test_a_message_that_waits_holds_the_commit_and_nothing_else(progress: Progress) -> None:
    begin(progress, *range(MAX_MESSAGES))
    assert progress.full
    for offset in range(MAX_MESSAGES):
        wait(progress, offset)
    assert not progress.full
    assert (progress.committable, progress.oldest_ms, len(progress)) == (0, 0, MAX_MESSAGES)
    begin(progress, MAX_MESSAGES)
    assert progress.in_hand_from == MAX_MESSAGES
    progress.settle(MAX_MESSAGES, size=1)
    progress.settle(0, size=1)
    assert (progress.committable, progress.oldest_ms) == (1, 10)
    assert progress.in_hand_from == MAX_MESSAGES + 1


def test_in_whatever_order_messages_wait_and_settle_nothing_unsettled_is_passed(
    progress: Progress,
) -> None:
    draw = random.Random(8)
    begin(progress, *range(300))
    left = set(range(300))
    for offset in draw.sample(range(300), 150):
        wait(progress, offset)
        assert progress.committable == min(left)
    for offset in draw.sample(range(300), 300):
        progress.settle(offset, size=1)
        left.discard(offset)
        assert progress.committable == min(left, default=300)
        assert progress.oldest_ms == (min(left) * 10 if left else None)
        assert len(progress) == len(left)
        committable = progress.committable or 0
        assert set(progress.settled_beyond) == set(range(committable, 300)) - left


def test_following_the_log_commits_nothing_while_a_message_waits(progress: Progress) -> None:
    begin(progress, 0)
    wait(progress, 0)
    assert not progress.follow(9)
    assert progress.committable == 0
    progress.settle(0, size=1)
    assert progress.committable == 9


def test_a_message_that_waits_too_far_back_fills_the_partition(progress: Progress) -> None:
    begin(progress, 0)
    wait(progress, 0)
    for offset in range(1, MAX_WAITING_SPAN):
        assert not progress.full
        assert progress.first_kept == 0
        progress.begin(offset, size=1, timestamp_ms=0)
        progress.settle(offset, size=1)
    begin(progress, MAX_WAITING_SPAN)
    assert progress.full
    assert progress.first_kept > 0
    progress.settle(0, size=1)
    assert not progress.full
