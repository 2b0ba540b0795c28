"""Outcomes of messages, for operators and publishers: metrics, and a Kafka topic if one is set.

A message that has its outcome is counted, reported, and only then taken off its partition's
progress, so that its offset can be committed (commits.py). With a topic, the last step waits until
Kafka has acknowledged the report: a crash may repeat a report, and loses none. Where only a sample
is reported, the other messages wait for the write that they were gathered with. While the topic
can't be written to, messages do not wait for it (accessory.py).

Messages that a client gets when it comes back (processor/replay) are reported once more, in the
same writes. These reports are about messages that have their outcome: nothing waits for them, and
none is counted as an outcome.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Final, NamedTuple
from zlib import crc32

import msgspec

from processor import metrics
from processor.outcomes.accessory import Accessory
from processor.outcomes.outcome import Kind, Outcome, outcome, outcome_of
from processor.outcomes.writer import Row
from processor.reading.kafka import Record, size_of
from processor.reading.membership import Membership
from processor.reading.message import Message, Rejection
from processor.reading.progress import Progress
from processor.settings import ProcessorSettings
from processor.tasks import Spawn
from registry.message import MAX_USER_BYTES

#: How long reports are gathered before the first write; while one write is under way, the reports
#: for the next are gathered.
_GATHER_SECONDS: Final = 0.02
#: The number of CRC-32 values. A message is in the sample if its id's checksum is below the
#: sample's share of them: a repeated message is sampled again, or again not.
_CHECKSUMS: Final = 2**32
#: Reports of replayed messages that wait for a write, at most: 16 MB. Further ones are lost.
_MOST_REPLAYED: Final = 32_768

#: Is called with the partitions (their `Progress`) of which messages were settled.
Advanced = Callable[[Iterable[Progress]], None]


class Report(msgspec.Struct, gc=False, omit_defaults=True):
    """A record's value in the outcomes topic, as JSON; the key is the user. Times in epoch ms.

    `topic`, `partition` and `offset` are those of the message's own record; `settled_ms` is when
    the outcome was known, `ms` how long after the publication. A report of a replayed message has
    no time of publication.
    """

    id: str
    outcome: str
    reason: str | None
    node: str | None  # the first node that took the message
    nodes: list[str]  # all nodes that took the message
    processor: str
    device: str | None  # the device that the message was for
    connections: int  # connections that took the message
    missed: int  # nodes with connections of the user that may be without the message
    published_ms: int | None
    settled_ms: int
    ms: int | None  # 0 at least, whatever the clocks of publisher and processor say
    topic: str
    partition: int
    offset: int
    replayed: bool = False  # left out unless true


class Replayed(NamedTuple):
    """A replayed message that a connection to a node has taken."""

    user: str
    id: str
    device: str | None  # the device that the message was for
    node: str
    topic: str
    partition: int
    offset: int


class _Place(NamedTuple):
    """The place of a rejected record in its partition; a `Message` has the same attributes.

    `size` is the number of bytes that `progress` counts for the record.
    """

    progress: Progress
    offset: int
    size: int


#: A message or a rejected record, to be taken off the progress of its partition.
_Placed = _Place | Message


class _Gathered(NamedTuple):
    """A message with its outcome, and the report to write; None where none is to be written."""

    place: _Placed
    outcome: Outcome
    row: Row | None


#: A report with its key, which is None for a rejected record whose key can be no user's.
_KeyedReport = tuple[bytes | None, Report]
_encode = msgspec.json.Encoder().encode


class Outcomes:
    """Counts outcomes, reports them where a topic is set, and then settles their messages.

    `settled` and `rejected` return at once; reports are written by one task, write after write. The
    gathered reports are bounded by the messages in hand: a partition with too many is not read.
    """

    def __init__(
        self,
        settings: ProcessorSettings,
        advanced: Advanced,
        *,
        membership: Membership,
        spawn: Spawn,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
    ) -> None:
        """`advanced` is told the partitions of which messages were settled.

        Outcomes are counted and reported only while `membership` is certain: in doubt, another
        member may be doing so.
        """
        self._processor = settings.processor_name
        self._membership = membership
        self._advanced = advanced
        self._spawn = spawn
        self._now_ms = now_ms
        topic = settings.outcomes_topic
        #: None where no topic is set.
        self.accessory = Accessory(settings, topic, name="outcomes", spawn=spawn) if topic else None
        self._sample_below = int(settings.outcomes_sample * _CHECKSUMS)
        #: Gathered for the next write.
        self._gathered: list[_Gathered] = []
        self._replayed: list[Row] = []
        self._publishing: asyncio.Task[None] | None = None

    async def stop(self) -> None:
        """Stop reporting. Messages whose report is not written yet are not committed either."""
        if self._publishing is not None:
            self._publishing.cancel()
            await asyncio.wait((self._publishing,))

    def settled(self, messages: Sequence[Message]) -> None:
        """Count and report messages that have their outcome, then take them off the progress.

        Messages of a lost partition (revoked from this member of the group) are another member's,
        and are left out.
        """
        held = [message for message in messages if not message.progress.lost]
        outcomes = [outcome_of(message) for message in held]
        if self.accessory is None:
            self._settle_when_certain(held, outcomes)
        elif held:
            now_ms = self._now_ms()
            pairs = zip(held, outcomes, strict=True)
            reports = [self._report(message, result, now_ms) for message, result in pairs]
            self._publish_soon(held, outcomes, reports)

    def rejected(self, rejections: Sequence[Rejection]) -> None:
        """Do the same for rejected records, which are in the dead-letter topic by now."""
        held = [rejection for rejection in rejections if not rejection.progress.lost]
        outcomes = [outcome(Kind.REJECTED, rejection.error.reason) for rejection in held]
        places = [
            _Place(rejection.progress, rejection.record.offset, size_of(rejection.record))
            for rejection in held
        ]
        if self.accessory is None:
            self._settle_when_certain(places, outcomes)
        elif places:
            now_ms = self._now_ms()
            reports = [
                (_key(rejection.record), self._rejection(rejection, now_ms)) for rejection in held
            ]
            self._publish_soon(places, outcomes, reports)

    def replayed(self, messages: Sequence[Replayed]) -> None:
        """Report messages that clients got when they came back. Only where a topic is set.

        _MOST_REPLAYED reports wait at most; further ones are lost, and counted.
        """
        now_ms = self._now_ms()
        reports = [(message.user.encode(), self._replay(message, now_ms)) for message in messages]
        rows = [row for key, report in reports if (row := self._row(key, report)) is not None]
        room = _MOST_REPLAYED - len(self._replayed)
        self._replayed += rows[:room]
        metrics.REPLAYS_UNREPORTED.labels("full").inc(max(0, len(rows) - room))
        self._publish_gathered_soon()

    def _publish_soon(
        self,
        places: Iterable[_Placed],
        outcomes: Iterable[Outcome],
        reports: Iterable[_KeyedReport],
    ) -> None:
        """Gather reports for the next write; count and `_settle` once the write is acknowledged."""
        self._gather(places, outcomes, [self._row(key, report) for key, report in reports])

    def _settle_when_certain(self, places: Sequence[_Placed], outcomes: Sequence[Outcome]) -> None:
        """Count and `_settle` at once, without reports; in doubt once the membership is certain."""
        if self._membership.certain:
            _count(outcomes)
            self._settle(places)
        elif places:
            self._gather(places, outcomes, repeat(None))

    def _gather(
        self,
        places: Iterable[_Placed],
        outcomes: Iterable[Outcome],
        rows: Iterable[Row | None],
    ) -> None:
        self._gathered += map(_Gathered, places, outcomes, rows)
        self._publish_gathered_soon()

    def _publish_gathered_soon(self) -> None:
        if self._publishing is None or self._publishing.done():
            self._publishing = self._spawn(self._publish_gathered())

    def _row(self, key: bytes | None, report: Report) -> Row | None:
        """Return the record to write; None where the message is not in the sample."""
        if self._sample_below < _CHECKSUMS and crc32(report.id.encode()) >= self._sample_below:
            return None
        return Row(key, _encode(report))

    def _report(self, message: Message, result: Outcome, now_ms: int) -> _KeyedReport:
        partition = message.progress.partition
        nodes = [node.name for node in message.taken_at]
        published_ms = message.envelope.published_ms
        report = Report(
            message.push.id,
            result.name,
            result.reason or None,
            nodes[0] if nodes else None,
            nodes,
            self._processor,
            message.push.device,
            message.took,
            message.missed,
            published_ms,
            now_ms,
            _took_ms(published_ms, now_ms),
            partition.topic,
            partition.partition,
            message.offset,
        )
        return message.push.user.encode(), report

    def _replay(self, message: Replayed, now_ms: int) -> Report:
        """Return the report of a replayed message that one connection has taken."""
        return Report(
            message.id,
            Kind.DELIVERED.value,
            None,
            message.node,
            [message.node],
            self._processor,
            message.device,
            1,
            0,
            None,
            now_ms,
            None,
            message.topic,
            message.partition,
            message.offset,
            replayed=True,
        )

    def _rejection(self, rejection: Rejection, now_ms: int) -> Report:
        """Return the report of a rejected record.

        The id is made of the record's coordinates: the record's own id is not to be trusted.
        """
        record = rejection.record
        return Report(
            f"{record.topic}-{record.partition}-{record.offset}",
            Kind.REJECTED.value,
            rejection.error.reason,
            None,
            [],
            self._processor,
            None,
            0,
            0,
            rejection.published_ms,
            now_ms,
            _took_ms(rejection.published_ms, now_ms),
            record.topic,
            record.partition,
            record.offset,
        )

    def _settle(self, places: Sequence[_Placed]) -> None:
        """Take messages off their partitions' progress; harmless for a partition lost meanwhile."""
        for place in places:
            place.progress.settle(place.offset, size=place.size)
        partitions = dict.fromkeys(place.progress for place in places)  # once each
        self._advanced(partitions)

    async def _publish_gathered(self) -> None:
        await asyncio.sleep(_GATHER_SECONDS)
        while self._gathered or self._replayed:
            await self._membership.certainty()
            gathered, self._gathered = self._gathered, []
            replayed, self._replayed = self._replayed, []
            # The outcome of a message whose partition is lost is for the next owner to tell.
            held = [each for each in gathered if not each.place.progress.lost]
            if self.accessory is not None:
                rows = [each.row for each in held if each.row is not None]
                await self.accessory.write(rows + replayed)
            _count(each.outcome for each in held)
            self._settle([each.place for each in held])


def _count(outcomes: Iterable[Outcome]) -> None:
    """Count outcomes, equal outcomes in one step: every increment of a metric takes a lock."""
    for result, number in Counter(outcomes).items():
        metrics.OUTCOMES.labels(result.name, result.reason).inc(number)


def _key(record: Record) -> bytes | None:
    """Return a rejected record's key; None where the key is too long for a user's."""
    return record.key if record.key is not None and len(record.key) <= MAX_USER_BYTES else None


def _took_ms(published_ms: int, settled_ms: int) -> int:
    return max(0, settled_ms - published_ms)
