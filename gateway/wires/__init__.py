"""How bytes reach a held socket.

A wire holds one socket that has left HTTP, and knows no protocol: bytes in, bytes out, and a
bounded backlog for a peer that does not read. `epoll` is the cheapest wire (Linux, plaintext),
`transport` works everywhere, `choice` decides between the two, `burst` writes a batch to many
wires, `backlog` has the waiting writes of one wire. This wing is a leaf: it imports no other part
of the gateway. Connections and transports import it.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from gateway.takeover.format import Unsent

#: How many bytes of controls (pongs, a goodbye) a backlog that is full of messages takes.
CONTROL_BYTES: Final = 16_384


class CapturedSocket(NamedTuple):
    """A socket that has left its wire for the next process, and what the wire had to send."""

    descriptor: int
    unsent: Unsent | None


class Wire(Protocol):
    """A held socket, as the holder sees it.

    Nothing is received before `listen`; the peer's end is noticed before, too. Bytes ahead of such
    an end are discarded.
    """

    #: The socket's descriptor, for a write directly to the kernel while the backlog is empty and
    #: the wire is not closing; otherwise -1. See burst.py.
    direct: int

    def listen(self) -> None:
        """Begin to receive; bytes that came earlier have waited."""

    def write(self, data: bytes) -> bool:
        """Hand one message to the kernel or the bounded backlog, in order.

        Returns False when the socket is gone, or `data` does not fit the backlog: then nothing of
        `data` is taken, and the backlog stays as it is. With an empty backlog everything fits.
        """

    def write_control(self, data: bytes) -> None:
        """Hand the transport's own bytes, no message, to the kernel or the backlog, in order.

        A full backlog takes up to `CONTROL_BYTES` more; a peer that does not read, and causes yet
        more control bytes, is cut off.
        """

    def finish(self, rest: bytes) -> None:
        """Send the rest of a write that was begun at `direct`."""

    def displace(self, data: bytes, notice: bytes) -> int:
        """Take one message into the full backlog in place of the oldest messages.

        Returns how many messages were dropped. `notice` is sent in their place.
        """

    def waits(self) -> bool:
        """Whether bytes wait for the peer to read."""

    def progress(self) -> int:
        """Return a number that changes whenever the peer takes bytes that wait."""

    def all_taken(self) -> bool:
        """Whether the peer's kernel has taken everything that was written."""

    def bear(self, seconds: float) -> None:
        """Have the kernel bear a peer for `seconds` (TCP_USER_TIMEOUT); 0: as long as it will."""

    @property
    def can_be_captured(self) -> bool:
        """Whether the socket can go to the next process: it is open, and no library has bytes."""

    def capture(self) -> CapturedSocket:
        """Give the socket up for the next process; nothing is written or received any more.

        The descriptor stays open, and is the caller's. Only where `can_be_captured`.
        """

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

    @property
    def id(self) -> str:
        """The connection's name, for the log."""

    def received(self, data: bytes) -> None:
        """Take bytes from the peer."""

    def backlogged(self) -> None:
        """Take note that bytes have begun to wait for the peer. Called again for a new backlog."""

    def lost(self, unsent: int = 0) -> None:
        """Take note that the socket is gone. Called once, after `close` and `abort` too.

        `unsent` is the number of messages that were taken and not wholly sent.
        """


class Borrower(Holder, Protocol):
    """The holder of a lent wire: a parked poll request."""

    def unheard(self) -> None:
        """Take note that the peer has vanished: it answers the kernel no more. `lost` follows."""
