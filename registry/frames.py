"""Frames: batches and their answers on one held connection, a link.

A link begins as a request of HTTP/1.1 with an upgrade (RFC 9110 §7.8), so that the gateway's
internal port, with TLS and proofs, serves links too:

    GET /push HTTP/1.1               HTTP/1.1 101 Switching Protocols
    Connection: Upgrade              Connection: Upgrade
    Upgrade: pushgate-batch          Upgrade: pushgate-batch

From then on either side sends frames: the length of the body (4 bytes, big-endian), the number of
the frame (8 bytes), and the body. Frames are numbered from 0 in each direction. A batch's number is
its answer's number, and answers come in the order of the batches. The bodies are those of
`POST /push` in MessagePack.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Final, NamedTuple

from registry.errors import RegistryError

#: What the field Upgrade names.
LINK_PROTOCOL: Final = "pushgate-batch"
LINK_PATH: Final = "/push"
#: The most bytes of an answer's body: 28 a result at most, and 10,000 results.
MAX_ANSWER_BYTES: Final = 1024 * 1024
#: A link may be idle for hours. The kernel probes the peer of an idle link, and ends the link when
#: three probes are unanswered (tcp(7)). The first probe comes before firewalls and translators of
#: addresses forget an idle connection (RFC 5382 §5 asks for two hours; 60 s are in use).
_PROBE_AFTER_SECONDS: Final = 30
_PROBE_EVERY_SECONDS: Final = 10
_PROBES: Final = 3

_HEAD: Final = struct.Struct("!IQ")


class BadFrame(RegistryError):
    """The peer has sent too long a frame, a frame out of turn, or bytes that are no frame."""


class Frame(NamedTuple):
    """A frame's number, and the bytes of its body."""

    number: int
    body: bytes


def frame_head(number: int, size: int) -> bytes:
    """Return the 12 bytes ahead of a body of `size` bytes."""
    return _HEAD.pack(size, number)


def probe_peer(transport: asyncio.BaseTransport) -> None:
    """Have the kernel probe the peer of an idle link."""
    plug: socket.socket | None = transport.get_extra_info("socket")
    if plug is None:
        return
    plug.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_AFTER_SECONDS)
        plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_EVERY_SECONDS)
        plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)


class FrameReader:
    """Cuts the bytes of one direction into frames, and checks their numbers.

    Bytes are kept until `next` takes their frame. A caller that stops receiving while a frame is
    complete (`has_next`) bounds them to one frame and the bytes of one read.
    """

    __slots__ = ("_arrived", "_most_bytes", "_next_number")

    def __init__(self, *, most_bytes: int) -> None:
        """`most_bytes` bounds a frame's body."""
        self._arrived = bytearray()
        self._most_bytes = most_bytes
        self._next_number = 0

    def __len__(self) -> int:
        """Return how many bytes have arrived and are not taken."""
        return len(self._arrived)

    def feed(self, data: bytes) -> None:
        """Take bytes as they arrive."""
        self._arrived += data

    @property
    def has_next(self) -> bool:
        """Whether `next` has something to return, or to raise."""
        try:
            end = self._end()
        except BadFrame:
            return True
        return end is not None

    @property
    def is_incomplete(self) -> bool:
        """Whether a part of a frame has arrived, and the rest is still to come."""
        return bool(self._arrived) and not self.has_next

    @property
    def next_number(self) -> int:
        """The number of the frame that `next` returns next."""
        return self._next_number

    def next(self) -> Frame | None:
        """Take out the next frame; None until all of it has arrived.

        Raises:
            BadFrame: the frame is too long, which its first bytes tell, or has a wrong number.
        """
        end = self._end()
        if end is None:
            return None
        number = self._next_number
        self._next_number += 1
        arrived = self._arrived
        with memoryview(arrived) as view:
            body = bytes(view[_HEAD.size : end])
        del arrived[:end]
        return Frame(number, body)

    def _end(self) -> int | None:
        """Return where the next frame ends in what has arrived; None while it is incomplete."""
        arrived = self._arrived
        if len(arrived) < _HEAD.size:
            return None
        size, number = _HEAD.unpack_from(arrived)
        if size > self._most_bytes:
            raise BadFrame(f"a frame of {size} bytes; at most {self._most_bytes}")
        if number != self._next_number:
            raise BadFrame(f"frame {number}, where {self._next_number} was due")
        end: int = _HEAD.size + size
        return end if len(arrived) >= end else None
