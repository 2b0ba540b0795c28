"""The registry's clock, as a process knows it between two readings.

Cursors, stamps and marks are times of this one clock: the clocks of two processes may be minutes
apart, and a difference of five seconds would lose messages, or repeat them.
"""

from __future__ import annotations


class RegistryClock:
    """The registry's time, by a monotonic clock since the last reading; never ahead of it."""

    __slots__ = ("_read_at", "_read_ms")

    def __init__(self) -> None:
        self._read_ms: int | None = None
        self._read_at = 0.0

    def set(self, now_ms: int, *, at: float) -> None:
        """Take a reading: the registry's time in Unix milliseconds, which came at `at`, monotonic.

        The registry's time was read before it came, so the clock is behind by the answer's way.
        """
        self._read_ms, self._read_at = now_ms, at

    def now_ms(self, at: float) -> int | None:
        """Return the registry's time at a monotonic time in seconds; None before any reading."""
        if self._read_ms is None:
            return None
        return self._read_ms + int((at - self._read_at) * 1_000)
