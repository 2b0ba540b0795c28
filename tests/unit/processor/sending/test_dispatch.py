"""Look up → each node's queue → answers → outcome, over a registry and a forwarder by hand."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from processor.outcomes.outcome import (
    DELIVERED,
    EXPIRED,
    OFFLINE,
    REPLACED,
    Kind,
    Outcome,
    outcome,
    outcome_of,
)
from processor.reading.kafka import TopicPartition
from processor.reading.message import Message
from processor.reading.progress import Progress
from processor.sending.dispatch import Dispatcher
from processor.sending.forward import NO_DEVICE, Failure, Result
from processor.sending.whereabouts import Whereabouts
from registry.directory import Lease, Node, RegistryUnavailable
from registry.message import Envelope, Push

pytestmark = pytest.mark.anyio

A = Node("gw-a", "e1", "10.0.0.1:8081")
B = Node("gw-b", "e2", "10.0.0.2:8081")
C = Node("gw-c", "e3", "10.0.0.3:8081")
NOW_MS = 1_000_000


Answer = dict[str, tuple[Node, ...] | None]


class FakeRegistry:
    """Who is where, look-up by look-up: the last answer stays."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers) or [{}]
        self.failures = 0
        self.lookups: list[list[str]] = []

    def answer(self, answer: Answer) -> None:
        """Give this answer from now on."""
        self._answers = [answer]

    async def lookup(self, users: Sequence[str]) -> list[tuple[Node, ...] | None]:
        if self.failures:
            self.failures -= 1
            raise RegistryUnavailable("as the test wants it")
        self.lookups.append(list(users))
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return [answer.get(user, ()) for user in users]

    async def heartbeat(self, node: Node, *, claim: bool = False) -> Lease:
        return Lease.HELD

    async def retire(self, node: Node) -> None: ...

    async def write(self, node: Node, here: Sequence[str], gone: Sequence[str]) -> None: ...

    async def nodes(self) -> list[Node]:
        return []

    def present(self, node: Node) -> bool:
        return True

    def lost(self, node: Node) -> bool:
        return False

    async def refresh(self) -> None:
        if self.failures:
            self.failures -= 1
            raise RegistryUnavailable("as the test wants it")

    async def ping(self) -> None: ...

    async def close(self) -> None: ...


class FakeForward:
    """Answers by node; a node that is not named takes everything."""

    def __init__(self, answers: dict[Node, Callable[[Push], Result]] | None = None) -> None:
        self._answers = answers or {}
        self.calls: list[tuple[Node, list[str]]] = []
        self.held: dict[Node, asyncio.Event] = {}  # nodes that answer once it is set
        self.under_way = 0
        self.most_under_way = 0

    async def forward(self, node: Node, pushes: Sequence[Push]) -> list[Result]:
        self.calls.append((node, [push.id for push in pushes]))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(0)
        if node in self.held:
            await self.held[node].wait()
        self.under_way -= 1
        answer = self._answers.get(node, answers(1))
        return [answer(push) for push in pushes]

    def to(self, node: Node) -> list[list[str]]:
        return [ids for called, ids in self.calls if called == node]

    def ids_to(self, node: Node) -> list[str]:
        return [each for ids in self.to(node) for each in ids]


def envelope(
    user: str,
    message_id: str = "m",
    *,
    ttl: int | None = None,
    age: int = 0,
    collapse_key: str | None = None,
    device: str | None = None,
) -> Envelope:
    push = Push(user, b"x", message_id, device=device)
    return Envelope(push, NOW_MS - age * 1000, ttl, collapse_key=collapse_key)


class Rig:
    """A dispatcher that runs, fed from one partition a lane."""

    def __init__(
        self,
        registry: FakeRegistry,
        forward: FakeForward,
        *,
        now_ms: Callable[[], int] = lambda: NOW_MS,
        weights: Sequence[int] = (1,),
        batch_messages: int = 2_000,
        cache_seconds: float = 0.0,
    ) -> None:
        self.whereabouts = Whereabouts(registry, cache_seconds=cache_seconds)
        self.dispatcher = Dispatcher(
            self.whereabouts,
            forward,
            self._settled,
            spawn=asyncio.create_task,
            weights=weights,
            batch_messages=batch_messages,
            now_ms=now_ms,
        )
        self.lanes = [
            Progress(TopicPartition(f"t{lane}", 0), lane=lane) for lane in range(len(weights))
        ]
        self.settled: list[Message] = []
        self._taken = 0
        self._news = asyncio.Event()

    def take(self, *envelopes: Envelope, lane: int = 0) -> list[Message]:
        messages = []
        for each in envelopes:
            self.lanes[lane].begin(self._taken, size=1, timestamp_ms=NOW_MS)
            messages.append(Message(each, self.lanes[lane], self._taken))
            self._taken += 1
        self.dispatcher.take(messages)
        return messages

    async def all_settled(self) -> None:
        async with asyncio.timeout(10):
            while len(self.settled) < self._taken:
                self._news.clear()
                await self._news.wait()

    def queued_for(self, node: Node) -> int:
        """Give the places in a node's queue, those of messages that are not sent any more too."""
        return sum(map(len, self.dispatcher._gateways._gateways[node].queue._queues))

    def outcomes(self) -> dict[str, Outcome]:
        return {message.push.id: outcome_of(message) for message in self.settled}

    def _settled(self, messages: Sequence[Message]) -> None:
        for message in messages:
            assert message not in self.settled, "one outcome each"
            message.progress.settle(message.offset, size=1)
        self.settled += messages
        self._news.set()


@asynccontextmanager
async def running(rig: Rig) -> AsyncIterator[Rig]:
    run = asyncio.create_task(rig.dispatcher.run())
    try:
        yield rig
    finally:
        run.cancel()
        await asyncio.wait((run,))
        await rig.whereabouts.close()


async def dispatch(
    registry: FakeRegistry,
    forward: FakeForward,
    *envelopes: Envelope,
    now_ms: Callable[[], int] = lambda: NOW_MS,
) -> list[Outcome]:
    async with running(Rig(registry, forward, now_ms=now_ms)) as rig:
        messages = rig.take(*envelopes)
        await rig.all_settled()
    return [outcome_of(message) for message in messages]


async def turns(count: int = 50) -> None:
    """Let everything happen that needs no time."""
    for _ in range(count):
        await asyncio.sleep(0)


def zero(_: Push) -> Result:
    return 0


def answers(result: Result) -> Callable[[Push], Result]:
    return lambda _: result


async def test_no_messages_are_no_work() -> None:
    registry, forward = FakeRegistry(), FakeForward()
    assert await dispatch(registry, forward) == []
    assert (registry.lookups, forward.calls) == ([], [])


async def test_a_message_goes_to_the_node_of_its_user() -> None:
    forward = FakeForward()
    assert await dispatch(FakeRegistry({"u": (A,)}), forward, envelope("u", "m1")) == [DELIVERED]
    assert forward.calls == [(A, ["m1"])]


async def test_each_node_gets_one_batch_in_the_order_of_each_users_messages() -> None:
    registry = FakeRegistry({"u": (A,), "v": (B,), "w": (A,)})
    forward = FakeForward()
    batch = [envelope(user, f"m{number}") for number, user in enumerate("uvwuvwu")]
    assert await dispatch(registry, forward, *batch) == [DELIVERED] * 7
    assert forward.to(A) == [["m0", "m3", "m6", "m2", "m5"]]  # each user's in order
    assert forward.to(B) == [["m1", "m4"]]


async def test_a_user_is_looked_up_once_for_all_their_messages() -> None:
    registry = FakeRegistry({"u": (A,), "v": (A,)})
    await dispatch(registry, FakeForward(), *(envelope(user) for user in "uvuvuu"))
    assert registry.lookups == [["u", "v"]]


async def test_nodes_are_forwarded_to_at_the_same_time() -> None:
    forward = FakeForward()
    await dispatch(FakeRegistry({"u": (A,), "v": (B,), "w": (C,)}), forward, *map(envelope, "uvw"))
    assert forward.most_under_way == 3


async def test_a_user_on_several_nodes_gets_the_message_on_each() -> None:
    forward = FakeForward()
    assert await dispatch(FakeRegistry({"u": (A, B)}), forward, envelope("u", "m")) == [DELIVERED]
    assert sorted(forward.calls, key=lambda call: call[0].name) == [(A, ["m"]), (B, ["m"])]


async def test_a_user_whom_no_node_holds_is_offline_and_asked_for_once() -> None:
    registry, forward = FakeRegistry(), FakeForward()
    assert await dispatch(registry, forward, envelope("u")) == [OFFLINE]
    assert (len(registry.lookups), forward.calls) == (1, [])


async def test_a_stale_entry_costs_one_forward_and_one_fresh_look() -> None:
    registry = FakeRegistry({"u": (A,)}, {"u": (B,)})
    forward = FakeForward({A: zero})
    assert await dispatch(registry, forward, envelope("u", "m")) == [DELIVERED]
    assert forward.calls == [(A, ["m"]), (B, ["m"])]
    assert len(registry.lookups) == 2


async def test_after_the_fresh_look_a_user_who_is_nowhere_is_offline() -> None:
    elsewhere: list[Answer] = [{}, {"u": (A,)}, {"u": (B,)}]
    for fresh in elsewhere:
        registry, forward = FakeRegistry({"u": (A,)}, fresh), FakeForward({A: zero, B: zero})
        assert await dispatch(registry, forward, envelope("u")) == [OFFLINE]
        assert len(registry.lookups) == 2
        assert len(forward.to(A)) == 1


async def test_only_nodes_that_were_not_tried_get_the_message_again() -> None:
    registry = FakeRegistry({"u": (A, B)}, {"u": (A, B, C)})
    forward = FakeForward({A: zero})
    assert await dispatch(registry, forward, envelope("u", "m")) == [DELIVERED]
    assert (forward.to(A), forward.to(B), forward.to(C)) == ([["m"]], [["m"]], [["m"]])


async def test_another_start_of_a_node_is_a_node_that_was_not_tried() -> None:
    again = Node(A.name, "e9", A.address)
    forward = FakeForward({A: zero})
    registry = FakeRegistry({"u": (A,)}, {"u": (again,)})
    assert await dispatch(registry, forward, envelope("u")) == [DELIVERED]


async def test_only_stale_users_are_looked_up_afresh() -> None:
    registry = FakeRegistry({"u": (A,), "v": (B,), "w": ()}, {"u": (C,)})
    outcomes = await dispatch(registry, FakeForward({A: zero}), *map(envelope, "uvw"))
    assert outcomes == [DELIVERED, DELIVERED, OFFLINE]
    assert registry.lookups[1:] == [["u"]]


async def test_the_messages_of_a_user_who_moved_stay_in_order() -> None:
    forward = FakeForward({A: zero})
    registry = FakeRegistry({"u": (A,)}, {"u": (B,)})
    await dispatch(registry, forward, *(envelope("u", f"m{number}") for number in range(5)))
    assert forward.to(B) == [["m0", "m1", "m2", "m3", "m4"]]


@pytest.mark.parametrize("reason", ["timeout", "unreachable", "status-503", "overloaded"])
async def test_an_error_is_not_offline(reason: str) -> None:
    registry = FakeRegistry({"u": (A,)})
    outcomes = await dispatch(registry, FakeForward({A: answers(Failure(reason))}), envelope("u"))
    assert outcomes == [outcome(Kind.FAILED, reason)]


async def test_an_error_on_one_node_beside_an_absence_on_another_is_not_offline() -> None:
    forward = FakeForward({A: answers(Failure("timeout")), B: zero})
    outcomes = await dispatch(FakeRegistry({"u": (A, B)}), forward, envelope("u"))
    assert outcomes == [outcome(Kind.FAILED, "timeout")]


async def test_one_node_that_took_it_is_enough() -> None:
    forward = FakeForward({A: answers(Failure("timeout")), B: zero})
    outcomes = await dispatch(FakeRegistry({"u": (A, B, C)}), forward, envelope("u"))
    assert outcomes == [DELIVERED]


async def test_after_an_error_a_node_that_the_user_moved_to_may_take_it() -> None:
    registry = FakeRegistry({"u": (A,)}, {"u": (B,)})
    forward = FakeForward({A: answers(Failure("unreachable"))})
    assert await dispatch(registry, forward, envelope("u")) == [DELIVERED]


async def test_a_node_that_failed_is_not_tried_again() -> None:
    forward = FakeForward({A: answers(Failure("timeout"))})
    await dispatch(FakeRegistry({"u": (A,)}), forward, envelope("u"))
    assert len(forward.to(A)) == 1


async def test_a_device_that_is_nowhere_is_offline() -> None:
    forward = FakeForward({A: answers(NO_DEVICE), B: answers(NO_DEVICE)})
    assert await dispatch(FakeRegistry({"u": (A, B)}), forward, envelope("u")) == [OFFLINE]


async def test_a_device_that_moved_is_found() -> None:
    registry = FakeRegistry({"u": (A,)}, {"u": (A, B)})
    forward = FakeForward({A: answers(NO_DEVICE)})
    assert await dispatch(registry, forward, envelope("u")) == [DELIVERED]
    assert len(forward.to(A)) == 1


async def test_an_absent_device_beside_an_error_is_not_offline() -> None:
    forward = FakeForward({A: answers(NO_DEVICE), B: answers(Failure("timeout"))})
    outcomes = await dispatch(FakeRegistry({"u": (A, B)}), forward, envelope("u"))
    assert outcomes == [outcome(Kind.FAILED, "timeout")]


async def test_each_message_has_its_own_result() -> None:
    def by_id(push: Push) -> Result:
        found: dict[str, Result] = {"ok": 2, "gone": 0, "big": Failure("too-large")}
        return found[push.id]

    forward = FakeForward({A: by_id})
    batch = [envelope(user, user) for user in ("ok", "gone", "big")]
    registry = FakeRegistry({"ok": (A,), "gone": (A,), "big": (A,)})
    outcomes = await dispatch(registry, forward, *batch)
    assert outcomes == [DELIVERED, OFFLINE, outcome(Kind.FAILED, "too-large")]


async def test_a_registry_that_does_not_answer_is_waited_for() -> None:
    registry, forward = FakeRegistry({"u": (A,)}), FakeForward()
    registry.failures = 3
    assert await dispatch(registry, forward, envelope("u", "m")) == [DELIVERED]
    assert forward.calls == [(A, ["m"])]


async def test_an_outage_between_the_rounds_calls_nobody_offline() -> None:
    registry = FakeRegistry({"u": (A,)}, {"u": (B,)})

    def fail_once(_: Push) -> Result:
        registry.failures = 2
        return 0

    assert await dispatch(registry, FakeForward({A: fail_once}), envelope("u")) == [DELIVERED]


async def test_waiting_for_the_registry_can_be_cancelled() -> None:
    registry = FakeRegistry()
    registry.failures = 1_000_000
    async with running(Rig(registry, FakeForward())) as rig:
        rig.take(envelope("u"))
        await turns()
        began = time.monotonic()
    assert time.monotonic() - began < 1.0
    assert rig.settled == []


async def test_an_expired_message_is_neither_looked_up_nor_forwarded() -> None:
    registry, forward = FakeRegistry({"u": (A,), "v": (A,)}), FakeForward()
    batch = [envelope("u", "old", ttl=5, age=6), envelope("v", "new", ttl=5, age=5)]
    assert await dispatch(registry, forward, *batch) == [EXPIRED, DELIVERED]
    assert registry.lookups == [["v"]]
    assert forward.calls == [(A, ["new"])]


async def test_a_ttl_of_zero_is_for_whoever_is_connected_now() -> None:
    registry = FakeRegistry({"u": (A,)})
    batch = [envelope("u", ttl=0, age=86_400), envelope("v", ttl=0, age=86_400)]
    assert await dispatch(registry, FakeForward(), *batch) == [DELIVERED, OFFLINE]


async def test_a_message_that_expires_while_the_registry_is_waited_for_is_not_forwarded() -> None:
    clock = [NOW_MS]
    forward = FakeForward()

    class Slow(FakeRegistry):
        async def lookup(self, users: Sequence[str]) -> list[tuple[Node, ...] | None]:
            clock[0] += 10_000  # ten seconds of outage
            return await super().lookup(users)

    registry = Slow({"u": (A,)})
    registry.failures = 1
    batch = [envelope("u", "short", ttl=5), envelope("u", "long", ttl=60)]
    outcomes = await dispatch(registry, forward, *batch, now_ms=lambda: clock[0])
    assert outcomes == [EXPIRED, DELIVERED]
    assert forward.calls == [(A, ["long"])]


async def test_a_user_whom_nobody_knows_about_is_waited_for_and_others_go_on() -> None:
    registry = FakeRegistry({"u": None, "v": (B,)}, {"u": None}, {"u": (A,)})
    forward = FakeForward()
    async with running(Rig(registry, forward)) as rig:
        rig.take(envelope("u", "m1"), envelope("v", "m2"))
        await turns()
        assert rig.outcomes() == {"m2": DELIVERED}
        rig.take(envelope("u", "m3"))
        await rig.all_settled()
    assert forward.to(A) == [["m1"], ["m3"]]


async def test_who_turns_out_to_be_gone_after_all_is_offline() -> None:
    assert await dispatch(
        FakeRegistry({"u": None}, {"u": None}, {"u": ()}), FakeForward(), envelope("u")
    ) == [OFFLINE]


async def test_while_the_registry_is_away_those_found_before_get_theirs_and_others_wait() -> None:
    registry = FakeRegistry({"u": (A,), "v": (B,)})
    forward = FakeForward()
    async with running(Rig(registry, forward)) as rig:
        rig.take(envelope("u", "m1"))
        await rig.all_settled()
        registry.failures = 1_000_000
        rig.take(envelope("u", "m2"), envelope("v", "m3"))
        await turns()
        assert rig.outcomes() == {"m1": DELIVERED, "m2": DELIVERED}
        registry.failures = 0
        await rig.all_settled()
    assert rig.outcomes()["m3"] == DELIVERED
    assert forward.to(B) == [["m3"]]


async def test_while_the_registry_is_away_a_refusal_makes_nobody_offline() -> None:
    registry = FakeRegistry({"u": (A,)}, {"u": (B,)})
    gone: list[int] = [1]
    forward = FakeForward({A: lambda _: gone[0]})
    async with running(Rig(registry, forward)) as rig:
        rig.take(envelope("u", "m1"))
        await rig.all_settled()
        registry.failures, gone[0] = 1_000_000, 0
        rig.take(envelope("u", "m2"))
        await turns()
        assert len(rig.settled) == 1
        registry.failures = 0
        await rig.all_settled()
    assert rig.outcomes()["m2"] == DELIVERED
    assert forward.to(B) == [["m2"]]


async def test_what_was_looked_up_lately_is_not_looked_up_again_until_a_node_refuses() -> None:
    registry = FakeRegistry({"u": (A,)}, {"u": (B,)})
    here = [1]
    forward = FakeForward({A: lambda _: here[0]})
    async with running(Rig(registry, forward, cache_seconds=60)) as rig:
        for number in range(3):
            rig.take(envelope("u", f"m{number}"))
            await rig.all_settled()
        assert registry.lookups == [["u"]]
        here[0] = 0
        rig.take(envelope("u", "moved"))
        await rig.all_settled()
    assert registry.lookups == [["u"], ["u"]]
    assert forward.to(B) == [["moved"]]


async def test_one_slow_gateway_holds_up_nobody_elses_messages() -> None:
    forward = FakeForward()
    forward.held[A] = asyncio.Event()
    async with running(Rig(FakeRegistry({"u": (A,), "v": (B,)}), forward)) as rig:
        for number in range(5):
            rig.take(envelope("u", f"u{number}"), envelope("v", f"v{number}"))
            await turns()
        assert rig.outcomes() == {f"v{number}": DELIVERED for number in range(5)}
        forward.held[A].set()
        await rig.all_settled()
    assert [each for ids in forward.to(A) for each in ids] == [f"u{number}" for number in range(5)]


async def test_no_message_passes_an_earlier_one_of_its_user_that_is_looked_for_again() -> None:
    # The first goes to A, which takes its time and does not have the user; the user is on B now.
    forward = FakeForward({A: zero})
    forward.held[A] = asyncio.Event()
    registry = FakeRegistry({"u": (A,)}, {"u": (B,)})
    async with running(Rig(registry, forward)) as rig:
        rig.take(envelope("u", "m1"))
        await turns()
        rig.take(envelope("u", "m2"), envelope("u", "m3"))
        await turns()
        assert forward.to(B) == []
        forward.held[A].set()
        await rig.all_settled()
    assert [each for ids in forward.to(B) for each in ids] == ["m1", "m2", "m3"]


async def test_the_order_holds_where_a_users_messages_do_not_fit_one_batch() -> None:
    forward = FakeForward()
    forward.held[A] = asyncio.Event()
    async with running(Rig(FakeRegistry({"u": (A,)}), forward, batch_messages=3)) as rig:
        rig.take(*(envelope("u", f"m{number}") for number in range(8)))
        await turns()
        rig.take(envelope("u", "m8"))
        await turns()
        forward.held[A].set()
        await rig.all_settled()
    assert [each for ids in forward.to(A) for each in ids] == [f"m{number}" for number in range(9)]


async def test_what_waits_in_a_gateways_queue_goes_together() -> None:
    forward = FakeForward()
    forward.held[A] = asyncio.Event()
    where: Answer = {f"u{number}": (A,) for number in range(5)}
    async with running(Rig(FakeRegistry(where), forward)) as rig:
        for user in where:
            rig.take(envelope(user, user))
            await turns()
        forward.held[A].set()
        await rig.all_settled()
    assert forward.to(A) == [["u0"], ["u1", "u2", "u3", "u4"]]


async def test_a_newer_message_replaces_an_older_one_that_is_not_under_way() -> None:
    forward = FakeForward()
    forward.held[A] = asyncio.Event()
    async with running(Rig(FakeRegistry({"u": (A,), "v": (A,)}), forward)) as rig:
        rig.take(envelope("u", "under-way", collapse_key="score"))
        await turns()
        rig.take(
            envelope("u", "1", collapse_key="score"),
            envelope("u", "kept"),
            envelope("u", "other-key", collapse_key="news"),
            envelope("v", "other-user", collapse_key="score"),
            envelope("u", "2", collapse_key="score"),
        )
        rig.take(envelope("u", "3", collapse_key="score"))
        assert rig.outcomes() == {"1": REPLACED, "2": REPLACED}
        forward.held[A].set()
        await rig.all_settled()
    sent = [each for ids in forward.to(A) for each in ids]
    assert [each for each in sent if each != "other-user"] == [
        "under-way", "kept", "other-key", "3"
    ]  # fmt: skip
    assert rig.outcomes() == dict.fromkeys(sent, DELIVERED) | {"1": REPLACED, "2": REPLACED}


async def test_of_a_batch_that_came_at_once_the_newest_of_a_key_is_sent() -> None:
    forward = FakeForward()
    batch = [envelope("u", f"m{number}", collapse_key="k") for number in range(4)]
    assert await dispatch(FakeRegistry({"u": (A,)}), forward, *batch) == [
        REPLACED, REPLACED, REPLACED, DELIVERED
    ]  # fmt: skip
    assert forward.calls == [(A, ["m3"])]


async def test_what_expires_in_a_gateways_queue_is_not_sent() -> None:
    clock = [NOW_MS]
    forward = FakeForward()
    forward.held[A] = asyncio.Event()
    registry = FakeRegistry({"u": (A,), "v": (A,), "w": (A,)})
    async with running(Rig(registry, forward, now_ms=lambda: clock[0])) as rig:
        rig.take(envelope("u", "first"))
        await turns()
        rig.take(envelope("v", "short", ttl=5), envelope("w", "long", ttl=60))
        await turns()
        clock[0] += 10_000
        forward.held[A].set()
        await rig.all_settled()
    assert forward.to(A) == [["first"], ["long"]]
    assert rig.outcomes()["short"] == EXPIRED


async def test_what_is_another_members_by_now_is_not_sent() -> None:
    forward = FakeForward()
    forward.held[A] = asyncio.Event()
    async with running(Rig(FakeRegistry({"u": (A,), "v": (A,)}), forward)) as rig:
        rig.take(envelope("u", "first"))
        await turns()
        rig.take(envelope("v", "queued"), envelope("u", "behind"))
        await turns()
        rig.lanes[0].lost = True
        forward.held[A].set()
        await rig.all_settled()
    assert forward.to(A) == [["first"]]


async def test_a_flood_in_one_lane_delays_another_by_a_batch_at_most() -> None:
    forward = FakeForward()
    low: Answer = {f"low{number}": (A,) for number in range(5_000)}
    registry = FakeRegistry({**low, "u": (A,)})
    async with running(Rig(registry, forward, weights=(4, 1), batch_messages=100)) as rig:
        rig.take(*(envelope(user, user) for user in low), lane=1)
        await turns(2)
        rig.take(envelope("u", "urgent"), lane=0)
        await rig.all_settled()
    sent = [each for ids in forward.to(A) for each in ids]
    assert sent.index("urgent") <= 2_000  # a batch of the dispatcher's, and one of the gateway's
    assert len(sent) == 5_001


async def test_a_gateway_that_does_not_answer_is_left_alone_for_a_while() -> None:
    where: Answer = {**{f"u{number}": (A,) for number in range(100)}, "v": (B,)}
    forward = FakeForward({A: answers(Failure("timeout"))})
    async with running(Rig(FakeRegistry(where), forward)) as rig:
        for user in where:
            rig.take(envelope(user, user))
            await rig.all_settled()
    assert len(forward.to(A)) == 1
    assert rig.outcomes().pop("v") == DELIVERED
    failed = [outcome for key, outcome in rig.outcomes().items() if key != "v"]
    assert set(failed) == {outcome(Kind.FAILED, "timeout")}


async def test_what_was_replaced_is_not_kept_for_its_payload() -> None:
    forward = FakeForward()
    forward.held[A] = asyncio.Event()
    async with running(Rig(FakeRegistry({"u": (A,)}), forward)) as rig:
        rig.take(envelope("u", "under-way"))
        await turns()
        rig.take(envelope("u", "1", collapse_key="k"), envelope("u", "2", collapse_key="k"))
        (replaced,) = rig.settled
        assert (replaced.push.id, replaced.push.data) == ("1", b"")
        assert replaced.envelope.push.data == b""
        forward.held[A].set()
        await rig.all_settled()


async def test_a_message_for_one_device_replaces_none_for_another() -> None:
    forward = FakeForward()
    forward.held[A] = asyncio.Event()
    async with running(Rig(FakeRegistry({"u": (A,)}), forward)) as rig:
        rig.take(envelope("u", "under-way"))
        await turns()
        rig.take(
            envelope("u", "desk", collapse_key="k", device="desk"),
            envelope("u", "phone-1", collapse_key="k", device="phone"),
            envelope("u", "all", collapse_key="k"),
            envelope("u", "phone-2", collapse_key="k", device="phone"),
        )
        assert rig.outcomes() == {"phone-1": REPLACED}
        forward.held[A].set()
        await rig.all_settled()
    assert forward.ids_to(A) == ["under-way", "desk", "all", "phone-2"]


#: Messages of the same user that are not replaced: none, or one.
BESIDE: list[list[str]] = [[], ["kept"]]


@pytest.mark.parametrize("beside", BESIDE)
async def test_what_waits_because_a_user_is_unknown_is_replaced(
    monkeypatch: pytest.MonkeyPatch, beside: list[str]
) -> None:
    monkeypatch.setattr("processor.sending.dispatch._UNKNOWN_SECONDS", 60.0)
    registry, forward = FakeRegistry({"u": None}), FakeForward()
    async with running(Rig(registry, forward)) as rig:
        rig.take(envelope("u", "1", collapse_key="k"), *(envelope("u", each) for each in beside))
        await turns()
        for number in range(2, 50):
            rig.take(envelope("u", str(number), collapse_key="k"))
            await turns()
        assert rig.outcomes() == {str(number): REPLACED for number in range(1, 49)}
        assert {message.push.data for message in rig.settled} == {b""}
        assert len(rig.dispatcher._unknown) == 1
        registry.answer({"u": (A,)})
        rig.dispatcher._continue_unknown()  # as the timer does
        await rig.all_settled()
    assert forward.ids_to(A) == [*beside, "49"]


async def test_what_is_being_looked_up_is_replaced() -> None:
    forward, answered = FakeForward(), asyncio.Event()

    class Slow(FakeRegistry):
        async def lookup(self, users: Sequence[str]) -> list[tuple[Node, ...] | None]:
            await answered.wait()
            return await super().lookup(users)

    async with running(Rig(Slow({"u": (A,)}), forward)) as rig:
        rig.take(envelope("u", "1", collapse_key="k"))
        await turns()
        rig.take(envelope("u", "2", collapse_key="k"))
        assert rig.outcomes() == {"1": REPLACED}
        answered.set()
        await rig.all_settled()
    assert forward.ids_to(A) == ["2"]


@pytest.mark.parametrize("beside", BESIDE)
async def test_what_waits_in_a_slow_gateways_queue_is_replaced_and_leaves_nothing_there(
    beside: list[str],
) -> None:
    forward = FakeForward()
    forward.held[A] = asyncio.Event()
    async with running(Rig(FakeRegistry({"u": (A,), "v": (A,)}), forward)) as rig:
        rig.take(envelope("v", "under-way"))
        await turns()
        rig.take(envelope("u", "0", collapse_key="k"), *(envelope("u", each) for each in beside))
        await turns()
        for number in range(1, 200):
            rig.take(envelope("u", str(number), collapse_key="k"))
            await turns()
        assert rig.outcomes() == {str(number): REPLACED for number in range(199)}
        assert len(rig.lanes[0]) == 2 + len(beside), "what is replaced is no longer in hand"
        assert rig.queued_for(A) <= 4
        forward.held[A].set()
        await rig.all_settled()
        assert not rig.dispatcher._replaceable
        assert not rig.dispatcher._gateways._replaceable
    assert forward.ids_to(A) == ["under-way", *beside, "199"]


async def test_what_one_node_has_taken_is_delivered_and_only_its_other_nodes_go_without() -> None:
    forward = FakeForward()
    forward.held[B] = asyncio.Event()
    async with running(Rig(FakeRegistry({"u": (A, B), "v": (B,)}), forward)) as rig:
        rig.take(envelope("v", "under-way"))
        await turns()
        rig.take(envelope("u", "1", collapse_key="k"))
        await turns()
        assert rig.settled == []
        rig.take(envelope("u", "2", collapse_key="k"))
        assert rig.outcomes() == {"1": DELIVERED}
        forward.held[B].set()
        await rig.all_settled()
    assert (forward.ids_to(A), forward.ids_to(B)) == (["1", "2"], ["under-way", "2"])


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (1, DELIVERED),
        (0, REPLACED),
        (NO_DEVICE, REPLACED),
        (Failure("timeout"), outcome(Kind.FAILED, "timeout")),
    ],
)
async def test_what_is_under_way_has_the_outcome_of_its_answers_and_goes_nowhere_else(
    result: Result, expected: Outcome
) -> None:
    forward = FakeForward({A: answers(result)})
    forward.held[A] = asyncio.Event()
    registry = FakeRegistry({"u": (A,)}, {"u": (B,)})
    async with running(Rig(registry, forward)) as rig:
        rig.take(envelope("u", "1", collapse_key="k"))
        await turns()
        rig.take(envelope("u", "2", collapse_key="k"))
        await turns()
        assert rig.settled == []
        forward.held[A].set()
        await rig.all_settled()
    assert rig.outcomes() == {"1": expected, "2": DELIVERED}
    assert (forward.ids_to(A), forward.ids_to(B)) == (["1"], ["2"])


async def test_what_waits_for_a_second_look_up_is_replaced_unless_a_node_took_it() -> None:
    # Both nodes answer; B has the user no more, and the second look-up says that nothing is known.
    for took, expected in ((1, DELIVERED), (0, REPLACED)):
        forward = FakeForward({A: answers(took), B: zero})
        registry = FakeRegistry({"u": (A, B)}, {"u": None})
        async with running(Rig(registry, forward)) as rig:
            rig.take(envelope("u", "1", collapse_key="k"))
            await turns()
            assert rig.settled == []
            rig.take(envelope("u", "2", collapse_key="k"))
            assert rig.outcomes() == {"1": expected}
            registry.answer({"u": (C,)})
            await rig.all_settled()
        assert forward.ids_to(C) == ["2"]


#: The places of a user who is on one node at a time.
ONE_NODE = ((A,), (B,), (C,))


class Restless(FakeRegistry):
    """Users wander from node to node, are unknown at times, and look-ups take their time."""

    def __init__(
        self, draw: random.Random, *, places: Sequence[tuple[Node, ...]] = ONE_NODE
    ) -> None:
        super().__init__()
        self.draw = draw
        self.places = places
        self.where: dict[str, tuple[Node, ...]] = {}

    async def lookup(self, users: Sequence[str]) -> list[tuple[Node, ...] | None]:
        for _ in range(self.draw.randrange(6)):
            await asyncio.sleep(0)
        return [self._where(user) for user in users]

    def _where(self, user: str) -> tuple[Node, ...] | None:
        chance = self.draw.random()
        if chance < 0.2:
            self.where[user] = self.draw.choice(self.places)
        return None if chance > 0.9 else self.where.setdefault(user, (A,))


class Wandering(FakeForward):
    """Nodes that have a user or not, and take their time."""

    def __init__(self, registry: Restless) -> None:
        super().__init__()
        self.registry = registry
        self.arrived: dict[str, list[int]] = {}
        self.arrived_by_node: dict[tuple[str, Node], list[int]] = {}

    async def forward(self, node: Node, pushes: Sequence[Push]) -> list[Result]:
        for _ in range(self.registry.draw.randrange(8)):
            await asyncio.sleep(0)
        results: list[Result] = []
        for push in pushes:
            here = node in self.registry.where[push.user]
            if here:
                self.arrived.setdefault(push.user, []).append(int(push.id))
                self.arrived_by_node.setdefault((push.user, node), []).append(int(push.id))
            results.append(int(here))
        return results


@pytest.mark.parametrize("seed", range(40))
async def test_whatever_happens_nothing_passes_an_earlier_message_of_its_user(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr("processor.sending.dispatch._UNKNOWN_SECONDS", 0.001)
    draw = random.Random(seed)
    registry = Restless(draw)
    forward = Wandering(registry)
    rig = Rig(
        registry,
        forward,
        weights=draw.choice([(1,), (9, 1)]),
        batch_messages=draw.choice([2, 3, 10, 100]),
    )
    async with running(rig):
        number = 0
        for _ in range(30):
            for lane in range(len(rig.lanes)):  # a user's messages are of one lane
                count = draw.randrange(20)
                users = [f"{lane}-{draw.randrange(4)}" for _ in range(count)]
                ids = range(number, number + count)
                pairs = zip(users, ids, strict=True)
                rig.take(*(envelope(user, str(each)) for user, each in pairs), lane=lane)
                number += count
            await turns(draw.randrange(12))
        await rig.all_settled()
    assert len(rig.settled) == number
    assert forward.arrived
    for user, ids_in_order in forward.arrived.items():
        assert ids_in_order == sorted(ids_in_order), user


@pytest.mark.parametrize("seed", range(40))
async def test_whatever_happens_what_is_replaced_was_taken_nowhere_and_has_a_newer_one(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr("processor.sending.dispatch._UNKNOWN_SECONDS", 0.001)
    draw = random.Random(seed)
    registry = Restless(draw, places=[*ONE_NODE, (A, B), (B, C), (A, B, C)])
    forward = Wandering(registry)
    rig = Rig(registry, forward, batch_messages=draw.choice([2, 3, 10, 100]))
    async with running(rig):
        number = 0
        for _ in range(40):
            ids = range(number, number + draw.randrange(10))
            rig.take(
                *(
                    envelope(
                        draw.choice("uvw"),
                        str(each),
                        collapse_key=draw.choice([None, "k", "k", "l"]),
                        device=draw.choice([None, "phone"]),
                    )
                    for each in ids
                )
            )
            number = ids.stop
            await turns(draw.randrange(12))
        await rig.all_settled()
    assert len(rig.settled) == number
    arrived = {each for ids_in_order in forward.arrived.values() for each in ids_in_order}
    newest = {_collapsing(message): message.offset for message in by_offset(rig.settled)}
    for message in rig.settled:
        assert (outcome_of(message) == DELIVERED) == (message.offset in arrived)
        if outcome_of(message) == REPLACED:
            assert message.envelope.collapse_key is not None
            assert message.offset < newest[_collapsing(message)]
            assert message.push.data == b""
    for ids_in_order in forward.arrived_by_node.values():
        assert ids_in_order == sorted(ids_in_order)
    assert REPLACED in map(outcome_of, rig.settled)
    assert not rig.dispatcher._replaceable
    assert not rig.dispatcher._gateways._replaceable


def by_offset(messages: Sequence[Message]) -> list[Message]:
    return sorted(messages, key=lambda message: message.offset)


def _collapsing(message: Message) -> tuple[str, str | None, str | None]:
    return message.push.user, message.push.device, message.envelope.collapse_key
