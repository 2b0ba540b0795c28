"""The node: what happens to a connection between its handshake and its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from gateway import metrics
from gateway.closes import GOING_AWAY
from gateway.connection import Connection
from gateway.hub import Hub
from gateway.registrar import Registrar
from gateway.sweep import Sweep
from registry.directory import Node

#: The 101 or 200 follows registration, or this, whichever comes first.
REGISTRATION_SECONDS: Final = 1.0


class GatewayNode:
    """Holds connections: hub, registry and clock are told together, here alone."""

    def __init__(
        self,
        identity: Node,
        hub: Hub,
        registrar: Registrar,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.identity = identity
        self.hub = hub
        self.registrar = registrar
        self.sweep = Sweep(now=clock())
        self.draining = False
        self.empty = asyncio.Event()  # nothing is held, not even to say goodbye
        self.empty.set()
        self._held = 0
        self._clock = clock

    @property
    def ready(self) -> bool:
        """Whether new connections are welcome; once ready, a lost registry does not change it."""
        return self.registrar.ready.is_set() and not self.draining

    def hold(self, connection: Connection) -> None:
        """Take a connection in: from now on it gets messages."""
        self._held += 1
        self.empty.clear()
        metrics.OPENED.labels(connection.transport).inc()
        metrics.CONNECTIONS.labels(connection.transport).inc()
        if self.hub.add(connection):
            self.registrar.changed(connection.identity.user)

    async def registered(self, connection: Connection) -> None:
        """Wait until the connection's user is in the registry, a second at most."""
        user = connection.identity.user
        await self.registrar.written(user, timeout_seconds=REGISTRATION_SECONDS)

    def release(self, connection: Connection, reason: str) -> None:
        """Take a connection out: it gets no more messages, and its entry goes with the last."""
        if self.hub.remove(connection):
            self.registrar.changed(connection.identity.user)
        metrics.CONNECTIONS.labels(connection.transport).dec()
        metrics.CLOSED.labels(connection.transport, reason).inc()

    def forget(self, connection: Connection) -> None:
        """Drop a connection from the clock: it is closed."""
        self.sweep.forget(connection)
        self._held -= 1
        if not self._held:
            self.empty.set()

    def wake_at(self, connection: Connection, delay_seconds: float) -> None:
        """Call the connection's `wake` after `delay_seconds`."""
        self.sweep.wake_at(connection, self._clock() + delay_seconds)

    def advance(self) -> None:
        """Wake whoever is due."""
        self.sweep.advance(self._clock())

    def leave(self) -> None:
        """Tell every connection to go elsewhere."""
        self.draining = True
        for connection in self.hub.connections():
            connection.close(GOING_AWAY)
