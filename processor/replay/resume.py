"""A processor's part in resuming: windows, answers, links and the lease, once a second."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final, Protocol

import structlog

from processor.reading.kafka import TopicPartition
from processor.reading.message import Message
from processor.reading.progress import Progress
from processor.replay.answers import Answers, Owner
from processor.replay.links import ResumeLinks
from processor.replay.read_back import Reader
from processor.replay.receipts import Receipts, ReportReplayed
from processor.replay.windows import Windows
from processor.sending.reach import Reach
from processor.tasks import Spawn
from registry.clock import RegistryClock
from registry.directory import Node, Registry, RegistryUnavailable

#: Windows are longer than the setting by so much: a question reaches behind the time of the cursor
#: (SLACK_MS), and the time is some seconds old while the client is connected.
_LONGER_SECONDS: Final = 15.0

log = structlog.get_logger("processor.resume")


class Member(Owner, Protocol):
    """The member of the group, as seen from here."""

    @property
    def partitions(self) -> Iterable[Progress]:
        """The assigned partitions."""


class Resume:
    """A processor's windows, answers, links and lease."""

    def __init__(
        self,
        registry: Registry,
        reach: Reach,
        forget: Callable[[str], None],
        reader: Reader,
        *,
        seconds: float,
        most_bytes: int,
        spawn: Spawn,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keep `seconds` of messages, `most_bytes` at most; `forget` forgets a user's nodes."""
        self.name = secrets.token_hex(8)
        self._registry = registry
        self._reach = reach
        self._forget = forget
        self._reader = reader
        self._seconds = seconds
        self._spawn = spawn
        self._clock = clock
        self._windows = Windows(
            seconds=seconds + _LONGER_SECONDS, most_bytes=most_bytes, clock=clock
        )
        self._registry_clock = RegistryClock()
        self._failing = False

    def attend(self, member: Member, report: ReportReplayed | None) -> None:
        """Work for `member`, the owner of the partitions.

        `report` reports replayed messages: None where no outcomes are reported.
        """
        self._member = member
        self._answers = Answers(
            self.name,
            member,
            self._windows,
            self._forget_all,
            self._reader,
            keep_seconds=self._seconds,
        )
        self._links = ResumeLinks(
            self.name,
            self._reach,
            self._answers.answer,
            None if report is None else Receipts(report, clock=self._clock),
            resume_seconds=self._seconds,
            spawn=self._spawn,
        )

    def begin(self, commits: Mapping[TopicPartition, tuple[int, str]]) -> None:
        """Begin with assigned partitions: the offset that is taken in next, and a commit's note."""
        self._windows.begin({partition: offset for partition, (offset, _) in commits.items()})
        self._answers.begin(commits)

    def note(self, partition: TopicPartition) -> str:
        """Return the note of a partition's commits for the next owner."""
        return self._answers.note(partition)

    def take(self, partition: TopicPartition, messages: Sequence[Message]) -> None:
        """Keep messages of a partition, in order."""
        self._windows.take(partition, messages)

    def settled(self, messages: Sequence[Message]) -> None:
        """Note settled messages."""
        marked = [m for m in messages if m.missed_at or m.envelope.ttl_seconds == 0]
        if marked:
            self._windows.settled(marked)
            self._links.settled(marked)

    async def observe(self, live_nodes: Collection[Node]) -> None:
        """Renew the lease, make marks, send stamps, drop old messages. Called every second."""
        await self.keep_lease()
        now_ms = self._registry_clock.now_ms(self._clock())
        if now_ms is not None:
            self._answers.mark(
                now_ms,
                {
                    progress.partition: progress.committable
                    for progress in self._member.partitions
                    if progress.committable is not None
                },
            )
        self._links.observe(live_nodes, now_ms, present=self._registry.present)
        self._windows.advance()
        if self._reader.is_idle:
            self._spawn(self._reader.close())

    async def keep_lease(self) -> None:
        """Renew the processor's lease; without a registry, go on by the last reading."""
        try:
            processors = await self._registry.keep_processor(self.name)
        except RegistryUnavailable as error:
            if not self._failing:
                log.warning("no lease: clients can't resume for now", error=str(error))
            self._failing = True
        else:
            self._failing = False
            self._registry_clock.set(processors.now_ms, at=self._clock())

    async def close(self) -> None:
        """Say goodbye to gateways and registry."""
        self._answers.close()
        await self._reader.close()
        await self._links.close(self._registry_clock.now_ms(self._clock()))
        try:
            await self._registry.retire_processor(self.name)
        except RegistryUnavailable as error:
            log.warning("left without goodbye", error=str(error))

    def _forget_all(self, users: Iterable[str]) -> None:
        for user in users:
            self._forget(user)
