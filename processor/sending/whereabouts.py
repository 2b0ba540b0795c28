"""Who is where: the registry, and what is remembered of it for when it does not answer."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Collection, Sequence
from typing import Final

import structlog

from processor import metrics
from registry.directory import Node, Registry, RegistryUnavailable
from registry.recent import Recent

#: Users who are remembered, in some 250 bytes each.
MAX_REMEMBERED: Final = 65_536
#: What was true a minute ago is a good guess: a node that does not have the user any more says so.
_STALE_SECONDS: Final = 60.0
_PROBE_SECONDS: Final = (0.05, 0.1, 0.25, 0.5)

log = structlog.get_logger("processor.whereabouts")

Nodes = tuple[Node, ...]


class Whereabouts:
    """Looks users up, a batch at a time. Never raises for the registry's sake."""

    def __init__(
        self,
        registry: Registry,
        *,
        cache_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """What was read up to `cache_seconds` ago is not read again.

        For so long, a message may miss a device that has come since: 0 reads every time.
        """
        self._registry = registry
        self._cache_seconds = cache_seconds
        self._clock = clock
        self._remembered: Recent[str, tuple[float, Nodes]] = Recent(MAX_REMEMBERED)
        self._probe: asyncio.Task[None] | None = None

    @property
    def reachable(self) -> bool:
        """Whether the registry answered when it was asked last."""
        return self._probe is None

    async def find(
        self, users: Sequence[str], *, fresh: Collection[str] = ()
    ) -> list[Nodes | None]:
        """Return the live nodes of each user; None where nobody knows now, and may later.

        For those in `fresh` no earlier answer will do.
        """
        if self._cache_seconds:
            asked = [user for user in users if user not in fresh]
            known = self._known(asked, self._cache_seconds)
            metrics.LOOKUP_CACHE.labels("hit").inc(len(known))
            metrics.LOOKUP_CACHE.labels("miss").inc(len(users) - len(known))
            if len(known) == len(users):
                return [known[user] for user in users]
            left = [user for user in users if user not in known]
            known |= dict(zip(left, await self._ask(left), strict=True))
            return [known[user] for user in users]
        return await self._ask(users)

    def forget(self, user: str) -> None:
        """Forget a user whom a node did not have where they were found."""
        self._remembered.forget(user)

    async def close(self) -> None:
        """Stop asking."""
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.wait((self._probe,))

    async def _ask(self, users: Sequence[str]) -> list[Nodes | None]:
        if self._probe is None:
            began = time.perf_counter()
            try:
                found = await self._registry.lookup(users)
            except RegistryUnavailable as error:
                self._lost(error)
            else:
                metrics.LOOKUP_SECONDS.observe(time.perf_counter() - began)
                self._remember(users, found)
                return found
        known = self._known(users, _STALE_SECONDS)
        return [known.get(user) for user in users]

    def _remember(self, users: Sequence[str], found: Sequence[Nodes | None]) -> None:
        now = self._clock()
        for user, nodes in zip(users, found, strict=True):
            if nodes:
                self._remembered.put(user, (now, nodes))

    def _known(self, users: Sequence[str], seconds: float) -> dict[str, Nodes | None]:
        since = self._clock() - seconds
        known: dict[str, Nodes | None] = {}
        for user in users:
            remembered = self._remembered.get(user)
            if remembered is not None and remembered[0] >= since:
                known[user] = remembered[1]
        return known

    def _lost(self, error: RegistryUnavailable) -> None:
        metrics.REGISTRY_ERRORS.inc()
        log.error("can't look users up; messages for others than lately wait", error=str(error))
        if self._probe is None:
            self._probe = asyncio.create_task(self._until_back())

    async def _until_back(self) -> None:
        try:
            for attempt in itertools.count():
                await asyncio.sleep(_PROBE_SECONDS[min(attempt, len(_PROBE_SECONDS) - 1)])
                try:
                    await self._registry.refresh()
                except RegistryUnavailable:
                    metrics.REGISTRY_ERRORS.inc()
                else:
                    break
        finally:
            self._probe = None  # however it ended: the next look-up asks again
        log.info("the registry is back")
