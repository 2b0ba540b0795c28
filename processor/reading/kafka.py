"""Kafka clients, made from settings. Beside fetcher.py, no further file imports aiokafka."""

from __future__ import annotations

import asyncio
import itertools
import math
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import structlog
from aiokafka import (
    AIOKafkaConsumer,
    AIOKafkaProducer,
    ConsumerRebalanceListener,
    ConsumerRecord,
    TopicPartition,
)
from aiokafka import client as aiokafka_client
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.cluster import ClusterMetadata
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.coordinator.protocol import (
    ConsumerProtocolMemberAssignment,
    ConsumerProtocolMemberMetadata,
)
from aiokafka.errors import (
    CommitFailedError,
    KafkaConnectionError,
    KafkaError,
    MessageSizeTooLargeError,
    NoError,
    RebalanceInProgressError,
    TopicAlreadyExistsError,
    for_code,
)
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.protocol.group import HeartbeatRequest

from processor.reading.fetcher import DirectFetcher
from processor.settings import KafkaSettings

__all__ = [
    "MAX_NOTE_BYTES",
    "SESSION_TIMEOUT_MS",
    "AIOKafkaConsumer",
    "AIOKafkaProducer",
    "BatchBuilder",
    "ClusterMetadata",
    "CommitFailedError",
    "ConsumerProtocolMemberAssignment",
    "ConsumerProtocolMemberMetadata",
    "ConsumerRebalanceListener",
    "KafkaError",
    "MessageSizeTooLargeError",
    "Record",
    "RoundRobinPartitionAssignor",
    "TopicPartition",
    "UnreadableRecord",
    "abandon",
    "commit_ends",
    "commits_of",
    "create_topic",
    "ended",
    "fetch_directly",
    "group_consumer",
    "is_accepted",
    "is_dead",
    "is_member",
    "leave",
    "log_consumer",
    "noted_commits",
    "partition_of",
    "partitions_of",
    "producer",
    "size_of",
    "unreadable",
    "until_reached",
    "watch_heartbeats",
]

_REBALANCE_TIMEOUT_MS: Final = 30_000
#: Time until the group misses a member that was killed; the least that brokers allow by default.
SESSION_TIMEOUT_MS: Final = 6_000
#: Metadata of one offset. Kafka takes 4,096 bytes by default (offset.metadata.max.bytes).
MAX_NOTE_BYTES: Final = 4_000
#: Pauses while a topic does not exist: brokers may create topics that a client asks for.
_CREATION_SECONDS: Final = (0.1, 0.3, 0.6)
#: How long a consumer may take to stop.
_LEAVE_SECONDS: Final = 5.0
#: How long each part of a client may take to end.
_ABANDON_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = (0.25, 0.5, 1.0, 2.0, 5.0)

_T = TypeVar("_T")

log = structlog.get_logger("processor.kafka")

Record = ConsumerRecord[bytes | None, bytes | None]

#: New topics and partitions are found within this time.
_METADATA_MAX_AGE_MS: Final = 5_000
#: Bytes of one fetch from a partition. A value over max_payload_bytes is still read, so that the
#: record can be rejected: Kafka's own bound is message.max.bytes, and a fetch always returns at
#: least one batch, however large.
_FETCH_BYTES: Final = 1_048_576
_MAX_REQUEST_BYTES: Final = 2 * 1024 * 1024
_OFFSET_RESET: Final = "earliest"
_ISOLATION: Final = "read_committed"  # records of aborted transactions are no messages


class _Connection(AIOKafkaConnection):
    """A connection whose reset is one of Kafka's errors, as aiokafka expects.

    After a reset uvloop refuses a write with a RuntimeError, until aiokafka hears of the reset some
    turns of the event loop later. aiokafka does not catch the RuntimeError (aiokafka's issue
    1038), and the error ends tasks that nothing starts again. Without the task that fetches
    metadata, a leader of the group waits for metadata for ever: the group gives the leader up, the
    leader's claims (handover.py) are lost with the membership, and the process reads nothing any
    more.
    """

    @classmethod
    async def made(cls: Any, host: str, port: int, **settings: Any) -> Any:
        """Return a connection to a broker, as aiokafka's create_conn does."""
        connection = cls(host, port, **settings)
        await connection.connect()
        return connection

    def send(self: Any, request: Any, expect_response: bool = True) -> Any:
        try:
            return super().send(request, expect_response)  # type: ignore[no-untyped-call]
        except NotImplementedError:
            raise  # a RuntimeError, but of a broker that knows no such request
        except RuntimeError as error:
            self.close(reason=CloseReason.CONNECTION_BROKEN)
            where = f"{self.host}:{self.port}"
            raise KafkaConnectionError(f"Connection at {where} broken: {error}") from error


# Every client of aiokafka's makes its connections by this name.
aiokafka_client.create_conn = _Connection.made  # type: ignore[attr-defined]


def group_consumer(
    settings: KafkaSettings, group: str, *, assignor: object = RoundRobinPartitionAssignor
) -> AIOKafkaConsumer:
    """Return a consumer of `group` without automatic commits.

    `assignor` assigns the partitions where this consumer is the leader of the group.

    Partitions without a committed offset are read from the earliest offset: see starts.py for new
    groups and new topics.
    """
    return AIOKafkaConsumer(
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset=_OFFSET_RESET,
        isolation_level=_ISOLATION,
        max_partition_fetch_bytes=_FETCH_BYTES,
        metadata_max_age_ms=_METADATA_MAX_AGE_MS,
        session_timeout_ms=SESSION_TIMEOUT_MS,
        heartbeat_interval_ms=SESSION_TIMEOUT_MS // 4,
        fetch_max_wait_ms=settings.kafka_fetch_wait_ms,
        # A member that finishes its messages first (consumer.py) must not be taken for dead.
        rebalance_timeout_ms=_REBALANCE_TIMEOUT_MS,
        partition_assignment_strategy=(assignor,),
        **_connection(settings),
    )


def log_consumer(settings: KafkaSettings, *, fetch_bytes: int) -> AIOKafkaConsumer:
    """Return a consumer of no group, whose fetches have `fetch_bytes` at most."""
    return AIOKafkaConsumer(
        enable_auto_commit=False,
        auto_offset_reset=_OFFSET_RESET,
        isolation_level=_ISOLATION,
        max_partition_fetch_bytes=fetch_bytes,
        fetch_max_wait_ms=settings.kafka_fetch_wait_ms,
        **_connection(settings),
    )


def watch_heartbeats(
    consumer: AIOKafkaConsumer, confirm: Callable[[float], None], *, clock: Callable[[], float]
) -> None:
    """Call `confirm`, with the time of sending, after each heartbeat that the group has accepted.

    The consumer has been started. Its heartbeats are private (tests/unit/test_privates.py).
    """
    coordinator: Any = consumer._coordinator
    beat = coordinator._do_heartbeat

    async def watched_beat() -> bool:
        sent_at = clock()
        accepted = bool(await beat())
        if accepted:
            confirm(sent_at)
        return accepted

    coordinator._do_heartbeat = watched_beat


async def is_accepted(consumer: AIOKafkaConsumer) -> bool:
    """Return whether the group accepts a heartbeat of this member now.

    Sent beside aiokafka's own heartbeats: a refusal is theirs to act on. A group that prepares a
    rebalance accepts its members until they have joined anew. The coordinator is private
    (tests/unit/test_privates.py).

    Raises:
        KafkaError: the group's coordinator gives no answer.
    """
    coordinator: Any = consumer._coordinator
    heartbeat = HeartbeatRequest(
        coordinator.group_id, coordinator.generation, coordinator.member_id
    )
    response = await coordinator._send_req(heartbeat)
    return for_code(response.error_code) in (NoError, RebalanceInProgressError)


async def fetch_directly(consumer: AIOKafkaConsumer) -> None:
    """Replace the fetcher of a consumer that has been started, and has no subscription yet.

    The fetcher is private (tests/unit/test_privates.py).
    """
    plain: Any = consumer._fetcher
    await ended(plain.close(), timeout_seconds=_ABANDON_SECONDS)
    consumer._fetcher = DirectFetcher(
        consumer._client,
        consumer._subscription,
        fetch_min_bytes=plain._fetch_min_bytes,
        fetch_max_bytes=plain._fetch_max_bytes,
        fetch_max_wait_ms=plain._fetch_max_wait_ms,
        max_partition_fetch_bytes=plain._max_partition_fetch_bytes,
        auto_offset_reset=_OFFSET_RESET,
        isolation_level=_ISOLATION,
    )


async def leave(consumer: AIOKafkaConsumer) -> None:
    """Stop a consumer, which leaves its group if it has one, in _LEAVE_SECONDS.

    After an outage aiokafka's stop() may wait for brokers that are gone. Without stop() a group
    removes its member at the session time-out.
    """
    has_left = False
    try:
        has_left = await ended(consumer.stop(), timeout_seconds=_LEAVE_SECONDS)
    finally:
        if not has_left:
            await abandon(consumer)


async def abandon(consumer: AIOKafkaConsumer) -> None:
    """End a consumer whose `stop` did not return: else it goes on fetching, for nobody.

    aiokafka's stop() begins with the group, and ends the fetcher and the connections after it.
    """
    parts: tuple[Any, Any] = (consumer._fetcher, consumer._client)
    for part in parts:
        if part is not None:  # a consumer that has not started has no fetcher
            await ended(part.close(), timeout_seconds=_ABANDON_SECONDS)


async def ended(ending: Coroutine[Any, Any, object], *, timeout_seconds: float) -> bool:
    """Run aiokafka's end of a client; return whether the end has succeeded, in time.

    A task of its own keeps cancellations apart: AIOKafkaClient.close() swallows a cancellation of
    its caller, and stop() can raise CancelledError by itself after an outage. For the same reason
    the end is not waited for once it has been cancelled. uvloop raises RuntimeError for a write to
    a connection that was reset.

    Raises:
        Exception: an error that is neither Kafka's nor uvloop's.
    """
    task = asyncio.create_task(ending)
    try:
        await asyncio.wait((task,), timeout=timeout_seconds)
    finally:
        if not task.done():
            task.cancel()
            task.add_done_callback(_forget_error)
    if not task.done() or task.cancelled():
        return False
    error = task.exception()
    if error is not None and not isinstance(error, KafkaError | RuntimeError):
        raise error
    return error is None


def _forget_error(task: asyncio.Task[object]) -> None:
    """Retrieve the error of a task that is not waited for: asyncio would log it."""
    if not task.cancelled():
        task.exception()


def is_member(consumer: AIOKafkaConsumer) -> bool:
    """Whether the group has not given this consumer up, as far as the consumer knows.

    aiokafka's reset_generation makes the generation -1.
    """
    coordinator: Any = consumer._coordinator
    return int(coordinator.generation) > 0 and not is_dead(consumer)


def is_dead(consumer: AIOKafkaConsumer) -> bool:
    """Whether the consumer will never join a group again: its _coordination_routine has ended.

    Any error ends the routine that is none of Kafka's.
    """
    coordinator: Any = consumer._coordinator
    return bool(coordinator._coordination_task.done())


def producer(
    settings: KafkaSettings,
    *,
    batch_bytes: int = 16_384,
    idempotent: bool = False,
    request_timeout_ms: int = 40_000,
) -> AIOKafkaProducer:
    """Return a producer that waits for all in-sync replicas; `batch_bytes` bounds its batches.

    An idempotent producer sends a batch until Kafka has taken or refused it, and Kafka writes the
    batch once. A request without an answer in `request_timeout_ms` is sent on a new connection.
    """
    return AIOKafkaProducer(
        acks="all",
        max_batch_size=batch_bytes,
        enable_idempotence=idempotent,
        request_timeout_ms=request_timeout_ms,
        max_request_size=_MAX_REQUEST_BYTES,
        metadata_max_age_ms=_METADATA_MAX_AGE_MS,
        **_connection(settings),
    )


def partition_of(key: bytes | None, partitions: int) -> int:
    """Return the partition of a key as Kafka's own clients choose it (murmur2)."""
    return int(DefaultPartitioner()(key, range(partitions), ()))


async def until_reached(connect: Callable[[], Awaitable[_T]], *, bootstrap: str) -> _T:
    """Call `connect` until a broker answers, with back-off to 5 s, and return its result.

    The first failure is logged, with the brokers' addresses; later failures are not.
    """
    for attempt in itertools.count():
        try:
            return await connect()
        except KafkaError as error:
            if attempt == 0:
                log.error("can't reach Kafka; trying on", bootstrap=bootstrap, error=str(error))
            await asyncio.sleep(_RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)])
    raise AssertionError("count() has no end")


def size_of(record: Record) -> int:
    """Return the bytes of memory for a record in hand: its value, key and headers."""
    size = len(record.value or b"") + len(record.key or b"")
    for name, value in record.headers:
        size += len(name) + len(value or b"")
    return size


class UnreadableRecord(ConsumerRecord[bytes | None, bytes | None]):
    """A stand-in for a record that can't be decoded: the record's coordinates, without content."""


def unreadable(partition: TopicPartition, offset: int) -> UnreadableRecord:
    """Return a stand-in for the record at `offset`."""
    return UnreadableRecord(
        topic=partition.topic,
        partition=partition.partition,
        offset=offset,
        timestamp=-1,
        timestamp_type=0,
        key=None,
        value=b"",
        checksum=None,
        serialized_key_size=-1,
        serialized_value_size=0,
        headers=(),
    )


async def partitions_of(settings: KafkaSettings, topics: Sequence[str]) -> list[TopicPartition]:
    """Return the partitions of the topics that exist.

    A broker may create the others now, which is waited for, for a second.

    Raises:
        KafkaError: no broker answers.
    """
    async with _administering(settings) as admin:
        described = await admin.describe_topics(list(topics))
        for pause in _CREATION_SECONDS:
            if all(topic["partitions"] for topic in described):
                break
            await asyncio.sleep(pause)
            described = await admin.describe_topics(list(topics))
    return [
        TopicPartition(topic["topic"], partition["partition"])
        for topic in described
        for partition in topic["partitions"]
    ]


async def create_topic(settings: KafkaSettings, topic: str, *, like: str) -> None:
    """Create a topic with as many partitions and replicas as the topic `like`.

    The broker's own defaults can't be asked for: aiokafka speaks no version of the request that has
    them (KIP-464). Where there is no topic `like` either, one partition and one replica.

    Raises:
        KafkaError: no broker answers, or creation was refused.
    """
    async with _administering(settings) as admin:
        (model,) = await admin.describe_topics([like])
        partitions = model["partitions"]
        replicas = max((len(partition["replicas"]) for partition in partitions), default=1)
        created = await admin.create_topics([NewTopic(topic, len(partitions) or 1, replicas)])
    (result,) = created.to_object()["topic_errors"]
    error = for_code(result["error_code"])
    if error not in (NoError, TopicAlreadyExistsError):
        raise error(result.get("error_message") or "")


async def compaction_lag_seconds(settings: KafkaSettings, topic: str) -> float:
    """Return for how long compaction leaves a topic's records; infinite without compaction.

    Raises:
        KafkaError: no broker answers, or the broker does not say (an ACL, DescribeConfigs).
    """
    names = ["cleanup.policy", "min.compaction.lag.ms"]
    resource = ConfigResource(ConfigResourceType.TOPIC, topic, dict.fromkeys(names))
    async with _administering(settings) as admin:
        (described,) = await admin.describe_configs([resource])
    (found,) = described.to_object()["resources"]
    error = for_code(found["error_code"])
    if error is not NoError:
        raise error(found["error_message"] or "")
    values = {each["config_names"]: each["config_value"] for each in found["config_entries"]}
    if "compact" not in values.get("cleanup.policy", ""):
        return math.inf
    return int(values["min.compaction.lag.ms"]) / 1_000


async def commits_of(
    settings: KafkaSettings, group: str, partitions: Sequence[TopicPartition]
) -> dict[TopicPartition, tuple[int, str]]:
    """Return the offsets that a group has committed, with their metadata.

    Partitions without a committed offset are left out.

    Raises:
        KafkaError: no broker answers, or the request failed.
    """
    if not partitions:
        return {}
    async with _administering(settings) as admin:
        commits = await admin.list_consumer_group_offsets(group, partitions=list(partitions))
    return {
        partition: (commit.offset, commit.metadata or "")
        for partition, commit in commits.items()
        if commit.offset >= 0
    }


async def noted_commits(
    consumer: AIOKafkaConsumer, partitions: Collection[TopicPartition]
) -> dict[TopicPartition, tuple[int, str]]:
    """Return what `commits_of` returns, as a member of the group, in one request.

    AIOKafkaConsumer.committed leaves the metadata out (tests/unit/test_privates.py).

    Raises:
        KafkaError: the request failed.
    """
    coordinator: Any = consumer._coordinator
    commits = await coordinator.fetch_committed_offsets(list(partitions))
    return {
        partition: (commit.offset, commit.metadata or "")
        for partition, commit in commits.items()
        if commit.offset >= 0
    }


async def commit_ends(
    settings: KafkaSettings, group: str, partitions: Sequence[TopicPartition], *, note: str
) -> bool:
    """Commit the ends of partitions in one step, with `note` as metadata, for a group at rest.

    Return False where the group has members: then only a member can commit.

    Raises:
        KafkaError: no broker answers, or a request failed.
    """
    consumer = group_consumer(settings, group)
    await consumer.start()
    try:
        consumer.assign(partitions)
        consumer.pause(*partitions)
        ends = await consumer.end_offsets(partitions)
        await consumer.commit({partition: (end, note) for partition, end in ends.items()})
    except CommitFailedError:
        return False
    finally:
        await leave(consumer)
    return True


@asynccontextmanager
async def _administering(settings: KafkaSettings) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(**_connection(settings))
    await admin.start()
    try:
        yield admin
    finally:
        await ended(admin.close(), timeout_seconds=_ABANDON_SECONDS)


def _connection(settings: KafkaSettings) -> dict[str, Any]:
    protocol = settings.kafka_security_protocol
    password = settings.kafka_sasl_password
    return {
        "bootstrap_servers": settings.kafka_bootstrap,
        "client_id": "pushgate",
        "security_protocol": protocol,
        "ssl_context": (
            ssl.create_default_context(cafile=settings.kafka_ca_file) if "SSL" in protocol else None
        ),
        "sasl_mechanism": settings.kafka_sasl_mechanism,
        "sasl_plain_username": settings.kafka_sasl_username,
        "sasl_plain_password": password.get_secret_value() if password else None,
    }
