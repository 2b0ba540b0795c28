"""The newest messages of a partition, by user, for clients that come back.

A window is a row of chunks. A chunk has messages, and an index: by user, the number of the latest
message, and by message, the number of the user's message before. The index is made, and messages
are encoded, when a question is asked: nearly all messages are never asked for.

Where there is no room for payloads, the oldest chunks are evicted: an index without messages
(index.py) takes their place, and the messages are read again when a question needs them. The oldest
part of the window ends as a whole, without a search for old messages.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from itertools import chain
from typing import Final, NamedTuple

import msgspec

from processor.reading.message import Message
from processor.replay.index import Entries, Index, Place
from registry.message import Envelope, Push

#: A chunk takes messages for so long, or up to so many bytes. Long chunks keep old messages for
#: longer, and with short chunks a question looks at more of them.
_CHUNK_MS: Final = 5_000
_CHUNK_BYTES: Final = 1024 * 1024
#: Evicted parts of so many messages, begun within so long, are joined, since a question looks in
#: every part. Joined parts have twice as many at most, and take 2 ms.
_JOINED_MESSAGES: Final = 4_096
_JOINED_MS: Final = 20_000
#: Bytes of a message beside the payload, measured with 200,000 messages of 5,000 users: 290 for the
#: push and the strings, 60 more for an id of the message's own, 60 for a part of the index.
_MESSAGE_BYTES: Final = 410
#: Bytes of a collapse key's place in the window's dict.
_COLLAPSING_BYTES: Final = 300
#: A message's number in a chunk: none.
_NONE: Final = -1
#: The end of a replaced message, and of a settled message with a TTL of 0, which is for connected
#: clients alone (RFC 8030 §5.2).
_NEVER: Final = 0

_encode: Final = msgspec.msgpack.Encoder().encode


class Absence(Enum):
    """Why a message is not at hand."""

    UNREAD = "evicted, and not read again yet"
    GONE = "evicted, and Kafka has it no more"


class Kept(NamedTuple):
    """A message of a window: offset and encoded push."""

    offset: int
    push: bytes | Absence


class _Chunk:
    __slots__ = (
        "_due_until",
        "_latest",
        "_offsets",
        "_previous",
        "_pushes",
        "began_ms",
        "places",
        "size",
    )

    def __init__(self, began_ms: int) -> None:
        self.began_ms = began_ms
        self.size = 0  # bytes of messages, with a complete index
        # By the message's number. Arrays: a list would keep an object a number.
        self._pushes: list[Push] = []
        self._offsets = array("q")
        self._due_until: dict[int, int] = {}  # of messages with a TTL, in Unix milliseconds
        self.places = Entries[Place]()  # of messages with a collapse key
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
        at = bisect_left(self._offsets, offset)
        return at if at < len(self._offsets) and self._offsets[at] == offset else _NONE

    def add_users(self, entries: Entries[str]) -> None:
        """Add the user and offset of every message that may be due."""
        pushes, offsets = self._pushes, self._offsets
        never = [number for number, until in self._due_until.items() if until == _NEVER]
        if not never:
            entries.extend([push.user for push in pushes], offsets)
            return
        numbers = sorted({*range(len(pushes))}.difference(never))
        entries.extend([pushes[n].user for n in numbers], [offsets[n] for n in numbers])

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

    __slots__ = (
        "_chunks",
        "_collapsing",
        "_evicted",
        "_for_connected",
        "end",
        "floor",
        "size",
        "too_far",
    )

    def __init__(self, start: int) -> None:
        """`start` is the offset of the next message."""
        self.floor = self.end = start
        self.size = 0  # bytes of messages at hand, with their index
        #: Nothing is read back from here or from further in front: the window was there before, or
        #: retention has taken the records.
        self.too_far = -1
        self._evicted: deque[Index] = deque()  # in front of the chunks
        self._chunks: deque[_Chunk] = deque()
        #: By place: the offset of the latest message at hand.
        self._collapsing: dict[Place, int] = {}
        #: Offsets of unsettled messages with a TTL of 0.
        self._for_connected: set[int] = set()

    @property
    def count(self) -> int:
        """The number of messages, at hand or evicted."""
        return sum(map(len, self._parts))

    @property
    def began_ms(self) -> int | None:
        """When the oldest part began; None where the window is empty."""
        oldest = next(self._parts, None)
        return None if oldest is None else oldest.began_ms

    @property
    def at_hand(self) -> Sequence[tuple[int, int]]:
        """The chunks of messages at hand, the oldest first: when each began, and its bytes."""
        return [(chunk.began_ms, chunk.size) for chunk in self._chunks]

    @property
    def has_evicted(self) -> bool:
        """Whether the oldest messages are not at hand."""
        return bool(self._evicted)

    def is_older_than(self, time_ms: int) -> bool:
        """Whether the oldest part has no message taken in after `time_ms`."""
        parts = self._parts
        oldest = next(parts, None)
        if oldest is None:
            return False
        following = next(parts, None)
        ended_ms = oldest.began_ms + _CHUNK_MS if following is None else following.began_ms
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
                chunk.end_at(number, envelope.published_ms + envelope.ttl_seconds * 1_000)
            elif envelope.ttl_seconds is not None:
                self._for_connected.add(message.offset)
            if envelope.collapse_key is not None:
                self._collapse(chunk, message, envelope.collapse_key)
        self.size += chunk.size - before

    def settled(self, offset: int) -> None:
        """Note the outcome of a message with a TTL of 0: the message is due no more."""
        self._for_connected.discard(offset)
        self._end_due(offset)

    def of(
        self,
        user: str,
        device: str | None,
        since: int,
        until: int,
        now_ms: int,
        *,
        read: Mapping[int, Envelope | None],
    ) -> Iterator[Kept]:
        """Yield due messages of a user, and of the user's `device`, in order.

        From offset `since` to before `until`; `now_ms` is Unix time, for TTLs. `read` has evicted
        messages that were read again, by offset, and None for a message that Kafka has no more.
        """
        for offset in self.evicted(user, since, until):
            if offset not in read:
                yield Kept(offset, Absence.UNREAD)
            elif (envelope := read[offset]) is None:
                yield Kept(offset, Absence.GONE)
            elif self._is_due(envelope, offset, user, device, now_ms):
                yield Kept(offset, _encode(envelope.push))
        for chunk in list(self._chunks):
            if chunk.end > since:
                yield from chunk.of(user, device, since, until, now_ms)

    def evicted(self, user: str, since: int, until: int) -> list[int]:
        """Return the offsets of evicted messages that may be due to a user, in order.

        From `since` to before `until`. Devices and TTLs are seen only when the messages are read.
        """
        user_hash = hash(user)
        found: list[int] = []
        for index in self._evicted:
            if index.end > since:
                found += index.of(user_hash, since, until)
        return found

    def evict(self, chunks: int) -> None:
        """Evict the messages of the oldest chunks: their index stays."""
        if not chunks:
            return
        evicted = [self._pop_chunk() for _ in range(chunks)]
        users, places = Entries[str](), Entries[Place]()
        for chunk in evicted:
            chunk.add_users(users)
            places.extend(chunk.places.keys, chunk.places.offsets)
        began_ms, end = evicted[0].began_ms, evicted[-1].end
        index = Index.made(users, places, began_ms=began_ms, end=end)
        # No smaller part is joined to a larger one: each message is moved a few times at most.
        while (
            self._evicted
            and len(self._evicted[-1]) <= len(index) <= _JOINED_MESSAGES
            and began_ms - self._evicted[-1].began_ms < _JOINED_MS
        ):
            index = self._evicted.pop().joined(index)
        self._evicted.append(index)

    def end_oldest(self) -> None:
        """End the oldest part of the window: nothing is known of its messages any more."""
        part = self._evicted.popleft() if self._evicted else self._pop_chunk()
        self.floor = self.too_far = part.end

    def precede(self, earlier: Window, end: int) -> None:
        """Keep the messages of an earlier owner too, complete up to before `end`: all are settled.

        Nothing is kept unless this window begins at `end`.
        """
        if self.floor != end:
            return  # the window has begun anew meanwhile
        if self._evicted:
            earlier.evict(len(earlier._chunks))
        for place, offset in earlier._collapsing.items():
            if place in self._collapsing:
                earlier._end_due(offset)
            else:
                self._collapsing[place] = offset
        self._evicted.extendleft(reversed(earlier._evicted))
        self._chunks.extendleft(reversed(earlier._chunks))
        self.size += earlier.size
        self.floor = earlier.floor

    @property
    def _parts(self) -> Iterator[Index | _Chunk]:
        return chain(self._evicted, self._chunks)

    def _pop_chunk(self) -> _Chunk:
        """Remove the oldest chunk."""
        chunk = self._chunks.popleft()
        self.size -= chunk.size
        for place, offset in zip(chunk.places.keys, chunk.places.offsets, strict=True):
            if self._collapsing.get(place) == offset:
                del self._collapsing[place]
        return chunk

    def _collapse(self, chunk: _Chunk, message: Message, key: str) -> None:
        place = (message.push.user, message.push.device, key)
        chunk.places.extend((place,), (message.offset,))
        chunk.size += _COLLAPSING_BYTES
        older = self._collapsing.get(place)
        self._collapsing[place] = message.offset
        if older is not None:
            self._end_due(older)

    def _end_due(self, offset: int) -> None:
        for chunk in reversed(self._chunks):
            if (number := chunk.number_at(offset)) != _NONE:
                chunk.end_due(number)
                return

    def _is_due(
        self, envelope: Envelope, offset: int, user: str, device: str | None, now_ms: int
    ) -> bool:
        """Whether a message that was read again is due to a user and device."""
        push = envelope.push
        if push.user != user or push.device not in (None, device) or envelope.expired(now_ms):
            return False
        if envelope.ttl_seconds == 0:
            return offset in self._for_connected
        key = envelope.collapse_key
        return key is None or not self._is_replaced((user, push.device, key), offset)

    def _is_replaced(self, place: Place, offset: int) -> bool:
        """Whether a newer message than the evicted one at `offset` has its place."""
        if place in self._collapsing:  # at hand, and so newer
            return True
        place_hash = hash(place)
        return any(
            index.replaces(place_hash, offset) for index in self._evicted if index.end > offset
        )
