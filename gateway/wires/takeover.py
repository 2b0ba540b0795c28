"""How a socket leaves HTTP: what a listener offers and an application takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

#: The extension of an ASGI scope by which an application takes its request's socket: a function
#: that returns a Takeover, or None when the client has gone already.
TAKE_OVER: Final = "pushgate.take_over"


@dataclass(slots=True)
class Takeover:
    """A socket that has left HTTP.

    `rest` is what followed the request in the same segments. `resume` gives the socket back to
    HTTP with bytes that came meanwhile; after a request that wants no keep-alive it closes.
    """

    transport: asyncio.Transport
    rest: bytes
    keep_alive: bool
    resume: Callable[[bytes], None]
