"""User → connections on this node: the truth that the registry only hints at."""

from __future__ import annotations

import enum
from collections.abc import Iterator

from gateway.connection import Connection
from gateway.delivery import Delivery


class Refusal(enum.Enum):
    """Why a user who is here did not get a message."""

    NO_DEVICE = "no-device"
    OVERLOADED = "overloaded"


class Hub:
    """Connections by user. Tuples, because most users have one and all are iterated while sent."""

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
        """Return every user who is here."""
        return list(self._users)

    def connections(self) -> Iterator[Connection]:
        """Iterate over a snapshot of all connections."""
        for connections in list(self._users.values()):
            yield from connections

    def add(self, connection: Connection) -> bool:
        """Add a connection; True if it is the user's first."""
        user = connection.user
        others = self._users.get(user, ())
        self._users[user] = (*others, connection)
        return not others

    def remove(self, connection: Connection) -> bool:
        """Remove a connection; True if it was the user's last."""
        user = connection.user
        others = tuple(other for other in self._users[user] if other is not connection)
        if others:
            self._users[user] = others
            return False
        del self._users[user]
        return True

    def deliver(self, delivery: Delivery, *, user: str, device: str | None) -> int | Refusal:
        """Send to each of the user's connections, or to those of one device.

        Returns how many took it, 0 when the user is not here.
        """
        connections = self._users.get(user)
        if connections is None:
            return 0
        if device is not None:
            connections = tuple(c for c in connections if c.device == device)
            if not connections:
                return Refusal.NO_DEVICE
        took = 0
        for connection in connections:
            if connection.deliver(delivery):
                took += 1
        if not took and user not in self._users:
            return 0  # the last connection was found to be gone
        return took or Refusal.OVERLOADED
