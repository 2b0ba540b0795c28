"""Answers to gateways' questions: what has a user got since a cursor?

A processor answers for the partitions that it owns for certain: a commit that began after the
question arrived has succeeded. A processor that was frozen believes that it owns what another
member has read far beyond.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

import msgspec
import structlog

from processor import metrics
from processor.reading.kafka import TopicPartition
from processor.replay.marks import Marks
from processor.replay.read_back import ReadBack, Unreadable
from processor.replay.windows import Windows
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
#: The most offsets of a partition that are read back: some 0.7 s.
MOST_OFFSETS: Final = 300_000
#: How many questions are answered in one turn of the event loop.
_QUESTIONS_A_TURN: Final = 50

log = structlog.get_logger("processor.resume")


class Owner(Protocol):
    """The member of the group, as seen from here."""

    async def prove(self) -> dict[TopicPartition, int]:
        """Return the partitions that were this member's for certain when `prove` was called.

        Each with the offset before which everything was taken in, now.
        """

    def partition_counts(self) -> dict[str, int]:
        """Return how many partitions the topics have."""

    def log_end(self, partition: TopicPartition) -> int | None:
        """Return the offset behind a partition's last record; None where that is not known."""


class ReadsBack(Protocol):
    """Kafka, as seen from here."""

    async def read(self, partition: TopicPartition, start: int, end: int) -> ReadBack | None:
        """Return messages of the log; None where they can't be read now."""


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
            if not start:  # nothing was ever settled in front of it
                self._marks[partition].add(0, 0)
            self._marks[partition].read(note)

    def note(self, partition: TopicPartition) -> str:
        """Return the marks of a partition for its next owner."""
        marks = self._marks.get(partition)
        return "" if marks is None else marks.word

    def mark(self, time_ms: int, committable: Mapping[TopicPartition, int]) -> None:
        """Note how far partitions are settled at a time of the registry's clock."""
        for partition, offset in committable.items():
            marks = self._marks.get(partition)
            if marks is not None:
                marks.add(time_ms, offset)

    async def answer(self, ask: Ask) -> Answer:
        """Answer the questions of a gateway, for the partitions that are this processor's."""
        metrics.QUESTIONS.inc(len(ask.questions))
        self._forget(question.user for question in ask.questions)
        proved = await self._owner.prove()
        # Where the log ends is known from the first fetch on: before it, nobody can say whether a
        # position is of an earlier topic of the name.
        owned = {each: end for each, end in proved.items() if self._owner.log_end(each) is not None}
        assignment = self._windows.assignment
        for partition in await self._read_back(ask.questions, owned):
            del owned[partition]  # not now: the gateway asks again
        # Ahead of the answer too: a look-up may have been remembered meanwhile.
        self._forget(question.user for question in ask.questions)
        room = _Room(MAX_REPLAYED_BYTES)
        replays: list[Replay] = []
        for number, question in enumerate(ask.questions):
            if number % _QUESTIONS_A_TURN == _QUESTIONS_A_TURN - 1:
                await asyncio.sleep(0)
            if self._windows.assignment != assignment:  # the proof is of the assignment before
                return Answer(ask.number, self._name, [], self._owner.partition_counts(), [])
            replays.append(self._replay(question, owned, room))
        return Answer(
            ask.number,
            self._name,
            [(topic, partition, end) for (topic, partition), end in owned.items()],
            self._owner.partition_counts(),
            replays,
            [(topic, partition) for topic, partition in proved if (topic, partition) not in owned],
        )

    async def _read_back(
        self, questions: Sequence[Question], owned: Mapping[TopicPartition, int]
    ) -> list[TopicPartition]:
        """Fill windows that began too late for the questions, as far as marks reach back.

        Return the partitions that are not filled within _READ_SECONDS: reading goes on, and the
        gateway asks again.
        """
        positions = [
            {(topic, number): at for topic, number, at in question.positions}
            for question in questions
        ]
        for partition, task in list(self._reads.items()):
            if task.done():
                del self._reads[partition]
        for partition in owned:
            start = self._first_missed(partition, questions, positions)
            if start is not None and partition not in self._reads:
                self._reads[partition] = asyncio.create_task(self._fill(partition, start))
        if reading := [task for partition, task in self._reads.items() if partition in owned]:
            await asyncio.wait(reading, timeout=_READ_SECONDS)
        return [
            partition
            for partition in owned
            if self._first_missed(partition, questions, positions) is not None
        ]

    async def _fill(self, partition: TopicPartition, start: int) -> None:
        """Read back into a partition's window, unless that fails."""
        async with self._reading:
            window = self._windows.of(partition)
            end = window.floor
            if start >= end:
                return
            try:
                back = await self._reader.read(partition, start, end)
            except Unreadable as error:
                log.warning("not read back; clients are told of a gap", reason=str(error))
                window.too_far = start
            else:
                if back is not None:
                    self._windows.fill(partition, back.start, end, back.messages)
                    if back.start > start:  # retention took what was in front
                        window.too_far = back.start - 1

    def close(self) -> None:
        """Read nothing back any more."""
        for task in self._reads.values():
            task.cancel()

    def _first_missed(
        self,
        partition: TopicPartition,
        questions: Sequence[Question],
        positions: Sequence[Mapping[tuple[str, int], int]],
    ) -> int | None:
        """Return the first offset that a question needs, in front of the partition's window.

        None where no question needs one that can be read back. `positions` are those of the
        questions, by partition.
        """
        window = self._windows.of(partition)
        nearest = max(window.too_far, window.floor - MOST_OFFSETS)
        needed = [
            since
            for question, at in zip(questions, positions, strict=True)
            if (since := self._since(partition, at.get(partition), question.as_of_ms).offset)
            is not None
            and nearest < since < window.floor
        ]
        return min(needed, default=None)

    def _replay(
        self, question: Question, owned: Mapping[TopicPartition, int], room: _Room
    ) -> Replay:
        """Answer one question, as far as there is room."""
        positions = {(topic, partition): at for topic, partition, at in question.positions}
        room.begin()
        replay = Replay()
        now_ms = self._now_ms()
        for number, (partition, end) in enumerate(owned.items()):
            window = self._windows.of(partition)
            since = self._since(partition, positions.get(partition), question.as_of_ms)
            if since.is_void:
                replay.void.append(number)
            start = since.offset
            if start is None or start < window.floor:
                replay.incomplete.append(number)
                start = window.floor
            for offset, push in window.of(question.user, question.device, start, end, now_ms):
                if not room.take(len(push)):
                    replay.cut[number] = offset
                    break
                replay.messages.append(msgspec.Raw(push))
        return replay

    def _since(self, partition: TopicPartition, position: int | None, as_of_ms: int) -> _Since:
        """Return from which offset on a client may have missed messages."""
        marks = self._marks.get(partition)
        mark = None if marks is None else marks.before(as_of_ms - SLACK_MS)
        end = self._owner.log_end(partition)
        # Beyond the end: the topic was deleted and made anew, and its offsets began again.
        if mark is not None and end is not None and mark > end:
            mark = None
        if position is None:
            return _Since(mark, is_void=False)
        if end is not None and position >= end:
            return _Since(None, is_void=True)
        # What was settled before the cursor's time the client has too.
        return _Since(max(position + 1, mark or 0), is_void=False)


class _Since(NamedTuple):
    """From which offset on a client may have missed messages; None where nobody knows."""

    offset: int | None
    is_void: bool  # the client's position is of an earlier topic of the name


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
