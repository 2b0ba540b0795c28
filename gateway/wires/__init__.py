"""How bytes reach a held socket. Wires know no protocol."""

from __future__ import annotations

from typing import Protocol


class Wire(Protocol):
    """A held socket, as whoever holds it sees it. Nothing is received before `listen`."""

    def listen(self) -> None:
        """Begin to receive; what came before waits in the kernel."""

    def write(self, data: bytes) -> bool:
        """Hand `data` to the kernel or the bounded buffer, in order.

        Returns False when the socket is gone, or the holder was told of an overflow.
        """

    def close(self) -> None:
        """Close after what was written; nothing more is received. Harmless when repeated."""

    def abort(self) -> None:
        """Close at once: waiting for a stalled peer's flush may take for ever."""


class Held(Protocol):
    """Whoever holds a wire."""

    def received(self, data: bytes) -> None:
        """Take inbound bytes."""

    def overflowed(self) -> None:
        """End it: the peer does not read, and the buffer is full."""

    def lost(self) -> None:
        """The socket is gone. Called once, also after `close` and `abort`."""
