"""How bytes reach a held socket. Wires know no protocol."""

from __future__ import annotations

from typing import Protocol


class Wire(Protocol):
    """A held socket, as whoever holds it sees it. Nothing is received before `listen`."""

    def listen(self) -> None:
        """Begin to receive; what came before waits in the kernel."""

    def write(self, data: bytes) -> bool:
        """Hand `data` to the kernel or the bounded buffer, in order.

        Returns False when the socket is gone, or the holder was told of an overflow and did not
        make room.
        """

    def begun(self, rest: bytes) -> None:
        """Send the rest of a write that its holder began itself, where the wire let it."""

    def drop_oldest(self, notice: bytes) -> int:
        """Make room: drop the oldest writes of which nothing is out yet, and return how many.

        `notice` is sent in their place.
        """

    def drop_all(self) -> None:
        """Drop every write of which nothing is out yet."""

    def close(self) -> None:
        """Close after what was written; nothing more is received. Harmless when repeated."""

    def abort(self) -> None:
        """Close at once: waiting for a stalled peer's flush may take for ever."""


class Held(Protocol):
    """Whoever holds a wire."""

    def received(self, data: bytes) -> None:
        """Take inbound bytes."""

    def overflowed(self) -> bool:
        """Make room, which is True, or end it: the peer does not read, and the buffer is full."""

    def lost(self) -> None:
        """The socket is gone. Called once, also after `close` and `abort`."""


class Streamed(Held, Protocol):
    """Whoever holds a wire for many messages."""

    #: Set by the wire: a descriptor that takes a write at once, without the wire, while nothing
    #: waits and nothing ends; else -1.
    direct: int
