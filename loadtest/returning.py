"""A process of clients for resumes.py, which lose their node and come back to others.

Connects users over pushgate.v1 to the node at DOOMED, prints a line, and receives messages. Once
the node has ended all connections, every client comes back as pushgate.js does: once, with its last
cursor, half a second to five seconds later, drawn for each; to the nodes at PORTS in turn. When all
messages have come, or none has for twenty seconds, the process prints its account as a line of JSON
and ends.

    python -m loadtest.returning DOOMED PORT,… USERS PER_USER

USERS is the number of all users. A user comes back, unless a bystander: see `returns`.
"""

from __future__ import annotations

import json
import random
import sys
import time
from contextlib import closing
from typing import Final

from loadtest.clients import Crowd, V1Client
from loadtest.ledger import Ledger
from loadtest.processes import LoadtestError, tokens

#: One user in so many is a bystander, connected to another node.
BYSTANDERS: Final = 6
#: Delays of pushgate.js before its first attempt after a connection that was cut.
_DELAYS_SECONDS: Final = (0.5, 5.0)
_PATIENCE_SECONDS: Final = 60.0
#: Without a message for so long, nothing more comes.
_SILENCE_SECONDS: Final = 20.0


def returns(user: int) -> bool:
    """Whether a user's client is one of those that lose their node."""
    return user % BYSTANDERS != BYSTANDERS - 1


class Returning:
    """The clients and their account."""

    def __init__(self, users: int, per_user: int) -> None:
        names = [f"user-{user}" for user in range(users) if returns(user)]
        self._tokens = tokens(names)
        self.ledger = Ledger(len(names), per_user=per_user)
        self._takers = [self.ledger.taker(number) for number in range(len(names))]
        self._gaps = 0
        self._lost_at = 0.0
        self._open_seconds = 0.0

    def hold(self, port: int) -> list[str]:
        """Connect, and receive until the node has ended all connections; return the cursors."""
        with closing(Crowd(port, "v1", may_lose=True)) as crowd:
            crowd.connect(self._tokens, on_message=self._takers)
            print("connected", flush=True)
            while not crowd.lost:
                crowd.turn(0.1)
            self._lost_at = time.monotonic()
            crowd.until(lambda: len(crowd.lost) == len(self._tokens), seconds=_PATIENCE_SECONDS)
            return [
                self._cursor(client) for client in crowd.clients if isinstance(client, V1Client)
            ]

    def come_back(self, ports: list[int], cursors: list[str]) -> None:
        """Open all connections anew, each in its time, and receive until all messages are there."""
        with closing(Crowd(ports, "v1")) as crowd:
            for due, number in self._turns():
                crowd.rest_until(due)
                path = V1Client.path(cursors[number])
                crowd.open(self._tokens[number], self._takers[number], path=path)
            crowd.until(
                lambda: all(client.open for client in crowd.clients), seconds=_PATIENCE_SECONDS
            )
            self._open_seconds = time.monotonic() - self._lost_at
            arrived_at = time.monotonic()
            while self.ledger.missing and time.monotonic() - arrived_at < _SILENCE_SECONDS:
                count = self.ledger.count
                crowd.turn(0.1)
                if self.ledger.count > count:
                    arrived_at = time.monotonic()
            self._gaps = sum(
                client.gaps for client in crowd.clients if isinstance(client, V1Client)
            )

    def account(self) -> dict[str, object]:
        """Return the counts of what is wrong, and when the last client had its answer."""
        wrong = {
            "missing_by_returning": self.ledger.missing,
            "repeated_to_returning": self.ledger.repeated,
            "out_of_order_to_returning": self.ledger.out_of_order,
            "gaps": self._gaps,
        }
        return {"wrong": wrong, "open_seconds": self._open_seconds}

    def _turns(self) -> list[tuple[float, int]]:
        """Return when each client comes back, in the order of time."""
        return sorted(
            (self._lost_at + random.uniform(*_DELAYS_SECONDS), number)
            for number in range(len(self._tokens))
        )

    @staticmethod
    def _cursor(client: V1Client) -> str:
        if client.cursor is None:
            raise LoadtestError("a client has no cursor")
        return client.cursor


def main() -> None:
    """Hold the connections, lose them, and come back."""
    doomed, ports, users, per_user = sys.argv[1:]
    returning = Returning(int(users), int(per_user))
    cursors = returning.hold(int(doomed))
    returning.come_back([int(port) for port in ports.split(",")], cursors)
    print(json.dumps(returning.account()), flush=True)


if __name__ == "__main__":
    main()
