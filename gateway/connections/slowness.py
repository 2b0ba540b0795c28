"""Clients that are slow: bytes wait for the client, and the client takes none of them for a while.

A burst is not slowness. A full backlog says only that messages come faster than they go out, and
further messages are refused; a client is too slow when its backlog makes no progress.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gateway.connections.connection import TICK_SECONDS, StreamConnection
from gateway.takeover.format import Stalled

#: How long the kernel bears a watched client: as long as it will.
_WHILE_WATCHED: Final = 0.0


class Slowness:
    """The connections with a backlog, and since when each backlog has made no progress.

    Connections without a backlog cost nothing here. With a backlog, two calls to the kernel a tick
    (4 µs, measured). Time is passed in, in monotonic seconds.

    The kernel's own clock (TCP_USER_TIMEOUT) is off for a watched connection. It runs until the
    client has room for a whole segment, up to 64 KB, so it ends clients that read slowly (measured:
    32 KB a second, steadily), and without a word. A connection is watched until the client's kernel
    has taken everything, since the kernel's clock would count what was before.
    """

    def __init__(self, *, silence_seconds: float) -> None:
        """A client is slow that takes no byte for `silence_seconds`, give or take one tick."""
        self._silence_seconds = silence_seconds
        self._most_seconds = max(TICK_SECONDS, silence_seconds - TICK_SECONDS)
        # By connection: the wire's progress when last seen to change, and the time of that.
        self._backlogged: dict[StreamConnection, tuple[int | None, float]] = {}

    def __len__(self) -> int:
        return len(self._backlogged)

    def watch(self, connection: StreamConnection, now: float) -> None:
        """Watch a connection until its client has taken everything. Harmless when repeated."""
        # The kernel is asked at the next tick only: most backlogs are gone by then.
        self._backlogged.setdefault(connection, (None, now))

    def record(self, connection: StreamConnection, now: float) -> Stalled | None:
        """Return for how long a connection's backlog has made no progress; None if not watched."""
        progress, since = self._backlogged.get(connection, (None, None))
        return None if since is None else Stalled(now - since, progress)

    def forget(self, connection: StreamConnection) -> None:
        """Watch a connection no longer: the next process has it. Harmless when repeated."""
        self._backlogged.pop(connection, None)

    def adopt(self, connection: StreamConnection, stalled: Stalled, now: float) -> None:
        """Watch a connection that the earlier process has watched."""
        self._backlogged[connection] = (stalled.progress, now - stalled.seconds)

    def advance(self, now: float) -> Iterator[StreamConnection]:
        """Yield the connections that are too slow; they are watched no longer."""
        for connection in list(self._backlogged):
            try:
                is_slow = self._is_slow(connection, now)
            except Exception:  # whatever the fault: the other connections go on
                self._backlogged.pop(connection, None)
                connection.failed()
                continue
            if is_slow:
                del self._backlogged[connection]
                yield connection

    def _is_slow(self, connection: StreamConnection, now: float) -> bool:
        """Whether a watched connection is too slow; ends the watch of one that is not any more."""
        earlier_progress, since = self._backlogged[connection]
        wire = connection.wire
        if wire is None or not connection.takes_messages:
            del self._backlogged[connection]
        elif wire.all_taken():
            del self._backlogged[connection]
            wire.bear(self._silence_seconds)
        elif (progress := wire.progress()) != earlier_progress:
            self._backlogged[connection] = (progress, now)
            if earlier_progress is None:
                wire.bear(_WHILE_WATCHED)
        else:
            return now - since >= self._most_seconds
        return False
