"""Recent records: whether producers agree about a user's partition, and about the time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Final
from zlib import crc32

from processor.reading.kafka import (
    KafkaError,
    Record,
    TopicPartition,
    leave,
    log_consumer,
    partition_of,
)
from processor.settings import ProcessorSettings
from pushgate.doctor.brokers import Cluster
from pushgate.doctor.clocks import Reading, judge
from pushgate.doctor.finding import Finding, Subject

RECORDS: Final = Subject("records")

#: Records looked at of each partition, and partitions at most.
_RECENT: Final = 50
_MOST_PARTITIONS: Final = 64
_FETCH_BYTES: Final = 64 * 1024
_WAIT_MS: Final = 300
#: How long the ends of partitions are looked for, and then records are read. A partition's last
#: ones may be transaction markers, which nobody gets.
_SECONDS: Final = 3.0
_READ_SECONDS: Final = 1.5
#: How long all of this check may take.
MOST_SECONDS: Final = 6.0


async def check_records(
    settings: ProcessorSettings, cluster: Cluster, *, wall: Callable[[], float]
) -> Sequence[Finding]:
    """Look at the newest records of each topic; `wall` gives Unix time in seconds."""
    counts = {
        topic: len(cluster.topics[topic]) for topic in settings.topics if topic in cluster.topics
    }
    partitions = [
        TopicPartition(topic, each.number)
        for topic in counts
        for each in cluster.topics[topic]
        if each.leader is not None
    ][:_MOST_PARTITIONS]
    if not partitions:
        return []
    try:
        records = await _recent(settings, partitions)
    except (KafkaError, TimeoutError) as error:
        return [
            RECORDS.note(
                f"recent records can't be read: {str(error) or 'no answer in time'}",
                why="whether producers agree about partitions and the time is unknown",
                cure="allow Read on the topics to the account in PUSHGATE_KAFKA_SASL_USERNAME",
            )
        ]
    return [*judge_partitions(records, counts), *judge_times(records, now=wall())]


def judge_partitions(records: Sequence[Record], counts: dict[str, int]) -> list[Finding]:
    """Judge whether records are in the partitions of their keys; `counts` are those by topic."""
    keyed = [record for record in records if record.key]
    astray = [
        each for each in keyed if each.partition != partition_of(each.key, counts[each.topic])
    ]
    found: list[Finding] = []
    if len(keyed) < len(records):
        found.append(
            RECORDS.warning(
                f"{len(records) - len(keyed)} of {len(records)} recent records have no key",
                why="the key is the user: these records are rejected",
                cure="publish with the user id as the record's key (docs/publishing.md)",
            )
        )
    if astray:
        found.append(_astray(astray, keyed, counts))
    elif keyed:
        found.append(RECORDS.ok(f"{len(keyed)} recent records are in the partitions of their keys"))
    else:
        found.append(
            RECORDS.note(
                "no recent record with a key: the partitioner of producers is unknown",
                why="producers that choose differently publish one user's messages out of order",
                cure="look again once producers have published",
            )
        )
    return found


def _astray(astray: Sequence[Record], keyed: Sequence[Record], counts: dict[str, int]) -> Finding:
    example = astray[0]
    fits = all(crc32(each.key or b"") % counts[each.topic] == each.partition for each in astray)
    guess = "; they fit crc32, librdkafka's default" if fits else ""
    return RECORDS.warning(
        f"{len(astray)} of {len(keyed)} recent records are not in the partition of their key by "
        f"murmur2{guess} (such as {example.topic}-{example.partition}-{example.offset})",
        why="producers that choose differently publish one user's messages to two partitions, out "
        "of order",
        cure="set partitioner=murmur2_random in librdkafka clients (confluent-kafka, Go, Node), or "
        "the same partitioner in all producers (docs/publishing.md)",
    )


def judge_times(records: Sequence[Record], *, now: float) -> list[Finding]:
    """Judge the newest timestamp: the clock of a producer, or of the broker (LogAppendTime).

    `now` is Unix time in seconds. A clock that is behind can't be told from an old record.
    """
    newest = max(records, key=lambda each: each.timestamp, default=None)
    if newest is None or newest.timestamp / 1_000 <= now:
        return []
    whose = "Kafka" if newest.timestamp_type == 1 else "a producer"
    return judge([Reading(f"{whose} (a record's timestamp)", newest.timestamp / 1_000 - now, 0.0)])


async def _recent(
    settings: ProcessorSettings, partitions: Sequence[TopicPartition]
) -> list[Record]:
    """Return the newest records of partitions, as far as they come in time.

    Raises:
        KafkaError: no broker answers, or the topics may not be read.
        TimeoutError: no broker answers in time.
    """
    consumer = log_consumer(settings, fetch_bytes=_FETCH_BYTES)
    try:
        async with asyncio.timeout(_SECONDS):
            await consumer.start()
            consumer.assign(partitions)
            begins = await consumer.beginning_offsets(partitions)
            ends = await consumer.end_offsets(partitions)
        for each in partitions:
            consumer.seek(each, max(begins[each], ends[each] - _RECENT))
        pending = {each for each in partitions if ends[each] > begins[each]}
        records: list[Record] = []
        # Some records are a sample too. aiokafka can't decode a header's name that is not UTF-8.
        with contextlib.suppress(TimeoutError, UnicodeDecodeError):
            async with asyncio.timeout(_READ_SECONDS):
                while pending:
                    for batch in (await consumer.getmany(timeout_ms=_WAIT_MS)).values():
                        records += batch
                    for each in list(pending):
                        if await consumer.position(each) >= ends[each]:
                            pending.discard(each)
        return records
    finally:
        await leave(consumer)
