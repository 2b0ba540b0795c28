"""Keeps the registry in step with the hub: what a node's users have in Redis.

Only users that changed are written, whatever their state is by then: the hub is the truth, so a
write that is late or repeated writes what is true. One write is in flight at a time and takes all
that came in the meantime with it, so batches grow with load and a lone connect waits for nobody.
"""

from __future__ import annotations

import asyncio
import math
from itertools import islice
from typing import Final

import structlog

from gateway import metrics
from gateway.connections.hub import Hub
from registry.directory import Lease, Node, Registry, RegistryUnavailable, Timings

_BATCH: Final = 1_000
_RETRY_SECONDS: Final = (0.1, 0.25, 0.5, 1.0)

log = structlog.get_logger("gateway.registrar")


class Registrar:
    """Writes one node's lease and its users' elements."""

    def __init__(
        self,
        registry: Registry,
        node: Node,
        hub: Hub,
        *,
        timings: Timings,
    ) -> None:
        self.ready = asyncio.Event()
        self._registry = registry
        self._node = node
        self._hub = hub
        self._timings = timings
        self._changed: dict[str, None] = {}  # as ordered sets: first come, first written
        self._writing: dict[str, None] = {}
        self._waiters: dict[str, list[asyncio.Future[bool]]] = {}
        self._wake = asyncio.Event()
        self._failing = False
        self._named = True

    def changed(self, user: str) -> None:
        """Note that a user came or went; written as soon as the write before is done."""
        self._changed[user] = None
        self._wake.set()

    async def written(self, user: str, *, timeout_seconds: float) -> bool:
        """Wait until a user's last change is in the registry; False when that takes too long."""
        if user not in self._changed and user not in self._writing:
            return True
        # A future and a timer: asyncio.wait() takes three times as long, on every handshake.
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        waiting = self._waiters.setdefault(user, [])
        waiting.append(waiter)
        timer = loop.call_later(timeout_seconds, _settle, waiter, False)
        try:
            return await waiter
        finally:
            timer.cancel()
            waiting.remove(waiter)
            if not waiting and self._waiters.get(user) is waiting:
                del self._waiters[user]

    async def run(self) -> None:
        """Claim the node's name, then keep lease and entries until cancelled."""
        await self._claim()
        self.ready.set()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_lease())
            tasks.create_task(self._keep_entries())
            tasks.create_task(self._reassert_paced())

    async def retire(self, *, timeout_seconds: float) -> None:
        """Write what is left and give up the lease, as far as the time allows."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while self._changed:
                    await self._write_some()
                await self._registry.retire(self._node)
        except (RegistryUnavailable, TimeoutError) as error:
            # Nothing is lost: the lease lapses by itself, and with it every entry.
            log.warning("left without goodbye", error=str(error))

    async def _claim(self) -> None:
        attempt = 0
        while True:
            try:
                await self._registry.heartbeat(self._node, claim=True)
                return
            except RegistryUnavailable as error:
                self._failed(error)
                await asyncio.sleep(_RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)])
                attempt += 1

    async def _keep_lease(self) -> None:
        while True:
            await asyncio.sleep(
                _RETRY_SECONDS[-1] if self._failing else self._timings.heartbeat_seconds
            )
            try:
                lease = await self._registry.heartbeat(self._node)
            except RegistryUnavailable as error:
                self._failed(error)
                continue
            self._named_as(self._node.name, own=lease is not Lease.TAKEN)
            if lease is Lease.LAPSED:
                self._assert_all()
            self._recovered()

    async def _keep_entries(self) -> None:
        attempt = 0
        while True:
            await self._wake.wait()
            try:
                await self._write_some()
            except RegistryUnavailable as error:
                self._failed(error)
                await asyncio.sleep(_RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)])
                attempt += 1
            else:
                attempt = 0
                self._recovered()

    async def _write_some(self) -> None:
        batch = list(islice(self._changed, _BATCH))
        self._writing = dict.fromkeys(batch)
        for user in batch:
            del self._changed[user]
        here = [user for user in batch if user in self._hub]
        gone = [user for user in batch if user not in self._hub]
        try:
            await self._registry.write(self._node, here, gone)
        except BaseException:
            self._changed = self._writing | self._changed
            raise
        finally:
            self._writing = {}
            if not self._changed:
                self._wake.clear()
            metrics.REGISTRY_PENDING.set(len(self._changed))
        for user in batch:
            if user not in self._changed:
                for waiter in self._waiters.pop(user, ()):
                    _settle(waiter, True)

    async def _reassert_paced(self) -> None:
        while True:
            users = self._hub.users()
            share = math.ceil(len(users) / self._timings.reassertion_seconds)
            for _ in range(math.ceil(self._timings.reassertion_seconds)):
                await asyncio.sleep(1.0)
                for user in users[-share:] if share else ():
                    if user in self._hub:
                        self.changed(user)
                del users[len(users) - share :]

    def _named_as(self, name: str, *, own: bool) -> None:
        # Not fought for: the newer start is who was meant, and two that claim in turn would both
        # be lost. Its lease ends with it, and then the next heartbeat has the name again.
        if own == self._named:
            return
        self._named = own
        metrics.REGISTRY_NAME_TAKEN.set(not own)
        if own:
            log.info("this node's name is its own again", node=name)
        else:
            log.error(
                "another process has this node's name, so nobody finds who is connected here; "
                "give each its own PUSHGATE_NODE_NAME",
                node=name,
            )

    def _assert_all(self) -> None:
        metrics.REGISTRY_REASSERTED.inc()
        for user in self._hub.users():
            self.changed(user)

    def _failed(self, error: RegistryUnavailable) -> None:
        metrics.REGISTRY_ERRORS.inc()
        if not self._failing:
            self._failing = True
            log.error("can't reach the registry; clients stay, trying on", error=str(error))

    def _recovered(self) -> None:
        if self._failing:
            # A command that timed out here may have been carried out late, over a newer one.
            self._failing = False
            self._assert_all()
            log.info("registry is back; every entry is asserted again")


def _settle(waiter: asyncio.Future[bool], written: bool) -> None:
    if not waiter.done():
        waiter.set_result(written)
