"""Messages that are pushed again, as after a processor's crash: nobody sees one twice."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest

from tests.conformance.steps import metric
from tests.support.clients import PollClient, Pusher, connect, pusher_to
from tests.support.processes import GatewayProcess

pytestmark = pytest.mark.anyio

StartGateway = Callable[..., GatewayProcess]
REPEATS = "pushgate_gateway_repeats_total"


@pytest.fixture(scope="module")
def forgetful(start_gateway: StartGateway) -> GatewayProcess:
    """Give a gateway that knows nothing again."""
    return start_gateway(repeat_window_messages=0)


@pytest.fixture
async def forgetful_pusher(forgetful: GatewayProcess) -> AsyncIterator[Pusher]:
    async with pusher_to(forgetful.internal_port) as pushing:
        yield pushing


def batch_for(user: str, count: int) -> list[dict[str, object]]:
    return [{"user": user, "data": str(n), "id": f"t-0-{n}"} for n in range(count)]


@pytest.mark.parametrize("packed", [False, True], ids=["json", "messagepack"])
async def test_a_batch_that_comes_again_is_answered_alike_and_seen_once(
    gateway: GatewayProcess, pusher: Pusher, transport: str, packed: bool, user: str
) -> None:
    batch = batch_for(user, 50)
    batch.append({"user": "nobody", "data": "x", "id": "t-0-50"})
    before = await metric(pusher, REPEATS)
    async with connect(transport, gateway.port, user) as client:
        first = await pusher.push(batch, packed=packed)
        assert first == [1] * 50 + [0]
        assert await pusher.push(batch, packed=packed) == first
        # A batch of another cut, as after a rebalance: half of it is new.
        assert await pusher.push(batch_for(user, 100)[40:], packed=packed) == [1] * 60
        await pusher.push_one(user, b"the end")
        seen = [(await client.message()).payload for _ in range(101)]
    assert seen == [*(b"%d" % n for n in range(100)), b"the end"]
    assert await metric(pusher, REPEATS) == before + 60


@pytest.mark.parametrize("packed", [False, True], ids=["json", "messagepack"])
@pytest.mark.parametrize("users", ["one", "list"])
async def test_messages_of_one_id_and_two_scopes_are_no_repeats_of_each_other(
    gateway: GatewayProcess, pusher: Pusher, packed: bool, users: str, user: str
) -> None:
    to = user if users == "one" else [user, "nobody"]
    batch: list[dict[str, object]] = [
        {"user": to, "data": str(number), "id": "1", "id_scope": scope}
        for number, scope in enumerate([None, "shop", "bank", 1_000, 1_001])
    ]
    expected = [1 if users == "one" else [1, 0]] * len(batch)
    async with connect("ws-v1", gateway.port, user) as client:
        for _ in range(2):
            assert await pusher.push(batch, packed=packed) == expected
        await pusher.push_one(user, b"the end")
        seen = [(await client.message()).payload for _ in range(len(batch) + 1)]
    assert seen == [*(b"%d" % number for number in range(len(batch))), b"the end"]


async def test_without_a_window_repeats_are_seen(
    forgetful: GatewayProcess, forgetful_pusher: Pusher, user: str
) -> None:
    async with connect("ws-plain", forgetful.port, user) as client:
        for _ in range(2):
            assert await forgetful_pusher.push(batch_for(user, 2)) == [1, 1]
        seen = [(await client.message()).payload for _ in range(4)]
    assert seen == [b"0", b"1", b"0", b"1"]
    assert await metric(forgetful_pusher, REPEATS) == 0


async def test_a_user_who_was_not_here_gets_it_when_it_comes_again(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    batch = batch_for(user, 1)
    assert await pusher.push(batch) == [0]
    async with connect("ws-plain", gateway.port, user) as client:
        assert await pusher.push(batch) == [1]
        assert (await client.message()).payload == b"0"


async def test_what_a_user_had_does_not_come_again_after_a_reconnect(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    batch = batch_for(user, 1)
    async with AsyncExitStack() as both:
        for _ in range(2):
            await both.enter_async_context(connect("ws-plain", gateway.port, user))
        assert await pusher.push(batch) == [2]
    assert await pusher.push(batch) == [2]
    async with connect("sse", gateway.port, user) as client:
        assert await pusher.push(batch) == [2]
        await pusher.push_one(user, b"new")
        assert (await client.message()).payload == b"new"


async def test_a_device_that_was_not_here_gets_it_when_it_comes_again(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    entry = {"user": user, "data": "x", "id": "1"}
    async with connect("ws-plain", gateway.port, user, device="phone") as phone:
        assert await pusher.push([{**entry, "device": "desk"}]) == [{"error": "no-device"}]
        assert await pusher.push([{**entry, "device": "phone"}]) == [1]
        async with connect("ws-plain", gateway.port, user, device="desk") as desk:
            assert await pusher.push([{**entry, "device": "desk"}]) == [1]
            assert (await desk.message()).payload == b"x"
        assert await pusher.push([{**entry, "device": "phone"}]) == [1]
        await pusher.push_one(user, b"new")
        assert [(await phone.message()).payload for _ in range(2)] == [b"x", b"new"]


async def test_what_was_refused_for_a_full_buffer_is_tried_afresh(
    start_gateway: StartGateway, user: str
) -> None:
    small = start_gateway(poll_buffer_bytes=4_096)
    entry = {"user": user, "data": "x" * 3_000}
    async with (
        connect("poll", small.port, user) as client,
        pusher_to(small.internal_port) as pusher,
    ):
        assert isinstance(client, PollClient)
        batch = [{**entry, "id": "1"}, {**entry, "id": "2"}]
        for _ in range(2):
            assert await pusher.push(batch) == [1, {"error": "overloaded"}]
        assert (await client.message()).id == "1"
        await client.send(wait=0)
        await client.take()  # it has acknowledged the first, and there is room
        assert await pusher.push(batch) == [1, 1]
        assert (await client.message()).id == "2"
