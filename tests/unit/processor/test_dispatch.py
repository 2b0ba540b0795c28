"""Look up → group by node → forward → outcome, against a registry and a forwarder by hand."""

import asyncio
import time
from collections.abc import Callable, Sequence

import pytest

from processor.dispatch import Dispatcher
from processor.forward import NO_DEVICE, Failure, Result
from processor.outcome import DELIVERED, EXPIRED, OFFLINE, Kind, Outcome
from registry.directory import Lease, Node, RegistryUnavailable
from registry.message import Envelope, Push

pytestmark = pytest.mark.anyio

A = Node("gw-a", "e1", "10.0.0.1:8081")
B = Node("gw-b", "e2", "10.0.0.2:8081")
C = Node("gw-c", "e3", "10.0.0.3:8081")
NOW_MS = 1_000_000


class FakeRegistry:
    """Who is where, look-up by look-up: the last answer stays."""

    def __init__(self, *answers: dict[str, tuple[Node, ...]]) -> None:
        self._answers = list(answers) or [{}]
        self.failures = 0
        self.lookups: list[list[str]] = []

    async def lookup(self, users: Sequence[str]) -> list[tuple[Node, ...]]:
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

    async def refresh(self) -> None: ...

    async def ping(self) -> None: ...

    async def close(self) -> None: ...


class FakeForward:
    """Answers by node; a node that is not named takes everything."""

    def __init__(self, answers: dict[Node, Callable[[Push], Result]] | None = None) -> None:
        self._answers = answers or {}
        self.calls: list[tuple[Node, list[str]]] = []
        self.under_way = 0
        self.most_under_way = 0

    async def forward(self, node: Node, pushes: Sequence[Push]) -> list[Result]:
        self.calls.append((node, [push.id for push in pushes]))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        answer = self._answers.get(node, answers(1))
        return [answer(push) for push in pushes]

    def to(self, node: Node) -> list[list[str]]:
        return [ids for called, ids in self.calls if called == node]


def envelope(user: str, message_id: str = "m", *, ttl: int | None = None, age: int = 0) -> Envelope:
    return Envelope(Push(user, b"x", message_id), NOW_MS - age * 1000, ttl)


async def dispatch(
    registry: FakeRegistry,
    forward: FakeForward,
    *envelopes: Envelope,
    now_ms: Callable[[], int] = lambda: NOW_MS,
) -> list[Outcome]:
    async with asyncio.timeout(10):
        return await Dispatcher(registry, forward, now_ms=now_ms).dispatch(envelopes)


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


async def test_each_node_gets_one_batch_in_the_order_of_the_messages() -> None:
    registry = FakeRegistry({"u": (A,), "v": (B,), "w": (A,)})
    forward = FakeForward()
    batch = [envelope(user, f"m{number}") for number, user in enumerate("uvwuvwu")]
    assert await dispatch(registry, forward, *batch) == [DELIVERED] * 7
    assert forward.to(A) == [["m0", "m2", "m3", "m5", "m6"]]
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
    elsewhere: list[dict[str, tuple[Node, ...]]] = [{}, {"u": (A,)}, {"u": (B,)}]
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
    assert outcomes == [Outcome(Kind.FAILED, reason)]


async def test_an_error_on_one_node_beside_an_absence_on_another_is_not_offline() -> None:
    forward = FakeForward({A: answers(Failure("timeout")), B: zero})
    outcomes = await dispatch(FakeRegistry({"u": (A, B)}), forward, envelope("u"))
    assert outcomes == [Outcome(Kind.FAILED, "timeout")]


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
    assert outcomes == [Outcome(Kind.FAILED, "timeout")]


async def test_each_message_has_its_own_result() -> None:
    def by_id(push: Push) -> Result:
        found: dict[str, Result] = {"ok": 2, "gone": 0, "big": Failure("too-large")}
        return found[push.id]

    forward = FakeForward({A: by_id})
    batch = [envelope(user, user) for user in ("ok", "gone", "big")]
    registry = FakeRegistry({"ok": (A,), "gone": (A,), "big": (A,)})
    outcomes = await dispatch(registry, forward, *batch)
    assert outcomes == [DELIVERED, OFFLINE, Outcome(Kind.FAILED, "too-large")]


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
    waiting = asyncio.create_task(dispatch(registry, FakeForward(), envelope("u")))
    await asyncio.sleep(0)
    waiting.cancel()
    began = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert time.monotonic() - began < 1.0


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
        async def lookup(self, users: Sequence[str]) -> list[tuple[Node, ...]]:
            clock[0] += 10_000  # ten seconds of outage
            return await super().lookup(users)

    registry = Slow({"u": (A,)})
    registry.failures = 1
    batch = [envelope("u", "short", ttl=5), envelope("u", "long", ttl=60)]
    outcomes = await dispatch(registry, forward, *batch, now_ms=lambda: clock[0])
    assert outcomes == [EXPIRED, DELIVERED]
    assert forward.calls == [(A, ["long"])]
