"""The buffer of a poll session: the messages and gaps that the client has not acknowledged.

The client acknowledges an answer by the count in the answer's cursor, on the node that has
answered. Another node knows how far the client has come by the positions in the cursor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import structs

from gateway.connections.cursor import Partition, move
from gateway.connections.delivery import Delivery, json_form
from gateway.connections.gate import by_partition, places
from gateway.takeover.format import PollRecord
from registry.resume import Position, position_of

#: Stands in the buffer where the client may have missed messages. A gap takes a place in the count,
#: so the client acknowledges a gap like a message.
GAP: Final = b""
_BEHIND_POSITION: Final = b"\n"


def poll_form(delivery: Delivery) -> bytes:
    """Encode as the position, empty for a message in no log, a line feed, and the JSON object."""
    return b"%b\n%b" % ((delivery.position or "").encode(), json_form(delivery))


def json_of(item: bytes) -> bytes:
    """Return the JSON object of a message in the buffer."""
    return item[item.index(_BEHIND_POSITION) + 1 :]


class PollBuffer:
    """Messages in `poll_form` and gaps, in the order of arrival, with the counts of both.

    A count says how many messages and gaps the session has sent. A client comes with either of two:
    the count of the last answer, or the count before, where the last answer was lost.
    """

    __slots__ = ("_acknowledged", "_answered", "_items", "ahead", "positions", "size")

    def __init__(self, positions: Mapping[Partition, int] | None = None) -> None:
        """`positions` are the client's, from an answer of another session."""
        # A list, since sessions are many and mostly idle: an empty deque takes 760 bytes.
        self._items: list[bytes] = []
        self.size = 0  # bytes of the messages
        self._acknowledged = 0
        self._answered = 0  # up to the end of the last answer
        #: The client's last message of every partition, as acknowledged; None for none.
        self.positions = positions or None
        #: The same after the last answer.
        self.ahead = self.positions

    @classmethod
    def adopt(cls, record: PollRecord) -> PollBuffer:
        """Return the buffer of a session of the earlier process."""
        buffer = cls(by_partition(record.positions))
        buffer._items = list(record.items)
        buffer.size = sum(map(len, buffer._items))
        buffer._acknowledged, buffer._answered = record.acknowledged, record.answered
        if record.ahead != record.positions:
            buffer.ahead = by_partition(record.ahead) or None
        return buffer

    def fill(self, record: PollRecord) -> PollRecord:
        """Return a session's record with the buffer, for the next process."""
        return structs.replace(
            record,
            items=self._items,
            acknowledged=self._acknowledged,
            answered=self._answered,
            positions=places(self.positions or {}),
            ahead=places(self.ahead or {}),
        )

    def __len__(self) -> int:
        return len(self._items)

    @property
    def is_answered(self) -> bool:
        """Whether the last answer has everything in the buffer."""
        return self._answered - self._acknowledged == len(self._items)

    @property
    def has_unlogged(self) -> bool:
        """Whether there is a message that is in no log, and so can't be replayed."""
        return any(item.startswith(_BEHIND_POSITION) for item in self._items)

    def add(self, message: bytes) -> None:
        """Add a message."""
        self._items.append(message)
        self.size += len(message)

    def add_gap(self) -> None:
        """Add a gap, for the next answer, once."""
        if GAP not in self.unanswered():
            self._items.append(GAP)

    def unanswered(self) -> Sequence[bytes]:
        """Return the items behind the last answer."""
        return self._items[self._answered - self._acknowledged :]

    def is_old(self, message: bytes) -> bool:
        """Whether the client has a message from an answer of another node."""
        return self.positions is not None and _is_old(message, self.positions)

    def knows(self, count: int) -> bool:
        """Whether a client may come with this count."""
        return count in (self._acknowledged, self._answered)

    def has_all_after(self, positions: Mapping[Partition, int]) -> bool:
        """Whether nothing that a client with these positions lacks was dropped."""
        return all(positions.get(at, -1) >= offset for at, offset in (self.positions or {}).items())

    def is_last_answer(self, count: int) -> bool:
        """Whether a count is of the last answer, and not of the answer before."""
        return count == self._answered

    def acknowledge(self) -> bool:
        """Drop the messages of the last answer; return whether there were any."""
        items = self._items[: self._answered - self._acknowledged]
        if items:
            self.size -= sum(map(len, items))
            del self._items[: len(items)]
            self.positions = self.ahead
        self._acknowledged = self._answered
        return bool(items)

    def rebase(self, positions: Mapping[Partition, int]) -> None:
        """Drop the messages up to the client's positions; counts given out before are unknown."""
        self._items = [item for item in self._items if not _is_old(item, positions)]
        self.size = sum(map(len, self._items))
        self._acknowledged = self._answered = self._answered + 1
        self.positions = self.ahead = positions or None

    def forget(self, partition: Partition) -> None:
        """Forget the position in a partition of a topic made anew."""
        self.positions = _without(self.positions, partition)
        self.ahead = _without(self.ahead, partition)

    def forget_all(self) -> None:
        """Forget the positions of an empty buffer: a resume cursor's time says enough."""
        self.positions = self.ahead = None

    def answer(self) -> list[bytes]:
        """Return everything in the buffer, which then counts as answered."""
        self._answered = self._acknowledged + len(self._items)
        self.ahead = _moved(self.positions, self._items)
        return self._items

    def last_answer(self) -> list[bytes]:
        """Return the last answer once more."""
        return self._items[: self._answered - self._acknowledged]

    def count_behind(self, items: Sequence[bytes]) -> int:
        """Return the count of an answer with the first items of the buffer."""
        return self._acknowledged + len(items)

    def clear(self) -> None:
        """Drop everything."""
        self._items, self.size = [], 0


def _position(item: bytes) -> Position | None:
    text, _, _ = item.partition(_BEHIND_POSITION)
    return position_of(text.decode()) if text else None


def _moved(
    positions: Mapping[Partition, int] | None, items: Sequence[bytes]
) -> Mapping[Partition, int] | None:
    """Return the positions behind further items."""
    places = [place for item in items if (place := _position(item)) is not None]
    if not places:
        return positions
    moved = dict(positions or {})
    for place in places:
        move(moved, place)
    return moved


def _without(
    positions: Mapping[Partition, int] | None, partition: Partition
) -> Mapping[Partition, int] | None:
    """Return the positions without a partition's; None for none."""
    rest = {at: offset for at, offset in (positions or {}).items() if at != partition}
    return rest or None


def _is_old(item: bytes, positions: Mapping[Partition, int]) -> bool:
    place = _position(item)
    if place is None:
        return False
    topic, number, offset = place
    return offset <= positions.get((topic, number), -1)
