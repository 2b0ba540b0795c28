"""How bytes reach a held socket.

A wire holds one socket that has left HTTP, and knows no protocol: bytes in, bytes out, and a
bounded backlog where the peer does not read. `epoll` is the cheapest wire (Linux, plaintext),
`transport` works everywhere, `choice` decides between them, `burst` writes a batch to many wires.
This wing is a leaf: it imports no other part of the gateway, and connections and transports
import it.
"""

from __future__ import annotations

from typing import Protocol


class Wire(Protocol):
    """A held socket, as its holder sees it. Nothing is received before `listen`."""

    #: A descriptor that takes the next write at once, past the wire, while the backlog is empty
    #: and nothing closes; else -1. See burst.py.
    direct: int

    def listen(self) -> None:
        """Begin to receive; earlier bytes wait in the kernel."""

    def write(self, data: bytes) -> bool:
        """Hand `data` to the kernel or the bounded backlog, in order.

        Returns False when the socket is gone, or the holder was told of an overflow and did not
        make room.
        """

    def finish(self, rest: bytes) -> None:
        """Send the rest of a write that was begun at `direct`."""

    def drop_oldest(self, notice: bytes) -> int:
        """Make room: drop the oldest writes that have not begun to go out; return their number.

        `notice` is sent in their place.
        """

    def drop_all(self) -> None:
        """Drop every write that has not begun to go out."""

    def close(self) -> None:
        """Close after the backlog is sent; nothing more is received. Harmless when repeated."""

    def abort(self) -> None:
        """Close at once: to send a stalled peer its backlog may take for ever."""


class Holder(Protocol):
    """What holds a wire: a connection, or a parked poll request."""

    def received(self, data: bytes) -> None:
        """Take inbound bytes."""

    def overflowed(self) -> bool:
        """Make room in the full backlog, which is True, or end a peer that does not read."""

    def lost(self) -> None:
        """Take note that the socket is gone. Called once, also after `close` and `abort`."""
