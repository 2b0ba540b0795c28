"""User → connections on this node: the truth of which the registry is only a hint."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence

from gateway.connections.connection import Connection
from gateway.connections.delivery import Delivery
from gateway.wires.burst import write_at_once


class Refusal(enum.Enum):
    """Why no connection of a user who is on this node took a message."""

    NO_DEVICE = "no-device"
    OVERLOADED = "overloaded"


#: A message, its user, and the one device that the message is for (None: all devices).
Addressed = tuple[Delivery, str, str | None]


class Hub:
    """Connections by user. Tuples: most users have one connection, and all are read-only."""

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
        """Add a connection; True if it is the user's first."""
        user = connection.user
        earlier = self._users.get(user, ())
        self._users[user] = (*earlier, connection)
        return not earlier

    def remove(self, connection: Connection) -> bool:
        """Remove a connection; True if it was the user's last."""
        user = connection.user
        remaining = tuple(other for other in self._users[user] if other is not connection)
        if remaining:
            self._users[user] = remaining
            return False
        del self._users[user]
        return True

    def deliver(self, batch: Sequence[Addressed]) -> list[int | Refusal]:
        """Send each message to each of its user's connections, or to those of its device.

        Returns, for each message, how many connections took it; 0 where the user is not here.
        """
        users = self._users
        taken: list[int] = []
        connections: list[Connection] = []
        datas: list[bytes] = []
        numbers: list[int] = []  # connections[n] is to get batch[numbers[n]]
        for number, (delivery, user, device) in enumerate(batch):
            before = len(connections)
            for connection in users.get(user, ()):
                if device is None or connection.device == device:
                    connections.append(connection)
                    datas.append(delivery.encoded(connection.form))
                    numbers.append(number)
            taken.append(len(connections) - before)
        for position in write_at_once([held.wire for held in connections], datas):
            if not connections[position].write(datas[position]):
                taken[numbers[position]] -= 1
        if all(taken):
            return [*taken]
        return [
            count or self._not_taken(user, device)
            for count, (_, user, device) in zip(taken, batch, strict=True)
        ]

    def _not_taken(self, user: str, device: str | None) -> int | Refusal:
        """Return why no connection took a message, or 0 after the last one turned out gone."""
        connections = self._users.get(user)
        if connections is None:
            return 0
        if all(device not in (None, connection.device) for connection in connections):
            return Refusal.NO_DEVICE
        return Refusal.OVERLOADED
