"""The newest messages of a partition, by user, for clients that come back.

A window is a row of chunks. A chunk has messages, and an index: by user, the number of the latest
message, and by message, the number of the user's message before. The index is made, and messages
are encoded, when a question is asked: nearly all messages are never asked for. The oldest chunk is
dropped as a whole, without a search for old messages.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from processor.reading.message import Message
from registry.message import Push

#: A chunk takes messages for so long, or up to so many bytes. Long chunks keep old messages for
#: longer, and with short chunks a question looks at more of them.
_CHUNK_MS: Final = 5_000
_CHUNK_BYTES: Final = 1024 * 1024
#: Messages read back are kept in parts of so many: a chunk is full after some parts.
_FILLED_AT_ONCE: Final = 1_000
#: Bytes of a message beside the payload, measured with 200,000 messages of 5,000 users: 260 for the
#: push and the strings, 60 for a part of the index.
_MESSAGE_BYTES: Final = 330
#: Bytes of a collapse key's place in the window's dict.
_COLLAPSING_BYTES: Final = 300
#: A message's number in a chunk: none.
_NONE: Final = -1
#: The end of a replaced message, and of a settled message with a TTL of 0, which is for connected
#: clients alone (RFC 8030 §5.2).
_NEVER: Final = 0

_encode: Final = msgspec.msgpack.Encoder().encode


class Kept(NamedTuple):
    """A message of a window: offset and encoded push."""

    offset: int
    push: bytes


class _Chunk:
    __slots__ = (
        "_due_until",
        "_latest",
        "_offsets",
        "_previous",
        "_pushes",
        "began_ms",
        "size",
    )

    def __init__(self, began_ms: int) -> None:
        self.began_ms = began_ms
        self.size = 0  # bytes of messages, with a complete index
        # By the message's number. Arrays: a list would keep an object a number.
        self._pushes: list[Push] = []
        self._offsets = array("q")
        self._due_until: dict[int, int] = {}  # of messages with a TTL, in Unix milliseconds
        # The index, of the first messages or of all.
        self._previous = array("i")
        self._latest: dict[str, int] = {}  # user → number of the user's latest message here

    def __len__(self) -> int:
        return len(self._pushes)

    @property
    def end(self) -> int:
        """The offset behind the last message."""
        return self._offsets[-1] + 1

    def extend(self, messages: Sequence[Message]) -> None:
        """Keep messages, in the order of offsets."""
        pushes = [message.push for message in messages]
        self._pushes += pushes
        self.size += sum([len(push.data) for push in pushes]) + _MESSAGE_BYTES * len(pushes)
        self._offsets.extend([message.offset for message in messages])

    def end_at(self, number: int, until_ms: int) -> None:
        """Note that a message is due until a time."""
        self._due_until[number] = until_ms

    def end_due(self, number: int) -> None:
        """Note that a message is due no more."""
        self._due_until[number] = _NEVER

    def number_at(self, offset: int) -> int:
        """Return the number of the message at an offset, or _NONE."""
        low, high = 0, len(self._offsets)
        while low < high:
            middle = (low + high) // 2
            if self._offsets[middle] < offset:
                low = middle + 1
            else:
                high = middle
        return low if low < len(self._offsets) and self._offsets[low] == offset else _NONE

    def of(self, user: str, device: str | None, since: int, until: int, now_ms: int) -> list[Kept]:
        """Return due messages of a user from offset `since` to before `until`, in order."""
        self._make_index()
        found: list[Kept] = []
        number = self._latest.get(user, _NONE)
        while number != _NONE and (offset := self._offsets[number]) >= since:
            if offset < until and self._is_for(number, device) and self._is_due(number, now_ms):
                found.append(Kept(offset, _encode(self._pushes[number])))
            number = self._previous[number]
        found.reverse()
        return found

    def _make_index(self) -> None:
        """Index the messages since the last call."""
        latest, previous, pushes = self._latest, self._previous, self._pushes
        for number in range(len(previous), len(pushes)):
            push = pushes[number]
            previous.append(latest.get(push.user, _NONE))
            latest[push.user] = number

    def _is_for(self, number: int, device: str | None) -> bool:
        only = self._pushes[number].device
        return only is None or only == device

    def _is_due(self, number: int, now_ms: int) -> bool:
        until_ms = self._due_until.get(number)
        return until_ms is None or now_ms <= until_ms


class Window:
    """The latest messages of a partition: every message from `floor` to before `end`."""

    __slots__ = ("_chunks", "_collapsing", "end", "floor", "size", "too_far")

    def __init__(self, start: int) -> None:
        """`start` is the offset of the next message."""
        self.floor = self.end = start
        self.size = 0  # bytes of messages and index
        #: Nothing is read back from here or from further in front: there is too much, a record
        #: can't be decoded, or retention has taken the records.
        self.too_far = -1
        self._chunks: deque[_Chunk] = deque()
        #: By user, device and collapse key: the offset of the latest message.
        self._collapsing: dict[tuple[str, str | None, str], int] = {}

    @property
    def began_ms(self) -> int | None:
        """When the oldest chunk began; None where the window is empty."""
        return self._chunks[0].began_ms if self._chunks else None

    def is_older_than(self, time_ms: int) -> bool:
        """Whether the oldest chunk has no message taken in after `time_ms`."""
        chunks = self._chunks
        if not chunks:
            return False
        ended_ms = chunks[1].began_ms if len(chunks) > 1 else chunks[0].began_ms + _CHUNK_MS
        return ended_ms <= time_ms

    def restart(self, start: int) -> None:
        """Go on from `start`: the partition was assigned anew.

        A window with another end begins anew: messages come again, or another member has read on,
        or the topic was made anew. Messages in front are read back for the first question.
        """
        if start != self.end:
            self.__init__(start)  # type: ignore[misc]

    def take(self, messages: Sequence[Message], now_ms: int) -> None:
        """Keep messages, the next of the partition; `now_ms` is monotonic."""
        if not messages:
            return
        if messages[0].offset < self.end:  # the topic was made anew
            self.__init__(messages[0].offset)  # type: ignore[misc]
        chunk = self._chunks[-1] if self._chunks else None
        if chunk is None or now_ms - chunk.began_ms >= _CHUNK_MS or chunk.size >= _CHUNK_BYTES:
            chunk = _Chunk(now_ms)
            self._chunks.append(chunk)
        first, before = len(chunk), chunk.size
        chunk.extend(messages)
        self.end = messages[-1].offset + 1
        for number, message in enumerate(messages, first):
            envelope = message.envelope
            if envelope.ttl_seconds:
                ends_ms = envelope.published_ms + envelope.ttl_seconds * 1_000
                chunk.end_at(number, ends_ms)
            if envelope.collapse_key is not None:
                self._collapse(message, envelope.collapse_key)
                chunk.size += _COLLAPSING_BYTES
        self.size += chunk.size - before

    def settled(self, offset: int) -> None:
        """Note the outcome of a message with a TTL of 0: the message is due no more."""
        self._end_due(offset)

    def of(
        self, user: str, device: str | None, since: int, until: int, now_ms: int
    ) -> Iterator[Kept]:
        """Yield due messages of a user, and of the user's `device`, in order.

        From offset `since` to before `until`; `now_ms` is Unix time, for TTLs.
        """
        for chunk in list(self._chunks):
            if chunk.end > since:
                yield from chunk.of(user, device, since, until, now_ms)

    def fill(self, start: int, end: int, messages: Iterable[Message], now_ms: int) -> None:
        """Keep messages of an earlier owner, from `start` to before `end`: all are settled.

        `messages` are in the order of offsets, and nothing is kept unless the window begins at
        `end`. Messages with a TTL of 0 are left out.
        """
        if self.floor != end:
            return  # the window has begun anew meanwhile
        began_ms = now_ms if self.began_ms is None else self.began_ms
        earlier = Window(start)
        kept = [
            message
            for message in messages
            if start <= message.offset < end and message.envelope.ttl_seconds != 0
        ]
        for first in range(0, len(kept), _FILLED_AT_ONCE):
            earlier.take(kept[first : first + _FILLED_AT_ONCE], began_ms)
        for place, offset in earlier._collapsing.items():
            if place in self._collapsing:
                earlier._end_due(offset)
            else:
                self._collapsing[place] = offset
        self._chunks.extendleft(reversed(earlier._chunks))
        self.size += earlier.size
        self.floor = start

    def drop_oldest(self) -> None:
        """Drop the oldest chunk."""
        chunk = self._chunks.popleft()
        self.size -= chunk.size
        self.floor = chunk.end
        self.too_far = self.floor
        self._collapsing = {
            key: offset for key, offset in self._collapsing.items() if offset >= self.floor
        }

    def _collapse(self, message: Message, key: str) -> None:
        place = (message.push.user, message.push.device, key)
        older = self._collapsing.get(place)
        self._collapsing[place] = message.offset
        if older is not None:
            self._end_due(older)

    def _end_due(self, offset: int) -> None:
        for chunk in reversed(self._chunks):
            if (number := chunk.number_at(offset)) != _NONE:
                chunk.end_due(number)
                return
