"""What the listener offers an application beside ASGI: a request's socket, and a short answer.

Both are extensions of the ASGI scope (ASGI 3.0, "Extensions"): an application that finds its name
in `scope["extensions"]` may call what stands there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

#: Names the extension by which an application detaches its request's socket from HTTP: a function
#: without arguments that returns a Detached, or None when the client has gone already.
DETACH: Final = "pushgate.detach"
#: Names the extension by which an application answers 200 in one write: a coroutine function of a
#: content type and a body.
ANSWER: Final = "pushgate.answer"

#: Gives a detached socket back to HTTP, with the bytes that arrived while it was detached.
Resume = Callable[[bytes], None]


@dataclass(slots=True)
class Detached:
    """A socket that has left HTTP.

    `rest` are the bytes that arrived behind the request. `keep_alive` says whether the client may
    send another request on this socket (RFC 9112 §9.3); `resume` gives the socket back to HTTP for
    it, or closes the socket where `keep_alive` is False.
    """

    transport: asyncio.Transport
    rest: bytes
    keep_alive: bool
    resume: Resume
