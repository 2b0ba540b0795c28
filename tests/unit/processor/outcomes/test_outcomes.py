"""Outcomes are told while the membership is certain, and then by the partition's owner alone."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import msgspec
import pytest
from pydantic import SecretStr

from processor import metrics
from processor.outcomes.outcomes import Outcomes, Replayed
from processor.outcomes.writer import Row
from processor.reading.kafka import TopicPartition
from processor.reading.membership import Membership
from processor.reading.message import Message
from processor.reading.progress import Progress
from processor.settings import ProcessorSettings
from registry.directory import Node
from registry.message import Envelope, Push
from tests.support.clients import eventually

pytestmark = pytest.mark.anyio

NOW_MS = 1_764_360_000_000
#: The most reports of replayed messages that wait for a write.
MOST_REPLAYED = 32_768
NODE = Node("first", "e1", "127.0.0.1:1")
PROCESSOR = f"{socket.gethostname()[:50]}-8093"


class Written:
    """An accessory that takes every row."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    async def write(self, rows: Sequence[Row]) -> None:
        self.rows += rows

    @property
    def reports(self) -> list[dict[str, Any]]:
        return [msgspec.json.decode(row.value or b"") for row in self.rows]

    @property
    def offsets(self) -> list[int]:
        return [report["offset"] for report in self.reports]


@asynccontextmanager
async def telling(
    membership: Membership, *, topic: str | None = "t.outcomes", sample: float = 1.0
) -> AsyncIterator[tuple[Outcomes, Written]]:
    settings = ProcessorSettings(
        outcomes_topic=topic,
        outcomes_sample=sample,
        processor_port=8_093,
        internal_secret=SecretStr("s" * 32),
    )
    async with asyncio.TaskGroup() as tasks:
        outcomes = Outcomes(
            settings,
            lambda _: None,
            membership=membership,
            spawn=tasks.create_task,
            now_ms=lambda: NOW_MS,
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


@pytest.mark.parametrize(("published_ms", "took_ms"), [(NOW_MS - 7, 7), (NOW_MS + 7, 0)])
async def test_a_report_says_which_way_a_message_took_and_for_how_long(
    published_ms: int, took_ms: int
) -> None:
    membership = Membership(clock=lambda: 0.0)
    membership.confirm(0.0)
    delivered = message(Progress(TopicPartition("push", 0), lane=0), 1)
    delivered.envelope.published_ms = published_ms
    delivered.took, delivered.taken_at = 3, (NODE, replace(NODE, name="second", epoch="e2"))
    absent = message(Progress(TopicPartition("push", 1), lane=0), 2)
    async with telling(membership) as (outcomes, written):
        outcomes.settled([delivered, absent])
        await eventually(lambda: len(written.rows) == 2, "both are told")
    ways = [
        [told[name] for name in ("node", "nodes", "processor", "connections")]
        for told in written.reports
    ]
    assert ways == [[NODE.name, [NODE.name, "second"], PROCESSOR, 3], [None, [], PROCESSOR, 0]]
    assert written.reports[0]["ms"] == took_ms


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


# Messages that clients got when they came back


def replayed(*offsets: int) -> list[Replayed]:
    return [Replayed("alice", f"m-{at}", "phone", "gw-a", "push", 3, at) for at in offsets]


def unreported() -> float:
    return float(metrics.REPLAYS_UNREPORTED.labels("full")._value.get())


def delivered() -> float:
    return float(metrics.OUTCOMES.labels("delivered", "")._value.get())


async def test_a_replayed_message_is_reported_behind_the_outcomes_of_before_and_not_counted() -> (
    None
):
    membership = Membership(clock=lambda: 0.0)
    membership.confirm(0.0)
    progress = Progress(TopicPartition("push", 0), lane=0)
    before = delivered()
    async with telling(membership) as (outcomes, written):
        outcomes.settled([message(progress, 1)])
        outcomes.replayed(replayed(7))
        await eventually(lambda: len(written.rows) == 2, "both are told")
    first, second = written.reports
    assert (first["offset"], first["outcome"], "replayed" in first) == (1, "offline", False)
    assert second == {
        "id": "m-7",
        "outcome": "delivered",
        "reason": None,
        "node": "gw-a",
        "nodes": ["gw-a"],
        "processor": PROCESSOR,
        "device": "phone",
        "connections": 1,
        "missed": 0,
        "published_ms": None,
        "settled_ms": NOW_MS,
        "ms": None,
        "topic": "push",
        "partition": 3,
        "offset": 7,
        "replayed": True,
    }
    assert written.rows[1].key == b"alice"
    assert delivered() == before, "the message had its outcome before"
    assert len(progress) == 0


async def test_replayed_messages_are_sampled_by_id_as_all_others() -> None:
    membership = Membership(clock=lambda: 0.0)
    membership.confirm(0.0)
    async with telling(membership, sample=0.5) as (outcomes, written):
        outcomes.replayed(replayed(*range(200)))
        await eventually(lambda: written.rows, "some are told")
        sampled = [*written.offsets]
        outcomes.replayed(replayed(*range(200)))
        await eventually(lambda: len(written.rows) > len(sampled), "the same ones again")
    assert 60 < len(sampled) < 140
    assert written.offsets == sampled * 2


async def test_too_many_reports_of_replayed_messages_are_lost_and_counted() -> None:
    """In doubt nothing is written, for as long as Kafka does not answer."""
    membership = Membership(clock=lambda: 0.0)
    before = unreported()
    async with telling(membership) as (outcomes, written):
        outcomes.replayed(replayed(*range(MOST_REPLAYED - 1)))
        outcomes.replayed(replayed(1, 2, 3))
        assert unreported() - before == 2
        membership.confirm(0.0)
        await eventually(lambda: len(written.rows) == MOST_REPLAYED, "the others are told")
        outcomes.replayed(replayed(5))
        await eventually(lambda: len(written.rows) == MOST_REPLAYED + 1, "there is room again")
