"""A wire over the event loop's own transport: for any system, plaintext and TLS."""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from gateway.errors import has_vanished
from gateway.sockets import take_out
from gateway.wires import Borrower, CapturedSocket, Holder
from gateway.wires.backlog import Backlog, Control
from gateway.wires.kernel import acknowledged_bytes, set_user_timeout, unacknowledged_bytes

#: Bytes that may wait in the transport. Further writes wait in the wire, where writes can be
#: dropped.
_TRANSPORT_BYTES: Final = 16_384
#: Bytes of the peer that are kept before `listen`. More wait in the kernel, and hide its end.
_EARLY_BYTES: Final = 65_536


class TransportWire(asyncio.Protocol):
    """Holds a transport that HTTP gave up (with uvloop about 1.2 KB in all)."""

    __slots__ = ("_closing", "_early", "_holder", "_limit", "_paused", "_transport", "_unsent")

    #: The transport alone writes to its socket.
    direct: int = -1

    def __init__(self, transport: asyncio.Transport, holder: Holder, *, limit: int) -> None:
        """Become `transport`'s protocol; about `limit` bytes wait for a peer that does not read."""
        self._transport = transport
        self._holder = holder
        self._limit = limit
        self._unsent: Backlog | None = None
        self._paused = False
        self._closing = False
        # Bytes that came before `listen`; None from then on. A transport that does not read does
        # not notice the peer's end.
        self._early: bytes | None = b""
        transport.set_write_buffer_limits(high=_TRANSPORT_BYTES)
        transport.set_protocol(self)

    def listen(self) -> None:
        """Begin to receive."""
        early, self._early = self._early, None
        self._transport.resume_reading()
        if early:
            self.data_received(early)

    def write(self, data: bytes) -> bool:
        """Hand a message to the transport or the backlog; False when gone, or it won't fit."""
        unsent = self._unsent
        return (unsent is None or unsent.size + len(data) <= self._limit) and self._write(data)

    def write_control(self, data: bytes) -> None:
        """Hand control bytes to the transport or the backlog, though the backlog be full."""
        unsent = self._unsent
        has_room = unsent is None or unsent.has_room_for_control(len(data), limit=self._limit)
        fits = has_room and self._write(Control(data))
        if not fits and not self._closing:
            self.abort()

    def _write(self, data: bytes) -> bool:
        if self._closing or self._transport.is_closing():
            return False
        unsent = self._unsent
        if not self._paused:
            self._transport.write(data)
            return not self._transport.is_closing()
        if unsent is None:
            self._unsent = Backlog(data, begun=False)
        else:
            unsent.append(data)
        return True

    def finish(self, rest: bytes) -> None:
        """Refuse: `direct` is -1, so no write can have begun there."""
        raise NotImplementedError(f"{len(rest)} bytes")

    def displace(self, data: bytes, notice: bytes) -> int:
        """Take a message in place of the oldest messages; return how many were dropped."""
        if self._unsent is None:
            return 0
        self._unsent.append(data)
        return self._unsent.drop_oldest(self._limit, notice)

    def waits(self) -> bool:
        """Whether the transport, or the backlog behind it, is full enough to wait for the peer."""
        return self._paused and not self._transport.is_closing()

    def progress(self) -> int:
        """Return how many bytes the peer has acknowledged, or how few the transport still has.

        Beneath TLS the event loop has a second buffer, which can shrink unseen: the kernel knows.
        """
        acknowledged = acknowledged_bytes(self._descriptor)
        return -self._transport.get_write_buffer_size() if acknowledged is None else acknowledged

    def all_taken(self) -> bool:
        """Whether nothing waits, here, in the transport or in the kernel."""
        waiting = self._paused or self._transport.get_write_buffer_size()
        return not waiting and not unacknowledged_bytes(self._descriptor)

    def bear(self, seconds: float) -> None:
        """Have the kernel bear a peer that takes no bytes for `seconds`; 0: as long as it will."""
        set_user_timeout(self._descriptor, seconds)

    @property
    def _descriptor(self) -> int:
        """The socket's descriptor; -1 once the socket is closed."""
        plug: socket.socket | None = self._transport.get_extra_info("socket")
        return -1 if plug is None else plug.fileno()

    @property
    def can_be_captured(self) -> bool:
        """Say no: the transport has a buffer of its own, and TLS a state."""
        return False

    def capture(self) -> CapturedSocket:
        """Refuse: see `can_be_captured`."""
        raise NotImplementedError

    def close(self) -> None:
        """Close this side after the backlog is sent, and discard bytes until the peer closes."""
        if not self._closing:
            self._closing = True
            # The peer may read only when all its bytes are taken: from now on they are.
            self._transport.resume_reading()
            if self._unsent is None:
                self._close_half()

    def abort(self) -> None:
        """Close at once."""
        self._closing = True
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Pass inbound bytes to the holder; keep them before `listen`."""
        if self._closing:
            return
        if self._early is None:
            self._holder.received(data)
            return
        self._early += data
        if len(self._early) > _EARLY_BYTES:
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        """Let further writes wait in the backlog."""
        self._paused = True
        self._holder.backlogged()

    def resume_writing(self) -> None:
        """Hand the backlog to the transport."""
        self._paused = False
        unsent = self._unsent
        while unsent and not self._paused:
            part = unsent.first()
            unsent.sent(len(part))
            self._transport.write(part)
        if not unsent:
            self._unsent = None
            if self._closing:
                self._close_half()

    def _close_half(self) -> None:
        """Tell the peer that no more bytes come; the transport closes itself at the peer's end."""
        if self._transport.is_closing():
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:  # uvloop's TLS: sends close_notify, and discards bytes until the peer's close_notify
            self._transport.close()

    def eof_received(self) -> None:
        """Let the transport close itself: a half-closed peer can't be pushed to for long."""

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Tell the holder, once."""
        self._holder.lost(0 if self._unsent is None else self._unsent.messages())


class LentWire(TransportWire):
    """Holds a transport that goes back to HTTP after one answer."""

    __slots__ = ()
    _holder: Borrower

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the holder, and tell a peer that has vanished from a peer that has closed."""
        if has_vanished(exc):
            self._holder.unheard()
        super().connection_lost(exc)

    @property
    def can_be_captured(self) -> bool:
        """Whether the socket is plaintext, open, and nothing waits in the transport."""
        transport = self._transport
        return (
            transport.get_extra_info("sslcontext") is None
            and not transport.is_closing()
            and not transport.get_write_buffer_size()
        )

    def capture(self) -> CapturedSocket:
        """Give the socket up for the next process."""
        return CapturedSocket(take_out(self._transport), None)

    def write(self, data: bytes) -> bool:
        """Hand `data` to the transport; False when the transport still holds earlier answers."""
        if self._transport.is_closing():
            return False
        if self._transport.get_write_buffer_size() + len(data) > self._limit:
            return False
        self._transport.write(data)
        return not self._transport.is_closing()
