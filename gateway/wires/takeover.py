"""What a listener offers an application beside ASGI: a request's socket, and a shorter answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

#: The extension of an ASGI scope by which an application takes its request's socket: a function
#: that returns a Takeover, or None when the client has gone already.
TAKE_OVER: Final = "pushgate.take_over"
#: The extension by which an application answers 200 with a content type and a body at once.
ANSWER: Final = "pushgate.answer"


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
