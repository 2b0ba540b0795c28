"""What is compared: a gateway and a stock server, which connect and take batches alike."""

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
#: Until all have seen one heartbeat: more than two intervals of any benchmark that waits for one.
_PATIENCE_SECONDS: Final = 90.0


class Target(Protocol):
    """A server that holds connections."""

    tls: ssl.SSLContext | None

    @property
    def server(self) -> Server:
        """Return its process."""

    @property
    def port(self) -> int:
        """Return where clients connect."""

    def credentials(self, users: Sequence[str]) -> Sequence[str]:
        """Return the bearer of each user."""

    def pusher(self, codec: str = "json") -> Pusher:
        """Return a new connection on which batches are posted."""


class GatewayTarget:
    """The gateway, pushed into over its internal port."""

    def __init__(self, gateway: Gateway, *, tls: ssl.SSLContext | None = None) -> None:
        """`tls` trusts its certificate."""
        self.server = gateway
        self.port = gateway.port
        self.tls = tls

    def credentials(self, users: Sequence[str]) -> Sequence[str]:
        """Return a fresh token for each."""
        return tokens(users)

    def pusher(self, codec: str = "json") -> Pusher:
        """Return a new connection to its internal port."""
        return Pusher(self.server.internal_ports[0], codec=codec)


class StockTarget:
    """A stock server."""

    def __init__(
        self,
        kind: str,
        *,
        heartbeat_seconds: float,
        cores: frozenset[int] = CORES,
        certificate: Certificate | None = None,
        runner: Sequence[str] = ("-m", "loadtest.stock"),
    ) -> None:
        """`kind` is ws or sse; `runner` runs loadtest.stock."""
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
        """Return the users: it believes them."""
        return users

    def pusher(self, codec: str = "json") -> Pusher:
        """Return a new connection to its only port."""
        return Pusher(self.port, codec=codec, tls=self.tls)


def names(start: int, end: int) -> list[str]:
    """Return the users of these numbers."""
    return [f"user-{number}" for number in range(start, end)]


@contextmanager
def visit(target: Target, kind: str, connections: int) -> Iterator[Crowd]:
    """Connect a crowd and send a message to each of it.

    Long-polls get theirs fifty at a time, as others would.
    """
    crowd = Crowd(target.port, kind, tls=target.tls)
    try:
        crowd.connect(target.credentials(names(0, connections)))
        message_to_each(target, crowd, at_once=_POLL_BATCH if kind == "poll" else connections)
        yield crowd
    finally:
        crowd.close()


def message_to_each(target: Target, crowd: Crowd, *, at_once: int) -> None:
    """Send one message to everyone, `at_once` before their arrival is waited for."""
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
    """Wait until everyone has had a heartbeat, and has answered it if it is a ping."""
    crowd.until(lambda: all(c.heartbeats for c in crowd.clients), seconds=_PATIENCE_SECONDS)


def _push(pusher: Pusher, users: Sequence[str]) -> None:
    for start in range(0, len(users), _BATCH):
        batch = [{"user": user, "data": _PAYLOAD} for user in users[start : start + _BATCH]]
        if pusher.push(batch) != [1] * len(batch):
            raise LoadtestError("a push did not reach its one connection")
