"""Lanes, repeats and gateways that fail, with real processes and a real Kafka."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import httpx
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.support.clients import connect, eventually
from tests.support.kafka import KafkaServer
from tests.support.processes import GatewayProcess, ProcessorProcess
from tests.system.conftest import StartGateway, StartProcessor
from tests.system.steps import (
    outcomes,
    publish,
    publish_all,
    take,
    until_last,
    until_outcomes,
    without_repeats,
)
from tests.system.traffic import measure

pytestmark = pytest.mark.anyio

DELIVERED: Final = ("delivered", "")


async def test_a_frozen_gateway_holds_up_its_own_users_alone(
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    frozen, steady = start_gateway(), start_gateway()
    start_processor(forward_timeout_seconds=5)
    others = [f"{user}-{number}" for number in range(8)]
    async with connect("ws-v1", frozen.port, user), connect("ws-v1", steady.port, others[0]) as one:
        frozen.freeze()
        try:
            for number in range(20):
                await publish(backend, topic, user, b"for the frozen one")
                began = time.monotonic()
                await publish(backend, topic, others[0], str(number).encode())
                assert (await one.message()).payload == str(number).encode()
                assert time.monotonic() - began < 4.0, "it waited for the frozen gateway's time-out"
        finally:
            frozen.thaw()


async def test_a_gateway_that_thaws_gets_the_messages_that_waited(
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    gateway = start_gateway()
    processor = start_processor(forward_timeout_seconds=0.5)
    async with connect("ws-v1", gateway.port, user) as client:
        gateway.freeze()
        for number in range(5):
            await publish(backend, topic, user, str(number).encode())
        silent = 'pushgate_processor_waiting_messages{for="silent"}'

        async def all_wait() -> bool:
            return await measure(processor, silent) == 5

        await eventually(all_wait, "the messages wait", timeout_seconds=10.0)
        gateway.thaw()
        got = [message.payload for message in await take(client, 5, timeout=15.0)]
        assert got == [b"0", b"1", b"2", b"3", b"4"]
        await until_outcomes([processor], {DELIVERED: 5})


async def test_a_flood_of_low_does_not_delay_high(
    kafka: KafkaServer,
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    low, high = f"{topic}.low", f"{topic}.high"
    for each in (low, high):  # both exist before there is a group
        await publish(backend, each, f"{user}-nobody", b"first")
    async with connect("ws-v1", gateways[0].port, user) as client:
        processor = start_processor(
            kafka_topics=f"{high},{low}",
            kafka_weights="4,1",
            kafka_start="earliest",
            batch_messages=200,
        )
        flood = asyncio.create_task(
            publish_all(backend, low, f"{user}-nobody", ["x" * 200] * 30_000)
        )
        slowest = 0.0
        count = 0
        while not flood.done() or count < 20:
            began = time.monotonic()
            await publish(backend, high, user, b"urgent")
            await client.message()
            slowest = max(slowest, time.monotonic() - began)
            count += 1
        await flood
        offline = ("offline", "")

        async def all_through() -> bool:
            return (await outcomes(processor)).get(offline, 0) >= 30_001

        await eventually(
            all_through, "the flood is through: low is not starved", timeout_seconds=60
        )
    assert slowest < 2.0


async def test_after_a_kill_nobody_who_stays_sees_a_message_twice(
    real_kafka: KafkaServer,
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    doomed = start_processor()
    start_processor()
    users = [f"{user}-{number}" for number in range(6)]
    texts = [str(number) for number in range(2_000)]
    async with (
        connect("ws-v1", gateways[0].port, users[0]) as a,
        connect("ws-v1", gateways[1].port, users[1]) as b,
        connect("sse", gateways[0].port, users[2]) as c,
    ):
        publishing = asyncio.gather(
            *(publish_all(backend, topic, name, [*texts, "last"]) for name in users)
        )
        early = await take(a, 100)
        await asyncio.to_thread(doomed.kill)
        await publishing
        rest = await asyncio.gather(*(until_last(client, b"last") for client in (a, b, c)))
    for got in ([*early, *rest[0]], *rest[1:]):
        arrived = [message.payload.decode() for message in got]
        assert arrived == [*texts, "last"], "in order, and none twice"
        assert len(without_repeats(got)) == len(got)


async def test_members_that_come_and_go_lose_nothing_and_keep_each_users_order(
    real_kafka: KafkaServer,
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    start_processor()
    users = [f"{user}-{number}" for number in range(4)]
    texts = [str(number) for number in range(3_000)]

    async def paced(name: str) -> None:
        for start in range(0, len(texts), 100):
            await publish_all(backend, topic, name, texts[start : start + 100])
        await publish(backend, topic, name, b"last")

    async with (
        connect("ws-v1", gateways[0].port, users[0]) as a,
        connect("ws-v1", gateways[1].port, users[1]) as b,
        connect("sse", gateways[0].port, users[2]) as c,
        connect("ws-plain", gateways[1].port, users[3]) as d,
    ):
        publishing = asyncio.gather(*map(paced, users))
        for _ in range(3):
            joining = await asyncio.to_thread(start_processor)
            await asyncio.to_thread(joining.terminate)
        await publishing
        for client in (a, b, c, d):
            got = await until_last(client, b"last", timeout=60.0)
            assert [message.payload.decode() for message in got] == [*texts, "last"]


async def test_two_events_of_one_id_from_two_sources_both_arrive(
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    processor = start_processor()
    async with connect("ws-v1", gateways[0].port, user) as client:
        for source in ("/shop", "/bank", "/shop"):  # the last is a repeat of the first
            headers = {"ce_id": "1", "ce_source": source}
            await publish(backend, topic, user, source.encode(), headers)
        await publish(backend, topic, user, b"the end")
        got = await take(client, 3)
    assert [message.payload for message in got] == [b"/shop", b"/bank", b"the end"]
    assert [message.id for message in got[:2]] == ["1", "1"]
    await until_outcomes([processor], {DELIVERED: 4})


@pytest.mark.parametrize("topic", [1], indirect=True)
async def test_messages_of_a_topic_that_was_made_anew_are_no_repeats_of_the_old_ones(
    real_kafka: KafkaServer,
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    processor = start_processor(kafka_start="earliest")
    async with connect("ws-v1", gateways[0].port, user) as client:
        first_id = await publish(backend, topic, user, b"of the old topic")
        assert (await take(client, 1))[0].payload == b"of the old topic"
        assert await asyncio.to_thread(processor.terminate) == 0
        await make_anew(real_kafka.bootstrap, topic)
        assert await publish(backend, topic, user, b"of the new topic") == first_id
        await asyncio.to_thread(processor.start)
        assert (await take(client, 1))[0].payload == b"of the new topic"


async def make_anew(bootstrap: str, topic: str) -> None:
    """Delete a topic of one partition and create it again, empty."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()

    async def created() -> bool:
        new = NewTopic(topic, 1, replication_factor=1)
        response: Any = await admin.create_topics([new])
        return all(error_code == 0 for _, error_code, *_ in response.topic_errors)

    try:
        await admin.delete_topics([topic])
        await eventually(created, f"{topic} is there again")
    finally:
        await admin.close()


async def figures(processor: ProcessorProcess) -> dict[str, float]:
    """Give the gauges a processor is scaled and watched by; lags summed up."""
    async with httpx.AsyncClient(trust_env=False) as http:
        text = (await http.get(f"http://127.0.0.1:{processor.port}/metrics")).text
    found = {"lag": 0.0}
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith("pushgate_processor_lag_messages{"):
            found["lag"] += float(value)
        elif name in ("pushgate_processor_oldest_seconds", "pushgate_processor_in_hand_messages"):
            found[name.removeprefix("pushgate_processor_")] = float(value)
    return found


async def test_lag_and_age_say_what_waits_and_for_how_long(
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    gateway = start_gateway()
    processor = start_processor(forward_timeout_seconds=30)

    async def nothing_waits() -> bool:
        return set((await figures(processor)).values()) == {0.0}

    async with connect("ws-v1", gateway.port, user) as client:
        await publish(backend, topic, user, b"warm")
        await client.message()
        # A gateway that is frozen before its answer keeps the first message in hand, too.
        await eventually(nothing_waits, "the first message has its outcome", timeout_seconds=20.0)
        gateway.freeze()
        try:
            await publish_all(backend, topic, user, [str(number) for number in range(50)])

            async def seen() -> bool:
                found = await figures(processor)
                return (
                    found["lag"] == 50
                    and found["in_hand_messages"] == 50
                    and found["oldest_seconds"] >= 1.5
                )

            await eventually(seen, "50 messages wait, for a while already", timeout_seconds=20.0)
        finally:
            gateway.thaw()
        await take(client, 50)
        await eventually(nothing_waits, "nothing waits any more", timeout_seconds=20.0)


async def test_transactions_leave_no_lag_committed_or_aborted(
    real_kafka: KafkaServer,
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    topic: str,
    user: str,
) -> None:
    processor = start_processor(kafka_start="earliest")
    producer = AIOKafkaProducer(
        bootstrap_servers=real_kafka.bootstrap, transactional_id=f"of-{topic}"
    )
    consumer = AIOKafkaConsumer(
        bootstrap_servers=real_kafka.bootstrap, group_id=f"group-{topic}", enable_auto_commit=False
    )
    partitions = [TopicPartition(topic, number) for number in range(4)]

    async def send(count: int, partition: int) -> None:
        for number in range(count):
            payload = str(number).encode()
            await producer.send(topic, payload, key=user.encode(), partition=partition)

    async def all_committed() -> bool:
        committed = {each: await consumer.committed(each) for each in partitions}
        return bool(committed == await consumer.end_offsets(partitions))

    await producer.start()
    await consumer.start()
    try:
        async with connect("ws-v1", gateways[0].port, user) as client:
            async with producer.transaction():
                await send(3, 0)
                await send(3, 1)
            await producer.begin_transaction()
            for partition in (1, 2):
                await send(500, partition)
            await producer.flush()
            await producer.abort_transaction()
            assert len(await take(client, 6)) == 6
            await eventually(all_committed, "the broker sees no lag", timeout_seconds=20.0)
        ends = await consumer.end_offsets(partitions)
        assert [ends[each] for each in partitions] == [3 + 1, 3 + 1 + 500 + 1, 500 + 1, 0]

        async def no_lag() -> bool:
            return (await figures(processor))["lag"] == 0.0

        await eventually(no_lag, "the processor shows no lag", timeout_seconds=10.0)
    finally:
        await consumer.stop()
        await producer.stop()
