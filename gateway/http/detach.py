"""Ways for an application past ASGI: to answer in one write, and to take a socket out of HTTP.

The listener puts an Exchange into the extensions of each request's scope (ASGI 3.0, "Extensions").
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from starlette.types import Scope

#: The name of the Exchange among the extensions.
EXCHANGE: Final = "pushgate.exchange"


class Resume(Protocol):
    """Gives a lent socket back to HTTP, once.

    `client` is the address and port of the client, behind a balancer as its PROXY header said.
    """

    client: tuple[str, int] | None

    def __call__(self, early: bytes, *, last: bool, unheard: Callable[[], None]) -> None:
        """Continue with `early`, the bytes that arrived in the meantime.

        `last` says that the answer was the last on its connection: HTTP then closes gracefully, and
        discards the client's bytes. `unheard` is called if the client vanishes before it sends more
        bytes: the client may not have the answer.
        """


@dataclass(slots=True)
class Detached:
    """A socket that has left HTTP for good.

    `rest` holds the bytes that arrived behind an upgrade request; after other requests `rest` is
    empty.
    """

    transport: asyncio.Transport
    rest: bytes


@dataclass(slots=True)
class Lent:
    """A socket that has left HTTP until its request is answered.

    `keep_alive` says whether the client may send another request on the socket (RFC 9112 §9.3).
    `resume` gives the socket back to HTTP, for the next request or for the end.
    """

    transport: asyncio.Transport
    keep_alive: bool
    resume: Resume


class Exchange(Protocol):
    """One request and its answer."""

    async def flush(self) -> None:
        """Wait until the kernel has the answers to earlier requests.

        To be called before `detach` and `lend`: bytes that wait in the transport would be lost
        where a wire takes the socket out of the transport, and would escape the bounds of a wire
        over the transport.
        """

    def detach(self) -> Detached | None:
        """Take the socket out of HTTP for good; None when the client has disconnected already."""

    def lend(self) -> Lent | None:
        """Take the socket out of HTTP for a while; None when the client has disconnected already.

        The client's wish counts for the connection afterwards, also while the node drains.
        """

    async def answer(self, status: int, content_type: bytes, body: bytes) -> None:
        """Answer in one write."""

    def stay(self) -> None:
        """Keep the connection open behind the answer though the node drains.

        For a client that has to come back to this node. To be called before the answer. Nothing
        stays where the client wants no further request.
        """


def exchange_of(scope: Scope) -> Exchange:
    """Return the Exchange of a request."""
    exchange: Exchange = scope["extensions"][EXCHANGE]
    return exchange
