"""How long messages take from their record's timestamp to the write, by topic, in plain counts.

Every message is counted, so a batch is counted at once: 0.1 µs a message in a batch of 200, where
an observation of prometheus_client's histogram takes 1.5 µs. The counts are read when metrics are
scraped (metrics.py).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate, compress
from typing import Final, Protocol

#: Upper bounds of the buckets, in milliseconds; one more bucket is for all above.
BOUNDS_MS: Final = (
    1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000,
)  # fmt: skip
#: Topics with a histogram apart. Pushes name their topics, and a topic is a label.
MOST_TOPICS: Final = 32
#: Stands for topics beyond MOST_TOPICS, and for messages whose topic is not known.
OTHER_TOPICS: Final = "other"


class Timed(Protocol):
    """A delivery's timestamp and lane."""

    position: str | None
    timestamp_ms: int | None
    lane: str | None


#: A delivery, its user, and its device.
_Addressed = tuple[Timed, str, str | None]


class Times:
    """The latencies of one topic's messages.

    `counts` has a count for every bucket, without the buckets below. `ahead` counts messages with a
    timestamp later than the node's clock: such messages are in no bucket.
    """

    __slots__ = ("ahead", "counts", "sum_ms")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_MS) + 1)
        self.sum_ms = 0
        self.ahead = 0

    def add(self, timestamps: Sequence[int], now_ms: int) -> None:
        """Count messages by their timestamps, one at least, in Unix time in milliseconds."""
        # Most batches are of one bucket.
        newest = now_ms - max(timestamps)
        bucket = bisect_left(BOUNDS_MS, newest)
        if newest >= 0 and bucket == bisect_left(BOUNDS_MS, now_ms - min(timestamps)):
            self.counts[bucket] += len(timestamps)
            self.sum_ms += len(timestamps) * now_ms - sum(timestamps)
            return
        ascending = sorted(timestamps)
        younger = bisect_right(ascending, now_ms)
        self.ahead += len(ascending) - younger
        self.sum_ms += younger * now_ms - sum(ascending[:younger])
        for bucket, bound in enumerate(BOUNDS_MS):
            older = bisect_left(ascending, now_ms - bound, 0, younger)
            self.counts[bucket] += younger - older
            younger = older
            if not older:
                return
        self.counts[-1] += younger

    def buckets(self) -> list[tuple[str, float]]:
        """Return (upper bound in seconds, messages up to it), as Prometheus has buckets."""
        bounds = [*(str(bound / 1_000) for bound in BOUNDS_MS), "+Inf"]
        return [*zip(bounds, map(float, accumulate(self.counts)), strict=True)]


class Latency:
    """The latencies of the messages that a process has delivered, by topic."""

    __slots__ = ("_by_topic", "untimed")

    def __init__(self) -> None:
        self._by_topic: dict[str, Times] = {}
        #: Messages without a timestamp: pushed in directly, or by an earlier version's processor.
        self.untimed = 0

    def note(
        self,
        batch: Sequence[_Addressed],
        results: Sequence[object],
        now_ms: int,
    ) -> None:
        """Count the messages of a batch that were just written: messages with a result above 0.

        A message that some connections have no room for counts when all have the message. Messages
        without a lane are of one topic, which the position of the first message tells. `now_ms` is
        the node's clock, Unix time in milliseconds.
        """
        lanes = {delivery.lane for delivery, _, _ in batch}
        if len(lanes) == 1:
            self._note_lane(batch, results, now_ms)
            return
        for lane in lanes:
            of_lane = [each[0].lane == lane for each in batch]
            self._note_lane([*compress(batch, of_lane)], [*compress(results, of_lane)], now_ms)

    def _note_lane(
        self, batch: Sequence[_Addressed], results: Sequence[object], now_ms: int
    ) -> None:
        timestamps = [
            delivery.timestamp_ms
            for (delivery, _, _), result in zip(batch, results, strict=True)
            if result.__class__ is int and result
        ]
        known = [each for each in timestamps if each is not None]
        self.untimed += len(timestamps) - len(known)
        if known:
            first, _, _ = batch[0]
            self._of(first.lane or _topic_of(first.position)).add(known, now_ms)

    def by_topic(self) -> Mapping[str, Times]:
        """Return the latencies of each topic."""
        return self._by_topic

    def _of(self, topic: str) -> Times:
        times = self._by_topic.get(topic)
        if times is None:
            if len(self._by_topic) >= MOST_TOPICS:
                topic = OTHER_TOPICS
            times = self._by_topic.setdefault(topic, Times())
        return times


def _topic_of(position: str | None) -> str:
    topic, *place = (position or "").rsplit("-", 2)
    return topic if topic and len(place) == 2 else OTHER_TOPICS
