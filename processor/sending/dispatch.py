"""The page people read: look up → each node's queue → answers → outcome.

Messages of one user go together, or one group after the other: never past each other, wherever
they go and however often somebody has to be looked for again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from operator import attrgetter
from typing import Final

from processor.reading.lanes import Lanes
from processor.reading.message import Message
from processor.sending.forward import NO_DEVICE, Failure, Result
from processor.sending.gateways import Forward, Gateways
from processor.sending.whereabouts import Whereabouts
from processor.tasks import Spawn
from registry.directory import Node

#: How soon a user is looked for again whom nobody knew about.
_UNKNOWN_SECONDS: Final = 0.25

Settled = Callable[[Sequence[Message]], None]


class _Flight:
    """The messages of one key that are under way, and those that wait until these are settled.

    It goes in rounds: a look-up, then every message to its nodes, then all of the answers. So one
    that has to be looked for again is not passed by another that has not gone yet.
    """

    __slots__ = ("ahead", "behind", "count", "going", "pending", "round")

    def __init__(self, round_number: int) -> None:
        self.round = round_number  # in which it began
        self.count = 0  # messages without an outcome
        self.going: list[Message] = []  # that go in its next round
        self.pending = 0  # answers that are awaited
        self.ahead: tuple[Message, ...] = ()  # those that were queued before the flight began
        self.behind: list[Message] | None = None


class Dispatcher:
    """Takes messages to their outcomes, many users at once."""

    def __init__(
        self,
        whereabouts: Whereabouts,
        forwarder: Forward,
        settled: Settled,
        *,
        spawn: Spawn,
        weights: Sequence[int] = (1,),
        batch_messages: int = 2_000,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
    ) -> None:
        """`settled` gets messages that have their outcome; `weights` are those of the lanes."""
        self._whereabouts = whereabouts
        self._gateways = Gateways(
            forwarder, self._answered, self._is_due, spawn=spawn, weights=weights
        )
        self._settled = settled
        self._batch_messages = batch_messages
        self._now_ms = now_ms
        self._ready = Lanes(weights)
        self._again: list[_Flight] = []
        self._unknown: list[_Flight] = []
        self._flights: dict[Hashable, _Flight] = {}
        self._newest: dict[tuple[Hashable, str], Message] = {}  # by collapse key, not under way
        self._rounds = 0
        self._timer: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    async def room(self) -> None:
        """Return when less than a batch waits to be looked up."""
        await self._room.wait()

    def take(self, messages: Iterable[Message]) -> None:
        """Take messages in, in the order in which they are to arrive."""
        replaced: list[Message] = []
        for message in messages:
            if message.envelope.collapse_key is not None:
                replaced += self._replace(message, message.envelope.collapse_key)
            flight = self._flights.get(message.key)
            if flight is None:
                self._ready.put(message)
            elif flight.behind is None:
                flight.behind = [message]
            else:
                flight.behind.append(message)
        if replaced:
            self._settled(replaced)
            for message in replaced:
                message.drop_payload()
        self._wake.set()
        if len(self._ready) >= self._batch_messages:
            self._room.clear()

    async def run(self) -> None:
        """Dispatch until cancelled."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._again or self._ready:
                    await self._round(self._next())
        finally:
            if self._timer is not None:
                self._timer.cancel()
            await self._gateways.close()

    def _replace(self, message: Message, collapse_key: str) -> list[Message]:
        """Replace an older message of the same user and collapse key that is not under way."""
        key = (message.key, collapse_key)
        older = self._newest.get(key)
        self._newest[key] = message
        if older is None:
            return []
        older.replaced = True
        return [older]

    def _next(self) -> list[_Flight]:
        """Return what goes now: who is looked for again, then a batch of what is ready."""
        self._rounds += 1
        most = self._batch_messages
        flights, self._again = self._again[:most], self._again[most:]
        for message in self._ready.take(most):
            if not message.replaced:
                self._begin(message, flights)
        if len(self._ready) < most:
            self._room.set()
        return flights

    def _begin(self, message: Message, flights: list[_Flight]) -> None:
        flight = self._flights.get(message.key)
        if flight is None:
            flight = self._flights[message.key] = _Flight(self._rounds)
            flights.append(flight)
        elif flight.round != self._rounds:
            flight.ahead += (message,)  # the rest of its user's is under way already
            return
        flight.count += 1
        flight.going.append(message)
        collapse_key = message.envelope.collapse_key
        if collapse_key is not None:
            self._newest.pop((message.key, collapse_key), None)

    async def _round(self, flights: Sequence[_Flight]) -> None:
        flights = self._due(flights)
        if not flights:
            return
        users = list(dict.fromkeys(flight.going[0].push.user for flight in flights))
        fresh = {m.push.user for flight in flights for m in flight.going if m.looked_again}
        where = dict(zip(users, await self._whereabouts.find(users, fresh=fresh), strict=True))
        nowhere: list[Message] = []
        for flight in self._due(flights):  # the look-up may have taken its time
            nodes = where[flight.going[0].push.user]
            if nodes is None:
                self._unknown.append(flight)
                continue
            going, flight.going = flight.going, []
            nowhere += [message for message in going if not self._send(flight, message, nodes)]
        self._settle(nowhere)
        if self._unknown and self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_UNKNOWN_SECONDS, self._look_again)

    def _send(self, flight: _Flight, message: Message, nodes: Sequence[Node]) -> bool:
        """Queue a message for each node that was not tried; False where there is none."""
        untried = [node for node in nodes if node not in message.tried]
        message.pending = len(untried)
        flight.pending += len(untried)
        for node in untried:
            self._gateways.put(node, message)
        return bool(untried)

    def _due(self, flights: Sequence[_Flight]) -> list[_Flight]:
        """Settle what has expired, or is another member's by now; return what is left to go."""
        over: list[Message] = []
        for flight in flights:
            late = [message for message in flight.going if not self._is_due(message)]
            if late:
                over += late
                flight.going = [message for message in flight.going if message not in late]
        self._settle(over)
        return [flight for flight in flights if flight.going]

    def _is_due(self, message: Message) -> bool:
        if message.envelope.ttl_seconds:
            message.expired = message.envelope.expired(self._now_ms())
        return not (message.expired or message.progress.lost)

    def _answered(
        self, node: Node, batch: Sequence[Message], results: Sequence[Result | None]
    ) -> None:
        done: list[Message] = []
        for message, result in zip(batch, results, strict=True):
            _note(message, node, result)
            flight = self._flights[message.key]
            flight.pending -= 1
            if not message.pending:
                self._conclude(flight, message, done)
            if not flight.pending and flight.going:
                flight.going.sort(key=_by_offset)  # they may have been answered in another order
                self._again.append(flight)
        self._settle(done)
        if self._again:
            self._wake.set()

    def _conclude(self, flight: _Flight, message: Message, done: list[Message]) -> None:
        """Take a message that all its nodes have answered for."""
        if message.stale and not message.looked_again:
            # The registry is a hint: a refused forward is worth one fresh look, and only nodes
            # that were not tried get the message.
            message.looked_again = True
            self._whereabouts.forget(message.push.user)
            flight.going.append(message)
        else:
            done.append(message)

    def _settle(self, messages: Sequence[Message]) -> None:
        """Give messages that are under way their outcome, and let those behind them go."""
        if not messages:
            return
        for message in messages:
            flight = self._flights[message.key]
            flight.count -= 1
            if not flight.count:
                del self._flights[message.key]
                self._ready.put_back(flight.ahead)
                for waiting in flight.behind or ():
                    self._ready.put(waiting)
                self._wake.set()
        self._settled(messages)

    def _look_again(self) -> None:
        self._timer = None
        self._again += self._unknown
        self._unknown = []
        self._wake.set()


def _note(message: Message, node: Node, result: Result | None) -> None:
    """Take note of a node's answer; None where the message was not sent to the node."""
    message.pending -= 1
    if result is None:
        return
    message.tried = (*message.tried, node)
    if isinstance(result, Failure):
        message.stale = True
        if result != NO_DEVICE:
            message.failure = result.reason
    elif result:
        message.took += result
        message.node = message.node or node
    else:
        message.stale = True


_by_offset: Final = attrgetter("offset")
