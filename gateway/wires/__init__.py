"""How bytes reach a held socket.

A wire holds one socket that has left HTTP, and knows no protocol: bytes in, bytes out, and a
bounded backlog for a peer that does not read. `epoll` is the cheapest wire (Linux, plaintext),
`transport` works everywhere, `choice` decides between the two, `burst` writes a batch to many
wires, `backlog` has the waiting writes of one wire. This wing is a leaf: it imports no other part
of the gateway. Connections and transports import it.
"""

from __future__ import annotations

from typing import Protocol


class Wire(Protocol):
    """A held socket, as the holder sees it. Nothing is received before `listen`."""

    #: The socket's descriptor, for a write directly to the kernel while the backlog is empty and
    #: the wire is not closing; otherwise -1. See burst.py.
    direct: int

    def listen(self) -> None:
        """Begin to receive; bytes that came earlier wait in the kernel."""

    def write(self, data: bytes) -> bool:
        """Hand `data` to the kernel or the bounded backlog, in order.

        Returns False when the socket is gone, or the backlog overflowed and the holder did not make
        room.
        """

    def finish(self, rest: bytes) -> None:
        """Send the rest of a write that was begun at `direct`."""

    def drop_oldest(self, notice: bytes) -> int:
        """Make room: drop the oldest writes that have not begun to go out; return how many.

        `notice` is sent in place of the dropped writes.
        """

    def drop_all(self) -> None:
        """Drop every write that has not begun to go out."""

    def close(self) -> None:
        """Send the backlog, close this side, and discard bytes until the peer closes the other.

        A socket that is closed with unread bytes in it resets the connection, and the peer may lose
        bytes that it has not read yet (RFC 6455 §7.1.1). The holder bounds the time with `abort`.
        Harmless when repeated.
        """

    def abort(self) -> None:
        """Close at once, and drop the backlog: a stalled peer may never read the backlog."""


class Holder(Protocol):
    """The owner of a wire: a connection, or a parked poll request."""

    def received(self, data: bytes) -> None:
        """Take bytes from the peer."""

    def overflowed(self) -> bool:
        """Make room in the full backlog and return True; or return False and end the peer."""

    def lost(self) -> None:
        """Take note that the socket is gone. Called once, after `close` and `abort` too."""


class Borrower(Holder, Protocol):
    """The holder of a lent wire: a parked poll request."""

    def unheard(self) -> None:
        """Take note that the peer has vanished: it answers the kernel no more. `lost` follows."""
