"""Marks: how far a partition was settled at times of the registry's clock.

What a record's timestamp says is up to the producer: a look-up by time can skip records. A mark is
this processor's own: what stands before the offset was settled before the time.

A mark has a second offset: what stands before it was settled, or waited (waited.py). A partition's
next owner does not know which users' messages waited, and gets the first offset alone.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from bisect import bisect_right
from typing import Final, NamedTuple

import msgspec

#: How the word begins that has marks in the note of a commit.
_WORD: Final = "marks:"
#: Marks in a word are so far apart at least, and so many at most: some 300 bytes.
_WORD_INTERVAL_MS: Final = 5_000
_MOST_IN_WORD: Final = 40
#: A mark is made so often, where anything was settled.
INTERVAL_MS: Final = 1_000


class Mark(NamedTuple):
    """How far a partition was at a time of the registry's clock, Unix time in milliseconds."""

    time_ms: int
    settled: int  # everything before this offset was settled
    in_hand_from: int  # everything before this offset was settled, or waited


class Marks:
    """The marks of one partition, the newest last; of a time as far back as `keep_ms`."""

    __slots__ = ("_in_hand_from", "_keep_ms", "_offsets", "_times_ms", "_word", "_word_ms")

    def __init__(self, keep_ms: int) -> None:
        self._keep_ms = keep_ms
        self._times_ms: list[int] = []
        self._offsets: list[int] = []
        self._in_hand_from: list[int] = []
        self._word = ""
        self._word_ms = -_WORD_INTERVAL_MS  # the time of the last mark in the word

    def add(self, now_ms: int, offset: int, in_hand_from: int | None = None) -> None:
        """Note that everything before `offset` is settled, and before `in_hand_from`, or waits."""
        times, offsets, in_hand = self._times_ms, self._offsets, self._in_hand_from
        if times and now_ms - times[-1] < INTERVAL_MS:
            return
        if offsets and offset < offsets[-1]:  # the topic was made anew: its offsets began again
            times.clear()
            offsets.clear()
            in_hand.clear()
        times.append(now_ms)
        offsets.append(offset)
        in_hand.append(offset if in_hand_from is None else in_hand_from)
        # One mark at or before the bound stays: it answers for the times behind it.
        old = bisect_right(times, now_ms - self._keep_ms) - 1
        if old > 0:
            del times[:old], offsets[:old], in_hand[:old]

    def coarsen(self) -> None:
        """Forget what waited: the partition was taken away, with its unsettled messages."""
        self._in_hand_from = list(self._offsets)

    def before(self, time_ms: int) -> Mark | None:
        """Return the newest mark at or before a time; None where there is none."""
        at = bisect_right(self._times_ms, time_ms) - 1
        if at < 0:
            return None
        return Mark(self._times_ms[at], self._offsets[at], self._in_hand_from[at])

    @property
    def last(self) -> int | None:
        """The offset of the newest mark; None where there is none."""
        return self._offsets[-1] if self._offsets else None

    @property
    def word(self) -> str:
        """The marks as a word for the note of a commit: the partition's next owner reads them."""
        times = self._times_ms
        if times and times[-1] - self._word_ms >= _WORD_INTERVAL_MS:
            self._word, self._word_ms = self._written(), times[-1]
        return self._word

    def read(self, note: str) -> None:
        """Take the marks in the note of a commit, of an earlier owner; none in another's note."""
        word = next((word for word in note.split(" ") if word.startswith(_WORD)), "")
        try:
            data = b64decode(word.removeprefix(_WORD), validate=True)
            numbers = msgspec.msgpack.decode(data, type=list[int]) if word else []
        except (ValueError, msgspec.MsgspecError):
            return
        time_ms = offset = 0
        for ms, messages in zip(numbers[::2], numbers[1::2], strict=False):
            time_ms, offset = time_ms + ms, offset + messages
            self.add(time_ms, offset)

    def _written(self) -> str:
        """Return base64 of MessagePack: the distances of times and offsets, from mark to mark."""
        numbers: list[int] = []
        last_ms = last_offset = 0
        times = [
            at
            for at, time_ms in enumerate(self._times_ms)
            if not at or time_ms // _WORD_INTERVAL_MS > self._times_ms[at - 1] // _WORD_INTERVAL_MS
        ][-_MOST_IN_WORD:]
        for at in times:
            numbers += (self._times_ms[at] - last_ms, self._offsets[at] - last_offset)
            last_ms, last_offset = self._times_ms[at], self._offsets[at]
        return _WORD + b64encode(msgspec.msgpack.encode(numbers)).decode()
