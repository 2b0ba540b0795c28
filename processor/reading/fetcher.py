"""aiokafka's fetcher, with a shorter way from a broker's answer to the records.

A plain fetch goes by a connection of its own (fetch_pipe.py). Other fetches take aiokafka's way,
which knows what to do: the first fetches from a broker, and the fetch after a broker's error. The
subscription, the search for offsets, the records in hand and the consumer's calls are aiokafka's.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection, Coroutine, Sequence
from functools import partial
from typing import Any, Final

import structlog
from aiokafka import TopicPartition
from aiokafka.conn import CloseReason
from aiokafka.consumer.fetcher import Fetcher, FetchResult, PartitionRecords
from aiokafka.errors import KafkaError
from aiokafka.record.memory_records import MemoryRecords

from processor.reading.fetch_pipe import API_KEY, VERSION, Bounds, Fetched, FetchPipe
from processor.reading.gathering import Gathering

#: How long a connection for fetches may take to open. aiokafka's client opens one at a time, also
#: those to the group's coordinator.
_OPEN_SECONDS: Final = 5.0
#: The pause before a connection is opened again, and the longest. The pause doubles while none can
#: be opened.
_FIRST_PAUSE_SECONDS: Final = 1.0
_LONGEST_PAUSE_SECONDS: Final = 60.0
#: aiokafka's client keeps connections by broker and group: these are beside its own groups.
_GROUP: Final = "fetches"

log = structlog.get_logger("processor.fetcher")

_Fetcher: Any = Fetcher  # whose methods have no types


class DirectFetcher(_Fetcher):  # type: ignore[misc]
    """Fetches records for one consumer; takes the arguments of aiokafka's fetcher."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._pipes: dict[int, FetchPipe] = {}  # by broker
        self._assignments: dict[int, Any] = {}  # by broker: for which a pipe's fetch is under way
        self._opening: dict[int, asyncio.Task[None]] = {}  # by broker
        self._pauses: dict[int, float] = {}  # by broker: the last pause, and until when it lasts
        self._paused_until: dict[int, float] = {}
        #: Brokers from which the next fetch takes aiokafka's way.
        self._troubled: set[int] = set()
        self._gathering = Gathering(time.monotonic())
        self._pending_tasks: set[asyncio.Task[Any]] = set()
        super().__init__(*args, **kwargs)  # starts the routine below
        self._give_up_seconds = (self._client._request_timeout_ms + self._fetch_max_wait_ms) / 1000

    async def close(self) -> None:
        """Stop fetching. The connections are the client's to close."""
        tasks: set[asyncio.Task[Any]] = {*self._opening.values(), *self._pending_tasks}
        self._pending_tasks = set()  # aiokafka's close() awaits a task while others end
        await super().close()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def fetched_records(
        self, partitions: Collection[Any], timeout: float = 0, max_records: int | None = None
    ) -> dict[Any, list[Any]]:
        """Return records that were fetched, as aiokafka does."""
        records: dict[Any, list[Any]] = await super().fetched_records(
            partitions, timeout, max_records
        )
        self._gathering.took(sum(map(len, records.values())))
        return records

    async def _fetch_requests_routine(self) -> None:
        """Fetch, for as long as the consumer runs; called once, by aiokafka's constructor."""
        try:
            while True:
                await self._end_pending()
                assignment = await self._assigned()
                while assignment.active:
                    self._wait_consume_future = self._loop.create_future()
                    seconds = self._act(assignment)
                    timer = self._loop.call_later(seconds, self._wake)
                    await self._wait_consume_future
                    timer.cancel()
        except asyncio.CancelledError:
            pass
        except Exception as error:
            log.exception("the fetcher failed")
            raise KafkaError("the fetcher failed") from error

    async def _end_pending(self) -> None:
        """End what is under way for partitions that are no longer assigned."""
        for task in self._pending_tasks:
            task.cancel()
        if self._pending_tasks:
            await asyncio.wait(self._pending_tasks)
        self._pending_tasks.clear()
        # A pipe with a fetch under way is free at its answer: see `_fetch`.
        self._in_flight.clear()
        self._records.clear()

    async def _assigned(self) -> Any:
        """Return the next assignment."""
        while True:
            subscription = self._subscriptions.subscription
            assignment = subscription.assignment if subscription is not None else None
            if assignment is not None and assignment.active:
                assignment.unassign_future.add_done_callback(self._wake)
                return assignment
            try:
                await self._subscriptions.wait_for_assignment()
            except KafkaError:
                continue  # the consumer's calls raise it

    def _act(self, assignment: Any) -> float:
        """Begin what is to be done now; return after how many seconds to look again."""
        fetches, resets, seconds, stale, _ = self._get_actions_per_node(assignment)
        now = time.monotonic()
        for node_id, request in fetches:
            self._fetch(assignment, node_id, request, now)
        for node_id, partitions in resets.items():
            self._begin(node_id, self._update_fetch_positions(assignment, node_id, partitions))
        if stale:
            self._client.force_metadata_update().add_done_callback(self._wake)
        for pipe in self._pipes.values():
            if pipe.under_way and now - pipe.asked_at > self._give_up_seconds:
                pipe.abort()
        return float(seconds)

    def _fetch(self, assignment: Any, node_id: int, request: Any, now: float) -> None:
        """Fetch by the broker's pipe, or aiokafka's way where the pipe is not to be used."""
        least_bytes, wait_ms = self._gathering.bounds(now, brokers=max(1, len(self._pipes)))
        if wait_ms:
            request._min_bytes, request._max_wait_ms = least_bytes, wait_ms
        pipe = self._pipes.get(node_id)
        if pipe is None:
            self._open_pipe(node_id, now)
        if pipe is None or pipe.under_way or node_id in self._troubled:
            self._troubled.discard(node_id)
            self._begin(node_id, self._proc_fetch_request(assignment, node_id, request))
            return
        self._in_flight.add(node_id)
        self._assignments[node_id] = assignment
        bounds = Bounds(
            request._max_wait_ms, request._min_bytes, request._max_bytes, request._isolation_level
        )
        answered = partial(self._answered, node_id, request.topics)
        pipe.ask(bounds, request.topics, answered, now=now)

    def _begin(self, node_id: int, work: Coroutine[Any, Any, bool]) -> None:
        """Begin a task of aiokafka's; it returns whether there is something for the consumer."""
        task = self._loop.create_task(work)
        self._pending_tasks.add(task)
        self._in_flight.add(node_id)
        task.add_done_callback(partial(self._done, node_id))

    def _done(self, node_id: int, task: asyncio.Task[bool]) -> None:
        self._in_flight.discard(node_id)
        self._pending_tasks.discard(task)
        self._wake()
        if not task.cancelled() and task.result():
            self._tell()

    def _open_pipe(self, node_id: int, now: float) -> None:
        """Begin to open a connection to a broker, unless one is being opened or a pause lasts."""
        if node_id in self._opening or now < self._paused_until.get(node_id, 0.0):
            return
        pause = min(2 * self._pauses.get(node_id, 0.0), _LONGEST_PAUSE_SECONDS)
        self._pauses[node_id] = pause or _FIRST_PAUSE_SECONDS
        self._paused_until[node_id] = now + self._pauses[node_id]
        task = self._opening[node_id] = self._loop.create_task(self._open(node_id))
        task.add_done_callback(lambda _: self._opening.pop(node_id))

    async def _open(self, node_id: int) -> None:
        """Open a connection, which aiokafka takes through TLS and SASL, and take it over.

        A broker that is too old, or can't be reached, has no pipe: aiokafka says why.
        """
        connection: Any = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_OPEN_SECONDS):
                connection = await self._client._get_conn(node_id, group=_GROUP)
        if connection is None or not connection.connected():
            return
        oldest, newest = connection._versions.get(API_KEY, (0, 0))
        if not oldest <= VERSION <= newest:
            return
        connection._read_task.cancel()
        connection._idle_handle.cancel()
        transport, stream = connection._writer.transport, connection._protocol
        ended = partial(self._ended, node_id, connection, stream)
        pipe = FetchPipe(transport, client_id=self._client._client_id, ended=ended)
        transport.set_protocol(pipe)
        self._pipes[node_id] = pipe
        del self._pauses[node_id]

    def _ended(
        self, node_id: int, connection: Any, stream: asyncio.Protocol, error: Exception | None
    ) -> None:
        """Note that a pipe has ended; the next fetch takes aiokafka's way."""
        stream.connection_lost(error)
        connection.close(reason=CloseReason.CONNECTION_BROKEN)
        del self._pipes[node_id]
        self._over(node_id)
        self._wake()

    def _over(self, node_id: int) -> Any:
        """Note that a pipe has no fetch under way; return the fetch's assignment, if active.

        Where that assignment has ended, a fetch of the next may be under way, aiokafka's way.
        """
        assignment = self._assignments.pop(node_id, None)
        if assignment is None or not assignment.active:
            return None
        self._in_flight.discard(node_id)
        return assignment

    def _answered(
        self,
        node_id: int,
        asked: Sequence[tuple[str, Sequence[tuple[int, int, int]]]],
        error_code: int,
        fetched: Sequence[Fetched],
    ) -> None:
        """Take a broker's answer to a fetch."""
        assignment = self._over(node_id)
        if assignment is None:
            return
        offsets = {(topic, n): offset for topic, rows in asked for n, offset, _ in rows}
        if error_code:
            self._troubled.add(node_id)
        self._gathering.fetched(sum(len(each.records) for each in fetched))
        news = False
        for each in fetched:
            if each.error_code:
                self._troubled.add(node_id)
            elif self._keep(assignment, each, offsets[each.topic, each.partition]):
                news = True
            elif each.records:
                self._troubled.add(node_id)
        if news:
            self._tell()  # the consumer's next call takes the records, and wakes the routine
        else:
            self._wake()

    def _keep(self, assignment: Any, fetched: Fetched, offset: int) -> bool:
        """Keep a partition's records for the consumer; False where there is none to keep."""
        partition = TopicPartition(fetched.topic, fetched.partition)
        state = assignment.state_value(partition)
        if not state.has_valid_position or state.position != offset:
            return False  # the consumer has gone elsewhere meanwhile
        state.highwater, state.lso = fetched.end, fetched.last_stable
        state.timestamp = int(1000 * time.time())
        records = MemoryRecords(fetched.records)
        if not records.has_next():
            return False
        self._records[partition] = FetchResult(
            partition,
            partition_records=PartitionRecords(
                partition,
                records,
                fetched.aborted,
                offset,
                None,
                None,
                self._check_crcs,
                self._isolation_level,
            ),
            assignment=assignment,
            backoff=self._prefetch_backoff,
        )
        return True

    def _tell(self) -> None:
        """Wake the consumer's calls that wait for records."""
        for waiter in self._fetch_waiters:
            self._notify(waiter)

    def _wake(self, *_: object) -> None:
        """Let the routine look for what is to be done."""
        self._notify(self._wait_consume_future)
