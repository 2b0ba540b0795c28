"""A queue for every gateway: a batch is under way while the next batch forms.

Under a backlog two batches are under way: the gateway has the second in hand by the time of the
answer to the first. The two batches have no key in common (node_queue.py).

A gateway without an answer is silent. Messages for a silent gateway wait, in order, for as long as
the node is present in the registry (live, or lost a short time ago), and messages for answering
gateways pass by. Silence is no proof of absence: a node may be frozen or cut off, and go on. A
message in a queue can be withdrawn, once a newer message has replaced the message. A message of a
batch under way can't.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Hashable, Sequence, Set
from typing import Final, NamedTuple, Protocol

import structlog

from processor import metrics
from processor.reading.message import Message
from processor.sending.forward import (
    MISDIRECTED,
    NO_LINK,
    OVERLOADED,
    REFUSED,
    TIMEOUT,
    UNREACHABLE,
    Answer,
    Failure,
    Result,
)
from processor.sending.link import WINDOW
from processor.sending.node_queue import Batch, Finished, NodeQueue
from processor.tasks import Spawn
from registry.directory import Node
from registry.message import MAX_BATCH_MESSAGES, Push, boundary_of

#: A silent gateway is tried again after a pause, with one small batch. After every trial without an
#: answer the pause doubles.
_FIRST_PAUSE_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 5.0
_TRIAL_MESSAGES: Final = 20
#: Messages that must be queued for a batch to go behind another that is under way. Fewer wait, and
#: make the next batch larger: the fixed costs of a batch, some 110 µs on both sides, are then below
#: 0.5 µs a message.
_BEHIND_MESSAGES: Final = 250
#: Bounds of what waits for one silent gateway, and for all of them together; a message beyond has
#: the outcome `failed`, `unreachable`. A message takes some 1.2 KB beside its payload.
MAX_WAITING_MESSAGES: Final = 65_536
MAX_WAITING_BYTES: Final = 64 * 1024 * 1024
_MOST_SILENT: Final = 2  # all silent gateways together: so many times a gateway's bounds
#: Failures after which a gateway is silent. After others it has answered, if only with an error.
_SILENT: Final = (TIMEOUT, UNREACHABLE, REFUSED, NO_LINK)
#: Of these, the failures after which all is in vain until an operator acts.
_REFUSING: Final = (REFUSED, NO_LINK)

#: The node of a message is not present any more, and had not answered: the message may have missed
#: connections there.
GONE: Final = Failure("gone")

log = structlog.get_logger("processor.gateways")


class Callbacks(NamedTuple):
    """The dispatcher, as seen from the queues."""

    #: Takes a node, messages, and their results: None where a message was not sent.
    answered: Callable[[Node, Sequence[Message], Sequence[Result | None]], None]
    #: Takes a node, and messages that wait there from now on; some may wait there already.
    waiting: Callable[[Node, Sequence[Message]], None]
    #: Whether a message is still to be sent.
    is_due: Callable[[Message], bool]


class Presence(Protocol):
    """The registry, as seen from the queues: its latest reading of the nodes."""

    def present(self, node: Node) -> bool:
        """Whether the node is live or lost."""

    def lost(self, node: Node) -> bool:
        """Whether the node's lease has lapsed without a goodbye, a short time ago."""

    def vouch(self, node: Node) -> None:
        """Note an answer of the node: the node counts, with a lease or without."""


class Forward(Protocol):
    """A forwarder, as seen from the queues."""

    async def forward(self, node: Node, pushes: Sequence[Push]) -> Answer:
        """Post pushes to `node`, in order; return a result for every push, or one Failure."""


class _Gateway:
    """One gateway: its queue, the tasks that empty the queue, and the pauses while silent."""

    __slots__ = (
        "behind",
        "failure",
        "held_back",
        "node",
        "pause",
        "paused_until",
        "queue",
        "sleeping",
        "under_way",
        "unproven",
        "waiting",
        "waiting_bytes",
        "wake",
        "worker",
    )

    def __init__(self, node: Node, queue: NodeQueue) -> None:
        self.node = node
        self.queue = queue
        self.worker: asyncio.Task[None] | None = None
        self.behind: asyncio.Task[None] | None = None  # sends behind the worker's batches
        self.under_way: list[Batch] = []  # WINDOW at most
        #: All that is queued is of users with messages under way, as far as a batch goes.
        self.held_back = False
        self.failure: Failure | None = None  # why the gateway is silent; None: it answers
        self.paused_until = 0.0
        self.pause = 0.0  # the length of the last pause in seconds; 0 after an answer
        self.unproven = True  # not known yet to take this processor's secret
        self.waiting = 0  # messages in the queue while silent, and their bytes
        self.waiting_bytes = 0
        self.wake = asyncio.Event()
        self.sleeping = False  # the task waits for messages, or for a line

    @property
    def may_send(self) -> bool:
        """Whether another batch may go now: alone, or behind one that is under way."""
        if not self.under_way:
            return True
        return (
            len(self.under_way) < WINDOW
            and self.failure is None
            and not self.unproven
            and not self.held_back
            and self.queue.outside_lines >= _BEHIND_MESSAGES
        )

    @property
    def keys_under_way(self) -> Set[Hashable]:
        """The keys of messages under way."""
        if not self.under_way:
            return frozenset()
        return {message.key for batch in self.under_way for message in batch.messages}

    def silent_for(self, failure: Failure, now: float) -> None:
        """Note that the gateway did not answer: start the next pause."""
        self.failure = failure
        self.unproven = self.unproven or failure in _REFUSING
        self.pause = min(_LONGEST_PAUSE_SECONDS, 2 * self.pause) or _FIRST_PAUSE_SECONDS
        self.paused_until = now + self.pause

    def count_waiting(self) -> None:
        """Count the messages in the queue, and their bytes."""
        sizes = [message.size for message in self.queue]
        self.waiting, self.waiting_bytes = len(sizes), sum(sizes)

    async def sleep(self, seconds: float | None) -> None:
        """Return after `seconds`, or when woken."""
        self.wake.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.wake.wait()


class Gateways:
    """Sends messages to their nodes; for one node and key, in the order of `put`."""

    def __init__(
        self,
        forwarder: Forward,
        callbacks: Callbacks,
        presence: Presence,
        *,
        spawn: Spawn,
        patience_seconds: float,
        weights: Sequence[int] = (1,),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`weights` are the weights of the lanes; pauses are in seconds of `clock`.

        A message without a TTL waits `patience_seconds` for room in its user's connections.
        """
        self._spawn = spawn
        self._forwarder = forwarder
        self._callbacks = callbacks
        self._presence = presence
        self._weights = weights
        self._patience_seconds = patience_seconds
        self._clock = clock
        self._gateways: dict[Node, _Gateway] = {}
        self._waiting = 0  # messages that wait for silent gateways, and their bytes
        self._waiting_bytes = 0
        #: For messages with a collapse key: the gateways in whose queues a message waits.
        self._replaceable: dict[Message, list[_Gateway]] = {}

    def put(self, node: Node, message: Message) -> bool:
        """Queue a message for `node`; return whether it waits there: the node is silent, or the
        user's connections to the node have no room.
        """
        gateway = self._gateways.get(node) or self._add(node)
        waits = gateway.failure is not None
        if waits and not self._has_room(gateway, message):
            return self._overflow(gateway, message, UNREACHABLE)
        if gateway.queue.has_line(message):
            if not gateway.queue.join_line(message, self._clock()):
                return self._overflow(gateway, message, OVERLOADED)
            waits = True
        else:
            gateway.queue.put(message)
        if message.envelope.collapse_key is not None:
            self._replaceable.setdefault(message, []).append(gateway)
        if gateway.worker is None:
            gateway.worker = self._spawn(self._work(gateway))
        elif gateway.sleeping:
            gateway.wake.set()
        return waits

    def withdraw(self, message: Message) -> list[Node]:
        """Take a message with a collapse key out of all queues where it waits.

        Return the nodes of these queues; no result of the message comes from there. A node where
        some connections took the message is left out: the node's result comes, and the connections
        without room go without.
        """
        gateways = self._replaceable.pop(message, [])
        return [gateway.node for gateway in gateways if gateway.queue.withdraw(message)]

    def give_up(self, node: Node, messages: Collection[Message]) -> None:
        """Let messages fail that wait at `node`, but for those of batches under way."""
        gateway = self._gateways.get(node)
        if gateway is not None:
            failure = OVERLOADED if gateway.failure is None else UNREACHABLE
            self._finish(gateway, gateway.queue.take_out(messages, failure))

    def probe(self, nodes: Collection[Node]) -> None:
        """Ask new nodes whether this processor's secret is good there."""
        for node in nodes:
            if node not in self._gateways:
                gateway = self._add(node)
                gateway.worker = self._spawn(self._work(gateway))

    def refuse(self, nodes: Collection[Node]) -> bool:
        """Whether all of the nodes, a node at least, refuse this processor's secret or links."""
        gateways = [self._gateways.get(node) for node in nodes]
        return bool(gateways) and all(g is not None and g.failure in _REFUSING for g in gateways)

    def observe(self) -> None:
        """End waits whose time is over. Called every second, after a reading of the nodes.

        Absent nodes are forgotten, and messages for an absent node have the result GONE. Messages
        whose patience or TTL has ended leave.
        """
        now = self._clock()
        for gateway in list(self._gateways.values()):
            if gateway.failure is not None:
                undue = {m for m in gateway.queue if not self._callbacks.is_due(m)}
                if undue:
                    self._finish(gateway, gateway.queue.take_out(undue, None))
            else:
                self._finish(gateway, gateway.queue.expire(now, self._callbacks.is_due))
            self._end_if_gone(gateway)
            if gateway.worker is None and self._presence.lost(gateway.node):
                # A lost node counts for as long as the node answers: ask, without a message.
                gateway.unproven = True
                gateway.worker = self._spawn(self._work(gateway))
            gateway.wake.set()
        self._count_waiting()

    async def close(self) -> None:
        """Stop sending. Messages still in a queue get no result."""
        tasks = [task for g in self._gateways.values() for task in (g.worker, g.behind)]
        workers = [task for task in tasks if task is not None]
        for worker in workers:
            worker.cancel()
        if workers:
            await asyncio.wait(workers)

    def _add(self, node: Node) -> _Gateway:
        queue = NodeQueue(self._weights, patience_seconds=self._patience_seconds)
        gateway = self._gateways[node] = _Gateway(node, queue)
        if self._presence.lost(node):
            gateway.failure = UNREACHABLE  # as far as is known; a trial comes at once
        return gateway

    def _has_room(self, gateway: _Gateway, message: Message) -> bool:
        """Count one more message that waits for a silent gateway, unless a bound is reached."""
        if (
            gateway.waiting >= MAX_WAITING_MESSAGES
            or gateway.waiting_bytes + message.size > MAX_WAITING_BYTES
            or self._waiting >= _MOST_SILENT * MAX_WAITING_MESSAGES
            or self._waiting_bytes >= _MOST_SILENT * MAX_WAITING_BYTES
        ):
            return False
        gateway.waiting += 1
        gateway.waiting_bytes += message.size
        self._waiting += 1
        self._waiting_bytes += message.size
        return True

    def _count_waiting(self) -> None:
        """Count messages for silent gateways afresh: between two calls `put` only adds."""
        silent = [gateway for gateway in self._gateways.values() if gateway.failure is not None]
        for gateway in silent:
            gateway.count_waiting()
        self._waiting = sum(gateway.waiting for gateway in silent)
        self._waiting_bytes = sum(gateway.waiting_bytes for gateway in silent)
        in_lines = sum(g.queue.in_lines for g in self._gateways.values() if g.failure is None)
        metrics.WAITING.labels("silent").set(self._waiting)
        metrics.WAITING.labels("no-room").set(in_lines)

    def _overflow(self, gateway: _Gateway, message: Message, failure: Failure) -> bool:
        """Let a message beyond the bounds of waiting fail, in a later turn of the loop."""
        metrics.WAITING_OVERFLOWS.labels(failure.reason).inc()
        loop = asyncio.get_running_loop()
        loop.call_soon(self._finish, gateway, [(message, failure)])
        return False

    async def _work(self, gateway: _Gateway) -> None:
        try:
            while (to_send := gateway.queue or gateway.unproven) or gateway.behind is not None:
                if to_send and gateway.may_send:
                    await self._send_batch(gateway)
                else:
                    # Until a batch has come back: its messages may be in the queue again then.
                    await gateway.sleep(None)
        finally:
            gateway.worker = None

    async def _work_behind(self, gateway: _Gateway) -> None:
        """Send batches behind those of the worker, for as long as there are whole ones."""
        try:
            while gateway.under_way and gateway.may_send:
                await self._send_batch(gateway)
        finally:
            gateway.behind = None
            gateway.wake.set()

    async def _send_batch(self, gateway: _Gateway) -> None:
        now = self._clock()
        silent = gateway.failure is not None
        if silent and now < gateway.paused_until:
            await gateway.sleep(gateway.paused_until - now)
            return
        limit = _TRIAL_MESSAGES if silent else MAX_BATCH_MESSAGES
        taken = gateway.queue.next_batch(limit, now, keys_under_way=gateway.keys_under_way)
        boundaries = gateway.queue.boundaries(taken)
        batch = self._without_undue(gateway, taken, boundaries)
        if batch.messages or gateway.unproven:
            await self._send(gateway, batch, boundaries)
        elif taken.messages:
            return  # none of them is sent any more: there may be others
        elif gateway.under_way:
            gateway.held_back = True
        elif (due := gateway.queue.next_due()) is not None:
            gateway.sleeping = True
            await gateway.sleep(max(0.0, due - self._clock()))
            gateway.sleeping = False

    def _without_undue(
        self, gateway: _Gateway, taken: Batch, boundaries: Collection[Message]
    ) -> Batch:
        """Finish the messages of a batch that are not sent any more; return the others.

        A boundary is given to no connection: without the boundary its attempt must not go out.
        """
        if self._replaceable:
            self._note_taken(gateway, taken.messages)
        is_due = self._callbacks.is_due
        batch = [message for message in taken.messages if is_due(message) or message in boundaries]
        if len(batch) == len(taken.messages):
            return taken
        sent = set(batch)
        unsent = [message for message in taken.messages if message not in sent]
        self._finish(gateway, gateway.queue.leave(unsent, None))
        return gateway.queue.narrowed(taken, batch)

    async def _send(self, gateway: _Gateway, batch: Batch, boundaries: Collection[Message]) -> None:
        """Send a batch, and note the answer; meanwhile another may go behind it."""
        trial = gateway.failure is not None
        gateway.under_way.append(batch)
        if gateway.behind is None and gateway.may_send:
            gateway.behind = self._spawn(self._work_behind(gateway))
        try:
            answer = await self._forward(gateway.node, batch.messages, boundaries)
        finally:
            gateway.under_way.remove(batch)
            gateway.held_back = False
        self._note(gateway, batch, answer, trial=trial)

    def _note(self, gateway: _Gateway, batch: Batch, answer: Answer, *, trial: bool) -> None:
        """Note a node's answer to a batch, or that there was none."""
        now = self._clock()
        if isinstance(answer, Failure) and answer in _SILENT:
            self._note_silence(gateway, batch, answer, now, trial=trial)
            return
        gateway.failure, gateway.pause, gateway.unproven = None, 0.0, False
        if answer == MISDIRECTED:
            answer = [0] * len(batch.messages)
        elif not isinstance(answer, Failure):
            self._presence.vouch(gateway.node)
        results = [answer] * len(batch.messages) if isinstance(answer, Failure) else answer
        if gateway.queue.is_plain(batch, results):
            self._callbacks.answered(gateway.node, batch.messages, results)
            return
        finished, waiting = gateway.queue.returned(batch, results, now)
        self._finish(gateway, finished)
        self._note_queued(gateway, waiting)
        self._callbacks.waiting(gateway.node, waiting)

    def _note_silence(
        self, gateway: _Gateway, batch: Batch, failure: Failure, now: float, *, trial: bool
    ) -> None:
        """Queue a batch again that the node did not answer; its messages wait from now on.

        Of two batches under way the second falls silent with the first, and is not tried apart.
        """
        begins = gateway.failure is None
        if begins or trial:
            gateway.silent_for(failure, now)
            log.warning("a gateway does not answer", node=gateway.node.name, reason=failure.reason)
        # A message that a newer message has replaced is not sent again. Whether the node has
        # delivered the replaced message is not known.
        replaced = [message for message in batch.messages if message.replaced]
        finished = gateway.queue.leave(replaced, failure)
        again = [message for message in batch.messages if not message.replaced]
        gateway.queue.put_back(Batch(again, batch.attempts))
        self._note_queued(gateway, again)
        self._finish(gateway, finished)
        if not trial:
            self._count_waiting()
            self._callbacks.waiting(gateway.node, list(gateway.queue) if begins else again)
        self._end_if_gone(gateway)

    def _end_if_gone(self, gateway: _Gateway) -> None:
        """End the waiting of messages for a silent node that is not present; forget an idle one.

        A node with a batch under way is kept until the batch has come back: should the node be
        found again, no message may pass the batch.
        """
        if self._presence.present(gateway.node):
            return
        if gateway.failure is not None:
            gateway.unproven = False
            everything = set(gateway.queue)
            self._finish(gateway, gateway.queue.take_out(everything, GONE))
        if gateway.worker is None and gateway.behind is None:
            self._gateways.pop(gateway.node, None)

    def _finish(self, gateway: _Gateway, finished: Sequence[Finished]) -> None:
        if finished:
            messages = [message for message, _ in finished]
            self._note_taken(gateway, messages)
            self._callbacks.answered(gateway.node, messages, [result for _, result in finished])

    def _note_taken(self, gateway: _Gateway, messages: Sequence[Message]) -> None:
        """Note that messages are no longer in a gateway's queue, and can't be withdrawn there."""
        for message in messages:
            gateways = self._replaceable.get(message)
            if gateways is not None and gateway in gateways:
                gateways.remove(gateway)
                if not gateways:
                    del self._replaceable[message]

    def _note_queued(self, gateway: _Gateway, messages: Sequence[Message]) -> None:
        """Note that messages are in a gateway's queue (again), and can be withdrawn there."""
        for message in messages:
            if message.envelope.collapse_key is not None:
                gateways = self._replaceable.setdefault(message, [])
                if gateway not in gateways:
                    gateways.append(gateway)

    async def _forward(
        self, node: Node, batch: Sequence[Message], boundaries: Collection[Message]
    ) -> Answer:
        pushes = [message.push for message in batch]
        if boundaries:
            pushes = [boundary_of(m.push) if m in boundaries else m.push for m in batch]
        try:
            return await self._forwarder.forward(node, pushes)
        except Exception:
            # No error, however unexpected, may keep a message from its outcome.
            log.exception("a forward failed", node=node.name)
            return Failure("error")
