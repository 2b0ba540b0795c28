"""The servers to compare under one interface: a gateway and a stock server.

Clients connect to both, and batches are posted to both, in the same way.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Protocol

from loadtest.certificate import Certificate
from loadtest.clients import Crowd
from loadtest.processes import CORES, Gateway, LoadtestError, Server, free_port, tokens
from loadtest.pusher import Pusher

_PAYLOAD: Final = "x" * 200
_BATCH: Final = 1_000
_POLL_BATCH: Final = 50
#: Time limit for all clients to get a heartbeat: over two heartbeat intervals of every benchmark
#: that waits for heartbeats.
_PATIENCE_SECONDS: Final = 90.0


class Target(Protocol):
    """A server that holds connections."""

    tls: ssl.SSLContext | None

    @property
    def server(self) -> Server:
        """Return the server's process."""

    @property
    def port(self) -> int:
        """Return the port that clients connect to."""

    def credentials(self, users: Sequence[str]) -> Sequence[str]:
        """Return a bearer credential for each user."""

    def pusher(self, codec: str = "json") -> Pusher:
        """Return a new connection for batches; `codec` is a name in pusher.CODECS."""


class GatewayTarget:
    """The gateway as a target; batches go to the internal port."""

    def __init__(self, gateway: Gateway, *, tls: ssl.SSLContext | None = None) -> None:
        """`tls` trusts the gateway's certificate."""
        self.server = gateway
        self.port = gateway.port
        self.tls = tls

    def credentials(self, users: Sequence[str]) -> Sequence[str]:
        """Return a new token for each user."""
        return tokens(users)

    def pusher(self, codec: str = "json") -> Pusher:
        """Return a new connection to the internal port of the gateway's first worker."""
        return Pusher(self.server.internal_ports[0], codec=codec)


class StockTarget:
    """A stock server as a target; batches go to the port of the clients."""

    def __init__(
        self,
        kind: str,
        *,
        heartbeat_seconds: float,
        cores: frozenset[int] = CORES,
        certificate: Certificate | None = None,
        runner: Sequence[str] = ("-m", "loadtest.stock"),
    ) -> None:
        """`kind` is ws or sse; `runner` are the arguments of Python that run loadtest.stock."""
        self.port = free_port()
        self.tls = certificate.trust if certificate else None
        files = [str(certificate.cert), str(certificate.key)] if certificate else []
        self.server = Server(
            [*runner, kind, str(self.port), str(heartbeat_seconds), *files],
            {},
            f"http{'s' if certificate else ''}://127.0.0.1:{self.port}/healthz",
            cores=cores,
            tls=self.tls,
        )

    def credentials(self, users: Sequence[str]) -> Sequence[str]:
        """Return the users' names: the stock server takes a bearer as the user's name."""
        return users

    def pusher(self, codec: str = "json") -> Pusher:
        """Return a new connection to the stock server's only port."""
        return Pusher(self.port, codec=codec, tls=self.tls)


def names(start: int, end: int) -> list[str]:
    """Return the user ids `user-START` to `user-(END - 1)`."""
    return [f"user-{number}" for number in range(start, end)]


@contextmanager
def visit(target: Target, kind: str, connections: int) -> Iterator[Crowd]:
    """Connect a crowd of `connections` and send one message to every client.

    Fifty long-polls at a time get their message: in service, too, polls are not all answered at
    once.
    """
    crowd = Crowd(target.port, kind, tls=target.tls)
    try:
        crowd.connect(target.credentials(names(0, connections)))
        message_to_each(target, crowd, at_once=_POLL_BATCH if kind == "poll" else connections)
        yield crowd
    finally:
        crowd.close()


def message_to_each(target: Target, crowd: Crowd, *, at_once: int) -> None:
    """Send one message to every client; wait for arrivals after every `at_once` messages.

    Raises:
        LoadtestError: a message did not reach its one connection, or did not arrive in time.
    """
    with target.pusher() as pusher:
        for start in range(0, len(crowd.clients), at_once):
            clients = crowd.clients[start : start + at_once]
            expected = clients[0].messages + 1
            _push(pusher, names(start, start + len(clients)))
            crowd.until(
                lambda clients=clients, expected=expected: all(  # type: ignore[misc]
                    c.messages == expected for c in clients
                ),
                seconds=_PATIENCE_SECONDS,
            )


def heartbeat_of_each(crowd: Crowd) -> None:
    """Wait until every client has received a heartbeat (a Ping is answered at once).

    Raises:
        LoadtestError: a client got no heartbeat within 90 s.
    """
    crowd.until(lambda: all(c.heartbeats for c in crowd.clients), seconds=_PATIENCE_SECONDS)


def _push(pusher: Pusher, users: Sequence[str]) -> None:
    for start in range(0, len(users), _BATCH):
        batch = [{"user": user, "data": _PAYLOAD} for user in users[start : start + _BATCH]]
        if pusher.push(batch) != [1] * len(batch):
            raise LoadtestError("a push did not reach its one connection")
