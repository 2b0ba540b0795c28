"""User → connections on this node. The hub is the truth; the registry is only a hint."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from typing import Final

from gateway.connections.connection import Connection
from gateway.connections.delivery import Delivery
from gateway.wires.burst import write_at_once


class Refusal(enum.Enum):
    """The reason why no connection took a message, though the user is connected to this node."""

    NO_DEVICE = "no-device"  # no connection here is of the message's device
    OVERLOADED = "overloaded"  # connections are here, and none took the message


#: A message, its user, and the one device that the message is for (None: all devices).
Addressed = tuple[Delivery, str, str | None]
#: A user with more connections is a crowd.
CROWD: Final = 16
#: How many connections of a crowd are written to between two pauses.
_WRITES_A_PART: Final = 100


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

    def add(self, connection: Connection) -> bool:
        """Add a connection; return True where the user had no connection before."""
        user = connection.user
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

    def deliver(self, batch: Sequence[Addressed]) -> list[int | Refusal]:
        """Send every message to all connections of its user, or to those of its device.

        Returns a result for every message: the number of connections that took the message, 0 where
        the user has no connection here, or a Refusal where no connection of the user took it. All
        is done in one turn of the event loop: messages for crowds are for `deliver_in_parts`.
        """
        users = self._users
        taken_counts: list[int] = []  # of every message, in the order of the batch
        # The writes: connections[n] is to get encoded[n], the form of batch[message_numbers[n]].
        connections: list[Connection] = []
        encoded: list[bytes] = []
        message_numbers: list[int] = []
        for number, (delivery, user, device) in enumerate(batch):
            earlier_writes = len(connections)
            for connection in users.get(user, ()):
                if device is None or connection.device == device:
                    connections.append(connection)
                    encoded.append(delivery.encoded(connection.form))
                    message_numbers.append(number)
            taken_counts.append(len(connections) - earlier_writes)
        for position in write_at_once([held.wire for held in connections], encoded):
            if not _write(connections[position], encoded[position]):
                taken_counts[message_numbers[position]] -= 1
        if all(taken_counts):
            return [*taken_counts]
        return [
            count or self.not_taken(user, device)
            for count, (_, user, device) in zip(taken_counts, batch, strict=True)
        ]

    def deliver_in_parts(self, message: Addressed) -> Iterator[int]:
        """Send one message to all connections of a crowd, some at a time.

        Yields how many connections of each part took the message; the caller may pause between two
        parts. Connections that come after the first part do not get the message.
        """
        delivery, user, device = message
        connections = self.of(user)
        for start in range(0, len(connections), _WRITES_A_PART):
            part = [
                held
                for held in connections[start : start + _WRITES_A_PART]
                if device is None or held.device == device
            ]
            encoded = [delivery.encoded(held.form) for held in part]
            later = write_at_once([held.wire for held in part], encoded)
            yield len(part) - sum(not _write(part[at], encoded[at]) for at in later)

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


def _write(connection: Connection, data: bytes) -> bool:
    try:
        return connection.write(data)
    except Exception:  # a fault in one connection must not take the results of a whole batch
        connection.failed()
        return False
