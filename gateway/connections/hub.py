"""User → connections on this node. The hub is the truth; the registry is only a hint."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence

from gateway.connections.connection import Connection
from gateway.connections.delivery import Delivery
from gateway.wires.burst import write_at_once


class Refusal(enum.Enum):
    """The reason why no connection took a message, though the user is connected to this node."""

    NO_DEVICE = "no-device"  # no connection here is of the message's device
    OVERLOADED = "overloaded"  # connections are here, and none took the message


#: A message, its user, and the one device that the message is for (None: all devices).
Addressed = tuple[Delivery, str, str | None]


class Hub:
    """Connections by user, as tuples: most users have one connection, and tuples are read-only."""

    def __init__(self) -> None:
        self._users: dict[str, tuple[Connection, ...]] = {}

    def __contains__(self, user: str) -> bool:
        return user in self._users

    def __len__(self) -> int:
        return sum(map(len, self._users.values()))

    def count(self, user: str) -> int:
        """Return how many connections a user has."""
        return len(self._users.get(user, ()))

    def of(self, user: str) -> tuple[Connection, ...]:
        """Return a user's connections."""
        return self._users.get(user, ())

    def users(self) -> list[str]:
        """Return every user with a connection on this node."""
        return list(self._users)

    def connections(self) -> Iterator[Connection]:
        """Iterate over a snapshot of all connections."""
        for connections in list(self._users.values()):
            yield from connections

    def add(self, connection: Connection) -> bool:
        """Add a connection; return True where the user had no connection before."""
        user = connection.user
        earlier = self._users.get(user, ())
        self._users[user] = (*earlier, connection)
        return not earlier

    def remove(self, connection: Connection) -> bool:
        """Remove a connection; return True where the user has no connection any more."""
        user = connection.user
        remaining = tuple(held for held in self._users[user] if held is not connection)
        if remaining:
            self._users[user] = remaining
            return False
        del self._users[user]
        return True

    def deliver(self, batch: Sequence[Addressed]) -> list[int | Refusal]:
        """Send every message to all connections of its user, or to those of its device.

        Returns a result for every message: the number of connections that took the message, 0 where
        the user has no connection here, or a Refusal where no connection of the user took it.
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
            if not connections[position].write(encoded[position]):
                taken_counts[message_numbers[position]] -= 1
        if all(taken_counts):
            return [*taken_counts]
        return [
            count or self._not_taken(user, device)
            for count, (_, user, device) in zip(taken_counts, batch, strict=True)
        ]

    def _not_taken(self, user: str, device: str | None) -> int | Refusal:
        """Return why no connection took a message.

        0 where the user has no connection, or the user's last connection turned out to be gone
        during the writes of this batch.
        """
        connections = self._users.get(user)
        if connections is None:
            return 0
        if all(device not in (None, connection.device) for connection in connections):
            return Refusal.NO_DEVICE
        return Refusal.OVERLOADED
