"""The rows that wait for a topic, write after write, in their order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

from processor.outcomes.writer import Row

#: Writes join the first write until the first write has so many rows.
MOST_JOINED: Final = 4_096


class Write:
    """The rows of one call."""

    __slots__ = ("over", "rows", "size")

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = list(rows)
        self.size = sum(row.size for row in rows)
        #: Set when no caller is to wait any longer.
        self.over = asyncio.Event()


class KeptRows:
    """A queue of writes. The first may be in flight, and stays until it is `done`."""

    def __init__(self) -> None:
        self._writes: deque[Write] = deque()
        self._in_flight: Write | None = None
        self._changed = asyncio.Event()
        self.rows = 0
        self.size = 0  # bytes

    def append(self, rows: Sequence[Row]) -> Write:
        """Add rows as the last write."""
        write = Write(rows)
        self._writes.append(write)
        self._count(write, +1)
        return write

    async def first(self) -> Write:
        """Return the first write, once there is a write; the write is in flight from now on.

        Where no caller waits for the first write, the next writes without a waiting caller join the
        first write, up to MOST_JOINED rows. While the topic is in trouble many small writes come,
        and acknowledgements of single writes could be slower than the writes come.
        """
        while not self._writes:
            self._changed.clear()
            await self._changed.wait()
        first = self._in_flight = self._writes[0]
        if first.over.is_set():
            self._join(first)
        return first

    def _join(self, first: Write) -> None:
        del self._writes[0]
        while self._writes and self._writes[0].over.is_set() and len(first.rows) < MOST_JOINED:
            joining = self._writes.popleft()
            first.rows += joining.rows
            first.size += joining.size
        self._writes.appendleft(first)

    async def emptied(self) -> None:
        """Return when there are no rows."""
        while self._writes:
            self._changed.clear()
            await self._changed.wait()

    def done(self) -> None:
        """Take the write in flight off the queue: its rows are written, or lost."""
        write = self._land()
        self._writes.popleft()
        self._count(write, -1)
        write.over.set()

    def put_back(self, rows: Sequence[Row]) -> None:
        """Let the write in flight be the first again, with `rows` alone: the others are written."""
        write = self._land()
        self._count(write, -1)
        write.rows, write.size = list(rows), sum(row.size for row in rows)
        self._count(write, +1)

    def withdraw(self, write: Write) -> None:
        """Remove a write, unless it is in flight or gone."""
        if write is not self._in_flight and write in self._writes:
            self._writes.remove(write)
            self._count(write, -1)

    def let_go(self) -> None:
        """End the wait of every caller; the rows stay."""
        for write in self._writes:
            write.over.set()

    def cut(self, most_rows: int, most_bytes: int) -> int:
        """Remove the last writes until the bounds hold; return the number of rows removed."""
        before = self.rows
        while self.rows > most_rows or self.size > most_bytes:
            if self._writes[-1] is self._in_flight:
                break
            self._count(self._writes.pop(), -1)
        return before - self.rows

    def _land(self) -> Write:
        write, self._in_flight = self._in_flight, None
        assert write is not None  # noqa: S101 - only a write in flight ends
        return write

    def _count(self, write: Write, sign: int) -> None:
        self.rows += sign * len(write.rows)
        self.size += sign * write.size
        self._changed.set()
