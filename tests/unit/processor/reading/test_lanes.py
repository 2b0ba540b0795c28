"""Weighted lanes: everyone has a share, and nothing is lost or reordered within a lane."""

from __future__ import annotations

import random

import pytest

from processor.reading.kafka import TopicPartition
from processor.reading.lanes import Lanes, shares
from processor.reading.message import Message
from processor.reading.progress import Progress
from registry.message import Envelope, Push


def message(lane: int, number: int) -> Message:
    progress = Progress(TopicPartition("t", 0), lane=lane)
    return Message(Envelope(Push("u", b"", str(number)), 0), progress, number)


@pytest.mark.parametrize(
    ("limit", "waiting", "weights", "expected"),
    [
        (100, [500], [1], [100]),
        (100, [40], [1], [40]),
        (100, [500, 500], [1, 1], [50, 50]),
        (100, [500, 500], [4, 1], [80, 20]),
        (100, [10, 500], [4, 1], [10, 90]),
        (100, [500, 10], [4, 1], [90, 10]),
        (100, [0, 500], [4, 1], [0, 100]),
        (100, [500, 500, 500], [9_998, 1, 1], [98, 1, 1]),
        (100, [0, 0], [1, 1], [0, 0]),
    ],
)
def test_shares_go_by_weight_and_what_is_left_goes_to_who_waits(
    limit: int, waiting: list[int], weights: list[int], expected: list[int]
) -> None:
    assert shares(limit, waiting, weights) == expected


def test_shares_never_exceed_what_waits_or_the_limit_and_leave_nobody_out() -> None:
    draw = random.Random(3)
    for _ in range(2_000):
        lanes = draw.randint(1, 6)
        waiting = [draw.choice([0, 1, 5, 1_000]) for _ in range(lanes)]
        weights = [draw.randint(1, 50) for _ in range(lanes)]
        limit = draw.randint(lanes, 400)
        given = shares(limit, waiting, weights)
        assert sum(given) <= max(limit, sum(map(bool, waiting)))
        assert sum(given) >= min(limit, sum(waiting))
        for share, count in zip(given, waiting, strict=True):
            assert (share > 0) == (count > 0)
            assert share <= count


def test_what_is_discarded_is_not_given_out_and_leaves_nothing_behind() -> None:
    draw = random.Random(5)
    lanes = Lanes([3, 1])
    queued = [message(number % 2, number) for number in range(1_000)]
    for each in queued:
        lanes.put(each)
    for each in draw.sample(queued, 950):
        lanes.discard(each)
        queued.remove(each)
        assert len(lanes) == len(queued)
        assert sum(map(len, lanes._queues)) <= 2 * len(lanes) + 1
    late = message(0, 1_000)
    lanes.put(late)
    lanes.discard(queued.pop())
    out: list[Message] = []
    while lanes:
        out += lanes.take(7)
    for lane in (0, 1):
        kept = [each for each in [*queued, late] if each.lane == lane]
        assert [each for each in out if each.lane == lane] == kept
    assert not any(lanes._queues)


def test_each_lane_keeps_its_order_and_all_comes_out() -> None:
    lanes = Lanes([3, 1])
    for number in range(100):
        lanes.put(message(number % 2, number))
    out: list[Message] = []
    while lanes:
        out += lanes.take(7)
    for lane in (0, 1):
        numbers = [each.offset for each in out if each.lane == lane]
        assert numbers == list(range(lane, 100, 2))
    assert len(out) == 100
