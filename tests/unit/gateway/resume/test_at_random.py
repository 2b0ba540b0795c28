"""Whatever comes in whatever order: a client that resumes gets each message once, in order.

A log of two partitions, a processor for each, and a client that comes back, all moved by chance:
records are taken in; they are looked up later, and come live to the gateway late, and again; asks
are answered from what was taken in by then, in pages, late; the client reads, or does not.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable

import msgspec
import pytest

from gateway.connections.cursor import Partition
from registry.message import Push
from registry.resume import Answer, Ask, Question, Replay, encode
from tests.unit.gateway.resume.test_questions import Client, FakeLink, Node, running

pytestmark = pytest.mark.anyio


class Processor:
    """The owner of one partition, as a simulation."""

    def __init__(self, number: int, draw: random.Random, *, page: int) -> None:
        self.number = number
        self.link = FakeLink(f"p{number}")
        self.draw = draw
        self.page = page  # messages of an answer
        self.taken_in = draw.randrange(5, 10)  # the offset that is taken in next
        self.left_at = draw.randrange(self.taken_in)  # settled when the client left
        self.to_look_up: deque[int] = deque()
        self.line: deque[int] = deque()  # looked up, in the order in which they go
        self.answered = 0  # asks
        self.answers: deque[Answer] = deque()  # on their way

    def take_in(self) -> None:
        self.to_look_up.append(self.taken_in)
        self.taken_in += 1

    def look_up(self, *, is_registered: bool) -> None:
        """Look the user up for a record; where the user is not found, it has its outcome."""
        if self.to_look_up:
            offset = self.to_look_up.popleft()
            if is_registered:
                self.line.append(offset)

    def answer(self) -> None:
        """Answer the oldest ask that is not answered."""
        if self.answered < len(self.link.asks):
            ask = self.link.asks[self.answered]
            self.answered += 1
            self.answers.append(self._answer(ask))

    def _answer(self, ask: Ask) -> Answer:
        replays = [self._replay(question) for question in ask.questions]
        owned = [("push", self.number, self.taken_in)]
        return Answer(ask.number, str(self.link.processor), owned, {"push": 2}, replays)

    def _replay(self, question: Question) -> Replay:
        at = {number: offset for _, number, offset in question.positions}
        since = max(self.left_at, at.get(self.number, -1) + 1)
        missed = range(since, self.taken_in)
        cut = {0: missed[self.page]} if len(missed) > self.page else {}
        return Replay([raw(self.number, offset) for offset in missed[: self.page]], cut)


def raw(partition: int, offset: int) -> msgspec.Raw:
    position = f"push-{partition}-{offset}"
    return msgspec.Raw(
        encode(Push("alice", b"%d:%d" % (partition, offset), position, position=position))
    )


class Simulation:
    """One client that comes back, and all that happens."""

    def __init__(self, node: Node, draw: random.Random, *, page: int, is_slow: bool) -> None:
        self.node = node
        self.draw = draw
        self.processors = [Processor(number, draw, page=page) for number in (0, 1)]
        self.is_slow = is_slow
        self.client: Client | None = None
        self.got: list[str] = []
        self.sent: list[tuple[int, int]] = []  # live copies so far, for late ones
        self.expected_from: dict[int, int] = {}

    def come_back(self) -> None:
        positions: dict[Partition, int] = {}
        for processor in self.processors:
            since = processor.left_at
            if self.draw.random() < 0.5:  # it has a message that was not settled then
                since = self.draw.randrange(since, processor.taken_in) + 1
                positions["push", processor.number] = since - 1
            self.expected_from[processor.number] = since
        self.node.join(*(processor.link for processor in self.processors))
        self.client = self.node.come_back(positions=positions)

    async def run(self, steps: int) -> None:
        moves: list[Callable[[], None]] = []
        for processor in self.processors:
            moves += [
                processor.take_in,
                lambda p=processor: p.look_up(is_registered=self.client is not None),  # type: ignore[misc]
                lambda p=processor: p.look_up(is_registered=self.client is not None),  # type: ignore[misc]
                lambda p=processor: self._go_live(p),  # type: ignore[misc]
                lambda p=processor: self._go_live(p),  # type: ignore[misc]
                processor.answer,
                lambda p=processor: self._deliver_answer(p),  # type: ignore[misc]
            ]
        moves += [self._send_again, self._let_read, lambda: self.node.after(0.25)]
        comes_back_at = self.draw.randrange(10)
        for step in range(steps):
            if step == comes_back_at:
                self.come_back()
            self.draw.choice(moves)()
            if self.draw.random() < 0.3:
                await asyncio.sleep(0)
        await self._finish()

    async def _finish(self) -> None:
        """Let everything happen that is due."""
        assert self.client is not None
        for _ in range(400):
            self.client.wire.full = False
            for processor in self.processors:
                processor.look_up(is_registered=True)
                self._go_live(processor)
                processor.answer()
                self._deliver_answer(processor)
            self.node.after(0.25)
            await asyncio.sleep(0)
        self.got += self.client.got()
        assert not any(p.line or p.to_look_up for p in self.processors), "all was taken"

    def _go_live(self, processor: Processor) -> None:
        """Send the first message of the line; one that is refused stays the first."""
        if processor.line:
            offset = processor.line[0]
            if self._deliver(processor.number, offset):
                processor.line.popleft()
                self.sent.append((processor.number, offset))

    def _send_again(self) -> None:
        """Send a late copy of what was sent, as a new owner does."""
        if self.sent:
            self._deliver(*self.draw.choice(self.sent))

    def _deliver(self, partition: int, offset: int) -> bool:
        text = b"%d:%d" % (partition, offset)
        result = self.node.live_message(offset, partition, payload=text)
        return isinstance(result, int) and result > 0

    def _deliver_answer(self, processor: Processor) -> None:
        if processor.answers:
            self.node.questions.answered(processor.link, processor.answers.popleft())

    def _let_read(self) -> None:
        if self.client is not None:
            self.got += self.client.got()
            self.client.wire.full = self.is_slow and self.draw.random() < 0.5

    def check(self) -> None:
        assert self.client is not None
        assert self.client.is_through
        assert not [text for text in self.got if text.startswith("[")], "nobody needs a gap"
        for processor in self.processors:
            mine = [text for text in self.got if text.startswith(f"{processor.number}:")]
            assert mine == [
                f"{processor.number}:{offset}"
                for offset in range(self.expected_from[processor.number], processor.taken_in)
            ]


@pytest.mark.parametrize(
    ("page", "is_slow"),
    [
        (1_000, False),
        (1_000, True),
        (2, False),
        (2, True),
    ],
    ids=["whole", "whole, slow", "pages", "pages, slow"],
)
async def test_each_message_comes_once_and_in_order(page: int, is_slow: bool) -> None:
    for seed in range(60):
        async with running() as node:
            simulation = Simulation(node, random.Random(seed), page=page, is_slow=is_slow)
            await simulation.run(steps=150)
            try:
                simulation.check()
            except AssertionError as error:
                raise AssertionError(f"seed {seed}: {error}") from error
