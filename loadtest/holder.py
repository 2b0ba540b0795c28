"""A process of clients for hold.py: WebSockets that answer Pings and count their messages.

Connects users `user-FIRST` to `user-(FIRST + COUNT - 1)`, from 127.0.0.ADDRESS and the next
address, and then keeps their connections open. The process prints its state as a line of JSON when
all users are connected, and again for every line of standard input. The process ends at the end of
the input.

    python -m loadtest.holder PORT FIRST COUNT ADDRESS
"""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterator
from typing import Final

from loadtest.clients import Crowd, OnMessage
from loadtest.processes import tokens
from loadtest.targets import names

#: Handshakes under way at once in this process.
_WINDOW: Final = 32
_WINDOW_SECONDS: Final = 60.0
_WAIT_SECONDS: Final = 0.1


class Holder:
    """The clients, and their counts of Pings, messages and lost connections."""

    def __init__(self, port: int, first: int, count: int, address: int) -> None:
        self._crowd = Crowd(port, "ws", first_address=address, may_lose=True)
        self._users = names(first, first + count)
        self._strays = 0

    def connect(self) -> None:
        """Connect all users."""
        self._crowd.connect(
            tokens(self._users),
            on_message=[self._counter(user) for user in self._users],
            window=_WINDOW,
            seconds=_WINDOW_SECONDS,
        )

    def turn(self) -> None:
        """Wait for inbound bytes, a tenth of a second at most, and take them."""
        self._crowd.turn(_WAIT_SECONDS)

    def state(self) -> dict[str, object]:
        """Return the counts. `strays` are messages that reached the connection of a wrong user."""
        clients = self._crowd.clients
        return {
            "lost": len(self._crowd.lost),
            "why": self._crowd.lost[:3],
            "pings": sum(client.heartbeats for client in clients),
            "never_pinged": sum(1 for client in clients if not client.heartbeats),
            "strays": self._strays,
            "clients_by_messages": Counter(client.messages for client in clients),
        }

    def _counter(self, user: str) -> OnMessage:
        start = f"{user} ".encode()

        def count(data: bytes) -> None:
            if not data.startswith(start):
                self._strays += 1

        return count


def _requests(lines: deque[str]) -> Iterator[None]:
    """Yield once for every line that the reader has added."""
    while lines:
        lines.popleft()
        yield


def main() -> None:
    """Hold the connections until the input ends."""
    holder = Holder(*map(int, sys.argv[1:5]))
    holder.connect()
    lines: deque[str] = deque([""])
    # A thread for the input: blocked in a read, the thread costs no CPU time, and the clients'
    # thread only looks at a deque.
    reader = threading.Thread(target=lambda: lines.extend(sys.stdin), daemon=True)
    reader.start()
    while reader.is_alive():
        for _ in _requests(lines):
            print(json.dumps(holder.state()), flush=True)
        holder.turn()


if __name__ == "__main__":
    main()
