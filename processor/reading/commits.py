"""Committing finished offsets behind the batches: one commit in flight, the latest offsets next.

A commit takes milliseconds of waiting, which a lone message would otherwise pay in full. What is
not committed when a processor dies comes again, so late is safe and early never happens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog

from processor import metrics
from processor.reading.kafka import AIOKafkaConsumer, KafkaError, TopicPartition

log = structlog.get_logger("processor.commits")


class Commits:
    """The offsets of one consumer up to which every message has its outcome."""

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer = consumer
        self._finished: dict[TopicPartition, int] = {}
        self._committing: asyncio.Task[None] | None = None

    def finished(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Note that everything before these offsets has its outcome; committed soon."""
        self._finished |= offsets
        if self._committing is None or self._committing.done():
            self._committing = asyncio.create_task(self._commit())

    async def flush(self) -> None:
        """Return when all that was noted is committed, or has failed to be."""
        for _ in range(2):  # a commit that failed is tried once more: it may be the last chance
            if self._committing is not None:
                await asyncio.shield(self._committing)
            if not self._finished:
                return
            self.finished({})

    def forget(self) -> None:
        """Drop what is noted: its partitions are gone, and may be back with other offsets."""
        self._finished = {}
        if self._committing is not None:
            self._committing.cancel()

    async def _commit(self) -> None:
        while self._finished:
            finished, self._finished = self._finished, {}
            ours = self._consumer.assignment()
            offsets = {
                partition: finished[partition] for partition in finished if partition in ours
            }
            if not offsets:
                continue
            try:
                await self._consumer.commit(offsets)
            except KafkaError as error:
                # Kept for the next commit; if there is none, the messages come again.
                self._finished = offsets | self._finished
                metrics.COMMIT_ERRORS.inc()
                log.warning("commit failed", error=str(error) or type(error).__name__)
                return
