"""Up to when a node's connections have everything: the `as-of` of cursors.

Everything settled before the time has been handed to the connections. A node can't know so much by
itself: a processor may have settled a message without the node's answer. So the time moves only as
far as the registry vouches, by a held lease, and every live processor, by stamps
(registry/resume.py).
"""

from __future__ import annotations

from collections.abc import Collection

from gateway.connections.cursor import base36
from registry.clock import RegistryClock


class AsOf:
    """The time of a node's cursors, by the registry's clock in milliseconds; never goes back."""

    __slots__ = ("_held_ms", "_processors", "_stamps_ms", "clock", "ms", "text")

    def __init__(self) -> None:
        self.ms = 0
        #: `ms` in the form of cursors; empty before the node's first lease.
        self.text = ""
        self.clock = RegistryClock()
        self._held_ms = 0
        self._processors: frozenset[str] = frozenset()
        self._stamps_ms: dict[str, int] = {}  # by processor

    @property
    def processors(self) -> frozenset[str]:
        """The live processors at the last reading."""
        return self._processors

    def go_on(self, ms: int) -> None:
        """Take the time of the earlier process over; 0 where it had none."""
        self.ms = ms
        self.text = base36(ms) if ms else ""

    def held(self, time_ms: int, processors: Collection[str], *, at: float) -> None:
        """Note a time of a held lease, and the processors that were live.

        `at` is the same time by a monotonic clock, in seconds.
        """
        self.clock.set(time_ms, at=at)
        self._held_ms = time_ms
        self._processors = frozenset(processors)
        self._stamps_ms = {
            name: stamp_ms for name, stamp_ms in self._stamps_ms.items() if name in processors
        }
        self._advance()

    def stamped(self, processor: str, stamp_ms: int) -> None:
        """Note a processor's word for everything settled before a time."""
        if stamp_ms > self._stamps_ms.get(processor, 0):
            self._stamps_ms[processor] = stamp_ms
            self._advance()

    def _advance(self) -> None:
        # A processor without a stamp holds the time up: for a second, at its start.
        first = not self.ms
        vouched = [self._stamps_ms.get(name, self.ms) for name in self._processors]
        ms = self._held_ms if first else min((self._held_ms, *vouched))
        if ms > self.ms:
            self.ms = ms
            self.text = base36(ms)
