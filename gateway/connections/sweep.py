"""One clock for all connections: no connection has a timer or a task of its own.

The clock is a timing wheel of 1,024 slots, a quarter of a second each. A connection sits in one
slot at most: the slot of the first tick at which something of the connection is due. Time is passed
in and is monotonic: a jump of the wall clock closes no connection.
"""

from __future__ import annotations

import math
from typing import Final

from gateway.connections.connection import NEVER, TICK_SECONDS, Connection, State

_SLOTS: Final = 1_024
#: The slots' numbers, as int objects that are made once. Every connection keeps the number of its
#: slot; a number computed afresh would be one more int object per connection.
_SLOT_NUMBERS: Final = tuple(range(_SLOTS))
#: No real tick lies beyond the horizon: only NEVER lies there, and the notice before an expiry at
#: NEVER, a few ticks earlier.
_HORIZON: Final = NEVER // 2


class Sweep:
    """Calls `due` of a connection when a wake-up, an age or an expiry is due."""

    def __init__(self, *, now: float) -> None:
        self._tick = int(now / TICK_SECONDS)
        self._slots: list[set[Connection]] = [set() for _ in _SLOT_NUMBERS]

    @staticmethod
    def tick_at(when: float) -> int:
        """Return the first tick at or after `when`, a monotonic time in seconds."""
        return math.ceil(when / TICK_SECONDS)

    def place(self, connection: Connection) -> None:
        """Move a connection to the slot of its next tick, after a change of its ticks."""
        self.forget(connection)
        if connection.next_tick() > _HORIZON:
            return
        # A tick beyond the wheel gets the wheel's last slot. Nothing is due there, and the
        # connection is placed again.
        tick = min(max(connection.next_tick(), self._tick + 1), self._tick + _SLOTS - 1)
        connection.slot = _SLOT_NUMBERS[tick % _SLOTS]
        self._slots[connection.slot].add(connection)

    def forget(self, connection: Connection) -> None:
        """Take a connection off the wheel. Harmless when repeated."""
        if connection.slot >= 0:
            self._slots[connection.slot].discard(connection)
            connection.slot = -1

    def advance(self, now: float) -> None:
        """Call `due` of all connections that are due by `now`, also after a stall of the loop."""
        target = int(now / TICK_SECONDS)
        due: list[Connection] = []
        for tick in range(max(self._tick + 1, target - _SLOTS + 1), target + 1):
            slot = tick % _SLOTS
            due += self._slots[slot]
            self._slots[slot] = set()
        self._tick = max(self._tick, target)
        # All are off the wheel before the first call: a call may place or forget any connection.
        for connection in due:
            connection.slot = -1
        for connection in due:
            self._call(connection)

    def _call(self, connection: Connection) -> None:
        try:
            connection.due(self._tick)
        except Exception:  # a fault in one connection must not stop the clock of all
            connection.failed()
        if connection.slot < 0 and connection.state is not State.CLOSED:
            self.place(connection)
