"""Reports of the outcomes topic, and the wait for those of messages just published."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec

from processor.outcomes.outcome import Kind
from processor.reading.kafka import AIOKafkaConsumer
from processor.settings import OutcomesSettings
from pushgate.table import counted
from pushgate.topics import UnreadableTopic, reading

_SETTING: Final = "PUSHGATE_OUTCOMES_TOPIC"
#: How long a broker has to refuse a fetch.
_PROBE_MS: Final = 200
#: Reports of the user that are kept until they are asked for, at most; then the oldest is dropped.
_MOST_KEPT: Final = 65_536

#: A report as the topic has it (docs/protocol.md, "Outcomes").
Report = dict[str, Any]


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
            report = read_report(record.value) if record.key == self._user else None
            if report is not None and not report.get("replayed"):
                place = (report["topic"], report["partition"], report["offset"])
                self._reports["-".join(map(str, place))] = report
                if len(self._reports) > _MOST_KEPT:
                    del self._reports[next(iter(self._reports))]
        return self._reports.pop(coordinates)


@asynccontextmanager
async def watching(settings: OutcomesSettings, user: bytes) -> AsyncIterator[Watch]:
    """Yield a watch of the outcomes topic, from its end.

    Raises:
        UnreadableTopic: no topic is set, it does not exist, or was not found in time.
        KafkaError: no broker answers, or the topic may not be read.
    """
    async with reading(settings, outcomes_topic(settings), setting=_SETTING) as consumer:
        await consumer.getmany(timeout_ms=_PROBE_MS)  # raises where reading is not allowed
        yield Watch(consumer, user)


def outcomes_topic(settings: OutcomesSettings) -> str:
    """Return the name of the outcomes topic.

    Raises:
        UnreadableTopic: none is set.
    """
    if settings.outcomes_topic is None:
        raise UnreadableTopic(
            f"without an outcomes topic nothing is told of outcomes: set {_SETTING}, here and for "
            "processors"
        )
    return settings.outcomes_topic


def in_words(report: Report) -> str:
    """Return the outcome of a report, with its reason or its connections."""
    outcome, reason = report["outcome"], report.get("reason")
    if outcome != Kind.DELIVERED.value:
        return ": ".join(filter(None, (outcome, reason)))
    missed = report.get("missed")
    lacking = f"; {counted(missed, 'node')} may lack it" if missed else ""
    return f"{outcome} to {counted(report.get('connections') or 0, 'connection')}{lacking}"


def read_report(value: bytes | None) -> Report | None:
    """Return a report; None for a record that is none."""
    try:
        msgspec.json.decode(value or b"", type=_Form)
    except msgspec.DecodeError:
        return None
    report: Report = msgspec.json.decode(value or b"")
    return report


class _Form(msgspec.Struct):
    """The fields of a report that are read here; a report may have more."""

    outcome: str
    topic: str
    partition: int
    offset: int
    id: str | None = None
    reason: str | None = None
    nodes: list[str] | None = None
    connections: int | None = None
    missed: int | None = None
    settled_ms: int | None = None
    ms: int | None = None
