"""A member of the consumer group: takes records in, and commits the offsets of settled records.

At-least-once: an offset is committed only after every message before it has its outcome. Partitions
advance independently, many at a time. A partition that is revoked is finished first, as far as the
time allows. Messages still unsettled then come again to another member of the group, and this
member does not commit their offsets.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Final, Protocol

import structlog

from processor import metrics
from processor.reading.commits import Commits
from processor.reading.handover import Handover, Settled, claim_in, merged, word_of
from processor.reading.kafka import (
    AIOKafkaConsumer,
    ConsumerRebalanceListener,
    KafkaError,
    Record,
    TopicPartition,
    fetch_directly,
    group_consumer,
    is_accepted,
    is_dead,
    is_member,
    leave,
    noted_commits,
    size_of,
    until_reached,
    watch_heartbeats,
)
from processor.reading.membership import DOUBT_SECONDS, Membership
from processor.reading.message import Message, Rejection, envelope_of
from processor.reading.progress import Progress
from processor.reading.reader import Batch, Reader
from processor.reading.starts import Starts
from processor.settings import ProcessorSettings
from registry.message import Envelope, RejectedRecord

_RETRY_SECONDS: Final = 1.0
#: After this many errors in a row the group is joined anew: aiokafka's own tasks may be dead.
_MOST_ERRORS: Final = 30
#: How long a rebalance waits for the messages in hand; the broker's own bound is far above.
_REVOKE_SECONDS: Final = 10.0
#: The same where this process stops. A supervisor may kill it ten seconds after SIGTERM, and claims
#: are to be left, and the group, before that.
_STOPPING_SECONDS: Final = 8.0
#: The same where the group has given this member up: no commit can succeed, and only writes of
#: outcomes that are under way are waited for.
_EXPELLED_SECONDS: Final = 0.5
#: How long records that were read wait for certainty before they are put back, and how often
#: meanwhile is looked whether to stop.
_CERTAINTY_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 0.5
#: How long new topics may take to get their first commit. A member sends no heartbeat meanwhile,
#: and the group gives a silent member up after six seconds.
_BEGIN_SECONDS: Final = 4.0

log = structlog.get_logger("processor.consumer")


class Intake(Protocol):
    """The receiver of messages, responsible for the outcome of every message."""

    @property
    def accepted(self) -> bool:
        """Whether any gateway accepts messages; where none does, none is to be taken in."""

    async def room(self) -> None:
        """Return when another batch can be taken."""

    def take(self, messages: Sequence[Message]) -> None:
        """Take messages, in the order in which users are to get them."""


class Rejects(Protocol):
    """The receiver and keeper of rejected records."""

    def take(self, rejections: Sequence[Rejection]) -> None:
        """Keep rejected records."""

    def abandon(self) -> None:
        """Stop writing rejected records: the records' partitions are lost."""


class Records(Protocol):
    """The keeper of what was taken in lately, for clients that come back."""

    def begin(self, commits: Mapping[TopicPartition, tuple[int, str]]) -> None:
        """Begin with assigned partitions: each with the offset that is taken in next.

        And with the note of the commit there.
        """

    def note(self, partition: TopicPartition) -> str:
        """Return what is to be noted with a partition's commits, for its next owner."""

    def take(self, partition: TopicPartition, messages: Sequence[Message]) -> None:
        """Keep messages that are taken in, or that an earlier owner has settled; in order."""


class Consumer:
    """Reads the topics as a member of the consumer group until told to stop."""

    def __init__(
        self,
        settings: ProcessorSettings,
        commits: Commits,
        intake: Intake,
        rejects: Rejects,
        *,
        membership: Membership,
        records: Records | None = None,
        read: Callable[[Record, int, int], Envelope] = envelope_of,
    ) -> None:
        """`read` reads the message in a record, as `envelope_of` does."""
        self.assigned = asyncio.Event()
        self._settings = settings
        self._commits = commits
        self._intake = intake
        self._rejects = rejects
        self._membership = membership
        self._records = records
        self._read_envelope = read
        #: Where the assigned partitions began; a partition without a committed offset at 0.
        self._start_offsets: dict[TopicPartition, int] = {}
        self._start_notes: dict[TopicPartition, str] = {}  # of the commits there
        self._handover = Handover()
        #: What earlier owners have settled of records that are still to be read.
        self._settled_before: dict[TopicPartition, Settled] = {}
        self._kafka: AIOKafkaConsumer | None = None
        # Changed in place: the reader holds the same dict.
        self._partitions: dict[TopicPartition, Progress] = {}
        self._lanes = {topic: lane for lane, topic in enumerate(settings.topics)}
        self._starts = Starts(settings)
        #: Topics of the setting that do not exist (or can't be described); see `observe`.
        self.missing_topics: list[str] = []
        self._missing_at_last_look: list[str] = []
        self._release: asyncio.TimerHandle | None = None  # resumes held partitions
        self._errors = 0  # failed reads in a row
        #: Join the group anew: the assignment could not begin, or the client is dead.
        self._rejoin = False
        self._stopping = False

    def stop(self) -> None:
        """Finish the messages in hand, commit them and leave the group."""
        self._stopping = True

    async def run(self) -> None:
        """Consume until `stop`. While Kafka can't be reached, joining is retried with back-off."""
        bootstrap = self._settings.kafka_bootstrap
        await until_reached(self._survey, bootstrap=bootstrap)
        while not self._stopping:
            client = await until_reached(self._join, bootstrap=bootstrap)
            self._errors = 0
            reader = self._reader(client)
            try:
                while not (self._stopping or self._rejoin or self._errors >= _MOST_ERRORS):
                    await self._read(client, reader)
                await self._leave()
            finally:
                self._rejects.abandon()
                await leave(client)

    def observe(self, now_ms: int) -> None:
        """Set the gauges of lag, of the oldest message's age, of messages in hand; look for topics.

        Call this every second or so.
        """
        self._look_for_topics()
        oldest = now_ms
        for partition, progress in self._partitions.items():
            end = None if self._kafka is None else self._kafka.highwater(partition)
            if end is not None and progress.committable is not None:
                lag = max(0, end - progress.committable)
                metrics.LAG.labels(partition.topic, str(partition.partition)).set(lag)
            oldest = min(oldest, progress.oldest_ms or now_ms)
        metrics.OLDEST_SECONDS.set((now_ms - oldest) / 1_000)
        metrics.PARTITIONS.set(len(self._partitions))
        metrics.IN_HAND.set(sum(map(len, self._partitions.values())))

    @property
    def partitions(self) -> Iterable[Progress]:
        """The assigned partitions."""
        return self._partitions.values()

    async def prove(self, *, lone: bool = False) -> dict[TopicPartition, int]:
        """Return the partitions that were this member's for certain when `prove` was called.

        Each with the offset before which everything was taken in, now. `lone`: for one client.
        """
        before = dict(self._partitions)
        if not before or not await self._commits.prove(lone=lone):
            return {}
        return {
            partition: self._next_offset(progress)
            for partition, progress in before.items()
            if self._partitions.get(partition) is progress
        }

    def partition_counts(self) -> dict[str, int]:
        """Return how many partitions the topics have, as far as is known."""
        if self._kafka is None:
            return {}
        found = {topic: self._kafka.partitions_for_topic(topic) for topic in self._settings.topics}
        return {topic: len(partitions) for topic, partitions in found.items() if partitions}

    def log_end(self, partition: TopicPartition) -> int | None:
        """Return the offset behind a partition's last record; None where that is not known."""
        end: int | None = None if self._kafka is None else self._kafka.highwater(partition)
        return end

    def _next_offset(self, progress: Progress) -> int:
        if progress.next_offset is not None:
            return progress.next_offset
        return self._start_offsets.get(progress.partition, 0)

    def _places(self) -> dict[TopicPartition, int]:
        """Return what can be committed of every assigned partition."""
        return {
            partition: self._start_offsets.get(partition, 0)
            if progress.committable is None
            else progress.committable
            for partition, progress in self._partitions.items()
        }

    def _word_of(self, partition: TopicPartition) -> str:
        return "" if self._records is None else self._records.note(partition)

    def _look_for_topics(self) -> None:
        """Say which topics are missing, once two looks in a row have found the same.

        The first look may come before a new client has the topics' metadata.
        """
        missing: list[str] = []
        if self._kafka is not None and self.assigned.is_set():
            kafka = self._kafka
            missing = [
                topic
                for topic in self._settings.topics
                if kafka.partitions_for_topic(topic) is None
            ]
        if missing == self._missing_at_last_look != self.missing_topics:
            if missing:
                log.warning("topics do not exist; the others are read", missing=missing)
            else:
                log.info("all topics exist")
            self.missing_topics = missing
        self._missing_at_last_look = missing

    async def _survey(self) -> None:
        await self._starts.survey()

    async def _join(self) -> AIOKafkaConsumer:
        self._rejoin = False
        client = group_consumer(self._settings, self._settings.kafka_group, assignor=self._handover)
        self._kafka = client
        self._commits.use(
            client,
            note=self._starts.note,
            places=self._places,
            word=self._word_of,
            is_accepted=partial(is_accepted, client),
        )
        try:
            await client.start()
        except KafkaError:
            await leave(client)
            raise
        await fetch_directly(client)
        watch_heartbeats(client, self._membership.confirm, clock=self._membership.now)
        # Only now: start() would wait for every topic, and fail where one topic does not exist.
        client.subscribe(self._settings.topics, listener=_Rebalances(self._revoke, self._begin))
        return client

    def _reader(self, client: AIOKafkaConsumer) -> Reader:
        return Reader(
            client,
            self._partitions,
            lanes=self._lanes,
            weights=self._settings.weights,
            batch_messages=self._settings.batch_messages,
            stopping=lambda: self._stopping,
            advanced=self._commits.advanced,
        )

    async def _leave(self) -> None:
        """Finish the messages in hand, and leave claims to the partitions' next owners."""
        begun = [each for each in self._partitions.values() if each.committable is not None]
        await self._revoke()
        if self._stopping:  # else the claims go with the next subscription
            claims = self._handover.claims
            room = self._commits.room_bytes
            await self._commits.leave(
                {
                    each.partition: (settled.before, word_of(settled, most_bytes=room))
                    for each in begun
                    if (settled := claims.get(each.partition)) is not None
                }
            )

    async def _revoke(self) -> None:
        """Finish the messages in hand, for _REVOKE_SECONDS at most.

        Messages still unsettled after that come again to another member.
        """
        revoked = list(self._partitions.values())
        self._partitions.clear()  # no more records of these partitions are taken in
        seconds = _STOPPING_SECONDS if self._stopping else _REVOKE_SECONDS
        if self._kafka is not None and not is_member(self._kafka):
            seconds = _EXPELLED_SECONDS
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._commits.settled(revoked)
                    await self._commits.flush()
        finally:
            self._lose(revoked)

    def _lose(self, revoked: Iterable[Progress]) -> None:
        for progress in revoked:
            progress.lost = True
            self._handover.give(progress)
            with contextlib.suppress(KeyError):  # the partition's lag may never have been shown
                metrics.LAG.remove(progress.partition.topic, str(progress.partition.partition))
        self._commits.forget()

    async def _begin(self, partitions: Collection[TopicPartition]) -> None:
        """Begin with assigned partitions, where the group and their earlier owners left off."""
        client = self._kafka
        assert client is not None  # noqa: S101 - assignments come after `_join`
        self._membership.confirm(self._membership.now())
        unclaimed = [each for each in partitions if each not in self._handover.claims]
        try:
            async with asyncio.timeout(_BEGIN_SECONDS):
                await self._starts.begin(client, partitions)
                skipped = await self._skip_settled(client, partitions)
        except (KafkaError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            log.error("can't find where partitions start; joining anew", error=reason)
            self._rejoin = True
        else:
            self._hold_doubtful(client, unclaimed)
            self._assign(partitions)
            if self._records is not None:
                notes = self._start_notes
                self._records.begin(
                    {each: (at, notes[each]) for each, at in self._start_offsets.items()}
                )
            # The places to read from after an error: the commits of these offsets may fail.
            for partition, offset in skipped.items():
                self._partitions[partition].follow(offset)

    async def _skip_settled(
        self, client: AIOKafkaConsumer, partitions: Collection[TopicPartition]
    ) -> dict[TopicPartition, int]:
        """Go on after the offsets up to which earlier owners settled everything; commit these.

        Return the offsets of the partitions where something was skipped.

        Raises:
            KafkaError: the offsets could not be read.
        """
        self._settled_before = {}
        skipped: dict[TopicPartition, int] = {}
        commits = await noted_commits(client, partitions)
        found = {each: commits.get(each, (0, "")) for each in partitions}
        left = {each: claim_in(note, offset) for each, (offset, note) in commits.items()}
        claims = merged(
            [self._handover.claims, {each: claim for each, claim in left.items() if claim}]
        )
        self._handover.claims = claims
        for partition in claims.keys() & set(partitions):
            settled = claims[partition]
            if partition not in commits or commits[partition][0] < settled.before:
                client.seek(partition, settled.before)
                skipped[partition] = settled.before
            if settled.beyond:
                self._settled_before[partition] = settled
        self._commits.finished(skipped)
        self._start_offsets = {each: offset for each, (offset, _) in found.items()} | skipped
        self._start_notes = {each: note for each, (_, note) in found.items()}
        return skipped

    def _hold_doubtful(self, client: AIOKafkaConsumer, held: Collection[TopicPartition]) -> None:
        """Pause partitions whose earlier owner may be about to join anew, with claims on them."""
        if not held or not self._membership.others_in_doubt:
            return
        log.info("waiting for earlier owners of partitions", partitions=len(held))
        client.pause(*held)
        if self._release is not None:
            self._release.cancel()
        loop = asyncio.get_running_loop()
        self._release = loop.call_later(
            DOUBT_SECONDS, lambda: client.resume(*client.assignment().intersection(held))
        )

    def _assign(self, partitions: Iterable[TopicPartition]) -> None:
        self._partitions.clear()
        for partition in partitions:
            self._partitions[partition] = Progress(partition, lane=self._lanes[partition.topic])
        self.assigned.set()

    async def _read(self, client: AIOKafkaConsumer, reader: Reader) -> None:
        await self._intake.room()
        try:
            async for batch in reader.read():
                await self._take_when_certain(client, batch)
        except KafkaError as error:
            self._errors += 1
            log.error("can't read from Kafka; trying on", error=str(error))
            self._rejoin = self._rejoin or is_dead(client)
            if not self._rejoin:
                await asyncio.sleep(_RETRY_SECONDS)
        else:
            self._errors = 0

    async def _take_when_certain(self, client: AIOKafkaConsumer, batch: Batch) -> None:
        """Take records in, once it is certain that their partitions are this member's.

        Records are put back where that stays uncertain, or where no gateway accepts messages.
        """
        progresses = {partition: self._partitions.get(partition) for partition in batch}
        # Not assigned yet: the records come again later.
        _put_back(client, batch, (each for each in batch if progresses[each] is None))
        certain = await self._certain(client)
        # A partition that was lost meanwhile, and may be back, has another offset to read from.
        held = [
            each for each in batch if self._partitions.get(each) is progresses[each] is not None
        ]
        # The poll that brought the records may have begun before every gateway refused.
        if certain and self._intake.accepted:
            self._take({partition: batch[partition] for partition in held})
        else:
            _put_back(client, batch, held)

    async def _certain(self, client: AIOKafkaConsumer) -> bool:
        """Return whether the membership is certain; wait for that, for a few seconds at most.

        aiokafka joins no group for a consumer that has not polled for five minutes, so a wait
        without an end would be one. A dead client has no heartbeat answered any more, and the other
        members wait for its claims for no longer than DOUBT_SECONDS.
        """
        if self._membership.certain:
            return True
        deadline = self._membership.now() + _CERTAINTY_SECONDS
        while not await self._membership.certainty(timeout_seconds=_LOOK_SECONDS):
            late = self._membership.now() > deadline
            if late or self._stopping or is_dead(client):
                return False
        return True

    def _take(self, batch: Batch) -> None:
        """Take records of assigned partitions in."""
        messages: list[Message] = []
        rejections: list[Rejection] = []
        for partition, records in batch.items():
            messages += self._take_records(self._partitions[partition], records, rejections)
        if batch:
            metrics.BATCH.observe(sum(map(len, batch.values())))
            self._intake.take(messages)
        if rejections:
            self._rejects.take(rejections)

    def _take_records(
        self, progress: Progress, records: Sequence[Record], rejections: list[Rejection]
    ) -> list[Message]:
        """Take records of a partition in hand; return their messages, and add to `rejections`."""
        partition = progress.partition
        lane = partition.topic if len(self._lanes) > 1 else None
        settled = self._settled_before.get(partition)
        messages: list[Message] = []
        settled_before: list[Message] = []  # by an earlier owner
        read_ms = int(time.time() * 1000)
        for record in records:
            size = size_of(record)
            # Kafka has -1 for a record without a timestamp.
            timestamp_ms = record.timestamp if record.timestamp >= 0 else read_ms
            progress.begin(record.offset, size=size, timestamp_ms=timestamp_ms)
            is_settled = settled is not None and record.offset in settled.beyond
            if is_settled:
                progress.settle(record.offset, size=size)
            try:
                envelope = self._read_envelope(
                    record, timestamp_ms, self._settings.max_payload_bytes
                )
            except RejectedRecord as error:
                if not is_settled:
                    rejections.append(Rejection(progress, record, error, timestamp_ms))
                continue
            if lane is not None:
                envelope.push.lane = lane
            message = Message(envelope, progress, record.offset, size=size)
            if not is_settled:
                messages.append(message)
            elif envelope.ttl_seconds != 0:  # else it was for clients of then alone
                settled_before.append(message)
        if self._records is not None:
            # In the turn in which the progress moves on: what is in front is at hand for answers.
            self._records.take(
                partition,
                sorted((*messages, *settled_before), key=_by_offset)
                if settled_before
                else messages,
            )
        if settled is not None:
            self._skipped(progress, settled)
        return messages

    def _skipped(self, progress: Progress, settled: Settled) -> None:
        """Commit what may now be committable; forget claims that have been read past."""
        self._commits.advanced([progress])
        if progress.next_offset is not None and progress.next_offset > max(settled.beyond):
            del self._settled_before[progress.partition]


class _Rebalances(ConsumerRebalanceListener):
    """Tells the consumer which partitions are revoked, before they go, and which are assigned."""

    def __init__(
        self,
        revoke: Callable[[], Awaitable[None]],
        begin: Callable[[Collection[TopicPartition]], Awaitable[None]],
    ) -> None:
        self._revoke = revoke
        self._begin = begin

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Finish all partitions: rebalances are eager, and kept partitions are assigned anew."""
        if revoked:
            await self._revoke()

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Begin with the assigned partitions."""
        log.info("partitions assigned", partitions=sorted(f"{t}-{n}" for t, n in assigned))
        await self._begin(assigned)


def _put_back(client: AIOKafkaConsumer, batch: Batch, partitions: Iterable[TopicPartition]) -> None:
    """Let the records of some partitions of a batch be read again."""
    for partition in partitions:
        with contextlib.suppress(KafkaError):  # the partition is not assigned any more
            client.seek(partition, batch[partition][0].offset)


_by_offset: Final = attrgetter("offset")
