"""Extensions of ASGI: an application detaches its request's socket, or answers in one write.

The listener puts functions into `scope["extensions"]` (ASGI 3.0, "Extensions"), under the names
below. An application that finds a name there may call the function.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

#: The name of the extension to detach a request's socket from HTTP: a function without arguments.
#: Returns a Detached, or None when the client has disconnected already. To be called behind FLUSH.
DETACH: Final = "pushgate.detach"
#: The name of the extension to wait until the kernel has the answers to earlier requests: a
#: coroutine function without arguments. Bytes that wait in the transport would be lost where a wire
#: takes the socket out of the transport, and would escape the bounds of a wire over the transport.
FLUSH: Final = "pushgate.flush"
#: The name of the extension to answer in one write: a coroutine function of a status, a content
#: type and a body, the latter two bytes.
ANSWER: Final = "pushgate.answer"
#: The name of the extension to keep the connection open though the node drains, for a client that
#: has to come back to this node: a function without arguments. To be called before the answer; a
#: detached socket stays by itself. Nothing stays where the client wants no further request.
STAY: Final = "pushgate.stay"


class Resume(Protocol):
    """Gives a detached socket back to HTTP, once."""

    def __call__(self, early: bytes, *, last: bool, unheard: Callable[[], None]) -> None:
        """Continue with `early`, the bytes that arrived in the meantime.

        `last` says that the answer was the last on its connection: HTTP then closes gracefully, and
        discards the client's bytes. `unheard` is called if the client vanishes before it sends more
        bytes: the client may not have the answer.
        """


@dataclass(slots=True)
class Detached:
    """A socket that has left HTTP.

    `rest` holds the bytes that arrived behind an upgrade request; after other requests `rest` is
    empty. `keep_alive` says whether the client may send another request on the socket (RFC 9112
    §9.3). `resume` gives the socket back to HTTP, for the next request or for the end.
    """

    transport: asyncio.Transport
    rest: bytes
    keep_alive: bool
    resume: Resume
