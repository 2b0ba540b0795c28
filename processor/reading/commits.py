"""Commits of settled offsets, in the background: one commit in flight, the latest offsets next.

A commit takes milliseconds of waiting, and a lone message would pay them in full if the next read
waited for the commit. Messages that are not committed when a processor dies come again to another
member of the group: a late commit is safe, and an early commit never happens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping

import structlog

from processor import metrics
from processor.reading.kafka import AIOKafkaConsumer, KafkaError, TopicPartition
from processor.reading.progress import Progress

log = structlog.get_logger("processor.commits")


class Commits:
    """Commits the offsets up to which every message has its outcome."""

    def __init__(self, client: AIOKafkaConsumer | None = None) -> None:
        self._client = client
        self._finished: dict[TopicPartition, int] = {}  # to be committed
        self._committing: asyncio.Task[None] | None = None
        self._advanced = asyncio.Event()

    def use(self, client: AIOKafkaConsumer) -> None:
        """Commit through `client` from now on: joining the group anew takes a new client."""
        self._client = client

    def advanced(self, progresses: Iterable[Progress]) -> None:
        """Note that messages of partitions were settled; commit the new offsets soon."""
        self._advanced.set()
        self.finished(
            {
                progress.partition: progress.committable
                for progress in progresses
                if progress.committable is not None and not progress.lost
            }
        )

    def finished(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit `offsets` soon: every message before an offset has its outcome."""
        if self._client is None:
            return
        self._finished |= offsets
        if self._committing is None or self._committing.done():
            self._committing = asyncio.create_task(self._commit(self._client))

    async def settled(self, progresses: Collection[Progress]) -> None:
        """Return when every message in hand is settled, except in partitions that are lost."""
        while any(len(progress) for progress in progresses if not progress.lost):
            self._advanced.clear()
            await self._advanced.wait()

    async def flush(self) -> None:
        """Return when every finished offset is committed, or two commits have failed."""
        for _ in range(2):  # a failed commit is tried once more: this may be the last chance
            if self._committing is not None:
                await asyncio.shield(self._committing)
            if not self._finished:
                return
            self.finished({})

    def forget(self) -> None:
        """Drop finished offsets: their partitions are lost, and may be back with other offsets."""
        self._finished = {}
        if self._committing is not None:
            self._committing.cancel()
        self._advanced.set()

    async def _commit(self, client: AIOKafkaConsumer) -> None:
        while self._finished:
            finished, self._finished = self._finished, {}
            assigned = client.assignment()
            offsets = {
                partition: finished[partition] for partition in finished if partition in assigned
            }
            if not offsets:
                continue
            try:
                await client.commit(offsets)
            except KafkaError as error:
                # Kept for the next commit; if there is no next commit, the messages come again.
                self._finished = offsets | self._finished
                metrics.COMMIT_ERRORS.inc()
                log.warning("commit failed", error=str(error) or type(error).__name__)
                return
