"""Answers to gateways' questions: what has a user got since a cursor?

A processor answers for the partitions that it owns for certain: a commit or a heartbeat that began
after the question arrived has succeeded (processor/reading/commits.py). A frozen processor
believes to own partitions that a second member has read on meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, NamedTuple, Protocol

import msgspec
import structlog

from processor import metrics
from processor.reading.kafka import TopicPartition
from processor.reading.progress import Progress
from processor.replay.marks import Marks
from processor.replay.read_back import MOST_BYTES, TakeMessages, Unavailable
from processor.replay.waited import Waited
from processor.replay.window import Absence, Window
from processor.replay.windows import Windows
from registry.message import Envelope
from registry.resume import (
    MAX_QUESTION_BYTES,
    MAX_QUESTION_MESSAGES,
    MAX_REPLAYED_BYTES,
    SLACK_MS,
    Answer,
    Ask,
    Question,
    Replay,
)

#: How long an answer waits for what is read back.
_READ_SECONDS: Final = 1.0
#: A window that began too late reaches so far back at most, with what is read back: 120 s at 10,000
#: messages a second. A forged cursor costs no more than that, once.
MOST_OFFSETS: Final = 1_200_000
#: So much is read back at once: some 1.5 s of CPU.
_OFFSETS_AT_ONCE: Final = 200_000
#: Questions that are answered in a turn of the event loop: some 3 ms.
_QUESTIONS_A_TURN: Final = 20
#: The most evicted messages that are read again for an ask: each question has its share.
MOST_SCATTERED: Final = 10_000

#: Evicted messages that were read again, by partition and offset; None for a message that Kafka has
#: no more.
Scattered = Mapping[TopicPartition, Mapping[int, Envelope | None]]

log = structlog.get_logger("processor.resume")


class Owner(Protocol):
    """The member of the group, as seen from here."""

    async def prove(self, *, lone: bool = False) -> dict[TopicPartition, int]:
        """Return the partitions that were this member's for certain when `prove` was called.

        Each with the offset before which everything was taken in, now. `lone`: for one client.
        """

    def partition_counts(self) -> dict[str, int]:
        """Return how many partitions the topics have."""

    def log_end(self, partition: TopicPartition) -> int | None:
        """Return the offset behind a partition's last record; None where that is not known."""


class ReadsBack(Protocol):
    """Kafka, as seen from here."""

    async def earlier(
        self, partition: TopicPartition, start: int, end: int, take: TakeMessages
    ) -> int:
        """Give `take` the messages of a part of the log, or raise Unavailable.

        Return from which offset on these are all messages: later than `start` after retention.
        """

    async def scattered(
        self, partition: TopicPartition, offsets: Sequence[int], *, most_bytes: int
    ) -> Mapping[int, Envelope | None]:
        """Return the first of the messages at some offsets, or raise Unavailable."""


class _Since(NamedTuple):
    """From which offset on a client may have missed messages; None where nobody knows."""

    offset: int | None
    is_void: bool  # the client's position is of an earlier topic of the name


#: By partition: from where on the client of each question may have missed messages.
Starts = Mapping[TopicPartition, Sequence[_Since]]

#: Has nobody remember where the users are: they are where the question comes from.
ForgetUsers = Callable[[Iterable[str]], None]


class Answers:
    """Answers asks, each for many users."""

    def __init__(
        self,
        name: str,
        owner: Owner,
        windows: Windows,
        forget: ForgetUsers,
        reader: ReadsBack,
        *,
        keep_seconds: float,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1_000),
    ) -> None:
        """`name` is this processor's. Marks are kept for `keep_seconds`; TTLs are by `now_ms`."""
        self._name = name
        self._owner = owner
        self._windows = windows
        self._forget = forget
        self._reader = reader
        self._reading = asyncio.Lock()  # one partition at a time
        self._reads: dict[TopicPartition, asyncio.Task[None]] = {}  # under way, or about to be
        self._keep_ms = int(keep_seconds * 1_000) + SLACK_MS
        self._now_ms = now_ms
        self._marks: dict[TopicPartition, Marks] = {}
        self._waited = Waited(self._keep_ms)

    def begin(self, commits: Mapping[TopicPartition, tuple[int, str]]) -> None:
        """Begin with assigned partitions: the offset that is taken in next, and a commit's note.

        The note has the marks of the partition's earlier owner.
        """
        earlier, self._marks = self._marks, {}
        for partition, (start, note) in commits.items():
            marks = earlier.get(partition)
            # True for ever, whoever had the partition meanwhile; but not of a topic made anew.
            is_of_topic = marks is not None and marks.last is not None and 0 < marks.last <= start
            self._marks[partition] = marks if marks and is_of_topic else Marks(self._keep_ms)
            self._marks[partition].coarsen()
            if not start:  # nothing was ever settled in front of it
                self._marks[partition].add(0, 0)
            self._marks[partition].read(note)

    def note(self, partition: TopicPartition) -> str:
        """Return the marks of a partition for its next owner."""
        marks = self._marks.get(partition)
        return "" if marks is None else marks.word

    def mark(
        self, time_ms: int, partitions: Iterable[Progress], *, waiting: Iterable[str] = ()
    ) -> None:
        """Note how far partitions are settled at a time of the registry's clock.

        `waiting` are the users whose messages wait.
        """
        self._waited.note(time_ms, waiting)
        for progress in partitions:
            marks = self._marks.get(progress.partition)
            if marks is not None and progress.committable is not None:
                marks.add(time_ms, progress.committable, progress.in_hand_from)

    async def answer(self, ask: Ask) -> Answer:
        """Answer the questions of a gateway, for the partitions that are this processor's."""
        metrics.QUESTIONS.inc(len(ask.questions))
        self._forget(question.user for question in ask.questions)
        proved = await self._owner.prove(lone=len(ask.questions) == 1)
        # Where the log ends is known from the first fetch on: before it, nobody can say whether a
        # position is of an earlier topic of the name.
        owned = {each: end for each, end in proved.items() if self._owner.log_end(each) is not None}
        assignment = self._windows.assignment
        starts = self._starts(ask.questions, owned)
        for partition in await self._read_back(starts):
            del owned[partition]  # not now: the gateway asks again
        scattered = await self._read_scattered(ask.questions, starts, owned)
        # Ahead of the answer too: a look-up may have been remembered meanwhile.
        self._forget(question.user for question in ask.questions)
        room = _Room(MAX_REPLAYED_BYTES)
        replays: list[Replay] = []
        for number, question in enumerate(ask.questions):
            if number % _QUESTIONS_A_TURN == _QUESTIONS_A_TURN - 1:
                await asyncio.sleep(0)
            if self._windows.assignment != assignment:  # the proof is of the assignment before
                return Answer(ask.number, self._name, [], self._owner.partition_counts(), [])
            since = [starts[partition][number] for partition in owned]
            replays.append(self._replay(question, owned, since, scattered, room))
        return Answer(
            ask.number,
            self._name,
            [(topic, partition, end) for (topic, partition), end in owned.items()],
            self._owner.partition_counts(),
            replays,
            [(topic, partition) for topic, partition in proved if (topic, partition) not in owned],
        )

    async def _read_back(self, starts: Starts) -> list[TopicPartition]:
        """Fill windows that began too late for the questions, as far as marks reach back.

        Return the partitions that are not filled within _READ_SECONDS: reading goes on, and the
        gateway asks again.
        """
        for partition, task in list(self._reads.items()):
            if task.done():
                del self._reads[partition]
        for partition, since in starts.items():
            start = self._first_missed(partition, since)
            if start is not None and partition not in self._reads:
                self._reads[partition] = asyncio.create_task(self._fill(partition, start))
        if reading := [task for partition, task in self._reads.items() if partition in starts]:
            await asyncio.wait(reading, timeout=_READ_SECONDS)
        return [
            partition
            for partition, since in starts.items()
            if self._first_missed(partition, since) is not None
        ]

    async def _fill(self, partition: TopicPartition, start: int) -> None:
        """Read back into a partition's window, unless that fails."""
        async with self._reading:
            window = self._windows.of(partition)
            with suppress(Unavailable):  # the gateway asks again
                while window.too_far < start < window.floor:
                    await self._read_earlier(
                        partition, window, max(start, window.floor - _OFFSETS_AT_ONCE)
                    )
                    if self._windows.of(partition) is not window:
                        return

    async def _read_earlier(self, partition: TopicPartition, window: Window, start: int) -> None:
        """Read what was in front of a window, from `start` on, and let the window begin there.

        Raises:
            Unavailable: Kafka can't be read now.
        """
        end = window.floor
        earlier = Window(start)
        take = partial(self._windows.take_earlier, partition, earlier)
        first = await self._reader.earlier(partition, start, end, take)
        earlier.floor = first
        window.precede(earlier, end)
        if window.floor == first > start:  # retention took what was in front
            window.too_far = first - 1

    async def _read_scattered(
        self, questions: Sequence[Question], starts: Starts, owned: dict[TopicPartition, int]
    ) -> Scattered:
        """Read evicted messages again that questions need: for each question the first ones.

        Partitions that can't be read now are taken out of `owned`: the gateway asks again.
        """
        scattered: dict[TopicPartition, Mapping[int, Envelope | None]] = {}
        room = MOST_BYTES
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _READ_SECONDS
        for partition, offsets in (await self._evicted(questions, starts, owned)).items():
            if room <= 0 or loop.time() > deadline:
                break  # the answer is cut there, and the gateway asks for the rest
            try:
                found = await self._reader.scattered(partition, offsets, most_bytes=room)
            except Unavailable:
                del owned[partition]
            else:
                scattered[partition] = found
                room -= sum(len(each.push.data) for each in found.values() if each is not None)
        return scattered

    async def _evicted(
        self, questions: Sequence[Question], starts: Starts, owned: Mapping[TopicPartition, int]
    ) -> dict[TopicPartition, Sequence[int]]:
        """Return the offsets of evicted messages that questions need, in order."""
        windows = {partition: self._windows.of(partition) for partition in owned}
        windows = {each: window for each, window in windows.items() if window.has_evicted}
        offsets: dict[TopicPartition, set[int]] = {}
        most = min(MAX_QUESTION_MESSAGES, MOST_SCATTERED // max(1, len(questions)))
        for number, question in enumerate(questions if windows else ()):
            if number % _QUESTIONS_A_TURN == _QUESTIONS_A_TURN - 1:
                await asyncio.sleep(0)
            for partition, window in windows.items():
                since = starts[partition][number].offset
                evicted = window.evicted(question.user, since or 0, owned[partition])
                if evicted:
                    offsets.setdefault(partition, set()).update(evicted[:most])
        return {partition: sorted(found) for partition, found in offsets.items()}

    def close(self) -> None:
        """Read nothing back any more."""
        for task in self._reads.values():
            task.cancel()

    def _first_missed(self, partition: TopicPartition, since: Sequence[_Since]) -> int | None:
        """Return the first offset that a question needs, in front of the partition's window.

        None where no question needs one that can be read back.
        """
        window = self._windows.of(partition)
        nearest, floor = max(window.too_far, window.end - MOST_OFFSETS), window.floor
        needed = [each.offset for each in since if each.offset is not None and each.offset < floor]
        return min((offset for offset in needed if nearest < offset), default=None)

    def _replay(
        self,
        question: Question,
        owned: Mapping[TopicPartition, int],
        starts: Sequence[_Since],
        scattered: Scattered,
        room: _Room,
    ) -> Replay:
        """Answer one question, as far as there is room; `starts` are by the number in `owned`."""
        room.begin()
        replay = Replay()
        now_ms = self._now_ms()
        for number, (partition, end) in enumerate(owned.items()):
            window = self._windows.of(partition)
            start, is_void = starts[number]
            if is_void:
                replay.void.append(number)
            is_complete = start is not None and start >= window.floor
            for offset, push in window.of(
                question.user,
                question.device,
                window.floor if start is None else start,
                end,
                now_ms,
                read=scattered.get(partition, {}),
            ):
                if push is Absence.GONE:
                    is_complete = False
                elif push is Absence.UNREAD or not room.take(len(push)):
                    replay.cut[number] = offset
                    break
                else:
                    replay.messages.append(msgspec.Raw(push))
            if not is_complete:
                replay.incomplete.append(number)
        return replay

    def _starts(
        self, questions: Sequence[Question], partitions: Iterable[TopicPartition]
    ) -> Starts:
        """Return from which offset on the client of each question may have missed messages."""
        positions = [
            {(topic, partition): offset for topic, partition, offset in question.positions}
            for question in questions
        ]
        starts: dict[TopicPartition, list[_Since]] = {}
        for partition in partitions:
            end = self._owner.log_end(partition)
            starts[partition] = [
                _since(at.get(partition), self._settled_for(question, partition), end)
                for question, at in zip(questions, positions, strict=True)
            ]
        return starts

    def _settled_for(self, question: Question, partition: TopicPartition) -> int | None:
        """Return the offset before which the user's messages were settled at the cursor's time.

        None without a mark that old.
        """
        marks = self._marks.get(partition)
        mark = None if marks is None else marks.before(question.as_of_ms - SLACK_MS)
        if mark is None:
            return None
        has_waited = self._waited.since(question.user, mark.time_ms)
        return mark.settled if has_waited else mark.in_hand_from


def _since(position: int | None, marked: int | None, end: int | None) -> _Since:
    """Return from which offset on a client with a position, or none, may have missed messages.

    `marked`: what is in front of it was settled at the cursor's time. The log ends in front of
    `end`.
    """
    # Beyond the end: the topic was deleted and made anew, and its offsets began again.
    if marked is not None and end is not None and marked > end:
        marked = None
    if position is None:
        return _Since(marked, is_void=False)
    if end is not None and position >= end:
        return _Since(None, is_void=True)
    # What was settled before the cursor's time the client has too.
    return _Since(max(position + 1, marked or 0), is_void=False)


class _Room:
    """What an answer has room for: in all, and for one question."""

    def __init__(self, most_bytes: int) -> None:
        self._all = most_bytes
        self._bytes = self._messages = 0

    def begin(self) -> None:
        """Begin with a question."""
        self._bytes, self._messages = MAX_QUESTION_BYTES, MAX_QUESTION_MESSAGES

    def take(self, size: int) -> bool:
        """Whether there is room for a message of so many bytes; a question's first always fits.

        As long as there is room in all.
        """
        is_first = self._messages == MAX_QUESTION_MESSAGES
        if self._all <= 0 or not self._messages or (size > self._bytes and not is_first):
            return False
        self._messages -= 1
        self._bytes -= size
        self._all -= size
        return True
