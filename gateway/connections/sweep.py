"""One clock for all connections: no timer or task of their own.

A wheel of slots, a quarter of a second each; a connection sits in one slot at most, the one in
which something of it is due next. Time is passed in and is monotonic: a clock jump drops nobody.
"""

from __future__ import annotations

import math
from typing import Final

import structlog

from gateway.connections.connection import NEVER, TICK_SECONDS, Connection, State

log = structlog.get_logger("gateway.sweep")

_SLOTS: Final = 1_024
#: The wheel's numbers, made once: each connection keeps one.
_NUMBERS: Final = tuple(range(_SLOTS))


#: With a notice before an expiry that never comes, nothing lies this far ahead.
_HORIZON: Final = NEVER // 2


class Sweep:
    """Tells connections when something of theirs is due."""

    def __init__(self, *, now: float) -> None:
        self._tick = int(now / TICK_SECONDS)
        self._slots: list[set[Connection]] = [set() for _ in _NUMBERS]

    @staticmethod
    def tick_at(when: float) -> int:
        """Return the first tick at or after `when`."""
        return math.ceil(when / TICK_SECONDS)

    def place(self, connection: Connection) -> None:
        """Put the connection where it is due; its ticks have changed."""
        self.forget(connection)
        if connection.next_tick() > _HORIZON:
            return
        # What lies beyond the wheel is looked at on the way, and placed again.
        tick = min(max(connection.next_tick(), self._tick + 1), self._tick + _SLOTS - 1)
        connection.slot = _NUMBERS[tick % _SLOTS]
        self._slots[connection.slot].add(connection)

    def forget(self, connection: Connection) -> None:
        """Drop the connection. Harmless when repeated."""
        if connection.slot >= 0:
            self._slots[connection.slot].discard(connection)
            connection.slot = -1

    def advance(self, now: float) -> None:
        """Tell whoever is due; a loop that was held up catches up."""
        target = int(now / TICK_SECONDS)
        due: list[Connection] = []
        for tick in range(max(self._tick + 1, target - _SLOTS + 1), target + 1):
            slot = tick % _SLOTS
            due += self._slots[slot]
            self._slots[slot] = set()
        self._tick = max(self._tick, target)
        for connection in due:
            connection.slot = -1
        for connection in due:
            self._tell(connection)

    def _tell(self, connection: Connection) -> None:
        try:
            connection.due(self._tick)
        except Exception:
            # One connection's fault must not stop the clock of all others.
            log.exception("a connection failed at what was due", transport=connection.transport)
        if connection.slot < 0 and connection.state is not State.CLOSED:
            self.place(connection)
