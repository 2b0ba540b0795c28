"""`pushgate tail` beside a real Kafka and a processor: what became of messages, a line each."""

from __future__ import annotations

import json

import pytest
from aiokafka import AIOKafkaProducer

from tests.support.kafka import KafkaServer
from tests.support.valkey import RedisServer
from tests.system.conftest import StartGateway, StartProcessor
from tests.system.steps import create, publish
from tests.system.tools import tool

pytestmark = pytest.mark.anyio

ELSEWHERE = "ผู้ใช้-漢字"


async def test_outcomes_and_dead_letters_are_told_by_user_since_a_time(
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    valkey: RedisServer,
    kafka: KafkaServer,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    outcomes, dead = f"{topic}.outcomes", f"{topic}.dead"
    if kafka.kind != "embedded":  # whose topics appear when first named
        for name in (outcomes, dead):
            await create(kafka, name)
    start_gateway()
    start_processor(outcomes_topic=outcomes)
    await publish(backend, topic, user, b"x")
    await publish(backend, topic, ELSEWHERE, b"y", {"push-id": "the-one"})
    bad = await publish(backend, topic, user, b"z\xff\x1b[2J", {"push-ttl": "soon"})

    async def tail(*words: str) -> str:
        settings = {
            "kafka_bootstrap": kafka.bootstrap,
            "outcomes_topic": outcomes,
            "dead_letter_topic": dead,
        }
        done = await tool(valkey.url, "tail", *words, "--since", "600", **settings)
        assert (done.exit_code, done.stderr) == (0, ""), done.stderr
        return done.stdout

    [offline] = (await tail("outcomes", "--user", ELSEWHERE, "--count", "1")).splitlines()
    assert offline.split("  ")[1:3] == [ELSEWHERE, "offline"]
    assert "the-one" in offline
    lines = (await tail("outcomes", "--count", "3", "--json")).splitlines()
    told = [json.loads(line) for line in lines]
    assert {(report["user"], report["outcome"]) for report in told} == {
        (user, "offline"), (ELSEWHERE, "offline"), (user, "rejected"),
    }  # fmt: skip
    [letter] = (await tail("dead", "--count", "1")).splitlines()
    assert f"  {user}  push-ttl: whole seconds" in letter
    assert bad in letter
    assert "z\\xff\\x1b[2J" in letter
    form = json.loads(await tail("dead", "--count", "1", "--json", "--user", user))
    assert (form["user"], form["coordinates"], form["encoding"]) == (user, bad, "base64")
    assert form["headers"] == {"push-ttl": "soon"}
