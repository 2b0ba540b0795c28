"""What the kernel knows of a peer that does not read, how long it bears such a peer, half-closes.

All by descriptor: a wire need not have a socket object.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from array import array
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


def unacknowledged_bytes(descriptor: int) -> int:
    """Return how many bytes in the kernel the peer's kernel has not taken yet; 0 where unknown."""
    try:
        return int(array("i", fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)))[0])
    except (OSError, ValueError):  # gone, or not known to this system
        return 0


def set_user_timeout(descriptor: int, seconds: float) -> None:
    """Set when the kernel ends a connection without progress (RFC 5482); 0: as it does itself."""
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
