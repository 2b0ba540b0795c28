"""The choice of the wire for a socket, by operating system, TLS and PUSHGATE_WIRE."""

from __future__ import annotations

import asyncio
import select
import socket
from typing import Literal

from gateway.wires import Borrower, Holder, Wire
from gateway.wires.epoll import EpollSet, EpollWire
from gateway.wires.transport import LentWire, TransportWire

Choice = Literal["auto", "epoll", "transport"]


class Wires:
    """Makes the wires of one gateway, on one event loop."""

    def __init__(
        self, choice: Choice, *, loop: asyncio.AbstractEventLoop, send_buffer_bytes: int
    ) -> None:
        """`auto` means epoll on Linux, and the event loop's transports on other systems.

        For every held socket up to `send_buffer_bytes` wait in the wire's backlog.
        """
        available = hasattr(select, "epoll")
        self._epoll = EpollSet(loop) if choice != "transport" and available else None
        self._send_buffer_bytes = send_buffer_bytes

    def hold(self, transport: asyncio.Transport, holder: Holder) -> Wire:
        """Take a socket out of HTTP for good; `holder` gets its bytes."""
        limit = self._send_buffer_bytes
        # With TLS the socket carries ciphertext, and only the transport encrypts and decrypts.
        if self._epoll is not None and transport.get_extra_info("sslcontext") is None:
            try:
                return self._epoll.take(transport, holder, send_buffer_bytes=limit)
            except OSError:  # no descriptor is left: taking a socket needs two for a moment
                pass
        return TransportWire(transport, holder, limit=limit)

    @property
    def can_adopt(self) -> bool:
        """Whether sockets of an earlier process can be held: over an epoll set alone."""
        return self._epoll is not None

    def adopt(self, descriptor: int, holder: Holder) -> EpollWire:
        """Hold a socket of an earlier process; nothing is received or sent before `go_on`.

        Raises:
            OSError: no watch is left; the descriptor is still the caller's.
        """
        assert self._epoll is not None  # noqa: S101 - `can_adopt`
        return self._epoll.adopt(descriptor, holder, send_buffer_bytes=self._send_buffer_bytes)

    def lend(self, transport: asyncio.Transport, holder: Borrower, *, answer_bytes: int) -> Wire:
        """Take a socket that HTTP gets back after one answer of at most `answer_bytes`.

        Nothing is sent on the socket for up to a minute, so the kernel probes the peer: without
        probes a client that vanishes would be missed only after the answer.
        """
        lent: socket.socket = transport.get_extra_info("socket")
        lent.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        limit = self._send_buffer_bytes + answer_bytes
        return LentWire(transport, holder, limit=limit)

    def close(self) -> None:
        """Stop watching the held sockets."""
        if self._epoll is not None:
            self._epoll.close()
