"""A wire over the event loop's own transport: any system, plaintext and TLS."""

from __future__ import annotations

import asyncio

from gateway.wires import Held


class TransportWire(asyncio.Protocol):
    """Holds a transport that another protocol gave up (uvloop: about 1.2 KB in all)."""

    __slots__ = ("_held", "_transport")

    def __init__(self, transport: asyncio.Transport, held: Held, *, send_buffer_bytes: int) -> None:
        """Take `transport` over; at most `send_buffer_bytes` wait for a peer that does not read."""
        self._transport = transport
        self._held = held
        transport.set_write_buffer_limits(high=send_buffer_bytes)
        transport.pause_reading()
        transport.set_protocol(self)

    def listen(self) -> None:
        """Begin to receive."""
        self._transport.resume_reading()

    def write(self, data: bytes) -> bool:
        """Hand `data` on in order; False when the peer is gone or too far behind."""
        transport = self._transport
        if transport.is_closing():
            return False
        transport.write(data)
        return not transport.is_closing()  # pause_writing() may have ended it within the call

    def close(self) -> None:
        """Close after what was written."""
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Pass inbound bytes on."""
        self._held.received(data)

    def pause_writing(self) -> None:
        """Tell the holder that its peer has left the buffer to fill."""
        self._held.overflowed()

    def resume_writing(self) -> None:
        """Do nothing: a full buffer ends the connection."""

    def eof_received(self) -> None:
        """Let the transport close itself: a half-closed peer can't be pushed to for long."""

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Tell the holder once."""
        self._held.lost()
