"""How much a node takes: who is refused for load, how, and who is served all the same."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import pytest

from pushgate.embedded import LOOPBACK
from tests.conformance.conftest import ALLOWED_ORIGIN
from tests.support.clients import (
    SECONDS,
    TRANSPORTS,
    Answer,
    Client,
    Ended,
    PollClient,
    SseClient,
    WebSocketClient,
    Wire,
    bearer,
    close_frame,
    connect,
    eventually,
    head,
    pusher_to,
    request,
    upgrade_headers,
    wire_to,
)
from tests.support.processes import GatewayProcess

pytestmark = pytest.mark.anyio

PATHS: Final = ("/ws", "/sse", "/poll?wait=0")
EVENT_SOURCE: Final = {"Accept": "text/event-stream"}
MOST: Final = 4
RATE: Final = 5
MAX_AGE: Final = 2.0

Start = Callable[..., GatewayProcess]


@pytest.fixture(scope="module")
def small(start_gateway: Start) -> GatewayProcess:
    """Give a gateway that takes four connections, and keeps no session that nobody polls."""
    return start_gateway(max_connections=MOST, poll_grace_seconds=0.2, origins=ALLOWED_ORIGIN)


@pytest.fixture(scope="module")
def two_a_user(start_gateway: Start) -> GatewayProcess:
    """Give a gateway that takes two connections of a user."""
    return start_gateway(max_connections_per_user=2, poll_grace_seconds=1)


@pytest.fixture(scope="module")
def two_an_address(start_gateway: Start) -> GatewayProcess:
    """Give a gateway that takes two connections of an address."""
    return start_gateway(max_connections_per_address=2)


@pytest.fixture(scope="module")
def handing_over(start_gateway: Start) -> GatewayProcess:
    """Give a gateway with few places, whose clients are soon told to reconnect."""
    return start_gateway(
        max_connections=2,
        max_connections_per_user=1,
        max_age_seconds=MAX_AGE,
        max_age_jitter_seconds=0,
        reconnect_delay_seconds=0,
        poll_grace_seconds=1,
    )


@asynccontextmanager
async def full(gateway: GatewayProcess, user: str) -> AsyncIterator[dict[str, Client]]:
    """Fill a small gateway with a connection on each transport."""
    await empty(gateway)
    async with AsyncExitStack() as stack:
        clients = {
            transport: await stack.enter_async_context(connect(transport, gateway.port, user))
            for transport in TRANSPORTS
        }
        poll = clients["poll"]
        assert isinstance(poll, PollClient)
        await poll.send(wait=30)  # parked: its session lives as long as this is open
        yield clients


async def empty(gateway: GatewayProcess) -> None:
    """Return when a gateway holds nothing any more."""
    async with pusher_to(gateway.internal_port) as pusher:

        async def none() -> bool:
            return not await pusher.connections()

        await eventually(none, f"{gateway.name} holds nothing")


@asynccontextmanager
async def wire_from(address: str, port: int) -> AsyncIterator[Wire]:
    """Connect from an address of this machine's loopback network."""
    wire = Wire(*await asyncio.open_connection(LOOPBACK, port, local_addr=(address, 0)))
    try:
        yield wire
    finally:
        await wire.close()


async def ask(
    gateway: GatewayProcess, path: str, user: str, headers: dict[str, str] | None = None
) -> Answer:
    """Ask for a connection, and leave."""
    async with wire_to(gateway.port) as wire:
        return await ask_over(wire, path, user, headers)


async def ask_over(
    wire: Wire, path: str, user: str, headers: dict[str, str] | None = None
) -> Answer:
    fields = upgrade_headers() if path == "/ws" else {}
    await wire.send(head("GET", path, {**fields, **bearer(user), **(headers or {})}))
    return await wire.answer(bodiless=path == "/sse")


async def statuses(gateway: GatewayProcess, path: str) -> list[int]:
    ports = (gateway.port, gateway.internal_port)
    return [(await request(port, "GET", path)).status for port in ports]


def is_refused(answer: Answer) -> bool:
    """Whether a request was refused for load; what else is said about it has to be right."""
    if answer.status != 503:
        assert answer.status in (101, 200), answer
        return False
    assert 1 <= int(answer.headers["retry-after"]) <= 10
    assert answer.headers["connection"] == "close"
    return True


@pytest.mark.parametrize("path", PATHS)
async def test_the_one_above_the_limit_is_refused_and_told_when_to_come_back(
    small: GatewayProcess, user: str, path: str
) -> None:
    async with full(small, user):
        answers = [await ask(small, path, f"{user}-more") for _ in range(20)]
        assert all(is_refused(answer) for answer in answers)
        assert len({answer.headers["retry-after"] for answer in answers}) > 1, "it is drawn"


async def test_a_refusal_is_readable_for_an_allowed_origin(
    small: GatewayProcess, user: str
) -> None:
    async with full(small, user):
        answer = await ask(small, "/poll?wait=0", user, {"Origin": ALLOWED_ORIGIN})
        assert is_refused(answer)
        assert answer.headers["access-control-allow-origin"] == ALLOWED_ORIGIN
        assert "retry-after" in answer.headers["access-control-expose-headers"].lower()


async def test_an_event_source_is_sent_away_in_the_one_way_it_comes_back_from(
    small: GatewayProcess, user: str
) -> None:
    async def refused(headers: dict[str, str]) -> tuple[Answer, bytes]:
        async with wire_to(small.port) as wire:
            answer = await ask_over(wire, "/sse", user, {**EVENT_SOURCE, **headers})
            return answer, await wire.rest()

    async with full(small, user):
        delays = set()
        for _ in range(10):
            answer, body = await refused({"Origin": ALLOWED_ORIGIN})
            assert answer.status == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["cache-control"] == "no-store, no-transform"
            assert answer.headers["x-accel-buffering"] == "no"
            assert answer.headers["access-control-allow-origin"] == ALLOWED_ORIGIN
            name, _, value = body.decode().removesuffix("\n\n").partition(": ")
            assert name == "retry"
            delays.add(int(value))
        assert len(delays) > 1, "it is drawn"
        assert min(delays) >= 1_000


async def test_readyz_is_503_while_full_and_health_is_never_shed(
    small: GatewayProcess, user: str
) -> None:
    async with full(small, user) as clients:
        assert await statuses(small, "/readyz") == [503, 503]
        assert await statuses(small, "/healthz") == [200, 200]
        await clients["sse"].wire.close()

        async def ready() -> bool:
            return await statuses(small, "/readyz") == [200, 200]

        await eventually(ready, "ready again, with room for one")
        assert not is_refused(await ask(small, "/ws", user))


async def test_who_is_in_is_served_while_others_are_refused(
    small: GatewayProcess, user: str
) -> None:
    async with full(small, user) as clients, pusher_to(small.internal_port) as pusher:
        for number in range(5):
            assert is_refused(await ask(small, "/ws", f"{user}-more"))
            # A poll whose session is held is one of those that are in, also from a new socket.
            assert await pusher.push([{"user": user, "data": str(number)}]) == [MOST]
            for client in clients.values():
                assert (await client.message()).payload == b"%d" % number
        poll = clients["poll"]
        assert isinstance(poll, PollClient)
        async with wire_to(small.port) as wire:
            elsewhere = PollClient(wire, poll.answer, bearer(user), cursor=poll.cursor)
            await elsewhere.send(wait=0)
            await elsewhere.take()
            assert not elsewhere.gaps


async def test_another_users_poll_with_a_held_sessions_cursor_is_refused(
    small: GatewayProcess, user: str
) -> None:
    async with full(small, user) as clients:
        poll = clients["poll"]
        assert isinstance(poll, PollClient)
        path = f"/poll?wait=0&cursor={poll.cursor}"
        assert is_refused(await ask(small, path, f"{user}-thief"))


async def test_of_many_at_once_as_many_as_fit_get_in(small: GatewayProcess, user: str) -> None:
    await empty(small)
    async with AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(wire_to(small.port)) for _ in range(40)]
        answers = await asyncio.gather(*(ask_over(wire, "/ws", user) for wire in wires))
        assert sum(not is_refused(answer) for answer in answers) == MOST


@pytest.mark.parametrize("goodbye", [True, False])
async def test_places_are_free_again_when_connections_end(
    small: GatewayProcess, user: str, goodbye: bool
) -> None:
    for _ in range(2):
        async with full(small, user) as clients:
            for client in clients.values():
                if goodbye and isinstance(client, WebSocketClient):
                    await client.wire.send(close_frame(1000))
                    with pytest.raises(Ended):
                        await client.message()
    await empty(small)
    async with full(small, user):
        assert is_refused(await ask(small, "/ws", user))


async def test_refused_handshakes_take_no_place(small: GatewayProcess, user: str) -> None:
    await empty(small)
    for _ in range(2 * MOST):
        assert (await request(small.port, "GET", "/ws", bearer(user))).status == 426
        assert (await request(small.port, "GET", "/ws", upgrade_headers())).status == 401
    assert await statuses(small, "/readyz") == [200, 200]
    async with full(small, user):
        pass


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_user_has_no_more_than_their_number(
    two_a_user: GatewayProcess, user: str, transport: str
) -> None:
    async with connect("sse", two_a_user.port, user):
        async with connect(transport, two_a_user.port, user):
            for path in PATHS:
                assert is_refused(await ask(two_a_user, path, user))
            assert not is_refused(await ask(two_a_user, "/ws", f"{user}-other"))
            assert await statuses(two_a_user, "/readyz") == [200, 200]

        async def in_again() -> bool:
            return not is_refused(await ask(two_a_user, "/ws", user))

        await eventually(in_again, "the user's second place is free")


async def test_a_user_has_64_connections_to_a_node_if_no_number_is_set(
    start_gateway: Start, user: str
) -> None:
    gateway = start_gateway()
    async with AsyncExitStack() as stack:
        for _ in range(64):
            await stack.enter_async_context(connect("ws-plain", gateway.port, user))
        for path in PATHS:
            assert is_refused(await ask(gateway, path, user))
        assert not is_refused(await ask(gateway, "/ws", f"{user}-other"))
        async with pusher_to(gateway.internal_port) as pusher:
            assert await pusher.push([{"user": user, "data": "x"}]) == [64]


async def test_an_event_source_over_its_users_number_comes_back_later(
    two_a_user: GatewayProcess, user: str
) -> None:
    async with (
        connect("ws-v1", two_a_user.port, user),
        connect("ws-v1", two_a_user.port, user),
        wire_to(two_a_user.port) as wire,
    ):
        assert (await ask_over(wire, "/sse", user, EVENT_SOURCE)).status == 200
        assert (await wire.rest()).startswith(b"retry: ")


async def next_connection(client: Client) -> None:
    """Return when the client is told to reconnect; its connection stays open."""
    assert isinstance(client, WebSocketClient | SseClient)
    assert (await client.control(timeout=MAX_AGE + SECONDS))["control"] == "reconnect"


@pytest.mark.parametrize("transport", ["ws-v1", "sse"])
async def test_a_client_that_is_told_to_reconnect_has_a_place_where_its_user_has_but_one(
    handing_over: GatewayProcess, user: str, transport: str
) -> None:
    await empty(handing_over)
    port = handing_over.port
    async with connect(transport, port, user) as first:
        assert is_refused(await ask(handing_over, "/ws", user))
        await next_connection(first)
        async with (
            connect(transport, port, user) as second,
            pusher_to(handing_over.internal_port) as pusher,
        ):
            assert is_refused(await ask(handing_over, "/ws", user)), "one new for one old"
            assert await pusher.push([{"user": user, "data": "x"}]) == [2]
            for client in (first, second):
                assert (await client.message()).payload == b"x"


@pytest.mark.parametrize("transport", ["ws-v1", "sse"])
async def test_a_client_that_is_told_to_reconnect_has_a_place_on_a_full_node(
    handing_over: GatewayProcess, user: str, transport: str
) -> None:
    await empty(handing_over)
    port, other = handing_over.port, f"{user}-other"
    async with connect("poll", port, other) as poll, connect(transport, port, user) as first:
        assert isinstance(poll, PollClient)
        await poll.send(wait=30)  # parked: its session lives as long as this is open
        assert await statuses(handing_over, "/readyz") == [503, 503]
        await next_connection(first)
        assert is_refused(await ask(handing_over, "/ws", f"{user}-stranger"))
        async with connect(transport, port, user) as second:
            for name in (user, other, f"{user}-stranger"):
                assert is_refused(await ask(handing_over, "/ws", name))
            await first.wire.close()
            async with pusher_to(handing_over.internal_port) as pusher:

                async def gone() -> bool:
                    return await pusher.connections() == 2

                await eventually(gone, "the first connection is gone")
                assert await pusher.push([{"user": user, "data": "x"}]) == [1]
            assert (await second.message()).payload == b"x"


@pytest.mark.parametrize("path", ["/ws", "/sse"])
async def test_an_address_has_no_more_than_its_number(
    two_an_address: GatewayProcess, user: str, path: str
) -> None:
    port = two_an_address.port
    async with wire_from("127.0.0.2", port) as first, wire_from("127.0.0.2", port) as second:
        assert not is_refused(await ask_over(first, path, user))
        assert not is_refused(await ask_over(second, path, f"{user}-2"))
        async with wire_from("127.0.0.2", port) as third:
            assert is_refused(await ask_over(third, path, f"{user}-3"))
        async with wire_from("127.0.0.3", port) as elsewhere:
            assert not is_refused(await ask_over(elsewhere, path, user))
        assert await statuses(two_an_address, "/readyz") == [200, 200]
        await first.close()

        async def in_again() -> bool:
            async with wire_from("127.0.0.2", port) as again:
                return not is_refused(await ask_over(again, path, user))

        await eventually(in_again, "the address's second place is free")


async def test_handshakes_above_the_rate_are_refused_and_what_is_held_is_not_counted(
    start_gateway: Start, user: str
) -> None:
    gateway = start_gateway(handshakes_per_second=RATE)
    async with connect("poll", gateway.port, user) as poll:
        assert isinstance(poll, PollClient)
        began = time.monotonic()
        answers = [await ask(gateway, "/ws", user) for _ in range(4 * RATE)]
        most = RATE + math.ceil((time.monotonic() - began) * RATE)
        let_in = sum(not is_refused(answer) for answer in answers)
        assert RATE - 1 <= let_in <= most
        for _ in range(2 * RATE):
            await poll.send(wait=0)
            await poll.take()
        assert not poll.gaps
        assert await statuses(gateway, "/readyz") == [200, 200]

        async def in_again() -> bool:
            return not is_refused(await ask(gateway, "/ws", user))

        await eventually(in_again, "the next second's handshakes", timeout_seconds=SECONDS)
