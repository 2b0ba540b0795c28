"""Reading back what an earlier owner took in, from a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from processor import metrics
from processor.replay import read_back as module
from processor.replay.read_back import ReadBack, Reader, Unreadable
from processor.settings import ProcessorSettings
from tests.support.kafka import KafkaServer

pytestmark = pytest.mark.anyio


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

    async def publish(self, numbers: Iterable[int], *, value: bytes = b"%d") -> None:
        for number in numbers:
            data = value % number if b"%" in value else value
            await self._producer.send_and_wait(
                self.partition.topic, data, key=b"alice", partition=0
            )

    async def read(self, start: int, end: int) -> ReadBack:
        found = await self.reader().read(self.partition, start, end)
        assert found is not None
        return found


@pytest.fixture
async def rig(kafka: KafkaServer, topic: str) -> AsyncIterator[Rig]:
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap)
    await producer.start()
    yield Rig(kafka, topic, producer)
    await producer.stop()


def offsets(back: ReadBack) -> list[int]:
    return [message.offset for message in back.messages]


async def test_it_reads_from_an_offset_on_and_up_to_another(rig: Rig) -> None:
    await rig.publish(range(20))
    before = metrics.READ_BACK._value.get()
    back = await rig.read(3, 17)
    assert metrics.READ_BACK._value.get() == before + 1
    assert (back.start, offsets(back)) == (3, [*range(3, 17)])
    first = back.messages[0].push
    assert (first.user, first.data) == ("alice", b"3")
    assert first.position == f"{rig.partition.topic}-0-3"


async def test_nothing_between_two_offsets_is_nothing(rig: Rig) -> None:
    await rig.publish(range(3))
    back = await rig.read(3, 3)
    assert (back.start, offsets(back)) == (3, [])


async def test_records_that_break_the_rules_are_passed_over(rig: Rig) -> None:
    await rig.publish([0])
    await rig._producer.send_and_wait(rig.partition.topic, b"no key", partition=0)
    await rig.publish([2])
    assert offsets(await rig.read(0, 3)) == [0, 2]


async def test_what_retention_took_is_not_claimed(
    real_kafka: KafkaServer, topic: str, rig: Rig
) -> None:
    await rig.publish(range(10))
    admin = AIOKafkaAdminClient(bootstrap_servers=real_kafka.bootstrap)
    await admin.start()
    try:
        await admin.delete_records({rig.partition: RecordsToDelete(before_offset=6)})
    finally:
        await admin.close()
    back = await rig.read(2, 9)
    assert (back.start, offsets(back)) == (6, [6, 7, 8])


async def test_more_than_there_is_room_for_is_refused(rig: Rig) -> None:
    await rig.publish(range(8), value=b"x" * 200_000)
    reader = rig.reader(resume_bytes=1024 * 1024)
    with pytest.raises(Unreadable):
        await reader.read(rig.partition, 0, 8)
    assert await reader.read(rig.partition, 5, 8) is not None


async def test_offsets_that_never_come_are_not_waited_for_for_ever(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SECONDS", 1.0)
    await rig.publish(range(3))
    async with asyncio.timeout(10):
        assert await rig.reader().read(rig.partition, 0, 50) is None


async def test_where_no_broker_answers_there_is_nothing_now(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SECONDS", 2.0)
    async with asyncio.timeout(10):
        away = rig.reader(kafka_bootstrap="127.0.0.1:1")
        assert await away.read(rig.partition, 0, 50) is None


async def test_a_record_that_can_not_be_decoded_is_not_read_again_and_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def undecodable(*_: object) -> AsyncIterator[tuple[int, list[object]]]:
        yield 0, []
        b"\xff".decode()  # as aiokafka does with a header's name (reader.py)

    monkeypatch.setattr(module, "records_between", undecodable)
    with pytest.raises(Unreadable):
        await rig.reader().read(rig.partition, 0, 3)
