"""The windows of all assigned partitions, within bounds of time and memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from processor import metrics
from processor.reading.kafka import TopicPartition
from processor.reading.message import Message
from processor.replay.window import Window

#: The window of a partition of another processor: empty, and without a beginning.
_NO_WINDOW: Final = Window(2**63 - 1)


class Windows:
    """Keeps messages taken in: of the newest `seconds`, and `most_bytes` at most.

    Where the bytes don't suffice, the oldest messages of all partitions go first. The window's
    floor then says so, and a client without the dropped messages is told of a gap.
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

    def fill(
        self, partition: TopicPartition, start: int, end: int, messages: Iterable[Message]
    ) -> None:
        """Keep messages read back, from `start` to the beginning `end` of a partition's window."""
        window = self._windows.get(partition)
        if window is not None:
            window.fill(start, end, messages, int(self._clock() * 1_000))

    def settled(self, messages: Iterable[Message]) -> None:
        """Note messages with an outcome: a message with a TTL of 0 is due no more."""
        for message in messages:
            if message.envelope.ttl_seconds == 0:
                self.of(message.progress.partition).settled(message.offset)

    def advance(self) -> None:
        """Drop messages beyond the bounds. Called every second."""
        oldest_ms = int(self._clock() * 1_000) - self._keep_ms
        for window in self._windows.values():
            while window.is_older_than(oldest_ms):
                window.drop_oldest()
        size = sum(window.size for window in self._windows.values())
        while size > self._most_bytes:
            oldest = min(
                (window for window in self._windows.values() if window.began_ms is not None),
                key=lambda window: window.began_ms or 0,
            )
            size -= oldest.size
            oldest.drop_oldest()
            size += oldest.size
            metrics.WINDOW_EVICTED.inc()
        metrics.WINDOW_BYTES.set(size)
        began = [w.began_ms for w in self._windows.values() if w.began_ms is not None]
        metrics.WINDOW_SECONDS.set((oldest_ms + self._keep_ms - min(began)) / 1e3 if began else 0)
