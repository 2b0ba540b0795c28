"""User → connections on this node. The hub is the truth; the registry is only a hint."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.connections.connection import LIVE, NO_CURSOR, Connection
from gateway.connections.delivery import Delivery
from gateway.connections.gate import Screen, Verdict
from gateway.connections.partly_taken import NO_TAKERS, Takers
from gateway.wires.burst import write_at_once


class Refusal(enum.Enum):
    """The reason why no connection took a message, though the user is connected to this node."""

    NO_DEVICE = "no-device"  # no connection here is of the message's device
    OVERLOADED = "overloaded"  # connections are here, and none had room for the message


@dataclass(frozen=True, slots=True)
class Partial:
    """The result of a message that some connections took, and others had no room for."""

    takers: Takers
    overloaded: int  # how many connections had no room


#: What became of a message: how many connections took it (0: the user has no connection here), or
#: why not all did.
Result = int | Refusal | Partial
Results = list[Result]
#: A message, its user, and the one device that the message is for (None: all devices).
Addressed = tuple[Delivery, str, str | None]
#: A user with more connections is a crowd.
CROWD: Final = 16
#: How many connections of a crowd are written to between two pauses.
_WRITES_A_PART: Final = 100


class Tally:
    """How the connections of a user take one message: takers, and those that have no room."""

    __slots__ = ("earlier", "overloaded", "takers")

    def __init__(self, earlier: Takers = NO_TAKERS) -> None:
        """`earlier` has the connections that took the message when it came before."""
        self.earlier = earlier
        self.takers: list[Connection] = []
        self.overloaded = 0


class Hub:
    """Connections by user.

    Nearly every user has one connection or a few, in a tuple: nothing takes less memory, and a
    delivery may go through a tuple while connections come and go. The connections of a crowd are
    the keys of a dict, where one connection is added or removed without a copy of all. A user who
    has become a crowd stays one until the last connection is gone: so no message of the user goes
    past a message that is still on its way to the crowd.
    """

    def __init__(self) -> None:
        self._users: dict[str, tuple[Connection, ...] | dict[Connection, None]] = {}
        self.crowds: set[str] = set()  # users whose connections are in a dict
        # Set by the node. Messages that would wait for a client that does not read are then
        # refused; all others go out.
        self.is_short_of_memory = False
        #: Users with connections behind screens (gate.py), and how many these are.
        self.screened: dict[str, int] = {}

    def __contains__(self, user: str) -> bool:
        return user in self._users

    def __len__(self) -> int:
        return sum(map(len, self._users.values()))

    def count(self, user: str) -> int:
        """Return how many connections a user has."""
        return len(self._users.get(user, ()))

    def of(self, user: str) -> tuple[Connection, ...]:
        """Return a user's connections."""
        return tuple(self._users.get(user, ()))

    def users(self) -> list[str]:
        """Return every user with a connection on this node."""
        return list(self._users)

    def connections(self) -> Iterator[Connection]:
        """Iterate over a snapshot of all connections."""
        for connections in list(self._users.values()):
            yield from tuple(connections)

    def states(self) -> Counter[tuple[str, str]]:
        """Return the number of connections by transport and state (its name in lower case)."""
        # Passes of list comprehensions and `count`, which compares by identity: 20,000 connections
        # in 5 ms. A dict by state would call Python for the hash of each enum member.
        connections = [each for of_user in self._users.values() for each in of_user]
        states: Counter[tuple[str, str]] = Counter()
        for transport in {connection.transport for connection in connections}:
            listed = [each.state for each in connections if each.transport == transport]
            for state in LIVE:
                states[transport, state.name.lower()] = listed.count(state)
        return states

    def add(self, connection: Connection) -> bool:
        """Add a connection; return True where the user had no connection before."""
        user = connection.user
        self._count_screen(user, connection.screen is not None, False)
        earlier = self._users.get(user, ())
        if isinstance(earlier, dict):
            earlier[connection] = None
        elif len(earlier) < CROWD:
            self._users[user] = (*earlier, connection)
        else:
            self._users[user] = dict.fromkeys((*earlier, connection))
            self.crowds.add(user)
        return not earlier

    def remove(self, connection: Connection) -> bool:
        """Remove a connection; return True where the user has no connection any more."""
        user = connection.user
        self.put_screen(connection, None)
        held = self._users[user]
        if isinstance(held, dict):
            del held[connection]
        else:
            held = self._users[user] = tuple(other for other in held if other is not connection)
        if held:
            return False
        del self._users[user]
        self.crowds.discard(user)
        return True

    def put_screen(self, connection: Connection, screen: Screen | None) -> None:
        """Put a screen in front of a connection that is here, or take it away."""
        self._count_screen(connection.user, screen is not None, connection.screen is not None)
        connection.screen = screen

    def unscreened(self, user: str) -> Takers | None:
        """Return the user's connections without a screen; None where none has a screen."""
        if user not in self.screened:
            return None
        return frozenset(held for held in self.of(user) if held.screen is None)

    def _count_screen(self, user: str, has: bool, had: bool) -> None:
        number = self.screened.get(user, 0) + has - had
        if number:
            self.screened[user] = number
        else:
            self.screened.pop(user, None)

    def deliver(
        self,
        batch: Sequence[Addressed],
        takers: Mapping[int, Takers] | None = None,
        *,
        full: set[Connection] | None = None,
    ) -> Results:
        """Send every message to all connections of its user, or to those of its device.

        Returns a result for every message. All is done in one turn of the event loop: messages for
        crowds are for `deliver_in_parts`. `takers` has, by position in the batch, the connections
        that have taken a message before, and do not get it again.

        A connection that has no room for a message gets no later message of the batch: so order is
        kept when the refused messages are sent again. `full` has such connections, and gets them,
        where a batch is delivered by several calls.
        """
        full = set() if full is None else full
        screened = self.screened
        if not full and not takers and not screened:
            return self._deliver_together(batch, full)
        takers = takers or {}
        users_apart = {held.user for held in full}.union(batch[number][1] for number in takers)
        if screened:
            users_apart.update(user for _, user, _ in batch if user in screened)
        together = [message for message in batch if message[1] not in users_apart]
        results = iter(self._deliver_together(together, full))
        return [
            self._deliver_apart(message, takers.get(number, NO_TAKERS), full)
            if message[1] in users_apart
            else next(results)
            for number, message in enumerate(batch)
        ]

    def _deliver_together(self, batch: Sequence[Addressed], full: set[Connection]) -> Results:
        """Deliver messages of users of whom no connection is full, or has a message already."""
        users = self._users
        taken_counts: list[int] = []  # of every message, in the order of the batch
        # The writes: connections[n] is to get encoded[n], the form of batch[message_numbers[n]].
        connections: list[Connection] = []
        encoded: list[bytes] = []
        message_numbers: list[int] = []
        for number, (delivery, user, device) in enumerate(batch):
            earlier_writes = len(connections)
            in_log = delivery.position is not None
            for connection in users.get(user, ()):
                if device is None or connection.device == device:
                    connections.append(connection)
                    if in_log and connection.cursor is not NO_CURSOR:
                        connection.cursor = delivery.cursor
                    encoded.append(delivery.encoded(connection.form))
                    message_numbers.append(number)
            taken_counts.append(len(connections) - earlier_writes)
        later = write_at_once([held.wire for held in connections], encoded)
        not_taken = self._write_later(connections, encoded, later, full)
        for position in not_taken:
            taken_counts[message_numbers[position]] -= 1
        if all(taken_counts) and not not_taken:
            return [*taken_counts]
        results: Results = [
            count or self.not_taken(user, device)
            for count, (_, user, device) in zip(taken_counts, batch, strict=True)
        ]
        if not_taken:
            partials = _partials(connections, message_numbers, not_taken)
            for number, partial in partials.items():
                results[number] = partial
        return results

    def deliver_in_parts(
        self, message: Addressed, tally: Tally, full: set[Connection]
    ) -> Iterator[None]:
        """Send one message to all connections of a crowd, some at a time.

        `tally` gets the connections of each part; the caller may pause between two parts, and then
        asks for the `result`. Connections that come after the first part do not get the message,
        nor do those that end before their part. `full` is as in `deliver`.
        """
        delivery, user, device = message
        connections = self.of(user)
        for start in range(0, len(connections), _WRITES_A_PART):
            part = [
                held
                for held in connections[start : start + _WRITES_A_PART]
                if (device is None or held.device == device)
                and held.takes_messages
                and held not in tally.earlier
            ]
            with_room = [held for held in part if held not in full]
            tally.overloaded += len(part) - len(with_room)
            if user in self.screened:
                with_room = _behind_screens(delivery, with_room, tally, full)
            encoded = [
                delivery.encoded(held.form)
                if held.screen is None
                else held.screen.encoded(delivery, held.form)
                for held in with_room
            ]
            later = write_at_once([held.wire for held in with_room], encoded)
            not_taken = self._write_later(with_room, encoded, later, full)
            tally.overloaded += sum(with_room[at].takes_messages for at in not_taken)
            takers = [held for at, held in enumerate(with_room) if at not in not_taken]
            for held in takers:
                if delivery.position is not None and held.cursor is not NO_CURSOR:
                    held.cursor = delivery.cursor
                if held.screen is not None:
                    held.screen.passed(delivery)
            tally.takers += takers
            yield

    def result(self, tally: Tally, user: str, device: str | None) -> Result:
        """Return the result of a message that was delivered in parts."""
        taken = len(tally.earlier) + len(tally.takers)
        if taken and tally.overloaded:
            return Partial(tally.earlier.union(tally.takers), tally.overloaded)
        return taken or self.not_taken(user, device)

    def _deliver_apart(self, message: Addressed, takers: Takers, full: set[Connection]) -> Result:
        """Deliver one message by itself: connections have no room, or have the message already."""
        _, user, device = message
        tally = Tally(takers)
        for _ in self.deliver_in_parts(message, tally, full):
            pass
        return self.result(tally, user, device)

    def not_taken(self, user: str, device: str | None) -> int | Refusal:
        """Return why no connection took a message.

        0 where the user has no connection, or the user's last connection turned out to be gone
        during the writes.
        """
        connections = self._users.get(user)
        if connections is None:
            return 0
        if all(device not in (None, connection.device) for connection in connections):
            return Refusal.NO_DEVICE
        return Refusal.OVERLOADED

    def _write_later(
        self,
        connections: Sequence[Connection],
        encoded: Sequence[bytes],
        positions: Sequence[int],
        full: set[Connection],
    ) -> set[int]:
        """Write encoded[n] to connections[n] for the `positions` n that were not written at once.

        Returns the positions that were not taken. The connections that had no room are added to
        `full`, and get nothing from then on.
        """
        not_taken: set[int] = set()
        for position in positions:
            connection = connections[position]
            if connection not in full and self._write(connection, encoded[position]):
                continue
            not_taken.add(position)
            if connection.cursor is not NO_CURSOR:
                # A cursor beyond a message that is still to come would lose the message.
                connection.cursor = None
            if connection.takes_messages:
                full.add(connection)
        return not_taken

    def _write(self, connection: Connection, data: bytes) -> bool:
        try:
            if self.is_short_of_memory and connection.has_backlog():
                return False  # no room, as where the backlog is full
            return connection.write(data)
        except Exception:  # a fault in one connection must not take the results of a whole batch
            connection.failed()
            return False


def _behind_screens(
    delivery: Delivery, connections: Sequence[Connection], tally: Tally, full: set[Connection]
) -> list[Connection]:
    """Return the connections that get a message now; count the others in `tally`."""
    passing: list[Connection] = []
    for held in connections:
        verdict = Verdict.PASSES if held.screen is None else held.screen.meet(delivery)
        if verdict is Verdict.PASSES:
            passing.append(held)
        elif verdict is Verdict.HAS:
            tally.takers.append(held)
        else:
            tally.overloaded += 1
            full.add(held)
    return passing


def _partials(
    connections: Sequence[Connection], message_numbers: Sequence[int], not_taken: Collection[int]
) -> dict[int, Partial]:
    """Return the messages, by number, that some connections took and others had no room for.

    connections[n] was to get the message message_numbers[n], and did not for n in `not_taken`.
    """
    overloaded = Counter(message_numbers[at] for at in not_taken if connections[at].takes_messages)
    takers: dict[int, list[Connection]] = {}
    for at, number in enumerate(message_numbers):
        if number in overloaded and at not in not_taken:
            takers.setdefault(number, []).append(connections[at])
    return {
        number: Partial(frozenset(connections_of), overloaded[number])
        for number, connections_of in takers.items()
    }
