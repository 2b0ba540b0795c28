"""The progress of a partition: messages in hand, and the offset up to which all are settled."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from heapq import heappop, heappush
from typing import Final, NamedTuple

from processor.reading.kafka import TopicPartition

#: Bounds of a partition, exceeded by the records of one fetch at most: messages in hand, bytes in
#: hand, and the span. The span is all messages from the first unsettled message on, settled or not:
#: after a crash all of the span would come again. A partition at a bound is full, and is not read
#: until every count is back at half of its bound. Messages that wait (`wait`) count towards none of
#: the three bounds: a silent gateway, or a user whose connection has no room, would otherwise stop
#: all users of the partition.
MAX_MESSAGES: Final = 4_000
MAX_BYTES: Final = 4 * 1024 * 1024
MAX_SPAN: Final = 16_000
#: How far back the oldest message that waits may be, in messages of the partition: so many come
#: again after a crash. Gateways recognise as many (PUSHGATE_REPEAT_WINDOW_MESSAGES). Messages that
#: are further back give their waiting up (processor/sending/dispatch.py); until then the partition
#: is full.
MAX_WAITING_SPAN: Final = 131_072


class _Waiting(NamedTuple):
    """A message that waits: where it is in the partition, and when it was published."""

    offset: int
    timestamp_ms: int
    number: int  # of the message, in the order of `begin`


class Progress:
    """A partition from its assignment until the partition is taken away.

    An offset is committable once every message before the offset is settled.
    """

    __slots__ = (
        "_bytes",
        "_oldest_waiting",
        "_passed",
        "_span",
        "_waiting",
        "begun",
        "full",
        "lane",
        "lost",
        "next_offset",
        "partition",
    )

    def __init__(self, partition: TopicPartition, *, lane: int) -> None:
        self.partition = partition
        self.lane = lane
        self.lost = False  # taken away: unsettled messages are another member's now
        self.full = False  # a bound was reached: the partition is not read for now
        self.begun = 0  # messages taken in hand so far
        #: The offset to read next: after the last message taken in hand, or further (`follow`).
        self.next_offset: int | None = None
        #: Offset and timestamp (ms) of every message from the first on that is unsettled and does
        #: not wait.
        self._span: deque[tuple[int, int]] = deque()
        self._passed: set[int] = set()  # offsets in the span that are settled, or wait
        self._bytes = 0
        self._waiting: set[int] = set()  # offsets of messages that wait
        #: A heap of the messages that wait, the oldest on top. Settled messages leave the heap when
        #: they come to its top.
        self._oldest_waiting: list[_Waiting] = []

    def __len__(self) -> int:
        return len(self._span) - len(self._passed) + len(self._waiting)

    @property
    def committable(self) -> int | None:
        """The offset to commit, and to go on from; None where nothing was read yet."""
        first = self.in_hand_from
        if self._oldest_waiting and first is not None:
            return min(first, self._oldest_waiting[0].offset)
        return first

    @property
    def in_hand_from(self) -> int | None:
        """The offset in front of which every message is settled, or waits.

        None where nothing was read yet.
        """
        return self._span[0][0] if self._span else self.next_offset

    @property
    def settled_beyond(self) -> Collection[int]:
        """The settled offsets beyond `committable`, and offsets there that no message has."""
        first = self.committable
        if not self._waiting or first is None or self.next_offset is None:
            return self._passed
        unsettled = {offset for offset, _ in self._span if offset not in self._passed}
        return set(range(first, self.next_offset)) - unsettled - self._waiting

    @property
    def oldest_ms(self) -> int | None:
        """The timestamp of the oldest unsettled message; None where all messages are settled."""
        if self._oldest_waiting:
            waiting = self._oldest_waiting[0]
            if not self._span or waiting.offset < self._span[0][0]:
                return waiting.timestamp_ms
        return self._span[0][1] if self._span else None

    @property
    def first_kept(self) -> int:
        """The number of the first message that may go on waiting; older messages may not.

        Numbers are those of `begun` before the message's `begin`.
        """
        return self.begun - MAX_WAITING_SPAN // 2 if self._waits_too_long() else 0

    def begin(self, offset: int, *, size: int, timestamp_ms: int) -> None:
        """Take one more message of `size` bytes in hand; offsets only grow, and may have gaps."""
        self._span.append((offset, timestamp_ms))
        self._bytes += size
        self.begun += 1
        self.next_offset = offset + 1
        self.full = self.full or self._reaches(MAX_MESSAGES, MAX_BYTES, MAX_SPAN)

    def follow(self, position: int) -> bool:
        """Note that no message before `position` is left to be read.

        Return whether that changes what is committable.
        """
        if self.next_offset is not None and position <= self.next_offset:
            return False
        self.next_offset = position
        return not self._span and not self._oldest_waiting

    def wait(self, offset: int, *, size: int, timestamp_ms: int, number: int) -> None:
        """Note that the message at `offset` waits, for a silent gateway or for a user's room.

        `number` is what `begun` was before the message was begun; the others as for `begin`.
        """
        self._waiting.add(offset)
        heappush(self._oldest_waiting, _Waiting(offset, timestamp_ms, number))
        self._pass(offset, size)

    def settle(self, offset: int, *, size: int) -> None:
        """Note that the message at `offset`, of `size` bytes, has its outcome."""
        if offset not in self._waiting:
            self._pass(offset, size)
            return
        self._waiting.discard(offset)
        oldest = self._oldest_waiting
        while oldest and oldest[0].offset not in self._waiting:
            heappop(oldest)
        self._read_on()

    def _pass(self, offset: int, size: int) -> None:
        """Take a message off the span, and off the messages and bytes that are bounded."""
        span, passed = self._span, self._passed
        self._bytes -= size
        if offset != span[0][0]:
            passed.add(offset)
        else:
            span.popleft()
            while span and span[0][0] in passed:
                passed.discard(span.popleft()[0])
        self._read_on()

    def _read_on(self) -> None:
        if self.full:
            self.full = self._reaches(MAX_MESSAGES // 2 + 1, MAX_BYTES // 2 + 1, MAX_SPAN // 2 + 1)

    def _reaches(self, messages: int, size: int, span: int) -> bool:
        in_hand = len(self._span) - len(self._passed)
        return (
            in_hand >= messages
            or self._bytes >= size
            or len(self._span) >= span
            or self._waits_too_long()
        )

    def _waits_too_long(self) -> bool:
        oldest = self._oldest_waiting
        return bool(oldest) and self.begun - oldest[0].number >= MAX_WAITING_SPAN
