"""Leaving slowly: how many clients have been told to go by when. Time is passed in, in seconds."""

from __future__ import annotations

import math
from typing import Final

from gateway.connections.closes import CLOSE_GRACE_SECONDS

#: What of a window may go to its settling, and to the farewell of those told last.
_SHARE: Final = 0.25


class Drain:
    """A node's way out over a window.

    Settling: readyz is 503, new clients are still taken. Then clients are told, in equal steps,
    early enough for the last one's delay and grace. Who is left at `ends_at` is closed.
    """

    def __init__(
        self,
        *,
        began: float,
        window_seconds: float,
        settle_seconds: float,
        reconnect_delay_seconds: float,
        rate: float,
    ) -> None:
        """`rate` clients are told a second at most; 0 for no limit."""
        share = window_seconds * _SHARE
        farewell = min(reconnect_delay_seconds + CLOSE_GRACE_SECONDS, share)
        self.settled_at = began + min(settle_seconds, share)
        self.ends_at = began + window_seconds
        #: How long a client that is told may wait before it reconnects, at most.
        self.longest_delay = max(0.0, min(reconnect_delay_seconds, farewell - CLOSE_GRACE_SECONDS))
        self._told_by = self.ends_at - farewell
        self._rate = rate
        self._told = 0

    def hasten(self, now: float) -> None:
        """Tell everybody, now."""
        self.settled_at = self._told_by = self.ends_at = min(now, self.ends_at)
        self.longest_delay = 0.0
        self._rate = 0.0

    def settled(self, now: float) -> bool:
        """Whether new clients are to be refused."""
        return now >= self.settled_at

    def over(self, now: float) -> bool:
        """Whether those that are left are to be closed."""
        return now >= self.ends_at

    def step(self, now: float, *, untold: int) -> int:
        """Return how many of the clients not told yet are to be told now; they count as told."""
        if not self.settled(now):
            return 0
        span = self._told_by - self.settled_at
        share = min(1.0, (now - self.settled_at) / span) if span > 0 else 1.0
        target = math.ceil((self._told + untold) * share)
        if self._rate:
            target = min(target, math.ceil((now - self.settled_at) * self._rate))
        count = max(0, min(untold, target - self._told))
        self._told += count
        return count
