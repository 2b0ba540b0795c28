"""The dead-letter topic and the outcomes topic can't be written to, and messages flow on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import confluent_kafka.admin
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from pydantic import SecretStr

from pushgate.doctor.kafka import check_kafka
from pushgate.settings import DoctorSettings
from tests.support.clients import connect, eventually
from tests.support.kafka import RESTRICTED_USER, KafkaServer
from tests.support.processes import GatewayProcess, ProcessorProcess
from tests.support.proxy import KafkaProxy
from tests.support.valkey import RedisServer
from tests.system.conftest import StartProcessor
from tests.system.steps import (
    administering,
    create,
    publish,
    publishing,
    readyz,
    take,
    until_outcomes,
)
from tests.system.test_dead_letters import read
from tests.system.tools import tool
from tests.system.traffic import measure

pytestmark = pytest.mark.anyio

# aiokafka has no requests for rules of access.
_acl: Any = confluent_kafka.admin

#: More than may be in hand of one partition (progress.py).
GOOD: Final = 20_000
#: A mended topic is noticed within five seconds; the rest is for a busy machine.
MENDED_SECONDS: Final = 20.0
DEAD_LETTER_ERRORS: Final = "pushgate_processor_dead_letter_errors_total "
OUTCOME_ERRORS: Final = "pushgate_processor_outcome_errors_total "
LOST: Final = "pushgate_processor_accessory_lost_total{"


@pytest.fixture
def start(start_processor: StartProcessor, strict_kafka: KafkaServer, user: str) -> StartProcessor:
    """Give a function that starts a processor at the strict broker, with the topics of a user."""
    return partial(
        start_processor,
        kafka_bootstrap=strict_kafka.bootstrap,
        kafka_topics=user,
        kafka_group=f"group-{user}",
        dead_letter_topic=f"{user}.dead",
    )


async def warns(processor: ProcessorProcess, *words: str) -> bool:
    """Whether /readyz is 200 and its warnings have all the words."""
    answer = await readyz(processor)
    assert answer.status_code == 200
    return all(word in str(answer.json().get("warnings", "")) for word in words)


async def until_well(processor: ProcessorProcess) -> None:
    async def well() -> bool:
        return bool((await readyz(processor)).json() == {"status": "ready"})

    await eventually(well, "readyz warns of nothing", timeout_seconds=MENDED_SECONDS)


async def flood(producer: AIOKafkaProducer, topic: str) -> None:
    """Publish one record that is rejected, and then many messages for a user who is offline."""
    await producer.send_and_wait(topic, b"no key", headers=[("push-id", b"bad")])
    sent = [await producer.send(topic, b"x", key=b"offline") for _ in range(GOOD)]
    await asyncio.gather(*sent)


async def written(kafka: KafkaServer, topic: str) -> int:
    """Give the number of records that were written to a topic of one partition."""
    async with AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap) as consumer:
        (end,) = (await consumer.end_offsets([TopicPartition(topic, 0)])).values()
    return int(end)


async def no_lag(processor: ProcessorProcess) -> bool:
    return await measure(processor, "pushgate_processor_lag_messages{") == 0


async def test_without_a_dead_letter_topic_all_messages_flow_and_the_loss_is_told(
    strict_kafka: KafkaServer, gateways: list[GatewayProcess], start: StartProcessor, user: str
) -> None:
    dead = f"{user}.dead"
    await create(strict_kafka, user)
    processor = start()
    await eventually(lambda: warns(processor, dead, "does not exist"), "readyz names the topic")
    async with (
        publishing(strict_kafka) as producer,
        connect("sse", gateways[0].port, user) as client,
    ):
        await flood(producer, user)
        await publish(producer, user, user, b"the last")
        assert (await take(client, 1, timeout=30.0))[0].payload == b"the last"
    await until_outcomes(
        [processor], {("rejected", "key"): 1, ("offline", ""): GOOD, ("delivered", ""): 1}
    )
    await eventually(lambda: no_lag(processor), "all is committed")
    assert await measure(processor, DEAD_LETTER_ERRORS) >= 1
    assert await warns(processor, dead, "1 records wait")
    assert processor.log.count("can't write to a topic") == 1

    await create(strict_kafka, dead)  # what was kept is written, and then all is well
    [letter] = await read(strict_kafka.bootstrap, dead, 1)
    assert dict(letter.headers)["push-id"] == b"bad"
    await until_well(processor)
    assert await measure(processor, LOST) == 0


async def test_tail_names_a_topic_that_is_not_there_with_its_setting(
    valkey: RedisServer, strict_kafka: KafkaServer
) -> None:
    kafka = {"kafka_bootstrap": strict_kafka.bootstrap}
    missing = await tool(valkey.url, "tail", "dead", **kafka)
    assert (missing.exit_code, "PUSHGATE_DEAD_LETTER_TOPIC" in missing.stderr) == (1, True)
    unset = await tool(valkey.url, "tail", "outcomes", **kafka)
    assert (unset.exit_code, "set PUSHGATE_OUTCOMES_TOPIC" in unset.stderr) == (1, True)
    nowhere = await tool(valkey.url, "tail", "dead", kafka_bootstrap="127.0.0.1:1")
    assert (nowhere.exit_code, "Kafka at 127.0.0.1:1" in nowhere.stderr) == (1, True)


async def test_without_an_outcomes_topic_all_messages_flow(
    strict_kafka: KafkaServer, start: StartProcessor, user: str
) -> None:
    outcomes = f"{user}.outcomes"
    await create(strict_kafka, user)
    await create(strict_kafka, f"{user}.dead")
    processor = start(outcomes_topic=outcomes)
    async with publishing(strict_kafka) as producer:
        await flood(producer, user)
    await until_outcomes([processor], {("rejected", "key"): 1, ("offline", ""): GOOD}, timeout=30.0)
    await eventually(lambda: no_lag(processor), "all is committed")
    assert await measure(processor, OUTCOME_ERRORS) >= 1
    assert await warns(processor, outcomes, "does not exist")
    await create(strict_kafka, outcomes)
    await until_well(processor)
    assert await written(strict_kafka, outcomes) == GOOD + 1


async def test_missing_topics_are_created_where_the_setting_says_so(
    strict_kafka: KafkaServer, start: StartProcessor, user: str
) -> None:
    await create(strict_kafka, user, partitions=3)
    processor = start(outcomes_topic=f"{user}.outcomes", create_topics="true")
    async with administering(strict_kafka) as admin:

        async def created() -> bool:
            topics = await admin.describe_topics([f"{user}.dead", f"{user}.outcomes"])
            return [len(topic["partitions"]) for topic in topics] == [3, 3]

        await eventually(created, "both topics are there", timeout_seconds=MENDED_SECONDS)
    await until_well(processor)


async def test_topics_that_do_not_answer_stop_nothing_and_get_every_row_once_in_the_end(
    strict_kafka: KafkaServer, start: StartProcessor, user: str
) -> None:
    dead, outcomes = f"{user}.dead", f"{user}.outcomes"
    for topic in (user, dead, outcomes):
        await create(strict_kafka, topic)
    async with KafkaProxy(strict_kafka.bootstrap) as proxy, publishing(strict_kafka) as producer:
        starting = partial(start, outcomes_topic=outcomes, kafka_bootstrap=proxy.address)
        processor = await asyncio.to_thread(starting)
        proxy.hold_writes()
        await flood(producer, user)
        await until_outcomes(
            [processor], {("rejected", "key"): 1, ("offline", ""): GOOD}, timeout=30.0
        )
        await eventually(lambda: no_lag(processor), "all is committed")
        assert await warns(processor, dead, outcomes, "no answer in 2 s")
        proxy.let_through()
        await until_well(processor)
        await asyncio.to_thread(processor.terminate)
    assert await written(strict_kafka, dead) == 1
    assert await written(strict_kafka, outcomes) == GOOD + 1


async def test_a_row_that_is_too_large_for_the_topic_is_lost_alone(
    strict_kafka: KafkaServer, start: StartProcessor, user: str
) -> None:
    await create(strict_kafka, user)
    await create(strict_kafka, f"{user}.dead", configs={"max.message.bytes": "100"})
    processor = start()
    async with publishing(strict_kafka) as producer:
        await flood(producer, user)
    await until_outcomes([processor], {("rejected", "key"): 1, ("offline", ""): GOOD}, timeout=30.0)
    await eventually(lambda: no_lag(processor), "all is committed")
    assert await measure(processor, LOST) == 1
    assert (await readyz(processor)).json() == {"status": "ready"}


@contextmanager
def refusing(kafka: KafkaServer, topic: str) -> Iterator[Callable[[], None]]:
    """Refuse RESTRICTED_USER's writes to a topic, until left or until the function is called."""
    client = _acl.AdminClient({"bootstrap.servers": kafka.bootstrap})
    place = (_acl.ResourceType.TOPIC, topic, _acl.ResourcePatternType.LITERAL)
    who = (f"User:{RESTRICTED_USER}", "*")
    rules = [
        _acl.AclBinding(*place, *who, _acl.AclOperation.WRITE, _acl.AclPermissionType.DENY),
        _acl.AclBinding(*place, *who, _acl.AclOperation.DESCRIBE, _acl.AclPermissionType.ALLOW),
    ]
    any_rule = (_acl.AclOperation.ANY, _acl.AclPermissionType.ANY)

    def allow() -> None:
        for deleted in client.delete_acls(
            [_acl.AclBindingFilter(*place, *who, *any_rule)]
        ).values():
            deleted.result(timeout=10)

    for created in client.create_acls(rules).values():
        created.result(timeout=10)
    try:
        yield allow
    finally:
        allow()


async def test_topics_that_refuse_writes_stop_nothing_and_are_written_once_they_allow_it(
    strict_kafka: KafkaServer, start: StartProcessor, user: str
) -> None:
    dead, outcomes = f"{user}.dead", f"{user}.outcomes"
    for topic in (user, dead, outcomes):
        await create(strict_kafka, topic)
    processor = start(
        outcomes_topic=outcomes,
        kafka_bootstrap=strict_kafka.sasl_bootstrap,
        kafka_security_protocol="SASL_PLAINTEXT",
        kafka_sasl_username=RESTRICTED_USER,
        kafka_sasl_password=RESTRICTED_USER,
    )
    async with publishing(strict_kafka) as producer:
        # While both topics take writes: the rows after the refused rows are no gap for Kafka.
        await producer.send_and_wait(user, b"no key")
        await read(strict_kafka.bootstrap, outcomes, 1)
        with refusing(strict_kafka, dead) as allow_dead, refusing(strict_kafka, outcomes) as allow:
            await flood(producer, user)
            await until_outcomes(
                [processor], {("rejected", "key"): 2, ("offline", ""): GOOD}, timeout=30.0
            )
            await eventually(lambda: no_lag(processor), "all is committed")
            assert await measure(processor, DEAD_LETTER_ERRORS) >= 1
            assert await measure(processor, OUTCOME_ERRORS) >= 1
            assert await warns(processor, dead, outcomes, "Authorization")
            allow_dead()
            allow()
            await until_well(processor)
    assert await written(strict_kafka, dead) == 2
    assert await written(strict_kafka, outcomes) == GOOD + 2


async def test_the_doctor_finds_topics_that_refuse_writes_and_writes_nothing_itself(
    strict_kafka: KafkaServer, user: str
) -> None:
    dead, outcomes = f"{user}.dead", f"{user}.outcomes"
    for topic in (user, dead, outcomes):
        await create(strict_kafka, topic)
    settings = DoctorSettings(
        kafka_topics=user,
        dead_letter_topic=dead,
        outcomes_topic=outcomes,
        kafka_bootstrap=strict_kafka.sasl_bootstrap,
        kafka_security_protocol="SASL_PLAINTEXT",
        kafka_sasl_username=RESTRICTED_USER,
        kafka_sasl_password=SecretStr(RESTRICTED_USER),
    )
    with refusing(strict_kafka, dead):
        found = await check_kafka(settings, wall=time.time)
    told = [each for each in found if "takes no writes" in each.what]
    assert [each.what.split()[2] for each in told] == [dead]
    assert "Authorization" in told[0].what
    assert any(each.what == f"outcomes topic {outcomes} takes writes" for each in found)
    assert await written(strict_kafka, dead) == await written(strict_kafka, outcomes) == 0

    wrong = settings.model_copy(update={"kafka_sasl_password": SecretStr("wrong")})
    (refused,) = await check_kafka(wrong, wall=time.time)
    assert "PUSHGATE_KAFKA_SASL_USERNAME" in refused.cure
