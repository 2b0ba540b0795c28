"""Outcomes are told once, unless a process crashed: while Kafka is frozen, and processors are."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from tests.support.clients import connect, eventually
from tests.support.kafka import KafkaServer
from tests.support.processes import GatewayProcess, ProcessorProcess
from tests.support.proxy import KafkaProxy
from tests.system.conftest import StartGateway, StartProcessor
from tests.system.steps import create

pytestmark = pytest.mark.anyio

#: Longer than the group waits for a silent member (six seconds).
FROZEN_SECONDS: Final = 10.0
USERS: Final = 50
MESSAGES_A_SECOND: Final = 1_000

Place = tuple[int, int]  # partition and offset of a message


class Reports:
    """Each message's reports, as the times (epoch ms) at which their outcomes were known."""

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer = consumer
        self.told: defaultdict[Place, list[int]] = defaultdict(list)

    async def read(self) -> None:
        """Read until cancelled."""
        while True:
            record = await self._consumer.getone()
            assert record.value is not None
            report = json.loads(record.value)
            self.told[report["partition"], report["offset"]].append(report["settled_ms"])

    async def complete(self, places: set[Place], processors: list[ProcessorProcess]) -> None:
        """Return with all reports: when all are told, no processor is left that tells one again."""
        await eventually(lambda: places <= self.told.keys(), "all are told", timeout_seconds=30.0)
        for processor in processors:
            await asyncio.to_thread(processor.terminate)
        ends = await self._consumer.end_offsets(self._consumer.assignment())

        async def at_the_end() -> bool:
            positions = {each: await self._consumer.position(each) for each in ends}
            return all(positions[each] == end for each, end in ends.items())

        await eventually(at_the_end, "all reports are read")

    @property
    def repeated(self) -> dict[Place, list[int]]:
        """The messages whose outcome was told more than once."""
        return {place: times for place, times in self.told.items() if len(times) > 1}


@asynccontextmanager
async def collecting(kafka: KafkaServer, topic: str) -> AsyncIterator[Reports]:
    """Collect the reports of an outcomes topic."""
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest"
    )
    async with consumer:
        reports = Reports(consumer)
        reading = asyncio.create_task(reports.read())
        yield reports
        reading.cancel()


@asynccontextmanager
async def load(backend: AIOKafkaProducer, topic: str, user: str) -> AsyncIterator[set[Place]]:
    """Publish steadily to a user and to users who are offline; give where all messages are."""
    places: set[Place] = set()
    stop = asyncio.Event()

    async def publish() -> None:
        sent = []
        for number in itertools.count():
            if stop.is_set():
                break
            to = user if number % USERS == 0 else f"{user}-{number % USERS}"
            sent.append(await backend.send(topic, b"%d" % number, key=to.encode()))
            if number % (MESSAGES_A_SECOND // 20) == 0:
                await asyncio.sleep(0.05)
        for kept in await asyncio.gather(*sent):
            places.add((kept.partition, kept.offset))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(publish())
        yield places
        stop.set()


@pytest.mark.parametrize("topic", [8], indirect=True)
async def test_a_frozen_kafka_has_no_outcome_told_twice(
    real_kafka: KafkaServer,
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    outcomes = f"{topic}.outcomes"
    await create(real_kafka, outcomes)
    processors = [
        await asyncio.to_thread(start_processor, outcomes_topic=outcomes) for _ in range(2)
    ]
    async with (
        connect("ws-v1", gateways[0].port, user),
        collecting(real_kafka, outcomes) as reports,
    ):
        async with load(backend, topic, user) as places:
            await eventually(lambda: len(reports.told) > MESSAGES_A_SECOND, "it flows")
            real_kafka.freeze()
            await asyncio.sleep(FROZEN_SECONDS)
            real_kafka.thaw()
            await asyncio.sleep(3.0)
        await reports.complete(places, processors)
    assert len(reports.repeated) == 0, f"of {len(reports.told)}"


@pytest.mark.parametrize("topic", [8], indirect=True)
async def test_a_frozen_processor_tells_nothing_that_another_has_told(
    real_kafka: KafkaServer,
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    outcomes = f"{topic}.outcomes"
    await create(real_kafka, outcomes)
    processors = [
        await asyncio.to_thread(start_processor, outcomes_topic=outcomes) for _ in range(2)
    ]
    frozen = processors[0]
    async with (
        connect("ws-v1", gateways[0].port, user),
        collecting(real_kafka, outcomes) as reports,
    ):
        async with load(backend, topic, user) as places:
            await eventually(lambda: len(reports.told) > MESSAGES_A_SECOND, "it flows")
            frozen.freeze()
            frozen_ms = int(time.time() * 1_000)
            await asyncio.sleep(FROZEN_SECONDS)
            frozen.thaw()
            await asyncio.sleep(3.0)
        await reports.complete(places, processors)
    # For the group a member that is frozen for so long has crashed: what it had settled and not
    # committed, or was just writing, is the next owner's too. That is a batch, of as many messages
    # as came while Kafka answered the last write: of no fixed number.
    late = [place for place, times in reports.repeated.items() if min(times) > frozen_ms]
    assert not late, f"settled after it froze: {len(late)} of {len(reports.repeated)} repeats"


@pytest.mark.parametrize("topic", [8], indirect=True)
async def test_members_who_could_not_commit_before_they_were_given_up_tell_nothing_twice(
    real_kafka: KafkaServer,
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    """Nothing that was told for seconds is committed: heartbeats wait behind the first commit."""
    outcomes = f"{topic}.outcomes"
    await create(real_kafka, outcomes)
    async with KafkaProxy(real_kafka.bootstrap) as proxy:
        start = partial(start_processor, outcomes_topic=outcomes, kafka_bootstrap=proxy.address)
        processors = [await asyncio.to_thread(start) for _ in range(2)]
        async with (
            connect("ws-v1", gateways[0].port, user),
            collecting(real_kafka, outcomes) as reports,
        ):
            async with load(backend, topic, user) as places:
                await eventually(lambda: len(reports.told) > MESSAGES_A_SECOND, "it flows")
                proxy.hold_commits()
                await asyncio.sleep(FROZEN_SECONDS)
                proxy.reset()
                proxy.let_through()
                await asyncio.sleep(3.0)
            await reports.complete(places, processors)
        logs = "\n\n".join(processor.log for processor in processors)  # they have ended
        assert len(reports.repeated) == 0, f"of {len(reports.told)}\n{logs}"


@pytest.mark.parametrize("topic", [1], indirect=True)
async def test_a_processor_that_stops_while_a_message_waits_has_no_outcome_told_twice(
    real_kafka: KafkaServer,
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    outcomes = f"{topic}.outcomes"
    await create(real_kafka, outcomes)
    gateway = start_gateway()
    leaving = await asyncio.to_thread(start_processor, outcomes_topic=outcomes)
    async with (
        connect("ws-v1", gateway.port, user),
        collecting(real_kafka, outcomes) as reports,
    ):
        gateway.freeze()
        first = await backend.send_and_wait(topic, b"waits", key=user.encode())
        for number in range(200):  # offline, and told so
            last = await backend.send_and_wait(topic, b"x", key=f"{user}-{number}".encode())
        assert (first.offset, last.offset) == (0, 200)
        await eventually(lambda: len(reports.told) == 200, "all others are told")
        await asyncio.to_thread(leaving.terminate)
        assert (0, 0) not in reports.told
        await asyncio.to_thread(start_processor, outcomes_topic=outcomes)
        gateway.thaw()
        await backend.send_and_wait(topic, b"x", key=f"{user}-200".encode())
        await eventually(
            lambda: {(0, 0), (0, 201)} <= reports.told.keys(), "the others", timeout_seconds=30.0
        )
    assert (len(reports.told), reports.repeated) == (202, {})
