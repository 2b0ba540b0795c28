"""Weighted queues: each topic is a lane, and no lane can starve another."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from processor.reading.message import Message


class Lanes:
    """A queue a lane; what is taken at once is shared out by the lanes' weights.

    A lane that is not empty gets its share, at least one, however full the others are: a flood in
    one delays another by what is taken at once, no more.
    """

    __slots__ = ("_count", "_queues", "_weights")

    def __init__(self, weights: Sequence[int]) -> None:
        """`weights` are those of the lanes, 1 or more each."""
        self._weights = weights
        self._queues: tuple[deque[Message], ...] = tuple(deque() for _ in weights)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, message: Message) -> None:
        """Queue a message in its lane."""
        self._queues[message.lane].append(message)
        self._count += 1

    def put_back(self, messages: Sequence[Message]) -> None:
        """Queue messages of one lane before all others of it, in their order."""
        for message in reversed(messages):
            self._queues[message.lane].appendleft(message)
        self._count += len(messages)

    def take(self, limit: int) -> list[Message]:
        """Take up to `limit` (at least the number of lanes), each lane's in its order."""
        taken: list[Message] = []
        waiting = list(map(len, self._queues))
        for queue, count in zip(self._queues, shares(limit, waiting, self._weights), strict=True):
            taken += [queue.popleft() for _ in range(count)]
        self._count -= len(taken)
        return taken


def shares(limit: int, waiting: Sequence[int], weights: Sequence[int]) -> list[int]:
    """Share `limit` out among lanes in which so many wait: by weight, then what is left in order.

    Heavier lanes come first where something is left.
    """
    total = sum(weight for weight, count in zip(weights, waiting, strict=True) if count)
    given = [
        min(count, max(1, limit * weight // total)) if count else 0
        for weight, count in zip(weights, waiting, strict=True)
    ]
    left = limit - sum(given)  # below 0 where light lanes were given their one
    for lane in sorted(range(len(weights)), key=lambda lane: -weights[lane]):
        more = min(waiting[lane] - given[lane], max(left, 1 - given[lane]))
        given[lane] += more
        left -= more
    return given
