"""Checks of Kafka: brokers, topics, the processors' group, and whether topics take writes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

from processor.reading.kafka import (
    MAX_NOTE_BYTES,
    SESSION_TIMEOUT_MS,
    AIOKafkaAdminClient,
    ConfigResourceType,
    IncompatibleBrokerVersion,
    KafkaError,
    administering,
    configuration_of,
)
from processor.settings import ProcessorSettings
from pushgate.doctor.brokers import (
    Cluster,
    Group,
    Partition,
    cluster_of,
    group_of,
    refusal_of_writes,
)
from pushgate.doctor.deadlines import Check, findings_of
from pushgate.doctor.finding import Finding, Subject
from pushgate.doctor.ports import Listener, listener_at
from pushgate.doctor.records import MOST_SECONDS, RECORDS, check_records
from pushgate.table import counted
from registry.networks import authority

KAFKA: Final = Subject("kafka")

#: How long the connection with the list of topics may take, and every further question.
_REQUEST_MS: Final = 3_000
#: How long all questions together may take, asked at once.
_QUESTIONS_SECONDS: Final = 5.0
_RETRY_SECONDS: Final = 0.3
_TOPIC_KEYS: Final = (
    "cleanup.policy",
    "min.compaction.lag.ms",
    "retention.ms",
    "retention.bytes",
    "max.message.bytes",
    "min.insync.replicas",
)
_BROKER_KEYS: Final = (
    "group.min.session.timeout.ms", "group.max.session.timeout.ms", "offset.metadata.max.bytes",
)  # fmt: skip
#: Kafka's limit counts a batch: key, headers and 61 bytes beside the payload.
_RECORD_BYTES: Final = 1_024
_ENDLESS: Final = "-1"
#: Kafka's states of a group without members.
_AT_REST: Final = frozenset({"Empty", "Dead"})

_Settings = Mapping[str, str]
#: Listeners at addresses.
_Listeners = Mapping[tuple[str, int], Listener]


async def check_kafka(
    settings: ProcessorSettings, *, wall: Callable[[], float]
) -> Sequence[Finding]:
    """Look at Kafka; `wall` gives Unix time in seconds."""
    listed = settings.bootstrap_addresses
    bootstrap = dict(zip(listed, await _listeners(listed), strict=True))
    working = [
        address for address, listener in bootstrap.items() if listener is _expected(settings)
    ]
    if not working:
        return [_absence(settings, address, listener) for address, listener in bootstrap.items()]
    away = [_away(*each) for each in bootstrap.items() if each[0] not in working]
    # aiokafka tries addresses in turn, and a silent address takes the whole time-out.
    reached = settings.model_copy(
        update={"kafka_bootstrap": ",".join(authority(*address) for address in working)}
    )
    try:
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(_REQUEST_MS / 1_000):
                admin = await stack.enter_async_context(
                    administering(reached, request_timeout_ms=_REQUEST_MS)
                )
                cluster = await cluster_of(admin)
            return [*away, *await _check_cluster(reached, admin, cluster, bootstrap, wall)]
    except (KafkaError, TimeoutError) as error:
        reason = str(error) or f"no answer in {_REQUEST_MS / 1_000:g} s"
        return [*away, *(_refusal(settings, address, reason) for address in working)]


async def _check_cluster(
    settings: ProcessorSettings,
    admin: AIOKafkaAdminClient,
    cluster: Cluster,
    listeners: _Listeners,
    wall: Callable[[], float],
) -> list[Finding]:
    """Ask all questions at once."""
    topics = [name for name in settings.topics if name in cluster.topics]
    checks = [
        Check(KAFKA, lambda: _check_addresses(settings, cluster, listeners), _QUESTIONS_SECONDS),
        _check(lambda: _check_group(settings, admin, cluster), "the group"),
        *(_check(partial(_check_topic, settings, admin, topic), topic) for topic in topics),
        *(
            _check(partial(_check_accessory, admin, cluster, name, topic), topic)
            for name, topic in _accessories(settings)
            if topic in cluster.topics
        ),
        *(
            _check(partial(_check_broker, admin, each), f"broker {each}")
            for each in cluster.brokers
        ),
        Check(RECORDS, lambda: check_records(settings, cluster, wall=wall), MOST_SECONDS),
    ]
    return [*judge_topics(settings, cluster), *dict.fromkeys(await findings_of(checks))]


def _check(find: Callable[[], Awaitable[Sequence[Finding]]], whose: str) -> Check:
    """Return a check with a finding where Kafka gives no answer."""

    async def answered() -> Sequence[Finding]:
        try:
            async with asyncio.timeout(_REQUEST_MS / 1_000):
                return await _until_answered(find)
        except (KafkaError, TimeoutError) as error:
            return [_unanswered(f"question about {whose}", error)]

    return Check(KAFKA, answered, _QUESTIONS_SECONDS)


async def _until_answered(find: Callable[[], Awaitable[Sequence[Finding]]]) -> Sequence[Finding]:
    """Ask again while a broker says "not yet": the first question about groups makes a topic."""
    while True:
        try:
            return await find()
        except KafkaError as error:
            if not error.retriable:
                raise
        await asyncio.sleep(_RETRY_SECONDS)


def _unanswered(question: str, error: Exception) -> Finding:
    if isinstance(error, IncompatibleBrokerVersion):
        return KAFKA.note(
            f"the broker does not know a question: {error}",
            why="this part is unknown",
            cure="none in `pushgate dev`, whose broker knows less than Kafka; else upgrade Kafka",
        )
    return KAFKA.note(
        f"a {question} is not answered: {str(error) or type(error).__name__}",
        why="this part is unknown",
        cure="let the account in PUSHGATE_KAFKA_SASL_USERNAME Describe and DescribeConfigs topics, "
        "groups and the cluster",
    )


def _accessories(settings: ProcessorSettings) -> list[tuple[str, str]]:
    """Return names and topics of the accessories."""
    named = [("dead-letter", settings.dead_letter_topic), ("outcomes", settings.outcomes_topic)]
    return [(name, topic) for name, topic in named if topic is not None]


def judge_topics(settings: ProcessorSettings, cluster: Cluster) -> list[Finding]:
    """Judge the topics: missing ones, and partitions."""
    found: list[Finding] = []
    for topic in settings.topics:
        if topic not in cluster.topics:
            found.append(
                KAFKA.fault(
                    f"topic {topic} does not exist, or this account may not describe it",
                    why="no message of this topic is pushed until it exists",
                    cure="create the topic, correct PUSHGATE_KAFKA_TOPICS, or allow Describe and "
                    "Read",
                )
            )
        else:
            found += _of_partitions(topic, cluster)
    for name, topic in _accessories(settings):
        if topic not in cluster.topics:
            found.append(_missing_accessory(settings, name, topic))
        else:
            found += _of_partitions(topic, cluster)
    return found


def _missing_accessory(settings: ProcessorSettings, name: str, topic: str) -> Finding:
    if settings.create_topics:
        return KAFKA.note(
            f"{name} topic {topic} does not exist",
            why="processors create it (PUSHGATE_CREATE_TOPICS)",
            cure="start processors, and look again",
        )
    lost = "rejected records" if name == "dead-letter" else "reports"
    return KAFKA.warning(
        f"{name} topic {topic} does not exist, or this account may not describe it",
        why=f"{lost} are lost once 65,536 wait, or a processor ends, unless the broker creates "
        "topics",
        cure=f"create the topic, or set PUSHGATE_CREATE_TOPICS=true; "
        f"PUSHGATE_{name.upper().replace('-', '_')}_TOPIC names it",
    )


def _of_partitions(topic: str, cluster: Cluster) -> Iterator[Finding]:
    partitions = cluster.topics[topic]
    without = [each.number for each in partitions if each.leader is None]
    behind = [each.number for each in partitions if len(each.in_sync) < len(each.replicas)]
    if without:
        yield KAFKA.fault(
            f"topic {topic}: partitions {_listed(without)} have no leader",
            why="these can be neither read nor written to",
            cure="start the brokers that have their replicas",
        )
    elif behind:
        yield KAFKA.warning(
            f"topic {topic}: partitions {_listed(behind)} have replicas that are not in sync",
            why="another loss makes them unwritable, or loses messages",
            cure="look at the brokers that are away or slow",
        )
    elif len(cluster.brokers) > 1 and any(len(each.replicas) == 1 for each in partitions):
        yield KAFKA.warning(
            f"topic {topic} has one replica, and there are {len(cluster.brokers)} brokers",
            why="while one broker is away, its partitions are",
            cure="raise the topic's replication factor to 3 (kafka-reassign-partitions)",
        )
    else:
        yield KAFKA.ok(f"topic {topic}: {counted(len(partitions), 'partition')}")


async def _check_group(
    settings: ProcessorSettings, admin: AIOKafkaAdminClient, cluster: Cluster
) -> Sequence[Finding]:
    partitions = sum(len(cluster.topics.get(topic, ())) for topic in settings.topics)
    most = max((len(cluster.topics.get(topic, ())) for topic in settings.topics), default=0)
    group = await group_of(admin, settings.kafka_group)
    return [judge_group(settings.kafka_group, group, partitions=partitions, most_of_a_topic=most)]


def judge_group(name: str, group: Group, *, partitions: int, most_of_a_topic: int) -> Finding:
    """Judge the members of the processors' group against the partitions of their topics."""
    members = (
        f"group {name}: {counted(group.members, 'processor')}, {counted(partitions, 'partition')}"
    )
    if group.state in _AT_REST or not group.members:
        return KAFKA.warning(
            f"group {name} has no members: no processor runs",
            why="no message is pushed",
            cure="start processors; PUSHGATE_KAFKA_GROUP is their group",
        )
    if group.members > partitions:
        return KAFKA.warning(
            members,
            why="a processor without a partition does nothing",
            cure="run fewer processors, or add partitions while no user's messages are on the way",
        )
    if most_of_a_topic == 1:
        return KAFKA.warning(
            members,
            why="one partition is one processor's: another one can't share the load, only take "
            "over",
            cure="give the topic as many partitions as you may ever want processors",
        )
    return KAFKA.ok(members)


async def _check_topic(
    settings: ProcessorSettings, admin: AIOKafkaAdminClient, topic: str
) -> Sequence[Finding]:
    values = await configuration_of(admin, ConfigResourceType.TOPIC, topic, _TOPIC_KEYS)
    return list(judge_configuration(settings, topic, values))


def judge_configuration(
    settings: ProcessorSettings, topic: str, values: _Settings
) -> Iterator[Finding]:
    """Judge a topic's message size, retention and compaction, in Kafka's words."""
    largest = int(values.get("max.message.bytes", _ENDLESS))
    if 0 <= largest < settings.max_payload_bytes + _RECORD_BYTES:
        yield KAFKA.warning(
            f"topic {topic}: max.message.bytes is {largest:,}, PUSHGATE_MAX_PAYLOAD_BYTES "
            f"{settings.max_payload_bytes:,}",
            why="the broker refuses publishers' larger messages, before pushgate sees them",
            cure="raise the topic's max.message.bytes (with room for headers), or lower "
            "PUSHGATE_MAX_PAYLOAD_BYTES",
        )
    policy, resume = values.get("cleanup.policy", ""), settings.resume_seconds
    retention_ms = int(values.get("retention.ms", _ENDLESS))
    needed = resume + settings.lost_node_seconds
    if "delete" in policy and 0 <= retention_ms < needed * 1_000:
        yield KAFKA.warning(
            f"topic {topic}: retention.ms is {retention_ms:,}",
            why=f"clients resume over PUSHGATE_RESUME_SECONDS ({resume:g}), and messages wait for "
            f"PUSHGATE_LOST_NODE_SECONDS ({settings.lost_node_seconds:g}) more: by then they are "
            "gone",
            cure=f"raise the topic's retention.ms to {int(needed * 1_000):,} at least; an hour "
            "also outlives an outage of all processors",
        )
    if (size := values.get("retention.bytes", _ENDLESS)) != _ENDLESS and "delete" in policy:
        yield KAFKA.note(
            f"topic {topic}: retention.bytes is {int(size):,} a partition",
            why="a burst can take messages out of the log that clients are still to resume from",
            cure=f"see that {needed:g} s of a partition's peak fit twice",
        )
    lag_ms = int(values.get("min.compaction.lag.ms", "0"))
    if "compact" in policy and lag_ms < resume * 1_000:
        yield KAFKA.warning(
            f"topic {topic} is compacted, and min.compaction.lag.ms is {lag_ms:,}",
            why="the key is the user: compaction leaves a user's newest message alone, so clients "
            "that resume are told of gaps",
            cure="set cleanup.policy=delete, or min.compaction.lag.ms above "
            "PUSHGATE_RESUME_SECONDS",
        )


async def _check_accessory(
    admin: AIOKafkaAdminClient, cluster: Cluster, name: str, topic: str
) -> Sequence[Finding]:
    """See whether this account may write to a topic, in the first partition with a leader."""
    partition = next((each for each in cluster.topics[topic] if each.leader is not None), None)
    if partition is None:
        return []  # said of its partitions
    try:
        values = await configuration_of(admin, ConfigResourceType.TOPIC, topic, _TOPIC_KEYS)
    except IncompatibleBrokerVersion:
        raise  # a mock of librdkafka (`pushgate dev`), which a set of no records would end
    except KafkaError:  # the account has no right to DescribeConfigs, and may have that to Write
        values = {}
    refusal = await refusal_of_writes(admin, topic, partition)
    return [judge_accessory(name, topic, refusal, partition, values)]


def judge_accessory(
    name: str, topic: str, refusal: str | None, partition: Partition, values: _Settings
) -> Finding:
    """Judge whether processors can write to a topic."""
    needed = int(values.get("min.insync.replicas", "1"))
    if refusal is None and len(partition.in_sync) < needed:
        refusal = f"{len(partition.in_sync)} replicas are in sync, min.insync.replicas is {needed}"
    if refusal is None:
        return KAFKA.ok(f"{name} topic {topic} takes writes")
    return KAFKA.fault(
        f"{name} topic {topic} takes no writes: {refusal}",
        why="rejected records, or reports, are lost once 65,536 wait or a processor ends",
        cure="allow Describe and Write on the topic to the account in "
        "PUSHGATE_KAFKA_SASL_USERNAME; mend replicas that are behind",
    )


async def _check_broker(admin: AIOKafkaAdminClient, broker: int) -> Sequence[Finding]:
    values = await configuration_of(admin, ConfigResourceType.BROKER, str(broker), _BROKER_KEYS)
    return list(judge_broker(broker, values))


def judge_broker(broker: int, values: _Settings) -> Iterator[Finding]:
    """Judge a broker's bounds for members and commits, in Kafka's words."""
    least = int(values.get("group.min.session.timeout.ms", "0"))
    most = int(values.get("group.max.session.timeout.ms", str(SESSION_TIMEOUT_MS)))
    if not least <= SESSION_TIMEOUT_MS <= most:
        yield KAFKA.fault(
            f"broker {broker} takes session time-outs from {least:,} to {most:,} ms",
            why=f"processors join with {SESSION_TIMEOUT_MS:,} ms, and are refused",
            cure="set the broker's group.min.session.timeout.ms and group.max.session.timeout.ms",
        )
    notes = int(values.get("offset.metadata.max.bytes", str(MAX_NOTE_BYTES)))
    if notes < MAX_NOTE_BYTES:
        yield KAFKA.fault(
            f"broker {broker}: offset.metadata.max.bytes is {notes:,}",
            why=f"commits have notes of up to {MAX_NOTE_BYTES:,} bytes, and are refused",
            cure="set the broker's offset.metadata.max.bytes to its default, 4096",
        )


async def _check_addresses(
    settings: ProcessorSettings, cluster: Cluster, listeners: _Listeners
) -> list[Finding]:
    """Try the addresses advertised by brokers, but for the known `listeners`."""
    others = [address for address in cluster.brokers.values() if address not in listeners]
    known = {**listeners, **dict(zip(others, await _listeners(others), strict=True))}
    found = [
        KAFKA.fault(
            f"broker {broker} advertises {authority(*address)}: {known[address].value}",
            why="clients go on to the advertised address, and their partitions stand still",
            cure="start the broker, or set its advertised.listeners to an address that processors "
            "reach",
        )
        for broker, address in cluster.brokers.items()
        if known[address] is not _expected(settings)
    ]
    places = ", ".join(authority(*address) for address in cluster.brokers.values())
    return found or [KAFKA.ok(f"{counted(len(cluster.brokers), 'broker')} at {places}")]


async def _listeners(addresses: Sequence[tuple[str, int]]) -> list[Listener]:
    return await asyncio.gather(*(listener_at(*address) for address in addresses))


def _expected(settings: ProcessorSettings) -> Listener:
    return Listener.TLS if "SSL" in settings.kafka_security_protocol else Listener.KAFKA


def _away(address: tuple[str, int], listener: Listener) -> Finding:
    return KAFKA.warning(
        f"{authority(*address)} of PUSHGATE_KAFKA_BOOTSTRAP: {listener.value}",
        why="a process that starts while the others are away finds no Kafka",
        cure="start the broker, or correct PUSHGATE_KAFKA_BOOTSTRAP",
    )


def _absence(settings: ProcessorSettings, address: tuple[str, int], listener: Listener) -> Finding:
    name, cure = "no Kafka at {}", "start Kafka, or correct PUSHGATE_KAFKA_BOOTSTRAP"
    if listener in (Listener.TLS, Listener.KAFKA):
        name = "Kafka at {} can't be used"
        cure = (
            f"PUSHGATE_KAFKA_SECURITY_PROTOCOL is {settings.kafka_security_protocol}: SSL and "
            "SASL_SSL are for TLS, PLAINTEXT and SASL_PLAINTEXT for none"
        )
    return KAFKA.fault(
        f"{name.format(authority(*address))}: {listener.value}",
        why="no message is read",
        cure=cure,
    )


def _refusal(settings: ProcessorSettings, address: tuple[str, int], reason: str) -> Finding:
    return KAFKA.fault(
        f"Kafka at {authority(*address)} gives no answer that counts: {reason}",
        why="no message is read",
        cure=f"PUSHGATE_KAFKA_SECURITY_PROTOCOL is {settings.kafka_security_protocol}: see that "
        "the listener has this protocol, and that PUSHGATE_KAFKA_SASL_MECHANISM, "
        "PUSHGATE_KAFKA_SASL_USERNAME and _PASSWORD, and PUSHGATE_KAFKA_CA_FILE are right",
    )


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return shown if len(numbers) <= 8 else f"{shown} … ({len(numbers)})"
