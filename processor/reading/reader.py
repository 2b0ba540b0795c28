"""Polling Kafka: every topic's share of a batch, and the offsets to read on from after an error."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Final

import structlog

from processor.reading.kafka import (
    AIOKafkaConsumer,
    KafkaError,
    Record,
    TopicPartition,
    unreadable,
)
from processor.reading.lanes import shares
from processor.reading.progress import Progress

#: How long getmany() may wait for the first record. After every wait the consumer checks whether to
#: stop.
_WAIT_MS: Final = 500
#: The same wait while some partitions are full: after every wait their state is checked again.
_WAIT_FOR_ROOM_MS: Final = 20
#: Polled when every partition is full. aiokafka assumes that a consumer without polls is stuck, and
#: a getmany() without partitions would read all of them. tests/unit/test_privates.py holds both.
_NO_PARTITION: Final = TopicPartition("", 0)

log = structlog.get_logger("processor.consumer")

Batch = Mapping[TopicPartition, Sequence[Record]]


class Place(enum.Enum):
    """What is known of the offsets to read next."""

    KNOWN = "each partition is read on from where its last batch ended"
    LOST = "an error: each partition's offset is to be set again before anything is read"
    UNREADABLE = "as LOST, and some partition has a record that aiokafka can't decode"


class Reader:
    """Reads the partitions of one Kafka client."""

    def __init__(
        self,
        client: AIOKafkaConsumer,
        partitions: Mapping[TopicPartition, Progress],
        *,
        lanes: Mapping[str, int],
        weights: Sequence[int],
        batch_messages: int,
        stopping: Callable[[], bool],
        advanced: Callable[[Iterable[Progress]], None],
    ) -> None:
        """`partitions` are the assigned partitions, kept up to date by the consumer.

        `lanes` has the lane of every topic, `weights` the weight of every lane. A batch has at most
        `batch_messages` records. `stopping` ends a search for an unreadable record early.
        `advanced` is told of partitions with more to commit although no message was settled.
        """
        self._client = client
        self._partitions = partitions
        self._lanes = lanes
        self._weights = weights
        self._batch_messages = batch_messages
        self._stopping = stopping
        self._advanced = advanced
        self._place = Place.KNOWN

    async def read(self) -> AsyncIterator[Batch]:
        """Yield the next batch; after an unreadable record, batches before and after the record.

        Raises:
            KafkaError: nothing could be read; the next call sets every offset again.
        """
        try:
            place = self._place
            if place is not Place.KNOWN:
                await self._find_places()
                self._place = Place.KNOWN
            if place is Place.UNREADABLE:
                for partition in list(self._partitions):
                    async for batch in self._read_alone(partition):
                        yield batch
            else:
                yield await self._fetch()  # and the consumer takes the records in
                if self._place is Place.KNOWN:
                    await self._follow_positions()
        except KafkaError:
            if self._place is Place.KNOWN:
                self._place = Place.LOST
            raise
        except UnicodeDecodeError:
            self._place = Place.UNREADABLE

    async def _fetch(self) -> Batch:
        """Read the partitions that are not full; with several topics, the share of every topic."""
        ready = [partition for partition, progress in self._partitions.items() if not progress.full]
        if len(self._lanes) > 1 and (batch := await self._fetch_shares(ready)):
            return batch
        wait_ms = _WAIT_MS if len(ready) == len(self._partitions) else _WAIT_FOR_ROOM_MS
        if not ready and self._partitions:
            ready = [_NO_PARTITION]
        fetched: Batch = await self._client.getmany(
            *ready, timeout_ms=wait_ms, max_records=self._batch_messages
        )
        return fetched

    async def _fetch_shares(self, ready: Sequence[TopicPartition]) -> Batch:
        """Read records that have arrived already, by the topics' weights; without a wait.

        A topic with fewer records than its share leaves the rest of the share unused.
        """
        batch: dict[TopicPartition, Sequence[Record]] = {}
        most = self._batch_messages
        share_of = shares(most, [most] * len(self._weights), self._weights)
        for lane, share in enumerate(share_of):
            partitions = [p for p in ready if self._lanes[p.topic] == lane]
            try:
                if partitions:
                    batch |= await self._client.getmany(*partitions, max_records=share)
            except KafkaError:
                if not batch:
                    raise
                # The records read so far are taken in first. Other records may be lost to later
                # calls (see _find_places), so the offsets are set again.
                self._place = Place.LOST
                break
        return batch

    async def _follow_positions(self) -> None:
        """Let every partition's progress follow aiokafka's position, beyond the last record.

        A log has offsets without a message: markers of transactions, records of aborted
        transactions, records that compaction removed. These leave no lag, neither here nor in the
        offsets that the broker has.
        """
        moved: list[Progress] = []
        for partition, progress in list(self._partitions.items()):
            end = self._client.highwater(partition)
            if end is None or end == progress.next_offset:
                continue  # nothing was fetched yet, or all is read
            position = await self._position(partition)
            still_assigned = self._partitions.get(partition) is progress
            if position is not None and still_assigned and progress.follow(position):
                moved.append(progress)
        if moved:
            self._advanced(moved)

    async def _position(self, partition: TopicPartition) -> int | None:
        """Return aiokafka's position; None while aiokafka itself has to find the position again."""
        try:
            async with asyncio.timeout(0):
                position: int = await self._client.position(partition)
        except TimeoutError:
            return None
        return position

    async def _find_places(self) -> None:
        """Set every partition's offset: after the last record taken in, or the committed offset.

        When getmany() raises, the records that aiokafka (Fetcher.fetched_records) had taken from
        other partitions are lost to later calls.
        """
        for partition, progress in list(self._partitions.items()):
            offset = progress.next_offset
            if offset is None:
                offset = await self._client.committed(partition)
            if offset is None:
                await self._client.seek_to_beginning(partition)
            else:
                self._client.seek(partition, offset)

    async def _read_alone(self, partition: TopicPartition) -> AsyncIterator[Batch]:
        """Yield the next records of one partition, past a record that aiokafka can't decode.

        aiokafka raises UnicodeDecodeError for a header name that is not UTF-8, and can't decode the
        later records of the same producer batch either.
        """
        offset = await self._client.position(partition)
        try:
            batch: Batch = await self._client.getmany(
                partition, timeout_ms=_WAIT_MS, max_records=self._batch_messages
            )
        except UnicodeDecodeError:
            self._client.seek(partition, offset)
        else:
            yield batch
            return
        async for single in self._read_singly(partition, offset):
            yield single

    async def _read_singly(self, partition: TopicPartition, offset: int) -> AsyncIterator[Batch]:
        """Yield records singly, with a stand-in for every unreadable record.

        Ends at the first readable record after an unreadable record, or when no record comes.
        """
        found_unreadable = False
        progress = self._partitions.get(partition)
        while not self._stopping() and self._partitions.get(partition) is progress:
            try:
                batch: Batch = await self._client.getmany(
                    partition, timeout_ms=_WAIT_MS, max_records=1
                )
            except UnicodeDecodeError as error:
                found_unreadable = True
                log.error("unreadable record", at=f"{partition}-{offset}", error=str(error))
                yield {partition: [unreadable(partition, offset)]}
                if progress is None or (progress.next_offset or 0) <= offset:
                    return  # it was not taken in, and is put back: it is read again
                offset += 1
                self._client.seek(partition, offset)
                continue
            yield batch
            if found_unreadable or not batch:
                return
            offset = batch[partition][-1].offset + 1
