"""The progress of a partition: messages in hand, and the offset up to which all are settled."""

from __future__ import annotations

from collections import deque
from typing import Final

from processor.reading.kafka import TopicPartition

#: Bounds of a partition, exceeded by the records of one fetch at most: messages in hand, bytes in
#: hand, and the span. The span is all messages from the first unsettled message on, settled or not:
#: after a crash all of the span would come again. A partition at a bound is full, and is not read
#: until every count is back at half of its bound. So a slow gateway holds up the partitions with
#: messages for that gateway, in bounded memory, and no further partitions.
MAX_MESSAGES: Final = 4_000
MAX_BYTES: Final = 4 * 1024 * 1024
MAX_SPAN: Final = 16_000


class Progress:
    """A partition from its assignment until the partition is taken away.

    An offset is committable once every message before the offset is settled.
    """

    __slots__ = ("_bytes", "_settled", "_span", "full", "lane", "lost", "next_offset", "partition")

    def __init__(self, partition: TopicPartition, *, lane: int) -> None:
        self.partition = partition
        self.lane = lane
        self.lost = False  # taken away: unsettled messages are another member's now
        self.full = False  # a bound was reached: the partition is not read for now
        #: The offset to read next: after the last message taken in hand, or further (`follow`).
        self.next_offset: int | None = None
        #: Offset and timestamp (ms) of every message from the first unsettled message on.
        self._span: deque[tuple[int, int]] = deque()
        self._settled: set[int] = set()  # settled offsets in the span
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._span) - len(self._settled)

    @property
    def committable(self) -> int | None:
        """The offset to commit, and to go on from; None where nothing was read yet."""
        return self._span[0][0] if self._span else self.next_offset

    @property
    def oldest_ms(self) -> int | None:
        """The timestamp of the oldest unsettled message; None where all messages are settled."""
        return self._span[0][1] if self._span else None

    def begin(self, offset: int, *, size: int, timestamp_ms: int) -> None:
        """Take one more message of `size` bytes in hand; offsets only grow, and may have gaps."""
        self._span.append((offset, timestamp_ms))
        self._bytes += size
        self.next_offset = offset + 1
        self.full = self.full or self._reaches(MAX_MESSAGES, MAX_BYTES, MAX_SPAN)

    def follow(self, position: int) -> bool:
        """Note that no message before `position` is left to be read.

        Return whether that changes what is committable.
        """
        if self.next_offset is not None and position <= self.next_offset:
            return False
        self.next_offset = position
        return not self._span

    def settle(self, offset: int, *, size: int) -> None:
        """Note that the message at `offset`, of `size` bytes, has its outcome."""
        span, settled = self._span, self._settled
        self._bytes -= size
        if offset != span[0][0]:
            settled.add(offset)
        else:
            span.popleft()
            while span and span[0][0] in settled:
                settled.discard(span.popleft()[0])
        if self.full:
            self.full = self._reaches(MAX_MESSAGES // 2 + 1, MAX_BYTES // 2 + 1, MAX_SPAN // 2 + 1)

    def _reaches(self, messages: int, size: int, span: int) -> bool:
        return len(self) >= messages or self._bytes >= size or len(self._span) >= span
