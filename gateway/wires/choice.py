"""Which wire holds a socket: chosen by what the system and the socket allow, or by a setting."""

from __future__ import annotations

import asyncio
import select
from typing import Literal

from gateway.wires import Held, Streamed, Wire
from gateway.wires.epoll import EpollSet
from gateway.wires.transport import LentWire, TransportWire

Choice = Literal["auto", "epoll", "transport"]


class Wires:
    """Makes the wires of one gateway."""

    def __init__(
        self, choice: Choice, *, loop: asyncio.AbstractEventLoop, send_buffer_bytes: int
    ) -> None:
        """`epoll` is Linux's; `auto` takes it where it is there."""
        there = hasattr(select, "epoll")
        self._epoll = EpollSet(loop) if choice != "transport" and there else None
        self._send_buffer_bytes = send_buffer_bytes

    def hold(self, transport: asyncio.Transport, held: Streamed) -> Wire:
        """Take a socket that stays held until it ends."""
        limit = self._send_buffer_bytes
        # TLS lives in the transport: without it the bytes would be ciphertext.
        if self._epoll is not None and transport.get_extra_info("sslcontext") is None:
            try:
                return self._epoll.take(transport, held, send_buffer_bytes=limit)
            except OSError:  # no descriptor is left for the moment that it takes two
                pass
        return TransportWire(transport, held, limit=limit)

    def lend(self, transport: asyncio.Transport, held: Held, *, answer_bytes: int) -> Wire:
        """Take a socket that goes back to HTTP after one answer of at most `answer_bytes`."""
        limit = self._send_buffer_bytes + answer_bytes
        return LentWire(transport, held, limit=limit)

    def close(self) -> None:
        """Stop watching what is held."""
        if self._epoll is not None:
            self._epoll.close()
