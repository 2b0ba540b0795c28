"""Reading the outcomes topic: what became of messages that have just been published."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec

from processor.reading.kafka import AIOKafkaConsumer, log_consumer, partitions_of
from processor.settings import RecordSettings
from pushgate.errors import PushgateError

_FETCH_BYTES: Final = 1024 * 1024
#: How long the outcomes topic is looked for.
_LOOK_SECONDS: Final = 10.0
#: How long a broker has to refuse a fetch.
_PROBE_MS: Final = 200
#: Reports of the user that are kept until they are asked for, at most; then the oldest is dropped.
_MOST_KEPT: Final = 65_536

#: A report as the topic has it (docs/protocol.md, "Outcomes").
Report = dict[str, Any]


class UnreadableOutcomes(PushgateError):
    """There is no outcomes topic to read; the text says what to do."""


class Watch:
    """The reports of one user's messages that are written from now on."""

    def __init__(self, consumer: AIOKafkaConsumer, user: bytes) -> None:
        self._consumer = consumer
        self._user = user
        self._reports: dict[str, Report] = {}  # by coordinates, the oldest first

    async def outcome_of(self, coordinates: str) -> Report:
        """Return the report of the message at `topic-partition-offset`, once there is one.

        Replayed reports are left out.

        Raises:
            KafkaError: the topic can't be read any more.
        """
        while coordinates not in self._reports:
            record = await self._consumer.getone()
            report = _read(record.value) if record.key == self._user else None
            if report is not None and not report.get("replayed"):
                place = (report["topic"], report["partition"], report["offset"])
                self._reports["-".join(map(str, place))] = report
                if len(self._reports) > _MOST_KEPT:
                    del self._reports[next(iter(self._reports))]
        return self._reports.pop(coordinates)


@asynccontextmanager
async def watching(settings: RecordSettings, user: bytes) -> AsyncIterator[Watch]:
    """Yield a watch of the outcomes topic, from its end.

    Raises:
        UnreadableOutcomes: no topic is set, it does not exist, or was not found in time.
        KafkaError: no broker answers, or the topic may not be read.
    """
    consumer = log_consumer(settings, fetch_bytes=_FETCH_BYTES)
    try:
        async with asyncio.timeout(_LOOK_SECONDS):
            partitions = await _partitions(settings)
            await consumer.start()
            consumer.assign(partitions)
            await consumer.seek_to_end(*partitions)
            for partition in partitions:  # the ends as they are before anything is published
                await consumer.position(partition)
            await consumer.getmany(timeout_ms=_PROBE_MS)  # raises where reading is not allowed
        yield Watch(consumer, user)
    except TimeoutError:
        raise UnreadableOutcomes(
            f"the outcomes topic {settings.outcomes_topic} could not be read within "
            f"{_LOOK_SECONDS:g} s"
        ) from None
    finally:
        await consumer.stop()


async def _partitions(settings: RecordSettings) -> list[Any]:
    topic = settings.outcomes_topic
    if topic is None:
        raise UnreadableOutcomes(
            "without an outcomes topic there is nothing to wait for: set PUSHGATE_OUTCOMES_TOPIC, "
            "here and for processors"
        )
    partitions = await partitions_of(settings, [topic])
    if not partitions:
        raise UnreadableOutcomes(
            f"the outcomes topic {topic} (PUSHGATE_OUTCOMES_TOPIC) does not exist: create it, or "
            "set PUSHGATE_CREATE_TOPICS=true for processors"
        )
    return partitions


def _read(value: bytes | None) -> Report | None:
    """Return a report; None for a record that is none."""
    try:
        report = msgspec.json.decode(value or b"")
    except msgspec.DecodeError:
        return None
    is_report = isinstance(report, dict) and {"outcome", "topic", "partition", "offset"} <= set(
        report
    )
    return report if is_report else None
