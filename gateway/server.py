"""One gateway process: two listeners, the clock, the registrar, and a way out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final

import structlog
from starlette.routing import BaseRoute

from gateway.app import internal_app, public_app
from gateway.hub import Hub
from gateway.listener import Listener, bind
from gateway.node import GatewayNode
from gateway.registrar import Registrar
from gateway.settings import GatewaySettings
from gateway.sweep import TICK_SECONDS
from gateway.wires.choice import Wires
from registry.redis_store import RedisRegistry

#: How long a leaving node waits for its clients' farewells, and then for the registry.
FAREWELL_SECONDS: Final = 5.0
RETIRE_SECONDS: Final = 3.0

log = structlog.get_logger("gateway")


class Gateway:
    """A gateway node, from bind to exit. Made inside the running loop."""

    def __init__(
        self, settings: GatewaySettings, *, extra_routes: Sequence[BaseRoute] = ()
    ) -> None:
        """Bind both ports at once; `extra_routes` go on the public one.

        Raises:
            OSError: a port can't be bound.
        """
        internal_socket = bind(settings.internal_host, settings.internal_port)
        public_socket = bind(settings.host, settings.port)
        self.internal_port: int = internal_socket.getsockname()[1]
        self.port: int = public_socket.getsockname()[1]
        self._registry = RedisRegistry(
            settings.redis_url, timeout_seconds=settings.redis_timeout_seconds
        )
        identity = settings.node(self.internal_port)
        hub = Hub()
        registrar = Registrar(self._registry, identity, hub)
        self.node = GatewayNode(identity, hub, registrar)
        self._stopping = asyncio.Event()
        internal = internal_app(self.node, settings, drain=self.stop)
        self._wires = Wires(
            settings.wire,
            loop=asyncio.get_running_loop(),
            send_buffer_bytes=settings.send_buffer_bytes,
        )
        public = public_app(self.node, settings, self._wires, extra_routes=extra_routes)
        self._internal = Listener(internal_socket, internal)
        self._public = Listener(public_socket, public)

    def stop(self) -> None:
        """Leave: tell the clients, give up the lease, then return from `run`."""
        self._stopping.set()

    async def started(self) -> None:
        """Return once ready."""
        await self.node.registrar.ready.wait()

    async def run(self) -> None:
        """Serve until `stop`."""
        log.info(
            "gateway starts",
            node=self.node.identity.name,
            port=self.port,
            internal=self.node.identity.address,
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._internal.serve())
            tasks.create_task(self._public.serve())
            registrar = tasks.create_task(self.node.registrar.run())
            clock = tasks.create_task(self._tick())
            announce = tasks.create_task(self._announce())
            await self._stopping.wait()
            await self._leave()
            registrar.cancel()
            await asyncio.wait((registrar,))
            await self.node.registrar.retire(timeout_seconds=RETIRE_SECONDS)
            self._internal.stop()
            clock.cancel()
            announce.cancel()
        self._wires.close()
        await self._registry.close()
        log.info("gateway has left", node=self.node.identity.name)

    async def _leave(self) -> None:
        log.info("gateway leaves", connections=len(self.node.hub))
        self.node.leave()
        self._public.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS):
                await self.node.empty.wait()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self.node.advance()

    async def _announce(self) -> None:
        await self.started()
        log.info("gateway is ready", node=self.node.identity.name)
