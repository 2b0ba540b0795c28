"""The page people read: look up → group by node → forward → outcome."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import structlog

from processor import metrics
from processor.forward import NO_DEVICE, Failure, Result
from processor.outcome import DELIVERED, EXPIRED, OFFLINE, Kind, Outcome
from registry.directory import Node, Registry, RegistryUnavailable
from registry.message import Envelope, Push

_RETRY_SECONDS: Final = (0.05, 0.1, 0.25, 0.5, 1.0)

log = structlog.get_logger("processor.dispatch")


class Forward(Protocol):
    """What the dispatcher needs of a forwarder."""

    async def forward(self, node: Node, pushes: Sequence[Push]) -> list[Result]:
        """Push messages into `node`, in order; a result for each."""


class _Message:
    """A message under way: where it was tried, and what came of it."""

    __slots__ = ("envelope", "expired", "failure", "push", "stale", "took", "tried")

    def __init__(self, envelope: Envelope) -> None:
        self.envelope = envelope
        self.push = envelope.push
        self.expired = False
        self.tried: list[Node] = []
        self.took = 0
        self.stale = False  # a node that was tried does not have the user (any more)
        self.failure: Failure | None = None

    def note(self, node: Node, result: Result) -> None:
        self.tried.append(node)
        if isinstance(result, Failure):
            self.stale = True
            if result != NO_DEVICE:
                self.failure = result
        elif result:
            self.took += result
        else:
            self.stale = True

    @property
    def outcome(self) -> Outcome:
        if self.took:
            return DELIVERED
        if self.failure is not None:
            return Outcome(Kind.FAILED, self.failure.reason)
        if self.expired:
            return EXPIRED
        return OFFLINE


class Dispatcher:
    """Takes batches to an outcome for each message."""

    def __init__(
        self,
        registry: Registry,
        forwarder: Forward,
        *,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
    ) -> None:
        self._registry = registry
        self._forwarder = forwarder
        self._now_ms = now_ms

    async def dispatch(self, envelopes: Sequence[Envelope]) -> list[Outcome]:
        """Return the outcome of each message; returns only when every one has one.

        While the registry does not answer, the batch waits: nobody is called offline for that.
        Messages of one user reach each of their nodes in order.
        """
        messages = [_Message(envelope) for envelope in envelopes]
        await self._round(messages)
        # The registry is a hint: a refused forward is worth one fresh look, and only nodes that
        # were not tried get the message.
        await self._round([message for message in messages if message.stale])
        return [message.outcome for message in messages]

    async def _round(self, messages: Sequence[_Message]) -> None:
        messages = self._unexpired(messages)
        if not messages:
            return
        users = list(dict.fromkeys(message.push.user for message in messages))
        where = dict(zip(users, await self._lookup(users), strict=True))
        by_node: dict[Node, list[_Message]] = {}
        for message in self._unexpired(messages):  # the look-up may have waited for the registry
            for node in where[message.push.user]:
                if node not in message.tried:
                    by_node.setdefault(node, []).append(message)
        await asyncio.gather(*(self._forward(node, batch) for node, batch in by_node.items()))

    def _unexpired(self, messages: Sequence[_Message]) -> list[_Message]:
        now_ms = self._now_ms()
        for message in messages:
            message.expired = message.envelope.expired(now_ms)
        return [message for message in messages if not message.expired]

    async def _forward(self, node: Node, batch: Sequence[_Message]) -> None:
        results = await self._forwarder.forward(node, [message.push for message in batch])
        for message, result in zip(batch, results, strict=True):
            message.note(node, result)

    async def _lookup(self, users: Sequence[str]) -> list[tuple[Node, ...]]:
        for attempt in itertools.count():
            began = time.perf_counter()
            try:
                found = await self._registry.lookup(users)
            except RegistryUnavailable as error:
                metrics.REGISTRY_ERRORS.inc()
                if attempt == 0:
                    log.error("can't look users up; messages wait", error=str(error))
                await asyncio.sleep(_RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)])
                continue
            if attempt:
                log.info("the registry is back", attempts=attempt)
            metrics.LOOKUP_SECONDS.observe(time.perf_counter() - began)
            return found
        raise AssertionError("count() has no end")
