"""The windows of all partitions: within bounds of time and memory, and only what is read here."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from processor.reading.message import Message
from processor.replay.windows import Windows
from tests.support.clock import Clock
from tests.unit.processor.replay.taken_in import NOW_MS, P0, P1, Partition

ALL = 2**63 - 1


@pytest.fixture
def clock() -> Clock:
    return Clock(1_000.0)


@pytest.fixture
def windows(clock: Clock) -> Windows:
    windows = Windows(seconds=120.0, most_bytes=1_000_000, clock=clock)
    windows.begin({P0: 0, P1: 0})
    return windows


@pytest.fixture
def first() -> Partition:
    return Partition(0)


@pytest.fixture
def second() -> Partition:
    return Partition(1)


def take(windows: Windows, messages: Sequence[Message]) -> None:
    windows.take(messages[0].progress.partition, messages)


def offsets(windows: Windows, partition: Partition) -> list[int]:
    window = windows.of(partition.name)
    return [at for at, _ in window.of("alice", None, window.floor, ALL, NOW_MS)]


def test_each_partition_keeps_its_own(
    windows: Windows, first: Partition, second: Partition
) -> None:
    take(windows, first.messages(0, 1))
    take(windows, second.messages(0))
    take(windows, first.messages(2))
    assert (offsets(windows, first), offsets(windows, second)) == ([0, 1, 2], [0])


def test_what_is_older_than_the_window_goes_and_is_not_claimed(
    windows: Windows, clock: Clock, first: Partition
) -> None:
    for offset in range(30):
        take(windows, first.messages(offset))
        clock.now += 10.0
    windows.advance()
    kept = offsets(windows, first)
    assert kept == list(range(kept[0], 30))
    assert kept[0] == windows.of(first.name).floor
    assert 12 <= len(kept) <= 13, "120 s, and a chunk"


def test_what_is_within_the_window_is_kept_though_nothing_follows(
    windows: Windows, clock: Clock, first: Partition
) -> None:
    take(windows, first.messages(0))
    clock.now += 119.0
    windows.advance()
    assert offsets(windows, first) == [0]
    clock.now += 10.0
    windows.advance()
    assert offsets(windows, first) == []
    assert windows.of(first.name).floor == 1


def test_beyond_the_bytes_the_oldest_of_all_partitions_goes_first(
    windows: Windows, clock: Clock, first: Partition, second: Partition
) -> None:
    big = b"x" * 150_000
    for number, partition in enumerate([first] * 3 + [second] * 3 + [first]):
        take(windows, [partition.message(number, data=big)])
        clock.now += 6.0
    windows.advance()
    assert offsets(windows, first) == [1, 2, 6]
    assert offsets(windows, second) == [3, 4, 5]
    assert windows.of(first.name).floor == 1
    assert windows.of(second.name).floor == 0


def test_a_bound_that_one_message_breaks_drops_that_message(
    windows: Windows, first: Partition
) -> None:
    take(windows, [first.message(0, data=b"x" * 2_000_000)])
    windows.advance()
    assert offsets(windows, first) == []
    assert windows.of(first.name).floor == 1


def test_partitions_that_are_assigned_elsewhere_are_dropped(
    windows: Windows, first: Partition, second: Partition
) -> None:
    take(windows, first.messages(0, 1))
    take(windows, second.messages(0))
    windows.begin({P0: 2})
    take(windows, second.messages(1))
    assert offsets(windows, first) == [0, 1]
    assert offsets(windows, second) == []


def test_a_partition_that_is_back_after_another_owner_begins_anew(
    windows: Windows, first: Partition
) -> None:
    take(windows, first.messages(0, 1))
    windows.begin({})
    windows.begin({P0: 50})
    assert (windows.of(P0).floor, offsets(windows, first)) == (50, [])


def test_of_a_partition_that_is_not_read_here_nothing_is_claimed(windows: Windows) -> None:
    windows.begin({P0: 0})
    assert windows.of(P1).floor > 2**62


def test_an_outcome_ends_a_message_with_a_ttl_of_0_and_no_other(
    windows: Windows, first: Partition
) -> None:
    messages = [first.message(0, ttl=0), first.message(1), first.message(2, ttl=60)]
    take(windows, messages)
    windows.settled(messages)
    assert offsets(windows, first) == [1, 2]


def test_each_assignment_has_its_number(windows: Windows) -> None:
    before = windows.assignment
    windows.begin({P0: 0})
    assert windows.assignment != before
