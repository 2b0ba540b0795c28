"""The embedded broker takes idempotent and transactional producers, and holds nobody up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, ProducerFenced

from pushgate.embedded import tied_to_parent
from pushgate.embedded.kafka import FETCH_WAIT_MS, EmbeddedKafka
from tests.support.clients import eventually
from tests.support.npm import install

pytestmark = pytest.mark.anyio

#: A time-out of a transaction that no test waits for.
LONG_MS = 600_000


@pytest.fixture
async def broker() -> AsyncIterator[str]:
    async with EmbeddedKafka(port=0) as kafka:
        yield kafka.bootstrap


def transactional(broker: str, name: str, *, timeout_ms: int = LONG_MS) -> AIOKafkaProducer:
    return AIOKafkaProducer(
        bootstrap_servers=broker, transactional_id=name, transaction_timeout_ms=timeout_ms
    )


class Reader:
    """Reads what is committed of partition 0, with checksums verified, as processors do."""

    def __init__(self, broker: str) -> None:
        self.values: list[bytes] = []
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=broker,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            fetch_max_wait_ms=FETCH_WAIT_MS,
            check_crcs=True,
        )

    async def __aenter__(self) -> Reader:
        await self._consumer.start()
        self._consumer.assign([TopicPartition("t", 0)])
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._reading.cancel()
        await asyncio.wait((self._reading,))
        await self._consumer.stop()

    async def _read(self) -> None:
        async for record in self._consumer:
            self.values.append(record.value or b"")

    async def has(self, *values: bytes) -> None:
        await eventually(lambda: self.values == list(values), f"{values} of {self.values}")


async def send_for_ever(producer: AIOKafkaProducer) -> None:
    while True:
        await send(producer, b"later")


async def send(producer: AIOKafkaProducer, value: bytes) -> None:
    await producer.send_and_wait("t", value, partition=0)


async def test_what_is_committed_comes_and_what_is_aborted_does_not(broker: str) -> None:
    async with (
        transactional(broker, "a") as producer,
        AIOKafkaProducer(bootstrap_servers=broker) as plain,
        Reader(broker) as reader,
    ):
        for value in (b"1", b"2"):
            async with producer.transaction():
                await send(producer, value)
        await producer.begin_transaction()
        await send(producer, b"aborted")
        await producer.abort_transaction()
        await send(plain, b"3")
        await reader.has(b"1", b"2", b"3")


async def test_an_idempotent_producer_is_one_among_others(broker: str) -> None:
    async with (
        AIOKafkaProducer(bootstrap_servers=broker, enable_idempotence=True) as producer,
        Reader(broker) as reader,
    ):
        for value in (b"1", b"2"):
            await send(producer, value)
        await reader.has(b"1", b"2")


async def test_a_transaction_that_stays_open_holds_nobody_up(broker: str) -> None:
    async with (
        transactional(broker, "open") as producer,
        AIOKafkaProducer(bootstrap_servers=broker) as plain,
        Reader(broker) as reader,
    ):
        await producer.begin_transaction()
        await send(producer, b"uncommitted")
        await send(plain, b"behind")
        await reader.has(b"behind")
        await producer.commit_transaction()
        await reader.has(b"behind", b"uncommitted")


async def test_a_transaction_ends_at_its_time_out_and_its_producer_learns_of_it(
    broker: str,
) -> None:
    late, slow = (transactional(broker, name, timeout_ms=1_000) for name in ("late", "slow"))
    async with AIOKafkaProducer(bootstrap_servers=broker) as plain, Reader(broker) as reader:
        for producer in (late, slow):
            await producer.start()
            await producer.begin_transaction()
            await send(producer, b"late")
        with pytest.raises(ProducerFenced):
            await send_for_ever(slow)
        with pytest.raises(ProducerFenced):
            await late.commit_transaction()
        await send(plain, b"behind")
        await reader.has(b"behind")
        for producer in (late, slow):
            with suppress(KafkaError):
                await producer.stop()


async def test_a_new_producer_of_the_same_name_ends_the_transaction_of_the_old(
    broker: str,
) -> None:
    old = transactional(broker, "same")
    async with Reader(broker) as reader:
        await old.start()
        await old.begin_transaction()
        await send(old, b"old")
        async with transactional(broker, "same") as new, new.transaction():
            await send(new, b"new")
        await reader.has(b"new")
        with pytest.raises(KafkaError):
            await send(old, b"zombie")
        with suppress(KafkaError):
            await old.stop()


async def test_a_connection_that_speaks_no_kafka_ends_alone(broker: str) -> None:
    host, _, port = broker.partition(":")
    for garbage in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\0\0\x01x",
        b"\0\0\0\x0c\0\x16\0\x04\0\0\0\0\xff\xff\0\xff",
    ):
        incoming, writer = await asyncio.open_connection(host, int(port))
        writer.write(garbage)
        assert await incoming.read() == b""
        writer.close()
    async with AIOKafkaProducer(bootstrap_servers=broker) as plain, Reader(broker) as reader:
        await send(plain, b"1")
        await reader.has(b"1")


async def test_librdkafka_commits_too(broker: str) -> None:
    confluent = pytest.importorskip("confluent_kafka")
    producer = confluent.Producer({"bootstrap.servers": broker, "transactional.id": "c"})

    def publish() -> None:
        producer.init_transactions(10)
        for value, commits in ((b"1", True), (b"aborted", False), (b"2", True)):
            producer.begin_transaction()
            producer.produce("t", value, partition=0)
            (producer.commit_transaction if commits else producer.abort_transaction)(10)

    async with Reader(broker) as reader:
        await asyncio.to_thread(publish)
        await reader.has(b"1", b"2")


async def test_kafkajs_commits_too(broker: str, tmp_path: Path) -> None:
    sources = Path(__file__).parents[1] / "support" / "kafkajs"
    if missing := await asyncio.to_thread(install, sources, tmp_path):
        pytest.skip(missing)
    async with Reader(broker) as reader:
        node = await asyncio.create_subprocess_exec(
            *tied_to_parent(["node", "transactions.mjs", broker]), cwd=tmp_path
        )
        assert await asyncio.wait_for(node.wait(), 30) == 0
        await reader.has(b"1", b"2", b"3")
