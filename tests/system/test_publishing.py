"""The programs of docs/publishing.md and docs/getting-started.md, run as they stand there.

Go is not among them: its modules would have to be fetched for a test. tests/unit/test_docs.py has a
look at their syntax.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord
from aiokafka.partitioner import murmur2

from gateway.connections.identity import Identity
from gateway.entry.auth import Authenticator, TokenRules
from gateway.entry.claims import ClaimRules
from registry.message import Envelope, from_record
from tests.support.kafka import PARTITIONS, KafkaServer
from tests.support.markdown import ROOT, Page
from tests.support.npm import install
from tests.support.processes import JWT_SECRET, GatewayProcess
from tests.system.conftest import StartProcessor
from tests.system.steps import publish

pytestmark = pytest.mark.anyio

PUBLISHING: Final = Page(ROOT / "docs" / "publishing.md")
GETTING_STARTED: Final = Page(ROOT / "docs" / "getting-started.md")
PACKAGES: Final = ROOT / "tests" / "support" / "docs" / "node"
SECONDS: Final = 15.0


@pytest.mark.parametrize("library", ["aiokafka", "confluent_kafka"])
async def test_the_python_programs_publish_what_they_say(
    library: str, kafka: KafkaServer, topic: str, tmp_path: Path
) -> None:
    text = PUBLISHING.block("python", f"from {library} import {PRODUCERS[library]}").text
    (tmp_path / "program.py").write_text(as_of_here(text, kafka, topic))
    said = await run([sys.executable, "program.py"], tmp_path)
    await assert_published(kafka, topic, said)


async def test_the_java_program_publishes_what_it_says(
    real_kafka: KafkaServer, topic: str, tmp_path: Path
) -> None:
    if real_kafka.jars is None:
        pytest.skip("needs Kafka's jars, which PUSHGATE_TEST_KAFKA does not come with")
    text = PUBLISHING.block("java", "KafkaProducer").text
    (tmp_path / "Publish.java").write_text(as_of_here(text, real_kafka, topic))
    said = await run(["java", "-cp", f"{real_kafka.jars}/*", "Publish.java"], tmp_path)
    await assert_published(real_kafka, topic, said)


async def test_the_node_programs_publish_and_sign_what_they_say(
    kafka: KafkaServer, topic: str, tmp_path: Path
) -> None:
    if missing := install(PACKAGES, tmp_path):
        pytest.skip(missing)
    text = PUBLISHING.block("js", "kafkajs").text
    (tmp_path / "program.mjs").write_text(as_of_here(text, kafka, topic))
    said = await run(["node", "program.mjs"], tmp_path)
    await assert_published(kafka, topic, said)

    text = GETTING_STARTED.block("js", "jose").text
    (tmp_path / "token.mjs").write_text(f"{text}\nconsole.log(await tokenFor('alice'));\n")
    assert await user_of(await run(["node", "token.mjs"], tmp_path)) == "alice"


async def test_the_python_program_for_tokens_makes_tokens_that_count(tmp_path: Path) -> None:
    text = GETTING_STARTED.block("python", "import jwt").text
    (tmp_path / "program.py").write_text(f"{text}\n\nprint(token_for('alice'))\n")
    assert await user_of(await run([sys.executable, "program.py"], tmp_path)) == "alice"


async def test_the_python_program_for_outcomes_hears_of_users_who_are_offline(
    kafka: KafkaServer,
    gateways: list[GatewayProcess],
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
    tmp_path: Path,
) -> None:
    start_processor(outcomes_topic=f"{topic}.outcomes")
    message_id = await publish(backend, topic, user, b"hello")
    text = PUBLISHING.block("python", "AIOKafkaConsumer").text
    text = as_of_here(text, kafka, topic).replace('"push.outcomes"', f'"{topic}.outcomes"')
    (tmp_path / "program.py").write_text(text)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "program.py", cwd=tmp_path, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(SECONDS):
            said = await process.stdout.readline()
    finally:
        process.terminate()
        await process.communicate()  # to its end, so that the pipe is closed
    assert said.decode().strip() == f"mail to {user}: you have missed {message_id}"


PRODUCERS: Final = {"aiokafka": "AIOKafkaProducer", "confluent_kafka": "Producer"}


def as_of_here(text: str, kafka: KafkaServer, topic: str) -> str:
    """Give a program with this broker's address and this test's topic and group."""
    program = text.replace("localhost:9092", kafka.bootstrap).replace("mail-to-offline", topic)
    assert program != text
    for quote in "\"'`":
        program = program.replace(f"{quote}push{quote}", f"{quote}{topic}{quote}")
    return program.replace("`push-$", f"`{topic}-$")


async def run(command: Sequence[str], folder: Path) -> str:
    """Run a program to its good end; give what it has printed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env=os.environ | {"PUSHGATE_JWT_SECRET": JWT_SECRET},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    async with asyncio.timeout(SECONDS):
        out, error = await process.communicate()
    assert process.returncode == 0, error.decode()
    return out.decode().strip()


async def assert_published(kafka: KafkaServer, topic: str, said: str) -> None:
    """Check the topic's one record: what it means, where it is, and what its publisher printed."""
    record = await only_record(kafka, topic)
    message = envelope_of(record)
    assert (message.push.user, json.loads(message.push.data)) == ("alice", {"text": "hello"})
    assert (message.push.type, message.ttl_seconds) == ("greeting", 60)
    assert record.partition == (murmur2(b"alice") & 0x7FFFFFFF) % PARTITIONS
    assert said == message.push.id


async def only_record(kafka: KafkaServer, topic: str) -> ConsumerRecord[bytes, bytes]:
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest"
    )
    async with consumer, asyncio.timeout(SECONDS):
        return await consumer.getone()


def envelope_of(record: ConsumerRecord[bytes, bytes]) -> Envelope:
    return from_record(
        topic=record.topic, partition=record.partition, offset=record.offset,
        timestamp_ms=record.timestamp, published_ms=record.timestamp, key=record.key,
        value=record.value, headers=record.headers, max_payload_bytes=65_536,
    )  # fmt: skip


async def user_of(token: str) -> str:
    """Give the user of a token, as a gateway with the tests' secret reads it."""
    claims = ClaimRules(audience=None, issuer=None, max_seconds=86_400)
    rules = TokenRules(algorithms=frozenset({"HS256"}), secret=JWT_SECRET, claims=claims)
    identity: Identity = await Authenticator(rules, None).authenticate(token)
    assert 590 <= identity.expires_at - time.time() <= 600
    return identity.user
