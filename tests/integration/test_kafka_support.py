"""The servers that the other tests trust are what they claim to be."""

import os
import time
import uuid
from collections.abc import Callable

import pytest
import redis
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from pushgate.embedded.kafka import FETCH_WAIT_MS
from tests.support.kafka import KafkaError, KafkaServer, start_kafka
from tests.support.valkey import Kind, RedisServer, redis_is_installed


def test_the_broker_is_real_where_it_must_be(
    kafka: KafkaServer, record_property: Callable[[str, object], None]
) -> None:
    record_property("kafka", kafka.kind)
    if os.environ.get("PUSHGATE_REQUIRE_REAL_KAFKA") == "1":
        assert kafka.kind != "embedded", kafka.missing


def test_falling_back_is_an_error_where_a_real_broker_is_required(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shutil.which", lambda _name: None)
    with pytest.raises(KafkaError, match="there is no Java"):
        start_kafka({"PUSHGATE_REQUIRE_REAL_KAFKA": "1"})


def test_without_java_the_broker_is_the_embedded_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _name: None)
    server = start_kafka({})
    server.stop()
    assert (server.kind, server.missing) == ("embedded", "there is no Java")


@pytest.mark.anyio
async def test_what_is_produced_is_consumed(kafka: KafkaServer, topic: str) -> None:
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap) as producer:
        await producer.send_and_wait(topic, b"value", key=b"user", headers=[("push-id", b"1")])
    async with _member(kafka, topic, uuid.uuid4().hex) as consumer:
        record = await consumer.getone()
    assert (record.key, record.value, record.headers) == (b"user", b"value", (("push-id", b"1"),))


@pytest.mark.anyio
@pytest.mark.parametrize("topic", [2], indirect=True)
async def test_two_members_share_a_topic(real_kafka: KafkaServer, topic: str) -> None:
    group = uuid.uuid4().hex
    async with _member(real_kafka, topic, group) as one, _member(real_kafka, topic, group) as two:
        deadline = time.monotonic() + 30
        while {len(one.assignment()), len(two.assignment())} != {1}:
            assert time.monotonic() < deadline
            await one.getmany(timeout_ms=50)


@pytest.mark.parametrize("kind", ["valkey", "redis"])
def test_a_frozen_server_answers_once_thawed_and_a_killed_one_is_empty(kind: Kind) -> None:
    if kind == "redis" and not redis_is_installed():
        pytest.skip("needs redis-server in the PATH")
    with (
        RedisServer(kind) as server,
        redis.Redis.from_url(server.url, socket_timeout=0.2, retry=None) as client,
    ):
        client.set("key", "value")
        server.freeze()
        with pytest.raises(redis.TimeoutError):
            client.get("key")
        server.thaw()
        assert client.get("key") == b"value"
        server.restart()
        assert client.get("key") is None


def _member(kafka: KafkaServer, topic: str, group: str) -> AIOKafkaConsumer:
    return AIOKafkaConsumer(
        topic,
        bootstrap_servers=kafka.bootstrap,
        group_id=group,
        auto_offset_reset="earliest",
        heartbeat_interval_ms=200,
        fetch_max_wait_ms=FETCH_WAIT_MS,
    )
