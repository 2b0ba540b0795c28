"""How far one partition has come: what is in hand of it, and up to where everything is settled."""

from __future__ import annotations

from collections import deque
from typing import Final

from processor.reading.kafka import TopicPartition

#: In hand of one partition at most, but for what one fetch brings: messages and bytes without an
#: outcome, and messages from the first of these on, which would all come again after a crash. A
#: partition that has reached one is not read until it is back at half of each: so does a slow
#: gateway hold up the partitions with messages for it, in bounded memory, and no other.
MAX_MESSAGES: Final = 4_000
MAX_BYTES: Final = 4 * 1024 * 1024
MAX_SPAN: Final = 16_000


class Progress:
    """One partition from when it was assigned until it is taken away.

    An offset is committable once everything before it is settled.
    """

    __slots__ = ("_begun", "_bytes", "_settled", "full", "lane", "lost", "next", "partition")

    def __init__(self, partition: TopicPartition, *, lane: int) -> None:
        self.partition = partition
        self.lane = lane
        self.lost = False  # taken away: what is in hand is another member's
        self.full = False  # so much is in hand that no more is read
        self.next: int | None = None  # the offset behind the last that was begun
        self._begun: deque[tuple[int, int]] = deque()  # offset, timestamp in ms
        self._settled: set[int] = set()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._begun) - len(self._settled)

    @property
    def committable(self) -> int | None:
        """The offset to go on from; None where nothing was begun."""
        return self._begun[0][0] if self._begun else self.next

    @property
    def oldest_ms(self) -> int | None:
        """The timestamp of the oldest that is not settled; None where all is."""
        return self._begun[0][1] if self._begun else None

    def begin(self, offset: int, *, size: int, timestamp_ms: int) -> None:
        """Take one more in hand; offsets only grow."""
        self._begun.append((offset, timestamp_ms))
        self._bytes += size
        self.next = offset + 1
        self.full = self.full or self._has(MAX_MESSAGES, MAX_BYTES, MAX_SPAN)

    def settle(self, offset: int, *, size: int) -> None:
        """Take note that one in hand, of so many bytes, has its outcome."""
        begun, settled = self._begun, self._settled
        self._bytes -= size
        if offset != begun[0][0]:
            settled.add(offset)
        else:
            begun.popleft()
            while begun and begun[0][0] in settled:
                settled.discard(begun.popleft()[0])
        if self.full:
            self.full = self._has(MAX_MESSAGES // 2 + 1, MAX_BYTES // 2 + 1, MAX_SPAN // 2 + 1)

    def _has(self, messages: int, size: int, span: int) -> bool:
        return len(self) >= messages or self._bytes >= size or len(self._begun) >= span
