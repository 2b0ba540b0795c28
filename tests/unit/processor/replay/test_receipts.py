"""Receipts: what clients took of answers is reported, as often as they took it, within bounds."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import pytest

from processor import metrics
from processor.outcomes.outcomes import Replayed
from processor.replay.receipts import Receipts
from registry.directory import Node
from registry.message import Push
from registry.resume import Answer, Receipt, Replay, encode
from tests.support.clock import Clock

pytestmark = pytest.mark.anyio

NODE = Node("gw-a", "e1", "127.0.0.1:1")
OTHER = Node("gw-b", "e1", "127.0.0.1:2")
#: The most messages that are kept.
MOST = 65_536


class Rig:
    """What a processor keeps of its answers, and what it has reported."""

    def __init__(self) -> None:
        self.clock = Clock(1_000.0)
        self.reported: list[Replayed] = []
        self.receipts = Receipts(self.reported.extend, clock=self.clock)
        self._forgotten = _forgotten()

    async def answer(self, *replays: Iterable[int], node: Node = NODE) -> None:
        """Answer questions of alice's with messages of partition 0."""
        found = [Replay([msgspec.Raw(encode(push(at))) for at in replay]) for replay in replays]
        await self.receipts.keep(node, Answer(0, "p1", [], {}, found))

    def take(self, *offsets: int, node: Node = NODE) -> list[int]:
        """Take a receipt; give the offsets that are reported."""
        del self.reported[:]
        self.receipts.take(node, Receipt([("push", 0, list(offsets))]))
        return [each.offset for each in self.reported]

    @property
    def forgotten(self) -> float:
        return _forgotten() - self._forgotten


def _forgotten() -> float:
    return float(metrics.REPLAYS_UNREPORTED.labels("forgotten")._value.get())


def push(offset: int) -> Push:
    position = f"push-0-{offset}"
    return Push("alice", b"payload", f"m-{offset}", "t", "phone", 7, position)


@pytest.fixture
def rig() -> Rig:
    return Rig()


async def test_a_report_has_what_is_known_of_the_message_and_the_node(rig: Rig) -> None:
    await rig.answer([5, 6])
    assert rig.take(6) == [6]
    assert rig.reported == [Replayed("alice", "m-6", "phone", "gw-a", "push", 0, 6)]
    assert rig.forgotten == 0


async def test_a_message_is_reported_once_for_each_connection_that_it_was_answered_for(
    rig: Rig,
) -> None:
    await rig.answer([5], [5])
    assert rig.take(5) == [5]
    assert rig.take(5, 5) == [5], "twice, and no third time"
    assert rig.forgotten == 1


async def test_only_the_gateway_that_asked_has_it_reported(rig: Rig) -> None:
    await rig.answer([5], node=OTHER)
    assert rig.take(5) == []
    assert rig.take(5, node=OTHER) == [5]
    assert rig.reported[0].node == "gw-b"


async def test_what_was_never_answered_is_not_reported(rig: Rig) -> None:
    await rig.answer([5])
    assert rig.take(4, 2**63 - 1, -1) == []
    assert rig.forgotten == 3


async def test_a_message_is_kept_for_a_minute_from_its_last_answer_on(rig: Rig) -> None:
    await rig.answer([5, 6, 7])
    rig.clock.now += 40.0
    await rig.answer([6])
    rig.clock.now += 21.0
    rig.receipts.advance()
    assert rig.take(5, 6, 7) == [6]
    assert rig.forgotten == 2
    rig.clock.now += 60.0
    rig.receipts.advance()
    assert rig.receipts._kept == {}


async def test_of_too_many_messages_the_oldest_are_forgotten(rig: Rig) -> None:
    await rig.answer([1, 2])
    await rig.answer(range(10, 10 + MOST - 1), [2])
    assert rig.take(1, 2, 10) == [2, 10]
    assert rig.forgotten == 1
