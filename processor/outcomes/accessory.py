"""An accessory: a topic beside the flow of messages, for rejected records or for outcomes.

Messages are never stopped by a topic that can't be written to. A write is waited for, for two
seconds at most. After that, or after an error, the accessory is in trouble: its rows are kept and
tried again, no write is waited for, and messages flow on. Rows kept in trouble are bounded; rows
beyond the bound are lost, and counted. When the topic can be written to again, which is found out
within five seconds, the kept rows are written first, and the trouble is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from processor import metrics
from processor.errors import ProcessorError
from processor.outcomes.kept import KeptRows
from processor.outcomes.writer import Refused, Row, TopicWriter
from processor.reading.kafka import KafkaError, create_topic, partitions_of
from processor.settings import ProcessorSettings
from processor.tasks import Spawn

#: How long a write is waited for: longer than Kafka takes to find a new leader for a partition.
_PATIENCE_SECONDS: Final = 2.0
#: Rows, and their bytes, that are kept in trouble.
_MOST_ROWS: Final = 65_536
_MOST_BYTES: Final = 16 * 1024 * 1024
#: Pauses between attempts in trouble; the last pause bounds how late a mended topic is noticed.
_RETRY_SECONDS: Final = (0.2, 0.5, 1.0, 2.0, 5.0)
#: How long looking for the topic (or creating it) and connecting may take.
_CONNECT_SECONDS: Final = 10.0
#: Time between two log lines of the same trouble.
_LOG_SECONDS: Final = 60.0
#: How long the last rows are waited for.
_STOP_SECONDS: Final = 1.0

log = structlog.get_logger("processor.accessory")


class MissingTopic(ProcessorError):
    """The topic does not exist; the text says what to do."""


class Accessory:
    """Writes rows to one topic, in their order."""

    def __init__(
        self,
        settings: ProcessorSettings,
        topic: str,
        *,
        name: str,
        spawn: Spawn,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`name` is the accessory's in metrics and warnings; `clock` gives seconds."""
        self.name = name
        self._settings = settings
        self._topic = topic
        self._spawn = spawn
        self._clock = clock
        self._kept = KeptRows()
        #: Why the topic can't be written to, and what to do; empty where all is well.
        self._trouble = ""
        self._logged = ""  # the trouble of the last log line
        self._logged_at = 0.0
        self._lost = 0  # rows lost in this trouble
        self._writer: TopicWriter | None = None
        self._idempotent = True
        self._running: asyncio.Task[None] | None = None

    @property
    def warning(self) -> str:
        """The trouble in words for an operator; empty where all is well."""
        if not self._trouble:
            return ""
        return (
            f"{self.name} topic {self._topic}: {self._trouble}; "
            f"messages flow on; {self._kept.rows} records wait, {self._lost} are lost"
        )

    def start(self) -> None:
        """Look for the topic, connect, and write what comes, in the background."""
        self._running = self._spawn(self._run())

    async def stop(self) -> None:
        """Write the kept rows, for a second at most, and disconnect. Rows left then are lost."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_SECONDS):
                await self._kept.emptied()
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait((self._running,))
        await self._disconnect()
        if self._kept.rows:
            log.error("records are lost", topic=self._topic, lost=self._kept.rows)
            self._lose(self._kept.rows)

    async def write(self, rows: Sequence[Row]) -> None:
        """Return when Kafka has acknowledged `rows`; after two seconds at most, in trouble at once.

        A cancelled call withdraws its rows, unless they are in flight.
        """
        if not rows:
            return
        write = self._kept.append(rows)
        if self._trouble:
            write.over.set()  # nobody waits
            metrics.ACCESSORY_ERRORS[self.name].inc()
            self._lose(self._kept.cut(_MOST_ROWS, _MOST_BYTES))
            self._log_trouble()
            return
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await write.over.wait()
        except TimeoutError:
            self._be_in_trouble(f"no answer in {_PATIENCE_SECONDS:g} s")
        except asyncio.CancelledError:
            self._kept.withdraw(write)
            raise

    async def _run(self) -> None:
        """Write the kept rows, one write in flight at a time; after an error connect anew."""
        failures = 0
        while True:
            try:
                await self._connect()
                while True:
                    if not self._kept.rows:
                        self._be_well()
                    await self._write_first()
                    failures = 0
            except Refused as refused:
                self._be_in_trouble(f"refused: {refused}")
            except (KafkaError, MissingTopic, TimeoutError) as error:
                self._be_in_trouble(str(error) or type(error).__name__)
            except Exception as error:  # of aiokafka: an accessory never ends the processor
                log.exception("unforeseen error of an accessory", topic=self._topic)
                self._be_in_trouble(f"unforeseen: {error!r}")
            await self._disconnect()
            await asyncio.sleep(_RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)])
            failures += 1

    async def _write_first(self) -> None:
        write = await self._kept.first()
        assert self._writer is not None  # noqa: S101 - `_connect` made one
        try:
            self._lose(await self._writer.write(write.rows))
        except Refused as refused:
            self._kept.put_back(refused.rows)
            raise
        except KafkaError:
            self._kept.put_back(write.rows)
            raise
        self._kept.done()

    async def _connect(self) -> None:
        """Make sure that the topic exists, and that there is a writer.

        Raises:
            KafkaError: no broker answers, or a request failed.
            TimeoutError: no answer in time.
            MissingTopic: there is no such topic, and none was created.
        """
        async with asyncio.timeout(_CONNECT_SECONDS):
            await self._find_topic()
            self._writer = TopicWriter(self._settings, self._topic, idempotent=self._idempotent)
            try:
                await self._writer.connect()
            except KafkaError as error:
                if not error.retriable:
                    # Kafka before 3.0 wants the right IdempotentWrite on the cluster for this.
                    self._idempotent = False
                raise

    async def _find_topic(self) -> None:
        if await partitions_of(self._settings, [self._topic]):
            return
        if not self._settings.create_topics:
            raise MissingTopic("does not exist: create it, or set PUSHGATE_CREATE_TOPICS=true")
        try:
            await create_topic(self._settings, self._topic, like=self._settings.topics[0])
        except KafkaError as error:
            raise MissingTopic(f"does not exist, and creating it failed: {error}") from error

    async def _disconnect(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            await writer.close()

    def _be_in_trouble(self, reason: str) -> None:
        """Note the trouble: no write is waited for while it lasts."""
        if self._kept.rows:
            metrics.ACCESSORY_ERRORS[self.name].inc()
        self._trouble = reason
        self._kept.let_go()
        self._lose(self._kept.cut(_MOST_ROWS, _MOST_BYTES))
        self._log_trouble()

    def _log_trouble(self) -> None:
        """Log another trouble at once, the same once a minute."""
        now = self._clock()
        if self._trouble != self._logged or now - self._logged_at >= _LOG_SECONDS:
            self._logged, self._logged_at = self._trouble, now
            log.error("can't write to a topic", trouble=self.warning)

    def _be_well(self) -> None:
        if self._trouble:
            log.info("a topic is written again", topic=self._topic, lost=self._lost)
            self._trouble = ""
            self._lost = 0

    def _lose(self, rows: int) -> None:
        if rows:
            self._lost += rows
            metrics.ACCESSORY_LOST.labels(self.name).inc(rows)
