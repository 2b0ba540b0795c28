"""The nodes of users: from the registry, or remembered for when the registry does not answer."""

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

#: Users whose nodes are remembered, in some 250 bytes a user.
MAX_REMEMBERED: Final = 65_536
#: How old a remembered answer may be while the registry does not answer. An answer of a minute ago
#: is a good guess: a node that does not have the user any more says so.
_STALE_SECONDS: Final = 60.0
_PROBE_SECONDS: Final = (0.05, 0.1, 0.25, 0.5)

log = structlog.get_logger("processor.whereabouts")

Nodes = tuple[Node, ...]


class Whereabouts:
    """Looks users up, a batch at a time. Never raises an error of the registry."""

    def __init__(
        self,
        registry: Registry,
        *,
        cache_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A user's nodes that were read in the last `cache_seconds` are not read again.

        For so long, a message may miss a device that has connected since. 0 reads every time.
        """
        self._registry = registry
        self._cache_seconds = cache_seconds
        self._clock = clock
        self._remembered: Recent[str, tuple[float, Nodes]] = Recent(MAX_REMEMBERED)
        self._probe: asyncio.Task[None] | None = None
        #: Users who were forgotten while look-ups are under way, and how many are.
        self._forgotten: set[str] = set()
        self._asking = 0

    @property
    def reachable(self) -> bool:
        """Whether the registry answered when it was asked last."""
        return self._probe is None

    async def look_up(
        self, users: Sequence[str], *, fresh: Collection[str] = ()
    ) -> list[Nodes | None]:
        """Return the live nodes of every user: `()` is offline, None is unknown.

        An unknown user may be found by a later call. Users in `fresh` are looked up even where an
        answer is cached.
        """
        if self._cache_seconds:
            cacheable = [user for user in users if user not in fresh]
            known = self._known(cacheable, self._cache_seconds)
            metrics.LOOKUP_CACHE.labels("hit").inc(len(known))
            metrics.LOOKUP_CACHE.labels("miss").inc(len(users) - len(known))
            if len(known) == len(users):
                return [known[user] for user in users]
            missing = [user for user in users if user not in known]
            known |= dict(zip(missing, await self._ask(missing), strict=True))
            return [known[user] for user in users]
        return await self._ask(users)

    def forget(self, user: str) -> None:
        """Forget the nodes of a user: the user is elsewhere, or somewhere else too.

        What a look-up finds that began before is not remembered either.
        """
        self._remembered.forget(user)
        if self._asking:
            self._forgotten.add(user)

    async def close(self) -> None:
        """Stop probing the registry."""
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.wait((self._probe,))

    async def _ask(self, users: Sequence[str]) -> list[Nodes | None]:
        if self._probe is None:
            began = time.perf_counter()
            self._asking += 1
            try:
                answers = await self._registry.lookup(users)
            except RegistryUnavailable as error:
                self._lost(error)
            else:
                metrics.LOOKUP_SECONDS.observe(time.perf_counter() - began)
                self._remember(users, answers)
                return answers
            finally:
                self._asking -= 1
                if not self._asking:
                    self._forgotten.clear()
        known = self._known(users, _STALE_SECONDS)
        return [known.get(user) for user in users]

    def _remember(self, users: Sequence[str], answers: Sequence[Nodes | None]) -> None:
        now = self._clock()
        for user, nodes in zip(users, answers, strict=True):
            if nodes and user not in self._forgotten:
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
            self._probe = None  # even when cancelled: the next look-up asks the registry again
        log.info("the registry is back")
