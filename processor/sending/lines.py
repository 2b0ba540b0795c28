"""A user's line: messages that wait in order, since the user's connections to a node have no room.

A node refuses a message for a connection whose backlog is full (`overloaded`), and with it every
later message of the batch for that connection. The refused messages are offered again, in order,
until the node has taken them, the patience ends, or the TTL ends. Messages that come meanwhile join
the end of the line.

Where one connection has room and another has none, messages from some place of the line on are
without the connection that is ahead. Attempts therefore begin in turn at the first message, for the
connections that have the least, and at each **boundary**: the last message that a connection ahead
has taken. The boundary goes along as the attempt's first message, and the gateway offers the
messages behind the boundary only to connections that have taken the boundary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Final, NamedTuple

from processor.reading.message import Message
from processor.sending.forward import OVERLOADED, Failure, Partly, Result

#: Bounds of one line; a message beyond has the outcome `failed`, `overloaded`.
MAX_MESSAGES: Final = 16_384
MAX_BYTES: Final = 16 * 1024 * 1024
#: The first pause before messages are offered again, and the longest. The pause doubles while
#: nothing is taken.
_FIRST_PAUSE_SECONDS: Final = 0.02
_LONGEST_PAUSE_SECONDS: Final = 0.5
#: The longer an attempt, the longer the pause behind the attempt: a line where one device takes
#: nothing is offered to the user's other devices at a bounded rate.
_PAUSE_SECONDS_A_MESSAGE: Final = 0.0001
#: How many messages, and bytes of them, are offered from the start of the line while nothing was
#: taken at the last attempt from there; one message at least. A user who never reads is asked for
#: room twice a second, and large messages would make each question a burden to other users.
_PROBE_MESSAGES: Final = 16
_PROBE_BYTES: Final = 32 * 1024
#: How many messages a connection may be ahead of the start of the line. A gateway remembers who has
#: taken each of them, for twelve such lines at least (gateway/connections/partly_taken.py).
MOST_AHEAD: Final = 4_096


class Place(NamedTuple):
    """A message in a line, and when the message began to wait there."""

    message: Message
    since: float
    offered: bool = False  # whether the node has refused the message, for one connection at least


class Line:
    """The messages of one key that wait for room on one node.

    Times are seconds of the caller's clock. An attempt is messages that stand together in the line,
    offered together; `attempt` gives them out, `returned` takes their results.
    """

    __slots__ = (
        "_attempted",
        "_first",
        "_pause",
        "_places",
        "_probes",
        "_size",
        "_taken",
        "due",
    )

    def __init__(self) -> None:
        self._places: deque[Place] = deque()
        self._size = 0  # bytes of all messages
        self._first = 0  # where the last attempt began
        self._attempted = 0  # so many messages from there are under way
        self._probes = True  # whether the last attempt from the start of the line found no room
        self._pause = _FIRST_PAUSE_SECONDS
        #: How many connections have taken a message that other connections refused.
        self._taken: dict[Message, int] = {}
        self.due = 0.0  # when the next attempt may start

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Message]:
        """Iterate over the messages in their order, those under way too."""
        return (place.message for place in self._places)

    @property
    def under_way(self) -> bool:
        """Whether an attempt is under way."""
        return self._attempted > 0

    def join(self, message: Message, now: float) -> bool:
        """Let a message wait as the last of the line; False where the line is full."""
        if len(self._places) >= MAX_MESSAGES or self._size + message.size > MAX_BYTES:
            return False
        self._places.append(Place(message, now))
        self._size += message.size
        if self._taken and not self._attempted:
            # Another of the user's connections has room: this message may be for that connection.
            self.due = min(self.due, now + _pace(0))
        return True

    @property
    def has_takers(self) -> bool:
        """Whether one connection of the user takes messages that another refuses.

        Then each message has to be offered once, before its patience may end: an attempt has 1,000
        messages at most, and the line may be longer.
        """
        return bool(self._taken)

    @property
    def boundary(self) -> Message | None:
        """The first message of the attempt under way, where the attempt begins at a boundary."""
        return self._places[self._first].message if self._attempted and self._first else None

    def taken(self, message: Message) -> bool:
        """Whether some of the user's connections have taken a message of the line."""
        return message in self._taken

    def leave(self, message: Message, result: Failure | None) -> Result | None:
        """Take a message out of the attempt under way; return its result: `result`, or Partly."""
        self._places = deque(place for place in self._places if place.message is not message)
        self._size -= message.size
        self._attempted -= 1
        return self._final(message, result)

    def attempt(self, limit: int) -> list[Message]:
        """Give out the messages of the next attempt, `limit` at most."""
        self._first = next((at for at in self._boundaries() if at > self._first), 0)
        if self._probes and not self._first:
            limit = min(limit, self._probe_length())
        messages = [p.message for p in islice(self._places, self._first, self._first + limit)]
        self._attempted = len(messages)
        return messages

    def cut(self, count: int) -> None:
        """Note that only the first `count` messages of the attempt go out."""
        self._attempted = count

    def put_back(self) -> None:
        """Note that the node did not answer the attempt."""
        self._attempted = 0

    def returned(
        self, batch: Sequence[Message], results: Sequence[Result], now: float
    ) -> list[tuple[Message, Result | None]]:
        """Take the results of an attempt, or of a first try whose refused messages begin the line.

        Return the messages that wait no longer, with their results: None for a message that no
        connection took, and that a newer message has replaced.
        """
        before = [self._places.popleft() for _ in range(self._first if self._attempted else 0)]
        since: dict[Message, float] = {}
        for _ in range(self._attempted):
            place = self._places.popleft()
            since[place.message] = place.since
            self._size -= place.message.size
        progressed = False
        ended: list[tuple[Message, Result | None]] = []
        refused: list[Place] = []
        for message, result in zip(batch, results, strict=True):
            progressed = progressed or self._progresses(message, result)
            if self._refused(message, result) and not message.replaced:
                refused.append(Place(message, since.get(message, now), offered=True))
            else:
                ended.append((message, self._final(message, result)))
        self._places.extendleft(reversed(refused))
        self._places.extendleft(reversed(before))
        self._size += sum(place.message.size for place in refused)
        if not (self._attempted and self._first):
            self._probes = not progressed
        self._attempted = 0
        self._plan(now, len(batch), progressed=progressed)
        return ended

    def drop(
        self, leaves: Callable[[Place], Failure | bool | None]
    ) -> list[tuple[Message, Result | None]]:
        """Take messages out of the line that are not under way; return them with their results.

        `leaves` returns False for a message that stays, and otherwise the result of a message that
        no connection has taken.
        """
        stay: deque[Place] = deque()
        ended: list[tuple[Message, Result | None]] = []
        under_way = range(self._first, self._first + self._attempted)
        first = self._first
        for at, place in enumerate(self._places):
            result = False if at in under_way else leaves(place)
            if isinstance(result, bool):
                stay.append(place)
                continue
            first -= at < self._first
            self._size -= place.message.size
            ended.append((place.message, self._final(place.message, result)))
        self._places, self._first = stay, first
        return ended

    def _probe_length(self) -> int:
        """Return how many messages are offered while nothing may be taken."""
        size = 0
        for count, place in enumerate(islice(self._places, _PROBE_MESSAGES)):
            size += place.message.size
            if size > _PROBE_BYTES:
                return max(1, count)
        return _PROBE_MESSAGES

    def _boundaries(self) -> list[int]:
        """Return the boundaries' places, in ascending order.

        At each of them the number of takers falls. The end of the line is none: nothing is behind.
        """
        if not self._taken:
            return []
        boundaries: list[int] = []
        takers = 0
        for at, place in enumerate(islice(self._places, MOST_AHEAD)):
            earlier_takers, takers = takers, self._taken.get(place.message, 0)
            if takers < earlier_takers and at > 1:
                boundaries.append(at - 1)
        return boundaries

    def _plan(self, now: float, attempted: int, *, progressed: bool) -> None:
        """Set the time of the next attempt, behind an attempt with so many messages."""
        if progressed:
            self._pause = _FIRST_PAUSE_SECONDS
        if progressed or (self._places and not self._places[-1].offered and self._boundaries()):
            self.due = now + _pace(attempted)
        else:
            self.due = now + max(self._pause, _pace(attempted))
            self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)

    def _progresses(self, message: Message, result: Result) -> bool:
        """Whether a connection has taken the message that had not taken it before."""
        if isinstance(result, Partly):
            return result.taken > self._taken.get(message, 0)
        return result.__class__ is int

    def _refused(self, message: Message, result: Result) -> bool:
        if isinstance(result, Partly):
            self._taken[message] = result.taken
            return True
        return result == OVERLOADED

    def _final(self, message: Message, result: Result | None) -> Result | None:
        """Return the result of a message that leaves the line."""
        taken = self._taken.pop(message, 0)
        if taken and not (isinstance(result, int) and result >= taken):
            return Partly(taken)
        return None if message.replaced and result == OVERLOADED else result


def _pace(attempted: int) -> float:
    """Return the shortest pause behind an attempt with so many messages."""
    return _FIRST_PAUSE_SECONDS + attempted * _PAUSE_SECONDS_A_MESSAGE


def refuses(results: Iterable[Result]) -> bool:
    """Whether a node has refused a message for a connection without room."""
    return any(
        result.__class__ is not int and (isinstance(result, Partly) or result == OVERLOADED)
        for result in results
    )
