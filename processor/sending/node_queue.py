"""The messages for one node, in order: those to send next, and those of users without room.

Messages of one key leave in the order in which they came, and no two batches under way have a key
in common: whichever fails, or is refused in part, no later message of a key has gone past. Each
message is in one place: in the lanes, among the messages taken from the lanes for the next batches,
or in its user's line (lines.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Sequence, Set
from functools import partial
from heapq import heappop, heappush
from itertools import count
from typing import Final, NamedTuple

from processor.reading.lanes import Lanes
from processor.reading.message import Message
from processor.sending.forward import OVERLOADED, Failure, Result, push_size
from processor.sending.lines import Line, Place, refuses
from registry.message import MAX_BATCH_BYTES

#: Bytes of the body of a batch that are no message: the list's head.
_LIST_BYTES: Final = 16
#: Lines get this share of a batch at most, while other messages wait.
_SHARE_OF_LINES: Final = 0.5


class Batch(NamedTuple):
    """Messages that go out together, and the keys of the lines with an attempt among them."""

    messages: list[Message]
    attempts: Sequence[Hashable] = ()


#: A message that is finished on this node, and its result; None where the message was not sent.
Finished = tuple[Message, Result | None]


class NodeQueue:
    """The messages for one node. Times are seconds of the caller's clock."""

    __slots__ = ("_due", "_lanes", "_lines", "_numbers", "_taken", "patience_seconds")

    def __init__(self, weights: Sequence[int], *, patience_seconds: float) -> None:
        """`weights` are the weights of the lanes.

        A message without a TTL waits in a line for `patience_seconds`; with a TTL, until its end.
        """
        self.patience_seconds = patience_seconds
        self._lanes = Lanes(weights)
        self._taken: list[Message] = []  # out of the lanes, for the next batches
        self._lines: dict[Hashable, Line] = {}  # by message key
        #: A heap of lines by the time of their next attempt; rows of former times are skipped.
        self._due: list[tuple[float, int, Hashable]] = []
        self._numbers = count()

    def __len__(self) -> int:
        return self.outside_lines + self.in_lines

    def __bool__(self) -> bool:
        return bool(self._lanes) or bool(self._taken) or bool(self._lines)

    def __iter__(self) -> Iterator[Message]:
        """Iterate over all messages but those of batches under way, in no order."""
        yield from self._taken
        yield from self._lanes
        for line in self._lines.values():
            yield from line

    @property
    def in_lines(self) -> int:
        """How many messages wait in lines."""
        return sum(map(len, self._lines.values())) if self._lines else 0

    @property
    def outside_lines(self) -> int:
        """How many messages wait for a batch, and for nothing else."""
        return len(self._lanes) + len(self._taken)

    def put(self, message: Message) -> None:
        """Queue a message as the last of its lane; not for a user with a line."""
        self._lanes.put(message)

    def has_line(self, message: Message) -> bool:
        """Whether the message's user has a line, which the message has to join."""
        return message.key in self._lines

    def join_line(self, message: Message, now: float) -> bool:
        """Let a message join its user's line; False where the line is full."""
        line = self._lines[message.key]
        due = line.due
        joined = line.join(message, now)
        if line.due < due:
            self._schedule(message.key, line)
        return joined

    def next_due(self) -> float | None:
        """When the next messages can be sent: None for now, or the time of the next line."""
        if self._taken or self._lanes or not self._due:
            return None
        return self._due[0][0]

    def next_batch(
        self, limit: int, now: float, *, keys_under_way: Set[Hashable] = frozenset()
    ) -> Batch:
        """Give out the messages of the next batch: `limit` at most, within MAX_BATCH_BYTES.

        Messages of keys with messages in other batches under way stay in front of the queue.
        """
        batch: list[Message] = []
        attempts: list[Hashable] = []
        room = MAX_BATCH_BYTES - _LIST_BYTES
        if self._due:
            others = bool(self._taken) or bool(self._lanes)
            share = int(limit * _SHARE_OF_LINES) if others else limit
            room = self._attempt_lines(batch, attempts, share, now)
        taken, held = self._take(limit, keys_under_way)
        number = _fitting(taken, limit - len(batch), room, first_fits=not batch)
        if number == len(taken):
            self._taken = held
            return Batch(batch + taken if batch else taken, attempts)
        self._taken = held + taken[number:]
        return Batch(batch + taken[:number], attempts)

    def boundaries(self, batch: Batch) -> frozenset[Message]:
        """Return the boundaries (lines.py) in a batch that `next_batch` has just given out."""
        lines = [line for key in batch.attempts if (line := self._lines.get(key)) is not None]
        return frozenset(boundary for line in lines if (boundary := line.boundary) is not None)

    def is_plain(self, batch: Batch, results: Sequence[Result]) -> bool:
        """Whether results are all of finished messages, so that `returned` need not sort them."""
        return not batch.attempts and not refuses(results)

    def narrowed(self, batch: Batch, messages: list[Message]) -> Batch:
        """Return a batch that goes out with fewer messages.

        A line without a message among them has no attempt under way: while the batch is, another
        may take the line's next attempt.
        """
        keys = {message.key for message in messages}
        for key in batch.attempts:
            if key not in keys:
                self._end_attempt(key)
        return Batch(messages, [key for key in batch.attempts if key in keys])

    def put_back(self, batch: Batch) -> None:
        """Take a batch back that the node did not answer; the batch goes first again."""
        for key in batch.attempts:
            self._end_attempt(key)
        self._taken = [m for m in batch.messages if m.key not in self._lines] + self._taken

    def returned(
        self, batch: Batch, results: Sequence[Result], now: float
    ) -> tuple[list[Finished], list[Message]]:
        """Take the results of a batch; return the finished messages, and those that begin to wait.

        Messages begin to wait for room that the node has refused, and later messages of the same
        key that are queued.
        """
        keys = set(batch.attempts)
        for message, result in zip(batch.messages, results, strict=True):
            if message.key not in keys and refuses((result,)):
                keys.add(message.key)
        finished: list[Finished] = []
        by_key: dict[Hashable, tuple[list[Message], list[Result]]] = {key: ([], []) for key in keys}
        for message, result in zip(batch.messages, results, strict=True):
            if message.key in by_key:
                messages, its_results = by_key[message.key]
                messages.append(message)
                its_results.append(result)
            else:
                finished.append((message, result))
        new = [key for key in keys if key not in self._lines]
        for key, (messages, its_results) in by_key.items():
            line = self._lines.setdefault(key, Line())
            finished += line.returned(messages, its_results, now)
            self._schedule(key, line)
        waiting = [message for key in new if key in self._lines for message in self._lines[key]]
        for message in self._extract({key for key in new if key in self._lines}):
            if self._lines[message.key].join(message, now):
                waiting.append(message)
            else:
                finished.append((message, OVERLOADED))
        return finished, waiting

    def expire(self, now: float, is_due: Callable[[Message], bool]) -> list[Finished]:
        """Take out what waits no longer: messages whose patience, TTL or partition has ended."""
        finished: list[Finished] = []
        for key, line in list(self._lines.items()):
            began_by = now - self.patience_seconds
            finished += line.drop(partial(_ended, began_by, is_due, line.has_takers))
            self._schedule(key, line)
        return finished

    def take_out(self, leaving: Collection[Message], result: Failure | None) -> list[Finished]:
        """Take messages out, wherever they wait; those of batches under way stay."""

        def leaves(place: Place) -> Failure | bool | None:
            return result if place.message in leaving else False

        finished: list[Finished] = []
        for key in {message.key for message in leaving} & self._lines.keys():
            finished += self._lines[key].drop(leaves)
            self._schedule(key, self._lines[key])
        finished += [(m, result) for m in self._taken if m in leaving]
        self._taken = [m for m in self._taken if m not in leaving]
        finished += [(m, result) for m in self._lanes.extract(lambda m: m in leaving)]
        return finished

    def withdraw(self, message: Message) -> bool:
        """Take out one message that is not of a batch under way; no result is due.

        False, and nothing is done, where some connections of the node have taken the message.
        """
        line = self._lines.get(message.key)
        if line is not None and line.taken(message):
            return False
        if line is not None or message in self._taken:
            self.take_out((message,), None)
        else:
            self._lanes.discard(message)
        return True

    def leave(self, messages: Sequence[Message], result: Failure | None) -> list[Finished]:
        """Return messages of a batch under way that end without an answer, with their results.

        The result is `result`, or Partly where some connections had taken the message before.
        """
        lines = self._lines
        return [
            (message, lines[message.key].leave(message, result) if message.key in lines else result)
            for message in messages
        ]

    def _take(
        self, limit: int, keys_under_way: Set[Hashable]
    ) -> tuple[list[Message], list[Message]]:
        """Return messages for the next batch, and messages held back, with no key in common."""
        taken = self._taken or self._lanes.take(limit)
        if not keys_under_way:
            return taken, []
        # Messages that were held back before must not make the batch small. (All lanes share out
        # the room, and each gets a place.)
        if self._taken and limit - len(taken) >= self._lanes.count:
            taken = taken + self._lanes.take(limit - len(taken))
        ready = [message for message in taken if message.key not in keys_under_way]
        if len(ready) == len(taken):
            return taken, []
        return ready, [message for message in taken if message.key in keys_under_way]

    def _attempt_lines(
        self, batch: list[Message], attempts: list[Hashable], limit: int, now: float
    ) -> int:
        """Add attempts of lines that are due, and their keys, to an empty batch.

        Return the bytes left in the batch.
        """
        room = MAX_BATCH_BYTES - _LIST_BYTES
        while self._due and self._due[0][0] <= now and len(batch) < limit:
            due, _, key = heappop(self._due)
            line = self._lines.get(key)
            if line is None or line.due != due or line.under_way:
                continue
            attempt = line.attempt(limit - len(batch))
            number = _fitting(attempt, len(attempt), room, first_fits=not batch)
            line.cut(number)
            if not number:
                self._schedule(key, line)
                break
            attempts.append(key)
            batch += attempt[:number]
            room -= sum(push_size(message.push) for message in attempt[:number])
        return room

    def _end_attempt(self, key: Hashable) -> None:
        """Note that the attempt of a line, where the key still has one, gets no answer."""
        if (line := self._lines.get(key)) is not None:
            line.put_back()
            self._schedule(key, line)

    def _schedule(self, key: Hashable, line: Line) -> None:
        """Note when a line is due; forget an empty line."""
        if not line:
            self._lines.pop(key, None)
        elif not line.under_way:
            heappush(self._due, (line.due, next(self._numbers), key))

    def _extract(self, keys: Collection[Hashable]) -> list[Message]:
        """Take all messages of the keys out of the lanes and the taken messages, in order."""
        if not keys:
            return []
        extracted = [message for message in self._taken if message.key in keys]
        if extracted:
            self._taken = [message for message in self._taken if message.key not in keys]
        return extracted + self._lanes.extract(lambda message: message.key in keys)


def _ended(
    began_by: float, is_due: Callable[[Message], bool], has_takers: bool, place: Place
) -> Failure | bool | None:
    """Return the result of a message whose waiting in a line has ended, or False.

    The patience has ended for messages that began to wait by `began_by`; see `Line.has_takers`.
    """
    if not is_due(place.message):
        return None
    if place.message.envelope.ttl_seconds or place.since > began_by:
        return False
    return OVERLOADED if place.offered or not has_takers else False


def _fitting(messages: Sequence[Message], limit: int, room: int, *, first_fits: bool) -> int:
    """Return how many of the first messages fit a batch: `limit` at most, within `room` bytes.

    `first_fits`: the first message goes in any case, since a batch of one may be of any size.
    """
    for number, message in enumerate(messages[:limit]):
        room -= push_size(message.push)
        if room < 0 and not (first_fits and number == 0):
            return number
    return min(limit, len(messages))
