"""Kafka batches in, outcomes counted, offsets committed.

At-least-once: an offset is committed only after every message up to it has its outcome. While a
batch is in hand, a rebalance waits for it, so that commits go to partitions that are still ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

import structlog

from processor import metrics
from processor.dead_letters import DeadLetter, DeadLetters
from processor.dispatch import Dispatcher
from processor.kafka import (
    AIOKafkaConsumer,
    ConsumerRebalanceListener,
    KafkaError,
    Record,
    TopicPartition,
    group_consumer,
    seed_group,
)
from processor.outcome import Kind, Outcome
from processor.settings import ProcessorSettings
from registry.message import Envelope, RejectedRecord, from_record

_RETRY_SECONDS: Final = (0.25, 0.5, 1.0, 2.0, 5.0)
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
        self._stopping = False

    def stop(self) -> None:
        """Finish the batch in hand, commit it and leave the group."""
        self._stopping = True

    async def run(self) -> None:
        """Consume until `stop`. An unreachable Kafka is named, and tried again with back-off."""
        if self._settings.kafka_start == "end":
            await self._seed()
        consumer = await self._join()
        try:
            while not self._stopping:
                await self._one_batch(consumer)
        finally:
            await _leave(consumer)

    async def _seed(self) -> None:
        settings = self._settings
        for wait in _waits():
            try:
                if await seed_group(settings, settings.kafka_group, settings.topics):
                    log.info("new group starts at the end", group=settings.kafka_group)
                return
            except KafkaError as error:
                await self._unreachable(error, wait)
            if self._stopping:
                return

    async def _join(self) -> AIOKafkaConsumer:
        settings = self._settings
        for wait in _waits():
            consumer = group_consumer(settings, settings.kafka_group)
            consumer.subscribe(settings.topics, listener=_Rebalances(self._in_hand, self.assigned))
            try:
                await consumer.start()
                return consumer
            except KafkaError as error:
                await _leave(consumer)
                await self._unreachable(error, wait)
        raise AssertionError("_waits() has no end")

    async def _unreachable(self, error: KafkaError, wait: float) -> None:
        bootstrap = self._settings.kafka_bootstrap
        log.error("can't reach Kafka; trying on", bootstrap=bootstrap, error=str(error))
        await asyncio.sleep(wait)

    async def _one_batch(self, consumer: AIOKafkaConsumer) -> None:
        try:
            batch: Batch = await consumer.getmany(
                timeout_ms=_WAIT_MS, max_records=self._settings.batch_messages
            )
        except KafkaError as error:
            log.error("can't read from Kafka; trying on", error=str(error))
            await asyncio.sleep(_RETRY_SECONDS[2])
            return
        if not batch:
            return
        async with self._in_hand:
            ours = consumer.assignment()
            batch = {partition: batch[partition] for partition in batch if partition in ours}
            await self._handle(list(itertools.chain.from_iterable(batch.values())))
            await _commit(consumer, batch)

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

    def __init__(self, in_hand: asyncio.Lock, assigned: asyncio.Event) -> None:
        self._in_hand = in_hand
        self._assigned = assigned

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Wait for the batch in hand, up to a bound: what outlasts it may come again."""
        if revoked:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REVOKE_SECONDS), self._in_hand:
                    pass

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Take note: the group has this member."""
        log.info("partitions assigned", partitions=sorted(f"{t}-{n}" for t, n in assigned))
        self._assigned.set()


def _envelope(record: Record, max_payload_bytes: int) -> Envelope:
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


async def _commit(consumer: AIOKafkaConsumer, batch: Batch) -> None:
    still_ours = consumer.assignment()
    offsets = {
        partition: records[-1].offset + 1
        for partition, records in batch.items()
        if partition in still_ours
    }
    try:
        await consumer.commit(offsets)
    except KafkaError as error:
        # The next commit covers these offsets too; if there is none, the batch comes again.
        metrics.COMMIT_ERRORS.inc()
        log.warning("commit failed", error=str(error) or type(error).__name__)


async def _leave(consumer: AIOKafkaConsumer) -> None:
    # aiokafka's stop() can raise CancelledError of its own after an outage, and may then wait for
    # brokers that are gone; the group's session time-out does the rest.
    with contextlib.suppress(asyncio.CancelledError, KafkaError, TimeoutError):
        await asyncio.wait_for(consumer.stop(), timeout=5.0)


def _waits() -> Iterator[float]:
    yield from _RETRY_SECONDS
    yield from itertools.repeat(_RETRY_SECONDS[-1])
