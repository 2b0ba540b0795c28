"""The interleavings that lose a message in a naive build of resuming, each forced by hand.

They are numbered as in the table of docs/design.md, which says for each where its tests are.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import NewPartitions

from tests.support.clients import (
    TRANSPORTS,
    Client,
    SseClient,
    WebSocketClient,
    connect,
    eventually,
)
from tests.support.kafka import KafkaServer
from tests.support.processes import GatewayProcess, ProcessorProcess
from tests.support.proxy import Direction, KafkaProxy, Proxy
from tests.support.valkey import RedisServer
from tests.system.conftest import StartGateway, StartProcessor
from tests.system.returning import (
    RESUMING,
    Returning,
    cursor_after,
    cursor_of,
    everything,
    wrong_through,
)
from tests.system.steps import (
    administering,
    create,
    outcomes,
    publish,
    publish_all,
    until_last,
    until_outcomes,
)
from tests.system.traffic import measure

pytestmark = pytest.mark.anyio

OFFLINE: Final = ("offline", "")
QUESTIONS: Final = "pushgate_processor_questions_total"
#: What a question reaches back behind the time of a cursor, and two marks.
SLACK_SECONDS: Final = 7.0
TEN: Final = [f"message {number}" for number in range(10)]


async def fault_lasts(seconds: float) -> None:
    """Return after so long: it is the fault's own length, and nothing else is awaited."""
    await asyncio.sleep(seconds)


def as_of_ms(client: Client) -> int:
    """Return the time of a client's cursor."""
    return int(cursor_of(client).partition(",")[0], 36)


async def until_as_of(gateway: GatewayProcess, user: str, time_ms: int) -> None:
    """Return when a gateway's cursors are of a later time."""
    async with connect("ws-v1", gateway.port, f"{user}-observer") as observer:
        assert isinstance(observer, WebSocketClient)
        reading = asyncio.create_task(observer.ended(60.0))
        try:
            await eventually(
                lambda: observer.cursor is not None and as_of_ms(observer) > time_ms,
                "the time has moved",
                timeout_seconds=30.0,
            )
        finally:
            reading.cancel()


@asynccontextmanager
async def proxied(
    start_gateway: StartGateway, redis_port: int
) -> AsyncIterator[tuple[GatewayProcess, Proxy]]:
    """Give a gateway that reaches Redis through a proxy."""
    async with Proxy(redis_port) as proxy:
        url = f"redis://{proxy.address}/0"
        yield await asyncio.to_thread(start_gateway, redis_url=url, heartbeat_seconds=1), proxy


# 2


@pytest.mark.parametrize("topic", [1], indirect=True)
async def test_a_processor_that_thaws_answers_for_nothing_that_another_has_read_on(
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    real_kafka: KafkaServer,
    topic: str,
    user: str,
) -> None:
    first, second = [await asyncio.to_thread(start_processor) for _ in range(2)]
    await publish(backend, topic, f"{user}-other", b"whose partition is it?")
    await eventually(lambda: settled_any(first, second), "one of them has it")
    frozen, heir = (first, second) if await outcomes(first) else (second, first)
    cursor = await cursor_after("ws-v1", gateways[0], user)
    frozen.freeze()
    await publish_all(backend, topic, user, TEN)
    await until_outcomes([heir], {OFFLINE: 10}, timeout=20.0)
    heir.freeze()
    try:
        async with connect("ws-v1", gateways[0].port, user, cursor=cursor) as client:
            frozen.thaw()
            await eventually(lambda: asked(frozen), "the thawed one is asked")
            await fault_lasts(0.5)
            heir.thaw()
            await publish(backend, topic, user, b"live")
            assert await everything(client, b"live") == [*TEN, "live"]
    finally:
        heir.thaw()
        frozen.thaw()


async def settled_any(*processors: ProcessorProcess) -> bool:
    """Whether one of them has given a message its outcome."""
    return any([await outcomes(processor) for processor in processors])


async def asked(processor: ProcessorProcess) -> bool:
    """Whether a processor was asked anything."""
    return await measure(processor, QUESTIONS) > 0


# 3


@pytest.mark.parametrize("transport", RESUMING)
@pytest.mark.parametrize("topic", [1], indirect=True)
async def test_a_resume_that_ends_after_the_first_message_or_before_any_goes_on_from_there(
    transport: str,
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    gateway = await asyncio.to_thread(start_gateway, heartbeat_seconds=1)
    processor = await asyncio.to_thread(start_processor)
    cursor = await cursor_after(transport, gateway, user)
    await publish_all(backend, topic, user, TEN)
    await until_outcomes([processor], {OFFLINE: 10})
    await until_as_of(gateway, user, int(1_000 * (time.time() + SLACK_SECONDS)))
    async with connect(transport, gateway.port, user, cursor=cursor) as client:
        cursor = await first_cursor(client)
    async with connect(transport, gateway.port, user, cursor=cursor) as client:
        assert (await client.message()).payload == TEN[0].encode()
        cursor = cursor_of(client)
    async with connect(transport, gateway.port, user, cursor=cursor) as client:
        await publish(backend, topic, user, b"live")
        assert await everything(client, b"live") == [*TEN[1:], "live"]


async def first_cursor(client: Client) -> str:
    """Read the opening of a connection and nothing else; return the cursor in it."""
    if isinstance(client, SseClient):
        opening = (await client.wire.until(b"\n\n")).decode()
        (cursor,) = [
            line.removeprefix("id: ") for line in opening.split("\n") if line.startswith("id: ")
        ]
    else:
        assert isinstance(client, WebSocketClient)
        _, payload, _ = await client.frame()
        cursor = json.loads(payload)["cursor"]
    return str(cursor)


# 4


@pytest.mark.parametrize("topic", [1], indirect=True)
async def test_while_a_node_can_not_register_a_client_nothing_is_asked_for_it(
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    valkey: RedisServer,
    topic: str,
    user: str,
) -> None:
    processor = await asyncio.to_thread(start_processor)
    async with proxied(start_gateway, valkey.port) as (gateway, redis):
        cursor = await cursor_after("ws-v1", gateway, user)
        await publish(backend, topic, user, b"missed")
        await until_outcomes([processor], {OFFLINE: 1}, timeout=20.0)
        redis.silence(*Direction)
        async with connect("ws-v1", gateway.port, user, cursor=cursor) as client:
            assert isinstance(client, WebSocketClient)
            early = []
            with suppress(TimeoutError):  # look-ups don't find the client yet
                early.append((await client.message(2.0)).payload.decode())
            await publish(backend, topic, user, b"before it is found")
            await until_outcomes([processor], {OFFLINE: 2}, timeout=20.0)
            redis.release()
            rest = await everything(client, b"before it is found")
    assert early + rest == ["missed", "before it is found"]


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("topic", [1], indirect=True)
async def test_a_new_client_of_a_node_that_can_not_register_it_misses_nothing(
    transport: str,
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    valkey: RedisServer,
    topic: str,
    user: str,
) -> None:
    processor = await asyncio.to_thread(start_processor)
    async with proxied(start_gateway, valkey.port) as (gateway, redis):
        await publish(backend, topic, user, b"before")
        await until_outcomes([processor], {OFFLINE: 1}, timeout=20.0)
        redis.silence(*Direction)
        async with connect(transport, gateway.port, user) as client:
            await publish(backend, topic, user, b"before it is found")
            await until_outcomes([processor], {OFFLINE: 2}, timeout=20.0)
            redis.release()
            found = await until_last(client, b"before it is found")
            await publish(backend, topic, user, b"live")
            found += await until_last(client, b"live")
    # What was published in the seconds before it came may come too.
    texts = [message.payload for message in found]
    assert texts in ([b"before it is found", b"live"], [b"before", b"before it is found", b"live"])


# 5


@pytest.mark.parametrize("direction", list(Direction), ids=lambda way: way.name.lower())
@pytest.mark.parametrize("topic", [1], indirect=True)
async def test_a_one_way_partition_costs_a_second_device_nothing_but_time(
    direction: Direction,
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    steady = await asyncio.to_thread(start_gateway)
    async with Proxy() as path:
        cut_off = await asyncio.to_thread(
            start_gateway, advertise_address=path.address, heartbeat_seconds=1
        )
        path.target_port = cut_off.internal_port
        await asyncio.to_thread(start_processor)
        async with (
            connect("ws-v1", steady.port, user) as near,
            connect("ws-v1", cut_off.port, user) as far,
        ):
            await publish(backend, topic, user, b"first")
            assert await everything(near, b"first") == ["first"]
            assert await everything(far, b"first") == ["first"]
            path.silence(direction)
            published_ms = int(1_000 * time.time())
            await publish_all(backend, topic, user, TEN)
            assert await everything(near, TEN[-1].encode()) == TEN
            reading = asyncio.create_task(everything(far, b"last", seconds=60.0))
            await fault_lasts(10.0)
            # Nobody vouches for the node meanwhile, whoever holds the lease.
            assert as_of_ms(far) < published_ms or direction is Direction.TO_CLIENT
            path.release()
            await publish(backend, topic, user, b"last")
            assert await reading == [*TEN, "last"]


# 6


@pytest.mark.parametrize("topic", [1], indirect=True)
@pytest.mark.parametrize("away", [False, True], ids=["remembered", "redis away"])
async def test_where_a_user_was_is_forgotten_when_a_client_resumes(
    away: bool,
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    valkey: RedisServer,
    topic: str,
    user: str,
) -> None:
    async with Proxy(valkey.port) as redis:
        url = f"redis://{redis.address}/0"
        cached = {} if away else {"lookup_cache_seconds": 60}
        await asyncio.to_thread(start_processor, redis_url=url, **cached)
        cursor = await cursor_after("ws-v1", gateways[1], user)
        async with connect("ws-v1", gateways[0].port, user) as stays:
            await publish(backend, topic, user, b"first")
            assert await everything(stays, b"first") == ["first"]
            if away:
                redis.silence(Direction.TO_SERVER)
            async with connect("ws-v1", gateways[1].port, user, cursor=cursor) as client:
                assert await everything(client, b"first") == ["first"]
                await publish(backend, topic, user, b"second")
                if away:
                    await fault_lasts(3.0)
                    redis.release()
                assert await everything(stays, b"second") == ["second"]
                assert await everything(client, b"second") == ["second"]


# 7


SHIFTED: Final = """\
import time
_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() + {seconds}
time.time_ns = lambda: _time_ns() + {seconds} * 10**9
"""


@pytest.mark.parametrize("transport", RESUMING)
async def test_wrong_clocks_lose_nothing_and_tell_no_gap(
    transport: str,
    tmp_path: Path,
    valkey: RedisServer,
    kafka: KafkaServer,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    early = GatewayProcess(f"{user}-early", redis_url=valkey.url, heartbeat_seconds=1)
    late = GatewayProcess(f"{user}-late", redis_url=valkey.url, heartbeat_seconds=1)
    processor = ProcessorProcess(
        f"{user}-processor",
        redis_url=valkey.url,
        bootstrap=kafka.bootstrap,
        topic=topic,
        group=f"group-{topic}",
    )
    for process, seconds in ((early, -300), (late, 300), (processor, 600)):
        directory = tmp_path / process.name
        directory.mkdir()
        directory.joinpath("sitecustomize.py").write_text(SHIFTED.format(seconds=seconds))
        inherited = os.environ.get("PYTHONPATH", "")
        process.env["PYTHONPATH"] = f"{directory}{os.pathsep}{inherited}".rstrip(os.pathsep)
    with early, late, processor:
        nodes = itertools.cycle((early, late))
        cursor = None
        for text in TEN[:4]:
            node = next(nodes)
            async with connect(
                transport, node.port, user, cursor=cursor, ttl_seconds=3_600
            ) as client:
                await publish(backend, topic, user, f"live {text}".encode())
                got = await everything(client, f"live {text}".encode())
                assert got == ([f"live {text}"] if cursor is None else [text, f"live {text}"])
                cursor = cursor_of(client)
            text_of_next = TEN[TEN.index(text) + 1]
            await publish(backend, topic, user, text_of_next.encode())


# 8


@pytest.mark.parametrize("topic", [1], indirect=True)
async def test_what_lags_a_minute_behind_when_a_client_leaves_is_not_taken_for_had(
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    valkey: RedisServer,
    topic: str,
    user: str,
) -> None:
    """Ten messages of a minute ago are taken in, and wait for Redis, when the client leaves."""
    gateway = await asyncio.to_thread(start_gateway, heartbeat_seconds=1)
    async with Proxy(valkey.port) as redis:
        url = f"redis://{redis.address}/0"
        processor = await asyncio.to_thread(start_processor, redis_url=url)
        async with connect("ws-v1", gateway.port, user) as client:
            await publish(backend, topic, user, b"first")
            assert await everything(client, b"first") == ["first"]
        # Gone, and Redis with it: where the user is now is not known.
        redis.silence(Direction.TO_SERVER)
        old_ms = int(1_000 * (time.time() - 60.0))
        for text in TEN:
            await backend.send_and_wait(
                topic, text.encode(), key=f"{user}-lagging".encode(), timestamp_ms=old_ms
            )
        await eventually(lambda: in_hand(processor, 10), "all are taken in", timeout_seconds=10.0)
        lagging = f"{user}-lagging"
        left_ms = int(1_000 * time.time())
        await until_as_of(gateway, user, left_ms + int(1_000 * SLACK_SECONDS))
        cursor = await cursor_after("ws-v1", gateway, lagging)
        redis.release()
        await until_outcomes([processor], {OFFLINE: 10, ("delivered", ""): 1}, timeout=20.0)
        async with connect("ws-v1", gateway.port, lagging, cursor=cursor) as client:
            await publish(backend, topic, lagging, b"live")
            assert await everything(client, b"live") == [*TEN, "live"]


async def in_hand(processor: ProcessorProcess, count: int) -> bool:
    """Whether a processor has so many messages without an outcome."""
    return await measure(processor, "pushgate_processor_in_hand") == count


# 9


@pytest.mark.parametrize("topic", [4], indirect=True)
async def test_a_rebalance_between_question_and_answer_loses_nothing_and_tells_no_gap(
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    real_kafka: KafkaServer,
    topic: str,
    user: str,
) -> None:
    """The proof of ownership hangs; meanwhile half of the partitions go to a new member."""
    users = [f"{user}-{number}" for number in range(8)]
    async with KafkaProxy(real_kafka.bootstrap) as kafka:
        first = await asyncio.to_thread(start_processor, kafka_bootstrap=kafka.address)
        cursors = [await cursor_after("ws-v1", gateways[0], name) for name in users]
        for name in users:
            await publish_all(backend, topic, name, TEN)
        await until_outcomes([first], {OFFLINE: 80})
        kafka.hold_commits()
        clients = [
            asyncio.create_task(resumed(gateways[1], name, cursor))
            for name, cursor in zip(users, cursors, strict=True)
        ]
        await eventually(lambda: kafka.held_commits, "the proof is under way")
        joining = asyncio.create_task(asyncio.to_thread(start_processor))
        await fault_lasts(2.0)
        kafka.let_through()
        await joining
        for name in users:
            await publish(backend, topic, name, b"live")
        assert await asyncio.gather(*clients) == [[*TEN, "live"]] * len(users)


async def resumed(gateway: GatewayProcess, user: str, cursor: str) -> list[str]:
    """Resume, and return everything up to the live message."""
    async with connect("ws-v1", gateway.port, user, cursor=cursor) as client:
        return await everything(client, b"live", seconds=50.0)


# 10


@pytest.mark.parametrize("transport", RESUMING)
async def test_what_is_not_due_any_more_does_not_come_back(
    transport: str,
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    processor = await asyncio.to_thread(start_processor)
    cursor = await cursor_after(transport, gateways[0], user)
    messages: list[tuple[str, dict[str, str]]] = [
        ("for now", {"push-ttl": "0"}),
        ("score 1", {"push-collapse-key": "score"}),
        ("for ever", {}),
        ("score 2", {"push-collapse-key": "score"}),
        ("score 3", {"push-collapse-key": "score"}),
        ("for a second", {"push-ttl": "1"}),
        ("for ten minutes", {"push-ttl": "600"}),
    ]
    for number, (text, headers) in enumerate(messages, 1):
        await publish(backend, topic, user, text.encode(), headers)
        await until_outcomes([processor], {OFFLINE: number})
    await fault_lasts(1.1)  # a TTL of 1 ends
    async with connect(transport, gateways[1].port, user, cursor=cursor) as client:
        await publish(backend, topic, user, b"live")
        got = await everything(client, b"live")
    assert got == ["for ever", "score 3", "for ten minutes", "live"]


# 11


@pytest.mark.parametrize("topic", [1], indirect=True)
async def test_a_topic_that_grows_partitions_is_known_whole(
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    real_kafka: KafkaServer,
    topic: str,
    user: str,
) -> None:
    users = [f"{user}-{number}" for number in range(8)]
    await asyncio.to_thread(start_processor)
    cursors = [await cursor_after("ws-v1", gateways[0], name) for name in users]
    async with administering(real_kafka) as admin:
        await admin.create_partitions({topic: NewPartitions(total_count=4)})
    second = await asyncio.to_thread(start_processor)  # its rebalance finds the new partitions
    partitions = {
        (
            await backend.send_and_wait(topic, b"missed", key=name.encode(), partition=n % 4)
        ).partition
        for n, name in enumerate(users)
    }
    assert partitions == {0, 1, 2, 3}
    assert second.readyz() == 200
    for number, (name, cursor) in enumerate(zip(users, cursors, strict=True)):
        async with connect("ws-v1", gateways[1].port, name, cursor=cursor) as client:
            assert await everything(client, b"missed") == ["missed"], number % 4


@pytest.mark.parametrize("topic", [1], indirect=True)
async def test_a_topic_that_is_made_anew_swallows_nothing_and_tells_a_gap(
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    real_kafka: KafkaServer,
    topic: str,
    user: str,
) -> None:
    first = await asyncio.to_thread(start_processor)
    async with connect("ws-v1", gateways[0].port, user) as client:
        await publish_all(backend, topic, user, TEN)
        assert await everything(client, TEN[-1].encode()) == TEN
        cursor = cursor_of(client)
    first.terminate()
    async with administering(real_kafka) as admin:
        await admin.delete_topics([topic])
        await eventually(lambda: is_gone(real_kafka, topic), "it is deleted", timeout_seconds=10.0)
    await create(real_kafka, topic)
    await asyncio.to_thread(start_processor)
    async with publishing_afresh(real_kafka) as afresh:
        await publish_all(afresh, topic, user, ["anew 1", "anew 2"])
        async with connect("ws-v1", gateways[1].port, user, cursor=cursor) as client:
            await publish(afresh, topic, user, b"live")
            got = await everything(client, b"live")
    assert got == ["control gap", "anew 1", "anew 2", "live"]


async def is_gone(kafka: KafkaServer, topic: str) -> bool:
    async with administering(kafka) as admin:
        return topic not in await admin.list_topics()


@asynccontextmanager
async def publishing_afresh(kafka: KafkaServer) -> AsyncIterator[AIOKafkaProducer]:
    """Give a producer that knows nothing of an earlier topic."""
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, acks="all")
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


# 12


@pytest.mark.parametrize("topic", [4], indirect=True)
async def test_twelve_kills_of_processors_during_a_drain_lose_nothing(
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    real_kafka: KafkaServer,
    topic: str,
    user: str,
) -> None:
    starts = [
        asyncio.to_thread(start_gateway, heartbeat_seconds=1, drain_seconds=20) for _ in range(2)
    ]
    gateways = list(await asyncio.gather(*starts))
    processors = [await asyncio.to_thread(start_processor) for _ in range(2)]
    users = [f"{user}-{number}" for number in range(20)]
    clients = [Returning(RESUMING[n % 2], name, gateways) for n, name in enumerate(users)]

    async def kill_in_turn() -> None:
        for victim in processors * 6:
            await asyncio.sleep(1.0)
            await asyncio.to_thread(victim.kill)
            await asyncio.to_thread(victim.start, until_ready=False)

    async def fail() -> None:
        await asyncio.gather(kill_in_turn(), asyncio.to_thread(gateways[0].terminate, 40.0))

    assert not await wrong_through(fail(), clients, backend, topic)
