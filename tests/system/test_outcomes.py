"""What publishers hear of their messages: the outcomes topic, read by a plain consumer."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from tests.support.clients import connect
from tests.support.kafka import KafkaServer
from tests.support.processes import GatewayProcess
from tests.system.conftest import StartProcessor
from tests.system.returning import RESUMING, cursor_of, everything, gone
from tests.system.steps import publish, take

pytestmark = pytest.mark.anyio


class Told:
    """The records of an outcomes topic, by message id."""

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer = consumer
        self.keys: dict[str, set[bytes]] = {}
        self.by_id: dict[str, list[dict[str, Any]]] = {}
        self.partitions: dict[bytes, set[int]] = {}

    async def until(self, *ids: str, times: int = 1, timeout: float = 15.0) -> None:
        """Read until each id was told of so many times."""
        async with asyncio.timeout(timeout):
            while not all(len(self.by_id.get(each, ())) >= times for each in ids):
                await self.read_one()

    async def read_one(self) -> None:
        """Read one record."""
        record = await self._consumer.getone()
        assert record.value is not None
        assert record.key is not None
        told = json.loads(record.value)
        self.by_id.setdefault(told["id"], []).append(told)
        self.keys.setdefault(told["id"], set()).add(record.key)
        self.partitions.setdefault(record.key, set()).add(record.partition)


@asynccontextmanager
async def listening(kafka: KafkaServer, topic: str) -> AsyncIterator[Told]:
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=kafka.bootstrap,
        auto_offset_reset="earliest",
        metadata_max_age_ms=500,
    )
    await consumer.start()
    try:
        yield Told(consumer)
    finally:
        await consumer.stop()


async def test_every_outcome_is_told_under_its_user_with_what_is_known_of_it(
    kafka: KafkaServer,
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    start_processor(outcomes_topic=f"{topic}.outcomes")
    async with (
        connect("ws-v1", gateways[0].port, user, device="phone") as client,
        listening(kafka, f"{topic}.outcomes") as told,
    ):
        sent = {
            "delivered": await publish(backend, topic, user, b"1"),
            "offline": await publish(backend, topic, f"{user}-absent", b"2"),
            "rejected": await publish(backend, topic, user, b"3", {"push-ttl": "soon"}),
        }
        await publish(backend, topic, user, b"4", {"push-id": "mine", "push-device": "phone"})
        await take(client, 2)
        await told.until(sent["delivered"], sent["offline"], "mine", sent["rejected"])
    delivered, offline = told.by_id[sent["delivered"]][0], told.by_id[sent["offline"]][0]
    assert (delivered["outcome"], delivered["connections"]) == ("delivered", 1)
    assert (delivered["node"], delivered["nodes"]) == (gateways[0].name, [gateways[0].name])
    assert (offline["outcome"], offline["node"], offline["connections"]) == ("offline", None, 0)
    assert told.by_id["mine"][0]["device"] == "phone"
    (rejected,) = told.by_id[sent["rejected"]]
    assert (rejected["outcome"], rejected["reason"]) == ("rejected", "push-ttl")
    assert told.keys[sent["delivered"]] == {user.encode()}
    assert told.keys[sent["offline"]] == {f"{user}-absent".encode()}
    assert len(told.partitions[user.encode()]) == 1
    for each in (delivered, offline):
        assert 0 <= each["settled_ms"] - each["published_ms"] == each["ms"] < 60_000
        assert f"{each['topic']}-{each['partition']}-{each['offset']}" == each["id"]


async def test_a_replaced_and_an_expired_message_are_told_apart(
    kafka: KafkaServer,
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    # Published before there is a processor: so they are in hand together.
    headers = {"push-collapse-key": "score"}
    older = await publish(backend, topic, user, b"1:0", headers)
    newer = await publish(backend, topic, user, b"2:0", headers)
    expired = await publish(backend, topic, user, b"x", {"push-ttl": "1", "ce_time": _LONG_AGO})
    async with connect("ws-v1", gateways[0].port, user) as client:
        start_processor(outcomes_topic=f"{topic}.outcomes", kafka_start="earliest")
        async with listening(kafka, f"{topic}.outcomes") as told:
            await told.until(older, newer, expired)
        assert [message.payload for message in await take(client, 1)] == [b"2:0"]
    found = {each: told.by_id[each][0]["outcome"] for each in (older, newer, expired)}
    assert found == {older: "replaced", newer: "delivered", expired: "expired"}


_LONG_AGO = "2001-01-01T00:00:00Z"


async def test_a_record_without_a_timestamp_is_published_when_it_is_read(
    kafka: KafkaServer,
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    start_processor(outcomes_topic=f"{topic}.outcomes")
    began_ms = int(time.time() * 1000)
    async with (
        connect("ws-v1", gateways[0].port, user) as client,
        listening(kafka, f"{topic}.outcomes") as told,
    ):
        ids = []
        for ttl in (b"60", b"soon"):  # one is delivered, the other rejected
            kept = await backend.send_and_wait(
                topic, b"x", key=user.encode(), headers=[("push-ttl", ttl)], timestamp_ms=-1
            )
            ids.append(f"{kept.topic}-{kept.partition}-{kept.offset}")
        await take(client, 1)
        await told.until(*ids)
    reports = [told.by_id[each][0] for each in ids]
    assert [report["outcome"] for report in reports] == ["delivered", "rejected"]
    for report in reports:
        assert began_ms <= report["published_ms"] <= report["settled_ms"]


@pytest.mark.parametrize("transport", RESUMING)
async def test_what_a_client_gets_when_it_comes_back_is_told_once_more(
    transport: str,
    kafka: KafkaServer,
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    await asyncio.to_thread(start_processor, outcomes_topic=f"{topic}.outcomes")
    async with (
        gone(transport, gateways[0], user) as cursors,
        listening(kafka, f"{topic}.outcomes") as told,
    ):
        missed = [await publish(backend, topic, user, b"%d" % number) for number in range(5)]
        await told.until(*missed)
        assert {told.by_id[each][0]["outcome"] for each in missed} == {"offline"}
        for expected in ([*"01234", "live"], ["later"]):  # the second time nothing was missed
            async with connect(transport, gateways[1].port, user, cursor=cursors[-1]) as client:
                last = await publish(backend, topic, user, expected[-1].encode())
                assert await everything(client, expected[-1].encode()) == expected
                cursors.append(cursor_of(client))
                await told.until(*missed, times=2)
                await told.until(last)
    for each in missed:
        first, second = told.by_id[each]
        assert (first["outcome"], "replayed" in first) == ("offline", False)
        assert (second["outcome"], second["replayed"]) == ("delivered", True)
        assert (second["node"], second["connections"]) == (gateways[1].name, 1)
        assert (second["published_ms"], second["topic"]) == (None, topic)
        assert f"{second['topic']}-{second['partition']}-{second['offset']}" == each
        assert told.keys[each] == {user.encode()}
    others = [reports for each, reports in told.by_id.items() if each not in missed]
    assert [[report["outcome"] for report in reports] for reports in others] == [["delivered"]] * 2


async def test_a_sample_tells_some_and_the_same_ones_again(
    kafka: KafkaServer,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    start_processor(outcomes_topic=f"{topic}.outcomes", outcomes_sample=0.5)
    first = [await publish(backend, topic, user, b"x", {"push-id": f"{n}"}) for n in range(200)]
    assert len(first) == 200
    for n in range(200):
        await publish(backend, topic, user, b"x", {"push-id": f"{n}"})
    last = [f"end-{n}" for n in range(64)]  # some of these are told, so all before them are
    for each in last:
        await publish(backend, topic, user, b"x", {"push-id": each})
    async with listening(kafka, f"{topic}.outcomes") as told:
        async with asyncio.timeout(15):
            while not any(each in told.by_id for each in last):
                await told.read_one()
    sampled = {each: len(rows) for each, rows in told.by_id.items() if each not in last}
    assert 60 < len(sampled) < 140
    assert set(sampled.values()) == {2}
