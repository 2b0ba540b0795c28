"""A dispatcher that runs over a registry and a forwarder by hand, for unit tests of sending."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager

from processor.outcomes.outcome import Outcome, outcome_of
from processor.reading.kafka import TopicPartition
from processor.reading.message import Message
from processor.reading.progress import Progress
from processor.sending.dispatch import Dispatcher
from processor.sending.forward import (
    NO_LINK,
    REFUSED,
    TIMEOUT,
    UNREACHABLE,
    Answer,
    Failure,
    Result,
)
from processor.sending.whereabouts import Whereabouts
from registry.directory import Lease, Node, Processors, RegistryUnavailable
from registry.message import Envelope, Push

A = Node("gw-a", "e1", "10.0.0.1:8081")
B = Node("gw-b", "e2", "10.0.0.2:8081")
C = Node("gw-c", "e3", "10.0.0.3:8081")
NOW_MS = 1_000_000


Places = dict[str, tuple[Node, ...] | None]


class FakeRegistry:
    """Who is where, look-up by look-up: the last answer stays."""

    def __init__(self, *answers: Places) -> None:
        self._answers = list(answers) or [{}]
        self.failures = 0
        self.gone: set[Node] = set()
        self.vouched: list[Node] = []
        self.lost_nodes: set[Node] = set()
        self.lookups: list[list[str]] = []

    def answer(self, answer: Places) -> None:
        """Give this answer from now on."""
        self._answers = [answer]

    async def lookup(self, users: Sequence[str]) -> list[tuple[Node, ...] | None]:
        if self.failures:
            self.failures -= 1
            raise RegistryUnavailable("as the test wants it")
        self.lookups.append(list(users))
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return [answer.get(user, ()) for user in users]

    async def heartbeat(self, node: Node, *, claim: bool = False) -> Lease:
        return Lease.HELD

    async def retire(self, node: Node) -> None: ...

    async def processors(self) -> Processors:
        return Processors(0, frozenset())

    async def keep_processor(self, name: str) -> Processors:
        return Processors(0, frozenset((name,)))

    async def retire_processor(self, name: str) -> None: ...

    async def write(self, node: Node, here: Sequence[str], gone: Sequence[str]) -> None: ...

    async def refresh(self) -> None:
        if self.failures:
            self.failures -= 1
            raise RegistryUnavailable("as the test wants it")

    def present(self, node: Node) -> bool:
        """Say whether the node is live or lost."""
        return node not in self.gone

    def lost(self, node: Node) -> bool:
        """Say whether the node is lost."""
        return node in self.lost_nodes

    def vouch(self, node: Node) -> None:
        """Note that the node has answered."""
        self.vouched.append(node)

    async def nodes(self) -> list[Node]:
        return []

    async def probe(self) -> None: ...

    async def ping(self) -> None: ...

    async def close(self) -> None: ...


class FakeForward:
    """Answers by node; a node that is not named takes everything."""

    def __init__(self, answers: dict[Node, Callable[[Push], Result]] | None = None) -> None:
        self._answers = answers or {}
        self.calls: list[tuple[Node, list[str]]] = []
        self.held: dict[Node, asyncio.Event] = {}  # nodes that answer once it is set
        self.under_way = 0
        self.most_under_way = 0

    async def forward(self, node: Node, pushes: Sequence[Push]) -> Answer:
        self.calls.append((node, [push.id for push in pushes]))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        # As at the call: a test that holds the node after it has seen this call means the next.
        held = self.held.get(node)
        await asyncio.sleep(0)
        if held is not None:
            await held.wait()
        self.under_way -= 1
        answer = self._answers.get(node, answers(1))
        results = [answer(push) for push in pushes]
        said = results or [answer(Push("", b"", ""))]  # a question whether the node answers
        silent = next((r for r in said if r in (TIMEOUT, UNREACHABLE, REFUSED, NO_LINK)), None)
        return silent if isinstance(silent, Failure) else results

    def to(self, node: Node) -> list[list[str]]:
        return [ids for called, ids in self.calls if called == node]

    def ids_to(self, node: Node) -> list[str]:
        return [each for ids in self.to(node) for each in ids]


def envelope(
    user: str,
    message_id: str = "m",
    *,
    ttl: int | None = None,
    age: int = 0,
    collapse_key: str | None = None,
    device: str | None = None,
) -> Envelope:
    push = Push(user, b"x", message_id, device=device)
    return Envelope(push, NOW_MS - age * 1000, ttl, collapse_key=collapse_key)


class Rig:
    """A dispatcher that runs, fed from one partition a lane."""

    def __init__(
        self,
        registry: FakeRegistry,
        forward: FakeForward,
        *,
        now_ms: Callable[[], int] = lambda: NOW_MS,
        weights: Sequence[int] = (1,),
        batch_messages: int = 2_000,
        cache_seconds: float = 0.0,
        patience_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.registry = registry
        self.whereabouts = Whereabouts(registry, cache_seconds=cache_seconds)
        self.dispatcher = Dispatcher(
            self.whereabouts,
            forward,
            self._settled,
            registry,
            spawn=self._spawn,
            weights=weights,
            batch_messages=batch_messages,
            patience_seconds=patience_seconds,
            now_ms=now_ms,
            clock=clock,
        )
        self.lanes = [
            Progress(TopicPartition(f"t{lane}", 0), lane=lane) for lane in range(len(weights))
        ]
        self.settled: list[Message] = []
        self.faults: list[BaseException] = []  # of the dispatcher's tasks
        self._taken = 0
        self._news = asyncio.Event()

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        task.add_done_callback(self.ended)
        return task

    def ended(self, task: asyncio.Task[None]) -> None:
        """Keep the fault that has ended a task."""
        fault = None if task.cancelled() else task.exception()
        if fault is not None:
            self.faults.append(fault)

    def take(self, *envelopes: Envelope, lane: int = 0) -> list[Message]:
        messages = []
        for each in envelopes:
            self.lanes[lane].begin(self._taken, size=1, timestamp_ms=NOW_MS)
            messages.append(Message(each, self.lanes[lane], self._taken))
            self._taken += 1
        self.dispatcher.take(messages)
        return messages

    async def all_settled(self) -> None:
        async with asyncio.timeout(10):
            while len(self.settled) < self._taken:
                self._news.clear()
                await self._news.wait()

    def queued_for(self, node: Node) -> int:
        """Give the places in a node's queue, those of messages that are not sent any more too."""
        queue = self.dispatcher._gateways._gateways[node].queue
        return sum(map(len, queue._lanes._queues)) + len(queue._taken)

    def outcomes(self) -> dict[str, Outcome]:
        return {message.push.id: outcome_of(message) for message in self.settled}

    def _settled(self, messages: Sequence[Message]) -> None:
        for message in messages:
            assert message not in self.settled, "one outcome each"
            message.progress.settle(message.offset, size=1)
        self.settled += messages
        self._news.set()


@asynccontextmanager
async def running(rig: Rig) -> AsyncIterator[Rig]:
    run = asyncio.create_task(rig.dispatcher.run())
    run.add_done_callback(rig.ended)
    try:
        yield rig
    finally:
        run.cancel()
        await asyncio.wait((run,))
        await rig.whereabouts.close()
        for fault in rig.faults:
            raise fault


async def dispatch(
    registry: FakeRegistry,
    forward: FakeForward,
    *envelopes: Envelope,
    now_ms: Callable[[], int] = lambda: NOW_MS,
) -> list[Outcome]:
    async with running(Rig(registry, forward, now_ms=now_ms)) as rig:
        messages = rig.take(*envelopes)
        await rig.all_settled()
    return [outcome_of(message) for message in messages]


async def turns(count: int = 50) -> None:
    """Let everything happen that needs no time."""
    for _ in range(count):
        await asyncio.sleep(0)


def zero(_: Push) -> Result:
    return 0


def answers(result: Result) -> Callable[[Push], Result]:
    return lambda _: result


#: The places of a user who is on one node at a time.
ONE_NODE = ((A,), (B,), (C,))


class Restless(FakeRegistry):
    """Users wander from node to node, are unknown at times, and look-ups take their time."""

    def __init__(
        self, draw: random.Random, *, places: Sequence[tuple[Node, ...]] = ONE_NODE
    ) -> None:
        super().__init__()
        self.draw = draw
        self.places = places
        self.where: dict[str, tuple[Node, ...]] = {}

    async def lookup(self, users: Sequence[str]) -> list[tuple[Node, ...] | None]:
        for _ in range(self.draw.randrange(6)):
            await asyncio.sleep(0)
        return [self._where(user) for user in users]

    def _where(self, user: str) -> tuple[Node, ...] | None:
        chance = self.draw.random()
        if chance < 0.2:
            self.where[user] = self.draw.choice(self.places)
        return None if chance > 0.9 else self.where.setdefault(user, (A,))


class Wandering(FakeForward):
    """Nodes that have a user or not, and take their time."""

    def __init__(self, registry: Restless) -> None:
        super().__init__()
        self.registry = registry
        self.arrived: dict[str, list[int]] = {}
        self.arrived_by_node: dict[tuple[str, Node], list[int]] = {}

    async def forward(self, node: Node, pushes: Sequence[Push]) -> Answer:
        for _ in range(self.registry.draw.randrange(8)):
            await asyncio.sleep(0)
        results: list[Result] = []
        for push in pushes:
            here = node in self.registry.where[push.user]
            if here:
                self.arrived.setdefault(push.user, []).append(int(push.id))
                self.arrived_by_node.setdefault((push.user, node), []).append(int(push.id))
            results.append(int(here))
        return results


def by_offset(messages: Sequence[Message]) -> list[Message]:
    return sorted(messages, key=lambda message: message.offset)


def collapsing(message: Message) -> tuple[str, str | None, str | None]:
    return message.push.user, message.push.device, message.envelope.collapse_key
