"""Clients that are slow: bytes wait for the client, and the client takes none of them for a while.

A burst is not slowness. A full backlog says only that messages come faster than they go out, and
further messages are refused; a client is too slow when its backlog makes no progress.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gateway.connections.connection import TICK_SECONDS, StreamConnection

#: The kernel gives up such a client after the same time (TCP_USER_TIMEOUT), without a word. So a
#: client is found slow two ticks earlier (of a short limit: a half), and can be told.
_AHEAD_SECONDS: Final = 2 * TICK_SECONDS


class Slowness:
    """The connections with a backlog, and since when each backlog has made no progress.

    Connections without a backlog cost nothing here. With a backlog, one call to the kernel a tick
    (4 µs, measured). Time is passed in, in monotonic seconds.
    """

    def __init__(self, *, silence_seconds: float) -> None:
        """A client is slow that takes no byte for `silence_seconds`, at most."""
        ahead = min(_AHEAD_SECONDS + TICK_SECONDS, silence_seconds / 2)
        self._most_seconds = silence_seconds - ahead
        # By connection: the wire's progress when last seen to change, and the time of that.
        self._backlogged: dict[StreamConnection, tuple[int | None, float]] = {}

    def __len__(self) -> int:
        return len(self._backlogged)

    def watch(self, connection: StreamConnection, now: float) -> None:
        """Watch a connection until its backlog is gone. Harmless when repeated."""
        # The kernel is asked at the next tick only: most backlogs are gone by then.
        self._backlogged.setdefault(connection, (None, now))

    def advance(self, now: float) -> Iterator[StreamConnection]:
        """Yield the connections that are too slow; they are watched no longer."""
        for connection, (earlier_progress, since) in list(self._backlogged.items()):
            wire = connection.wire
            if wire is None or not connection.takes_messages or not wire.waits():
                del self._backlogged[connection]
            elif (progress := wire.progress()) != earlier_progress:
                self._backlogged[connection] = (progress, now)
            elif now - since >= self._most_seconds:
                del self._backlogged[connection]
                yield connection
