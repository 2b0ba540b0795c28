"""Latencies are counted a batch at a time, and every delivered message counts once."""

from __future__ import annotations

import random

import pytest

from gateway.connections.delivery import Delivery
from gateway.connections.hub import Partial, Refusal
from gateway.latency import BOUNDS_MS, MOST_TOPICS, OTHER_TOPICS, Latency, Times

NOW_MS = 1_700_000_000_000


def delivery(
    age_ms: int | None = 0, *, topic: str = "push", lane: str | None = None, offset: int = 1
) -> Delivery:
    position = f"{topic}-0-{offset}" if topic else None
    timestamp_ms = None if age_ms is None else NOW_MS - age_ms
    return Delivery(b"", message_id="m", position=position, timestamp_ms=timestamp_ms, lane=lane)


def noted(*deliveries: Delivery, results: list[object] | None = None) -> Latency:
    latency = Latency()
    batch = [(each, "u", None) for each in deliveries]
    latency.note(batch, results or [1] * len(batch), NOW_MS)
    return latency


def count(latency: Latency, topic: str = "push") -> int:
    return sum(latency.by_topic()[topic].counts)


def test_each_bucket_has_the_ages_up_to_its_bound() -> None:
    ages = [bound + more for bound in BOUNDS_MS for more in (-1, 0, 1)]
    times = Times()
    times.add([NOW_MS - age for age in ages], NOW_MS)
    expected = [0] * (len(BOUNDS_MS) + 1)
    for age in ages:
        expected[sum(age > bound for bound in BOUNDS_MS)] += 1
    assert times.counts == expected
    assert times.sum_ms == sum(ages)
    assert times.buckets()[0] == ("0.001", float(expected[0]))
    assert times.buckets()[-1] == ("+Inf", float(len(ages)))


def test_a_batch_at_once_counts_as_its_messages_one_by_one() -> None:
    draw = random.Random(7)
    for _ in range(200):
        ages = draw.choices((-5, 0, 3, 40, 700, 9_000, 400_000), k=draw.randrange(1, 20))
        together, apart = Times(), Times()
        together.add([NOW_MS - age for age in ages], NOW_MS)
        for age in ages:
            apart.add([NOW_MS - age], NOW_MS)
        assert (together.counts, together.sum_ms) == (apart.counts, apart.sum_ms)
        assert together.ahead == apart.ahead == ages.count(-5)


def test_a_timestamp_ahead_of_the_nodes_clock_is_counted_apart() -> None:
    latency = noted(delivery(-1), delivery(-7_200_000), delivery(5))
    assert latency.by_topic()["push"].ahead == 2
    assert count(latency) == 1
    assert latency.by_topic()["push"].sum_ms == 5


def test_messages_without_a_timestamp_are_counted_apart() -> None:
    latency = noted(delivery(None), delivery(None, topic=""), delivery(5))
    assert latency.untimed == 2
    assert count(latency) == 1


@pytest.mark.parametrize("result", [0, Refusal.OVERLOADED, Partial(frozenset(), 1)])
def test_what_not_every_connection_has_taken_does_not_count(result: object) -> None:
    latency = noted(delivery(5), delivery(5), results=[result, 2])
    assert count(latency) == 1


def test_without_lanes_the_topic_is_that_of_the_positions() -> None:
    assert count(noted(delivery(topic="news-2-high")), "news-2-high") == 1


@pytest.mark.parametrize("position", [None, "", "push", "push-0", "-0-1"])
def test_a_position_without_a_topic_is_of_other_topics(position: str | None) -> None:
    odd = Delivery(b"", message_id="m", position=position, timestamp_ms=NOW_MS)
    assert count(noted(odd), OTHER_TOPICS) == 1


def test_each_lane_has_a_histogram_of_its_own() -> None:
    latency = noted(
        delivery(5, topic="bulk", lane="bulk"),
        delivery(6, topic="alerts", lane="alerts"),
        delivery(7, topic="bulk", lane="bulk"),
        delivery(8, topic="push"),
    )
    sums = {topic: times.sum_ms for topic, times in latency.by_topic().items()}
    assert sums == {"bulk": 12, "alerts": 6, "push": 8}


def test_topics_beyond_the_bound_share_one_histogram() -> None:
    latency = Latency()
    for number in range(3 * MOST_TOPICS):
        latency.note([(delivery(topic=f"t{number}"), "u", None)], [1], NOW_MS)
    assert len(latency.by_topic()) == MOST_TOPICS + 1
    assert count(latency, OTHER_TOPICS) == 2 * MOST_TOPICS
