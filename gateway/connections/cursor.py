"""Cursors: how far a client has come, in a text that only gateways read.

`<as-of>[,<position>…]`: a time of the registry's clock, milliseconds in base 36, and positions in
Kafka, `topic-partition-offset`. Everything that was settled before the time has been handed to the
client; of a partition with a position, everything up to the position. A cursor is no secret and no
proof: what a client gets for it is only what is for the user and the device of its token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from registry.resume import Position, position_of

#: Topic and partition.
Partition = tuple[str, int]

#: More positions than a user has partitions with messages: one a topic, usually.
MAX_POSITIONS: Final = 64
#: Names of topics reach 249 bytes; 16 KB hold 64 positions of the longest.
MAX_CURSOR_BYTES: Final = 18_000
#: Cursors may be ahead of a node's time by so much: readings of the registry's clock differ.
MOST_AHEAD_MS: Final = 30_000
_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
#: 2⁵³ ms is in the year 287396.
_TIME: Final = re.compile(r"[0-9a-z]{1,11}", re.ASCII)
_TOPIC: Final = re.compile(r"[A-Za-z0-9._-]{1,249}", re.ASCII)
_POSITION: Final = re.compile(r"[A-Za-z0-9._-]{1,249}-[0-9]{1,10}-[0-9]{1,19}", re.ASCII)
_MAX_OFFSET: Final = 2**63 - 1
_MAX_PARTITION: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a client has come: `as_of_ms` by the registry's clock, and the last positions."""

    as_of_ms: int
    positions: Mapping[Partition, int] = field(default_factory=dict)


def read_cursor(text: str) -> Cursor | None:
    """Return the cursor that a text is; None for a text that no gateway has written."""
    if len(text) > MAX_CURSOR_BYTES:
        return None
    time, *places = text.split(",")
    if not _TIME.fullmatch(time) or len(places) > MAX_POSITIONS:
        return None
    positions: dict[Partition, int] = {}
    for place in places:
        position = position_of(place)
        if position is None:
            return None
        topic, partition, offset = position
        if not _TOPIC.fullmatch(topic) or partition > _MAX_PARTITION or offset > _MAX_OFFSET:
            return None
        positions[topic, partition] = max(offset, positions.get((topic, partition), 0))
    return Cursor(int(time, 36), positions)


def is_position(text: str) -> bool:
    """Whether a text is a place in Kafka, and ends neither a cursor nor a line of an event."""
    return bool(_POSITION.fullmatch(text))


def cursor_text(as_of_ms: int, positions: Mapping[Partition, int]) -> str:
    """Return the text of a cursor; where there are too many positions, of the last ones."""
    return with_positions(base36(as_of_ms), positions)


def with_positions(as_of: str, positions: Mapping[Partition, int]) -> str:
    """Return the text of a cursor with a time in its own form."""
    last = list(positions.items())[-MAX_POSITIONS:]
    places = (f"{topic}-{partition}-{offset}" for (topic, partition), offset in last)
    return ",".join((as_of, *places))


def move(positions: dict[Partition, int], place: Position) -> None:
    """Move the position in a partition to a message's place; not back.

    The newest position stands last: the oldest are the first to go from a cursor.
    """
    topic, number, offset = place
    before = positions.pop((topic, number), -1)
    positions[topic, number] = max(offset, before)


def later(as_of: str, other: str) -> str:
    """Return the later of two times in the form of cursors; an empty text is before all."""
    return max(as_of, other, key=lambda text: (len(text), text))


def base36(number: int) -> str:
    """Return a number of 0 or more in base 36."""
    text = ""
    while number:
        number, digit = divmod(number, 36)
        text = _DIGITS[digit] + text
    return text or "0"
