"""The gate of a resuming connection: live messages wait for missed messages.

A client has come back with a cursor, and the processors are asked for missed messages. In a
partition the answer comes first; live messages of the partition wait behind the gate meanwhile,
and copies of answered messages are not sent. An answered partition flows at once. For some time
afterwards late copies of replayed messages come, and `Replayed` keeps the copies out.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Final, Protocol

from gateway import metrics
from gateway.connections.cursor import (
    Cursor,
    Partition,
    base36,
    cursor_text,
    move,
    with_positions,
)
from gateway.connections.delivery import Delivery, Form
from gateway.takeover.format import GateRecord, Place, ReplayedRecord, Waiting
from registry.resume import Position

#: Live messages behind a gate. Further messages are refused, and come again (overloaded).
MOST_WAITING: Final = 64


#: By partition: the connection has everything before the offset.
Ends = Mapping[Partition, int]
#: Equal ends of several connections, by their content.
SharedEnds = dict[tuple[tuple[Partition, int], ...], Ends]


class Verdict(enum.Enum):
    """The decision of a gate about a live message."""

    PASSES = "the connection gets the message now"
    HAS = "the connection has the message, or gets it from the gate or from an answer"
    NO_ROOM = "too much waits: the message has to come again"


class Screen(Protocol):
    """Stands in front of a connection from its request with a cursor to some time afterwards."""

    def meet(self, delivery: Delivery) -> Verdict:
        """Decide about a live message."""

    def encoded(self, delivery: Delivery, form: Form) -> bytes:
        """Encode a passing message."""

    def passed(self, delivery: Delivery) -> None:
        """Note that the connection has taken a message."""

    def cursor(self, as_of_ms: int) -> str:
        """Return the connection's cursor, where the node's is of the time `as_of_ms`."""

    def record(self) -> GateRecord | ReplayedRecord:
        """Return what the next process needs to put a screen like this one there."""


class Replayed:
    """Keeps late copies of replayed messages out, for a while after a connection has resumed.

    Messages known to the node as repeats pass too, where the connection is without the message:
    perhaps an ended connection of the user took the message.
    """

    __slots__ = ("_ends", "_positions")

    def __init__(self, ends: Ends, positions: dict[Partition, int]) -> None:
        """`ends`: by partition, the connection has everything before the offset.

        `positions` has the connection's last message of every partition.
        """
        self._ends = ends
        self._positions = positions

    def meet(self, delivery: Delivery) -> Verdict:
        """Decide about a live message: only a message new to the connection passes."""
        place = delivery.place
        if place is None:
            return Verdict.PASSES
        topic, partition, offset = place
        key = (topic, partition)
        has = offset < self._ends.get(key, 0) or offset <= self._positions.get(key, -1)
        return Verdict.HAS if has else Verdict.PASSES

    def encoded(self, delivery: Delivery, form: Form) -> bytes:
        """Encode a message as for any connection."""
        return delivery.encoded(form)

    def passed(self, delivery: Delivery) -> None:
        """Note that the connection has taken a message."""
        if delivery.place is not None:
            move(self._positions, delivery.place)

    def cursor(self, as_of_ms: int) -> str:
        """Return the connection's cursor."""
        return cursor_text(as_of_ms, self._positions)

    @classmethod
    def adopt(cls, record: ReplayedRecord, shared: SharedEnds) -> Replayed:
        """Return the screen of a connection of the earlier process; see Gate.replayed."""
        ends = by_partition(record.ends)
        return cls(_shared(ends, shared), by_partition(record.positions))

    def record(self) -> ReplayedRecord:
        """Return the screen, for the next process."""
        return ReplayedRecord(places(self._ends), places(self._positions))


class Gate:
    """The gate of a connection, from the request until all processors have answered.

    The cursors of all passing messages carry the client's own `as_of_ms`: should the connection end
    half-way, the client comes back with a cursor in front of all messages still missing.
    """

    __slots__ = (
        "_answered",
        "_as_of",
        "_ends",
        "_lined_up",
        "_most_bytes",
        "_partitions",
        "_to_write",
        "_waiting",
        "_waiting_bytes",
        "as_of_ms",
        "has_gap",
        "heard",
        "positions",
    )

    def __init__(self, cursor: Cursor, *, most_bytes: int) -> None:
        """`most_bytes` bounds the payloads of waiting live messages."""
        self.as_of_ms = cursor.as_of_ms
        self._as_of = base36(cursor.as_of_ms)
        #: The client's last message of every partition.
        self.positions = dict(cursor.positions)
        self.heard: set[str] = set()  # processors with an answer
        self.has_gap = False  # some missed messages are not known any more
        self._partitions: dict[str, int] = {}  # by topic: how many, as processors say
        #: Answered partitions with messages to write: the client will have everything before the
        #: offset. Live messages wait.
        self._answered: dict[Partition, int] = {}
        #: Partitions without messages to write: live messages from the offset on pass.
        self._ends: dict[Partition, int] = {}
        #: Messages to write: in order within a partition.
        self._to_write: deque[Delivery] = deque()
        self._lined_up: dict[Partition, int] = {}  # the last offset in it so far
        self._waiting: dict[Partition, dict[int, Delivery]] = {}  # by offset
        self._waiting_bytes = 0
        self._most_bytes = most_bytes

    @classmethod
    def adopt(cls, record: GateRecord, *, most_bytes: int) -> Gate:
        """Return the gate of a connection of the earlier process.

        Everything is asked anew, from what the client has by now. Live messages that wait have
        been answered for, so they wait here too.
        """
        cursor = Cursor(record.as_of_ms, by_partition(record.positions))
        gate = cls(cursor, most_bytes=most_bytes)
        gate.has_gap = record.has_gap
        for waiting in record.waiting:
            delivery = Delivery(
                waiting.payload,
                message_id=waiting.id,
                event_type=waiting.type,
                position=waiting.position,
                as_of=waiting.as_of,
                timestamp_ms=waiting.timestamp_ms,
                lane=waiting.lane,
            )
            topic, number, offset = _place_of(delivery)
            gate._let_wait((topic, number), offset, delivery)
        return gate

    def record(self) -> GateRecord:
        """Return the client's positions, and the live messages that wait, for the next process.

        Messages of answers are left out: they are in the next answer too.
        """
        waiting = [each for messages in self._waiting.values() for each in messages.values()]
        waiting += [each for each in self._to_write if type(each) is Delivery]
        return GateRecord(
            self.as_of_ms,
            places(self.positions),
            self.has_gap,
            [
                Waiting(
                    each.payload,
                    each.id,
                    each.position or "",
                    each.type,
                    each.timestamp_ms,
                    each.lane,
                    each.as_of,
                )
                for each in waiting
            ],
        )

    @property
    def waiting(self) -> int:
        """How many live messages wait."""
        return sum(map(len, self._waiting.values()))

    def waits_beside(self, partitions: Collection[Partition]) -> bool:
        """Whether messages of other partitions wait that no processor has answered for."""
        return any(
            messages and partition not in self._answered and partition not in partitions
            for partition, messages in self._waiting.items()
        )

    @property
    def is_writing(self) -> bool:
        """Whether messages are to be written."""
        return bool(self._to_write)

    def meet(self, delivery: Delivery) -> Verdict:
        """Decide about a live message. A message without a position passes."""
        place = delivery.place
        if place is None:
            return Verdict.PASSES
        topic, number, offset = place
        partition = (topic, number)
        end = self._ends.get(partition)
        if end is None:
            # Also in front of the client's position: an answer may find the position void.
            return self._let_wait(partition, offset, delivery)
        has = offset < end or offset <= self.positions.get(partition, -1)
        return Verdict.HAS if has else Verdict.PASSES

    def encoded(self, delivery: Delivery, form: Form) -> bytes:
        """Encode a message with the connection's own cursor.

        The last position in a message's cursor is the message's own, and clients know repeats by
        the position: a message in no log has none.
        """
        return delivery.with_cursor(self._cursor_behind(delivery.place)).encoded(form)

    def _cursor_behind(self, place: Position | None) -> str:
        if place is None:
            return self._as_of
        positions = dict(self.positions)
        move(positions, place)
        return with_positions(self._as_of, positions)

    def passed(self, delivery: Delivery) -> None:
        """Note that the connection has taken a message."""
        if delivery.place is not None:
            move(self.positions, delivery.place)

    def cursor(self, as_of_ms: int) -> str:  # noqa: ARG002
        """Return the connection's cursor, with the time in the client's own cursor."""
        return with_positions(self._as_of, self.positions)

    def take_counts(self, partitions: Mapping[str, int]) -> None:
        """Note how many partitions topics have: all have to be answered."""
        for topic, count in partitions.items():
            self._partitions[topic] = max(count, self._partitions.get(topic, 0))

    def void(self, partition: Partition) -> None:
        """Forget the position in a partition of a topic made anew."""
        if partition not in self._ends and partition not in self._answered:
            self.positions.pop(partition, None)

    def answer(
        self, partition: Partition, messages: Sequence[Delivery], end: int, *, whole: bool
    ) -> bool:
        """Take the answer for a partition: all messages before `end`, in order.

        Return whether the answer brings the client further.

        Where the answer is not `whole`, more messages from `end` on are asked for again. Waiting
        messages are written among the answered messages, by offset: not every live message is in
        the answer. A message in both is the live message, which its batch counts as taken.
        """
        if partition in self._ends or partition in self._answered:
            return False  # the partition flows already
        if whole and not messages and partition not in self._waiting:
            self._ends[partition] = end  # nothing to write
            return True
        by_offset = {_offset_of(each): each for each in messages}
        if waiting := self._waiting.pop(partition, {}):
            by_offset |= {at: each for at, each in waiting.items() if whole or at < end}
            if not whole:
                self._waiting[partition] = {at: each for at, each in waiting.items() if at >= end}
            self._count_waiting()
        further = self._line_up(partition, by_offset)
        if whole:
            self._answered[partition] = end
        return whole or further

    def next_to_write(self) -> Delivery | None:
        """Return the next message to write, or None where there is none for now."""
        while not self._to_write and self._answered:
            partition, end = next(iter(self._answered.items()))
            if waiting := self._waiting.pop(partition, None):  # came while the answer was written
                self._line_up(partition, waiting)
                self._count_waiting()
            if not self._to_write:
                del self._answered[partition]
                self._ends[partition] = end
        return self._to_write[0] if self._to_write else None

    def wrote(self, delivery: Delivery) -> None:
        """Note that the next message was written."""
        self._to_write.popleft()
        self.passed(delivery)

    def open_all(self) -> None:
        """Let all waiting messages out: no processor answers."""
        for partition in list(self._waiting):
            self.answer(partition, (), self.positions.get(partition, -1) + 1, whole=True)

    def is_whole(self, processors: Collection[str]) -> bool:
        """Whether all processors, and at least one, have answered for all partitions."""
        return (
            bool(self.heard and self._partitions)
            and len(self._ends) >= sum(self._partitions.values())
            and self.heard.issuperset(processors)
            and not (self._to_write or self._answered or self._waiting_bytes or self.waiting)
            and all(
                (topic, number) in self._ends
                for topic, count in self._partitions.items()
                for number in range(count)
            )
        )

    def replayed(self, shared: SharedEnds) -> Replayed:
        """Return the screen of the connection from now on: everything was answered.

        Connections answered together have equal ends: `shared` has a single copy.
        """
        return Replayed(_shared(self._ends, shared), self.positions)

    def _line_up(self, partition: Partition, by_offset: Mapping[int, Delivery]) -> bool:
        """Put messages behind the messages to write; not twice, and no written messages.

        Return whether there are any.
        """
        after = max(self.positions.get(partition, -1), self._lined_up.get(partition, -1))
        offsets = sorted(at for at in by_offset if at > after)
        if offsets:
            self._to_write.extend(by_offset[at] for at in offsets)
            self._lined_up[partition] = offsets[-1]
        return bool(offsets)

    def _let_wait(self, partition: Partition, offset: int, delivery: Delivery) -> Verdict:
        waiting = self._waiting.get(partition, {})
        if offset in waiting or offset <= self._lined_up.get(partition, -1):
            return Verdict.HAS
        size = self._waiting_bytes + len(delivery.payload)
        if self.waiting >= MOST_WAITING or (self._waiting_bytes and size > self._most_bytes):
            metrics.GATE_OVERFLOWS.inc()
            return Verdict.NO_ROOM
        self._waiting.setdefault(partition, {})[offset] = delivery
        self._waiting_bytes = size
        return Verdict.HAS

    def _count_waiting(self) -> None:
        self._waiting_bytes = sum(
            len(each.payload) for waiting in self._waiting.values() for each in waiting.values()
        )


def _shared(ends: Ends, shared: SharedEnds) -> Ends:
    return shared.setdefault(tuple(sorted(ends.items())), ends)


def places(positions: Mapping[Partition, int]) -> list[Place]:
    """Return positions as they are passed to the next process; their order stays."""
    return [(topic, number, offset) for (topic, number), offset in positions.items()]


def by_partition(places: Sequence[Place]) -> dict[Partition, int]:
    """Return the positions that an earlier process has passed."""
    return {(topic, number): offset for topic, number, offset in places}


def _offset_of(delivery: Delivery) -> int:
    return _place_of(delivery)[2]


def _place_of(delivery: Delivery) -> Position:
    place = delivery.place
    assert place is not None  # noqa: S101 - only messages with a place are answered, or wait
    return place
