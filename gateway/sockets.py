"""Sockets that leave the event loop: a transport ends, and its socket stays open.

Plaintext only: a transport of TLS has bytes and keys of its own.
"""

from __future__ import annotations

import asyncio
import os
from typing import Final


class _Unheard(asyncio.Protocol):
    """Takes the last calls of a transport whose socket was taken out of the event loop."""

    __slots__ = ()


_UNHEARD: Final = _Unheard()


def duplicate(transport: asyncio.Transport) -> int:
    """Return a further descriptor of a transport's socket.

    Raises:
        OSError: no descriptor is left.
    """
    return os.dup(transport.get_extra_info("socket").fileno())


def forsake(transport: asyncio.Transport) -> None:
    """End a transport whose socket has a further descriptor: the socket stays open."""
    transport.set_protocol(_UNHEARD)
    transport.abort()


def take_out(transport: asyncio.Transport) -> int:
    """Take a socket out of the event loop; return its descriptor.

    Nothing may wait in the transport: it would be lost.

    Raises:
        OSError: no descriptor is left; the transport is unchanged.
    """
    descriptor = duplicate(transport)
    forsake(transport)
    return descriptor
