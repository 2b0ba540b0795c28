"""A node's slow departure: how many clients are told to reconnect, and when.

Times are passed in, in seconds of a monotonic clock.
"""

from __future__ import annotations

import math
from typing import Final

from gateway.connections.closes import CLOSE_GRACE_SECONDS
from gateway.takeover.format import DrainRecord

#: The largest share of a window for the settling at its start, and also for the farewell at its
#: end: the delay and the grace of the clients that are told last.
_MOST_SHARE: Final = 0.25


class Drain:
    """The schedule of a node's way out, over a window of time.

    The window starts with the settling: `/readyz` answers 503, and new clients are still taken.
    Then clients are told to reconnect, in equal steps, and early enough for the last client's delay
    and grace. Connections that remain at `ends_at` are closed.
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
        """At most `rate` clients are told in one second; 0 for no limit."""
        longest_phase = window_seconds * _MOST_SHARE
        farewell = min(reconnect_delay_seconds + CLOSE_GRACE_SECONDS, longest_phase)
        self.settled_at = began + min(settle_seconds, longest_phase)
        self.ends_at = began + window_seconds
        #: The longest delay, in seconds, between being told to reconnect and reconnecting.
        self.longest_delay = max(0.0, min(reconnect_delay_seconds, farewell - CLOSE_GRACE_SECONDS))
        self._all_told_at = self.ends_at - farewell
        self._rate = rate
        self.told_clients = 0

    @classmethod
    def adopt(cls, record: DrainRecord, now: float) -> Drain:
        """Return the drain that the earlier process has begun."""
        drain = cls(
            began=now,
            window_seconds=0.0,
            settle_seconds=0.0,
            reconnect_delay_seconds=0.0,
            rate=record.rate,
        )
        drain.settled_at, drain.ends_at = now + record.settled_in, now + record.ends_in
        drain._all_told_at = now + record.all_told_in
        drain.longest_delay, drain.told_clients = record.longest_delay, record.told_clients
        return drain

    def record(self, now: float) -> DrainRecord:
        """Return the drain for the next process."""
        return DrainRecord(
            self.settled_at - now,
            self.ends_at - now,
            self._all_told_at - now,
            self.longest_delay,
            self._rate,
            self.told_clients,
        )

    def hasten(self, now: float) -> None:
        """End the window now: every remaining client is told at once, without a delay."""
        self.settled_at = self._all_told_at = self.ends_at = min(now, self.ends_at)
        self.longest_delay = 0.0
        self._rate = 0.0

    def settled(self, now: float) -> bool:
        """Whether the settling is over: new clients are to be refused."""
        return now >= self.settled_at

    def has_ended(self, now: float) -> bool:
        """Whether the window is over: the remaining connections are to be closed."""
        return now >= self.ends_at

    def seconds_left(self, now: float) -> float:
        """Return how long the window still lasts; 0 once it is over."""
        return max(0.0, self.ends_at - now)

    def step(self, now: float, *, untold: int) -> int:
        """Return how many of the `untold` clients to tell now; the caller tells them at once.

        The returned number counts as told.
        """
        if not self.settled(now):
            return 0
        span = self._all_told_at - self.settled_at
        share = min(1.0, (now - self.settled_at) / span) if span > 0 else 1.0
        target = math.ceil((self.told_clients + untold) * share)
        if self._rate:
            target = min(target, math.ceil((now - self.settled_at) * self._rate))
        count = max(0, min(untold, target - self.told_clients))
        self.told_clients += count
        return count
