"""The page to read first: a message from its intake to its outcome.

1. `take` queues a message; while earlier messages of the user are under way, the message waits.
2. `run` takes up to a batch from the queue, and looks all users of the batch up in one call.
3. Every message joins the queue of every node with a connection of the user (gateways.py).
4. `_answered` gets the results of a node. If a node did not deliver a message, the user is looked
   up once more, and nodes that were not tried yet get the message too.
5. `_settle` hands messages with their outcome to `settled`, and lets later messages go.

A message waits where a node is silent, or where the user's connections have no room (gateways.py).
Such a message leaves its flight for `waiting` (waiting.py): later messages of the user go on to the
user's other nodes, and join the queue of the node behind the message. Every second, and with every
later message, the user is looked up again, and a node that was not offered the message gets the
message, before any later message of the user. A message that waits is settled when every node has
answered, or is gone for good.

A message with a collapse key is replaced (`_replace`) by a newer message of the same user, device
and key. Nodes that have the older message keep it and answer for it; no further node gets it.

Order is kept per key: the user, and with several topics the topic (its lane). Messages of a key go
together, or one group after the other: a later group waits until every message of the group before
has its outcome, however often the user has to be looked up again. Within a group each node gets the
messages in order. All messages of a key come from one partition, since Kafka's clients choose the
partition by the user.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from operator import attrgetter
from typing import Final

from processor.reading.lanes import Lanes
from processor.reading.message import Message
from processor.sending.forward import NO_DEVICE, Failure, Partly, Result
from processor.sending.gateways import GONE, Callbacks, Forward, Gateways, Presence
from processor.sending.waiting import Waiting
from processor.sending.whereabouts import Whereabouts
from processor.tasks import Spawn
from registry.directory import Node

#: How soon a user is looked up again after the answer "unknown": the registry can't say now whether
#: the user is connected (registry/doubt.py). The message waits until the registry can, or its TTL
#: ends.
_UNKNOWN_SECONDS: Final = 0.25
#: Users of waiting messages that are looked up again in a round, some 8 ms: after a gateway was
#: killed thousands of users are looked up every second, and new messages go between.
_WAITING_A_ROUND: Final = 200

#: Takes messages with their outcome.
Settled = Callable[[Sequence[Message]], None]


class _Flight:
    """The messages of a key that are under way, and later messages of the key that wait.

    A flight takes off in one round of the dispatcher, with the messages of its key that are taken
    from the queue in that round; later messages wait until the flight is settled. After the look-up
    and the forwards of a round the flight waits for all answers. Messages in need of a second
    look-up then go once more, together, in another round.
    """

    __slots__ = (
        "first_offset",
        "first_round",
        "pending_answers",
        "taken_since",
        "to_send",
        "unsettled",
        "waiting_in_front",
    )

    def __init__(self, round_number: int, first_offset: int) -> None:
        self.first_round = round_number  # the dispatcher's round in which the flight took off
        self.first_offset = first_offset  # of the first message of the flight
        self.unsettled = 0  # messages of the flight without an outcome
        self.to_send: list[Message] = []  # messages to look up and forward, in this or a next round
        self.pending_answers = 0  # answers of nodes that are still awaited
        #: Later messages that the queue gave out while the flight was under way. They go back to
        #: the front of the queue, since more messages of the key may be behind them in the queue.
        self.waiting_in_front: tuple[Message, ...] = ()
        #: Messages that came after the flight had taken off. They go to the end of the queue.
        self.taken_since: list[Message] | None = None


class Dispatcher:
    """Takes messages to their outcomes, many users at once.

    A round is one look-up for many flights and the queueing of their messages for nodes. It does
    not wait for answers: rounds follow each other, each with other flights.
    """

    def __init__(
        self,
        whereabouts: Whereabouts,
        forwarder: Forward,
        settled: Settled,
        presence: Presence,
        *,
        spawn: Spawn,
        weights: Sequence[int] = (1,),
        batch_messages: int = 2_000,
        patience_seconds: float = 10.0,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`settled` gets messages with their outcome; `weights` are the weights of the lanes.

        A round has at most `batch_messages` messages from the queue, as many flights that continue,
        and `_WAITING_A_ROUND` keys of messages that wait. TTLs are measured by `now_ms`, in epoch
        milliseconds; pauses, in seconds of `clock`. A message without a TTL waits
        `patience_seconds` for room in its user's connections.
        """
        self._whereabouts = whereabouts
        self._gateways = Gateways(
            forwarder,
            Callbacks(self._answered, self._begin_waiting, self._is_due),
            presence,
            spawn=spawn,
            patience_seconds=patience_seconds,
            weights=weights,
            clock=clock,
        )
        self._settled = settled
        self._batch_messages = batch_messages
        self._now_ms = now_ms
        self._queue = Lanes(weights)  # messages to be looked up
        self._continuing: list[_Flight] = []  # flights whose next round can start
        #: Flights of unknown users, until the timer ends; by their messages' key.
        self._unknown: dict[Hashable, _Flight] = {}
        self._flights: dict[Hashable, _Flight] = {}  # flights under way, by their messages' key
        self._waiting = Waiting()
        #: By message key, device and collapse key: the newest message without an outcome.
        self._replaceable: dict[Hashable, Message] = {}
        self._round_number = 0
        self._timer: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._accepted = asyncio.Event()  # not every live node refuses this processor
        self._accepted.set()

    @property
    def accepted(self) -> bool:
        """Whether a live node, or no node at all, accepts what this processor presents."""
        return self._accepted.is_set()

    def users_waiting(self) -> Iterable[str]:
        """Return the users whose messages wait; a user may come twice."""
        return self._waiting.users

    async def room(self) -> None:
        """Return when less than a batch of messages is in the queue, and a node accepts messages.

        Messages behind flights are not counted: they are bounded by what may be in hand of a
        partition (progress.py).
        """
        await self._accepted.wait()
        await self._room.wait()

    def observe(self, live_nodes: Collection[Node]) -> None:
        """Note the live nodes, every second: look users up again whose messages wait.

        What has waited too long ends (gateways.py, progress.py). While every live node refuses this
        processor's secret, there is no room for further messages.
        """
        self._gateways.probe(live_nodes)
        self._gateways.observe()
        for node, messages in self._waiting.too_far_back():
            self._gateways.give_up(node, messages)
        self._waiting.look_up_all()
        if self._gateways.refuse(live_nodes):
            self._accepted.clear()
        else:
            self._accepted.set()
        self._wake.set()

    def take(self, messages: Iterable[Message]) -> None:
        """Take messages in, in the order in which users are to get them."""
        replaced: list[Message] = []
        for message in messages:
            if message.envelope.collapse_key is not None:
                replaced += self._replace(message)
            flight = self._flights.get(message.key)
            if flight is None:
                self._queue.put(message)
            elif flight.taken_since is None:
                flight.taken_since = [message]
            else:
                flight.taken_since.append(message)
        if replaced:
            self._settled(replaced)
        self._wake.set()
        if len(self._queue) >= self._batch_messages:
            self._room.clear()

    async def run(self) -> None:
        """Dispatch until cancelled."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._continuing or self._queue or self._waiting.to_look_up:
                    await self._run_round(self._flights_to_go())
        finally:
            if self._timer is not None:
                self._timer.cancel()
            await self._gateways.close()

    def _replace(self, message: Message) -> list[Message]:
        """Replace an older message without an outcome: no further node gets the older message.

        Return a list of the older message if its outcome is known now. The list is empty where
        nothing is replaced, and where nodes that have the older message have not answered yet.
        """
        key = _collapsing_key(message)
        older = self._replaceable.get(key)
        self._replaceable[key] = message
        if older is None:
            return []
        older.replaced = True
        older.drop_payload()
        # A message that is only queued stays in its queue, and is skipped when its turn comes.
        if older.under_way and not self._withdraw(older):
            return []
        return [older]

    def _withdraw(self, message: Message) -> bool:
        """Take a replaced message out of its queues; False while nodes have yet to answer."""
        withdrawn = self._gateways.withdraw(message) if message.pending else []
        message.pending -= len(withdrawn)
        if message.waiting:
            message.waiting_at = tuple(n for n in message.waiting_at if n not in withdrawn)
        else:
            flight = self._flights[message.key]
            if withdrawn:
                prompt = [node for node in withdrawn if node not in message.waiting_at]
                message.waiting_at = tuple(n for n in message.waiting_at if n not in withdrawn)
                flight.pending_answers -= len(prompt)
                self._wait_if_unanswered(message)
                self._continue_if_answered(flight)
            elif not message.pending:  # the message waits for a look-up
                flight.to_send.remove(message)
        if message.pending:
            return False
        self._land(message)
        return True

    def _flights_to_go(self) -> list[_Flight]:
        """Return the flights of a new round: continuing flights, then new ones from the queue."""
        self._round_number += 1
        limit = self._batch_messages
        flights, self._continuing = self._continuing[:limit], self._continuing[limit:]
        for message in self._queue.take(limit):
            if not message.replaced:
                self._add_to_flight(message, flights)
        if len(self._queue) < limit:
            self._room.set()
        return flights

    def _add_to_flight(self, message: Message, flights: list[_Flight]) -> None:
        """Add a message to a flight of this round, or let the message wait for an earlier flight.

        A flight that begins with the message is added to `flights`.
        """
        flight = self._flights.get(message.key)
        if flight is None:
            flight = _Flight(self._round_number, message.offset)
            self._flights[message.key] = flight
            flights.append(flight)
        elif flight.first_round != self._round_number:
            # Earlier messages of the key are under way already.
            flight.waiting_in_front += (message,)
            return
        flight.unsettled += 1
        flight.to_send.append(message)
        message.under_way = True

    async def _run_round(self, flights: Sequence[_Flight]) -> None:
        """Look up the users of all flights; queue every message for the nodes of the user.

        The same for users of messages that wait. Messages for which no node is left are settled:
        the user is offline, or every node had the message. Flights of unknown users (None instead
        of nodes) wait for the timer.
        """
        flights = self._settle_undue(flights)
        waiting = self._waiting.take_to_look_up(_WAITING_A_ROUND)
        if not flights and not waiting:
            return
        users = list(dict.fromkeys(flight.to_send[0].push.user for flight in flights))
        fresh = {m.push.user for flight in flights for m in flight.to_send if m.looked_again}
        if waiting:
            fresh |= waiting.keys()
            users = list(dict.fromkeys((*users, *waiting)))
        answers = await self._whereabouts.look_up(users, fresh=fresh)
        nodes_by_user = dict(zip(users, answers, strict=True))
        without_nodes: list[Message] = []
        for flight in self._settle_undue(flights):  # messages may expire during the look-up
            nodes = nodes_by_user[flight.to_send[0].push.user]
            if nodes is None:
                self._unknown[flight.to_send[0].key] = flight
                continue
            messages, flight.to_send = flight.to_send, []
            without_nodes += self._offer(flight, messages, nodes)
        for user, keys in waiting.items():
            nodes = nodes_by_user[user]
            if nodes is not None:
                for key in keys:
                    without_nodes += self._offer_waiting(key, nodes)
        # A message that waits may be offered twice: with a flight of its key, and by itself.
        self._settle(list(dict.fromkeys(without_nodes)))
        if self._unknown and self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_UNKNOWN_SECONDS, self._continue_unknown)

    def _offer(
        self, flight: _Flight, messages: Sequence[Message], nodes: Sequence[Node]
    ) -> list[Message]:
        """Queue messages of a flight for all nodes; return the messages for which there is no node.

        Messages of the same key that wait go first, to nodes that they were not offered to.
        """
        if self._waiting and (waiting := self._waiting.of(messages[0].key)):
            messages = sorted((*waiting, *messages), key=_by_offset)
        return [message for message in messages if not self._send(flight, message, nodes)]

    def _offer_waiting(self, key: Hashable, nodes: Sequence[Node]) -> list[Message]:
        """Queue messages that wait for nodes that they were not offered to, as `_offer` does.

        Messages that have left a flight under way stay behind the flight's earlier messages, which
        may be offered to further nodes yet: `_offer` takes all of them, in the flight's next round,
        or a later second.
        """
        messages = sorted(self._waiting.of(key), key=_by_offset)
        flight = self._flights.get(key)
        if flight is not None and messages and messages[-1].offset > flight.first_offset:
            return []
        return [message for message in messages if not self._send(None, message, nodes)]

    def _send(self, flight: _Flight | None, message: Message, nodes: Sequence[Node]) -> bool:
        """Queue a message for all nodes it was not offered to; False where no node has it then."""
        offered = message.offered
        unoffered = [node for node in nodes if node not in offered] if offered else nodes
        message.offered = (*offered, *unoffered)
        message.pending += len(unoffered)
        for node in unoffered:
            if self._gateways.put(node, message):
                message.waiting_at = (*message.waiting_at, node)
        if flight is not None and not message.waiting:
            flight.pending_answers += len(unoffered)
            if message.waiting_at:
                flight.pending_answers -= sum(node in message.waiting_at for node in unoffered)
                self._wait_if_unanswered(message)
        return message.pending > 0

    def _settle_undue(self, flights: Sequence[_Flight]) -> list[_Flight]:
        """Settle messages that are no longer due; return the flights with messages left."""
        undue_messages: list[Message] = []
        for flight in flights:
            undue = [message for message in flight.to_send if not self._is_due(message)]
            if undue:
                undue_messages += undue
                flight.to_send = [m for m in flight.to_send if m not in undue]
        self._settle(undue_messages)
        return [flight for flight in flights if flight.to_send]

    def _is_due(self, message: Message) -> bool:
        """Whether a message is still to be sent; marks a message whose TTL has passed.

        A TTL of 0 never passes: such a message is for users who are connected now (RFC 8030 §5.2).
        Messages of a lost partition are left to the member of the group that has it now. A replaced
        message is only in a queue where some connections have taken it.
        """
        if message.envelope.ttl_seconds:
            message.expired = message.envelope.expired(self._now_ms())
        return not (message.expired or message.replaced or message.progress.lost)

    def _answered(
        self, node: Node, batch: Sequence[Message], results: Sequence[Result | None]
    ) -> None:
        """Note the results of a node; settle messages whose nodes have all answered."""
        finished: list[Message] = []
        for message, result in zip(batch, results, strict=True):
            _note_result(message, node, result)
            waited = bool(message.waiting_at) and node in message.waiting_at
            if waited:
                message.waiting_at = tuple(n for n in message.waiting_at if n != node)
            if message.waiting:
                if not message.pending:
                    self._conclude_waiting(message, finished)
                continue
            flight = self._flights[message.key]
            if not waited:
                flight.pending_answers -= 1
            if not message.pending:
                self._conclude(flight, message, finished)
            elif message.waiting_at:
                self._wait_if_unanswered(message)
            self._continue_if_answered(flight)
        self._settle(finished)
        if self._continuing:
            self._wake.set()

    def _begin_waiting(self, node: Node, messages: Sequence[Message]) -> None:
        """Note that messages wait at a node: it is silent, or their users have no room there."""
        for message in messages:
            if node in message.waiting_at:
                continue
            message.waiting_at = (*message.waiting_at, node)
            if message.waiting:
                continue
            flight = self._flights[message.key]
            flight.pending_answers -= 1
            self._wait_if_unanswered(message)
            self._continue_if_answered(flight)
        self._wake.set()

    def _wait_if_unanswered(self, message: Message) -> None:
        """Let a message leave its flight, if it waits at all nodes that have yet to answer."""
        if not message.pending or message.pending > len(message.waiting_at):
            return
        message.waiting = True
        message.progress.wait(
            message.offset,
            size=message.size,
            timestamp_ms=message.envelope.published_ms,
            number=message.number,
        )
        self._waiting.add(message)
        if message.undelivered:  # another node has answered that the user is not there
            self._waiting.look_up(message)
        self._leave_flight(message)

    def _conclude_waiting(self, message: Message, finished: list[Message]) -> None:
        """Finish a message that no node has in hand any more, or give it one more look-up."""
        if message.undelivered and not message.looked_again and not message.replaced:
            message.looked_again = True
            self._whereabouts.forget(message.push.user)
            self._waiting.look_up(message)
            self._wake.set()
        else:
            finished.append(message)

    def _continue_if_answered(self, flight: _Flight) -> None:
        """Let a flight go on that has all answers, and messages for a second look-up."""
        if not flight.pending_answers and flight.to_send:
            flight.to_send.sort(key=_by_offset)  # nodes answer in any order
            self._continuing.append(flight)

    def _conclude(self, flight: _Flight, message: Message, finished: list[Message]) -> None:
        """Finish a message whose nodes have all answered, or give it a second look-up."""
        if message.undelivered and not message.looked_again and not message.replaced:
            # The registry is a hint: where a node did not deliver, one fresh look-up is worth its
            # cost, and only nodes that were not offered the message get it. `fresh` in `_run_round`
            # bypasses an answer that a look-up for another message may have put back meanwhile.
            message.looked_again = True
            self._whereabouts.forget(message.push.user)
            flight.to_send.append(message)
        else:
            finished.append(message)

    def _settle(self, messages: Sequence[Message]) -> None:
        """Give messages under way their outcome."""
        if not messages:
            return
        for message in messages:
            self._land(message)
        self._settled(messages)

    def _land(self, message: Message) -> None:
        """Take a message with an outcome off its flight; queue messages behind an empty flight."""
        if message.envelope.collapse_key is not None:
            key = _collapsing_key(message)
            if self._replaceable.get(key) is message:
                del self._replaceable[key]
        if message.waiting:
            self._waiting.discard(message)
        else:
            self._leave_flight(message)

    def _leave_flight(self, message: Message) -> None:
        """Take a message off its flight; an empty flight lets later messages of the key go."""
        flight = self._flights[message.key]
        flight.unsettled -= 1
        if not flight.unsettled:
            del self._flights[message.key]
            self._unknown.pop(message.key, None)
            self._queue.put_back(flight.waiting_in_front)
            for later in flight.taken_since or ():
                self._queue.put(later)
            self._wake.set()

    def _continue_unknown(self) -> None:
        self._timer = None
        self._continuing += self._unknown.values()
        self._unknown = {}
        self._wake.set()


def _collapsing_key(message: Message) -> Hashable:
    """Return lane, user, device and collapse key: a newer message of equal values replaces."""
    return message.key, message.push.device, message.envelope.collapse_key


def _note_result(message: Message, node: Node, result: Result | None) -> None:
    """Note a node's result in the message; None where the message was not sent to the node.

    `undelivered` says that at least one node did not deliver; a message may be delivered by another
    node all the same. `missed` counts the nodes with connections that may be without the message.
    """
    message.pending -= 1
    if result.__class__ is int:
        if result:
            message.took += result
            message.taken_at = (*message.taken_at, node)
        else:
            message.undelivered = True
    elif isinstance(result, Partly):
        message.took += result.taken
        message.taken_at = (*message.taken_at, node)
        message.missed_at = (*message.missed_at, node)
    elif isinstance(result, Failure):
        message.undelivered = True
        if result == GONE:  # "offline", unless another node has the user
            message.missed_at = (*message.missed_at, node)
        elif result != NO_DEVICE:  # the outcome is "offline": the user lacks the message's device
            message.failure = result.reason
            message.missed_at = (*message.missed_at, node)


_by_offset: Final = attrgetter("offset")
