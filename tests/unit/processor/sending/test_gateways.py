"""A gateway that does not answer is silent: its messages wait, and it is tried with little."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest

from processor.reading.kafka import TopicPartition
from processor.reading.message import Message
from processor.reading.progress import Progress
from processor.sending import gateways as gateways_module
from processor.sending.forward import MISDIRECTED, NO_DEVICE, TIMEOUT, Answer, Failure, Result
from processor.sending.gateways import GONE, Callbacks, Gateways
from registry.directory import Node
from registry.message import Envelope, Push

pytestmark = pytest.mark.anyio

A = Node("gw-a", "e1", "10.0.0.1:8081")
B = Node("gw-b", "e2", "10.0.0.2:8081")


class Rig:
    """Gateways by hand: a clock, what each node answers, and what came of the messages."""

    def __init__(self) -> None:
        self.now = 0.0
        self.answer: Callable[[Node], Result] = lambda _: 1
        self.silent: set[Node] = set()
        self.misdirected: set[Node] = set()
        self.refusal: Failure | None = None  # the answer to every batch
        self.gone: set[Node] = set()
        self.lost_nodes: set[Node] = set()
        self.vouched: list[Node] = []
        self.calls: list[tuple[Node, int]] = []
        self.batches: list[list[str]] = []  # the users of all messages, batch by batch
        self.held: dict[Node, asyncio.Event] = {}  # nodes that answer once it is set
        self.silent_behind: asyncio.Event | None = None  # holds the second answer back
        self.results: list[Result | None] = []
        self.waiting: list[Message] = []
        self.due = True
        self.progress = Progress(TopicPartition("push", 0), lane=0)
        self.gateways = Gateways(
            self,
            Callbacks(self._answered, self._waits, lambda _: self.due),
            self,
            spawn=asyncio.create_task,
            patience_seconds=10.0,
            clock=lambda: self.now,
        )

    def present(self, node: Node) -> bool:
        return node not in self.gone

    def lost(self, node: Node) -> bool:
        return node in self.lost_nodes

    def vouch(self, node: Node) -> None:
        self.vouched.append(node)

    async def forward(self, node: Node, pushes: Sequence[Push]) -> Answer:
        self.calls.append((node, len(pushes)))
        self.batches.append([push.user for push in pushes])
        number = len(self.calls)
        await asyncio.sleep(0)
        if node in self.held:
            await self.held[node].wait()
        if number == 2 and self.silent_behind is not None:
            await self.silent_behind.wait()
        if node in self.misdirected:
            return MISDIRECTED
        if self.refusal is not None:
            return self.refusal
        return TIMEOUT if node in self.silent else [self.answer(node)] * len(pushes)

    async def send(self, node: Node, count: int) -> None:
        """Send so many messages, and let everything happen that needs no time."""
        await self.send_to(node, ["u"] * count)

    async def send_to(self, node: Node, users: Sequence[str]) -> None:
        """Send a message to each of the users, and let everything happen that needs no time."""
        for number, user in enumerate(users):
            message = Message(Envelope(Push(user, b"", "m"), 0), self.progress, number)
            self.gateways.put(node, message)
        await turns()

    async def hold(self, node: Node) -> asyncio.Event:
        """Let a node be proven, and hold back its answers; give the event that lets them come."""
        await self.send(node, 1)
        self.held[node] = asyncio.Event()
        self.calls.clear()
        self.batches.clear()
        self.results.clear()
        return self.held[node]

    async def pass_time(self, now: float) -> None:
        """Let it be `now`, and let everything happen that is due."""
        self.now = now
        self.gateways.observe()
        await turns()

    def _answered(
        self, node: Node, batch: Sequence[Message], results: Sequence[Result | None]
    ) -> None:
        assert len(batch) == len(results)
        self.results += results

    def _waits(self, node: Node, messages: Sequence[Message]) -> None:
        self.waiting += messages


async def turns() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.fixture
async def rig() -> Rig:
    return Rig()


async def test_a_silent_gateway_is_tried_after_a_pause_and_with_little(rig: Rig) -> None:
    rig.silent = {A}
    await rig.send(A, 50)
    assert len(rig.waiting) == 50
    await rig.send(A, 2_000)
    assert rig.calls == [(A, 50)]
    await rig.pass_time(0.6)
    assert rig.calls == [(A, 50), (A, 20)]
    rig.silent = set()
    await rig.pass_time(1.7)
    assert rig.results == [1] * 2_050
    assert rig.calls[2:] == [(A, 20), (A, 30), (A, 1_000), (A, 1_000)]
    await rig.gateways.close()


async def test_the_longer_a_gateway_is_silent_the_longer_it_is_left_alone(rig: Rig) -> None:
    rig.silent = {A}
    await rig.send(A, 1)
    tried_at = [0.0]
    for tick in range(300):
        before = len(rig.calls)
        await rig.pass_time(tick / 10)
        if len(rig.calls) > before:
            tried_at.append(rig.now)
    pauses = [round(later - earlier, 1) for earlier, later in pairwise(tried_at)]
    assert pauses[:4] == [0.5, 1.0, 2.0, 4.0]
    assert set(pauses[4:]) == {5.0}
    assert rig.results == []
    await rig.gateways.close()


async def test_an_answer_of_any_kind_is_an_answer(rig: Rig) -> None:
    for number, result in enumerate((0, Failure("status-500"), NO_DEVICE, Failure("too-large"))):
        rig.answer = lambda _, result=result: result  # type: ignore[misc]
        await rig.send(A, 1)
        assert rig.results[number] == result
    assert len(rig.calls) == 4


async def test_other_gateways_are_not_left_alone_with_a_silent_one(rig: Rig) -> None:
    rig.silent = {A}
    await rig.send(A, 1)
    await rig.send(B, 1_500)
    assert rig.results == [1] * 1_500
    assert rig.calls[1:] == [(B, 1_000), (B, 500)]
    await rig.gateways.close()


async def test_a_message_that_is_not_due_any_more_is_not_sent(rig: Rig) -> None:
    await rig.send(A, 1)
    rig.due = False
    await rig.send(A, 3)
    assert rig.results == [1, None, None, None]
    assert rig.calls == [(A, 1)]


async def test_messages_of_a_silent_gateway_that_are_not_due_any_more_leave(rig: Rig) -> None:
    rig.silent = {A}
    await rig.send(A, 3)
    rig.due = False
    await rig.pass_time(0.1)
    assert rig.results == [None] * 3
    await rig.gateways.close()


async def test_the_messages_of_a_gateway_that_is_gone_say_so(rig: Rig) -> None:
    rig.silent = {A}
    await rig.send(A, 30)
    rig.gone = {A}
    await rig.pass_time(0.1)
    assert rig.results == [GONE] * 30
    await rig.pass_time(0.2)
    assert rig.gateways._gateways == {}


async def test_a_gateway_that_answers_is_no_worse_for_not_being_present(rig: Rig) -> None:
    # The reading of the nodes is up to a second old: a node may be newer.
    rig.gone = {A}
    await rig.send(A, 3)
    await rig.pass_time(0.1)
    assert rig.results == [1] * 3
    assert rig.gateways._gateways == {}


async def test_a_new_node_is_asked_once_whether_it_takes_the_secret(rig: Rig) -> None:
    for _ in range(3):
        rig.gateways.probe([A, B])
        await turns()
    assert rig.calls == [(A, 0), (B, 0)]


async def test_a_node_that_answers_is_vouched_for_and_a_lost_node_is_asked_every_second(
    rig: Rig,
) -> None:
    await rig.send(A, 1)
    assert rig.vouched == [A]
    rig.lost_nodes = {A}
    for second in range(1, 4):
        await rig.pass_time(float(second))
    assert rig.calls == [(A, 1)] + [(A, 0)] * 3
    assert rig.vouched == [A] * 4
    rig.silent = {A}
    await rig.pass_time(4.0)
    assert rig.vouched == [A] * 4
    await rig.gateways.close()


async def test_a_node_at_the_address_of_another_is_not_vouched_for_and_has_nobody(rig: Rig) -> None:
    rig.misdirected = {A}
    await rig.send(A, 2)
    assert rig.results == [0, 0]
    assert rig.vouched == []


@pytest.mark.parametrize("reason", ["outside-networks", "status-500", "error"])
async def test_a_node_that_answers_no_batch_is_not_vouched_for(rig: Rig, reason: str) -> None:
    rig.refusal = Failure(reason)
    await rig.send(A, 2)
    assert rig.results == [Failure(reason)] * 2
    assert rig.vouched == []


async def test_silent_gateways_together_are_bounded(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateways_module, "MAX_WAITING_BYTES", 1_000_000)
    monkeypatch.setattr(gateways_module, "MAX_WAITING_MESSAGES", 10)
    nodes = [Node(f"gw-{number}", f"e{number}", "10.0.0.1:8081") for number in range(5)]
    rig.silent = set(nodes)
    for node in nodes:
        await rig.send(node, 8)
    for node in nodes:
        await rig.send(node, 8)
    assert rig.results
    assert set(rig.results) == {Failure("unreachable")}
    # What a node had in hand when it fell silent waits in any case.
    assert sum(len(g.queue) for g in rig.gateways._gateways.values()) == 40
    await rig.gateways.close()


async def test_a_forwarder_that_raises_leaves_no_message_without_a_result(rig: Rig) -> None:
    def fail(_: Node) -> Result:
        raise RuntimeError("injected")

    rig.answer = fail
    await rig.send(A, 2)
    assert rig.results == [Failure("error")] * 2


# Two batches in flight

CROWD = [f"u{number}" for number in range(3_000)]


async def test_under_a_backlog_two_batches_are_under_way_and_no_third(rig: Rig) -> None:
    answer = await rig.hold(A)
    await rig.send_to(A, CROWD)
    assert rig.calls == [(A, 1_000)] * 2
    answer.set()
    await turns()
    assert rig.calls == [(A, 1_000)] * 3
    assert rig.results == [1] * 3_000
    gateway = rig.gateways._gateways[A]
    assert (gateway.worker, gateway.behind, gateway.under_way) == (None, None, [])


async def test_what_is_little_waits_for_the_batch_under_way(rig: Rig) -> None:
    answer = await rig.hold(A)
    await rig.send_to(A, CROWD[:1_100])
    await rig.send_to(A, CROWD[1_100:1_200])
    assert rig.calls == [(A, 1_000)]
    answer.set()
    await turns()
    assert rig.calls == [(A, 1_000), (A, 200)]


async def test_batches_under_way_have_no_user_in_common(rig: Rig) -> None:
    answer = await rig.hold(A)
    # The first batch has messages of every user below 500, twice; 200 of them come once more.
    await rig.send_to(A, CROWD[:500] * 2 + CROWD[300:1_300])
    first, second = rig.batches
    assert first == CROWD[:500] * 2
    assert second == CROWD[500:1_300]
    answer.set()
    await turns()
    assert rig.batches[2:] == [CROWD[300:500]]
    assert rig.results == [1] * 2_000


async def test_the_messages_of_one_user_are_never_in_two_batches_under_way(rig: Rig) -> None:
    answer = await rig.hold(A)
    await rig.send(A, 3_000)
    await rig.send(A, 500)
    assert rig.calls == [(A, 1_000)]
    answer.set()
    await turns()
    assert rig.calls == [(A, 1_000)] * 3 + [(A, 500)]
    assert rig.results == [1] * 3_500


async def test_two_batches_without_an_answer_are_one_silence_and_all_of_them_waits(
    rig: Rig,
) -> None:
    answer = await rig.hold(A)
    await rig.send_to(A, CROWD)
    rig.silent = {A}
    answer.set()
    await turns()
    assert rig.calls == [(A, 1_000)] * 2
    gateway = rig.gateways._gateways[A]
    assert gateway.pause == 0.5
    assert {message.push.user for message in rig.waiting} == set(CROWD)
    assert len(gateway.queue) == 3_000
    rig.silent = set()
    await rig.pass_time(0.6)
    assert rig.calls[2:4] == [(A, 20), (A, 1_000)], "a trial goes alone"
    assert rig.results == [1] * 3_000


async def test_what_comes_back_of_the_second_batch_alone_is_sent_again(rig: Rig) -> None:
    answer = await rig.hold(A)
    await rig.send_to(A, CROWD[:2_000])
    second = asyncio.Event()
    rig.silent_behind = second  # the second batch stays unanswered until then
    answer.set()
    await turns()
    assert rig.results == [1] * 1_000
    rig.silent = {A}
    second.set()
    await turns()
    assert len(rig.waiting) == 1_000
    rig.silent = set()
    await rig.pass_time(0.6)
    assert rig.results == [1] * 2_000
    await rig.pass_time(0.7)


async def test_no_batch_goes_behind_a_trial(rig: Rig) -> None:
    rig.silent = {A}
    await rig.send_to(A, CROWD)
    rig.held[A] = asyncio.Event()
    await rig.pass_time(0.6)
    assert rig.calls == [(A, 1_000), (A, 20)]
    await rig.gateways.close()


async def test_a_gateway_that_is_gone_is_kept_until_both_batches_have_come_back(rig: Rig) -> None:
    answer = await rig.hold(A)
    await rig.send_to(A, CROWD)
    rig.gone = {A}
    await rig.pass_time(0.1)
    assert list(rig.gateways._gateways) == [A]
    rig.silent = {A}
    answer.set()
    await turns()
    assert len(rig.results) == 3_000
    assert set(rig.results) == {GONE}
    await rig.pass_time(0.2)
    assert rig.gateways._gateways == {}


async def test_closing_ends_both(rig: Rig) -> None:
    await rig.hold(A)
    await rig.send_to(A, CROWD)
    await rig.gateways.close()
    gateway = rig.gateways._gateways[A]
    assert (gateway.worker, gateway.behind) == (None, None)
