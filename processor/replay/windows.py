"""The windows of all assigned partitions, within bounds of time and memory."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

from processor import metrics
from processor.reading.kafka import TopicPartition
from processor.reading.message import Message
from processor.replay.window import Window

#: The most messages of all windows, at hand or evicted: some 130 MB of index alone.
MOST_MESSAGES: Final = 8_000_000
#: Beyond the bound of bytes, so large a part of the bound is evicted at once. Small parts would
#: make many indexes, in each of which a question looks.
_EVICTED_PART: Final = 1 / 32
#: The window of a partition of another processor: empty, and without a beginning.
_NO_WINDOW: Final = Window(2**63 - 1)


class Windows:
    """Keeps messages taken in: of the newest `seconds`, with payloads of `most_bytes` at most.

    Where the bytes don't suffice, the payloads of the oldest messages of all partitions are
    evicted first, and are read again from Kafka for clients that missed them. Beyond MOST_MESSAGES
    the oldest messages go altogether. The window's floor then says so, and a client that was away
    for longer is told of a gap.
    """

    def __init__(
        self,
        *,
        seconds: float,
        most_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keep_ms = int(seconds * 1_000)
        self._most_bytes = most_bytes
        self._clock = clock
        self._windows: dict[TopicPartition, Window] = {}
        self.assignment = 0  # how often partitions were assigned

    def begin(self, starts: Mapping[TopicPartition, int]) -> None:
        """Keep the windows of assigned partitions alone, and go on from the offsets."""
        self.assignment += 1
        earlier = self._windows
        self._windows = {}
        for partition, start in starts.items():
            window = earlier.get(partition)
            if window is None:
                window = Window(start)
            else:
                window.restart(start)
            self._windows[partition] = window

    def of(self, partition: TopicPartition) -> Window:
        """Return a partition's window; an empty window for a partition of another processor."""
        return self._windows.get(partition, _NO_WINDOW)

    def take(self, partition: TopicPartition, messages: Sequence[Message]) -> None:
        """Keep messages of a partition, in order."""
        window = self._windows.get(partition)
        if window is not None:
            window.take(messages, int(self._clock() * 1_000))

    def take_earlier(
        self, partition: TopicPartition, earlier: Window, messages: Iterable[Message]
    ) -> None:
        """Keep settled messages of an earlier owner of a partition in the window `earlier`.

        Messages with a TTL of 0 are left out. The payloads that stay at hand have the room that
        other payloads leave, or a small part of the bound until `advance`.
        """
        began_ms = self.of(partition).began_ms
        now_ms = int(self._clock() * 1_000) if began_ms is None else began_ms
        earlier.take([m for m in messages if m.envelope.ttl_seconds != 0], now_ms)
        room = self._most_bytes - sum(window.size for window in self._windows.values())
        _evict((earlier,), max(room, int(self._most_bytes * _EVICTED_PART)))

    def settled(self, messages: Iterable[Message]) -> None:
        """Note messages with an outcome: a message with a TTL of 0 is due no more."""
        for message in messages:
            if message.envelope.ttl_seconds == 0:
                self.of(message.progress.partition).settled(message.offset)

    def advance(self) -> None:
        """Drop what is beyond the bounds. Called every second."""
        now_ms = int(self._clock() * 1_000)
        windows = self._windows.values()
        for window in windows:
            while window.is_older_than(now_ms - self._keep_ms):
                window.end_oldest()
        self._shorten()
        metrics.WINDOW_EVICTED.inc(_evict(windows, self._most_bytes))
        metrics.WINDOW_BYTES.set(sum(window.size for window in windows))
        metrics.WINDOW_MESSAGES.set(sum(window.count for window in windows))
        at_hand = [window.at_hand[0][0] for window in windows if window.at_hand]
        metrics.WINDOW_SECONDS.set((now_ms - min(at_hand)) / 1e3 if at_hand else 0)

    def _shorten(self) -> None:
        """End the oldest parts of the windows, beyond MOST_MESSAGES."""
        count = sum(window.count for window in self._windows.values())
        while count > MOST_MESSAGES:
            oldest = min(
                (window for window in self._windows.values() if window.began_ms is not None),
                key=lambda window: window.began_ms or 0,
            )
            count -= oldest.count
            oldest.end_oldest()
            count += oldest.count
            metrics.WINDOW_SHORTENED.inc()


def _evict(windows: Collection[Window], most_bytes: int) -> int:
    """Evict the oldest chunks of windows beyond a bound of bytes; return how many."""
    size = sum(window.size for window in windows)
    if size <= most_bytes:
        return 0
    chunks: Counter[Window] = Counter()
    at_hand = [(began_ms, each, n) for each in windows for began_ms, n in each.at_hand]
    for _, window, chunk_bytes in sorted(at_hand, key=lambda chunk: chunk[0]):
        if size <= most_bytes * (1 - _EVICTED_PART):
            break
        chunks[window] += 1
        size -= chunk_bytes
    for window, count in chunks.items():
        window.evict(count)
    return chunks.total()
