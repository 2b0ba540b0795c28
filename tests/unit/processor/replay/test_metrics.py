"""Metrics of what is kept for clients that come back move with what they measure."""

from __future__ import annotations

import pytest

from processor import metrics
from processor.replay.windows import Windows
from tests.support.clock import Clock
from tests.unit.processor.replay.taken_in import P0, P1, Partition
from tests.unit.processor.replay.test_answers import Rig, question

pytestmark = pytest.mark.anyio


async def test_the_windows_bytes_and_seconds_are_those_of_all_partitions() -> None:
    clock = Clock(1_000.0)
    windows = Windows(seconds=120.0, most_bytes=10_000_000, clock=clock)
    windows.begin({P0: 0, P1: 0})
    windows.advance()
    assert (metrics.WINDOW_BYTES._value.get(), metrics.WINDOW_SECONDS._value.get()) == (0, 0)
    windows.take(P0, [Partition(0).message(0, data=b"x" * 1_000)])
    clock.now += 30.0
    windows.take(P1, [Partition(1).message(0, data=b"x" * 2_000)])
    windows.advance()
    assert 3_000 < metrics.WINDOW_BYTES._value.get() < 6_000
    assert metrics.WINDOW_SECONDS._value.get() == pytest.approx(30.0)
    clock.now += 300.0
    windows.advance()
    assert (metrics.WINDOW_BYTES._value.get(), metrics.WINDOW_SECONDS._value.get()) == (0, 0)


async def test_a_payload_that_is_evicted_is_counted() -> None:
    before = metrics.WINDOW_EVICTED._value.get()
    windows = Windows(seconds=120.0, most_bytes=1_000_000)
    windows.begin({P0: 0})
    windows.take(P0, [Partition(0).message(0, data=b"x" * 2_000_000)])
    while windows.evict():
        pass
    assert metrics.WINDOW_EVICTED._value.get() == before + 1


async def test_each_question_is_counted() -> None:
    before = metrics.QUESTIONS._value.get()
    rig = Rig()
    rig.assign({P0: 0})
    await rig.ask(question(), question(user="bob"))
    assert metrics.QUESTIONS._value.get() == before + 2
