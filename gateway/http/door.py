"""Which sockets a listener keeps: their number, the deadline of a request's head, idle ones."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from gateway.http.proxy_header import Network, within

#: While a node drains, a socket on which no request has begun is closed after this.
_UNUSED_SECONDS: Final = 0.5
_LOG_SECONDS: Final = 1.0

log = structlog.get_logger("gateway.listener")


@dataclass(frozen=True, slots=True)
class HeadBounds:
    """How many seconds and bytes a request's head may take, and how many sockets may be open."""

    seconds: float
    size: int
    sockets: int | None = None


class HttpSocket(Protocol):
    """An accepted socket and its HTTP parser, as the door sees them. Hashed by identity."""

    transport: asyncio.Transport

    @property
    def unused(self) -> bool:
        """Whether no byte of a request has ever arrived."""

    def shutdown(self) -> None:
        """Close the socket, after the answer of a request that is under way."""


class Door:
    """Counts and bounds the HTTP sockets of one listener."""

    __slots__ = (
        "_logged_at",
        "_turned_away",
        "awaited_heads",
        "bounds",
        "closing",
        "detached_sockets",
        "is_balancer",
    )

    def __init__(
        self,
        bounds: HeadBounds,
        *,
        balancers: Sequence[Network] = (),
        detached_sockets: Callable[[], int] = lambda: 0,
    ) -> None:
        """`detached_sockets` counts open sockets that have left HTTP: they have descriptors too."""
        self.bounds = bounds
        #: Tells balancers, whose connections start with a PROXY header; None where there are none.
        self.is_balancer = within(balancers) if balancers else None
        self.detached_sockets = detached_sockets
        #: Set while the node drains: each answer is then the last of its connection.
        self.closing = False
        #: Sockets whose request head is incomplete, with the event loop's time at which it began.
        #: Every head has the same deadline, so insertion order is deadline order.
        self.awaited_heads: dict[HttpSocket, float] = {}
        self._turned_away: Counter[str] = Counter()
        self._logged_at = 0.0

    def is_full(self, http_sockets: int) -> bool:
        """Whether the next accepted socket would be one too many."""
        most = self.bounds.sockets
        return most is not None and http_sockets + self.detached_sockets() >= most

    def admit(self, accepted: HttpSocket, now: float, *, http_sockets: int) -> bool:
        """Start the deadline of a socket's first head; False closes one socket too many at once.

        `http_sockets` are open beside it.
        """
        if self.is_full(http_sockets):
            self.turn_away(accepted, "no descriptors for more clients")
            return False
        self.awaited_heads[accepted] = now
        return True

    def turn_away(self, refused: HttpSocket, reason: str) -> None:
        """Close a socket without an answer; `reason` is logged by `advance`."""
        self._turned_away[reason] += 1
        refused.transport.abort()

    def close_unused(self, now: float) -> None:
        """Close sockets on which no request has begun for half a second.

        Browsers open sockets ahead of need, and would send their next request to this node. A
        request that is on its way to the node gets its answer.
        """
        for waiting, since in list(self.awaited_heads.items()):
            if waiting.unused and now - since >= _UNUSED_SECONDS:
                waiting.shutdown()

    def advance(self, now: float) -> None:
        """Cut off sockets whose head is overdue; log sockets turned away, once a second at most."""
        overdue = []
        for waiting, since in self.awaited_heads.items():
            if now - since < self.bounds.seconds:
                break
            overdue.append(waiting)
        for waiting in overdue:
            del self.awaited_heads[waiting]
            waiting.transport.abort()
        if self._turned_away and now - self._logged_at >= _LOG_SECONDS:
            for reason, count in self._turned_away.items():
                log.warning(reason, closed=count)
            self._turned_away.clear()
            self._logged_at = now
