"""Reading again what an earlier owner took in, and what was evicted, from a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from processor import metrics
from processor.reading import log_reader
from processor.reading.kafka import KafkaError, Record
from processor.reading.message import Message
from processor.replay import answers as answers_module
from processor.replay import read_back as module
from processor.replay.answers import Answers
from processor.replay.read_back import Reader, Unavailable
from processor.replay.windows import Windows
from processor.settings import ProcessorSettings
from registry.resume import Ask, Question, push_in
from tests.support.kafka import KafkaServer
from tests.support.kcat import kcat

pytestmark = pytest.mark.anyio

ROOM = 4 * 1024 * 1024


class Back(NamedTuple):
    """What was read back."""

    start: int
    offsets: list[int]
    messages: list[Message]


class Rig:
    """Partition 0 of a topic, and what reads it back."""

    def __init__(self, kafka: KafkaServer, topic: str, producer: AIOKafkaProducer) -> None:
        self.partition = TopicPartition(topic, 0)
        self.bootstrap = kafka.bootstrap
        self._producer = producer
        self._settings = {
            "internal_secret": "s" * 32,
            "kafka_bootstrap": kafka.bootstrap,
            "kafka_topics": topic,
        }

    def reader(self, **settings: object) -> Reader:
        return Reader(ProcessorSettings.model_validate({**self._settings, **settings}))

    async def publish(
        self, numbers: Iterable[int], *, value: bytes = b"%d", partition: int = 0
    ) -> None:
        for number in numbers:
            data = value % number if b"%" in value else value
            await self._producer.send_and_wait(
                self.partition.topic, data, key=b"alice", partition=partition
            )

    async def send(self, user: str, data: bytes) -> None:
        """Publish without a wait for the broker's answer."""
        await self._producer.send(self.partition.topic, data, key=user.encode(), partition=0)

    async def flush(self) -> None:
        await self._producer.flush()

    async def delete_before(self, offset: int, kafka: KafkaServer) -> None:
        """Take records as retention does."""
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
        await admin.start()
        try:
            await admin.delete_records({self.partition: RecordsToDelete(before_offset=offset)})
        finally:
            await admin.close()

    async def set_configs(self, configs: dict[str, str], kafka: KafkaServer) -> None:
        """Set values of the topic's configuration."""
        resource = ConfigResource(ConfigResourceType.TOPIC, self.partition.topic, configs)
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
        await admin.start()
        try:
            await admin.alter_configs([resource])
        finally:
            await admin.close()

    async def read(self, start: int, end: int) -> Back:
        reader, messages = self.reader(), list[Message]()
        first = await reader.earlier(self.partition, start, end, messages.extend)
        return Back(first, [message.offset for message in messages], messages)


@pytest.fixture
async def reader(rig: Rig) -> AsyncIterator[Reader]:
    """A reader of scattered messages."""
    reader = rig.reader()
    yield reader
    await reader.close()


@pytest.fixture
async def rig(kafka: KafkaServer, topic: str) -> AsyncIterator[Rig]:
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap)
    await producer.start()
    yield Rig(kafka, topic, producer)
    await producer.stop()


async def test_it_reads_from_an_offset_on_and_up_to_another(rig: Rig) -> None:
    await rig.publish(range(20))
    before = metrics.READ_BACK._value.get()
    back = await rig.read(3, 17)
    assert metrics.READ_BACK._value.get() == before + 1
    assert (back.start, back.offsets) == (3, [*range(3, 17)])
    first = back.messages[0].push
    assert (first.user, first.data) == ("alice", b"3")
    assert first.position == f"{rig.partition.topic}-0-3"


async def test_nothing_between_two_offsets_is_nothing(rig: Rig) -> None:
    await rig.publish(range(3))
    back = await rig.read(3, 3)
    assert (back.start, back.offsets) == (3, [])


async def test_records_that_break_the_rules_are_passed_over(rig: Rig) -> None:
    await rig.publish([0])
    await rig._producer.send_and_wait(rig.partition.topic, b"no key", partition=0)
    await rig.publish([2])
    assert (await rig.read(0, 3)).offsets == [0, 2]


async def test_what_retention_took_is_not_claimed(
    real_kafka: KafkaServer, topic: str, rig: Rig
) -> None:
    await rig.publish(range(10))
    await rig.delete_before(6, real_kafka)
    back = await rig.read(2, 9)
    assert (back.start, back.offsets) == (6, [6, 7, 8])


@pytest.mark.parametrize(
    ("policy", "lag_ms", "start"),
    [("compact", 0, 9), ("compact,delete", 119_000, 9), ("compact", 120_000, 2), ("delete", 0, 2)],
)
async def test_what_compaction_may_have_taken_is_not_claimed(
    real_kafka: KafkaServer, topic: str, rig: Rig, policy: str, lag_ms: int, start: int
) -> None:
    await rig.publish(range(10))
    await rig.set_configs(
        {"cleanup.policy": policy, "min.compaction.lag.ms": str(lag_ms)}, real_kafka
    )
    assert (await rig.read(2, 9)).start == start


async def test_a_topic_whose_settings_nobody_says_is_taken_for_one_without_compaction(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def denied(*_: object) -> float:
        raise KafkaError("denied")

    monkeypatch.setattr(module, "compaction_lag_seconds", denied)
    await rig.publish(range(3))
    assert (await rig.read(0, 3)).offsets == [0, 1, 2]


@pytest.mark.parametrize("beginnings", [(0, 6), (6, 6), (0, 20)])
async def test_what_retention_takes_while_it_is_read_is_not_claimed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, beginnings: tuple[int, int]
) -> None:
    answers = iter(beginnings)

    async def first_offset(*_: object) -> int:
        return next(answers)

    monkeypatch.setattr(log_reader.LogReader, "first_offset", first_offset)
    await rig.publish(range(10))
    assert (await rig.read(2, 9)).start == min(9, max(beginnings))


async def test_offsets_that_never_come_are_not_waited_for_for_ever(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SECONDS", 1.0)
    await rig.publish(range(3))
    async with asyncio.timeout(10):
        with pytest.raises(Unavailable):
            await rig.read(0, 50)


async def test_where_no_broker_answers_there_is_nothing_now(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SECONDS", 2.0)
    away = rig.reader(kafka_bootstrap="127.0.0.1:1")
    async with asyncio.timeout(10):
        with pytest.raises(Unavailable):
            await away.earlier(rig.partition, 0, 50, list[Message]().extend)
        with pytest.raises(Unavailable):
            await away.scattered(rig.partition, [1], most_bytes=ROOM)


async def test_a_log_that_ends_in_front_was_made_anew(rig: Rig, reader: Reader) -> None:
    await rig.publish(range(3))
    with pytest.raises(Unavailable):
        await rig.read(100, 200)
    with pytest.raises(Unavailable):
        await reader.scattered(rig.partition, [100], most_bytes=ROOM)


async def test_records_that_can_not_be_decoded_are_passed_over(rig: Rig, reader: Reader) -> None:
    """aiokafka can't decode a header's name that is not UTF-8: such a record was rejected."""
    await rig.publish(range(3))
    kcat(rig.bootstrap, rig.partition.topic, "-k", "alice", "-H", b"\xff\xfe=x", line=b"bad")
    await rig.publish(range(4, 7))
    back = await rig.read(0, 7)
    assert (back.start, back.offsets) == (0, [0, 1, 2, 4, 5, 6])
    found = await reader.scattered(rig.partition, [1, 6], most_bytes=ROOM)
    assert [each.push.data for each in found.values() if each] == [b"1", b"6"]


# Scattered messages


async def test_scattered_messages_are_read_by_their_offsets(rig: Rig, reader: Reader) -> None:
    await rig.publish(range(30))
    for offsets in ([3, 4, 9, 29], [0], [28, 29]):
        found = await reader.scattered(rig.partition, offsets, most_bytes=ROOM)
        assert list(found) == offsets
        pushes = [each.push for each in found.values() if each is not None]
        assert [push.data for push in pushes] == [b"%d" % at for at in offsets]
        assert pushes[0].position == f"{rig.partition.topic}-0-{offsets[0]}"


async def test_near_messages_are_read_in_one_go_and_others_are_not_read_in_vain(
    rig: Rig, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_NEAR", 5)
    await rig.publish(range(60))
    parts: list[tuple[int, int]] = []
    between = reader._scattered.between

    def noted(
        partition: TopicPartition, start: int, end: int
    ) -> AsyncGenerator[Sequence[Record], None]:
        parts.append((start, end))
        return between(partition, start, end)

    monkeypatch.setattr(reader._scattered, "between", noted)
    found = await reader.scattered(rig.partition, [2, 7, 8, 40, 59], most_bytes=ROOM)
    assert list(found) == [2, 7, 8, 40, 59]
    assert parts == [(2, 9), (40, 41), (59, 60)]


async def test_two_partitions_are_read_with_one_connection(rig: Rig, reader: Reader) -> None:
    await rig.publish(range(3))
    other = TopicPartition(rig.partition.topic, 1)
    await rig.publish(range(10, 13), partition=1)
    for _ in range(3):
        for partition, data in ((rig.partition, b"1"), (other, b"11")):
            found = await reader.scattered(partition, [1], most_bytes=ROOM)
            assert [each.push.data for each in found.values() if each] == [data]


async def test_messages_that_kafka_has_no_more_are_told_from_the_others(
    real_kafka: KafkaServer, topic: str, rig: Rig, reader: Reader
) -> None:
    await rig.publish(range(10))
    await rig.delete_before(6, real_kafka)
    found = await reader.scattered(rig.partition, [1, 5, 6, 8], most_bytes=ROOM)
    assert {at: each is not None for at, each in found.items()} == {
        1: False,
        5: False,
        6: True,
        8: True,
    }


async def test_no_more_bytes_are_read_than_there_is_room_for(rig: Rig, reader: Reader) -> None:
    await rig.publish(range(8), value=b"x" * 60_000)
    found = await reader.scattered(rig.partition, [*range(8)], most_bytes=150_000)
    assert [*found] == [*range(len(found))]
    assert 3 <= len(found) < 8


async def test_where_the_time_is_up_what_was_read_counts(
    rig: Rig, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SCATTERED_SECONDS", 1.0)
    await rig.publish(range(3))
    async with asyncio.timeout(10):
        found = await reader.scattered(rig.partition, [0, 2, 3], most_bytes=ROOM)
    assert [*found] == [0, 2], "3 is still to be written"


async def test_an_idle_connection_is_ended_and_made_anew(
    rig: Rig, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.publish(range(3))
    await reader.scattered(rig.partition, [1], most_bytes=ROOM)
    assert not reader.is_idle
    monkeypatch.setattr(log_reader, "_IDLE_SECONDS", 0.0)
    assert reader.is_idle
    await reader.close()
    assert not reader.is_idle
    assert list(await reader.scattered(rig.partition, [2], most_bytes=ROOM)) == [2]


# All together


class Member:
    """A member that owns one partition, up to where it has taken in."""

    def __init__(self, partition: TopicPartition, end: int) -> None:
        self._partition = partition
        self._end = end

    async def prove(self, *, lone: bool = False) -> dict[TopicPartition, int]:
        return {self._partition: self._end}

    def partition_counts(self) -> dict[str, int]:
        return {self._partition.topic: 4}

    def log_end(self, partition: TopicPartition) -> int:
        return self._end


async def test_users_who_missed_much_get_all_of_it_page_by_page(
    rig: Rig, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers_module, "MOST_SCATTERED", 600)
    users = [f"u{number}" for number in range(40)]
    count = 4_000
    for number in range(count):
        await rig.send(users[number * 7 % 40], b"%d" % number)
    await rig.flush()
    windows = Windows(seconds=60.0, most_bytes=300_000)
    windows.begin({rig.partition: 0})
    await reader.earlier(rig.partition, 0, count, partial(windows.take, rig.partition))
    assert windows.evict()
    assert windows.of(rig.partition).has_evicted
    member = Member(rig.partition, count)
    answers = Answers("p", member, windows, lambda _: None, reader, keep_seconds=60.0)
    got: dict[str, list[int]] = {user: [] for user in users}
    asked, pages = users, 0
    while asked:
        pages += 1
        at = {user: got[user][-1] if got[user] else -1 for user in asked}
        answer = await answers.answer(
            Ask(1, [Question(user, None, 0, [(*rig.partition, at[user])]) for user in asked])
        )
        for user, replay in zip(asked, answer.replays, strict=True):
            assert not replay.incomplete
            got[user] += [int(push_in(message).data) for message in replay.messages]
        asked = [user for user, replay in zip(asked, answer.replays, strict=True) if replay.cut]
        assert any(got[user][-1] > at[user] for user in at), "no step forward"
    assert pages >= 4
    for user, found in got.items():
        assert found == [n for n in range(count) if users[n * 7 % 40] == user]
