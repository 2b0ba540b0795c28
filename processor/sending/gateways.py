"""A bounded queue for every gateway: one batch is under way while the next batch forms.

Messages for a slow gateway wait in the slow gateway's own queue, and messages for other gateways
pass by. All queues together hold at most the messages that may be in hand
(processor/reading/progress.py). A message in a queue can be withdrawn: a newer message has replaced
it. A message of the batch that is under way can't.
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

#: A gateway that did not answer is paused: messages for a paused gateway fail at once. After the
#: pause one small batch tries the gateway. After every trial without an answer the pause doubles.
_FIRST_PAUSE_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 5.0
_TRIAL_MESSAGES: Final = 20
#: At this number of gateways, all idle gateways are forgotten before a new gateway is added.
_MAX_IDLE: Final = 256

log = structlog.get_logger("processor.gateways")

#: Takes a node, a batch, and a result for every message. A result is None where the message was no
#: longer due and was not sent.
Answered = Callable[[Node, Sequence[Message], Sequence[Result | None]], None]


class Forward(Protocol):
    """A forwarder, as seen from the queues."""

    async def forward(self, node: Node, pushes: Sequence[Push]) -> list[Result]:
        """Post pushes to `node`, in order; return a result for every push."""


class _Gateway:
    """One gateway: the queue, the task that empties the queue, and the pause after a failure."""

    __slots__ = ("failure", "node", "paused_until", "pauses", "queue", "worker")

    def __init__(self, node: Node, weights: Sequence[int]) -> None:
        self.node = node
        self.queue = Lanes(weights)
        self.worker: asyncio.Task[None] | None = None
        self.failure: Failure | None = None  # why the gateway is paused, or on trial
        self.paused_until = 0.0
        self.pauses = 0  # in a row; back to 0 with an answer

    def note(self, failure: Failure | None, now: float) -> None:
        """Note the end of a batch: start a pause at `failure`; None means the gateway answered."""
        self.failure = failure
        if failure is None:
            self.pauses = 0
            return
        pause = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2**self.pauses)
        self.pauses += 1
        self.paused_until = now + pause
        log.warning("a gateway does not answer", node=self.node.name, reason=failure.reason)


class Gateways:
    """Sends messages to their nodes; for one node and lane, in the order of `put`."""

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
        """`answered` gets every batch. A message is sent only if `is_due` when its turn comes.

        `weights` are the weights of the lanes. Pauses are measured in seconds of `clock`.
        """
        self._spawn = spawn
        self._forwarder = forwarder
        self._answered = answered
        self._is_due = is_due
        self._weights = weights
        self._clock = clock
        self._gateways: dict[Node, _Gateway] = {}
        #: For messages with a collapse key: the gateways in whose queues a message waits.
        self._replaceable: dict[Message, list[_Gateway]] = {}

    def put(self, node: Node, message: Message) -> None:
        """Queue a message for `node`; a task sends the queue, batch by batch."""
        gateway = self._gateways.get(node)
        if gateway is None:
            self._drop_idle()
            gateway = self._gateways[node] = _Gateway(node, self._weights)
        gateway.queue.put(message)
        if message.envelope.collapse_key is not None:
            self._replaceable.setdefault(message, []).append(gateway)
        if gateway.worker is None:
            gateway.worker = self._spawn(self._empty_queue(gateway))

    def withdraw(self, message: Message) -> int:
        """Take a message with a collapse key out of all queues where it waits.

        Return the number of these queues. Their nodes give no result for the message.
        """
        gateways = self._replaceable.pop(message, ())
        for gateway in gateways:
            gateway.queue.discard(message)
        return len(gateways)

    async def close(self) -> None:
        """Stop sending. Messages still in a queue get no result."""
        workers = [g.worker for g in self._gateways.values() if g.worker is not None]
        for worker in workers:
            worker.cancel()
        if workers:
            await asyncio.wait(workers)

    async def _empty_queue(self, gateway: _Gateway) -> None:
        try:
            while gateway.queue:
                await self._send_batch(gateway)
        finally:
            gateway.worker = None

    async def _send_batch(self, gateway: _Gateway) -> None:
        failure = gateway.failure
        paused = failure is not None and self._clock() < gateway.paused_until
        trial = failure is not None and not paused
        taken = gateway.queue.take(_TRIAL_MESSAGES if trial else MAX_BATCH_MESSAGES)
        if self._replaceable:
            self._note_taken(gateway, taken)
        batch: list[Message] = []
        undue: list[Message] = []
        for message in taken:
            (batch if self._is_due(message) else undue).append(message)
        self._answered(gateway.node, undue, [None] * len(undue))
        if failure is not None and paused:
            self._answered(gateway.node, batch, [failure] * len(batch))
        elif batch:
            results = await self._forward(gateway.node, batch)
            gateway.note(_silence(results), self._clock())
            self._answered(gateway.node, batch, results)

    def _note_taken(self, gateway: _Gateway, messages: Sequence[Message]) -> None:
        """Note that messages are no longer in a gateway's queue, and can't be withdrawn there."""
        for message in messages:
            gateways = self._replaceable.get(message)
            if gateways is not None:
                gateways.remove(gateway)
                if not gateways:
                    del self._replaceable[message]

    async def _forward(self, node: Node, batch: Sequence[Message]) -> list[Result]:
        try:
            return await self._forwarder.forward(node, [message.push for message in batch])
        except Exception:
            # No error, however unexpected, may keep a message from its outcome.
            log.exception("a forward failed", node=node.name)
            return [Failure("error")] * len(batch)

    def _drop_idle(self) -> None:
        if len(self._gateways) >= _MAX_IDLE:
            busy = {node: g for node, g in self._gateways.items() if g.worker is not None}
            self._gateways = busy


def _silence(results: Sequence[Result]) -> Failure | None:
    """Return the failure where a gateway did not answer at all, or not in time; else None.

    A large batch is posted in parts, one after the other: the last result is the latest news.
    """
    last = results[-1]
    return last if last in (Failure("timeout"), Failure("unreachable")) else None
