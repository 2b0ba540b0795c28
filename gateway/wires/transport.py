"""A wire over the event loop's own transport: any system, plaintext and TLS."""

from __future__ import annotations

import asyncio
from typing import Final

from gateway.wires import Held
from gateway.wires.backlog import Backlog

#: What waits in the transport; the rest waits here, where it can be dropped.
_TRANSPORT_BYTES: Final = 16_384


class TransportWire(asyncio.Protocol):
    """Holds a transport that another protocol gave up (uvloop: about 1.2 KB in all)."""

    __slots__ = ("_closing", "_held", "_limit", "_paused", "_transport", "_unsent")

    def __init__(self, transport: asyncio.Transport, held: Held, *, limit: int) -> None:
        """Take `transport` over; about `limit` bytes wait for a peer that does not read."""
        self._transport = transport
        self._held = held
        self._limit = limit
        self._unsent: Backlog | None = None
        self._paused = False
        self._closing = False
        transport.set_write_buffer_limits(high=_TRANSPORT_BYTES)
        transport.pause_reading()
        transport.set_protocol(self)

    def listen(self) -> None:
        """Begin to receive."""
        self._transport.resume_reading()

    def write(self, data: bytes) -> bool:
        """Hand `data` on in order; False when the peer is gone or too far behind."""
        if self._closing or self._transport.is_closing():
            return False
        if not self._paused:
            self._transport.write(data)
            return not self._transport.is_closing()
        if self._unsent is None:
            self._unsent = Backlog(data, begun=False)
            return True
        self._unsent.append(data)
        return self._unsent.size <= self._limit or self._held.overflowed()

    def begun(self, rest: bytes) -> None:
        """Never comes: the transport alone writes to its socket."""
        raise NotImplementedError(f"{len(rest)} bytes")

    def drop_oldest(self, notice: bytes) -> int:
        """Drop the oldest writes until the rest fits."""
        return 0 if self._unsent is None else self._unsent.drop_oldest(self._limit, notice)

    def drop_all(self) -> None:
        """Drop what the transport does not have yet."""
        if self._unsent is not None:
            self._unsent.drop_all()

    def close(self) -> None:
        """Close after what was written."""
        self._closing = True
        if self._unsent is None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._closing = True
        self._unsent = None
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Pass inbound bytes on."""
        if not self._closing:
            self._held.received(data)

    def pause_writing(self) -> None:
        """Let what comes next wait here."""
        self._paused = True

    def resume_writing(self) -> None:
        """Hand on what waits."""
        self._paused = False
        unsent = self._unsent
        while unsent and not self._paused:
            part = unsent.first()
            unsent.sent(len(part))
            self._transport.write(part)
        if not unsent:
            self._unsent = None
            if self._closing:
                self._transport.close()

    def eof_received(self) -> None:
        """Let the transport close itself: a half-closed peer can't be pushed to for long."""

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Tell the holder once."""
        self._held.lost()


class LentWire(TransportWire):
    """Holds a transport that goes back to HTTP after one answer."""

    __slots__ = ()

    def write(self, data: bytes) -> bool:
        """Hand `data` to the transport; False when it holds too much of earlier answers."""
        if self._transport.is_closing():
            return False
        if self._transport.get_write_buffer_size() + len(data) > self._limit:
            return self._held.overflowed()
        self._transport.write(data)
        return not self._transport.is_closing()
