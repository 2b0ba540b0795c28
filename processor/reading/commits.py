"""Commits of settled offsets, behind the batches: one commit in flight, the latest offsets next.

A commit takes milliseconds of waiting, which a lone message would otherwise pay in full. Offsets
that are not committed when a processor dies come again to another member: a late commit is safe,
and an early one never happens.
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
    """The offsets up to which every message has its outcome."""

    def __init__(self, client: AIOKafkaConsumer | None = None) -> None:
        self._client = client
        self._finished: dict[TopicPartition, int] = {}
        self._committing: asyncio.Task[None] | None = None
        self._advanced = asyncio.Event()

    def use(self, client: AIOKafkaConsumer) -> None:
        """Commit through `client` from now on: a group that is joined anew has a new client."""
        self._client = client

    def advanced(self, progresses: Iterable[Progress]) -> None:
        """Take note that messages of these partitions were settled; commit how far they are."""
        self._advanced.set()
        self.finished(
            {
                progress.partition: progress.committable
                for progress in progresses
                if progress.committable is not None and not progress.lost
            }
        )

    def finished(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit these offsets soon: every message before them has its outcome."""
        if self._client is None:
            return
        self._finished |= offsets
        if self._committing is None or self._committing.done():
            self._committing = asyncio.create_task(self._commit(self._client))

    async def settled(self, progresses: Collection[Progress]) -> None:
        """Return when every message in hand of these partitions is settled, or they are lost."""
        while any(len(progress) for progress in progresses if not progress.lost):
            self._advanced.clear()
            await self._advanced.wait()

    async def flush(self) -> None:
        """Return when every finished offset is committed, or could not be."""
        for _ in range(2):  # a commit that failed is tried once more: it may be the last chance
            if self._committing is not None:
                await asyncio.shield(self._committing)
            if not self._finished:
                return
            self.finished({})

    def forget(self) -> None:
        """Drop finished offsets: their partitions are gone, and may be back with other offsets."""
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
                # Kept for the next commit; if there is none, the messages come again.
                self._finished = offsets | self._finished
                metrics.COMMIT_ERRORS.inc()
                log.warning("commit failed", error=str(error) or type(error).__name__)
                return
