"""Messages that wait: for silent nodes, and for room in the connections of their users."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from processor import metrics
from processor.outcomes.outcome import DELIVERED, EXPIRED, OFFLINE, Kind, outcome, outcome_of
from processor.reading import progress as progress_module
from processor.reading.message import Message
from processor.sending import dispatch as dispatch_module
from processor.sending import gateways as gateways_module
from processor.sending import lines as lines_module
from processor.sending.forward import (
    NO_LINK,
    OVERLOADED,
    REFUSED,
    TIMEOUT,
    UNREACHABLE,
    Answer,
    Partly,
    Result,
)
from registry.directory import Node
from registry.message import Push
from tests.support.clock import Clock
from tests.support.dispatching import (
    NOW_MS,
    ONE_NODE,
    A,
    B,
    C,
    FakeForward,
    FakeRegistry,
    Restless,
    Rig,
    answers,
    envelope,
    running,
    turns,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let trials and attempts follow each other at once: order and bounds are tested, not pace."""
    monkeypatch.setattr(gateways_module, "_FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(gateways_module, "_LONGEST_PAUSE_SECONDS", 0.002)
    monkeypatch.setattr(lines_module, "_FIRST_PAUSE_SECONDS", 0.0005)
    monkeypatch.setattr(lines_module, "_LONGEST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(lines_module, "_PAUSE_SECONDS_A_MESSAGE", 0.0)
    monkeypatch.setattr("processor.sending.dispatch._UNKNOWN_SECONDS", 0.001)


class Switch:
    """A node's answer, which the test changes."""

    def __init__(self, result: Result) -> None:
        self.result = result

    def __call__(self, push: Push) -> Result:
        return self.result


def observed(rig: Rig, *live_nodes: Node) -> Rig:
    """Let a second pass for the dispatcher."""
    rig.dispatcher.observe(live_nodes)
    return rig


async def until(condition: Callable[[], bool]) -> None:
    """Return once `condition` is true."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what the conditions read has no event
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("silence", [TIMEOUT, UNREACHABLE, REFUSED, NO_LINK])
async def test_messages_for_a_silent_node_wait_and_arrive_in_order_when_it_answers(
    silence: Result,
) -> None:
    switch = Switch(silence)
    forward = FakeForward({A: switch})
    async with running(Rig(FakeRegistry({"u": (A,)}), forward)) as rig:
        for number in range(100):
            rig.take(envelope("u", str(number)))
            await turns(2)
        await turns()
        assert rig.settled == []
        asked = len(forward.to(A))
        switch.result = 1
        await rig.all_settled()
    ids = [each for batch in forward.to(A)[asked:] for each in batch]
    assert ids == [str(number) for number in range(100)]
    assert set(rig.outcomes().values()) == {DELIVERED}


async def test_the_users_whose_messages_wait_are_known() -> None:
    """Their clients are asked for from the message on, and all others from what is in hand on."""
    forward = FakeForward({A: answers(TIMEOUT)})
    async with running(Rig(FakeRegistry({"u": (A,), "v": (B,)}), forward)) as rig:
        rig.take(envelope("u", "u"), envelope("v", "v"))
        await until(lambda: set(rig.dispatcher.users_waiting()) == {"u"})
        await until(lambda: "v" in rig.outcomes())
        assert (rig.lanes[0].committable, rig.lanes[0].in_hand_from) == (0, 2)
        rig.registry.gone.add(A)
        rig.dispatcher.observe([])
        await rig.all_settled()
        assert not set(rig.dispatcher.users_waiting())


def gauges() -> dict[str, float]:
    """Give the number of silent gateways by reason, the longest silence and the waiting bytes."""
    [family] = metrics.SILENT_GATEWAYS.collect()
    silent = {each.labels["reason"]: each.value for each in family.samples if each.value}
    seconds, size = metrics.SILENT_SECONDS._value.get(), metrics.WAITING_BYTES._value.get()
    return {**silent, "seconds": seconds, "bytes": size}


async def test_metrics_tell_which_silence_there_is_and_for_how_long() -> None:
    clock = Clock(1_000.0)
    switch = Switch(REFUSED)
    forward = FakeForward({A: answers(TIMEOUT), B: switch})
    registry = FakeRegistry({"u": (A,), "v": (B,)})
    async with running(Rig(registry, forward, clock=clock)) as rig:
        messages = rig.take(envelope("u", "u"), envelope("u", "u2"))
        await until(lambda: list(rig.dispatcher.users_waiting()) == ["u"])
        clock.now += 4.0
        messages += rig.take(envelope("v", "v"))
        for message in messages:
            message.size = 100
        await until(lambda: set(rig.dispatcher.users_waiting()) == {"u", "v"})
        clock.now += 3.0

        def told() -> bool:  # between two trials: a batch under way is not in the queue
            rig.dispatcher.observe([A, B])
            return gauges() == {"timeout": 1, "refused": 1, "seconds": 7, "bytes": 300}

        await until(told)
        switch.result = 1
        registry.gone.add(A)
        clock.now += 10.0
        rig.dispatcher.observe([B])
        await rig.all_settled()
        rig.dispatcher.observe([B])
        assert gauges() == {"seconds": 0, "bytes": 0}


async def test_a_silent_node_holds_up_no_other_node_of_the_user() -> None:
    forward = FakeForward({A: answers(TIMEOUT)})
    async with running(Rig(FakeRegistry({"u": (A, B)}), forward)) as rig:
        for number in range(100):
            rig.take(envelope("u", str(number)))
            await turns(2)
        await until(lambda: len(forward.ids_to(B)) == 100)
        assert forward.ids_to(B) == [str(number) for number in range(100)]
        assert rig.settled == [], "each is on its way to the silent node"
        rig.registry.gone.add(A)
        rig.dispatcher.observe([])
        await rig.all_settled()
    assert set(rig.outcomes().values()) == {DELIVERED}
    assert {message.missed for message in rig.settled} == {1}


async def test_messages_of_a_node_that_is_gone_find_their_user_elsewhere_or_are_offline() -> None:
    forward = FakeForward({A: answers(UNREACHABLE)})
    registry = FakeRegistry({"u": (A,), "v": (A,)})
    async with running(Rig(registry, forward)) as rig:
        rig.take(envelope("u", "u0"), envelope("u", "u1"), envelope("v", "v0"))
        await turns()
        registry.answer({"u": (B,)})
        registry.gone.add(A)
        rig.dispatcher.observe([])
        await rig.all_settled()
    assert forward.ids_to(B) == ["u0", "u1"]
    assert rig.outcomes() == {"u0": DELIVERED, "u1": DELIVERED, "v0": OFFLINE}


async def test_a_user_who_comes_back_elsewhere_gets_what_waits_before_anything_newer() -> None:
    registry = FakeRegistry({"u": (A,)})
    forward = FakeForward({A: answers(TIMEOUT)})
    async with running(Rig(registry, forward)) as rig:
        rig.take(*(envelope("u", str(number)) for number in range(10)))
        await turns()
        assert forward.to(B) == []
        registry.answer({"u": (A, B)})
        rig.take(envelope("u", "10"))
        await until(lambda: len(forward.ids_to(B)) == 11)
        assert forward.ids_to(B) == [str(number) for number in range(11)]


class SecondBatchHeld(FakeForward):
    """Nodes of which B answers its second batch when the test lets it."""

    def __init__(self, answers_by_node: dict[Node, Callable[[Push], Result]]) -> None:
        super().__init__(answers_by_node)
        self.go_on = asyncio.Event()

    async def forward(self, node: Node, pushes: Sequence[Push]) -> Answer:
        if node == B and self.to(B):
            await self.go_on.wait()
        return await super().forward(node, pushes)


async def test_what_has_left_a_flight_goes_past_no_earlier_message_of_the_flight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Nobody has message 0. Message 1 waits at A, and its user is looked up again at once, while
    # message 0 waits for B's answer to message 2, and for the flight's second look-up.
    monkeypatch.setattr(gateways_module, "MAX_BATCH_MESSAGES", 2)
    forward = SecondBatchHeld(
        {A: lambda push: 0 if push.id == "0" else OVERLOADED, B: answers(0)},
    )
    registry = FakeRegistry({"u": (A, B)})
    async with running(Rig(registry, forward)) as rig:
        rig.take(*(envelope("u", str(number)) for number in range(3)))
        await until(lambda: bool(forward.calls))
        registry.answer({"u": (A, B, C)})
        await until(lambda: len(forward.to(A)) > 2)
        for _ in range(3):
            await turns()
            rig.dispatcher.observe([A, B, C])
        forward.go_on.set()
        await until(lambda: len(forward.ids_to(C)) == 3)
    assert forward.ids_to(C) == ["0", "1", "2"]


async def test_a_user_with_no_newer_message_is_looked_up_again_every_second() -> None:
    registry = FakeRegistry({"u": (A,)})
    forward = FakeForward({A: answers(TIMEOUT)})
    async with running(Rig(registry, forward)) as rig:
        rig.take(*(envelope("u", str(number)) for number in range(10)))
        await turns()
        registry.answer({"u": (A, B)})
        rig.dispatcher.observe([])
        await until(lambda: len(forward.ids_to(B)) == 10)
        assert forward.ids_to(B) == [str(number) for number in range(10)]
        assert rig.settled == []
        for _ in range(3):
            rig.dispatcher.observe([])
            await turns()
        assert len(forward.ids_to(B)) == 10, "once each"


async def test_users_of_waiting_messages_are_looked_up_a_few_a_round() -> None:
    most = dispatch_module._WAITING_A_ROUND
    users = [f"u{number}" for number in range(3 * most + 1)]
    registry = FakeRegistry(dict.fromkeys(users, (A,)))
    forward = FakeForward({A: answers(TIMEOUT)})
    async with running(Rig(registry, forward)) as rig:
        rig.take(*(envelope(user, user) for user in users))
        await turns()
        registry.lookups.clear()
        registry.answer(dict.fromkeys(users, (A, B)))
        rig.dispatcher.observe([])
        await until(lambda: len(forward.ids_to(B)) == len(users))
    assert [len(users) for users in registry.lookups[:4]] == [most, most, most, 1]


async def test_a_message_that_waits_expires_with_its_ttl() -> None:
    now_ms = NOW_MS
    forward = FakeForward({A: answers(TIMEOUT)})
    rig = Rig(FakeRegistry({"u": (A,)}), forward, now_ms=lambda: now_ms)
    async with running(rig):
        rig.take(envelope("u", "short", ttl=5), envelope("u", "long", ttl=50))
        await turns()
        now_ms += 10_000
        rig.dispatcher.observe([])
        await until(lambda: bool(rig.settled))
        assert rig.outcomes() == {"short": EXPIRED}


async def test_what_waits_for_a_silent_node_fills_no_partition() -> None:
    forward = FakeForward({A: answers(TIMEOUT)})
    async with running(Rig(FakeRegistry({"u": (A,), "v": (B,)}), forward)) as rig:
        for number in range(3 * progress_module.MAX_MESSAGES // 100):
            rig.take(*(envelope("u", f"{number}-{each}") for each in range(100)))
            await turns(5)
        await turns()
        assert not rig.lanes[0].full
        assert rig.lanes[0].committable == 0
        rig.take(envelope("v", "v"))
        await until(lambda: bool(rig.settled))
        assert rig.outcomes() == {"v": DELIVERED}


async def test_more_than_may_wait_for_a_node_fails_and_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gateways_module, "MAX_WAITING_MESSAGES", 10)
    forward = FakeForward({A: answers(TIMEOUT)})
    async with running(Rig(FakeRegistry({"u": (A,), "w": (A, B)}), forward)) as rig:
        for number in range(15):
            rig.take(envelope("u", str(number)))
            await turns(20)
        rig.take(envelope("w", "elsewhere too"))
        await until(lambda: len(rig.settled) == 6)
    failed = outcome(Kind.FAILED, "unreachable")
    assert rig.outcomes() == {
        **{str(number): failed for number in range(10, 15)},
        "elsewhere too": DELIVERED,
    }
    assert metrics.WAITING_OVERFLOWS.labels("unreachable")._value.get() >= 6


async def test_what_is_too_far_back_in_its_partition_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "MAX_WAITING_SPAN", 100)
    forward = FakeForward({A: answers(TIMEOUT)})
    async with running(Rig(FakeRegistry({"u": (A,), "v": (B,)}), forward)) as rig:
        rig.take(envelope("u", "old"))
        await turns()
        rig.take(*(envelope("v", str(number)) for number in range(99)))
        await until(lambda: len(rig.settled) == 99)
        assert rig.lanes[0].full
        # A message of the batch that is under way has to wait for the next second.
        await until(lambda: len(observed(rig).settled) == 100)
        assert not rig.lanes[0].full
    assert rig.outcomes()["old"] == outcome(Kind.FAILED, "unreachable")


async def test_a_node_that_is_lost_from_the_start_holds_up_nobody() -> None:
    registry = FakeRegistry({"u": (A, B)})
    registry.lost_nodes.add(A)
    forward = FakeForward()
    forward.held[A] = asyncio.Event()  # it never answers in this test
    async with running(Rig(registry, forward)) as rig:
        for number in range(20):
            rig.take(envelope("u", str(number)))
            await turns(5)
        await until(lambda: len(forward.ids_to(B)) == 20)
        forward.held[A].set()
        await rig.all_settled()


@pytest.mark.parametrize("refusal", [REFUSED, NO_LINK])
async def test_while_every_live_node_refuses_the_secret_or_links_there_is_no_room(
    refusal: Result,
) -> None:
    switch = Switch(refusal)
    forward = FakeForward({A: switch, B: answers(1)})
    registry = FakeRegistry({"u": (A,)})
    async with running(Rig(registry, forward)) as rig:
        rig.dispatcher.observe([A])
        await turns()
        rig.dispatcher.observe([A])
        assert not rig.dispatcher.accepted
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(rig.dispatcher.room(), 0.01)
        rig.dispatcher.observe([A, B])
        assert rig.dispatcher.accepted, "one node takes messages"
        rig.dispatcher.observe([A])
        assert not rig.dispatcher.accepted
        switch.result = 1
        await until(lambda: observed(rig, A).dispatcher.accepted)
        await rig.dispatcher.room()


class Roomy(FakeForward):
    """A node whose connections have room for so many messages of a user, as the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.room: dict[str, int] = {}  # by user
        self.arrived: list[str] = []

    async def forward(self, node: Node, pushes: Sequence[Push]) -> Answer:
        self.calls.append((node, [push.id for push in pushes]))
        await asyncio.sleep(0)
        results: list[Result] = []
        refused: set[str] = set()
        for push in pushes:
            room = self.room.get(push.user, 1_000_000)
            if room and push.user not in refused:
                self.room[push.user] = room - 1
                self.arrived.append(push.id)
                results.append(1)
            else:
                refused.add(push.user)
                results.append(OVERLOADED)
        return results


async def test_a_burst_for_one_user_arrives_whole_and_in_order_as_room_appears() -> None:
    forward = Roomy()
    forward.room["u"] = 300
    async with running(Rig(FakeRegistry({"u": (A,), "v": (A,)}), forward)) as rig:
        rig.take(*(envelope("u", str(number)) for number in range(1_000)))
        await until(lambda: len(forward.arrived) == 300)
        rig.take(envelope("v", "v"))
        await until(lambda: "v" in rig.outcomes())
        assert not rig.lanes[0].full
        while len(rig.settled) < 1_001:
            forward.room["u"] += 77
            await asyncio.sleep(0.002)
    forward.arrived.remove("v")
    assert forward.arrived == [str(number) for number in range(1_000)]
    assert set(rig.outcomes().values()) == {DELIVERED}


async def test_a_message_waits_for_room_as_long_as_its_patience_or_its_ttl() -> None:
    now, now_ms = 0.0, NOW_MS
    forward = Roomy()
    forward.room["u"] = 0
    registry = FakeRegistry({"u": (A,)})
    rig = Rig(registry, forward, clock=lambda: now, now_ms=lambda: now_ms, patience_seconds=10)
    async with running(rig):
        rig.take(envelope("u", "0"), envelope("u", "1", ttl=30), envelope("u", "2", ttl=0))
        await turns()
        for seconds in (5, 11, 31):
            now, now_ms = float(seconds), NOW_MS + seconds * 1000
            rig.dispatcher.observe([A])
            await turns()
            if seconds == 5:
                assert rig.outcomes() == {}
            elif seconds == 11:
                failed = outcome(Kind.FAILED, "overloaded")
                assert rig.outcomes() == {"0": failed, "2": failed}
        await rig.all_settled()
    assert rig.outcomes()["1"] == EXPIRED


async def test_a_line_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "MAX_MESSAGES", 10)
    forward = Roomy()
    forward.room["u"] = 0
    async with running(Rig(FakeRegistry({"u": (A,)}), forward)) as rig:
        rig.take(envelope("u", "0"))
        await turns()
        rig.take(*(envelope("u", str(number)) for number in range(1, 15)))
        await until(lambda: len(rig.settled) == 5)
        assert set(rig.outcomes().values()) == {outcome(Kind.FAILED, "overloaded")}
        forward.room["u"] = 100
        await rig.all_settled()
    assert forward.arrived == [str(number) for number in range(10)]


async def test_a_device_without_room_holds_up_no_other_device() -> None:
    taken: dict[str, int] = {}
    slow_room = 3

    def two_devices(push: Push) -> Result:
        number = int(push.id)
        taken.setdefault(push.id, 1)
        if number < slow_room:
            taken[push.id] = 2
            return 2
        return Partly(1)

    forward = FakeForward({A: two_devices})
    async with running(Rig(FakeRegistry({"u": (A,)}), forward)) as rig:
        for number in range(200):
            rig.take(envelope("u", str(number)))
            await turns(3)
        await until(lambda: len(taken) == 200)
        assert list(taken) == [str(number) for number in range(200)]
        assert len(rig.settled) == 3
        slow_room = 200
        await rig.all_settled()
    assert {message.took for message in rig.settled} == {2}
    assert {message.missed for message in rig.settled} == {0}


async def test_a_line_longer_than_a_batch_reaches_the_device_with_room_whole() -> None:
    now = 0.0
    taken: dict[str, None] = {}

    def one_takes(push: Push) -> Result:
        taken[push.id] = None
        return Partly(1)

    forward = FakeForward({A: one_takes})
    rig = Rig(FakeRegistry({"u": (A,)}), forward, clock=lambda: now)
    async with running(rig):
        rig.take(*(envelope("u", str(number)) for number in range(2_500)))
        await turns()
        for second in range(11, 20):
            now = float(second)
            rig.dispatcher.observe([A])
            await turns(200)
        await rig.all_settled()
    assert list(taken) == [str(number) for number in range(2_500)]
    assert set(rig.outcomes().values()) == {DELIVERED}
    assert {message.missed for message in rig.settled} == {1}


async def test_what_a_device_never_took_is_delivered_to_the_other_and_missed() -> None:
    now = 0.0
    forward = FakeForward({A: answers(Partly(1))})
    rig = Rig(FakeRegistry({"u": (A,)}), forward, clock=lambda: now)
    async with running(rig):
        rig.take(envelope("u", "0"))
        await turns()
        now = 11.0
        rig.dispatcher.observe([A])
        await rig.all_settled()
    assert rig.outcomes() == {"0": DELIVERED}
    assert [(m.took, m.missed) for m in rig.settled] == [(1, 1)]


@pytest.mark.parametrize(("result", "taken_at"), [(1, {A, B}), (Partly(1), {A, B}), (0, {A})])
async def test_the_nodes_that_took_a_message_are_noted(result: Result, taken_at: set[Node]) -> None:
    now = 0.0
    forward = FakeForward({A: answers(1), B: answers(result)})
    rig = Rig(FakeRegistry({"u": (A, B)}), forward, clock=lambda: now)
    async with running(rig):
        rig.take(envelope("u", "0"))
        await turns()
        now = 11.0
        rig.dispatcher.observe([A, B])
        await rig.all_settled()
    [message] = rig.settled
    assert len(message.taken_at) == len(taken_at)
    assert set(message.taken_at) == taken_at


async def test_what_one_device_took_is_not_replaced_and_not_sent_again_without_payload() -> None:
    sent: list[bytes] = []

    def partly(push: Push) -> Result:
        sent.append(push.data)
        return Partly(1)

    forward = FakeForward({A: partly})
    async with running(Rig(FakeRegistry({"u": (A,)}), forward)) as rig:
        rig.take(envelope("u", "0", collapse_key="k"))
        await turns()
        rig.take(envelope("u", "1", collapse_key="k"))
        await until(lambda: len(rig.settled) == 1)
        assert rig.outcomes() == {"0": DELIVERED}
        assert b"" not in sent


async def test_what_is_replaced_during_an_attempt_that_nobody_answers_ends_once() -> None:
    # A has no room, B takes its time. The message is replaced while A is asked again, in vain.
    switch = Switch(OVERLOADED)
    forward = FakeForward({A: switch})
    forward.held[B] = asyncio.Event()
    async with running(Rig(FakeRegistry({"u": (A, B)}), forward)) as rig:
        rig.take(envelope("u", "0", collapse_key="k"))
        await until(lambda: len(forward.to(A)) > 1)
        forward.held[A] = asyncio.Event()
        asked = len(forward.to(A))
        await until(lambda: len(forward.to(A)) > asked)
        switch.result = TIMEOUT
        rig.take(envelope("u", "1", collapse_key="k"))
        forward.held[A].set()
        await turns()
        forward.held[B].set()
        await until(lambda: "0" in rig.outcomes())
        switch.result = 1
        await rig.all_settled()
        assert [message.pending for message in rig.settled] == [0, 0]
        assert not rig.dispatcher._gateways._gateways[A].queue
    assert rig.outcomes() == {"0": DELIVERED, "1": DELIVERED}


class Troubled(FakeForward):
    """Nodes that are silent at times, or have no room, and a batch may arrive without an answer."""

    def __init__(self, registry: Restless) -> None:
        super().__init__()
        self.registry = registry
        self.trouble = 0.3
        self.busy: Counter[Node] = Counter()  # batches under way
        self.behind = 0  # batches that went behind another to the same node
        self.arrived: dict[tuple[str, Node], list[int]] = {}
        self.taken: set[int] = set()

    async def forward(self, node: Node, pushes: Sequence[Push]) -> Answer:
        draw = self.registry.draw
        self.behind += self.busy[node]
        self.busy[node] += 1
        for _ in range(draw.randrange(8)):
            await asyncio.sleep(0)
        self.busy[node] -= 1
        silent = draw.random() < self.trouble
        if silent and draw.random() < 0.5:
            return draw.choice([TIMEOUT, UNREACHABLE, REFUSED])
        results = self._take(node, pushes)
        return TIMEOUT if silent else results

    def _take(self, node: Node, pushes: Sequence[Push]) -> list[Result]:
        draw = self.registry.draw
        refused: set[str] = set()
        results: list[Result] = []
        for push in pushes:
            arrived = self.arrived.setdefault((push.user, node), [])
            if node not in self.registry.where[push.user]:
                results.append(0)
            elif int(push.id) in arrived:
                results.append(1)  # a repeat
            elif push.user in refused or draw.random() < self.trouble / 3:
                refused.add(push.user)
                results.append(OVERLOADED)
            else:
                assert push.data, "a message without its payload"
                arrived.append(int(push.id))
                self.taken.add(int(push.id))
                results.append(1)
        return results


@pytest.mark.parametrize("seed", range(60))
async def test_whatever_happens_the_order_holds_and_outcomes_are_true(seed: int) -> None:
    draw = random.Random(seed)
    await survive_trouble(draw)


@pytest.mark.parametrize("first_seed", range(60, 120, 10))
async def test_whatever_happens_to_two_batches_in_flight_the_order_holds(
    first_seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The node takes the two batches in any order, and answers them in any order, or one, or none:
    # more than a link allows.
    behind = 0
    for seed in range(first_seed, first_seed + 10):
        draw = random.Random(seed)
        monkeypatch.setattr(gateways_module, "MAX_BATCH_MESSAGES", draw.choice([2, 3, 5]))
        monkeypatch.setattr(gateways_module, "_BEHIND_MESSAGES", draw.choice([1, 2]))
        behind += await survive_trouble(draw, users="rstuvwxyz", most=40)
    assert behind > 0, "none went behind another"


def unsettled_users_before(taken: Sequence[Message], rig: Rig) -> set[str]:
    """Give the users of messages without an outcome in front of what is in hand."""
    settled = set(rig.settled)
    return {
        message.push.user
        for message in taken
        if message not in settled and message.offset < (message.progress.in_hand_from or 0)
    }


async def survive_trouble(draw: random.Random, *, users: str = "uvw", most: int = 12) -> int:
    """Let everything go wrong for a while; give how many batches went behind another.

    At most so many messages come at once.
    """
    registry = Restless(draw, places=[*ONE_NODE, (A, B), (B, C), (A, B, C)])
    forward = Troubled(registry)
    weights = draw.choice([(1,), (9, 1)])
    batch_messages = draw.choice([2, 3, 10, 100])
    rig = Rig(registry, forward, weights=weights, batch_messages=batch_messages)
    async with running(rig):
        number = 0
        taken: list[Message] = []
        for _ in range(40):
            for lane in range(len(rig.lanes)):
                ids = range(number, number + draw.randrange(most))
                number = ids.stop
                taken += rig.take(
                    *(
                        envelope(
                            f"{lane}-{draw.choice(users)}",
                            str(each),
                            collapse_key=draw.choice([None, None, None, "k"]),
                        )
                        for each in ids
                    ),
                    lane=lane,
                )
            await turns(draw.randrange(12))
            assert unsettled_users_before(taken, rig) <= set(rig.dispatcher.users_waiting())
            if draw.random() < 0.2:
                registry.gone = {draw.choice([A, B, C])} if draw.random() < 0.3 else set()
                rig.dispatcher.observe([])
        forward.trouble, registry.gone = 0.0, set()
        # A user who is unknown at a second look-up is looked up again in the next second.
        await until(lambda: len(observed(rig).settled) == number)
        assert not rig.dispatcher._waiting
        assert not rig.dispatcher._flights
        assert not rig.dispatcher._replaceable
        assert not rig.dispatcher._gateways._replaceable
        assert not any(g.queue for g in rig.dispatcher._gateways._gateways.values())
    assert len(rig.settled) == number
    for (user, node), ids_in_order in forward.arrived.items():
        assert ids_in_order == sorted(ids_in_order), (user, node)
    for message in rig.settled:
        if outcome_of(message) == DELIVERED:
            assert int(message.push.id) in forward.taken
    for progress in rig.lanes:
        assert len(progress) == 0
        assert not progress.full
    return forward.behind
