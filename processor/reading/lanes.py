"""Weighted queues: every topic is a lane, and no lane can starve another."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from processor.reading.message import Message


class Lanes:
    """A queue for every lane; `take` shares its limit out among the lanes by their weights.

    A lane with messages gets its share, at least 1, however full the other lanes are. So a flood
    of messages in a single lane delays another lane by one `take` at most.
    """

    __slots__ = ("_count", "_discarded", "_queues", "_weights")

    def __init__(self, weights: Sequence[int]) -> None:
        """`weights` has a number for every lane, 1 or more."""
        self._weights = weights
        self._queues: tuple[deque[Message], ...] = tuple(deque() for _ in weights)
        self._count = 0
        #: Discarded messages that are still in a queue: taking one out of a deque scans the deque.
        self._discarded: set[Message] = set()

    def __len__(self) -> int:
        """Return the number of messages that `take` will give out: without discarded messages."""
        return self._count

    def __iter__(self) -> Iterator[Message]:
        """Iterate over the messages that `take` will give out, in order within a lane."""
        for queue in self._queues:
            for message in queue:
                if message not in self._discarded:
                    yield message

    @property
    def count(self) -> int:
        """The number of lanes."""
        return len(self._queues)

    def put(self, message: Message) -> None:
        """Queue a message as the last of its lane."""
        self._queues[message.lane].append(message)
        self._count += 1

    def put_back(self, messages: Sequence[Message]) -> None:
        """Queue messages of one lane, in their order, before all messages already in the lane."""
        for message in reversed(messages):
            self._queues[message.lane].appendleft(message)
        self._count += len(messages)

    def discard(self, message: Message) -> None:
        """Give a queued message up: `take` will not return the message."""
        self._discarded.add(message)
        self._count -= 1
        if len(self._discarded) > self._count:
            self._drop_discarded()

    def extract(self, leaves: Callable[[Message], bool]) -> list[Message]:
        """Take out all messages for which `leaves` is true, in order within a lane."""
        if self._discarded:
            self._drop_discarded()
        extracted = [message for message in self if leaves(message)]
        if extracted:
            self._queues = tuple(
                deque(message for message in queue if not leaves(message)) for queue in self._queues
            )
            self._count -= len(extracted)
        return extracted

    def take(self, limit: int) -> list[Message]:
        """Take up to `limit` messages, in order within a lane.

        `limit` is the number of lanes or more.
        """
        if self._discarded:
            self._drop_discarded()
        taken: list[Message] = []
        if self._count <= limit:
            for queue in self._queues:
                taken += queue
                queue.clear()
            self._count = 0
            return taken
        waiting = list(map(len, self._queues))
        for queue, count in zip(self._queues, shares(limit, waiting, self._weights), strict=True):
            taken += [queue.popleft() for _ in range(count)]
        self._count -= len(taken)
        return taken

    def _drop_discarded(self) -> None:
        discarded, self._discarded = self._discarded, set()
        self._queues = tuple(
            deque(message for message in queue if message not in discarded)
            for queue in self._queues
        )


def shares(limit: int, waiting: Sequence[int], weights: Sequence[int]) -> list[int]:
    """Share `limit` out among the lanes; return the number of messages to take from every lane.

    `waiting` are the numbers of queued messages by lane. A lane with messages gets a share by
    weight, and at least 1. The remainder of the limit goes to lanes with messages left, heavier
    lanes first.
    """
    total = sum(weight for weight, count in zip(weights, waiting, strict=True) if count)
    counts = [
        min(count, max(1, limit * weight // total)) if count else 0
        for weight, count in zip(weights, waiting, strict=True)
    ]
    # Negative where light lanes got their minimum of 1: heavier lanes then give messages back.
    remainder = limit - sum(counts)
    for lane in sorted(range(len(weights)), key=lambda lane: -weights[lane]):
        extra = min(waiting[lane] - counts[lane], max(remainder, 1 - counts[lane]))
        counts[lane] += extra
        remainder -= extra
    return counts
