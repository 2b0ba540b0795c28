"""A gateway's hub and registrar over a real registry, and what a processor sees of them."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from gateway.connections.connection import Connection
from gateway.connections.hub import Hub
from gateway.connections.registrar import Registrar
from registry.directory import Lease, Node, RegistryUnavailable
from registry.redis_store import RedisRegistry
from tests.support.timings import AnyTimings
from tests.unit.gateway.fakes import FakeConnection, identity

HEARTBEAT_SECONDS = 0.2
TIMEOUT_SECONDS = 0.5
#: Faults 5 and 6: back in two seconds after a freeze, a heartbeat and five seconds after a loss.
RECOVERY_SECONDS = HEARTBEAT_SECONDS + 5.0
USERS = [f"u{number}" for number in range(1_500)]


class HoldableRegistry(RedisRegistry):
    """A gateway's registry, which can keep the gateway waiting, as a long pause of it would."""

    def __init__(self, url: str, **bounds: Any) -> None:
        super().__init__(url, **bounds)
        self.going_on = asyncio.Event()
        self.going_on.set()

    async def heartbeat(self, node: Node, *, claim: bool = False) -> Lease:
        await self.going_on.wait()
        return await super().heartbeat(node, claim=claim)

    async def write(self, node: Node, here: Sequence[str], gone: Sequence[str]) -> None:
        await self.going_on.wait()
        await super().write(node, here, gone)


class Gateway:
    """A node's hub and registrar, and a processor's view of the same registry."""

    def __init__(
        self,
        url: str,
        *,
        name: str = "gw-a",
        lease_seconds: float = 12.0,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self.node = Node(name, f"{time.monotonic_ns():x}", "127.0.0.1:8081")
        timings = AnyTimings(heartbeat_seconds=HEARTBEAT_SECONDS, lease_seconds=lease_seconds)
        self._registry = HoldableRegistry(url, timeout_seconds=timeout_seconds, timings=timings)
        self._view = RedisRegistry(url, timeout_seconds=timeout_seconds)
        self._connections: dict[str, Connection] = {}
        self.hub = Hub()
        self.registrar = Registrar(self._registry, self.node, self.hub, timings=timings)
        self._task: asyncio.Task[None] | None = None

    def connect(self, *users: str) -> None:
        for user in users:
            connection = FakeConnection(identity(user))
            self._connections[user] = connection
            self.hub.add(connection)
            self.registrar.changed(user)

    def disconnect(self, *users: str) -> None:
        for user in users:
            self.hub.remove(self._connections.pop(user))
            self.registrar.changed(user)

    def hold(self) -> None:
        """Keep it from the registry until it is let go."""
        self._registry.going_on.clear()

    def let_go(self) -> None:
        """Let it go on."""
        self._registry.going_on.set()

    async def registered(self) -> set[str]:
        """Every user of this test whom a look-up finds on this node; raises in an outage."""
        await self._view.refresh()
        found = await self._view.lookup(USERS)
        return {
            user for user, nodes in zip(USERS, found, strict=True) if self.node in (nodes or ())
        }

    async def in_step(self, *, within_seconds: float = RECOVERY_SECONDS) -> None:
        """Return once the registry has exactly the users who are here."""
        deadline = time.monotonic() + within_seconds
        while True:
            with contextlib.suppress(RegistryUnavailable):
                if await self.registered() == set(self._connections):
                    return
            assert time.monotonic() < deadline, f"not in step within {within_seconds} s"
            await asyncio.sleep(0.02)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self._task = asyncio.create_task(self.registrar.run())
        try:
            async with asyncio.timeout(10):
                await self.registrar.ready.wait()
            yield
            assert not self._task.done(), "the registrar gave up"
        finally:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            await self._registry.close()
            await self._view.close()
