"""How many sockets a listener keeps, and how long each may take to send a request's head."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final, Protocol

import structlog

from gateway import refusals
from gateway.refusals import Port
from registry.networks import Network, within

#: While a node drains, a socket that was never used is closed this long after its accept.
_UNUSED_SECONDS: Final = 0.5
#: Shortest time between two reports of sockets that were turned away.
_LOG_SECONDS: Final = 1.0

log = structlog.get_logger("gateway.listener")


@dataclass(frozen=True, slots=True)
class DoorBounds:
    """How long and how large a request's head may be, and how many sockets may be open.

    `sockets` is None where the number of sockets is not bounded. The bound on a head's size is
    kept by the parser's side (http.py), since the door sees no bytes. An idle socket stays open
    for `idle_seconds` between two requests.
    """

    head_seconds: float
    head_bytes: int
    sockets: int | None = None
    idle_seconds: float = 75.0


class HttpSocket(Protocol):
    """An accepted socket and its HTTP parser, as the door sees both. Hashed by identity."""

    transport: asyncio.Transport

    @property
    def unused(self) -> bool:
        """Whether no byte of any request has arrived on the socket since its accept."""

    def shutdown(self) -> None:
        """Close the socket: at once, or after the answer to a request that is under way."""


class Door:
    """Bounds the HTTP sockets of one listener.

    Every accepted socket passes `admit`. A client that owes the node something has a time limit,
    `head_seconds`: from the accept, until the head of the first request is complete; from the first
    byte of each later head, until that head is complete; and after the node's last answer, until
    the client closes its own half. The socket's protocol (http.py) says when a limit starts
    (`expect`) and ends (`satisfied`). An idle socket between two requests owes nothing, and is
    closed after `idle_seconds` (`rest`). `advance` ends sockets over their limit, and is called on
    every tick of the node's clock: a timer for each request would cost more than both dicts.
    """

    __slots__ = (
        "_expected",
        "_logged_at",
        "_resting",
        "_turned_away",
        "bounds",
        "count_detached",
        "draining",
        "is_balancer",
        "port",
    )

    def __init__(
        self,
        bounds: DoorBounds,
        *,
        port: Port = "public",
        balancers: Sequence[Network] = (),
        count_detached: Callable[[], int] = lambda: 0,
    ) -> None:
        """Bound the sockets of a listener.

        `port` is for metrics. `balancers` are the networks from which connections start with a
        PROXY header. `count_detached` returns the number of this listener's sockets that have left
        HTTP (held WebSockets and event streams, parked polls): they use file descriptors too, so
        `bounds.sockets` covers HTTP and detached sockets together.
        """
        self.bounds = bounds
        self.port: Port = port
        #: A function: is an address a balancer's? None where no balancers are configured.
        self.is_balancer = within(balancers) if balancers else None
        self.count_detached = count_detached
        #: Set while the node drains. Sockets are still accepted, and every answer is the last on
        #: its connection (http.py).
        self.draining = False
        #: Sockets with a time limit, and the event loop's time at which each limit began. All
        #: limits are equally long and begin at the present time, so insertion order is the order
        #: in which limits end.
        self._expected: dict[HttpSocket, float] = {}
        #: Idle sockets between two requests, likewise. A socket is in one of the two dicts at most.
        self._resting: dict[HttpSocket, float] = {}
        self._turned_away: Counter[str] = Counter()
        self._logged_at = 0.0

    def is_full(self, http_sockets: int) -> bool:
        """Whether no further socket fits beside so many HTTP sockets and the detached ones."""
        max_sockets = self.bounds.sockets
        return max_sockets is not None and http_sockets + self.count_detached() >= max_sockets

    def admit(self, accepted: HttpSocket, now: float, *, http_sockets: int) -> bool:
        """Start the time limit of the socket's first head, or close the socket if there is no room.

        `http_sockets` is the number of open HTTP sockets without the accepted one, `now` the event
        loop's time. Returns False when the accepted socket was closed.
        """
        if self.is_full(http_sockets):
            self.turn_away(accepted, "no descriptors for more clients")
            return False
        self._expected[accepted] = now
        return True

    def expect(self, http_socket: HttpSocket, now: float) -> None:
        """Start a socket's time limit at `now`; a limit that runs already goes on."""
        self._resting.pop(http_socket, None)
        self._expected.setdefault(http_socket, now)

    def satisfied(self, http_socket: HttpSocket) -> None:
        """End a socket's time limit: the head is complete, or the socket is gone."""
        self._expected.pop(http_socket, None)
        self._resting.pop(http_socket, None)

    def rest(self, http_socket: HttpSocket, now: float) -> None:
        """Take note that a socket is idle from `now` on; not where a head is expected."""
        if http_socket not in self._expected:
            self._resting[http_socket] = now

    def expects(self, http_socket: HttpSocket) -> bool:
        """Whether a socket's time limit runs."""
        return http_socket in self._expected

    def turn_away(self, refused: HttpSocket, reason: str) -> None:
        """Close a socket without an answer, and count the close, for the log too.

        `reason` is one of a few fixed texts, with no byte of a client's.
        """
        self._turned_away[reason] += 1
        refusals.count_cut_off(self.port, reason)
        refused.transport.abort()

    def close_unused(self, now: float) -> None:
        """Close sockets that were accepted half a second ago and never used, while a node drains.

        Browsers open sockets ahead of need, and would send their next request to the draining node.
        The half second is for requests that are already on their way to the node: such a request
        still gets its answer. A socket without a limit has had a request, so it is not unused.
        """
        for http_socket, since in list(self._expected.items()):  # a close changes the dict
            if http_socket.unused and now - since >= _UNUSED_SECONDS:
                http_socket.shutdown()

    def advance(self, now: float) -> None:
        """End sockets over their time limit, without an answer; log sockets turned away.

        `now` is the event loop's time. Log events are at least a second apart. A socket over its
        limit is not logged.
        """
        if overdue := _began_by(now - self.bounds.head_seconds, self._expected):
            refusals.count_cut_off(self.port, "late", len(overdue))
        for late in overdue:
            del self._expected[late]
            late.transport.abort()
        for idle in _began_by(now - self.bounds.idle_seconds, self._resting):
            del self._resting[idle]
            idle.transport.close()
        if self._turned_away and now - self._logged_at >= _LOG_SECONDS:
            for reason, count in self._turned_away.items():
                log.warning("sockets are closed without an answer", reason=reason, closed=count)
            self._turned_away.clear()
            self._logged_at = now


def _began_by(latest: float, limits: Mapping[HttpSocket, float]) -> list[HttpSocket]:
    """Return the sockets whose limits began by `latest`; earlier limits come first in `limits`."""
    return [*takewhile(lambda http_socket: limits[http_socket] <= latest, limits)]
