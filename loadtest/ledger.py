"""The account of a benchmark's messages: a user's messages must all arrive, in order and once."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from typing import Final

PAYLOAD_BYTES: Final = 200
#: A payload begins with a message's number, in so many digits.
NUMBER_DIGITS: Final = 10
_REST: Final = b" " + b"x" * (PAYLOAD_BYTES - NUMBER_DIGITS - 1)


def payload(number: int) -> bytes:
    """Return the payload of a user's message `number`, counted from 0: the number, and filler."""
    return b"%010d" % number + _REST


class Ledger:
    """Counts messages as they arrive: in total, repeated, and out of order."""

    def __init__(self, users: int, *, per_user: int, timed: bool = False) -> None:
        """Expect `per_user` messages for each user.

        `timed` records the time of every arrival, which costs the clients CPU time.
        """
        self.count = 0
        self.repeated = 0
        self.out_of_order = 0
        self.expected = users * per_user
        self.arrived = array("d", bytes(8 * self.expected if timed else 0))
        self._users = users
        self._next = [0] * users

    @property
    def missing(self) -> int:
        """Return how many of the expected messages have not arrived."""
        return self.expected - (self.count - self.repeated)

    def taker(self, user: int) -> Callable[[bytes], None]:
        """Return the callback that takes one user's messages."""
        expected, arrived, users = self._next, self.arrived, self._users

        def take(data: bytes) -> None:
            self.count += 1
            number = int(data[:NUMBER_DIGITS])
            if number == expected[user] and len(data) == PAYLOAD_BYTES:
                expected[user] = number + 1
                if arrived:
                    arrived[number * users + user] = time.monotonic()
            elif number < expected[user]:
                self.repeated += 1
            else:
                self.out_of_order += 1
                expected[user] = number + 1

        return take
