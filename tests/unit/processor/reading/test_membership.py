"""A member's lease: certain for the session time-out after a heartbeat, and not a moment longer."""

from __future__ import annotations

import asyncio

import pytest

from processor.reading.membership import DOUBT_SECONDS, Membership
from tests.support.clock import Clock

pytestmark = pytest.mark.anyio


def test_a_membership_is_certain_for_the_session_time_out_after_the_last_heartbeat() -> None:
    clock = Clock(100.0)
    membership = Membership(clock=clock)
    assert not membership.certain
    membership.confirm(sent_at=100.0)
    clock.now = 105.9
    assert membership.certain
    clock.now = 106.0
    assert not membership.certain


def test_a_late_answer_confirms_from_the_time_of_sending() -> None:
    clock = Clock(100.0)
    membership = Membership(clock=clock)
    membership.confirm(sent_at=100.0)
    clock.now = 110.0
    membership.confirm(sent_at=101.5)
    assert not membership.certain
    membership.confirm(sent_at=110.0)
    assert membership.certain


def test_after_a_silence_other_members_are_in_doubt_for_a_while() -> None:
    clock = Clock(100.0)
    membership = Membership(clock=clock)
    for _ in range(4):
        clock.now += 1.5
        membership.confirm(sent_at=clock.now)
        assert not membership.others_in_doubt
    clock.now += 10.0
    membership.confirm(sent_at=clock.now - 9.0)
    assert membership.others_in_doubt
    clock.now += DOUBT_SECONDS
    assert not membership.others_in_doubt


async def test_certainty_is_waited_for() -> None:
    clock = Clock(100.0)
    membership = Membership(clock=clock)
    assert not await membership.certainty(timeout_seconds=0.01)
    waiting = asyncio.create_task(membership.certainty())
    await asyncio.sleep(0)
    membership.confirm(sent_at=0.0)  # answered long after it was sent
    await asyncio.sleep(0)
    assert not waiting.done()
    membership.confirm(sent_at=clock.now)
    async with asyncio.timeout(5):
        assert await waiting
