"""Commits behind the batches: what fails is kept, what is not ours is not committed."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from processor.reading import commits as module
from processor.reading.commits import Commits
from processor.reading.kafka import (
    MAX_NOTE_BYTES,
    AIOKafkaConsumer,
    KafkaError,
    TopicPartition,
)

pytestmark = pytest.mark.anyio

A, B = TopicPartition("push", 0), TopicPartition("push", 1)


class FlakyConsumer:
    """The two calls that commits make of a consumer, with faults where a test wants them."""

    def __init__(self) -> None:
        self.assigned = {A, B}
        self.committed: dict[TopicPartition, int] = {}
        self.commits = 0
        self.failures = 0
        self.failed = asyncio.Event()
        self.silences = 0  # attempts that get no answer at all
        self.succeeded = asyncio.Event()
        self.notes: set[str] = set()
        self.gate = asyncio.Event()
        self.gate.set()

    def assignment(self) -> set[TopicPartition]:
        return self.assigned

    async def commit(self, offsets: dict[TopicPartition, tuple[int, str]]) -> None:
        assert offsets, "aiokafka raises ValueError for no offsets"
        self.commits += 1
        await self.gate.wait()
        if self.silences:
            self.silences -= 1
            await asyncio.Event().wait()
        if self.failures:
            self.failures -= 1
            self.failed.set()
            raise KafkaError("injected")
        self.committed |= {partition: offset for partition, (offset, _) in offsets.items()}
        self.notes = {note for _, note in offsets.values()}
        self.succeeded.set()


def commits_of(consumer: FlakyConsumer) -> Commits:
    return Commits(cast("AIOKafkaConsumer", consumer))


async def test_what_is_finished_is_committed() -> None:
    consumer = FlakyConsumer()
    commits = commits_of(consumer)
    commits.finished({A: 5, B: 7})
    await commits.flush()
    assert consumer.committed == {A: 5, B: 7}


async def test_what_finishes_behind_a_slow_commit_goes_with_the_next_one() -> None:
    consumer = FlakyConsumer()
    consumer.gate.clear()
    commits = commits_of(consumer)
    for offset in range(1, 101):
        commits.finished({A: offset})
        await asyncio.sleep(0)
    consumer.gate.set()
    await commits.flush()
    assert consumer.committed == {A: 100}
    assert consumer.commits == 2


async def test_what_finishes_in_the_pause_behind_a_commit_goes_with_one_commit_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0.01)
    consumer = FlakyConsumer()
    commits = commits_of(consumer)
    commits.finished({A: 1})
    async with asyncio.timeout(5):
        await consumer.succeeded.wait()
        consumer.succeeded.clear()
        for offset in range(2, 10):
            commits.finished({A: offset})
            await asyncio.sleep(0)
        assert consumer.commits == 1
        await consumer.succeeded.wait()
    assert consumer.committed == {A: 9}
    assert consumer.commits == 2


async def test_a_flush_does_not_wait_for_the_pause_behind_a_commit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 3600.0)
    consumer = FlakyConsumer()
    commits = commits_of(consumer)
    commits.finished({A: 1})
    async with asyncio.timeout(5):
        await consumer.succeeded.wait()
        commits.finished({A: 2})
        await commits.flush()
    assert consumer.committed == {A: 2}


async def test_a_partition_that_was_taken_away_is_not_committed() -> None:
    consumer = FlakyConsumer()
    consumer.assigned = {B}
    commits = commits_of(consumer)
    commits.finished({A: 5})
    await commits.flush()
    commits.finished({A: 6, B: 7})
    await commits.flush()
    assert consumer.committed == {B: 7}


async def test_a_commit_that_fails_goes_with_the_next() -> None:
    consumer = FlakyConsumer()
    consumer.failures = 1
    commits = commits_of(consumer)
    commits.finished({A: 5})
    await consumer.failed.wait()
    commits.finished({B: 1})
    await commits.flush()
    assert consumer.committed == {A: 5, B: 1}


async def test_a_flush_tries_a_failed_commit_once_more() -> None:
    consumer = FlakyConsumer()
    consumer.failures = 1
    commits = commits_of(consumer)
    commits.finished({A: 5})
    await commits.flush()
    assert consumer.committed == {A: 5}


async def test_a_flush_ends_though_kafka_never_takes_it() -> None:
    consumer = FlakyConsumer()
    consumer.failures = 100
    commits = commits_of(consumer)
    commits.finished({A: 5})
    await commits.flush()
    assert consumer.committed == {}
    assert consumer.commits == 2


async def test_a_commit_that_fails_is_tried_again_though_nothing_else_is_settled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_RETRY_SECONDS", (0.001, 0.002))
    consumer = FlakyConsumer()
    consumer.failures = 4
    commits_of(consumer).finished({A: 5})
    async with asyncio.timeout(5):
        await consumer.succeeded.wait()
    assert consumer.committed == {A: 5}
    assert consumer.commits == 5


async def test_a_commit_without_an_answer_is_given_up_and_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_RETRY_SECONDS", (0.001,))
    monkeypatch.setattr(module, "_ATTEMPT_SECONDS", 0.01)
    consumer = FlakyConsumer()
    consumer.silences = 2
    commits_of(consumer).finished({A: 5})
    async with asyncio.timeout(5):
        await consumer.succeeded.wait()
    assert consumer.committed == {A: 5}
    assert consumer.commits == 3


async def test_while_a_failed_commit_waits_what_finishes_waits_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_RETRY_SECONDS", (60.0,))
    consumer = FlakyConsumer()
    consumer.failures = 1
    commits = commits_of(consumer)
    commits.finished({A: 5})
    await consumer.failed.wait()
    await asyncio.sleep(0)
    for offset in range(10):
        commits.finished({B: offset})
        await asyncio.sleep(0)
    assert consumer.commits == 1
    await commits.flush()
    assert consumer.committed == {A: 5, B: 9}


async def test_what_finishes_right_after_partitions_were_lost_is_committed() -> None:
    consumer = FlakyConsumer()
    consumer.gate.clear()
    commits = commits_of(consumer)
    commits.finished({A: 5})
    await asyncio.sleep(0)
    commits.forget()
    commits.finished({B: 1})
    consumer.gate.set()
    async with asyncio.timeout(5):
        await consumer.succeeded.wait()
    assert consumer.committed == {B: 1}


async def test_every_commit_has_the_note_as_metadata() -> None:
    consumer = FlakyConsumer()
    commits = Commits()
    commits.use(cast("AIOKafkaConsumer", consumer), note="missing:low")
    commits.finished({A: 5, B: 6})
    await commits.flush()
    assert consumer.committed == {A: 5, B: 6}
    assert consumer.notes == {"missing:low"}


# Proofs of ownership


class FakeGroup:
    """A group that accepts heartbeats, or refuses them, or does not answer."""

    def __init__(self) -> None:
        self.now = 0.0
        self.beats = 0
        self.answer: bool | Exception = True
        self.gate = asyncio.Event()
        self.gate.set()

    async def is_accepted(self) -> bool:
        self.beats += 1
        await self.gate.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def proving(
    consumer: FlakyConsumer, places: dict[TopicPartition, int], group: FakeGroup | None = None
) -> Commits:
    """Give commits that prove, also by heartbeats where there is a group."""
    commits = Commits(clock=lambda: group.now if group else 0.0)
    commits.use(
        cast("AIOKafkaConsumer", consumer),
        note="n",
        places=lambda: places,
        word=lambda partition: f"word-{partition.partition}",
        is_accepted=group.is_accepted if group else None,
    )
    return commits


async def test_a_commit_that_succeeds_proves_ownership_and_has_every_partitions_word() -> None:
    consumer = FlakyConsumer()
    commits = proving(consumer, {A: 5, B: 0})
    assert await commits.prove()
    assert consumer.committed == {A: 5, B: 0}
    assert consumer.notes == {"n word-0", "n word-1"}


async def test_a_commit_that_kafka_refuses_proves_nothing() -> None:
    consumer = FlakyConsumer()
    consumer.failures = 1
    assert not await proving(consumer, {A: 5}).prove()
    assert consumer.committed == {}


async def test_a_commit_that_began_before_proves_nothing() -> None:
    """This member may have been frozen, and the partition another's, since it began."""
    consumer = FlakyConsumer()
    consumer.gate.clear()
    commits = proving(consumer, {A: 5})
    commits.finished({A: 5})
    await asyncio.sleep(0)
    proof = asyncio.create_task(commits.prove())
    await asyncio.sleep(0)
    assert consumer.commits == 1
    consumer.failures = 1  # of the first: the second is another attempt
    consumer.gate.set()
    async with asyncio.timeout(5):
        assert await proof
    assert consumer.commits >= 2


async def test_all_that_wait_share_one_commit() -> None:
    consumer = FlakyConsumer()
    consumer.gate.clear()
    commits = proving(consumer, {A: 5})
    first = asyncio.create_task(commits.prove())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    others = [asyncio.create_task(commits.prove()) for _ in range(20)]
    await asyncio.sleep(0)
    consumer.gate.set()
    async with asyncio.timeout(5):
        assert all(await asyncio.gather(first, *others))
    assert consumer.commits == 2


async def test_a_lone_proof_does_not_wait_for_the_pause_behind_a_commit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client that comes back alone waits for its messages meanwhile."""
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 3600.0)
    consumer = FlakyConsumer()
    commits = proving(consumer, {A: 5})
    async with asyncio.timeout(5):
        assert await commits.prove()
        many = asyncio.create_task(commits.prove())
        for _ in range(10):
            await asyncio.sleep(0)
        assert consumer.commits == 1, "proofs for many clients share the commit after the pause"
        assert await commits.prove(lone=True)
        assert await many
    assert consumer.commits == 2


async def test_a_lone_proof_that_comes_during_a_commit_begins_the_next_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 3600.0)
    consumer = FlakyConsumer()
    consumer.gate.clear()
    commits = proving(consumer, {A: 5})
    first = asyncio.create_task(commits.prove())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    second = asyncio.create_task(commits.prove(lone=True))
    await asyncio.sleep(0)
    consumer.gate.set()
    async with asyncio.timeout(5):
        assert all(await asyncio.gather(first, second))
    assert consumer.commits == 2


async def test_what_is_settled_meanwhile_goes_with_the_proof() -> None:
    consumer = FlakyConsumer()
    places = {A: 5}
    commits = proving(consumer, places)
    proof = asyncio.create_task(commits.prove())
    await asyncio.sleep(0)
    places[A] = 6
    commits.finished({A: 6})
    assert await proof
    await commits.flush()
    assert consumer.committed[A] == 6


async def test_without_a_partition_nothing_is_proved() -> None:
    consumer = FlakyConsumer()
    consumer.assigned = set()
    assert not await proving(consumer, {A: 5}).prove()
    assert not await proving(consumer, {}).prove()
    assert not await Commits().prove()
    assert consumer.commits == 0


async def test_while_a_failed_commit_waits_for_its_turn_nothing_is_proved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_RETRY_SECONDS", (60.0,))
    consumer = FlakyConsumer()
    consumer.failures = 1
    commits = proving(consumer, {A: 5})
    commits.finished({A: 5})
    await consumer.failed.wait()
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        assert not await commits.prove()


async def test_when_partitions_are_lost_nothing_that_waits_is_proved() -> None:
    consumer = FlakyConsumer()
    consumer.gate.clear()
    commits = proving(consumer, {A: 5})
    first = asyncio.create_task(commits.prove())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    second = asyncio.create_task(commits.prove())
    await asyncio.sleep(0)
    commits.forget()
    async with asyncio.timeout(5):
        assert not any(await asyncio.gather(first, second))


async def test_a_question_that_is_given_up_hinders_neither_a_loss_nor_other_proofs() -> None:
    consumer = FlakyConsumer()
    consumer.gate.clear()
    commits = proving(consumer, {A: 5})
    running = asyncio.create_task(commits.prove())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    given_up, other = (asyncio.create_task(commits.prove()) for _ in range(2))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.sleep(0)
    commits.forget()
    async with asyncio.timeout(5):
        assert not any(await asyncio.gather(running, other))
    consumer.gate.set()
    async with asyncio.timeout(5):
        assert await commits.prove()


# Proofs by heartbeats


async def test_where_a_commit_has_succeeded_lately_a_heartbeat_proves_as_much() -> None:
    consumer, group = FlakyConsumer(), FakeGroup()
    commits = proving(consumer, {A: 5}, group)
    assert await commits.prove()
    assert (consumer.commits, group.beats) == (1, 0), "no commit was there yet"
    group.now = 2.9
    assert await commits.prove(lone=True)
    assert (consumer.commits, group.beats) == (1, 1)
    group.now = 3.0
    assert await commits.prove(lone=True)
    assert (consumer.commits, group.beats) == (2, 1), "half of a session time-out has passed"


async def test_the_start_of_a_commit_counts_for_heartbeats_and_not_its_end() -> None:
    consumer, group = FlakyConsumer(), FakeGroup()
    commits = proving(consumer, {A: 5}, group)
    consumer.gate.clear()
    first = asyncio.create_task(commits.prove())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    group.now = 3.0
    consumer.gate.set()
    assert await first
    assert await commits.prove(lone=True)
    assert (consumer.commits, group.beats) == (2, 0)


async def test_where_something_is_to_be_committed_the_commit_proves() -> None:
    consumer, group = FlakyConsumer(), FakeGroup()
    commits = proving(consumer, {A: 5}, group)
    assert await commits.prove()
    commits.finished({A: 6})
    assert await commits.prove(lone=True)
    assert (consumer.commits, group.beats) == (2, 0)
    assert consumer.committed == {A: 6}


@pytest.mark.parametrize("answer", [False, KafkaError("injected"), TimeoutError()])
async def test_a_heartbeat_that_is_not_accepted_proves_nothing_and_a_commit_decides(
    answer: bool | Exception,
) -> None:
    consumer, group = FlakyConsumer(), FakeGroup()
    commits = proving(consumer, {A: 5}, group)
    assert await commits.prove()
    group.answer = answer
    assert not await commits.prove(lone=True)
    assert (consumer.commits, group.beats) == (1, 1)
    assert await commits.prove(lone=True)
    assert (consumer.commits, group.beats) == (2, 1)


async def test_all_that_wait_share_a_heartbeat_that_begins_later() -> None:
    """This member may have been frozen since an earlier heartbeat was sent."""
    consumer, group = FlakyConsumer(), FakeGroup()
    commits = proving(consumer, {A: 5}, group)
    assert await commits.prove()
    group.gate.clear()
    first = asyncio.create_task(commits.prove(lone=True))
    for _ in range(10):
        await asyncio.sleep(0)
    others = [asyncio.create_task(commits.prove()) for _ in range(20)]
    await asyncio.sleep(0)
    assert group.beats == 1
    group.gate.set()
    async with asyncio.timeout(5):
        assert all(await asyncio.gather(first, *others))
    assert (consumer.commits, group.beats) == (1, 2)


async def test_when_partitions_are_lost_a_heartbeat_under_way_proves_nothing() -> None:
    consumer, group = FlakyConsumer(), FakeGroup()
    commits = proving(consumer, {A: 5}, group)
    assert await commits.prove()
    group.gate.clear()
    proof = asyncio.create_task(commits.prove(lone=True))
    for _ in range(10):
        await asyncio.sleep(0)
    commits.forget()
    async with asyncio.timeout(5):
        assert not await proof
    group.gate.set()
    assert await commits.prove()
    assert (consumer.commits, group.beats) == (2, 1), "whose partitions they are, a commit says"


async def test_a_claim_stands_behind_the_partitions_word_and_leaves_room_for_it() -> None:
    consumer = FlakyConsumer()
    commits = proving(consumer, {})
    await commits.leave({A: (5, "settled:x")})
    assert consumer.notes == {"n word-0 settled:x"}
    assert commits.room_bytes + module.MAX_WORD_BYTES + len("n") + 2 <= MAX_NOTE_BYTES
