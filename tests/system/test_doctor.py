"""`pushgate doctor`: in good health, against nothing or the wrong thing, with half of it broken."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import httpx
import pytest

from processor.reading.kafka import partition_of
from pushgate.doctor.examination import examine
from pushgate.doctor.finding import Finding, Severity
from pushgate.doctor.through import check_through
from pushgate.embedded import LOOPBACK
from pushgate.settings import DoctorSettings
from pushgate.token import mint
from registry.directory import Node
from registry.redis_store import RedisRegistry
from tests.support.certificate import write_certificate
from tests.support.findings import bad
from tests.support.kafka import KafkaServer
from tests.support.processes import INTERNAL_SECRET, JWT_SECRET, GatewayProcess, free_port
from tests.support.proxy import Direction, Proxy
from tests.support.valkey import RedisServer
from tests.system.conftest import StartGateway, StartProcessor
from tests.system.steps import administering, create, publishing

pytestmark = pytest.mark.anyio

#: The promise for the whole command, with its start.
MOST_SECONDS: Final = 20.0
SUBJECTS: Final = {
    "redis", "kafka", "records", "clocks", "nodes", "host", "tokens", "origins",
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """What a run of the command has said."""

    status: int
    output: str
    errors: str
    seconds: float

    @property
    def findings(self) -> list[dict[str, str]]:
        """The findings of a run with --json."""
        found: list[dict[str, str]] = json.loads(self.output)["findings"]
        return found


async def doctor(*arguments: str, given: str = "", **settings: object) -> Run:
    """Run the command with PUSHGATE_… settings by their lower-case names."""
    inherited = {name: v for name, v in os.environ.items() if not name.startswith("PUSHGATE_")}
    env = inherited | {f"PUSHGATE_{name.upper()}": str(v) for name, v in settings.items()}
    began = time.monotonic()
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "pushgate", "doctor", *arguments],
        env=env,
        cwd=tempfile.gettempdir(),  # without the settings that `pushgate dev` keeps in a folder
        input=given,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Run(done.returncode, done.stdout, done.stderr, time.monotonic() - began)


def settings_of(redis: RedisServer, kafka: KafkaServer, topic: str) -> dict[str, Any]:
    return {
        "redis_url": redis.url,
        "kafka_bootstrap": kafka.bootstrap,
        "kafka_topics": topic,
        "kafka_group": f"group-{topic}",
        "dead_letter_topic": f"{topic}.dead",
        "jwt_secret": JWT_SECRET,
        "internal_secret": INTERNAL_SECRET,
    }


def among(findings: Sequence[Finding], *words: str) -> Finding:
    """Give the only finding whose `what` has all the words."""
    (finding,) = [each for each in findings if all(word in each.what for word in words)]
    return finding


async def test_a_system_in_good_health_has_nothing_to_mend(
    own_valkey: RedisServer, start_gateway: StartGateway, start_processor: StartProcessor,
    real_kafka: KafkaServer, topic: str,
) -> None:  # fmt: skip
    gateway = start_gateway(redis_url=own_valkey.url)
    start_processor(redis_url=own_valkey.url)
    await create(real_kafka, f"{topic}.dead")
    async with publishing(real_kafka) as producer:
        await producer.send_and_wait(topic, b"x", key=b"alice")
    token = mint("alice", JWT_SECRET, ttl_seconds=60)
    given = settings_of(own_valkey, real_kafka, topic)
    run = await doctor("--json", "--token", "-", given=f"{token}\n", **given)
    told = [each for each in run.findings if each["severity"] in {"warning", "fault"}]
    assert {each["subject"] for each in told} <= {"host"}, told  # which may be small
    assert run.status == (3 if told else 0)
    assert run.errors == ""
    assert run.seconds < MOST_SECONDS
    assert not SUBJECTS - {each["subject"] for each in run.findings}
    for words in (
        f"1 of 1 answer, with the right secret: {gateway.name}",
        "1 processor, 4 partitions",
        f"dead-letter topic {topic}.dead takes writes",
        "1 recent records are in the partitions",
        "good for user 'alice'",
        f"node {gateway.name}:",
    ):
        assert words in run.output
    assert token not in run.output


async def test_against_nothing_each_part_that_is_missing_is_named() -> None:
    redis_port, kafka_port = free_port(), free_port()
    run = await doctor(
        redis_url=f"redis://127.0.0.1:{redis_port}/0",
        kafka_bootstrap=f"127.0.0.1:{kafka_port}",
        jwt_algorithms="RS256",
        jwks_file="no-such-file",
    )
    assert run.status == 4
    assert run.errors == ""
    assert run.seconds < MOST_SECONDS
    for words in (
        f"no Redis at 127.0.0.1:{redis_port}: nothing listens there",
        f"no Kafka at 127.0.0.1:{kafka_port}: nothing listens there",
        "do: start Redis, or correct PUSHGATE_REDIS_URL",
        "do: start Kafka, or correct PUSHGATE_KAFKA_BOOTSTRAP",
        "PUSHGATE_INTERNAL_SECRET is not set",
        "the key set can't be read",
    ):
        assert words in run.output
    assert run.output.splitlines()[-1].startswith("4 faults")


async def test_the_wrong_thing_on_each_port_is_named(
    gateways: list[GatewayProcess], valkey: RedisServer, kafka: KafkaServer
) -> None:
    places = {
        "an HTTP server": f"127.0.0.1:{gateways[0].port}",
        "a Redis": f"127.0.0.1:{valkey.port}",
        "a Kafka broker": kafka.bootstrap,
    }
    for of_redis, of_kafka in (("an HTTP server", "a Redis"), ("a Kafka broker", "an HTTP server")):
        settings = DoctorSettings(
            redis_url=f"redis://{places[of_redis]}/0", kafka_bootstrap=places[of_kafka]
        )
        began = time.monotonic()
        found = await examine(settings)
        assert time.monotonic() - began < MOST_SECONDS
        among(found, f"no Redis at {places[of_redis]}: {of_redis} answers there")
        among(found, f"no Kafka at {places[of_kafka]}: {of_kafka} answers there")


@pytest.fixture
async def registry(own_valkey: RedisServer) -> AsyncIterator[RedisRegistry]:
    """The registry of the test's own Redis."""
    store = RedisRegistry(own_valkey.url)
    yield store
    await store.close()


async def test_each_node_that_cannot_be_used_is_named_with_the_cause(
    own_valkey: RedisServer,
    start_gateway: StartGateway,
    kafka: KafkaServer,
    topic: str,
    registry: RedisRegistry,
) -> None:
    fine = start_gateway(redis_url=own_valkey.url)
    other_secret = start_gateway(redis_url=own_valkey.url, internal_secret="another" * 6)
    draining = start_gateway(redis_url=own_valkey.url, drain_seconds=60)
    web = await asyncio.start_server(answer_as_a_web_server, LOOPBACK, 0)
    with socket.create_server((LOOPBACK, 0)) as silent:
        for name, port in {
            "web": web.sockets[0].getsockname()[1],
            "silent": silent.getsockname()[1],
            "gone": free_port(),
            "stranger": own_valkey.port,
            "twin": fine.internal_port,
        }.items():
            await registry.heartbeat(Node(name, "e1", f"{LOOPBACK}:{port}"), claim=True)
        await drain(draining)
        began = time.monotonic()
        found = bad(await examine(DoctorSettings(**settings_of(own_valkey, kafka, topic))))
        assert time.monotonic() - began < MOST_SECONDS
    web.close()
    of_nodes = [each for each in found if each.subject == "nodes"]
    told = {each.what.split()[1]: each for each in of_nodes}
    assert len(told) == len(of_nodes)  # one finding each
    assert "403" in told[other_secret.name].what
    assert "PUSHGATE_INTERNAL_SECRET" in told[other_secret.name].what
    assert "is not ready: draining" in told[draining.name].what
    assert told[draining.name].severity is Severity.WARNING
    assert "answers nothing" in told["silent"].what
    assert "nothing listens there" in told["gone"].what
    assert "a Redis answers there" in told["stranger"].what
    assert "another gateway answers" in told["twin"].what
    assert "no gateway answers at this address (status 200)" in told["web"].what
    assert fine.name not in told
    faults = {name for name, each in told.items() if each.severity is Severity.FAULT}
    assert faults == {other_secret.name, "silent", "gone", "stranger", "twin", "web"}


async def answer_as_a_web_server(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
    writer.close()


async def drain(gateway: GatewayProcess) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        url = f"http://127.0.0.1:{gateway.internal_port}/drain"
        answer = await http.post(url, headers={"authorization": f"Bearer {INTERNAL_SECRET}"})
    assert answer.status_code == 202


async def test_tls_at_one_end_of_the_internal_port_alone_is_named(
    own_valkey: RedisServer, start_gateway: StartGateway, kafka: KafkaServer, topic: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    cert_file, key_file = map(str, write_certificate(tmp_path))
    tls = {"internal_tls_cert": cert_file, "internal_tls_key": key_file}
    with_tls = start_gateway(redis_url=own_valkey.url, **tls)
    plain = start_gateway(redis_url=own_valkey.url)
    given = settings_of(own_valkey, kafka, topic)
    without_ca = bad(await examine(DoctorSettings(**given)))
    finding = among(without_ca, f"node {with_tls.name}", "a server with TLS answers there")
    assert "PUSHGATE_INTERNAL_TLS_CA" in finding.cure
    with_ca = bad(await examine(DoctorSettings(**given, internal_tls_ca=cert_file)))
    assert "PUSHGATE_INTERNAL_TLS_CERT" in among(with_ca, f"node {plain.name} at").what
    among(with_ca, f"the internal port of node {with_tls.name}: expires on")
    among(with_ca, f"PUSHGATE_INTERNAL_TLS_CA ({cert_file}): expires on")


async def test_a_node_outside_the_networks_is_named(
    own_valkey: RedisServer, kafka: KafkaServer, topic: str, registry: RedisRegistry
) -> None:
    await registry.heartbeat(Node("outside", "e1", f"{LOOPBACK}:{free_port()}"), claim=True)
    given = settings_of(own_valkey, kafka, topic) | {"gateway_networks": "10.0.0.0/8"}
    found = await examine(DoctorSettings(**given))
    assert "PUSHGATE_GATEWAY_NETWORKS" in among(found, "node outside at").what


async def test_half_of_kafka_is_broken(
    own_valkey: RedisServer, real_kafka: KafkaServer, topic: str
) -> None:
    away, lost, compacted = free_port(), f"{topic}.missing", f"{topic}.compacted"
    await create(
        real_kafka, compacted, partitions=1, configs={
            "cleanup.policy": "compact", "max.message.bytes": "1000",
        },
    )  # fmt: skip
    async with publishing(real_kafka) as producer:
        keys = [str(number).encode() for number in range(40)]
        for key in keys:
            await producer.send_and_wait(topic, b"x", key=key, partition=crc32(key) % 4)
        late = int((time.time() + 60) * 1_000)
        await producer.send_and_wait(compacted, b"x", key=b"a", timestamp_ms=late)
    given = settings_of(own_valkey, real_kafka, topic) | {
        "kafka_bootstrap": f"127.0.0.1:{away},{real_kafka.bootstrap}",
        "kafka_topics": f"{topic},{lost},{compacted}",
    }
    found = await examine(DoctorSettings(**given))
    astray = sum(crc32(key) % 4 != partition_of(key, 4) for key in keys)
    among(found, f"127.0.0.1:{away} of PUSHGATE_KAFKA_BOOTSTRAP: nothing listens there")
    among(found, f"topic {lost} does not exist")
    among(found, f"topic {topic}.dead does not exist")
    among(found, f"topic {compacted} is compacted")
    among(found, f"topic {compacted}: max.message.bytes is 1,000")
    among(found, f"{astray} of 41 recent records are not in the partition", "crc32")
    among(found, "the clock of a producer")
    among(found, "no processor runs")
    async with administering(real_kafka) as admin:
        assert not {lost, f"{topic}.dead"} & set(await admin.list_topics())


async def test_a_frozen_kafka_is_named_in_time(
    own_valkey: RedisServer, kafka: KafkaServer, topic: str
) -> None:
    async with Proxy(int(kafka.bootstrap.rpartition(":")[2])) as proxy:
        proxy.silence(Direction.TO_CLIENT)
        given = settings_of(own_valkey, kafka, topic) | {"kafka_bootstrap": proxy.address}
        began = time.monotonic()
        found = await examine(DoctorSettings(**given))
        assert time.monotonic() - began < MOST_SECONDS
    assert "answers nothing" in among(found, f"no Kafka at {proxy.address}").what


async def test_connections_through_a_balancer_stay(start_gateway: StartGateway) -> None:
    gateway = start_gateway(heartbeat_seconds=1)
    given: dict[str, Any] = {"jwt_secret": JWT_SECRET, "heartbeat_seconds": 1}
    url = f"http://127.0.0.1:{gateway.port}"
    run = await doctor("--json", "--through", url, "--for", "3", **given)
    told = [each for each in run.findings if each["subject"] == "balancer"]
    assert [each["severity"] for each in told] == ["ok"] * 3, told
    assert 3.0 < run.seconds < 3.0 + MOST_SECONDS


async def test_a_balancer_that_cuts_what_is_idle_is_found(gateways: list[GatewayProcess]) -> None:
    async with IdleProxy(gateways[0].port) as proxy:
        told = await look_through(f"http://{proxy.address}", JWT_SECRET)
    assert all("ended after" in each.what for each in told), told
    assert all("PUSHGATE_HEARTBEAT_SECONDS" in each.cure for each in told)


async def test_a_gateway_that_refuses_the_client_is_named(gateways: list[GatewayProcess]) -> None:
    told = await look_through(f"http://127.0.0.1:{gateways[0].port}", INTERNAL_SECRET)
    assert all("refused with 401" in each.what for each in told), told


async def look_through(url: str, secret: str) -> Sequence[Finding]:
    token = mint("alice", secret, ttl_seconds=60)
    return await check_through(
        url, token, seconds=30.0, heartbeat_seconds=25.0, clock=time.monotonic
    )


class IdleProxy(Proxy):
    """A balancer with an idle time-out below a heartbeat's interval."""

    async def _chunks(
        self, reader: asyncio.StreamReader, direction: Direction
    ) -> AsyncIterator[bytes]:
        while True:
            try:
                async with asyncio.timeout(1.5):
                    chunk = await reader.read(65_536)
            except TimeoutError:
                return
            if not chunk:
                return
            yield chunk
