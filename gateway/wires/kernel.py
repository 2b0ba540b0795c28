"""What the kernel knows of a peer that does not read, and how long it bears such a peer (Linux).

Both by descriptor: a wire need not have a socket object.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

#: Of struct tcp_info (linux/tcp.h, since Linux 4.1): where tcpi_bytes_acked stands, 64 bits.
_BYTES_ACKED_AT: Final = 120
_BYTES_ACKED: Final = struct.Struct("=Q")


def acknowledged_bytes(descriptor: int) -> int | None:
    """Return how many bytes the peer's kernel has taken so far; None where that is not known.

    The kernel takes further bytes from a wire only after a third of its own buffer has gone out: so
    the wire alone would see no progress of a peer that reads slowly.
    """
    if descriptor < 0 or not hasattr(socket, "TCP_INFO"):
        return None
    end = _BYTES_ACKED_AT + _BYTES_ACKED.size
    try:
        with _socket(descriptor) as plug:
            info = plug.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, end)
    except OSError:  # gone, or no TCP
        return None
    if len(info) < end:
        return None
    (acknowledged,) = _BYTES_ACKED.unpack_from(info, _BYTES_ACKED_AT)
    return int(acknowledged)


def set_user_timeout(descriptor: int, seconds: float) -> None:
    """Set after which time without progress the kernel ends a connection (RFC 5482)."""
    if descriptor >= 0 and hasattr(socket, "TCP_USER_TIMEOUT"):
        with suppress(OSError), _socket(descriptor) as plug:
            plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1_000))


def close_half(descriptor: int) -> None:
    """Tell the peer that no more bytes come; bytes of the peer still arrive (shutdown(2)).

    Raises:
        OSError: the peer has reset the connection.
    """
    with _socket(descriptor) as plug:
        plug.shutdown(socket.SHUT_WR)


@contextmanager
def _socket(descriptor: int) -> Iterator[socket.socket]:
    """Lend a descriptor to a socket object, whose family and type don't count for options.

    Raises:
        OSError: the descriptor is no socket, or is closed.
    """
    plug = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=descriptor)
    try:
        yield plug
    finally:
        plug.detach()
