"""Kafka's records in, offsets out: a member of the group that commits what is settled.

At-least-once: an offset is committed only after every message up to it has its outcome. Partitions
go their own ways, many at a time. One that is taken away is finished before it goes, as far as the
time allows; what is left of it then is another member's, and nothing of it is committed from here.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

import structlog

from processor import metrics
from processor.outcomes.dead_letters import DeadLetter, DeadLetters
from processor.reading.commits import Commits
from processor.reading.kafka import (
    AIOKafkaConsumer,
    ConsumerRebalanceListener,
    KafkaError,
    Record,
    TopicPartition,
    UnreadableRecord,
    group_consumer,
    seed_group,
    size_of,
    unreadable,
    until_reached,
)
from processor.reading.lanes import shares
from processor.reading.message import Message
from processor.reading.progress import Progress
from processor.sending.dispatch import Dispatcher
from processor.settings import ProcessorSettings
from processor.tasks import Spawn
from registry.message import Envelope, RejectedRecord, from_record

_RETRY_SECONDS: Final = 1.0
#: After so many errors in a row the group is joined anew: aiokafka's own tasks may be dead.
_MOST_ERRORS: Final = 30
#: How long getmany() may wait for the first record; then it looks whether to stop, and, where some
#: partitions were too full to be read, whether they still are.
_WAIT_MS: Final = 500
_WAIT_FOR_ROOM_MS: Final = 20
#: How long a rebalance waits for what is in hand; the broker's own bound is far above.
_REVOKE_SECONDS: Final = 10.0
_NO_PARTITION: Final = TopicPartition("", 0)

log = structlog.get_logger("processor.consumer")

Batch = Mapping[TopicPartition, Sequence[Record]]


class Consumer:
    """Reads the topics as a member of the group until told to stop."""

    def __init__(
        self,
        settings: ProcessorSettings,
        dispatcher: Dispatcher,
        dead_letters: DeadLetters,
        rejected: Callable[[Sequence[tuple[Progress, DeadLetter]]], None],
        *,
        spawn: Spawn,
    ) -> None:
        """`rejected` gets what is kept in the dead-letter topic."""
        self.assigned = asyncio.Event()
        self._settings = settings
        self._dispatcher = dispatcher
        self._dead_letters = dead_letters
        self._rejected = rejected
        self._spawn = spawn
        self._kafka: AIOKafkaConsumer | None = None
        self._commits: Commits | None = None
        self._progress: dict[TopicPartition, Progress] = {}
        self._rejections: set[asyncio.Task[None]] = set()
        self._lanes = {topic: lane for lane, topic in enumerate(settings.topics)}
        self._news = asyncio.Event()  # something has its outcome
        self._lost_place = False  # until every partition's place is found, nothing is read
        self._unreadable = False  # one of them has a record that aiokafka won't read
        self._errors = 0  # in a row
        self._stopping = False

    def stop(self) -> None:
        """Finish what is in hand, commit it and leave the group."""
        self._stopping = True

    async def run(self) -> None:
        """Consume until `stop`. While Kafka can't be reached it is tried on, with back-off."""
        bootstrap = self._settings.kafka_bootstrap
        if self._settings.kafka_start == "end":
            await until_reached(self._seed, bootstrap=bootstrap)
        while not self._stopping:
            consumer = await until_reached(self._join, bootstrap=bootstrap)
            self._errors = 0
            try:
                while not self._stopping and self._errors < _MOST_ERRORS:
                    await self._one_batch(consumer)
                await self._revoke()
            finally:
                for rejection in self._rejections:
                    rejection.cancel()  # it would wait for Kafka as long as it takes
                await _leave(consumer)

    def advanced(self, progresses: Iterable[Progress]) -> None:
        """Commit how far these partitions have come, soon."""
        self._news.set()
        if self._commits is not None:
            self._commits.finished(
                {
                    progress.partition: progress.committable
                    for progress in progresses
                    if progress.committable is not None and not progress.lost
                }
            )

    def observe(self, now_ms: int) -> None:
        """Show how far behind this member is."""
        oldest = now_ms
        for partition, progress in self._progress.items():
            end = None if self._kafka is None else self._kafka.highwater(partition)
            if end is not None and progress.committable is not None:
                lag = max(0, end - progress.committable)
                metrics.LAG.labels(partition.topic, str(partition.partition)).set(lag)
            oldest = min(oldest, progress.oldest_ms or now_ms)
        metrics.OLDEST_SECONDS.set((now_ms - oldest) / 1_000)
        metrics.IN_HAND.set(sum(map(len, self._progress.values())))

    async def _seed(self) -> None:
        settings = self._settings
        if await seed_group(settings, settings.kafka_group, settings.topics):
            log.info("new group starts at the end", group=settings.kafka_group)

    async def _join(self) -> AIOKafkaConsumer:
        consumer = group_consumer(self._settings, self._settings.kafka_group)
        self._kafka, self._commits = consumer, Commits(consumer)
        consumer.subscribe(self._settings.topics, listener=_Rebalances(self._revoke, self._assign))
        try:
            await consumer.start()
        except KafkaError:
            await _leave(consumer)
            raise
        return consumer

    async def _revoke(self) -> None:
        """Finish what is in hand, up to a bound; what outlasts it comes again to another member."""
        ours, self._progress = self._progress, {}  # nothing more of these is taken in
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REVOKE_SECONDS):
                    await self._finish(ours.values())
        finally:
            self._lose(ours.values())

    def _lose(self, progresses: Iterable[Progress]) -> None:
        for progress in progresses:
            progress.lost = True
            with contextlib.suppress(KeyError):  # it may never have been seen
                metrics.LAG.remove(progress.partition.topic, str(progress.partition.partition))
        if self._commits is not None:
            self._commits.forget()
        self._news.set()

    def _assign(self, partitions: Iterable[TopicPartition]) -> None:
        self._progress = {
            partition: Progress(partition, lane=self._lanes[partition.topic])
            for partition in partitions
        }
        self.assigned.set()

    async def _finish(self, progresses: Collection[Progress] | None = None) -> None:
        """Return when all in hand has its outcome and is committed, or can't be."""
        waited_for = self._progress.values() if progresses is None else progresses
        while any(len(progress) for progress in waited_for if not progress.lost):
            self._news.clear()
            await self._news.wait()
        if self._commits is not None:
            await self._commits.flush()

    async def _one_batch(self, consumer: AIOKafkaConsumer) -> None:
        try:
            if self._lost_place:
                await self._find_places(consumer)
            if self._unreadable:
                await self._step_over_unreadable(consumer)
                return
            await self._dispatcher.room()
            batch = await self._fetch(consumer)
        except KafkaError as error:
            self._lost_place = True
            self._errors += 1
            log.error("can't read from Kafka; trying on", error=str(error))
            await asyncio.sleep(_RETRY_SECONDS)
        except UnicodeDecodeError:
            self._lost_place = self._unreadable = True
        else:
            self._errors = 0
            self._take(consumer, batch)

    async def _fetch(self, consumer: AIOKafkaConsumer) -> Batch:
        """Read from the partitions that are not too full, each topic's share of a batch."""
        ready = [p for p, progress in self._progress.items() if not progress.full]
        most = self._settings.batch_messages
        if len(self._lanes) > 1 and (batch := await self._shares(consumer, ready, most)):
            return batch
        wait_ms = _WAIT_MS if len(ready) == len(self._progress) else _WAIT_FOR_ROOM_MS
        if not ready and self._progress:
            ready = [_NO_PARTITION]  # also then: who does not read is taken for stuck by aiokafka
        found: Batch = await consumer.getmany(*ready, timeout_ms=wait_ms, max_records=most)
        return found

    async def _shares(
        self, consumer: AIOKafkaConsumer, ready: Sequence[TopicPartition], most: int
    ) -> Batch:
        """Read what is there of each topic, by weight; a topic with little leaves its share."""
        batch: dict[TopicPartition, Sequence[Record]] = {}
        weights = self._settings.weights
        given = shares(most, [most] * len(weights), weights)
        for lane in range(len(weights)):
            partitions = [p for p in ready if self._lanes[p.topic] == lane]
            try:
                if partitions:
                    batch |= await consumer.getmany(*partitions, max_records=given[lane])
            except KafkaError:
                if not batch:
                    raise
                break  # what was read is taken in first; the error comes again
        return batch

    def _take(self, consumer: AIOKafkaConsumer, batch: Batch) -> None:
        """Take records in, but for those of partitions that have gone, or are only just coming."""
        messages: list[Message] = []
        letters: list[tuple[Progress, DeadLetter]] = []
        taken = 0
        for partition, records in batch.items():
            progress = self._progress.get(partition)
            if progress is None:
                with contextlib.suppress(KafkaError):  # it is not ours any more
                    consumer.seek(partition, records[0].offset)
                continue
            taken += len(records)
            for record in records:
                size = size_of(record)
                progress.begin(record.offset, size=size, timestamp_ms=record.timestamp)
                try:
                    envelope = _envelope(record, self._settings.max_payload_bytes)
                except RejectedRecord as rejected:
                    letters.append((progress, (record, rejected)))
                else:
                    messages.append(Message(envelope, progress, record.offset, size=size))
        if taken:
            metrics.BATCH.observe(taken)
            self._dispatcher.take(messages)
        if letters:
            rejection = self._spawn(self._reject(letters))
            self._rejections.add(rejection)
            rejection.add_done_callback(self._rejections.discard)

    async def _reject(self, letters: Sequence[tuple[Progress, DeadLetter]]) -> None:
        await self._dead_letters.keep([letter for _, letter in letters])
        self._rejected(letters)

    async def _find_places(self, consumer: AIOKafkaConsumer) -> None:
        """Go on behind what was taken in, or where it is committed, after an error.

        What getmany() had in hand of other partitions when it raised is lost to it.
        """
        for partition, progress in list(self._progress.items()):
            place = progress.next
            if place is None:
                place = await consumer.committed(partition)
            if place is None:
                await consumer.seek_to_beginning(partition)
            else:
                consumer.seek(partition, place)
        self._lost_place = False

    async def _step_over_unreadable(self, consumer: AIOKafkaConsumer) -> None:
        """Get past a record whose header has a name that is not UTF-8, which aiokafka won't read.

        Records behind the bad one in its producer batch can't be read either.
        """
        self._unreadable = False
        for partition in list(self._progress):
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
            self._take(consumer, batch)

    async def _read_singly(
        self, consumer: AIOKafkaConsumer, partition: TopicPartition, offset: int
    ) -> None:
        """Take record by record up to what can't be read, then what can be again."""
        found = False
        progress = self._progress.get(partition)
        while not self._stopping and self._progress.get(partition) is progress:
            try:
                batch: Batch = await consumer.getmany(partition, timeout_ms=_WAIT_MS, max_records=1)
            except UnicodeDecodeError as error:
                found = True
                log.error("unreadable record", at=f"{partition}-{offset}", error=str(error))
                self._take(consumer, {partition: [unreadable(partition, offset)]})
                offset += 1
                consumer.seek(partition, offset)
                continue
            self._take(consumer, batch)
            if found or not batch:
                return
            offset = batch[partition][-1].offset + 1


class _Rebalances(ConsumerRebalanceListener):
    """Tells what is taken away, before it goes, and what has come."""

    def __init__(
        self,
        revoke: Callable[[], Awaitable[None]],
        assign: Callable[[Iterable[TopicPartition]], None],
    ) -> None:
        self._revoke = revoke
        self._assign = assign

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Let go of all (rebalances are eager: what stays is assigned again)."""
        if revoked:
            await self._revoke()

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Take note: the group has this member."""
        log.info("partitions assigned", partitions=sorted(f"{t}-{n}" for t, n in assigned))
        self._assign(assigned)


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
