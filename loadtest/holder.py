"""A process of clients for hold.py: WebSockets that answer pings and count what comes for them.

Connects users `user-FIRST` to `user-(FIRST + COUNT - 1)`, from 127.0.0.ADDRESS and the next, and
then holds them. It prints its state, a line of JSON, when all are connected and for each line it
reads. It ends at the end of its input.

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

#: Handshakes under way at once, in this process.
_WINDOW: Final = 32
_WINDOW_SECONDS: Final = 60.0
_WAIT_SECONDS: Final = 0.1


class Holder:
    """The clients, and what they have seen."""

    def __init__(self, port: int, first: int, count: int, address: int) -> None:
        self._crowd = Crowd(port, "ws", first_address=address, may_lose=True)
        self._users = names(first, first + count)
        self._strays = 0

    def connect(self) -> None:
        """Connect them all."""
        self._crowd.connect(
            tokens(self._users),
            on_message=[self._taker(user) for user in self._users],
            window=_WINDOW,
            seconds=_WINDOW_SECONDS,
        )

    def turn(self) -> None:
        """Take inbound bytes."""
        self._crowd.turn(_WAIT_SECONDS)

    def state(self) -> dict[str, object]:
        """Return what the parent may ask for."""
        clients = self._crowd.clients
        return {
            "lost": len(self._crowd.lost),
            "why": self._crowd.lost[:3],
            "pings": sum(client.heartbeats for client in clients),
            "never_pinged": sum(1 for client in clients if not client.heartbeats),
            "strays": self._strays,
            "clients_by_messages": Counter(client.messages for client in clients),
        }

    def _taker(self, user: str) -> OnMessage:
        start = f"{user} ".encode()

        def take(data: bytes) -> None:
            if not data.startswith(start):
                self._strays += 1

        return take


def _asked(lines: deque[str]) -> Iterator[None]:
    """Yield once for each line that was read meanwhile."""
    while lines:
        lines.popleft()
        yield


def main() -> None:
    """Hold until the input ends."""
    holder = Holder(*map(int, sys.argv[1:5]))
    holder.connect()
    lines: deque[str] = deque([""])
    # Blocked in a read it costs nothing; the clients' thread looks at a deque.
    reader = threading.Thread(target=lambda: lines.extend(sys.stdin), daemon=True)
    reader.start()
    while reader.is_alive():
        for _ in _asked(lines):
            print(json.dumps(holder.state()), flush=True)
        holder.turn()


if __name__ == "__main__":
    main()
