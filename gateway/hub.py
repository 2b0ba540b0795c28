"""User → connections on this node: the truth that the registry only hints at."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence

from gateway.burst import write_all
from gateway.connection import Connection
from gateway.delivery import Delivery


class Refusal(enum.Enum):
    """Why a user who is here did not get a message."""

    NO_DEVICE = "no-device"
    OVERLOADED = "overloaded"


#: A message, its user, and the one device it is for.
Addressed = tuple[Delivery, str, str | None]


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

    def deliver(self, batch: Sequence[Addressed]) -> list[int | Refusal]:
        """Send each message to each of its user's connections, or to those of its device.

        Returns for each how many took it, 0 where the user is not here.
        """
        users = self._users
        taken: list[int] = []
        found: list[Connection] = []
        datas: list[bytes] = []
        numbers: list[int] = []  # found[n] is to get batch[numbers[n]]
        for number, (delivery, user, device) in enumerate(batch):
            before = len(found)
            for connection in users.get(user, ()):
                if device is None or connection.device == device:
                    found.append(connection)
                    datas.append(delivery.encoded(connection.form))
                    numbers.append(number)
            taken.append(len(found) - before)
        for position in write_all(found, datas):
            taken[numbers[position]] -= 1
        if all(taken):
            return [*taken]
        return [
            count or self._nobody(user, device)
            for count, (_, user, device) in zip(taken, batch, strict=True)
        ]

    def _nobody(self, user: str, device: str | None) -> int | Refusal:
        """Say why nobody took a message; also after the last connection was found to be gone."""
        connections = self._users.get(user)
        if connections is None:
            return 0
        if all(device not in (None, connection.device) for connection in connections):
            return Refusal.NO_DEVICE
        return Refusal.OVERLOADED
