"""Requests for new connections take turns: so many in each turn of the event loop.

When a node's clients come to another node together, handshakes of several hundred clients arrive in
a turn of the loop. A handshake takes some 0.4 ms: messages for held connections would wait for all
of them. With turns, a turn of the loop stays short, and messages flow between two turns. No time is
lost: as long as a request waits, the next turn follows at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from gateway import metrics

#: Handshakes that begin in a turn of the loop: some 4 ms.
HANDSHAKES_A_TURN: Final = 10
#: Requests that wait at most. A further request begins at once, as if there were no turns: a client
#: that has left gives its socket back, while its request waits, so sockets bound nothing.
MOST_WAITING: Final = 10_000


class Turns:
    """A queue of requests for new connections, MOST_WAITING at most."""

    def __init__(self) -> None:
        self._room = HANDSHAKES_A_TURN  # in this turn of the loop
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._next: asyncio.Handle | None = None  # begins the next turn

    async def take(self) -> None:
        """Wait for a turn with room for the request; first come, first served."""
        loop = asyncio.get_running_loop()
        if self._next is None:
            self._next = loop.call_soon(self._begin, loop)
        if self._room:
            self._room -= 1
            return
        if len(self._waiting) >= MOST_WAITING:
            metrics.TURNS_OVERFLOWS.inc()
            return
        turn = loop.create_future()
        self._waiting.append(turn)
        metrics.WAITING_HANDSHAKES.set(len(self._waiting))
        await turn

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin a turn of the loop: requests that have waited come first."""
        self._next = None
        self._room = HANDSHAKES_A_TURN
        if not self._waiting:
            return
        while self._waiting and self._room:
            turn = self._waiting.popleft()
            if not turn.done():  # else the request was given up
                turn.set_result(None)
                self._room -= 1
        metrics.WAITING_HANDSHAKES.set(len(self._waiting))
        self._next = loop.call_soon(self._begin, loop)
