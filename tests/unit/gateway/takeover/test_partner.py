"""Messages for users of the other process: who gets what, and what the node answers in all."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import msgspec
import pytest

from gateway.connections.hub import Hub
from gateway.push import Item, ItemResults, Result
from gateway.takeover.format import Message, Push, Pushed
from gateway.takeover.partner import OtherProcess, sum_of
from tests.unit.gateway.fakes import FakeConnection, identity

pytestmark = pytest.mark.anyio

OVERLOADED = {"error": "overloaded"}
NO_DEVICE = {"error": "no-device"}


class FakeChannel:
    """A channel to a process that answers as a test says."""

    is_open = True

    def __init__(self) -> None:
        self.sent: list[Push] = []

    def send(self, message: Message) -> None:
        assert isinstance(message, Push)
        self.sent.append(message)


class Rig:
    """This process, which has some users, and its partner, which has others."""

    def __init__(self, *, here: str = "", there: str = "", has_rest: bool = True) -> None:
        self.hub = Hub()
        for user in here:
            self.hub.add(FakeConnection(identity(user)))
        self.channel = FakeChannel()
        self.other = OtherProcess(cast("Any", self.channel), self.hub, has_rest=has_rest)
        self.other.users.update(there)
        self.pushed_here: list[object] = []

    async def push(
        self,
        *users: str | list[str] | None,
        here: Sequence[Result | list[Result]] = (),
        there: object = (),
    ) -> ItemResults:
        """Push a message for each; both processes answer as is given. None: no answer."""
        items = [None if user is None else Item(user, "data") for user in users]

        async def push_here(part: Sequence[Item | None]) -> ItemResults:
            self.pushed_here += [None if item is None else item.user for item in part]
            return [*here]

        task = asyncio.create_task(self.other.push(items, push_here))
        await asyncio.sleep(0)
        if self.channel.sent:
            body = None if there is None else msgspec.msgpack.encode({"results": there})
            self.other.pushed(Pushed(self.channel.sent[-1].number, body))
        return await task

    @property
    def pushed_there(self) -> list[object]:
        return [
            item["user"] for push in self.channel.sent for item in msgspec.msgpack.decode(push.body)
        ]


async def test_every_process_gets_the_messages_of_its_users() -> None:
    rig = Rig(here="ab", there="c")
    assert await rig.push("a", "c", "b", "d", here=[1, 2], there=[3, 0]) == [1, 3, 2, 0]
    assert rig.pushed_here == ["a", "b"]
    assert rig.pushed_there == ["c", "d"], "d may have come there"


async def test_the_next_process_asks_only_for_users_who_remain() -> None:
    rig = Rig(here="a", there="c", has_rest=False)
    assert await rig.push("a", "c", "d", here=[1, 0], there=[1]) == [1, 1, 0]
    assert rig.pushed_there == ["c"]


async def test_a_user_of_both_gets_a_message_on_both_sides() -> None:
    rig = Rig(here="a", there="a")
    assert await rig.push("a", here=[1], there=[2]) == [3]


async def test_a_batch_for_this_process_alone_is_not_cut() -> None:
    rig = Rig(here="a")
    assert await rig.push("a", None, here=[1, {"error": "invalid"}]) == [1, {"error": "invalid"}]
    assert rig.channel.sent == []


async def test_a_list_of_users_has_a_result_for_each_in_order() -> None:
    rig = Rig(here="ab", there="bc")
    results = await rig.push(["c", "a", "b"], here=[[1, 2]], there=[[3, 4]])
    assert results == [[3, 1, 6]]
    assert rig.pushed_here == [["a", "b"]]
    assert rig.pushed_there == [["c", "b"]]


async def test_without_an_answer_the_messages_come_again() -> None:
    rig = Rig(here="a", there="b")
    assert await rig.push("b", ["a", "b"], here=[[1]], there=None) == [OVERLOADED, [1, OVERLOADED]]


async def test_when_the_partner_is_gone_no_answer_is_waited_for() -> None:
    rig = Rig(there="b")
    task = asyncio.create_task(rig.push("b"))
    await asyncio.sleep(0)
    rig.other.gone()
    assert await task == [OVERLOADED]
    rig.channel.is_open = False
    assert await rig.push("b") == [OVERLOADED]


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        (1, 2, 3),
        (0, 0, 0),
        (0, OVERLOADED, OVERLOADED),
        (1, OVERLOADED, {"taken": 1, "overloaded": 1}),
        ({"taken": 1, "overloaded": 2}, 3, {"taken": 4, "overloaded": 2}),
        ({"taken": 1, "overloaded": 2}, OVERLOADED, {"taken": 1, "overloaded": 3}),
        (NO_DEVICE, 1, 1),
        (NO_DEVICE, 0, NO_DEVICE),
        (NO_DEVICE, OVERLOADED, OVERLOADED),
        ({"error": "too-large"}, {"error": "too-large"}, {"error": "too-large"}),
        (0, {"error": "invalid"}, {"error": "invalid"}),
    ],
)
def test_the_results_of_both_are_one(first: Result, second: Result, both: Result) -> None:
    assert sum_of(first, second) == both
    assert sum_of(second, first) == both
