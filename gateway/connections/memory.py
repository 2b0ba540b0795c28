"""The memory mark: whether a node is short of memory, and so takes nothing that would stay.

Resident memory alone does not say so: of the memory of slow clients who have left, most is free and
still resident. So free memory is first given back to the system, and free memory that can't be
given back does not count.
"""

from __future__ import annotations

from typing import Final, Protocol

#: Hysteresis: a shortage ends when the memory is down to this share of the mark.
_CALM_SHARE: Final = 0.95
#: Resident memory above this share of the mark is a shortage, however much of the memory is free:
#: the free bytes are of use for small objects only.
_RESIDENT_SHARE: Final = 1.05
_SECONDS: Final = 1.0
#: The memory is measured after so many bytes of pushed batches too: within a second, a processor
#: can push more than the system has.
_PUSHED_BYTES: Final = 1024 * 1024


class Memory(Protocol):
    """The memory of the process, in bytes: see heap.py."""

    def resident(self) -> int:
        """Return the resident memory."""

    def give_back(self) -> None:
        """Give free memory back to the system, as far as that is possible."""

    def reusable(self) -> int:
        """Return the resident memory that is free, and can't be given back."""


class MemoryMark:
    """Whether the memory has reached a mark. Times are of a monotonic clock, in seconds."""

    def __init__(self, mark_bytes: int, memory: Memory) -> None:
        """A mark of 0 is never reached."""
        self.reached = False
        self._mark = mark_bytes
        self._memory = memory
        self._pushed = 0  # bytes since the last measurement
        self._measured_at = 0.0
        self._gave_back_at = 0.0

    def advance(self, now: float) -> None:
        """Measure the memory, once a second at most."""
        if now - self._measured_at >= _SECONDS:
            self._measure(now)

    def pushed(self, size: int, now: float) -> None:
        """Take note of `size` more bytes of a batch, and measure the memory now and then."""
        self._pushed += size
        if self._pushed >= _PUSHED_BYTES and not self.reached:
            self._measure(now)

    def _measure(self, now: float) -> None:
        self._pushed = 0
        self._measured_at = now
        if self._mark:
            enough = self._mark * (_CALM_SHARE if self.reached else 1)
            self.reached = self._exceeds(enough, now)

    def _exceeds(self, enough: float, now: float) -> bool:
        resident = self._memory.resident()
        # Once a second at most, since giving back takes a while.
        if resident > enough and now - self._gave_back_at >= _SECONDS:
            self._gave_back_at = now
            self._memory.give_back()
            resident = self._memory.resident()
        if resident <= enough or resident > self._mark * _RESIDENT_SHARE:
            return resident > enough
        return resident - self._memory.reusable() > enough
