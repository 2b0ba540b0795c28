"""What brokers say, judged. tests/system/test_doctor.py asks real ones."""

from __future__ import annotations

from typing import Any, Final

import pytest
from aiokafka.errors import GroupAuthorizationFailedError, GroupCoordinatorNotAvailableError

from processor.reading.kafka import IncompatibleBrokerVersion
from pushgate.doctor import kafka
from pushgate.doctor.brokers import Cluster, Group, Partition
from pushgate.doctor.finding import Finding, Severity
from pushgate.doctor.kafka import (
    judge_accessory,
    judge_broker,
    judge_configuration,
    judge_group,
    judge_topics,
)
from pushgate.doctor.ports import Listener
from pushgate.settings import DoctorSettings
from tests.support.findings import bad, only
from tests.support.processes import free_port

pytestmark = pytest.mark.anyio

ONE: Final = {1: ("127.0.0.1", 9092)}
THREE: Final = ONE | {2: ("127.0.0.1", 9093), 3: ("127.0.0.1", 9094)}
GOOD: Final = [Partition(0, 1, [1, 2, 3], [1, 2, 3])]
CONFIGURATION: Final = {
    "cleanup.policy": "delete",
    "retention.ms": "604800000",
    "retention.bytes": "-1",
    "max.message.bytes": "1048588",
    "min.compaction.lag.ms": "0",
}


def settings(**changes: Any) -> DoctorSettings:
    return DoctorSettings(kafka_topics="push", **changes)


def judged(partitions: list[Partition], brokers: dict[int, tuple[str, int]]) -> Any:
    topics = {"push": partitions, "push.dead": GOOD}
    return judge_topics(settings(), Cluster(brokers, topics))


def test_a_good_topic_has_no_finding() -> None:
    assert bad(judged(GOOD, THREE)) == []
    assert bad(judged([Partition(0, 1, [1], [1])], ONE)) == []


@pytest.mark.parametrize(
    ("partition", "severity", "words"),
    [
        (Partition(4, None, [1, 2], []), Severity.FAULT, "partitions 4 have no leader"),
        (Partition(4, 1, [1, 2], [1]), Severity.WARNING, "not in sync"),
        (Partition(4, 1, [1], [1]), Severity.WARNING, "one replica"),
    ],
)
def test_each_trouble_of_a_partition_is_found(
    partition: Partition, severity: Severity, words: str
) -> None:
    finding = only(judged([partition], THREE))
    assert finding.severity is severity
    assert words in finding.what


def test_of_many_partitions_some_are_named_and_all_are_counted() -> None:
    finding = only(judged([Partition(number, None, [1], []) for number in range(9)], THREE))
    assert "partitions 0, 1, 2, 3, 4, 5, 6, 7 … (9) have no leader" in finding.what
    finding = only(judged([Partition(number, None, [1], []) for number in range(8)], THREE))
    assert "partitions 0, 1, 2, 3, 4, 5, 6, 7 have no leader" in finding.what


def test_a_topic_that_is_missing_is_a_fault_that_names_the_setting() -> None:
    finding = only(judge_topics(settings(), Cluster(ONE, {"push.dead": GOOD})))
    assert finding.severity is Severity.FAULT
    assert "topic push does not exist" in finding.what
    assert "PUSHGATE_KAFKA_TOPICS" in finding.cure


def test_topics_that_processors_write_to_are_missed_unless_these_create_them() -> None:
    cluster = Cluster(ONE, {"push": [Partition(0, 1, [1], [1])]})
    letters, outcomes = bad(judge_topics(settings(outcomes_topic="out"), cluster))
    assert letters.severity is outcomes.severity is Severity.WARNING
    assert "PUSHGATE_DEAD_LETTER_TOPIC" in letters.cure
    assert "rejected records are lost" in letters.why
    assert "PUSHGATE_OUTCOMES_TOPIC" in outcomes.cure
    assert "reports are lost" in outcomes.why
    created = judge_topics(settings(outcomes_topic="out", create_topics=True), cluster)
    assert bad(created) == []
    assert sum(each.severity is Severity.NOTE for each in created) == 2


@pytest.mark.parametrize(
    ("group", "partitions", "severity", "words"),
    [
        (Group("Stable", 4), 4, Severity.OK, "4 processors, 4 partitions"),
        (Group("Empty", 0), 4, Severity.WARNING, "no processor runs"),
        (Group("Dead", 0), 4, Severity.WARNING, "no processor runs"),
        (Group("Stable", 5), 4, Severity.WARNING, "5 processors"),
        (Group("Stable", 1), 1, Severity.WARNING, "1 partition"),
    ],
)
def test_processors_are_counted_against_partitions(
    group: Group, partitions: int, severity: Severity, words: str
) -> None:
    finding = judge_group("pushgate", group, partitions=partitions, most_of_a_topic=partitions)
    assert finding.severity is severity
    assert words in finding.what


def test_a_good_configuration_has_no_finding() -> None:
    assert list(judge_configuration(settings(), "push", CONFIGURATION)) == []


@pytest.mark.parametrize(
    ("values", "words", "cure"),
    [
        (
            {"max.message.bytes": "66559"},  # 64 KiB, and 1,023
            "max.message.bytes is 66,559",
            "PUSHGATE_MAX_PAYLOAD_BYTES",
        ),
        ({"retention.ms": "149999"}, "retention.ms is 149,999", "150,000 at least"),
        ({"cleanup.policy": "compact"}, "is compacted", "PUSHGATE_RESUME_SECONDS"),
        (
            {"cleanup.policy": "compact,delete", "min.compaction.lag.ms": "119999"},
            "min.compaction.lag.ms is 119,999",
            "PUSHGATE_RESUME_SECONDS",
        ),
    ],
)
def test_each_trouble_of_a_configuration_is_found(
    values: dict[str, str], words: str, cure: str
) -> None:
    finding = only(judge_configuration(settings(), "push", CONFIGURATION | values))
    assert finding.severity is Severity.WARNING
    assert words in finding.what
    assert cure in finding.cure


@pytest.mark.parametrize(
    "values",
    [
        {"max.message.bytes": "66560"},
        {"retention.ms": "150000"},
        {"cleanup.policy": "compact", "min.compaction.lag.ms": "120000"},
    ],
)
def test_a_configuration_that_just_suffices_is_good(values: dict[str, str]) -> None:
    assert bad(judge_configuration(settings(), "push", CONFIGURATION | values)) == []


def test_a_log_that_is_bounded_by_bytes_is_noted() -> None:
    (finding,) = judge_configuration(settings(), "push", CONFIGURATION | {"retention.bytes": "9"})
    assert finding.severity is Severity.NOTE
    assert "retention.bytes" in finding.what


def test_a_topic_that_takes_no_writes_is_a_fault() -> None:
    partition = Partition(0, 1, [1, 2, 3], [1])
    values = {"min.insync.replicas": "2"}
    assert judge_accessory("outcomes", "out", None, GOOD[0], values).severity is Severity.OK
    denied = judge_accessory("outcomes", "out", "TopicAuthorizationFailedError", GOOD[0], {})
    behind = judge_accessory("outcomes", "out", None, partition, values)
    assert denied.severity is behind.severity is Severity.FAULT
    assert "TopicAuthorizationFailedError" in denied.what
    assert "min.insync.replicas is 2" in behind.what


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("group.min.session.timeout.ms", "6001"),
        ("group.max.session.timeout.ms", "5999"),
        ("offset.metadata.max.bytes", "3999"),
    ],
)
def test_bounds_of_a_broker_that_refuse_processors_are_faults(key: str, value: str) -> None:
    default = {
        "group.min.session.timeout.ms": "6000",
        "group.max.session.timeout.ms": "1800000",
        "offset.metadata.max.bytes": "4096",
    }
    assert list(judge_broker(1, default)) == []
    finding = only(judge_broker(1, default | {key: value}))
    assert finding.severity is Severity.FAULT
    assert key in finding.cure


async def test_a_broker_that_says_not_yet_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka, "_RETRY_SECONDS", 0.0)
    errors = [GroupCoordinatorNotAvailableError(), GroupCoordinatorNotAvailableError()]

    async def find() -> list[Finding]:
        if errors:
            raise errors.pop()
        return [kafka.KAFKA.ok("answered")]

    assert await kafka._check(find, "the group").find() == [kafka.KAFKA.ok("answered")]


@pytest.mark.parametrize(
    ("error", "what", "cure"),
    [
        (GroupAuthorizationFailedError("g"), "question about the group", "Describe"),
        (TimeoutError(), "TimeoutError", "Describe"),
        (IncompatibleBrokerVersion("x"), "does not know a question", "upgrade Kafka"),
    ],
)
async def test_a_question_without_an_answer_is_noted(
    error: Exception, what: str, cure: str
) -> None:
    async def find() -> list[Finding]:
        raise error

    (finding,) = await kafka._check(find, "the group").find()
    assert finding.severity is Severity.NOTE
    assert what in finding.what
    assert cure in finding.cure


async def test_an_advertised_address_where_nothing_listens_is_a_fault() -> None:
    address = ("127.0.0.1", free_port())
    cluster = Cluster({1: address}, {})
    finding = only(await kafka._check_addresses(settings(), cluster, {}))
    assert f"broker 1 advertises 127.0.0.1:{address[1]}: nothing listens there" in finding.what
    assert "advertised.listeners" in finding.cure
    known = {address: Listener.KAFKA}  # is not tried again
    assert bad(await kafka._check_addresses(settings(), cluster, known)) == []
