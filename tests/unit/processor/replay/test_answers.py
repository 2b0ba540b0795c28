"""Answers: from which offset on, up to which, for whom, and for which partitions at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import pytest

from processor.reading.kafka import TopicPartition
from processor.reading.message import Message
from processor.reading.progress import Progress
from processor.replay import answers as module
from processor.replay.answers import Answers
from processor.replay.read_back import TakeMessages, Unavailable
from processor.replay.windows import Windows
from registry.message import Envelope
from registry.resume import (
    MAX_ANSWER_BYTES,
    MAX_QUESTION_MESSAGES,
    SLACK_MS,
    Answer,
    Ask,
    Position,
    Question,
    Replay,
    encode,
    push_in,
    word_in,
)
from tests.unit.processor.replay.taken_in import NOW_MS, P0, P1, Partition

pytestmark = pytest.mark.anyio

#: The time of the cursors of these tests, by the registry's clock.
LEFT_MS = 1_000_000


class FakeOwner:
    """A member of the group; it owns what a test says, up to where the test has taken in."""

    def __init__(self) -> None:
        self.owned: dict[TopicPartition, int] = {}
        self.log_ends: dict[TopicPartition, int | None] = {}
        self.proofs = 0
        self.on_prove: Callable[[], object] = lambda: None

    async def prove(self, *, lone: bool = False) -> dict[TopicPartition, int]:
        self.proofs += 1
        await asyncio.sleep(0)
        self.on_prove()
        return dict(self.owned)

    def partition_counts(self) -> dict[str, int]:
        return {"push": 2}

    def log_end(self, partition: TopicPartition) -> int | None:
        return self.log_ends.get(partition, 1_000_000)


class FakeLog:
    """The log in Kafka, for what is read again."""

    def __init__(self) -> None:
        self.messages: dict[TopicPartition, list[Message]] = {}
        self.begins = 0  # retention took what is in front
        self.reads: list[tuple[TopicPartition, int, int]] = []
        self.scattered_reads: list[tuple[TopicPartition, list[int]]] = []
        self.away: set[TopicPartition] = set()
        self.on_read: Callable[[], object] = lambda: None
        self.most = 10**6  # scattered messages at once

    async def earlier(
        self, partition: TopicPartition, start: int, end: int, take: TakeMessages
    ) -> int:
        self.reads.append((partition, start, end))
        await self._reach(partition)
        first = max(start, self.begins)
        found = [m for m in self.messages.get(partition, ()) if first <= m.offset < end]
        for message in found:
            take([message])
        take([])
        return first

    async def scattered(
        self, partition: TopicPartition, offsets: Sequence[int], *, most_bytes: int
    ) -> dict[int, Envelope | None]:
        self.scattered_reads.append((partition, list(offsets)))
        await self._reach(partition)
        kept = {m.offset: m.envelope for m in self.messages[partition] if m.offset >= self.begins}
        found: dict[int, Envelope | None] = {}
        for offset in offsets[: self.most]:
            found[offset] = envelope = kept.get(offset)
            most_bytes -= 0 if envelope is None else len(envelope.push.data)
            if most_bytes <= 0:
                break
        return found

    async def _reach(self, partition: TopicPartition) -> None:
        await asyncio.sleep(0)
        self.on_read()
        if partition in self.away:
            raise Unavailable("Kafka is away")


class Rig:
    """A processor's answers over two partitions."""

    def __init__(self, *, most_bytes: int = 64 * 1024 * 1024) -> None:
        self.owner, self.log = FakeOwner(), FakeLog()
        self.windows = Windows(seconds=125.0, most_bytes=most_bytes)
        self.forgotten: list[str] = []
        self.answers = Answers(
            "p1",
            self.owner,
            self.windows,
            self.forgotten.extend,
            self.log,
            keep_seconds=120.0,
            now_ms=lambda: NOW_MS,
        )
        self.partitions = {P0: Partition(0), P1: Partition(1)}

    def assign(self, starts: Mapping[TopicPartition, int], *, note: str = "") -> None:
        self.windows.begin(starts)
        self.answers.begin({each: (start, note) for each, start in starts.items()})
        self.owner.owned = dict(starts)

    def take(self, *messages: Message) -> None:
        partition = messages[0].progress.partition
        self.windows.take(partition, messages)
        self.owner.owned[partition] = messages[-1].offset + 1

    def take_in(self, *offsets: int, partition: TopicPartition = P0, user: str = "alice") -> None:
        self.take(*self.partitions[partition].messages(*offsets, user=user))

    def mark(
        self, time_ms: int, settled: int, *, in_hand_from: int | None = None, waiting: str = ""
    ) -> None:
        """Let a mark be made of the first partition; `waiting` has a message at `settled`."""
        progress = Progress(P0, lane=0)
        if in_hand_from is not None:
            progress.begin(settled, size=1, timestamp_ms=NOW_MS)
            progress.wait(settled, size=1, timestamp_ms=NOW_MS, number=0)
        progress.follow(settled if in_hand_from is None else in_hand_from)
        self.answers.mark(time_ms, [progress], waiting=[waiting] if waiting else [])

    def evict(self, *messages: Message) -> None:
        """Take messages in, and let them be evicted."""
        self.take(*messages)
        self.log.messages.setdefault(messages[0].progress.partition, []).extend(messages)
        window = self.windows.of(messages[0].progress.partition)
        window.evict(len(window.at_hand))

    def evict_at(self, *offsets: int, partition: TopicPartition = P0, user: str = "alice") -> None:
        self.evict(*self.partitions[partition].messages(*offsets, user=user))

    async def ask(self, *questions: Question) -> Answer:
        return await self.answers.answer(Ask(7, list(questions)))

    async def ask_one(self, *positions: Position, as_of_ms: int = LEFT_MS) -> Replay:
        """Ask for alice; give the replay."""
        answer = await self.ask(question(*positions, as_of_ms=as_of_ms))
        (replay,) = answer.replays
        return replay


@pytest.fixture
def rig() -> Rig:
    rig = Rig()
    rig.assign({P0: 0})
    return rig


def question(
    *positions: Position, user: str = "alice", device: str | None = None, as_of_ms: int = LEFT_MS
) -> Question:
    return Question(user, device, as_of_ms, list(positions))


def places(replay: Replay) -> list[str]:
    return [str(push_in(message).position) for message in replay.messages]


def offsets(replay: Replay) -> list[int]:
    return [int(place.rpartition("-")[2]) for place in places(replay)]


# From where on


async def test_a_client_with_a_position_gets_what_came_after_it(rig: Rig) -> None:
    rig.take_in(*range(6))
    replay = await rig.ask_one(("push", 0, 3))
    assert (offsets(replay), replay.incomplete, replay.cut, replay.void) == ([4, 5], [], {}, [])


async def test_a_client_without_a_position_gets_what_was_not_settled_when_it_left(
    rig: Rig,
) -> None:
    rig.take_in(*range(6))
    rig.mark(LEFT_MS - SLACK_MS, 2)
    rig.mark(LEFT_MS, 5)
    replay = await rig.ask_one()
    assert (offsets(replay), replay.incomplete) == ([2, 3, 4, 5], [])


async def test_what_was_settled_before_a_client_left_counts_beside_its_position(rig: Rig) -> None:
    """Its last message is out of the window, and all that came since was for others."""
    rig.assign({P0: 50})
    rig.take_in(*range(50, 60))
    rig.mark(LEFT_MS - SLACK_MS, 55)
    replay = await rig.ask_one(("push", 0, 20))
    assert (offsets(replay), replay.incomplete) == ([55, 56, 57, 58, 59], [])
    assert rig.log.reads == []


async def test_a_message_that_waits_holds_back_its_own_users_mark_and_no_others(
    rig: Rig,
) -> None:
    """Else clients would be asked for from minutes ago, or told of a gap where none is."""
    for offset in range(8):
        rig.take_in(offset, user="bob" if offset % 2 else "alice")
    rig.mark(LEFT_MS - SLACK_MS, 2, in_hand_from=6, waiting="alice")
    answer = await rig.ask(question(user="alice"), question(user="bob"))
    assert [offsets(replay) for replay in answer.replays] == [[2, 4, 6], [7]]
    rig.windows.of(P0).end_oldest()
    rig.take_in(8, 9, user="carol")
    rig.mark(LEFT_MS, 2, in_hand_from=8, waiting="alice")
    users = ("alice", "carol")
    answer = await rig.ask(*(question(user=u, as_of_ms=LEFT_MS + SLACK_MS) for u in users))
    assert [offsets(replay) for replay in answer.replays] == [[], [8, 9]]
    assert [replay.incomplete for replay in answer.replays] == [[0], []], "alice's is not at hand"


async def test_a_message_that_waited_then_counts_though_it_is_settled_now(rig: Rig) -> None:
    rig.take_in(*range(8))
    rig.mark(LEFT_MS - SLACK_MS, 2, in_hand_from=6, waiting="alice")
    rig.mark(LEFT_MS, 8)
    assert offsets(await rig.ask_one()) == [*range(2, 8)]


async def test_after_a_rebalance_the_marks_before_hold_for_all_users(rig: Rig) -> None:
    """What waited went with the partition, and nobody here knows until when."""
    rig.take_in(*range(8))
    rig.mark(LEFT_MS - SLACK_MS, 2, in_hand_from=6, waiting="bob")
    assert offsets(await rig.ask_one()) == [6, 7]
    rig.assign({P0: 8})
    assert offsets(await rig.ask_one()) == [*range(2, 8)]


async def test_without_a_mark_that_old_the_answer_is_incomplete() -> None:
    rig = Rig()
    rig.assign({P0: 10})
    rig.take_in(10, 11)
    rig.mark(LEFT_MS + 1, 11)
    replay = await rig.ask_one()
    assert (offsets(replay), replay.incomplete) == ([10, 11], [0])


async def test_of_a_partition_that_began_with_its_topic_everything_is_known(rig: Rig) -> None:
    rig.take_in(0, 1)
    replay = await rig.ask_one()
    assert (offsets(replay), replay.incomplete) == ([0, 1], [])


async def test_a_position_beyond_the_log_is_of_an_earlier_topic_of_the_name(rig: Rig) -> None:
    rig.take_in(0, 1)
    rig.owner.log_ends[P0] = 2
    replay = await rig.ask_one(("push", 0, 2))
    assert (offsets(replay), replay.incomplete, replay.void) == ([0, 1], [0], [0])
    assert (await rig.ask_one(("push", 0, 1))).void == []


async def test_before_the_end_of_the_log_is_known_the_partition_is_left_out(rig: Rig) -> None:
    """Nobody can say then whether the position is of an earlier topic of the name."""
    rig.take_in(0, 1)
    rig.owner.log_ends[P0] = None
    assert (await rig.ask(question(("push", 0, 2)))).owned == []


async def test_a_position_beyond_what_this_owner_has_read_again_is_none_of_an_earlier_topic(
    rig: Rig,
) -> None:
    """The last owner had read further, and had not committed that."""
    rig.take_in(0, 1)
    rig.owner.log_ends[P0] = 900
    replay = await rig.ask_one(("push", 0, 700))
    assert (offsets(replay), replay.incomplete, replay.void) == ([], [], [])


@pytest.mark.parametrize("position", [0, 2**62, 2**63 - 1])
async def test_positions_in_partitions_that_are_none_of_this_processors_mean_nothing(
    rig: Rig, position: int
) -> None:
    rig.take_in(0)
    foreign: list[Position] = [("push", 1, position), ("other", 0, position), ("", -1, position)]
    replay = await rig.ask_one(*foreign)
    assert offsets(replay) == [0]


# For whom, and for which partitions


async def test_each_question_has_its_own_users_messages(rig: Rig) -> None:
    rig.take_in(0, user="alice")
    rig.take_in(1, user="bob")
    rig.take(rig.partitions[P0].message(2, "bob", device="phone"))
    users = (("bob", "phone"), ("carol", None), ("bob", None), ("alice", None))
    answer = await rig.ask(*(question(user=user, device=device) for user, device in users))
    assert [offsets(replay) for replay in answer.replays] == [[1, 2], [], [1], [0]]


async def test_it_answers_for_what_it_owns_up_to_what_it_has_taken_in(rig: Rig) -> None:
    rig.assign({P0: 0, P1: 5})
    rig.take_in(0, 1)
    rig.take_in(5, partition=P1)
    answer = await rig.ask(question(("push", 0, 0), ("push", 1, 4)))
    assert sorted(answer.owned) == [("push", 0, 2), ("push", 1, 6)]
    assert sorted(places(answer.replays[0])) == ["push-0-1", "push-1-5"]
    assert (answer.number, answer.processor, answer.partitions) == (7, "p1", {"push": 2})


async def test_what_is_taken_in_while_ownership_is_proved_is_in_the_answer(rig: Rig) -> None:
    rig.take_in(0)
    rig.owner.on_prove = lambda: rig.take_in(1)
    answer = await rig.ask(question())
    assert answer.owned == [("push", 0, 2)]
    assert offsets(answer.replays[0]) == [0, 1]


async def test_a_member_that_can_prove_nothing_answers_for_nothing(rig: Rig) -> None:
    rig.take_in(0)
    rig.owner.owned = {}
    answer = await rig.ask(question())
    assert (answer.owned, answer.replays) == ([], [Replay()])


async def test_where_the_users_are_is_forgotten_before_and_after_the_proof(rig: Rig) -> None:
    seen: list[list[str]] = []
    rig.owner.on_prove = lambda: seen.append(list(rig.forgotten))
    await rig.ask(question(user="alice"), question(user="bob"))
    assert seen == [["alice", "bob"]]
    assert rig.forgotten == ["alice", "bob"] * 2


# Bounds


async def test_an_answer_to_one_question_has_so_many_messages_and_says_where_it_goes_on(
    rig: Rig,
) -> None:
    rig.take_in(*range(MAX_QUESTION_MESSAGES + 5))
    replay = await rig.ask_one()
    assert offsets(replay) == list(range(MAX_QUESTION_MESSAGES))
    assert replay.cut == {0: MAX_QUESTION_MESSAGES}
    rest = await rig.ask_one(("push", 0, MAX_QUESTION_MESSAGES - 1))
    assert offsets(rest) == list(range(MAX_QUESTION_MESSAGES, MAX_QUESTION_MESSAGES + 5))
    assert rest.cut == {}


async def test_of_long_messages_it_has_fewer_and_one_at_least(rig: Rig) -> None:
    for offset in range(3):
        rig.take(rig.partitions[P0].message(offset, data=b"x" * 400_000))
    replay = await rig.ask_one()
    assert (offsets(replay), replay.cut) == ([0], {0: 1})


async def test_a_partition_behind_one_that_used_the_room_up_is_cut_at_its_first_message(
    rig: Rig,
) -> None:
    rig.assign({P0: 0, P1: 0})
    rig.take_in(*range(MAX_QUESTION_MESSAGES + 1))
    rig.take_in(4, 5, partition=P1)
    replay = await rig.ask_one()
    assert replay.cut == {0: MAX_QUESTION_MESSAGES, 1: 4}


async def test_an_answer_to_many_fits_its_frame_and_brings_some_of_them_further(rig: Rig) -> None:
    users = [f"u{number}" for number in range(500)]
    for offset, user in enumerate(users * 2):
        rig.take(rig.partitions[P0].message(offset, user, data=b"x" * 60_000))
    answer = await rig.ask(*(question(user=user) for user in users))
    assert len(encode(answer)) < MAX_ANSWER_BYTES
    assert word_in(encode(answer)) == answer
    assert any(replay.messages for replay in answer.replays)
    assert all(replay.cut for replay in answer.replays if len(replay.messages) < 2)


# Evicted


async def test_evicted_messages_are_read_again_and_come_before_the_newer_ones(rig: Rig) -> None:
    rig.evict_at(0, 2, 4)
    rig.take_in(5, 6)
    replay = await rig.ask_one(("push", 0, 0))
    assert rig.log.scattered_reads == [(P0, [2, 4])]
    assert (offsets(replay), replay.incomplete, replay.cut) == ([2, 4, 5, 6], [], {})


async def test_nothing_is_read_for_a_user_without_evicted_messages(rig: Rig) -> None:
    rig.evict_at(0, 1)
    rig.evict_at(2, user="bob")
    replay = await rig.ask_one(("push", 0, 1))
    assert (offsets(replay), replay.incomplete) == ([], [])
    assert rig.log.scattered_reads == []


async def test_the_messages_of_many_users_are_read_in_one_go(rig: Rig) -> None:
    rig.assign({P0: 0, P1: 0})
    for offset in range(9):
        rig.evict_at(offset, user=f"u{offset % 3}")
    rig.evict_at(1, partition=P1, user="u0")
    answer = await rig.ask(*(question(user=user) for user in ("u2", "u0", "nobody", "u2")))
    assert rig.log.scattered_reads == [(P0, [0, 2, 3, 5, 6, 8]), (P1, [1])]
    found = [sorted(places(replay)) for replay in answer.replays]
    u2 = ["push-0-2", "push-0-5", "push-0-8"]
    assert found == [u2, ["push-0-0", "push-0-3", "push-0-6", "push-1-1"], [], u2]


async def test_devices_and_ttls_count_for_messages_that_are_read_again(rig: Rig) -> None:
    partition = rig.partitions[P0]
    rig.evict(
        partition.message(0, device="desk"),
        partition.message(1, device="phone"),
        partition.message(2, ttl=1, published_ms=NOW_MS - 2_000),
        partition.message(3),
    )
    answer = await rig.ask(question(device="phone"))
    assert offsets(answer.replays[0]) == [1, 3]


async def test_a_message_that_kafka_has_no_more_is_a_gap_for_its_user_alone(rig: Rig) -> None:
    rig.evict_at(0, 1)
    rig.evict_at(2, user="bob")
    rig.log.begins = 2
    answer = await rig.ask(question(), question(user="bob"), question(user="carol"))
    assert [offsets(replay) for replay in answer.replays] == [[], [2], []]
    assert [replay.incomplete for replay in answer.replays] == [[0], [], []]


async def test_a_partition_whose_messages_cannot_be_read_now_is_left_out(rig: Rig) -> None:
    rig.assign({P0: 0, P1: 0})
    rig.evict_at(0)
    rig.evict_at(3, partition=P1)
    rig.log.away.add(P0)
    answer = await rig.ask(question())
    assert answer.owned == [("push", 1, 4)], "the gateway asks again for the other"
    assert places(answer.replays[0]) == ["push-1-3"]


async def test_an_answer_goes_as_far_as_messages_were_read_and_says_where_it_goes_on(
    rig: Rig,
) -> None:
    rig.evict_at(*range(6))
    rig.take_in(6)
    rig.log.most = 4
    replay = await rig.ask_one()
    assert (offsets(replay), replay.cut, replay.incomplete) == ([0, 1, 2, 3], {0: 4}, [])
    rest = await rig.ask_one(("push", 0, 3))
    assert (offsets(rest), rest.cut) == ([4, 5, 6], {})


async def test_messages_that_are_evicted_while_others_are_read_again_are_not_passed_over(
    rig: Rig,
) -> None:
    rig.evict_at(0)
    rig.take_in(1, 2)
    rig.log.on_read = lambda: rig.windows.of(P0).evict(1)
    replay = await rig.ask_one()
    assert (offsets(replay), replay.cut) == ([0], {0: 1})


async def test_for_a_question_no_more_is_read_again_than_an_answer_has_room_for(rig: Rig) -> None:
    rig.evict_at(*range(MAX_QUESTION_MESSAGES + 5))
    replay = await rig.ask_one()
    assert rig.log.scattered_reads == [(P0, [*range(MAX_QUESTION_MESSAGES)])]
    assert replay.cut == {0: MAX_QUESTION_MESSAGES}
    rest = await rig.ask_one(("push", 0, MAX_QUESTION_MESSAGES - 1))
    assert offsets(rest) == [*range(MAX_QUESTION_MESSAGES, MAX_QUESTION_MESSAGES + 5)]


async def test_of_many_questions_each_has_its_share_of_what_is_read_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_SCATTERED", 20)
    users = [f"u{number}" for number in range(10)]
    for offset in range(100):
        rig.evict_at(offset, user=users[offset // 10])
    answer = await rig.ask(*(question(user=user) for user in users))
    [(_, read)] = rig.log.scattered_reads
    assert len(read) == 20
    assert [len(replay.messages) for replay in answer.replays] == [2] * 10
    assert [replay.cut for replay in answer.replays] == [{0: 10 * at + 2} for at in range(10)]


async def test_beyond_the_bytes_that_are_read_again_an_answer_is_cut(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 1_000)
    rig.assign({P0: 0, P1: 0})
    rig.evict(*(rig.partitions[P0].message(n, data=b"x" * 400) for n in range(5)))
    rig.evict_at(7, partition=P1)
    replay = await rig.ask_one()
    assert (offsets(replay), replay.cut) == ([0, 1, 2], {0: 3, 1: 7})
    assert len(rig.log.scattered_reads) == 1, "the other partition's turn comes"


async def test_before_the_index_a_cursor_is_too_old(rig: Rig) -> None:
    rig.evict_at(0, 1)
    rig.take_in(2)
    rig.windows.of(P0).end_oldest()
    replay = await rig.ask_one(("push", 0, 0))
    assert (offsets(replay), replay.incomplete) == ([2], [0])
    assert (rig.log.reads, rig.log.scattered_reads) == ([], [])


async def test_an_ask_without_questions_is_answered(rig: Rig) -> None:
    rig.evict_at(0)
    assert (await rig.ask()).replays == []


# Assigned anew


async def test_marks_outlive_an_assignment_for_what_stays_here(rig: Rig) -> None:
    rig.assign({P0: 5})
    rig.take_in(5, 6, 7)
    rig.mark(LEFT_MS - SLACK_MS, 6)
    rig.assign({P0: 8})
    replay = await rig.ask_one()
    assert (offsets(replay), replay.incomplete) == ([6, 7], [])


async def test_an_heir_knows_the_marks_in_the_commit_and_reads_back_what_it_lacks(
    rig: Rig,
) -> None:
    rig.mark(LEFT_MS - SLACK_MS, 3)
    heir = Rig()
    heir.assign({P0: 10}, note=rig.answers.note(P0))
    heir.log.messages[P0] = heir.partitions[P0].messages(*range(10))
    heir.take_in(10)
    replay = await heir.ask_one()
    assert heir.log.reads == [(P0, 3, 10)]
    assert (offsets(replay), replay.incomplete) == ([*range(3, 11)], [])
    await heir.ask_one()
    assert len(heir.log.reads) == 1, "once for all"


async def test_it_reads_back_from_the_first_offset_that_any_question_needs(rig: Rig) -> None:
    rig.assign({P0: 10})
    rig.log.messages[P0] = rig.partitions[P0].messages(*range(10))
    at = [7, 2, 9, 30]
    answer = await rig.ask(*(question(("push", 0, offset)) for offset in at))
    assert rig.log.reads == [(P0, 3, 10)]
    assert [offsets(replay) for replay in answer.replays] == [[8, 9], [*range(3, 10)], [], []]


async def test_what_retention_took_is_a_gap(rig: Rig) -> None:
    rig.assign({P0: 10})
    rig.log.messages[P0], rig.log.begins = rig.partitions[P0].messages(*range(10)), 6
    replay = await rig.ask_one(("push", 0, 2))
    assert (offsets(replay), replay.incomplete) == ([6, 7, 8, 9], [0])


async def test_while_kafka_does_not_answer_the_partition_is_left_out(rig: Rig) -> None:
    rig.assign({P0: 10, P1: 0})
    rig.log.away.add(P0)
    answer = await rig.ask(question(("push", 0, 2)))
    assert answer.owned == [("push", 1, 0)]
    assert answer.pending == [("push", 0)], "the gateway asks again for it"


async def test_what_retention_took_is_not_read_for_again_and_again(rig: Rig) -> None:
    rig.assign({P0: 10})
    rig.log.messages[P0], rig.log.begins = rig.partitions[P0].messages(*range(10)), 6
    for _ in range(2):
        assert (await rig.ask_one(("push", 0, 2))).incomplete == [0]
    assert len(rig.log.reads) == 1


async def test_a_long_part_is_read_back_piece_by_piece_the_newest_first(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_OFFSETS_AT_ONCE", 4)
    rig.assign({P0: 10})
    rig.log.messages[P0] = rig.partitions[P0].messages(*range(10))
    replay = await rig.ask_one(("push", 0, 0))
    assert rig.log.reads == [(P0, 6, 10), (P0, 2, 6), (P0, 1, 2)]
    assert (offsets(replay), replay.incomplete) == ([*range(1, 10)], [])


async def test_a_piece_that_cannot_be_read_now_is_read_by_a_later_question(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_OFFSETS_AT_ONCE", 4)
    rig.assign({P0: 10})
    rig.log.messages[P0] = rig.partitions[P0].messages(*range(10))
    rig.log.on_read = lambda: rig.log.away.add(P0) if len(rig.log.reads) == 2 else None
    assert (await rig.ask(question(("push", 0, 0)))).owned == []
    rig.log.away.clear()
    replay = await rig.ask_one(("push", 0, 0))
    assert (offsets(replay), replay.incomplete) == ([*range(1, 10)], [])
    assert rig.log.reads[1:3] == [(P0, 2, 6), (P0, 2, 6)]


async def test_no_more_is_read_back_than_a_window_is_long(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forged position would have the whole log read."""
    monkeypatch.setattr(module, "MOST_OFFSETS", 5)
    rig.assign({P0: 10})
    rig.log.messages[P0] = rig.partitions[P0].messages(*range(10))
    replay = await rig.ask_one(("push", 0, 0))
    assert (offsets(replay), replay.incomplete, rig.log.reads) == ([], [0], [])
    replay = await rig.ask_one(("push", 0, 5))
    assert (offsets(replay), replay.incomplete) == ([6, 7, 8, 9], [])


async def test_what_was_read_back_is_evicted_where_there_is_no_room() -> None:
    rig = Rig(most_bytes=1024 * 1024)
    partition = rig.partitions[P0]
    rig.assign({P0: 100})
    data = b"x" * 250_000
    rig.log.messages[P0] = [partition.message(n, data=data) for n in range(100)]
    replay = await rig.ask_one(("push", 0, 0))
    assert rig.windows.of(P0).size <= 1024 * 1024
    assert rig.windows.of(P0).floor == 1
    assert (offsets(replay), replay.incomplete, replay.cut) == ([1], [], {0: 2})


async def test_two_asks_read_back_once(rig: Rig) -> None:
    rig.assign({P0: 10})
    rig.log.messages[P0] = rig.partitions[P0].messages(*range(10))
    both = await asyncio.gather(rig.ask_one(("push", 0, 4)), rig.ask_one(("push", 0, 4)))
    assert [offsets(replay) for replay in both] == [[5, 6, 7, 8, 9]] * 2
    assert len(rig.log.reads) == 1


async def test_a_partition_that_is_taken_away_while_it_is_read_back_is_not_claimed(
    rig: Rig,
) -> None:
    rig.assign({P0: 10, P1: 0})
    rig.log.messages[P0] = rig.partitions[P0].messages(*range(10))
    rig.log.on_read = lambda: rig.assign({P1: 0})
    answer = await rig.ask(question(("push", 0, 2)))
    claimed = [number for _, number, _ in answer.owned]
    if 0 in claimed and len(answer.replays) == 1:
        (replay,) = answer.replays
        at = claimed.index(0)
        assert at in replay.incomplete or offsets(replay) == [*range(3, 10)]


async def test_a_partition_that_is_taken_away_between_two_turns_is_not_claimed(rig: Rig) -> None:
    rig.take_in(0, 1)

    async def rebalance() -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        rig.windows.begin({P1: 0})

    taking_away = asyncio.create_task(rebalance())
    answer = await rig.ask(*(question() for _ in range(500)))
    await taking_away
    given = {tuple(offsets(replay)) for replay in answer.replays}
    assert given == {(0, 1)} if answer.owned else answer.replays == []


async def test_marks_of_an_earlier_topic_of_the_name_hide_nothing(rig: Rig) -> None:
    rig.assign({P0: 5_000})
    rig.mark(LEFT_MS - 10 * SLACK_MS, 5_000)
    rig.assign({P0: 0})  # deleted and made anew, its commits too
    rig.take_in(0, 1)
    replay = await rig.ask_one()
    assert offsets(replay) == [0, 1] or replay.incomplete == [0]
    assert offsets(await rig.ask_one(("push", 0, 0))) == [1]


async def test_marks_beyond_the_end_of_the_log_are_of_an_earlier_topic(rig: Rig) -> None:
    """The group's commits outlive a topic; the new topic's messages begin in front of them."""
    rig.assign({P0: 5_000})
    rig.mark(LEFT_MS - 10 * SLACK_MS, 5_000)
    rig.owner.log_ends[P0] = 2
    rig.take_in(0, 1)
    replay = await rig.ask_one()
    assert (offsets(replay), replay.incomplete) == ([0, 1], [0])
