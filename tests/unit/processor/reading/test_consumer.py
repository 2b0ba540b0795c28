"""Finding the place again after what getmany() raised, while Kafka fails at the edge."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from processor import metrics
from processor.reading import consumer as module
from processor.reading.commits import Commits
from processor.reading.consumer import Consumer
from processor.reading.handover import Settled
from processor.reading.kafka import KafkaError, Record, TopicPartition
from processor.reading.membership import Membership
from processor.reading.message import Message, Rejection
from processor.reading.reader import Reader
from tests.support.clients import eventually

pytestmark = pytest.mark.anyio

A, B = TopicPartition("push", 0), TopicPartition("push", 1)

Headers = tuple[tuple[str, bytes], ...]


def record(
    partition: TopicPartition, offset: int, *, timestamp: int = 0, headers: Headers = ()
) -> Record:
    return Record(
        topic=partition.topic,
        partition=partition.partition,
        offset=offset,
        timestamp=timestamp,
        timestamp_type=0,
        key=b"u",
        value=b"x",
        checksum=None,
        serialized_key_size=1,
        serialized_value_size=1,
        headers=headers,
    )


class Broken:
    """A consumer whose getmany() loses what it had in hand, and whose broker then fails."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.logs = {A: 3, B: 3}
        self.places = {A: 0, B: 0}
        self.committed_at: dict[TopicPartition, int] = {}
        self.failures = 2
        self.raised = False
        self.coordination: asyncio.Future[None] = asyncio.Future()
        self.notes: dict[TopicPartition, str] = {}
        self._coordinator = SimpleNamespace(
            generation=1,
            _coordination_task=self.coordination,
            fetch_committed_offsets=self._fetch_committed_offsets,
        )

    async def _fetch_committed_offsets(
        self, partitions: Sequence[TopicPartition]
    ) -> dict[TopicPartition, Any]:
        return {
            each: SimpleNamespace(
                offset=self.committed_at.get(each, -1), metadata=self.notes.get(each, "")
            )
            for each in partitions
        }

    def assignment(self) -> set[TopicPartition]:
        return {A, B}

    async def committed(self, partition: TopicPartition) -> int | None:
        if self.failures:
            self.failures -= 1
            raise KafkaError("injected")
        return self.committed_at.get(partition)

    async def commit(self, offsets: dict[TopicPartition, tuple[int, str]]) -> None:
        self.committed_at |= {partition: offset for partition, (offset, _) in offsets.items()}
        self.notes |= {partition: note for partition, (_, note) in offsets.items()}

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.places[partition] = offset

    async def seek_to_beginning(self, partition: TopicPartition) -> None:
        self.places[partition] = 0

    async def position(self, partition: TopicPartition) -> int:
        return self.places[partition]

    def highwater(self, partition: TopicPartition) -> int | None:
        return self.logs[partition]

    async def stop(self) -> None:
        return None

    async def getmany(
        self, *partitions: TopicPartition, timeout_ms: int, max_records: int
    ) -> dict[TopicPartition, list[Record]]:
        await asyncio.sleep(0)
        if not self.raised:
            self.raised = True
            self.places[A] = self.logs[A]  # A was drained, then B raised: A's records are gone
            raise self.error
        got = {}
        for partition in partitions or (A, B):
            place, end = self.places[partition], self.logs[partition]
            if place < end:
                got[partition] = [record(partition, offset) for offset in range(place, end)]
                self.places[partition] = end
        return got


class Offline:
    """A dispatcher for whom everybody is offline."""

    accepted = True

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.all_seen = asyncio.Event()
        self.commits = Commits()

    async def room(self) -> None:
        return None

    def take(self, messages: Sequence[Message]) -> None:
        for message in messages:
            self.seen.append(message.push.id)
            message.progress.settle(message.offset, size=len(message.push.data))
        self.commits.advanced({message.progress for message in messages})
        if len(self.seen) >= 6:
            self.all_seen.set()


class NothingRejected:
    """Rejects of a topic without any."""

    def take(self, rejections: Sequence[Rejection]) -> None:
        raise AssertionError(rejections)

    def abandon(self) -> None: ...


class KeptMessages:
    """A dispatcher that settles nothing."""

    def __init__(self) -> None:
        self.kept: list[Message] = []
        self.accepted = True

    async def room(self) -> None: ...

    def take(self, messages: Sequence[Message]) -> None:
        self.kept += messages


class KeptRejections:
    """Rejects that settle nothing."""

    def __init__(self) -> None:
        self.kept: list[Rejection] = []

    def take(self, rejections: Sequence[Rejection]) -> None:
        self.kept += rejections

    def abandon(self) -> None: ...


async def no_survey() -> None:
    """Stand in for the look at topics and offsets before a group is joined: there is no Kafka."""


def consumer_of(settings: SimpleNamespace, dispatcher: Offline) -> Consumer:
    return Consumer(
        cast("Any", settings),
        dispatcher.commits,
        dispatcher,
        NothingRejected(),
        membership=certain(),
    )


def certain() -> Membership:
    """Give a membership for which time stands still."""
    membership = Membership(clock=lambda: 0.0)
    membership.confirm(0.0)
    return membership


@pytest.mark.parametrize(
    "error", [UnicodeDecodeError("utf-8", b"\xff", 0, 1, "injected"), KafkaError("injected")]
)
async def test_a_kafka_that_fails_meanwhile_neither_ends_the_consumer_nor_loses_its_place(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    broken, dispatcher = Broken(error), Offline()
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0)
    settings = SimpleNamespace(
        kafka_start="earliest", kafka_bootstrap="b:1", kafka_group="g", topics=["push"],
        weights=[1], batch_messages=100, max_payload_bytes=100,
    )  # fmt: skip
    consumer = consumer_of(settings, dispatcher)

    async def join() -> Broken:
        dispatcher.commits.use(cast("Any", broken))
        consumer._assign([A, B])
        return broken

    monkeypatch.setattr(consumer, "_survey", no_survey)
    monkeypatch.setattr(consumer, "_join", join)
    running = asyncio.create_task(consumer.run())
    async with asyncio.timeout(5):
        seen = asyncio.create_task(dispatcher.all_seen.wait())
        await asyncio.wait((running, seen), return_when=asyncio.FIRST_COMPLETED)
        seen.cancel()
    consumer.stop()
    await running
    assert sorted(dispatcher.seen) == [f"push-{p}-{n}" for p in (0, 1) for n in range(3)]
    assert broken.committed_at == {A: 3, B: 3}
    assert broken.failures == 0


@pytest.mark.parametrize("ended", [False, True], ids=["after some errors", "at once when dead"])
async def test_a_kafka_client_that_only_fails_any_more_is_replaced(
    monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    dispatcher = Offline()
    monkeypatch.setattr(module, "_RETRY_SECONDS", 60 if ended else 0)
    monkeypatch.setattr(module, "_MOST_ERRORS", 3)
    settings = SimpleNamespace(
        kafka_start="earliest", kafka_bootstrap="b:1", kafka_group="g", topics=["push"],
        weights=[1], batch_messages=100, max_payload_bytes=100,
    )  # fmt: skip
    consumer = consumer_of(settings, dispatcher)
    joined: list[Broken] = []

    class Dead(Broken):
        async def getmany(
            self, *partitions: TopicPartition, timeout_ms: int = 0, max_records: int
        ) -> dict[TopicPartition, list[Record]]:
            raise KafkaError("a task of the client is dead")

    async def join() -> Broken:
        consumer._rejoin = False
        broken = Dead(KafkaError()) if not joined else Broken(KafkaError("once"))
        broken.raised = ended
        broken.failures = 0
        if ended and not joined:
            broken.coordination.set_result(None)
        joined.append(broken)
        dispatcher.commits.use(cast("Any", broken))
        consumer._assign([A, B])
        return broken

    monkeypatch.setattr(consumer, "_survey", no_survey)
    monkeypatch.setattr(consumer, "_join", join)
    running = asyncio.create_task(consumer.run())
    async with asyncio.timeout(5):
        await dispatcher.all_seen.wait()
    consumer.stop()
    await running
    assert len(joined) == 2
    assert joined[1].committed_at == {A: 3, B: 3}


LOW = TopicPartition("low", 0)


class Torn(Broken):
    """A consumer that reads one topic, and drops what it had of another when it raises."""

    def __init__(self) -> None:
        super().__init__(KafkaError("injected"))
        self.failures = 0
        self.raised, self.torn = True, False
        self.logs = {A: 3, LOW: 3}
        self.places = {A: 0, LOW: 0}

    def assignment(self) -> set[TopicPartition]:
        return {A, LOW}

    async def getmany(
        self, *partitions: TopicPartition, timeout_ms: int = 0, max_records: int
    ) -> dict[TopicPartition, list[Record]]:
        if LOW in partitions and not self.torn:
            self.torn = True
            self.places[LOW] = self.logs[LOW]
            raise self.error
        return await super().getmany(*partitions, timeout_ms=timeout_ms, max_records=max_records)


async def test_what_one_topic_lost_to_an_error_is_read_again_though_another_was_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torn, dispatcher = Torn(), Offline()
    settings = SimpleNamespace(
        kafka_start="earliest", kafka_bootstrap="b:1", kafka_group="g", topics=["push", "low"],
        weights=[1, 1], batch_messages=100, max_payload_bytes=100,
    )  # fmt: skip
    consumer = consumer_of(settings, dispatcher)

    async def join() -> Broken:
        dispatcher.commits.use(cast("Any", torn))
        consumer._assign([A, LOW])
        return torn

    monkeypatch.setattr(consumer, "_survey", no_survey)
    monkeypatch.setattr(consumer, "_join", join)
    running = asyncio.create_task(consumer.run())
    async with asyncio.timeout(5):
        await dispatcher.all_seen.wait()
    consumer.stop()
    await running
    assert sorted(dispatcher.seen) == [f"{t}-0-{n}" for t in ("low", "push") for n in range(3)]
    assert torn.committed_at == {A: 3, LOW: 3}


@pytest.mark.parametrize("timestamp", [-1, 1_000_000])
async def test_a_record_without_a_timestamp_is_as_old_as_the_time_since_it_was_read(
    timestamp: int,
) -> None:
    messages, rejections = KeptMessages(), KeptRejections()
    settings = SimpleNamespace(topics=["push"], max_payload_bytes=100)
    consumer = Consumer(
        cast("Any", settings), Commits(), messages, rejections, membership=certain()
    )
    consumer._assign([A])
    began_ms = int(time.time() * 1000)
    bad = record(A, 1, timestamp=timestamp, headers=(("push-ttl", b"soon"),))
    consumer._take({A: [record(A, 0, timestamp=timestamp), bad]})
    read_ms = int(time.time() * 1000)
    consumer.observe(read_ms + 5_000)
    [gauge] = metrics.OLDEST_SECONDS.collect()
    [message], [rejection] = messages.kept, rejections.kept
    if timestamp < 0:
        assert 5 <= gauge.samples[0].value <= 5 + (read_ms - began_ms) / 1000
        for published_ms in (message.envelope.published_ms, rejection.published_ms):
            assert began_ms <= published_ms <= read_ms
    else:
        assert gauge.samples[0].value == (read_ms + 5_000 - timestamp) / 1000
        assert message.envelope.published_ms == rejection.published_ms == timestamp


@pytest.mark.parametrize(
    ("topics", "lanes"), [(["push"], [None]), (["push", "alerts"], ["push", "alerts"])]
)
async def test_a_message_names_its_lane_where_several_topics_are_read(
    topics: list[str], lanes: list[str | None]
) -> None:
    messages = KeptMessages()
    settings = SimpleNamespace(topics=topics, max_payload_bytes=100)
    consumer = Consumer(
        cast("Any", settings), Commits(), messages, KeptRejections(), membership=certain()
    )
    partitions = [TopicPartition(topic, 0) for topic in topics]
    consumer._assign(partitions)
    consumer._take({partition: [record(partition, 0)] for partition in partitions})
    assert [message.push.lane for message in messages.kept] == lanes


class Assigned(Broken):
    """A consumer with one partition, whose committed offset is 2."""

    def __init__(self) -> None:
        super().__init__(KafkaError())
        self.failures = 0
        self.committed_at = {A: 2}
        self.paused: set[TopicPartition] = set()

    def pause(self, *partitions: TopicPartition) -> None:
        self.paused |= set(partitions)

    def resume(self, *partitions: TopicPartition) -> None:
        self.paused -= set(partitions)


def consumer_with(messages: KeptMessages, membership: Membership) -> tuple[Consumer, Assigned]:
    settings = SimpleNamespace(
        kafka_start="earliest", topics=["push"], max_payload_bytes=100, kafka_bootstrap="b:1"
    )
    consumer = Consumer(
        cast("Any", settings), Commits(), messages, NothingRejected(), membership=membership
    )
    client = Assigned()
    consumer._kafka = cast("Any", client)
    consumer._commits.use(cast("Any", client))
    return consumer, client


async def test_what_an_earlier_owner_settled_is_neither_sent_nor_left_uncommitted() -> None:
    messages = KeptMessages()
    consumer, client = consumer_with(messages, certain())
    consumer._handover.claims = {A: Settled(4, frozenset({5, 6}))}
    await consumer._begin([A])
    assert client.places[A] == 4
    batch = {A: [record(A, offset) for offset in range(4, 9)]}
    await consumer._take_when_certain(cast("Any", client), batch)
    assert [message.offset for message in messages.kept] == [4, 7, 8]
    messages.kept[0].progress.settle(4, size=messages.kept[0].size)
    consumer._commits.advanced([messages.kept[0].progress])
    await consumer._commits.flush()
    assert client.committed_at[A] == 7
    assert not consumer._settled_before, "what has been read past is forgotten"


async def test_a_member_that_stops_while_a_message_waits_leaves_a_claim_beyond_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_STOPPING_SECONDS", 0.05)
    messages = KeptMessages()
    consumer, client = consumer_with(messages, certain())
    consumer._commits.use(cast("Any", client), note="missing:other")
    await consumer._begin([A])
    await consumer._take_when_certain(
        cast("Any", client), {A: [record(A, offset) for offset in range(2, 8)]}
    )
    for message in messages.kept:
        if message.offset not in (3, 6):
            message.progress.settle(message.offset, size=message.size)
    consumer.stop()
    await consumer._leave()
    assert client.committed_at[A] == 3
    assert client.notes[A].startswith("missing:other settled:")

    following = KeptMessages()
    heir, _ = consumer_with(following, certain())
    heir._kafka = cast("Any", client)
    await heir._begin([A])
    await heir._take_when_certain(
        cast("Any", client), {A: [record(A, offset) for offset in range(3, 10)]}
    )
    assert [message.offset for message in following.kept] == [3, 6, 8, 9]


async def test_after_an_error_what_is_claimed_is_skipped_though_its_commit_failed() -> None:
    consumer, client = consumer_with(KeptMessages(), certain())
    consumer._handover.claims = {A: Settled(4)}
    await consumer._begin([A])
    await consumer._commits.flush()
    client.committed_at[A] = 2  # as where the commit fails
    client.places[A] = 9
    reader = Reader(
        cast("Any", client), consumer._partitions, lanes={"push": 0}, weights=[1],
        batch_messages=1, stopping=lambda: False, advanced=consumer._commits.advanced,
    )  # fmt: skip
    await reader._find_places()
    assert client.places[A] == 4


async def test_a_commit_beyond_a_claim_counts() -> None:
    consumer, client = consumer_with(KeptMessages(), certain())
    client.places[A] = 2
    consumer._handover.claims = {A: Settled(1)}
    await consumer._begin([A])
    assert client.places[A] == 2


async def test_after_a_silence_partitions_wait_for_claims_of_their_earlier_owners(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "DOUBT_SECONDS", 0.05)
    now = [0.0]
    consumer, client = consumer_with(KeptMessages(), Membership(clock=lambda: now[0]))
    await consumer._begin([A])
    assert not client.paused, "nobody was silent"
    now[0] = 10.0
    consumer._handover.claims = {B: Settled(1)}
    await consumer._begin([A, B])
    assert client.paused == {A}
    await eventually(lambda: not client.paused, "read after the wait")


@pytest.mark.parametrize("lost", [False, True])
async def test_records_are_taken_in_once_the_partition_is_this_members_for_certain(
    lost: bool,
) -> None:
    now = [0.0]
    membership = Membership(clock=lambda: now[0])
    messages = KeptMessages()
    consumer, client = consumer_with(messages, membership)
    await consumer._begin([A])
    now[0] = 60.0  # Kafka was silent, or this process was frozen
    batch = {A: [record(A, 2)]}
    taking = asyncio.create_task(consumer._take_when_certain(cast("Any", client), batch))
    await asyncio.sleep(0.01)
    assert not taking.done()
    if lost:  # and is back: the records before its new offset are another owner's
        consumer._partitions.clear()
        await consumer._begin([A])
    else:
        membership.confirm(now[0])
    async with asyncio.timeout(5):
        await taking
    assert len(messages.kept) == (0 if lost else 1)


@pytest.mark.parametrize("dead", [False, True], ids=["to stop", "as the client is dead"])
async def test_records_in_doubt_are_put_back_when_the_wait_ends(
    monkeypatch: pytest.MonkeyPatch, dead: bool
) -> None:
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.01)
    now = [0.0]
    messages = KeptMessages()
    consumer, client = consumer_with(messages, Membership(clock=lambda: now[0]))
    await consumer._begin([A])
    now[0] = 60.0
    client.places[A] = 3
    if dead:  # and is to be replaced while others still wait for its claims
        client.coordination.set_result(None)
    else:
        consumer.stop()
    async with asyncio.timeout(1):
        await consumer._take_when_certain(cast("Any", client), {A: [record(A, 2)]})
    assert client.places[A] == 2, "or what was not taken in would count as read"
    assert not messages.kept


async def test_records_of_a_poll_that_began_before_every_gateway_refused_are_put_back() -> None:
    messages = KeptMessages()
    consumer, client = consumer_with(messages, certain())
    await consumer._begin([A])
    client.places[A] = 3
    messages.accepted = False
    await consumer._take_when_certain(cast("Any", client), {A: [record(A, 2)]})
    assert client.places[A] == 2
    assert not messages.kept
    messages.accepted = True
    await consumer._take_when_certain(cast("Any", client), {A: [record(A, 2)]})
    assert len(messages.kept) == 1


async def test_records_of_a_partition_that_is_not_assigned_yet_come_again() -> None:
    messages = KeptMessages()
    consumer, client = consumer_with(messages, certain())
    client.places[B] = 9
    await consumer._take_when_certain(cast("Any", client), {B: [record(B, 5)]})
    assert client.places[B] == 5
    assert not messages.kept


# For clients that come back


class KeptRecords:
    """The keeper of what was taken in, and what it was told of assignments."""

    def __init__(self) -> None:
        self.begun: list[dict[TopicPartition, tuple[int, str]]] = []
        self.kept: list[int] = []

    def begin(self, commits: Mapping[TopicPartition, tuple[int, str]]) -> None:
        self.begun.append(dict(commits))

    def note(self, partition: TopicPartition) -> str:
        return f"marks:{partition.partition}"

    def take(self, partition: TopicPartition, messages: Sequence[Message]) -> None:
        assert all(message.progress.partition == partition for message in messages)
        self.kept += [message.offset for message in messages]


def recording(messages: KeptMessages) -> tuple[Consumer, Assigned, KeptRecords]:
    """Give a consumer that has begun with a partition whose committed offset is 2."""
    records = KeptRecords()
    consumer, client = consumer_with(messages, certain())
    consumer._records = records
    consumer._rejects = KeptRejections()
    consumer._commits.use(cast("Any", client), places=consumer._places, word=consumer._word_of)
    return consumer, client, records


async def test_what_is_taken_in_is_kept_from_the_offset_on_where_the_partition_began() -> None:
    messages = KeptMessages()
    consumer, client, records = recording(messages)
    client.notes[A] = "missing:x marks:y"
    await consumer._begin([A])
    assert records.begun == [{A: (2, "missing:x marks:y")}]
    bad = record(A, 3, headers=(("push-ttl", b"soon"),))
    await consumer._take_when_certain(cast("Any", client), {A: [record(A, 2), bad, record(A, 4)]})
    assert records.kept == [2, 4]
    assert [message.offset for message in messages.kept] == [2, 4]


async def test_of_what_an_earlier_owner_settled_all_is_kept_but_what_was_for_clients_of_then() -> (
    None
):
    messages = KeptMessages()
    consumer, client, records = recording(messages)
    consumer._handover.claims = {A: Settled(4, frozenset({5, 6}))}
    await consumer._begin([A])
    assert records.begun == [{A: (4, "")}]
    now_alone = record(A, 6, headers=(("push-ttl", b"0"),))
    batch = {A: [record(A, 4), record(A, 5), now_alone, record(A, 7)]}
    await consumer._take_when_certain(cast("Any", client), batch)
    assert records.kept == [4, 5, 7]
    assert [message.offset for message in messages.kept] == [4, 7]


async def test_a_member_proves_its_partitions_up_to_what_it_has_taken_in() -> None:
    messages = KeptMessages()
    consumer, client, _ = recording(messages)
    assert await consumer.prove() == {}, "before an assignment"
    await consumer._begin([A])
    assert await consumer.prove() == {A: 2}
    assert (client.committed_at[A], client.notes[A]) == (2, "marks:0")
    await consumer._take_when_certain(cast("Any", client), {A: [record(A, 2), record(A, 5)]})
    assert await consumer.prove() == {A: 6}
    assert client.committed_at[A] == 2, "nothing is settled"


async def test_records_that_are_read_and_not_taken_in_yet_are_not_proved() -> None:
    messages = KeptMessages()
    consumer, client, records = recording(messages)
    await consumer._begin([A])
    membership = Membership(clock=lambda: 0.0)
    consumer._membership = membership
    taking = asyncio.create_task(
        consumer._take_when_certain(cast("Any", client), {A: [record(A, 2)]})
    )
    await asyncio.sleep(0)
    assert await consumer.prove() == {A: 2}
    assert records.kept == []
    membership.confirm(0.0)
    await taking
    assert await consumer.prove() == {A: 3}
    assert records.kept == [2]


async def test_a_partition_that_is_taken_away_meanwhile_is_not_proved() -> None:
    consumer, client, _ = recording(KeptMessages())
    await consumer._begin([A])
    proving = asyncio.create_task(consumer.prove())
    await asyncio.sleep(0)
    consumer._assign([A])  # lost, and back: another owner may have had it
    assert await proving == {}
    client.committed_at = {}
    await consumer._revoke()
    assert await consumer.prove() == {}
