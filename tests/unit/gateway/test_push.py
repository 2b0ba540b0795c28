"""Batches: how many messages and users one may have, and how others fare while it is delivered."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import msgspec
import pytest

import gateway.push
from gateway import metrics
from gateway.connections.as_of import AsOf
from gateway.connections.delivery import Delivery
from gateway.connections.hub import CROWD, Hub
from gateway.connections.repeats import Repeats
from gateway.latency import Latency
from gateway.push import MAX_BATCH_USERS, BadBatch, Item, ItemResults, Pusher
from tests.unit.gateway.fakes import FakeConnection, identity

pytestmark = pytest.mark.anyio

JSON, PACKED = b"application/json", b"application/msgpack"
MEDIA = {JSON: msgspec.json, PACKED: msgspec.msgpack}
MIB = 1024 * 1024


@pytest.fixture(params=[JSON, PACKED], ids=["json", "messagepack"])
def media_type(request: pytest.FixtureRequest) -> bytes:
    chosen: bytes = request.param
    return chosen


class Rig:
    """A node's hub, and what pushes into it."""

    def __init__(self, *, repeat_window: int = 0) -> None:
        self.hub = Hub()
        self.pusher = Pusher(
            self.hub,
            Repeats(repeat_window),
            AsOf(),
            epoch="e1",
            max_payload_bytes=65_536,
            wall_clock=lambda: NOW_MS / 1_000,
        )

    def hold(self, user: str, count: int = 1) -> list[FakeConnection]:
        connections = [FakeConnection(identity(user)) for _ in range(count)]
        for connection in connections:
            self.hub.add(connection)
        return connections

    async def push(self, media_type: bytes, batch: object) -> Any:
        """Push a batch; give its results."""
        return await self.push_body(media_type, MEDIA[media_type].encode(batch))

    async def push_body(self, media_type: bytes, body: bytes) -> Any:
        _, answer = await self.pusher.batch(media_type, body)
        return MEDIA[media_type].decode(answer)["results"]

    async def refusal(self, media_type: bytes, body: bytes) -> tuple[int, str, int]:
        """Give the status and the text of a refusal, and the memory that the refusal took."""
        tracemalloc.start()
        try:
            with pytest.raises(BadBatch) as caught:
                await self.push_body(media_type, body)
            return caught.value.status, caught.value.detail, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


def to(*users: str, **fields: object) -> dict[str, object]:
    return {"user": list(users), "data": "x", **fields}


def names(count: int) -> list[str]:
    return [f"u{number}" for number in range(count)]


# How many


@pytest.mark.parametrize("pretty", [False, True], ids=["terse", "spaced"])
async def test_half_a_million_users_are_refused_before_they_are_decoded(
    media_type: bytes, pretty: bool
) -> None:
    body = MEDIA[media_type].encode([to("alice"), to(*names(400_000))])
    if pretty and media_type == JSON:
        body = msgspec.json.format(body, indent=0)
    assert len(body) > 2 * MIB
    status, detail, memory = await Rig().refusal(media_type, body)
    assert (status, detail) == (413, "too many users; at most 10000")
    assert memory < MIB


async def test_the_users_of_many_lists_count_together(media_type: bytes) -> None:
    body = MEDIA[media_type].encode([to(*names(101)) for _ in range(100)])
    assert (await Rig().refusal(media_type, body))[:2] == (413, "too many users; at most 10000")


async def test_as_many_users_as_there_may_be_are_taken_and_one_more_is_not(
    media_type: bytes,
) -> None:
    rig = Rig()
    (here,) = rig.hold("u9998")
    fits = [to(*names(MAX_BATCH_USERS - 1)), {"user": "u1", "data": "y"}]
    listed, single = await rig.push(media_type, fits)
    assert (len(listed), sum(listed), single) == (MAX_BATCH_USERS - 1, 1, 0)
    assert here.got == [b"x"]
    body = MEDIA[media_type].encode([*fits, {"user": "u2", "data": "z"}])
    assert (await rig.refusal(media_type, body))[0] == 413
    assert here.got == [b"x"]


async def test_names_that_look_like_many_count_once(media_type: bytes) -> None:
    rig = Rig()
    strange = ['a","b","c', "\\", '\\"', "[,,,]", '","', "é,é", "7"]
    users = strange * (MAX_BATCH_USERS // len(strange))
    (results,) = await rig.push(media_type, [to(*users, id="m-1")])
    assert results == [0] * len(users)


async def test_what_a_payload_or_an_unknown_field_holds_is_no_list_of_users(
    media_type: bytes,
) -> None:
    text = '{"user": [' + '"u",' * 15_000 + '"u"]}'
    batch = [{"user": "alice", "data": text, "meta": {"user": names(20_000)}}, to("alice")]
    assert await Rig().push(media_type, batch) == [0, [0]]


async def test_a_list_that_is_wrong_harms_none_beside_it(media_type: bytes) -> None:
    rig = Rig()
    long = names(9_000)
    batch = [to("alice"), to(*long[:-1], 7), None, to("bob")]  # type: ignore[arg-type]
    invalid = {"error": "invalid"}
    assert await rig.push(media_type, batch) == [[0], invalid, invalid, [0]]
    body = MEDIA[media_type].encode([None, to(*names(MAX_BATCH_USERS + 1))])
    assert (await rig.refusal(media_type, body))[0] == 413


@pytest.mark.parametrize("element", [None, {}, "", {"user": "u", "data": ""}], ids=str)
async def test_too_many_messages_of_any_kind_are_refused(
    media_type: bytes, element: object
) -> None:
    body = MEDIA[media_type].encode([element] * 50_000)
    status, detail, memory = await Rig().refusal(media_type, body)
    assert (status, detail) == (413, "too many messages; at most 1000")
    assert memory < (16 * MIB if media_type == JSON else MIB // 4)


async def test_an_escaped_field_does_not_get_around_the_bound() -> None:
    body = msgspec.json.encode([to(*names(MAX_BATCH_USERS + 1))]).replace(b"user", b"us\\u0065r")
    assert (await Rig().refusal(JSON, body))[0] == 413


# Turns


async def turns_during(work: Callable[[], Any]) -> int:
    """Give how many turns the event loop had for others while `work` was under way."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count())
    await asyncio.sleep(0)
    await work()
    counting.cancel()
    with suppress(asyncio.CancelledError):
        await counting
    return turns


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each part of a delivery be a turn of its own."""
    monkeypatch.setattr(gateway.push, "_TURN_SECONDS", 0.0)


@pytest.mark.usefixtures("hurried")
async def test_a_long_list_is_delivered_in_parts_with_turns_for_others_between() -> None:
    rig = Rig(repeat_window=100_000)
    users = names(MAX_BATCH_USERS)
    connections = [connection for user in users for connection in rig.hold(user)]
    batch = [to(*users, id="m-1")]
    results: list[list[int]] = []

    async def push() -> None:
        results.extend(await rig.push(JSON, batch))

    assert await turns_during(push) > 40
    assert await turns_during(push) > 40
    assert results == [[1] * len(users)] * 2
    assert all(connection.got == [b"x"] for connection in connections), "repeats are not sent"


@pytest.mark.usefixtures("hurried")
async def test_a_crowd_gets_a_message_in_parts_with_turns_for_others_between() -> None:
    rig = Rig()
    crowd, (other,) = rig.hold("alice", 2_000), rig.hold("bob")
    for connection in crowd[1_000:]:
        connection.takes = False
    batch = [{"user": user, "data": data} for data in ("1", "2") for user in ("bob", "alice")]
    results: list[int] = []

    async def push() -> None:
        results.extend(await rig.push(JSON, batch))

    assert await turns_during(push) > 40
    assert results == [1, {"taken": 1_000, "overloaded": 1_000}] * 2
    assert other.got == [b"1", b"2"]
    assert all(connection.got == [b"1", b"2"] for connection in crowd[:1_000])


@pytest.mark.usefixtures("hurried")
async def test_what_comes_while_a_crowd_is_delivered_to_does_not_go_past() -> None:
    rig = Rig(repeat_window=100)
    crowd = rig.hold("alice", 1_000)
    pushes = [{"user": "alice", "data": data, "id": data} for data in ("1", "2", "1", "3")]
    results = await asyncio.gather(*(rig.push(PACKED, [message]) for message in pushes))
    assert results == [[1_000]] * 4
    assert all(connection.got == [b"1", b"2", b"3"] for connection in crowd)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("others", [0, CROWD], ids=["two devices", "a crowd"])
async def test_who_comes_during_a_batch_gets_nothing_behind_a_message_that_comes_again(
    others: int,
) -> None:
    rig = Rig(repeat_window=1_000)
    stalled, reader, *_ = rig.hold("u", 2 + others)
    stalled.takes = False
    began = asyncio.Event()
    reader.on_deliver = began.set
    newcomer = FakeConnection(identity("u"))
    batch = [{"user": "u", "data": str(number), "id": str(number)} for number in range(600)]
    pushing = asyncio.create_task(rig.push(PACKED, batch))
    await began.wait()
    rig.hub.add(newcomer)
    results = await pushing
    assert newcomer.got == []
    assert [result["taken"] for result in results] == [1 + others] * 600
    stalled.takes = True
    await rig.push(PACKED, batch)
    assert newcomer.got == stalled.got == [str(number).encode() for number in range(600)]


@pytest.mark.usefixtures("hurried")
async def test_a_crowd_that_cannot_take_a_message_is_told_from_one_that_is_gone() -> None:
    rig = Rig(repeat_window=100)
    for connection in rig.hold("alice", CROWD + 1):
        connection.takes = False
    assert (
        await rig.push(JSON, [{"user": "alice", "data": "x", "id": "1"}] * 2)
        == [{"error": "overloaded"}] * 2
    )
    device = {"user": "alice", "data": "x", "device": "phone"}
    assert await rig.push(JSON, [device]) == [{"error": "no-device"}]
    for gone in rig.hub.of("alice"):
        rig.hub.remove(gone)
    assert await rig.pusher.one(Item("alice", "x")) == 0


async def test_a_batch_that_is_delivered_at_once_takes_no_turn_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gateway.push, "_TURN_SECONDS", 1e6)
    rig = Rig()
    rig.hold("alice")

    async def push() -> None:
        assert await rig.push(PACKED, [{"user": "alice", "data": "x"}] * 100) == [1] * 100

    assert await turns_during(push) == 0


# How long messages took

NOW_MS = 1_700_000_000_000


@pytest.fixture
def latency(monkeypatch: pytest.MonkeyPatch) -> Latency:
    """Give the counts of this test alone."""
    counts = Latency()
    monkeypatch.setattr(metrics, "LATENCY", counts)
    return counts


def record(number: int, *, age_ms: int = 20, user: str = "u", **fields: object) -> dict[str, Any]:
    place = f"push-0-{number}"
    timestamp = {"timestamp_ms": NOW_MS - age_ms}
    return {"user": user, "data": "x", "id": place, "position": place, **timestamp, **fields}


async def test_the_time_since_the_record_is_counted_by_lane(
    latency: Latency, media_type: bytes
) -> None:
    rig = Rig()
    rig.hold("u", 2)
    await rig.push(media_type, [record(1), record(2, age_ms=30), record(3, user="nobody")])
    await rig.push(media_type, [record(4, lane="alerts"), record(5, lane="bulk", age_ms=-1)])
    sums = {topic: (t.sum_ms, t.ahead) for topic, t in latency.by_topic().items()}
    assert sums == {"push": (50, 0), "alerts": (20, 0), "bulk": (0, 1)}
    assert latency.untimed == 0


async def test_pushes_of_earlier_versions_and_of_people_are_of_unknown_time(
    latency: Latency, media_type: bytes
) -> None:
    rig = Rig()
    rig.hold("u")
    earlier = record(1)
    del earlier["timestamp_ms"]
    await rig.push(media_type, [earlier, {"user": ["u", "v"], "data": "x"}])
    rig.pusher.one_at_once(Item("u", "x"))
    assert await rig.pusher.one(Item("u", "x")) == 1
    assert (latency.untimed, dict(latency.by_topic())) == (4, {})


async def test_a_time_that_is_none_makes_the_item_invalid(
    latency: Latency, media_type: bytes
) -> None:
    rig = Rig()
    rig.hold("u")
    batch = [record(1, timestamp_ms=-1), record(2, timestamp_ms="x"), record(3)]
    assert await rig.push(media_type, batch) == [{"error": "invalid"}, {"error": "invalid"}, 1]


async def test_a_repeat_is_not_counted_again(latency: Latency, media_type: bytes) -> None:
    rig = Rig(repeat_window=100)
    rig.hold("u")
    for _ in range(2):
        assert await rig.push(media_type, [record(1)]) == [1]
    assert sum(latency.by_topic()["push"].counts) == 1


async def test_a_message_to_a_crowd_is_counted_once(latency: Latency, media_type: bytes) -> None:
    rig = Rig(repeat_window=100)
    rig.hold("u", CROWD + 1)
    for _ in range(2):
        assert await rig.push(media_type, [record(1)]) == [CROWD + 1]
    assert sum(latency.by_topic()["push"].counts) == 1


class Elsewhere:
    """A partner that has every user, and answers when a test lets it."""

    def __init__(self) -> None:
        self.pushed: list[object] = []
        self.answer = asyncio.Event()

    async def push(self, items: Sequence[Item | None], here: object) -> ItemResults:
        self.pushed += [None if item is None else item.user for item in items]
        await self.answer.wait()
        return [7] * len(items)


async def test_where_there_is_a_partner_every_push_goes_by_it() -> None:
    rig, partner = Rig(), Elsewhere()
    rig.pusher.partner = partner
    partner.answer.set()
    assert await rig.push(JSON, [to("alice"), to("bob")]) == [7, 7]
    assert await rig.pusher.one(Item("carol", "hello")) == 7
    assert partner.pushed == [["alice"], ["bob"], "carol"]


async def test_held_back_pushes_begin_when_those_under_way_are_answered() -> None:
    rig, partner = Rig(), Elsewhere()
    rig.pusher.partner = partner
    first = asyncio.create_task(rig.push(JSON, [to("alice")]))
    await asyncio.sleep(0)
    steps: list[str] = []

    async def hold_back() -> None:
        async with rig.pusher.held_back():
            steps.append("held back")
            await asyncio.sleep(0)
            steps.append("let go")

    holding = asyncio.create_task(hold_back())
    await asyncio.sleep(0)
    second = asyncio.create_task(rig.push(JSON, [to("bob")]))
    await asyncio.sleep(0)
    assert (partner.pushed, steps) == ([["alice"]], [])
    partner.answer.set()
    await first
    steps.append("answered")
    await asyncio.gather(holding, second)
    assert partner.pushed == [["alice"], ["bob"]]
    assert sorted(steps) == ["answered", "held back", "let go"]
    async with rig.pusher.held_back():  # at once, where nothing is under way
        pass


class ByTheirIds(FakeConnection):
    @staticmethod
    def form(delivery: Delivery) -> bytes:
        return delivery.id.encode()


async def test_messages_without_an_id_get_numbers_of_no_earlier_process() -> None:
    rig, connection = Rig(), ByTheirIds(identity("alice"))
    rig.hub.add(connection)
    await rig.push(JSON, [to("alice"), to("alice")])
    rig.pusher.begin_generation(1)
    await rig.push(JSON, [to("alice")])
    assert connection.got == [b"e1-1", b"e1-2", b"e1-%d" % (2**40 + 1)]
