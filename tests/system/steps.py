"""What the system's tests share: publish, gather, count."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import httpx
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.support.clients import Client, Message, eventually
from tests.support.kafka import KafkaServer
from tests.support.processes import GatewayProcess, ProcessorProcess


async def publish(
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
    payload: bytes,
    headers: Mapping[str, str] | None = None,
) -> str:
    """Publish one record; give its default id."""
    raw = [(name, value.encode()) for name, value in (headers or {}).items()]
    kept = await backend.send_and_wait(topic, payload, key=user.encode(), headers=raw)
    return f"{kept.topic}-{kept.partition}-{kept.offset}"


async def publish_all(backend: AIOKafkaProducer, topic: str, user: str, texts: list[str]) -> None:
    """Publish records of one user in order, as fast as it goes."""
    futures = [await backend.send(topic, text.encode(), key=user.encode()) for text in texts]
    await asyncio.gather(*futures)


async def take(client: Client, count: int, *, timeout: float = 10.0) -> list[Message]:
    """Give the next `count` messages, all of them within the time."""
    async with asyncio.timeout(timeout):
        return [await client.message(timeout) for _ in range(count)]


async def until_last(client: Client, last: bytes, *, timeout: float = 30.0) -> list[Message]:
    """Give all messages up to the first with the payload `last`."""
    got: list[Message] = []
    async with asyncio.timeout(timeout):
        while not got or got[-1].payload != last:
            got.append(await client.message(timeout))
    return got


def without_repeats(messages: list[Message]) -> list[Message]:
    """Drop repeats by id, as a client does; a repeat is the same message."""
    seen: dict[str | None, Message] = {}
    for message in messages:
        first = seen.setdefault(message.id, message)
        assert first.payload == message.payload, "one id, two payloads"
    return list(seen.values())


async def outcomes(processor: ProcessorProcess) -> dict[tuple[str, str], float]:
    """Give the counts of outcomes by kind and reason; those of nothing are not there."""
    async with httpx.AsyncClient(trust_env=False) as http:
        text = (await http.get(f"http://127.0.0.1:{processor.port}/metrics")).text
    counts = {}
    for line in text.splitlines():
        if line.startswith("pushgate_processor_outcomes_total{") and not line.endswith(" 0.0"):
            labels, _, value = line.partition("{")[2].partition("} ")
            by_name = dict(label.split("=", 1) for label in labels.split(","))
            kind, reason = by_name["outcome"].strip('"'), by_name["reason"].strip('"')
            counts[kind, reason] = float(value)
    return counts


async def metric(process: GatewayProcess | ProcessorProcess, name: str) -> float:
    """Give the value of a metric without labels."""
    async with httpx.AsyncClient(trust_env=False) as http:
        text = (await http.get(f"http://127.0.0.1:{process.port}/metrics")).text
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


async def until_outcomes(
    processors: list[ProcessorProcess],
    expected: dict[tuple[str, str], float],
    *,
    timeout: float = 10.0,
) -> None:
    """Return when the outcomes of all are exactly these."""
    counted: dict[tuple[str, str], float] = {}

    async def reached() -> bool:
        counted.clear()
        for processor in processors:
            for key, count in (await outcomes(processor)).items():
                counted[key] = counted.get(key, 0.0) + count
        return sum(counted.values()) >= sum(expected.values())

    await eventually(reached, f"outcomes {expected}; so far {counted}", timeout_seconds=timeout)
    assert counted == expected


@asynccontextmanager
async def administering(kafka: KafkaServer) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def create(
    kafka: KafkaServer, topic: str, *, partitions: int = 1, configs: Mapping[str, str] | None = None
) -> None:
    """Create a topic of one replica."""
    new = NewTopic(topic, partitions, replication_factor=1, topic_configs=dict(configs or {}))
    async with administering(kafka) as admin:
        await admin.create_topics([new])


@asynccontextmanager
async def publishing(kafka: KafkaServer) -> AsyncIterator[AIOKafkaProducer]:
    """Give a producer at a broker that is not the session's."""
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, acks="all")
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def readyz(processor: ProcessorProcess) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as http:
        return await http.get(f"http://127.0.0.1:{processor.port}/readyz")
