"""Look-ups that began before a question was answered: their users are looked up again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from processor.replay.answers import Answers
from processor.replay.windows import Windows
from registry.resume import Ask, Question
from tests.support.dispatching import A, B, FakeForward, Rig, envelope, running, turns
from tests.unit.processor.replay.taken_in import P0, Partition
from tests.unit.processor.replay.test_answers import LEFT_MS, FakeLog, FakeOwner, offsets
from tests.unit.processor.sending.test_whereabouts import SlowRegistry

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("is_away", [False, True], ids=["remembered", "redis away"])
async def test_a_look_up_under_way_while_a_question_is_answered_is_not_remembered(
    is_away: bool,
) -> None:
    """Alice is on node A; while she is looked up, she comes back on node B too."""
    registry, forward, owner = SlowRegistry({"alice": (A,)}), FakeForward(), FakeOwner()
    windows = Windows(seconds=125.0, most_bytes=1_000_000)
    sending = Rig(registry, forward, cache_seconds=0.0 if is_away else 60.0)

    def forget_all(users: Iterable[str]) -> None:
        for user in users:
            sending.whereabouts.forget(user)

    answers = Answers(
        "p1",
        owner,
        windows,
        forget_all,
        FakeLog(),
        keep_seconds=120.0,
    )
    windows.begin({P0: 0})
    answers.begin({P0: (0, "")})
    async with running(sending):
        registry.go_on.clear()
        windows.take(P0, [Partition().message(0)])
        owner.owned = {P0: 1}
        sending.take(envelope("alice", "0"))
        await turns()
        registry.answer({"alice": (A, B)})
        answer = await answers.answer(Ask(1, [Question("alice", None, LEFT_MS, [])]))
        assert offsets(answer.replays[0]) == [0]
        registry.go_on.set()
        await sending.all_settled()
        assert forward.ids_to(B) == [], "the answer has it"
        registry.failures = 2 if is_away else 0
        sending.take(envelope("alice", "1"))
        async with asyncio.timeout(10):
            await sending.all_settled()
    assert forward.ids_to(A) == ["0", "1"]
    assert forward.ids_to(B) == ["1"]
