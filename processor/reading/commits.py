"""Commits of settled offsets, in the background: one commit in flight, the latest offsets next.

A commit takes milliseconds of waiting, and a lone message would pay them in full if the next read
waited for the commit. A commit costs some 0.5 ms of CPU here, and about as much at the broker, so
there is a pause between two commits. Messages that are not committed when a processor dies come
again to another member of the group: a late commit is safe, and an early commit never happens. A
commit that fails, or gets no answer in time, is tried again with back-off, whether or not more
messages are settled.

A commit that succeeds also proves that this member owned its partitions when the commit began:
Kafka refuses a member whose partitions are another's. So does a heartbeat, which costs the broker
no write, and this process a third. But a coordinator that is cut off from its cluster goes on
accepting heartbeats, and no commits. Its successor gives the partitions of silent members away
after their session time-out, and not before: where a commit has succeeded lately, a heartbeat
proves as much.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Final

import structlog

from processor import metrics
from processor.reading.kafka import (
    MAX_NOTE_BYTES,
    SESSION_TIMEOUT_MS,
    AIOKafkaConsumer,
    KafkaError,
    TopicPartition,
)
from processor.reading.progress import Progress

#: How long a commit may take. aiokafka's own time-out is 40 s, and after it aiokafka tries on for
#: ever with the same offsets.
_ATTEMPT_SECONDS: Final = 5.0
#: The same for the last commit of a member that stops.
_LAST_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = (0.1, 0.5, 1.0, 2.0, 5.0)
#: The pause behind a commit. What is settled meanwhile comes again if this process is killed.
_PAUSE_SECONDS: Final = 0.02
#: The same behind a heartbeat.
_BEAT_PAUSE_SECONDS: Final = 0.01
#: For so long after the start of a commit that has succeeded heartbeats are proofs.
_RECENTLY_SECONDS: Final = SESSION_TIMEOUT_MS / 1_000 / 2

#: The longest word that is added to the note of a partition's commit.
MAX_WORD_BYTES: Final = 1_000

log = structlog.get_logger("processor.commits")


class Commits:
    """Commits the offsets up to which every message has its outcome."""

    def __init__(
        self,
        client: AIOKafkaConsumer | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` gives seconds."""
        self._clock = clock
        self._client = client
        self._note = ""
        self._finished: dict[TopicPartition, int] = {}  # to be committed
        self._committing: asyncio.Task[None] | None = None
        self._failures = 0  # in a row
        self._retry: asyncio.TimerHandle | None = None  # set while a failed commit waits
        #: Waiters for the next commit that begins; see `prove`.
        self._proofs: list[asyncio.Future[bool]] = []
        self._places: Callable[[], Mapping[TopicPartition, int]] = dict
        self._word: Callable[[TopicPartition], str] = lambda _: ""
        self._is_accepted: Callable[[], Awaitable[bool]] | None = None
        self._committed_at: float | None = None  # the start of the last commit that succeeded
        self._advanced = asyncio.Event()
        self._go_on = asyncio.Event()  # ends a pause
        self._is_flushing = False
        self._has_lone = False  # whether a lone proof is among those that wait

    def use(
        self,
        client: AIOKafkaConsumer,
        *,
        note: str = "",
        places: Callable[[], Mapping[TopicPartition, int]] = dict,
        word: Callable[[TopicPartition], str] = lambda _: "",
        is_accepted: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        """Commit through `client` from now on: joining the group anew takes a new client.

        `note` is the metadata of every commit, and `word` returns what is added for a partition, 1
        KB at most. Words in it are separated by a space. `places` returns what can be committed
        now, of all partitions of this member. `is_accepted` sends a heartbeat to the group, and
        returns whether the group accepts this member: None where commits alone are proofs.
        """
        self._word = word
        self._client = client
        self._note = note
        self._places = places
        self._is_accepted = is_accepted
        self._committed_at = None

    @property
    def room_bytes(self) -> int:
        """The longest word that `leave` can add to the note, in bytes."""
        return MAX_NOTE_BYTES - len(self._note.encode()) - MAX_WORD_BYTES - 2

    def advanced(self, progresses: Iterable[Progress]) -> None:
        """Note that more of some partitions is committable; commit the new offsets soon."""
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
        if self._retry is None:
            self._begin(self._client)

    async def prove(self, *, lone: bool = False) -> bool:
        """Return whether this process owned its partitions when `prove` was called.

        That is what a commit or a heartbeat proves that began later and succeeded (see the head of
        this file). All callers that wait share one. A `lone` proof, for a single client, waits for
        no pause behind a commit: where clients are few, commits cost little.
        """
        if self._client is None or self._retry is not None:
            return False
        proof: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._proofs.append(proof)
        if lone:
            self._has_lone = True
            self._go_on.set()
        self._begin(self._client)
        return await proof

    async def settled(self, progresses: Collection[Progress]) -> None:
        """Return when every message in hand is settled, except in partitions that are lost."""
        while any(len(progress) for progress in progresses if not progress.lost):
            self._advanced.clear()
            await self._advanced.wait()

    async def flush(self) -> None:
        """Return when every finished offset is committed, or two commits have failed."""
        self._is_flushing = True
        self._go_on.set()
        try:
            for _ in range(2):  # a failed commit is tried once more: this may be the last chance
                self._try_again()
                if self._committing is not None:
                    await asyncio.wait((self._committing,))
                if not self._finished:
                    return
        finally:
            self._is_flushing = False

    async def leave(self, claims: Mapping[TopicPartition, tuple[int, str]]) -> None:
        """Commit offsets for the last time, each with a word for the partition's next owner.

        Not tried again: without the word, the next owner repeats what was settled beyond.
        """
        if self._client is None:
            return
        assigned = self._client.assignment()
        offsets = {
            partition: (offset, f"{self._noted(partition)} {word}".strip())
            for partition, (offset, word) in claims.items()
            if partition in assigned
        }
        try:
            async with asyncio.timeout(_LAST_SECONDS):
                if offsets:
                    await self._client.commit(offsets)
        except (KafkaError, TimeoutError) as error:
            metrics.COMMIT_ERRORS.inc()
            reason = str(error) or type(error).__name__
            log.warning("last commit failed; messages may be repeated", error=reason)

    def forget(self) -> None:
        """Drop finished offsets: their partitions are lost, and may be back with other offsets."""
        self._finished = {}
        if self._committing is not None:
            self._committing.cancel()
            self._committing = None
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        for proof in self._proofs:
            if not proof.done():  # its caller may have been cancelled
                proof.set_result(False)
        self._proofs = []
        self._committed_at = None
        self._failures = 0
        self._advanced.set()

    def _begin(self, client: AIOKafkaConsumer) -> None:
        if self._committing is None or self._committing.done():
            self._committing = asyncio.create_task(self._commit(client))

    def _try_again(self) -> None:
        """Commit the finished offsets now; end a wait of a failed commit."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._finished and self._client is not None:
            self._begin(self._client)

    async def _commit(self, client: AIOKafkaConsumer) -> None:
        while self._finished or self._proofs:
            finished, self._finished = self._finished, {}
            proofs, self._proofs = self._proofs, []
            self._has_lone = False
            beats = not finished and self._has_committed_lately
            if proofs and not beats:
                finished = {**self._places(), **finished}
            proved = False
            try:
                if beats:
                    proved = await self._beat()
                else:
                    assigned = client.assignment()
                    offsets = {each: finished[each] for each in finished if each in assigned}
                    if not offsets:
                        continue
                    proved = await self._attempt(client, offsets)
            finally:
                for proof in proofs:
                    if not proof.done():
                        proof.set_result(proved)
            if not (proved or beats):
                return
            await self._pause(_BEAT_PAUSE_SECONDS if beats else _PAUSE_SECONDS)

    @property
    def _has_committed_lately(self) -> bool:
        """Whether heartbeats are proofs now."""
        at = self._committed_at
        is_lately = at is not None and self._clock() - at < _RECENTLY_SECONDS
        return self._is_accepted is not None and is_lately

    async def _beat(self) -> bool:
        """Return whether the group accepts this member now; after a refusal a commit decides."""
        is_accepted = self._is_accepted
        assert is_accepted is not None  # noqa: S101 - `_has_committed_lately` says so
        accepted = False
        with contextlib.suppress(KafkaError, TimeoutError):
            async with asyncio.timeout(_ATTEMPT_SECONDS):
                accepted = await is_accepted()
        if not accepted:
            self._committed_at = None
        return accepted

    async def _pause(self, seconds: float) -> None:
        """Wait behind a commit or a heartbeat: what comes meanwhile goes with one more."""
        if self._is_flushing or self._has_lone:
            return
        self._go_on.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._go_on.wait()

    async def _attempt(
        self, client: AIOKafkaConsumer, offsets: Mapping[TopicPartition, int]
    ) -> bool:
        """Commit; after a failure keep the offsets for the next attempt, and return False."""
        began = self._clock()
        try:
            async with asyncio.timeout(_ATTEMPT_SECONDS):
                await client.commit(
                    {each: (offset, self._noted(each)) for each, offset in offsets.items()}
                )
        except (KafkaError, TimeoutError) as error:
            self._finished = {**offsets, **self._finished}
            self._failed(error)
            return False
        self._failures = 0
        self._committed_at = began
        return True

    def _noted(self, partition: TopicPartition) -> str:
        """Return the metadata of a partition's commit."""
        word = self._word(partition)
        return f"{self._note} {word}".strip() if word else self._note

    def _failed(self, error: Exception) -> None:
        """Count and log a failed commit; try again later."""
        metrics.COMMIT_ERRORS.inc()
        if not self._failures:
            log.warning("commit failed; trying on", error=str(error) or type(error).__name__)
        delay = _RETRY_SECONDS[min(self._failures, len(_RETRY_SECONDS) - 1)]
        self._failures += 1
        self._retry = asyncio.get_running_loop().call_later(delay, self._try_again)
