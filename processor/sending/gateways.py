"""A bounded way to each gateway: one batch under way, the next forms meanwhile.

A slow gateway's messages wait in its own queue, and no other's behind them. What waits is bounded
by what may be in hand (processor/reading/progress.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import structlog

from processor.reading.lanes import Lanes
from processor.reading.message import Message
from processor.sending.forward import Failure, Result
from processor.tasks import Spawn
from registry.directory import Node
from registry.message import MAX_BATCH_MESSAGES, Push

#: How long a gateway that did not answer is left alone; then one small batch tries it. Each time
#: it still does not, twice as long.
_FIRST_PAUSE_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 5.0
_TRIAL_MESSAGES: Final = 20
_MAX_IDLE: Final = 256

log = structlog.get_logger("processor.gateways")

#: Takes a result for each message; None where it was not sent: it was not due any more.
Answered = Callable[[Node, Sequence[Message], Sequence[Result | None]], None]


class Forward(Protocol):
    """What this page needs of a forwarder."""

    async def forward(self, node: Node, pushes: Sequence[Push]) -> list[Result]:
        """Push messages into `node`, in order; a result for each."""


class _Gateway:
    """One gateway: its queue, who empties it, and whether it is left alone."""

    __slots__ = ("failure", "node", "paused_until", "pauses", "queue", "worker")

    def __init__(self, node: Node, weights: Sequence[int]) -> None:
        self.node = node
        self.queue = Lanes(weights)
        self.worker: asyncio.Task[None] | None = None
        self.failure: Failure | None = None  # why it is left alone
        self.paused_until = 0.0
        self.pauses = 0

    def note(self, failure: Failure | None, now: float) -> None:
        """Take note of how a batch went: `failure` where nobody answered."""
        self.failure = failure
        if failure is None:
            self.pauses = 0
            return
        pause = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2**self.pauses)
        self.pauses += 1
        self.paused_until = now + pause
        log.warning("a gateway does not answer", node=self.node.name, reason=failure.reason)


class Gateways:
    """Sends messages to the nodes that they are for, in order for each."""

    def __init__(
        self,
        forwarder: Forward,
        answered: Answered,
        is_due: Callable[[Message], bool],
        *,
        spawn: Spawn,
        weights: Sequence[int] = (1,),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`answered` gets each batch; what is not `is_due` when its turn comes is not sent."""
        self._spawn = spawn
        self._forwarder = forwarder
        self._answered = answered
        self._is_due = is_due
        self._weights = weights
        self._clock = clock
        self._gateways: dict[Node, _Gateway] = {}

    def put(self, node: Node, message: Message) -> None:
        """Send a message to `node` as soon as it is its turn."""
        gateway = self._gateways.get(node)
        if gateway is None:
            self._drop_idle()
            gateway = self._gateways[node] = _Gateway(node, self._weights)
        gateway.queue.put(message)
        if gateway.worker is None:
            gateway.worker = self._spawn(self._empty(gateway))

    async def close(self) -> None:
        """Stop sending; what waits is left."""
        workers = [g.worker for g in self._gateways.values() if g.worker is not None]
        for worker in workers:
            worker.cancel()
        if workers:
            await asyncio.wait(workers)

    async def _empty(self, gateway: _Gateway) -> None:
        try:
            while gateway.queue:
                await self._one_batch(gateway)
        finally:
            gateway.worker = None

    async def _one_batch(self, gateway: _Gateway) -> None:
        failure = gateway.failure
        paused = failure is not None and self._clock() < gateway.paused_until
        trial = failure is not None and not paused
        batch: list[Message] = []
        over: list[Message] = []
        for message in gateway.queue.take(_TRIAL_MESSAGES if trial else MAX_BATCH_MESSAGES):
            (batch if self._is_due(message) else over).append(message)
        self._answered(gateway.node, over, [None] * len(over))
        if failure is not None and paused:
            self._answered(gateway.node, batch, [failure] * len(batch))
        elif batch:
            results = await self._forward(gateway.node, batch)
            gateway.note(_silence(results), self._clock())
            self._answered(gateway.node, batch, results)

    async def _forward(self, node: Node, batch: Sequence[Message]) -> list[Result]:
        try:
            return await self._forwarder.forward(node, [message.push for message in batch])
        except Exception:
            # Nothing may keep a message from its outcome.
            log.exception("a forward failed", node=node.name)
            return [Failure("error")] * len(batch)

    def _drop_idle(self) -> None:
        if len(self._gateways) >= _MAX_IDLE:
            busy = {node: g for node, g in self._gateways.items() if g.worker is not None}
            self._gateways = busy


def _silence(results: Sequence[Result]) -> Failure | None:
    """Return the failure where a gateway did not answer at all, or not in time."""
    last = results[-1]
    return last if last in (Failure("timeout"), Failure("unreachable")) else None
