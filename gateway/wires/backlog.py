"""What waits for one socket whose peer does not read: whole writes, in order."""

from __future__ import annotations

from collections import deque


class Backlog:
    """Writes that the kernel did not take. Its owner keeps it bounded.

    A write of which a part is out can't be dropped any more: the peer would see a torn message.
    """

    __slots__ = ("_begun", "_out", "_parts", "size")

    def __init__(self, data: bytes, *, begun: bool) -> None:
        """`begun` says that `data` is the rest of a write."""
        self._parts = deque((data,))
        self._begun = begun
        self._out = (
            0  # so much of the first is out: it may be long, and is not copied for each step
        )
        self.size = len(data)

    def append(self, data: bytes) -> None:
        """Let one more write wait."""
        self._parts.append(data)
        self.size += len(data)

    def first(self) -> bytes | memoryview:
        """Return what goes out next; there must be something."""
        first = self._parts[0]
        return memoryview(first)[self._out :] if self._out else first

    def sent(self, count: int) -> None:
        """Take note that so much of the first is out."""
        self.size -= count
        self._out += count
        self._begun = self._out < len(self._parts[0])
        if not self._begun:
            self._parts.popleft()
            self._out = 0

    def drop_oldest(self, limit: int, notice: bytes) -> int:
        """Drop the oldest writes, but the last, until at most `limit` bytes wait; return how many.

        `notice` stands in their place, once however often that happens.
        """
        begun = [self._parts.popleft()] if self._begun else []
        told = bool(notice and self._parts and self._parts[0] == notice)
        if told:
            self._parts.popleft()
            self.size -= len(notice)
        dropped = 0
        while len(self._parts) > 1 and self.size + len(notice) > limit:
            self.size -= len(self._parts.popleft())
            dropped += 1
        if notice and (dropped or told):
            begun.append(notice)
            self.size += len(notice)
        self._parts.extendleft(reversed(begun))
        return dropped

    def drop_all(self) -> None:
        """Drop all that may be dropped."""
        kept = [self._parts[0]] if self._begun else []
        self._parts = deque(kept)
        self.size = sum(map(len, kept)) - self._out

    def __bool__(self) -> bool:
        return bool(self._parts)
