"""Outcomes are told while the membership is certain, and then by the partition's owner alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import msgspec
import pytest
from pydantic import SecretStr

from processor import metrics
from processor.outcomes.outcomes import Outcomes
from processor.outcomes.writer import Row
from processor.reading.kafka import TopicPartition
from processor.reading.membership import Membership
from processor.reading.message import Message
from processor.reading.progress import Progress
from processor.settings import ProcessorSettings
from registry.message import Envelope, Push
from tests.support.clients import eventually

pytestmark = pytest.mark.anyio


class Written:
    """An accessory that takes every row."""

    def __init__(self) -> None:
        self.offsets: list[int] = []

    async def write(self, rows: Sequence[Row]) -> None:
        self.offsets += [msgspec.json.decode(row.value or b"")["offset"] for row in rows]


@asynccontextmanager
async def telling(
    membership: Membership, *, topic: str | None = "t.outcomes"
) -> AsyncIterator[tuple[Outcomes, Written]]:
    settings = ProcessorSettings(outcomes_topic=topic, internal_secret=SecretStr("s" * 32))
    async with asyncio.TaskGroup() as tasks:
        outcomes = Outcomes(
            settings,
            lambda _: None,
            membership=membership,
            spawn=tasks.create_task,
        )
        written = Written()
        if topic is not None:
            outcomes.accessory = cast("Any", written)
        yield outcomes, written
        await outcomes.stop()


def message(progress: Progress, offset: int) -> Message:
    progress.begin(offset, size=0, timestamp_ms=0)
    push = Push(user="u", data=b"", id=f"push-0-{offset}")
    return Message(Envelope(push=push, published_ms=0), progress, offset)


def offline() -> float:
    return float(metrics.OUTCOMES.labels("offline", "")._value.get())


async def test_in_doubt_nothing_is_told_and_then_only_what_is_still_this_members() -> None:
    now = [0.0]
    membership = Membership(clock=lambda: now[0])
    kept = Progress(TopicPartition("push", 0), lane=0)
    lost = Progress(TopicPartition("push", 1), lane=0)
    before = offline()
    async with telling(membership) as (outcomes, written):
        membership.confirm(0.0)
        outcomes.settled([message(kept, 1)])
        await eventually(lambda: written.offsets == [1], "told at once")
        now[0] = 60.0
        outcomes.settled([message(kept, 2), message(lost, 3)])
        await asyncio.sleep(0.05)
        assert written.offsets == [1]
        assert len(kept) == 1, "neither told nor settled"
        lost.lost = True
        membership.confirm(60.0)
        await eventually(lambda: len(kept) == 0, "settled")
    assert written.offsets == [1, 2]
    assert offline() - before == 2, "what is another's to tell is another's to count"


async def test_without_a_topic_an_outcome_is_counted_by_its_owner_alone() -> None:
    now = [0.0]
    membership = Membership(clock=lambda: now[0])
    kept = Progress(TopicPartition("push", 0), lane=0)
    lost = Progress(TopicPartition("push", 1), lane=0)
    before = offline()
    async with telling(membership, topic=None) as (outcomes, _):
        membership.confirm(0.0)
        outcomes.settled([message(kept, 1)])
        assert (len(kept), offline() - before) == (0, 1), "at once"
        now[0] = 60.0  # frozen for a minute: both partitions may be another member's by now
        outcomes.settled([message(kept, 2), message(lost, 3)])
        await asyncio.sleep(0.05)
        assert (len(kept), offline() - before) == (1, 1), "neither counted nor settled"
        lost.lost = True
        membership.confirm(60.0)
        await eventually(lambda: len(kept) == 0, "settled")
    assert offline() - before == 2
    assert len(lost) == 1
