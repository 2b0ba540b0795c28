"""A gateway that does not answer is left alone, and tried again with little."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest

from processor.reading.kafka import TopicPartition
from processor.reading.message import Message
from processor.reading.progress import Progress
from processor.sending.forward import Failure, Result
from processor.sending.gateways import Gateways
from registry.directory import Node
from registry.message import Envelope, Push

pytestmark = pytest.mark.anyio

A = Node("gw-a", "e1", "10.0.0.1:8081")
B = Node("gw-b", "e2", "10.0.0.2:8081")
TIMEOUT = Failure("timeout")


class Rig:
    """Gateways by hand: a clock, what each node answers, and what came of the messages."""

    def __init__(self) -> None:
        self.now = 0.0
        self.answer: Callable[[Node], Result] = lambda _: 1
        self.calls: list[tuple[Node, int]] = []
        self.results: list[Result | None] = []
        self.due = True
        self._news = asyncio.Event()
        self.gateways = Gateways(
            self,
            self._answered,
            lambda _: self.due,
            spawn=asyncio.create_task,
            clock=lambda: self.now,
        )

    async def forward(self, node: Node, pushes: Sequence[Push]) -> list[Result]:
        self.calls.append((node, len(pushes)))
        await asyncio.sleep(0)
        return [self.answer(node)] * len(pushes)

    async def send(self, node: Node, count: int) -> list[Result | None]:
        """Send so many messages; give their results."""
        self.results = []
        progress = Progress(TopicPartition("push", 0), lane=0)
        for number in range(count):
            self.gateways.put(node, Message(Envelope(Push("u", b"", "m"), 0), progress, number))
        async with asyncio.timeout(5):
            while len(self.results) < count:
                self._news.clear()
                await self._news.wait()
        return self.results

    def _answered(
        self, node: Node, batch: Sequence[Message], results: Sequence[Result | None]
    ) -> None:
        assert len(batch) == len(results)
        self.results += results
        self._news.set()


async def test_who_did_not_answer_is_not_asked_again_for_a_while_and_then_with_little() -> None:
    rig = Rig()
    rig.answer = lambda _: TIMEOUT
    assert await rig.send(A, 50) == [TIMEOUT] * 50
    assert await rig.send(A, 2_000) == [TIMEOUT] * 2_000
    assert rig.calls == [(A, 50)]
    rig.now, rig.answer = 0.6, lambda _: 1
    assert await rig.send(A, 100) == [1] * 100
    assert rig.calls == [(A, 50), (A, 20), (A, 80)]


async def test_each_time_it_still_does_not_answer_it_is_left_alone_for_longer() -> None:
    rig = Rig()
    rig.answer = lambda _: Failure("unreachable")
    asked_at = []
    for tick in range(300):
        rig.now = tick / 10
        before = len(rig.calls)
        await rig.send(A, 1)
        if len(rig.calls) > before:
            asked_at.append(rig.now)
    waits = [round(later - earlier, 1) for earlier, later in pairwise(asked_at)]
    assert waits[:4] == [0.5, 1.0, 2.0, 4.0]
    assert set(waits[4:]) == {5.0}


async def test_an_answer_of_any_kind_is_an_answer() -> None:
    rig = Rig()
    for result in (0, Failure("overloaded"), Failure("status-500"), Failure("no-device")):
        rig.answer = lambda _, result=result: result  # type: ignore[misc]
        assert await rig.send(A, 1) == [result]
    assert len(rig.calls) == 4


async def test_others_are_not_left_alone_with_it() -> None:
    rig = Rig()
    rig.answer = lambda node: TIMEOUT if node == A else 1
    assert await rig.send(A, 1) == [TIMEOUT]
    assert await rig.send(B, 1_500) == [1] * 1_500
    assert rig.calls[1:] == [(B, 1_000), (B, 500)]


async def test_what_is_not_due_any_more_is_not_sent() -> None:
    rig = Rig()
    rig.due = False
    assert await rig.send(A, 3) == [None] * 3
    assert rig.calls == []


async def test_a_forwarder_that_raises_leaves_no_message_without_a_result() -> None:
    rig = Rig()

    def fail(_: Node) -> Result:
        raise RuntimeError("injected")

    rig.answer = fail
    assert await rig.send(A, 2) == [Failure("error")] * 2
