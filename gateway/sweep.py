"""One clock for all connections: no timer or task of their own.

A wheel of slots, a quarter of a second each; a connection sits in one slot at most, and the tick
that reaches the slot wakes it. Time is passed in and is monotonic: a clock jump drops nobody.
"""

from __future__ import annotations

from typing import Final

import structlog

from gateway.connection import Connection

log = structlog.get_logger("gateway.sweep")

TICK_SECONDS: Final = 0.25
_SLOTS: Final = 1_024
#: The furthest a wake-up may lie ahead.
HORIZON_SECONDS: Final = (_SLOTS - 1) * TICK_SECONDS


class Sweep:
    """Wakes connections when they asked to be woken."""

    def __init__(self, *, now: float) -> None:
        self._tick = int(now / TICK_SECONDS)
        self._slots: list[set[Connection]] = [set() for _ in range(_SLOTS)]

    def wake_at(self, connection: Connection, when: float) -> None:
        """Wake `connection` at `when`, a quarter of a second late at most; replaces the last call.

        Raises:
            ValueError: `when` is beyond the horizon.
        """
        self.forget(connection)
        ahead = max(1, -int(-when // TICK_SECONDS) - self._tick)
        if ahead >= _SLOTS:
            raise ValueError(f"{when} is more than {HORIZON_SECONDS} s ahead")
        connection.wake_slot = (self._tick + ahead) % _SLOTS
        self._slots[connection.wake_slot].add(connection)

    def forget(self, connection: Connection) -> None:
        """Wake `connection` no more. Harmless when repeated."""
        if connection.wake_slot >= 0:
            self._slots[connection.wake_slot].discard(connection)
            connection.wake_slot = -1

    def advance(self, now: float) -> None:
        """Wake whoever is due; a loop that was held up catches up."""
        target = int(now / TICK_SECONDS)
        due: list[Connection] = []
        for tick in range(max(self._tick + 1, target - _SLOTS + 1), target + 1):
            slot = tick % _SLOTS
            due += self._slots[slot]
            self._slots[slot] = set()
        self._tick = max(self._tick, target)
        for connection in due:
            connection.wake_slot = -1
        for connection in due:
            _wake(connection)


def _wake(connection: Connection) -> None:
    try:
        connection.wake()
    except Exception:
        # One connection's fault must not stop the clock of all others.
        log.exception("a connection failed to wake", transport=connection.transport)
