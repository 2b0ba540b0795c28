"""The windows of all partitions: within bounds of time and memory, and only what is read here."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from processor import metrics
from processor.reading.message import Message
from processor.replay import windows as module
from processor.replay.window import Window
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


def counted(name: str) -> float:
    lines = metrics.exposition().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def take(windows: Windows, messages: Sequence[Message]) -> None:
    windows.take(messages[0].progress.partition, messages)


def offsets(windows: Windows, partition: Partition) -> list[int]:
    window = windows.of(partition.name)
    kept = window.of("alice", None, window.floor, ALL, NOW_MS, read={})
    return [at for at, push in kept if isinstance(push, bytes)]


def evicted(windows: Windows, partition: Partition) -> list[int]:
    return windows.of(partition.name).evicted("alice", 0, ALL)


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


def test_beyond_the_bytes_the_oldest_of_all_partitions_is_evicted_first(
    windows: Windows, clock: Clock, first: Partition, second: Partition
) -> None:
    big = b"x" * 150_000
    for number, partition in enumerate([first] * 3 + [second] * 3 + [first]):
        take(windows, [partition.message(number, data=big)])
        clock.now += 6.0
    windows.advance()
    assert offsets(windows, first) == [1, 2, 6]
    assert offsets(windows, second) == [3, 4, 5]
    assert (evicted(windows, first), evicted(windows, second)) == ([0], [])
    assert windows.of(first.name).floor == windows.of(second.name).floor == 0


def test_evictions_are_counted_and_leave_a_little_room(
    windows: Windows, clock: Clock, first: Partition
) -> None:
    before = counted("pushgate_processor_window_evicted_total")
    for offset in range(200):
        take(windows, [first.message(offset, data=b"x" * 10_000)])
        clock.now += 0.1
    windows.advance()
    assert windows.of(first.name).size < 1_000_000
    assert counted("pushgate_processor_window_evicted_total") > before
    assert [*evicted(windows, first), *offsets(windows, first)] == [*range(200)]


def test_whatever_the_bytes_the_window_has_its_whole_time(
    windows: Windows, clock: Clock, first: Partition
) -> None:
    for offset in range(30):
        take(windows, [first.message(offset, data=b"x" * 2_000_000)])
        windows.advance()
        clock.now += 5.0
    windows.advance()
    floor = windows.of(first.name).floor
    assert [*evicted(windows, first), *offsets(windows, first)] == [*range(floor, 30)]
    assert 24 <= 30 - floor <= 26, "120 s, and a chunk"


def test_beyond_so_many_messages_the_oldest_are_forgotten_and_counted(
    windows: Windows,
    clock: Clock,
    first: Partition,
    second: Partition,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST_MESSAGES", 5)
    before = counted("pushgate_processor_window_shortened_total")
    take(windows, first.messages(0, 1))
    clock.now += 6.0
    take(windows, second.messages(0, 1, 2))
    clock.now += 6.0
    take(windows, first.messages(2, 3))
    windows.advance()
    assert (windows.of(first.name).floor, offsets(windows, first)) == (2, [2, 3])
    assert (windows.of(second.name).floor, offsets(windows, second)) == (0, [0, 1, 2])
    assert counted("pushgate_processor_window_shortened_total") == before + 1


def test_messages_of_an_earlier_owner_have_the_room_that_others_leave(
    windows: Windows, first: Partition
) -> None:
    windows.begin({P0: 100})
    take(windows, [first.message(100, data=b"x" * 500_000)])
    earlier = Window(0)
    for offset in range(100):
        message = first.message(offset, data=b"x" * 10_000, ttl=0 if offset == 50 else None)
        windows.take_earlier(P0, earlier, [message])
        assert earlier.size < 500_000
    windows.of(P0).precede(earlier, 100)
    windows.advance()
    assert windows.of(P0).size < 1_000_000
    found = [*evicted(windows, first), *offsets(windows, first)]
    assert found == [at for at in range(101) if at != 50], "50 was for clients of then alone"


def test_a_bound_that_one_message_breaks_evicts_that_message(
    windows: Windows, first: Partition
) -> None:
    take(windows, [first.message(0, data=b"x" * 2_000_000)])
    windows.advance()
    assert (offsets(windows, first), evicted(windows, first)) == ([], [0])
    take(windows, first.messages(1))
    assert offsets(windows, first) == [1]


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
