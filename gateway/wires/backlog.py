"""Writes that wait for one socket whose peer does not read: whole writes, in order."""

from __future__ import annotations

from collections import deque
from itertools import islice

from gateway.takeover.format import Unsent
from gateway.wires import CONTROL_BYTES


class Control(bytes):
    """The transport's own bytes among the writes of a backlog: no message."""

    __slots__ = ()


class Backlog:
    """Writes that the kernel did not take. The wire that owns a backlog bounds the backlog.

    A write that has begun to go out can't be dropped any more: the peer would see a torn message.
    `size` is the number of unsent bytes, `sent_bytes` how many were sent from the backlog, and
    `control_bytes` how many of the waiting writes are controls, sent in part or not.
    """

    __slots__ = ("_begun", "_sent_of_first", "_writes", "control_bytes", "sent_bytes", "size")

    def __init__(self, data: bytes, *, begun: bool) -> None:
        """`begun` says that `data` is the rest of a write of which a part is sent."""
        self._writes = deque((data,))
        self._begun = begun
        # An offset: the first write may be long, and slicing on every send would copy the rest.
        self._sent_of_first = 0
        self.size = len(data)
        self.sent_bytes = 0
        self.control_bytes = len(data) if isinstance(data, Control) else 0

    @classmethod
    def adopt(cls, unsent: Unsent) -> Backlog:
        """Return the backlog of an earlier process's wire; there is one write at least."""
        writes = [
            Control(write) if number in unsent.controls else write
            for number, write in enumerate(unsent.writes)
        ]
        backlog = cls(writes[0], begun=unsent.begun)
        for write in writes[1:]:
            backlog.append(write)
        return backlog

    def record(self) -> Unsent:
        """Return what is unsent, for the next process."""
        controls = [at for at, write in enumerate(self._writes) if isinstance(write, Control)]
        writes = [bytes(self.first()), *map(bytes, islice(self._writes, 1, None))]
        return Unsent(writes, controls, self._begun)

    def append(self, data: bytes) -> None:
        """Add a write to the end."""
        self._writes.append(data)
        self.size += len(data)
        if isinstance(data, Control):
            self.control_bytes += len(data)

    def has_room_for_control(self, length: int, *, limit: int) -> bool:
        """Whether a control of `length` bytes fits, where messages wait up to `limit` bytes.

        CONTROL_BYTES are for controls alone, also behind a first write longer than the limit.
        """
        return (
            self.size + length <= limit + CONTROL_BYTES
            or self.control_bytes + length <= CONTROL_BYTES
        )

    def first(self) -> bytes | memoryview:
        """Return the unsent bytes of the first write; the backlog must not be empty."""
        first = self._writes[0]
        return memoryview(first)[self._sent_of_first :] if self._sent_of_first else first

    def sent(self, count: int) -> None:
        """Take note that `count` more bytes of the first write are sent."""
        self.size -= count
        self.sent_bytes += count
        self._sent_of_first += count
        self._begun = self._sent_of_first < len(self._writes[0])
        if not self._begun:
            write = self._writes.popleft()
            self._sent_of_first = 0
            if isinstance(write, Control):
                self.control_bytes -= len(write)

    def messages(self) -> int:
        """Return how many messages are not wholly sent."""
        return sum(not isinstance(write, Control) for write in self._writes)

    def drop_oldest(self, limit: int, notice: bytes) -> int:
        """Drop the oldest messages until at most `limit` bytes wait; return how many.

        The last write stays, however long. One `notice` stands in place of the dropped writes, even
        when writes are dropped repeatedly.
        """
        # The front of the backlog is kept: a write that has begun, then the notice.
        front = [self._writes.popleft()] if self._begun else []
        has_notice = bool(notice and self._writes and self._writes[0] == notice)
        if has_notice:
            self._writes.popleft()
            self.size -= len(notice)
            self.control_bytes -= len(notice)
        dropped = 0
        controls: list[bytes] = []  # of these none is dropped: a client waits for what they say
        while len(self._writes) > 1 and self.size + len(notice) > limit:
            write = self._writes.popleft()
            if isinstance(write, Control):
                controls.append(write)
                continue
            self.size -= len(write)
            dropped += 1
        if notice and (dropped or has_notice):
            front.append(Control(notice))
            self.size += len(notice)
            self.control_bytes += len(notice)
        self._writes.extendleft(reversed([*front, *controls]))
        return dropped

    def __bool__(self) -> bool:
        return bool(self._writes)
