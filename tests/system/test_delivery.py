"""From a Kafka record to every kind of client, over two gateways and two processors."""

import asyncio
import base64
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import pytest
from aiokafka import AIOKafkaProducer

from registry.redis_store import RedisRegistry
from tests.support.clients import TRANSPORTS, Client, connect, request
from tests.support.kafka import KafkaServer
from tests.support.processes import JWT_SECRET, GatewayProcess
from tests.system.conftest import StartProcessor
from tests.system.steps import (
    outcomes,
    publish,
    publish_all,
    take,
    until_outcomes,
)

pytestmark = pytest.mark.anyio

DELIVERED: Final = ("delivered", "")
OFFLINE: Final = ("offline", "")
PAYLOADS: Final = [
    b"text",
    b"",
    "emoji 👩‍👩‍👧‍👦 \u2028 \ufeff \x00".encode(),
    b'{"json": [1, "\\u2028", null]}',
    b"data: x\n\nevent: y",
    b"</script>",
    bytes(range(256)),
    b"x" * 65_536,
]


@asynccontextmanager
async def on_all_transports(
    gateways: list[GatewayProcess], user: str
) -> AsyncIterator[list[Client]]:
    """Connect one user four times, over both gateways."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(connect(transport, gateways[i % 2].port, user))
            for i, transport in enumerate(TRANSPORTS)
        ]


async def test_a_plain_producers_record_arrives_byte_for_byte_on_every_transport(
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    start_processor()
    async with on_all_transports(gateways, user) as clients:
        ids = [await publish(backend, topic, user, payload) for payload in PAYLOADS]
        for client in clients:
            messages = await take(client, len(PAYLOADS))
            assert [message.payload for message in messages] == PAYLOADS
            assert [message.id for message in messages] in (ids, [None] * len(ids))


async def test_headers_become_id_and_type_and_choose_the_device(
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    start_processor()
    async with (
        connect("ws-v1", gateways[0].port, user, device="phone") as phone,
        connect("sse", gateways[1].port, user, device="desk") as desk,
    ):
        one = {"push-id": "m-1", "push-type": "chat", "push-device": "phone"}
        await publish(backend, topic, user, b"phone", one)
        await publish(backend, topic, user, b"both", {"push-id": "m-2", "push-urgency": "high"})
        await publish(backend, topic, user, b"cloud", {"ce_id": "c-1", "ce_type": "com.example.x"})
        got = [(m.id, m.type, m.payload) for m in await take(phone, 3)]
        assert got == [
            ("m-1", "chat", b"phone"),
            ("m-2", None, b"both"),
            ("c-1", "com.example.x", b"cloud"),
        ]
        assert [m.id for m in await take(desk, 2)] == ["m-2", "c-1"]


async def test_a_user_on_three_devices_on_two_nodes_gets_it_on_each(
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    processor = start_processor()
    async with (
        connect("ws-v1", gateways[0].port, user, device="phone") as phone,
        connect("sse", gateways[0].port, user, device="tablet") as tablet,
        connect("poll", gateways[1].port, user, device="desk") as desk,
    ):
        sent = await publish(backend, topic, user, b"to all")
        for client in (phone, tablet, desk):
            (message,) = await take(client, 1)
            assert (message.id, message.payload) == (sent, b"to all")
    await until_outcomes([processor], {DELIVERED: 1})


async def test_an_offline_user_is_a_counted_outcome_and_a_missing_device_too(
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    processor = start_processor()
    async with connect("ws-v1", gateways[0].port, user, device="phone") as client:
        await publish(backend, topic, f"{user}-nobody", b"x")
        await publish(backend, topic, user, b"x", {"push-device": "watch"})
        await publish(backend, topic, user, b"here")
        assert (await take(client, 1))[0].payload == b"here"
        await until_outcomes([processor], {DELIVERED: 1, OFFLINE: 2})


async def test_an_expired_message_is_counted_and_not_sent(
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    processor = start_processor()
    async with connect("sse", gateways[0].port, user) as client:
        for ttl in ("1", "0", "600"):
            await backend.send_and_wait(
                topic,
                ttl.encode(),
                key=user.encode(),
                headers=[("push-ttl", ttl.encode())],
                timestamp_ms=int(time.time() * 1_000) - 60_000,
            )
        await publish(backend, topic, user, b"fresh", {"push-ttl": "600"})
        # 0 asks for whoever is connected now, whatever its age.
        assert [m.payload for m in await take(client, 3)] == [b"0", b"600", b"fresh"]
    await until_outcomes([processor], {DELIVERED: 3, ("expired", ""): 1})


async def test_per_user_order_holds_for_thousands_over_partitions_and_users(
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    processor = start_processor()
    users = [f"{user}-{number}" for number in range(50)]
    texts = [str(number) for number in range(60)]
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                connect(TRANSPORTS[i % 4], gateways[i // 4 % 2].port, name)
            )
            for i, name in enumerate(users)
        ]
        await asyncio.gather(*(publish_all(backend, topic, name, texts) for name in users))
        for client in clients:
            got = [message.payload.decode() for message in await take(client, len(texts))]
            assert got == texts
    await until_outcomes([processor], {DELIVERED: len(users) * len(texts)})


async def test_two_processors_share_the_partitions_and_keep_each_users_order(
    real_kafka: KafkaServer,
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    processors = [start_processor(), start_processor()]
    users = [f"{user}-{number}" for number in range(20)]
    texts = [str(number) for number in range(50)]
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(connect("ws-v1", gateways[i % 2].port, name))
            for i, name in enumerate(users)
        ]
        await asyncio.gather(*(publish_all(backend, topic, name, texts) for name in users))
        for client in clients:
            assert [m.payload.decode() for m in await take(client, len(texts))] == texts
    await until_outcomes(processors, {DELIVERED: 1_000})
    assert all([await outcomes(processor) for processor in processors])


async def command(
    *words: str, env: Mapping[str, str], stdin: bytes = b""
) -> tuple[int, bytes, bytes]:
    """Run `pushgate` to its end."""
    process = await started(*words, env=env)
    try:
        async with asyncio.timeout(20):
            out, err = await process.communicate(stdin)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, out, err


async def started(*words: str, env: Mapping[str, str]) -> asyncio.subprocess.Process:
    inherited = {name: v for name, v in os.environ.items() if not name.startswith("PUSHGATE_")}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pushgate", *words),
        env={**inherited, **env},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@pytest.mark.parametrize("transport", ["ws", "sse", "poll"])
async def test_what_send_publishes_listen_prints(
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    registry: RedisRegistry,
    kafka: KafkaServer,
    topic: str,
    user: str,
    transport: str,
) -> None:
    start_processor()
    url = f"http://127.0.0.1:{gateways[0].port}"
    publishing = {"PUSHGATE_KAFKA_BOOTSTRAP": kafka.bootstrap, "PUSHGATE_KAFKA_TOPICS": topic}
    listening = await started(
        "listen",
        user,
        "--transport",
        transport,
        env={"PUSHGATE_JWT_SECRET": JWT_SECRET, "PUSHGATE_URL": url},
    )
    assert listening.stdout is not None
    try:
        async with asyncio.timeout(20):
            while not (await registry.lookup([user]))[0]:
                await registry.refresh()
            status, printed, _ = await command("send", user, "one ü", "--id", "m-1", env=publishing)
            assert (status, printed.decode().split("-")[-1]) == (0, "0\n")
            assert await listening.stdout.readline() == "one ü\n".encode()
            status, printed, _ = await command(
                "send", user, "-", stdin=b"two\nthree\n", env=publishing
            )
            assert (status, len(printed.splitlines())) == (0, 2)
            assert await listening.stdout.readline() == b"two\n"
            assert await listening.stdout.readline() == b"three\n"
    finally:
        listening.kill()
        await listening.communicate()


async def test_a_printed_token_lets_in(gateways: list[GatewayProcess], user: str) -> None:
    status, printed, _ = await command(
        "token", user, "--ttl", "60", "--device", "d", env={"PUSHGATE_JWT_SECRET": JWT_SECRET}
    )
    assert status == 0
    minted = printed.decode().strip()
    middle = minted.split(".")[1]
    claims = base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4))
    assert user.encode() in claims
    answer = await request(gateways[0].port, "GET", f"/poll?wait=0&token={minted}")
    assert answer.status == 200


async def test_listen_with_a_bad_secret_says_refused_and_ends(
    gateways: list[GatewayProcess], user: str
) -> None:
    url = f"http://127.0.0.1:{gateways[0].port}"
    env = {"PUSHGATE_JWT_SECRET": "x" * 32, "PUSHGATE_URL": url}
    status, _, err = await command("listen", user, env=env)
    assert status == 1
    assert b"401" in err


async def test_send_without_kafka_names_it_and_fails(user: str) -> None:
    env = {"PUSHGATE_KAFKA_BOOTSTRAP": "127.0.0.1:1", "PUSHGATE_KAFKA_TOPICS": "t"}
    status, _, err = await command("send", user, "x", env=env)
    assert status == 1
    assert b"127.0.0.1:1" in err
