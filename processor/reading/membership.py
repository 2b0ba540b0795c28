"""Whether this process is a member of the group for certain: a lease of the session time-out.

The broker gives a member up after the session time-out without a heartbeat. So a member with an
older answered heartbeat (Kafka is silent, or the process was frozen) may have lost partitions to a
second member, and the second member now reads the records and tells the outcomes. Until a
heartbeat is answered, a member in doubt takes no records in and tells no outcomes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from processor.reading.kafka import SESSION_TIMEOUT_MS

#: Counted from the moment at which a heartbeat was sent; the broker counts from its receipt.
_LEASE_SECONDS: Final = SESSION_TIMEOUT_MS / 1_000
#: A pause between two answers in which other members may have been given up too: twice the time
#: between heartbeats.
_SILENCE_SECONDS: Final = SESSION_TIMEOUT_MS / 1_000 / 2
#: How long other members are in doubt after such a silence: the time that a member may take to join
#: anew, and this member's next heartbeat to bring the news.
DOUBT_SECONDS: Final = 3.0


class Membership:
    """One member's lease."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds."""
        self.now = clock
        self._confirmed_at: float | None = None  # when the last answered heartbeat was sent
        self._answered_at: float | None = None
        self._silence_ended_at: float | None = None
        self._confirmed = asyncio.Event()

    @property
    def certain(self) -> bool:
        """Whether the partitions are this member's for certain."""
        at = self._confirmed_at
        return at is not None and self.now() - at < _LEASE_SECONDS

    @property
    def others_in_doubt(self) -> bool:
        """Whether other members may have been given up lately, and be about to join anew."""
        at = self._silence_ended_at
        return at is not None and self.now() - at < DOUBT_SECONDS

    def confirm(self, sent_at: float) -> None:
        """Note that the group has just answered a heartbeat that was sent at `sent_at`."""
        self._confirmed_at = sent_at
        previous, self._answered_at = self._answered_at, self.now()
        if previous is not None and self._answered_at - previous > _SILENCE_SECONDS:
            self._silence_ended_at = self._answered_at
        self._confirmed.set()

    async def certainty(self, *, timeout_seconds: float | None = None) -> bool:
        """Return True once the membership is certain, or False after the time-out."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while not self.certain:
                    self._confirmed.clear()
                    await self._confirmed.wait()
        except TimeoutError:
            return False
        return True
