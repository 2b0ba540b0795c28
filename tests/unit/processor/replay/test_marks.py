"""Marks: up to which offset a partition was settled at a time, also for its next owner."""

from __future__ import annotations

import random

import pytest

from processor.reading.commits import MAX_WORD_BYTES
from processor.replay.marks import INTERVAL_MS, Marks

KEEP_MS = 125_000
NOW_MS = 1_764_360_000_000


@pytest.fixture
def marks() -> Marks:
    return Marks(KEEP_MS)


def before(marks: Marks, time_ms: int) -> int | None:
    """Return up to where all was settled at a time."""
    mark = marks.before(time_ms)
    return None if mark is None else mark.settled


def read(note: str) -> Marks:
    """Give marks that were read from the note of a commit."""
    marks = Marks(KEEP_MS)
    marks.read(note)
    return marks


def test_without_a_mark_nobody_knows(marks: Marks) -> None:
    assert before(marks, NOW_MS) is None
    marks.add(NOW_MS, 7)
    assert before(marks, NOW_MS - 1) is None


def test_the_newest_mark_at_or_before_a_time_counts(marks: Marks) -> None:
    for second, offset in ((0, 10), (1, 10), (2, 15), (4, 40)):
        marks.add(NOW_MS + second * 1_000, offset)
    assert [before(marks, NOW_MS + ms) for ms in (0, 1_999, 2_000, 3_999, 4_000, 9_999)] == [
        10,
        10,
        15,
        15,
        40,
        40,
    ]


def test_marks_are_an_interval_apart(marks: Marks) -> None:
    marks.add(NOW_MS, 1)
    marks.add(NOW_MS + INTERVAL_MS - 1, 9)
    assert before(marks, NOW_MS + INTERVAL_MS) == 1


def test_a_mark_never_says_more_than_was_settled_then(marks: Marks) -> None:
    """Whatever marks are made, the answer for a time is no offset that was settled later."""
    draw = random.Random(11)
    settled: list[tuple[int, int]] = []
    time_ms, offset = NOW_MS, 0
    for _ in range(2_000):
        time_ms += draw.randrange(900)
        offset += draw.randrange(50)
        settled.append((time_ms, offset))
        marks.add(time_ms, offset)
        asked_ms = time_ms - draw.randrange(KEEP_MS)
        told = before(marks, asked_ms)
        truth = max((at for ms, at in settled if ms <= asked_ms), default=0)
        assert told is None or told <= truth


def test_marks_reach_back_as_far_as_they_are_kept_and_no_further(marks: Marks) -> None:
    for second in range(1_000):
        marks.add(NOW_MS + second * 1_000, second)
    last_ms = NOW_MS + 999_000
    assert before(marks, last_ms - KEEP_MS) == 999 - 125
    assert before(marks, last_ms - KEEP_MS - 2_000) is None


def test_a_mark_says_what_waited_too(marks: Marks) -> None:
    marks.add(NOW_MS, 5, 90)
    marks.add(NOW_MS + 1_000, 6)
    assert marks.before(NOW_MS) == (NOW_MS, 5, 90)
    assert marks.before(NOW_MS + 1_500) == (NOW_MS + 1_000, 6, 6)
    marks.coarsen()
    assert marks.before(NOW_MS) == (NOW_MS, 5, 5)


def test_the_next_owner_hears_nothing_of_what_waited(marks: Marks) -> None:
    """It does not know whose messages these were."""
    marks.add(NOW_MS, 5, 90)
    assert read(marks.word).before(NOW_MS) == (NOW_MS, 5, 5)


# In the note of a commit


def test_the_next_owner_knows_what_the_last_one_knew_to_within_seconds(marks: Marks) -> None:
    for second in range(200):
        marks.add(NOW_MS + second * 1_000, second * 7)
    heir = read(f"missing:other {marks.word} settled:abc")
    last_ms = NOW_MS + 199_000
    for ago_ms in range(6_000, KEEP_MS - 6_000, 1_000):
        told, known = before(heir, last_ms - ago_ms), before(marks, last_ms - ago_ms)
        assert told is not None
        assert known is not None
        assert known - 7 * 6 <= told <= known, "never more than was settled"


def test_the_word_fits_the_note_however_busy_the_partition(marks: Marks) -> None:
    draw = random.Random(3)
    time_ms, offset = NOW_MS, 2**62
    for _ in range(3_000):
        time_ms += draw.choice((1_000, 1_400, 30_000))
        offset += draw.randrange(2**40)
        marks.add(time_ms, offset)
        assert len(marks.word) <= MAX_WORD_BYTES
        assert " " not in marks.word
    assert before(read(marks.word), time_ms) is not None


def test_the_word_follows_the_marks(marks: Marks) -> None:
    assert marks.word == "" or before(read(marks.word), NOW_MS) is None
    for second in (0, 10, 20):
        marks.add(NOW_MS + second * 1_000, second)
        assert before(read(marks.word), NOW_MS + 60_000) == second


@pytest.mark.parametrize(
    "note",
    [
        "",
        "marks:",
        "marks:%%%",
        "marks:é",
        "marks:AA",
        "marks:" + "A" * 4_000,
        "marks:wA==",  # nil
        "marks:oWE=",  # text
        "marks:kqFhoWI=",  # an array of texts
        "marks:kQc=",  # half a mark
        "missing:push settled:kgEB",
        "other words",
    ],
)
def test_a_note_without_marks_gives_none(note: str) -> None:
    assert before(read(note), 2**60) is None


def test_a_note_adds_to_nothing_that_is_newer(marks: Marks) -> None:
    earlier = Marks(KEEP_MS)
    earlier.add(NOW_MS, 5)
    marks.add(NOW_MS + 60_000, 90)
    marks.read(earlier.word)
    assert before(marks, NOW_MS + 60_000) == 90


def test_offsets_that_begin_again_begin_the_marks_again(marks: Marks) -> None:
    marks.add(NOW_MS, 5_000)
    marks.add(NOW_MS + 2_000, 3)  # the topic was made anew
    assert before(marks, NOW_MS + 1_000) is None
    assert before(marks, NOW_MS + 2_000) == 3
