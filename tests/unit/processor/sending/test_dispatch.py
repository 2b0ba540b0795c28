"""Look up → each node's queue → answers → outcome, over a registry and a forwarder by hand."""

import asyncio
import random
import time
from collections.abc import Sequence

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
from processor.sending.forward import NO_DEVICE, Failure, Result
from registry.directory import Node
from registry.message import Push
from tests.support.dispatching import (
    NOW_MS,
    ONE_NODE,
    A,
    B,
    C,
    FakeForward,
    FakeRegistry,
    Places,
    Restless,
    Rig,
    Wandering,
    answers,
    by_offset,
    collapsing,
    dispatch,
    envelope,
    running,
    turns,
    zero,
)

pytestmark = pytest.mark.anyio


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
    elsewhere: list[Places] = [{}, {"u": (A,)}, {"u": (B,)}]
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


@pytest.mark.parametrize("reason", ["status-503", "bad-answer", "too-large", "error"])
async def test_an_error_is_not_offline(reason: str) -> None:
    registry = FakeRegistry({"u": (A,)})
    outcomes = await dispatch(registry, FakeForward({A: answers(Failure(reason))}), envelope("u"))
    assert outcomes == [outcome(Kind.FAILED, reason)]


async def test_an_error_on_one_node_beside_an_absence_on_another_is_not_offline() -> None:
    forward = FakeForward({A: answers(Failure("status-500")), B: zero})
    outcomes = await dispatch(FakeRegistry({"u": (A, B)}), forward, envelope("u"))
    assert outcomes == [outcome(Kind.FAILED, "status-500")]


async def test_one_node_that_took_it_is_enough() -> None:
    forward = FakeForward({A: answers(Failure("status-500")), B: zero})
    outcomes = await dispatch(FakeRegistry({"u": (A, B, C)}), forward, envelope("u"))
    assert outcomes == [DELIVERED]


async def test_after_an_error_a_node_that_the_user_moved_to_may_take_it() -> None:
    registry = FakeRegistry({"u": (A,)}, {"u": (B,)})
    forward = FakeForward({A: answers(Failure("status-500"))})
    assert await dispatch(registry, forward, envelope("u")) == [DELIVERED]


async def test_a_node_that_failed_is_not_tried_again() -> None:
    forward = FakeForward({A: answers(Failure("status-500"))})
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
    forward = FakeForward({A: answers(NO_DEVICE), B: answers(Failure("status-500"))})
    outcomes = await dispatch(FakeRegistry({"u": (A, B)}), forward, envelope("u"))
    assert outcomes == [outcome(Kind.FAILED, "status-500")]


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
    where: Places = {f"u{number}": (A,) for number in range(5)}
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
    low: Places = {f"low{number}": (A,) for number in range(5_000)}
    registry = FakeRegistry({**low, "u": (A,)})
    async with running(Rig(registry, forward, weights=(4, 1), batch_messages=100)) as rig:
        rig.take(*(envelope(user, user) for user in low), lane=1)
        await turns(2)
        rig.take(envelope("u", "urgent"), lane=0)
        await rig.all_settled()
    sent = [each for ids in forward.to(A) for each in ids]
    assert sent.index("urgent") <= 2_000  # a batch of the dispatcher's, and one of the gateway's
    assert len(sent) == 5_001


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
    newest = {collapsing(message): message.offset for message in by_offset(rig.settled)}
    for message in rig.settled:
        assert (outcome_of(message) == DELIVERED) == (message.offset in arrived)
        if outcome_of(message) == REPLACED:
            assert message.envelope.collapse_key is not None
            assert message.offset < newest[collapsing(message)]
            assert message.push.data == b""
    for ids_in_order in forward.arrived_by_node.values():
        assert ids_in_order == sorted(ids_in_order)
    assert REPLACED in map(outcome_of, rig.settled)
    assert not rig.dispatcher._replaceable
    assert not rig.dispatcher._gateways._replaceable
