"""The rules of long-poll's cursor, and what happens on the connection that carries it."""

import time
from collections.abc import Callable

import pytest

from tests.support.clients import (
    Answer,
    PollClient,
    Pusher,
    Wire,
    bearer,
    connect,
    eventually,
    head,
    request,
    wire_to,
)
from tests.support.processes import GatewayProcess

pytestmark = pytest.mark.anyio


async def opened(wire: Wire, user: str) -> PollClient:
    return await PollClient(wire, Answer("", 0, {}), bearer(user)).open()


async def poll(gateway: GatewayProcess, user: str, query: str = "wait=0") -> Answer:
    return await request(gateway.port, "GET", f"/poll?{query}", bearer(user))


def texts(answer: Answer) -> list[str]:
    return [message["data"] for message in answer.json["messages"]]


async def test_a_short_poll_without_a_cursor_opens_a_session_at_once(
    gateway: GatewayProcess, user: str
) -> None:
    answer = await poll(gateway, user)
    assert answer.json.keys() == {"cursor", "messages"}
    assert answer.json["messages"] == []
    assert answer.headers["cache-control"] == "no-store"


async def test_a_poll_without_a_cursor_waits_like_any_other(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    async def taken() -> bool:
        return bool(await pusher.push([{"user": user, "data": "x"}]) == [1])

    async with wire_to(gateway.port) as wire:
        await wire.send(head("GET", "/poll?wait=30", bearer(user)))
        await eventually(taken, "the session is there")
        assert texts(await wire.answer()) == ["x"]


async def test_wait_ends_with_an_empty_list_in_time(gateway: GatewayProcess, user: str) -> None:
    async with wire_to(gateway.port) as wire:
        client = await opened(wire, user)
        began = time.monotonic()
        await client.send(wait=0.5)
        assert texts(await client.take()) == []
        assert 0.4 < time.monotonic() - began < 2.0


async def test_a_cursor_stays_good_over_empty_answers(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    async with wire_to(gateway.port) as wire:
        client = await opened(wire, user)
        for number in range(3):
            await client.send(wait=0)
            assert texts(await client.take()) == []
            await pusher.push_one(user, b"%d" % number)
            assert (await client.message()).payload == b"%d" % number
        assert client.gaps == 0


@pytest.mark.parametrize("wait", ["-1", "x", "nan", "", "1e400x", "%00"])
async def test_a_wait_that_is_no_number_of_seconds_is_400(
    gateway: GatewayProcess, user: str, wait: str
) -> None:
    assert (await poll(gateway, user, f"wait={wait}")).status == 400


@pytest.mark.parametrize("wait", ["61", "1000000", "inf", "1e300"])
async def test_a_wait_beyond_the_cap_is_taken_as_the_cap(
    gateway: GatewayProcess, pusher: Pusher, user: str, wait: str
) -> None:
    async with wire_to(gateway.port) as wire:
        client = await opened(wire, user)
        await wire.send(head("GET", f"/poll?wait={wait}&cursor={client.cursor}", bearer(user)))
        await pusher.push_one(user, b"x")
        assert texts(await wire.answer()) == ["x"]


async def test_a_batch_is_one_answer(gateway: GatewayProcess, pusher: Pusher, user: str) -> None:
    async with wire_to(gateway.port) as wire:
        client = await opened(wire, user)
        await client.send(wait=10)
        await pusher.push([{"user": user, "data": str(number)} for number in range(5)])
        assert texts(await client.take()) == ["0", "1", "2", "3", "4"]


async def test_what_comes_between_polls_is_kept(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    first = await poll(gateway, user)
    await pusher.push_one(user, b"a")
    await pusher.push_one(user, b"b")
    answer = await poll(gateway, user, f"wait=0&cursor={first.json['cursor']}")
    assert texts(answer) == ["a", "b"]
    assert "gap" not in answer.json


async def test_the_same_cursor_gives_the_same_answer_again(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    cursor = (await poll(gateway, user)).json["cursor"]
    await pusher.push_one(user, b"a")
    first = await poll(gateway, user, f"wait=0&cursor={cursor}")
    await pusher.push_one(user, b"b")
    again = await poll(gateway, user, f"wait=20&cursor={cursor}")
    assert again.body == first.body
    assert texts(again) == ["a"]
    rest = await poll(gateway, user, f"wait=0&cursor={again.json['cursor']}")
    assert texts(rest) == ["b"]


async def test_a_cursor_acknowledges_all_before_it(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    cursor = (await poll(gateway, user)).json["cursor"]
    await pusher.push_one(user, b"a")
    cursor = (await poll(gateway, user, f"wait=0&cursor={cursor}")).json["cursor"]
    for _ in range(2):
        answer = await poll(gateway, user, f"wait=0&cursor={cursor}")
        assert texts(answer) == []
        assert "gap" not in answer.json


async def test_a_second_poll_ends_the_first_with_an_empty_list(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    async with wire_to(gateway.port) as one, wire_to(gateway.port) as two:
        first = await opened(one, user)
        await first.send(wait=30)
        second = PollClient(two, first.answer, first.credential, first.cursor)
        # The gateway has parked the first by the time it answers another request of ours.
        await request(gateway.port, "GET", "/healthz")
        await second.send(wait=30)
        assert texts(await first.take()) == []
        await pusher.push_one(user, b"x")
        assert texts(await second.take()) == ["x"]


@pytest.mark.parametrize("cursor", ["nonsense", "a.b", ".", "0", "%F0%9F%92%A9", "x" * 3_000])
async def test_an_unknown_cursor_gives_a_new_session_and_says_gap(
    gateway: GatewayProcess, pusher: Pusher, user: str, cursor: str
) -> None:
    answer = await poll(gateway, user, f"wait=20&cursor={cursor}")
    assert answer.json["gap"] is True
    await pusher.push_one(user, b"x")
    following = await poll(gateway, user, f"wait=0&cursor={answer.json['cursor']}")
    assert texts(following) == ["x"]
    assert "gap" not in following.json


@pytest.mark.parametrize("change", [".1", ".99", ".-1", ".", ".0x0"])
async def test_a_count_that_was_never_given_is_an_unknown_cursor(
    gateway: GatewayProcess, user: str, change: str
) -> None:
    key = (await poll(gateway, user)).json["cursor"].rpartition(".")[0]
    answer = await poll(gateway, user, f"wait=0&cursor={key}{change}")
    assert answer.json["gap"] is True


async def test_a_cursor_of_somebody_else_is_unknown(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    cursor = (await poll(gateway, user)).json["cursor"]
    await pusher.push_one(user, b"private")
    answer = await poll(gateway, f"{user}-thief", f"wait=0&cursor={cursor}")
    assert answer.json["gap"] is True
    assert answer.json["messages"] == []
    assert texts(await poll(gateway, user, f"wait=0&cursor={cursor}")) == ["private"]


async def test_a_cursor_is_good_on_another_node(
    gateway: GatewayProcess, start_gateway: object, pusher: Pusher, user: str
) -> None:
    assert callable(start_gateway)
    other: GatewayProcess = start_gateway()
    cursor = (await poll(other, user)).json["cursor"]
    there = (await poll(gateway, user, f"wait=0&cursor={cursor}")).json
    assert "gap" not in there
    await pusher.push_one(user, b"x")
    back = (await poll(other, user, f"wait=0&cursor={there['cursor']}")).json
    assert "gap" not in back
    assert texts(await poll(gateway, user, f"wait=0&cursor={back['cursor']}")) == ["x"]


async def test_without_resuming_a_cursor_is_its_own_nodes_alone(
    start_gateway: Callable[..., GatewayProcess], user: str
) -> None:
    one, other = (start_gateway(resume_seconds=0) for _ in range(2))
    cursor = (await poll(one, user)).json["cursor"]
    assert "," not in cursor
    assert (await poll(other, user, f"wait=0&cursor={cursor}")).json["gap"] is True
    assert "gap" not in (await poll(one, user, f"wait=0&cursor={cursor}")).json


async def test_what_has_no_room_between_polls_is_overloaded_and_taken_later_without_a_gap(
    start_gateway: object, user: str
) -> None:
    assert callable(start_gateway)
    small: GatewayProcess = start_gateway(poll_buffer_bytes=8_192)
    pusher = Pusher(small.internal_port)
    async with pusher.http:
        cursor = (await poll(small, user)).json["cursor"]
        batch = [{"user": user, "data": "x" * 1_000} for _ in range(20)]
        results = await pusher.push(batch)
        kept = results.count(1)
        assert 1 <= kept <= 8
        assert results[kept:] == [{"error": "overloaded"}] * (20 - kept)
        answer = await poll(small, user, f"wait=0&cursor={cursor}")
        assert (len(texts(answer)), "gap" in answer.json) == (kept, False)
        following = await poll(small, user, f"wait=0&cursor={answer.json['cursor']}")
        assert texts(following) == []
        await pusher.push_one(user, b"room again")
        following = await poll(small, user, f"wait=0&cursor={answer.json['cursor']}")
        assert texts(following) == ["room again"]


async def test_one_connection_carries_many_polls(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    async with wire_to(gateway.port) as wire:
        client = await opened(wire, user)
        for number in range(50):
            await client.send(wait=10)
            await pusher.push_one(user, b"%d" % number)
            answer = await client.take()
            assert texts(answer) == [str(number)]
            assert answer.headers.get("connection", "keep-alive").lower() == "keep-alive"


async def test_a_kept_connection_takes_other_requests_after_a_poll(
    gateway: GatewayProcess, user: str
) -> None:
    async with wire_to(gateway.port) as wire:
        client = await opened(wire, user)
        await client.send(wait=0.3)
        await client.take()
        await wire.send(head("GET", "/healthz"))
        assert (await wire.answer()).json == {"status": "alive"}


@pytest.mark.parametrize(
    ("version", "fields"), [("1.0", {}), ("1.1", {"Connection": "close"})], ids=["1.0", "close"]
)
@pytest.mark.parametrize("wait", ["0", "0.3"])
async def test_a_client_that_wants_the_end_gets_it_after_the_answer(
    gateway: GatewayProcess, user: str, version: str, fields: dict[str, str], wait: str
) -> None:
    async with wire_to(gateway.port) as wire:
        target = f"/poll?wait={wait}"
        await wire.send(head("GET", target, {**bearer(user), **fields}, version=version))
        answer = await wire.answer()
        assert answer.json["messages"] == []
        assert answer.headers["connection"] == "close"
        await wire.ended()


async def test_a_request_behind_a_parked_poll_is_answered_after_it(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    async with wire_to(gateway.port) as wire:
        client = await opened(wire, user)
        await client.send(wait=10)
        await request(gateway.port, "GET", "/healthz")  # by now the poll is parked
        following = head("GET", "/healthz")
        await wire.send(following[:10])
        await wire.send(following[10:])
        await pusher.push_one(user, b"x")
        assert texts(await client.take()) == ["x"]
        assert (await wire.answer()).json == {"status": "alive"}


async def test_a_request_in_the_segment_of_a_poll_is_answered_or_cut_off_cleanly(
    gateway: GatewayProcess, user: str
) -> None:
    async with wire_to(gateway.port) as wire:
        client = await opened(wire, user)
        asked = head("GET", f"/poll?wait=0.3&cursor={client.cursor}", bearer(user))
        await wire.send(asked + head("GET", "/healthz"))
        answer = await wire.answer()
        assert texts(answer) == []
        if answer.headers.get("connection") == "close":
            await wire.ended()
        else:
            assert (await wire.answer()).json == {"status": "alive"}


@pytest.mark.parametrize("cut", [1, 20])
async def test_half_a_request_in_the_segment_of_a_poll_is_answered_or_cut_off_cleanly(
    gateway: GatewayProcess, user: str, cut: int
) -> None:
    async with wire_to(gateway.port) as wire:
        client = await opened(wire, user)
        asked = head("GET", f"/poll?wait=0.3&cursor={client.cursor}", bearer(user))
        following = head("GET", "/healthz")
        await wire.send(asked + following[:cut])
        answer = await wire.answer()
        assert texts(answer) == []
        if answer.headers.get("connection") == "close":
            await wire.ended()
        else:
            await wire.send(following[cut:])
            assert (await wire.answer()).json == {"status": "alive"}


async def test_a_flood_behind_a_parked_poll_is_cut_off(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    async with wire_to(gateway.port) as wire:
        client = await opened(wire, user)
        await client.send(wait=30)
        await request(gateway.port, "GET", "/healthz")
        await wire.send(b"x" * 40_000)
        await wire.ended()
        await pusher.push_one(user, b"the session lives")
        answer = await poll(gateway, user, f"wait=0&cursor={client.cursor}")
        assert texts(answer) == ["the session lives"]


async def test_a_poll_that_is_broken_off_loses_nothing(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    async with wire_to(gateway.port) as wire:
        client = await opened(wire, user)
        await client.send(wait=30)
        await request(gateway.port, "GET", "/healthz")
    await pusher.push_one(user, b"kept")
    answer = await poll(gateway, user, f"wait=0&cursor={client.cursor}")
    assert texts(answer) == ["kept"]
    assert "gap" not in answer.json


async def test_an_answer_that_never_arrived_comes_again(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    async with connect("poll", gateway.port, user) as client:
        assert isinstance(client, PollClient)
        cursor = client.cursor
        await client.send(wait=30)
        await request(gateway.port, "GET", "/healthz")
        await pusher.push_one(user, b"answered into the void")
    answer = await poll(gateway, user, f"wait=0&cursor={cursor}")
    assert texts(answer) == ["answered into the void"]
