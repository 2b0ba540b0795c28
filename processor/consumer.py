"""Kafka batches in, outcomes counted, offsets committed.

At-least-once: an offset is committed only after every message up to it has its outcome. A rebalance
waits for the batch in hand and its commit, so that commits go to partitions that are still ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Final

import structlog

from processor import metrics
from processor.commits import Commits
from processor.dead_letters import DeadLetter, DeadLetters
from processor.dispatch import Dispatcher
from processor.kafka import (
    AIOKafkaConsumer,
    ConsumerRebalanceListener,
    KafkaError,
    Record,
    TopicPartition,
    UnreadableRecord,
    group_consumer,
    seed_group,
    unreadable,
    until_reached,
)
from processor.outcome import Kind, Outcome
from processor.settings import ProcessorSettings
from registry.message import Envelope, RejectedRecord, from_record

_RETRY_SECONDS: Final = 1.0
#: How long getmany() may wait for the first record; then it looks whether to stop.
_WAIT_MS: Final = 500
#: How long a rebalance waits for the batch in hand; the broker's own bound is far above.
_REVOKE_SECONDS: Final = 10.0

log = structlog.get_logger("processor.consumer")

Batch = Mapping[TopicPartition, Sequence[Record]]


class Consumer:
    """Reads the topics as a member of the group until told to stop."""

    def __init__(
        self, settings: ProcessorSettings, dispatcher: Dispatcher, dead_letters: DeadLetters
    ) -> None:
        self.assigned = asyncio.Event()
        self._settings = settings
        self._dispatcher = dispatcher
        self._dead_letters = dead_letters
        self._in_hand = asyncio.Lock()
        self._commits: Commits | None = None
        self._lost_place = False
        self._stopping = False

    def stop(self) -> None:
        """Finish the batch in hand, commit it and leave the group."""
        self._stopping = True

    async def run(self) -> None:
        """Consume until `stop`. While Kafka can't be reached it is tried on, with back-off."""
        bootstrap = self._settings.kafka_bootstrap
        if self._settings.kafka_start == "end":
            await until_reached(self._seed, bootstrap=bootstrap)
        consumer = await until_reached(self._join, bootstrap=bootstrap)
        try:
            while not self._stopping:
                await self._one_batch(consumer)
            await self._finish()
        finally:
            await _leave(consumer)

    async def _seed(self) -> None:
        settings = self._settings
        if await seed_group(settings, settings.kafka_group, settings.topics):
            log.info("new group starts at the end", group=settings.kafka_group)

    async def _join(self) -> AIOKafkaConsumer:
        consumer = group_consumer(self._settings, self._settings.kafka_group)
        self._commits = Commits(consumer)
        consumer.subscribe(self._settings.topics, listener=_Rebalances(self._finish, self.assigned))
        try:
            await consumer.start()
        except KafkaError:
            await _leave(consumer)
            raise
        return consumer

    async def _finish(self) -> None:
        """Return when the batch in hand has its outcomes and its offsets are committed."""
        async with self._in_hand:
            if self._commits is not None:
                await self._commits.flush()

    async def _one_batch(self, consumer: AIOKafkaConsumer) -> None:
        try:
            if self._lost_place:
                await self._step_over_unreadable(consumer)
                return
            batch: Batch = await consumer.getmany(
                timeout_ms=_WAIT_MS, max_records=self._settings.batch_messages
            )
        except KafkaError as error:
            log.error("can't read from Kafka; trying on", error=str(error))
            await asyncio.sleep(_RETRY_SECONDS)
        except UnicodeDecodeError:
            self._lost_place = True  # until every partition's place is found, nothing is read
        else:
            await self._take(consumer, batch)

    async def _take(self, consumer: AIOKafkaConsumer, batch: Batch) -> None:
        async with self._in_hand:
            ours = consumer.assignment()
            batch = {partition: batch[partition] for partition in batch if partition in ours}
            if not batch:
                return
            await self._handle(list(itertools.chain.from_iterable(batch.values())))
            if self._commits is not None:
                self._commits.finished(
                    {partition: records[-1].offset + 1 for partition, records in batch.items()}
                )

    async def _step_over_unreadable(self, consumer: AIOKafkaConsumer) -> None:
        """Get past a record whose header has a name that is not UTF-8, which aiokafka won't read.

        What getmany() had in hand is lost to it, so every partition is read again from where it is
        committed. Records behind the bad one in its producer batch can't be read either.
        """
        await self._finish()
        for partition in consumer.assignment():
            committed = await consumer.committed(partition)
            if committed is None:
                await consumer.seek_to_beginning(partition)
            else:
                consumer.seek(partition, committed)
        self._lost_place = False
        for partition in consumer.assignment():
            await self._read_alone(consumer, partition)

    async def _read_alone(self, consumer: AIOKafkaConsumer, partition: TopicPartition) -> None:
        offset = await consumer.position(partition)
        try:
            batch: Batch = await consumer.getmany(
                partition, timeout_ms=_WAIT_MS, max_records=self._settings.batch_messages
            )
        except UnicodeDecodeError:
            consumer.seek(partition, offset)
            await self._read_singly(consumer, partition, offset)
        else:
            await self._take(consumer, batch)

    async def _read_singly(
        self, consumer: AIOKafkaConsumer, partition: TopicPartition, offset: int
    ) -> None:
        """Take record by record up to what can't be read, then what can be again."""
        found = False
        while not self._stopping:
            try:
                batch: Batch = await consumer.getmany(partition, timeout_ms=_WAIT_MS, max_records=1)
            except UnicodeDecodeError as error:
                found = True
                log.error("unreadable record", at=f"{partition}-{offset}", error=str(error))
                await self._take(consumer, {partition: [unreadable(partition, offset)]})
                offset += 1
                consumer.seek(partition, offset)
                continue
            await self._take(consumer, batch)
            if found or not batch:
                return
            offset = batch[partition][-1].offset + 1

    async def _handle(self, records: Sequence[Record]) -> None:
        metrics.BATCH.observe(len(records))
        envelopes: list[Envelope] = []
        letters: list[DeadLetter] = []
        for record in records:
            try:
                envelopes.append(_envelope(record, self._settings.max_payload_bytes))
            except RejectedRecord as rejected:
                letters.append((record, rejected))
        outcomes = await self._dispatcher.dispatch(envelopes)
        if letters:
            await self._dead_letters.keep(letters)
            outcomes += [Outcome(Kind.REJECTED, rejected.reason) for _, rejected in letters]
        for outcome, count in Counter(outcomes).items():
            metrics.OUTCOMES.labels(outcome.kind.value, outcome.reason).inc(count)


class _Rebalances(ConsumerRebalanceListener):
    """Lets a batch in hand finish before its partitions go to another member."""

    def __init__(self, finish: Callable[[], Awaitable[None]], assigned: asyncio.Event) -> None:
        self._finish = finish
        self._assigned = assigned

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Wait for the batch in hand, up to a bound: what outlasts it may come again."""
        if revoked:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REVOKE_SECONDS):
                    await self._finish()

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Take note: the group has this member."""
        log.info("partitions assigned", partitions=sorted(f"{t}-{n}" for t, n in assigned))
        self._assigned.set()


def _envelope(record: Record, max_payload_bytes: int) -> Envelope:
    if isinstance(record, UnreadableRecord):
        raise RejectedRecord("unreadable", "a header here or before has a name that is not UTF-8")
    timestamp_ms: int = record.timestamp
    return from_record(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        timestamp_ms=timestamp_ms if timestamp_ms >= 0 else int(time.time() * 1000),
        key=record.key,
        value=record.value,
        headers=record.headers,
        max_payload_bytes=max_payload_bytes,
    )


async def _leave(consumer: AIOKafkaConsumer) -> None:
    # aiokafka's stop() can raise CancelledError of its own after an outage, and may then wait for
    # brokers that are gone; the group's session time-out does the rest.
    with contextlib.suppress(asyncio.CancelledError, KafkaError, TimeoutError):
        await asyncio.wait_for(consumer.stop(), timeout=5.0)
