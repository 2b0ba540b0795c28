"""Records that break the publishing rules: kept, counted, and in nobody's way."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from tests.support.clients import connect
from tests.support.kafka import KafkaServer
from tests.support.kcat import kcat
from tests.support.processes import GatewayProcess
from tests.system.conftest import StartProcessor
from tests.system.steps import publish, take, until_outcomes

pytestmark = pytest.mark.anyio

Headers = Sequence[tuple[str, bytes | None]]


@dataclass(frozen=True)
class Poison:
    """A record that is rejected, and the reason that its outcome is counted under."""

    reason: str
    key: bytes | None = b"u"
    value: bytes | None = b"x"
    headers: Headers = ()


POISON: Final = [
    Poison("key", key=None),
    Poison("key", key=b""),
    Poison("key", key=b"\xff\xfe"),
    Poison("key", key=b"a\nb"),
    Poison("key", key=b"x" * 257),
    Poison("value", value=None),
    Poison("too-large", value=b"x" * 65_537),
    Poison("too-large", value=b"y" * 900_000),
    Poison("push-id", headers=[("push-id", b"a b")]),
    Poison("push-id", headers=[("push-id", b"")]),
    Poison("push-id", headers=[("push-id", None)]),
    Poison("push-id", headers=[("push-id", b"\xff")]),
    Poison("push-id", headers=[("push-id", b"x" * 129)]),
    Poison("push-type", headers=[("push-type", b"open")]),
    Poison("push-type", headers=[("push-type", b"pushgate.binary")]),
    Poison("push-type", headers=[("push-type", b"a\ndata: b")]),
    Poison("push-ttl", headers=[("push-ttl", b"soon")]),
    Poison("push-ttl", headers=[("push-ttl", b"-1")]),
    Poison("push-ttl", headers=[("push-ttl", b"1.5")]),
    Poison("push-ttl", headers=[("push-ttl", "٣".encode())]),
    Poison("push-urgency", headers=[("push-urgency", b"asap")]),
    Poison("push-device", headers=[("push-device", b"a\x00b")]),
    Poison("ce_time", headers=[("ce_time", b"yesterday")]),
]


async def read(bootstrap: str, topic: str, count: int) -> list[Any]:
    """Read the first `count` records of a topic."""
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest", fetch_max_wait_ms=100
    )
    await consumer.start()
    try:
        records: list[Any] = []
        async with asyncio.timeout(15):
            while len(records) < count:
                records += [record async for record in _some(consumer)]
        return records
    finally:
        await consumer.stop()


async def _some(consumer: AIOKafkaConsumer) -> Any:
    for records in (await consumer.getmany(timeout_ms=500)).values():
        for record in records:
            yield record


async def test_poison_is_kept_counted_once_and_in_nobodys_way(
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    kafka: KafkaServer,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    processor = start_processor()
    sent: dict[tuple[str, str, str], Poison] = {}
    async with connect("ws-v1", gateways[0].port, user) as client:
        for number, poison in enumerate(POISON):
            kept = await backend.send_and_wait(
                topic, poison.value, key=poison.key, headers=list(poison.headers), partition=0
            )
            sent[kept.topic, str(kept.partition), str(kept.offset)] = poison
            good = await backend.send_and_wait(
                topic, b"good %d" % number, key=user.encode(), partition=0
            )
            assert good.partition == kept.partition
        got = [message.payload for message in await take(client, len(POISON), timeout=20.0)]
        assert got == [b"good %d" % number for number in range(len(POISON))]

    expected: dict[tuple[str, str], float] = {("delivered", ""): len(POISON)}
    for poison in POISON:
        rejected = ("rejected", poison.reason)
        expected[rejected] = expected.get(rejected, 0) + 1
    await until_outcomes([processor], expected)

    letters = await read(kafka.bootstrap, f"{topic}.dead", len(POISON))
    assert len(letters) == len(POISON)
    for letter in letters:
        headers = dict(letter.headers)
        at = tuple(
            headers[f"pushgate-{part}"].decode() for part in ("topic", "partition", "offset")
        )
        poison = sent.pop(at)
        assert headers["pushgate-reason"] == poison.reason.encode()
        assert letter.key == poison.key
        assert set(poison.headers) <= set(letter.headers)
        if poison.value is None or len(poison.value) <= 65_536:
            assert letter.value == poison.value
        else:
            assert letter.value == poison.value[:65_536]
            assert headers["pushgate-cut-from"] == str(len(poison.value)).encode()
    assert not sent


async def test_the_largest_good_record_is_delivered_beside_the_smallest_too_large(
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    processor = start_processor(max_payload_bytes=1_000)
    async with connect("sse", gateways[0].port, user) as client:
        await publish(backend, topic, user, b"x" * 1_001)
        await publish(backend, topic, user, b"x" * 1_000)
        assert (await take(client, 1))[0].payload == b"x" * 1_000
    await until_outcomes([processor], {("delivered", ""): 1, ("rejected", "too-large"): 1})


async def test_a_record_of_neither_key_nor_value_is_kept(
    start_processor: StartProcessor, kafka: KafkaServer, topic: str
) -> None:
    processor = start_processor()
    kcat(kafka.bootstrap, topic, "-K:", "-Z", line=b":")
    await until_outcomes([processor], {("rejected", "key"): 1})
    [letter] = await read(kafka.bootstrap, f"{topic}.dead", 1)
    assert dict(letter.headers)["pushgate-value"] == b"null"


async def test_a_header_name_that_is_not_utf_8_stops_nothing_and_loses_nothing_else(
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    kafka: KafkaServer,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    processor = start_processor()
    async with connect("ws-v1", gateways[0].port, user) as client:
        processor.freeze()  # so that all of it comes in one go
        expected = []
        for number in range(40):
            text = b"good %d" % number
            if number in (10, 11, 25):
                kcat(kafka.bootstrap, topic, "-k", user, "-H", b"\xff\xfe=x", line=b"bad")
            await backend.send_and_wait(topic, text, key=user.encode(), partition=0)
            await backend.send_and_wait(topic, text, key=b"offline", partition=1)
            expected.append(text)
        processor.thaw()
        got = [message.payload for message in await take(client, 40, timeout=30.0)]
    assert got == expected
    await until_outcomes(
        [processor],
        {("delivered", ""): 40, ("offline", ""): 40, ("rejected", "unreadable"): 3},
        timeout=30.0,
    )
    letters = await read(kafka.bootstrap, f"{topic}.dead", 3)
    assert {dict(letter.headers)["pushgate-reason"] for letter in letters} == {b"unreadable"}
