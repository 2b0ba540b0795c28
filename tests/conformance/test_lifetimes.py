"""How long a connection lives: its maximum age, its token, and an operator's patience."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

import pytest

from registry.redis_store import RedisRegistry
from tests.conformance.steps import leave, until_gone
from tests.support.clients import (
    TEXT,
    TRANSPORTS,
    Client,
    Control,
    Ended,
    PollClient,
    Pusher,
    SseClient,
    WebSocketClient,
    Wire,
    bearer,
    connect,
    frame,
    pusher_to,
    request,
    token,
)
from tests.support.processes import INTERNAL_SECRET, GatewayProcess

pytestmark = pytest.mark.anyio

Start = Callable[..., GatewayProcess]

MAX_AGE: Final = 2.0
JITTER: Final = 1.0
DELAY: Final = 0.5
GRACE: Final = 4.0
TTL: Final = 3
SECRET: Final = {"Authorization": f"Bearer {INTERNAL_SECRET}"}
#: What a busy machine may add to any of these.
SLACK: Final = 0.9


@pytest.fixture(scope="module")
def ageing(start_gateway: Start) -> GatewayProcess:
    """Give a gateway whose connections are soon too old."""
    return start_gateway(
        max_age_seconds=MAX_AGE, max_age_jitter_seconds=JITTER, reconnect_delay_seconds=DELAY
    )


@asynccontextmanager
async def v1(
    gateway: GatewayProcess, user: str, *, device: str | None = None, ttl_seconds: int = 600
) -> AsyncIterator[WebSocketClient]:
    async with connect(
        "ws-v1", gateway.port, user, device=device, ttl_seconds=ttl_seconds
    ) as client:
        assert isinstance(client, WebSocketClient)
        yield client


def check_told(told: Control) -> None:
    assert (told["control"], told["code"]) == ("reconnect", 4000)
    assert 0 <= told["after_ms"] <= DELAY * 1_000


@dataclass(frozen=True, slots=True)
class Turn:
    """When a client was told to reconnect, in seconds of its life, and how long to wait."""

    age: float
    after_ms: int


async def told(gateway: GatewayProcess, user: str) -> Turn:
    """Be told, wait as told, and close first."""
    async with v1(gateway, user) as client:
        began = time.monotonic()
        control = await client.control(timeout=MAX_AGE + SLACK)
        age = time.monotonic() - began
        check_told(control)
        with pytest.raises(TimeoutError):  # nothing comes while it waits
            await client.next(timeout=control["after_ms"] / 1_000)
        await leave(client)
        return Turn(age, control["after_ms"])


async def stays_and_is_closed(gateway: GatewayProcess, user: str, pusher: Pusher) -> None:
    """Be told, stay, get messages all the same, and be closed."""
    async with v1(gateway, user) as client:
        control = await client.control(timeout=MAX_AGE + SLACK)
        began = time.monotonic()
        await pusher.push_one(user, b"meanwhile")
        assert (await client.message()).payload == b"meanwhile"
        ended = await client.ended(timeout=DELAY + GRACE + SLACK)
        assert (ended.code, ended.reason) == (4000, "maximum age reached")
        stayed = time.monotonic() - began
        assert stayed >= control["after_ms"] / 1_000 + GRACE - SLACK


async def stream_is_closed(gateway: GatewayProcess, user: str, pusher: Pusher) -> None:
    """Get the events that say so, and the end of the stream."""
    async with connect("sse", gateway.port, user) as client:
        assert isinstance(client, SseClient)
        check_told(await client.control(timeout=MAX_AGE + SLACK))
        assert client.retry_ms is not None
        await pusher.push_one(user, b"meanwhile")
        assert (await client.message()).payload == b"meanwhile"
        closed = await client.control(timeout=DELAY + GRACE + SLACK)
        assert closed == {"control": "close", "code": 4000, "reason": "maximum age reached"}
        await client.wire.ended()


async def plain_is_closed(gateway: GatewayProcess, user: str) -> None:
    """Get the Close frame alone, at that age."""
    async with connect("ws-plain", gateway.port, user) as client:
        began = time.monotonic()
        ended = await client.ended(timeout=MAX_AGE + SLACK)
        assert (ended.code, ended.reason) == (4000, "maximum age reached")
        assert time.monotonic() - began >= MAX_AGE - JITTER - 0.1


async def poll_moves(gateway: GatewayProcess, user: str, pusher: Pusher) -> None:
    """Poll until an answer closes its connection; the session is there over the next one."""
    async with connect("poll", gateway.port, user) as client:
        assert isinstance(client, PollClient)
        began = time.monotonic()
        answer = client.answer
        while answer.headers.get("connection") != "close":
            assert time.monotonic() - began < MAX_AGE + SLACK
            await client.send(wait=0.2)
            answer = await client.take()
        assert time.monotonic() - began >= MAX_AGE - JITTER - 0.1
        await client.wire.ended()
        await pusher.push_one(user, b"between")
        client.wire = await Wire.open(gateway.port)
        try:
            assert (await client.message()).payload == b"between"
            assert client.gaps == 0
        finally:
            await client.wire.close()


async def test_at_the_maximum_age_each_transport_is_told_in_its_way(
    ageing: GatewayProcess, user: str
) -> None:
    async with pusher_to(ageing.internal_port) as pusher, asyncio.TaskGroup() as group:
        turns = [group.create_task(told(ageing, f"{user}-{n}")) for n in range(16)]
        group.create_task(stays_and_is_closed(ageing, f"{user}-stays", pusher))
        group.create_task(stream_is_closed(ageing, f"{user}-sse", pusher))
        group.create_task(plain_is_closed(ageing, f"{user}-plain"))
        group.create_task(poll_moves(ageing, f"{user}-poll", pusher))
    ages = [task.result().age for task in turns]
    assert min(ages) >= MAX_AGE - JITTER - 0.1
    assert max(ages) - min(ages) > JITTER / 4, "the age is drawn for each"
    assert len({task.result().after_ms for task in turns}) > 4, "the delay is drawn for each"


class Expiry:
    """A token's expiry: between these two moments (Unix time, seconds), `exp` is whole."""

    def __init__(self) -> None:
        self.earliest = int(time.time()) + TTL
        self.left = TTL + 5.0

    def check(self, latest: int) -> None:
        """Check that it is now, or has been for five seconds at most; a tick is 0.25 s."""
        assert self.earliest - 0.05 <= time.time() <= latest + 5.0


async def websocket_expires(transport: str, gateway: GatewayProcess, user: str) -> None:
    expiry = Expiry()
    async with connect(transport, gateway.port, user, ttl_seconds=TTL) as client:
        latest = int(time.time()) + TTL
        assert isinstance(client, WebSocketClient)
        if transport == "ws-v1":
            notice = await client.control()
            assert notice["control"] == "expiring"
            assert 0 < notice["in_ms"] <= TTL * 1_000 + 250
        ended = await client.ended(expiry.left)
        assert (ended.code, ended.reason) == (4002, "token expired")
        expiry.check(latest)


async def stream_expires(gateway: GatewayProcess, user: str) -> None:
    expiry = Expiry()
    async with connect("sse", gateway.port, user, ttl_seconds=TTL) as client:
        latest = int(time.time()) + TTL
        assert isinstance(client, SseClient)
        closed = await client.control(expiry.left)
        assert closed == {"control": "close", "code": 4002, "reason": "token expired"}
        assert client.retry_ms is not None
        await client.wire.ended()
        expiry.check(latest)


async def poll_expires(gateway: GatewayProcess, user: str) -> None:
    expiry = Expiry()
    async with connect("poll", gateway.port, user, ttl_seconds=TTL) as client:
        latest = int(time.time()) + TTL
        assert isinstance(client, PollClient)
        await client.send(wait=30)
        await client.take(expiry.left)
        expiry.check(latest)
        await client.send(wait=0)
        with pytest.raises(Ended, match="status 401"):
            await client.take()
        client.credential = bearer(user)
        await client.send(wait=0)
        await client.take()
        assert client.gaps == 0  # with a new token, the session is still there


async def outlives(gateway: GatewayProcess, user: str, pusher: Pusher) -> None:
    """Stay, by a refresh, where a connection of the same token is closed."""
    async with v1(gateway, user, device="phone", ttl_seconds=TTL) as client:
        later = f"{user}-later"
        answer = await ask_refresh(client, token(user, device="phone"))
        assert answer.keys() == {"control", "expires_in_ms"}
        assert answer["control"] == "refreshed"
        assert 590_000 < answer["expires_in_ms"] <= 600_000
        await websocket_expires("ws-plain", gateway, later)
        await pusher.push_one(user, b"still here")
        assert (await client.message()).payload == b"still here"


async def is_refused(gateway: GatewayProcess, user: str, pusher: Pusher) -> None:
    """Be refused each token that is not good for this connection, and be closed in time."""
    tokens = [
        "no token at all",
        token(user, device="phone", secret="another secret of thirty-two bytes or more"),
        token(user, device="phone", ttl_seconds=-60),
        token(f"{user}-other", device="phone"),
        token(user, device="tablet"),
        token(user),
    ]
    expiry = Expiry()
    async with v1(gateway, user, device="phone", ttl_seconds=TTL) as client:
        latest = int(time.time()) + TTL
        for text in tokens:
            answer = await ask_refresh(client, text)
            assert answer.keys() == {"control", "reason"}
            assert answer["control"] == "refused"
        await pusher.push_one(user, b"still here")
        assert (await client.message()).payload == b"still here"
        ended = await client.ended(expiry.left)
        assert ended.code == 4002
        expiry.check(latest)
    for text in tokens[1:]:
        assert text not in gateway.log


async def ask_refresh(client: WebSocketClient, text: str) -> Control:
    """Send a token; give the answer, in which nothing of it is."""
    asked = json.dumps({"control": "refresh", "token": text}).encode()
    await client.wire.send(frame(TEXT, asked))
    answer = await client.control()
    while answer["control"] == "expiring":
        answer = await client.control()
    said = json.dumps(answer)
    assert not [part for part in text.split(".") if part in said]
    return answer


async def test_a_token_is_good_until_it_expires_or_is_refreshed(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(websocket_expires("ws-v1", gateway, f"{user}-v1"))
        group.create_task(websocket_expires("ws-plain", gateway, f"{user}-plain"))
        group.create_task(stream_expires(gateway, f"{user}-sse"))
        group.create_task(poll_expires(gateway, f"{user}-poll"))
        group.create_task(outlives(gateway, f"{user}-refreshed", pusher))
        group.create_task(is_refused(gateway, f"{user}-refused", pusher))


def path_of(user: str) -> str:
    return f"/connections/{quote(user, safe='')}"


async def connect_all(stack: AsyncExitStack, gateway: GatewayProcess, user: str) -> list[Client]:
    """Connect a user once by each transport; the poll is parked."""
    clients = [
        await stack.enter_async_context(connect(transport, gateway.port, user))
        for transport in TRANSPORTS
    ]
    poll = clients[-1]
    assert isinstance(poll, PollClient)
    await poll.send(wait=30)
    await request(gateway.port, "GET", "/healthz")
    return clients


@pytest.mark.parametrize("name", ["plain", "a/b", "ü & 100%/…?x=1#y", "..", "/"])
async def test_a_user_is_disconnected_on_every_transport(
    gateway: GatewayProcess, registry: RedisRegistry, pusher: Pusher, user: str, name: str
) -> None:
    user = name if name in ("..", "/") else f"{user}/{name}"
    async with AsyncExitStack() as stack:
        clients = await connect_all(stack, gateway, user)
        other = await stack.enter_async_context(connect("ws-v1", gateway.port, f"{user}-other"))
        answer = await request(gateway.internal_port, "DELETE", path_of(user), SECRET)
        assert (answer.status, answer.json) == (200, {"closed": 4})
        plain, v1_client, stream, poll = clients
        for client in (plain, v1_client):
            ended = await client.ended()
            assert (ended.code, ended.reason) == (4003, "disconnected")
        assert isinstance(stream, SseClient)
        assert (await stream.control())["code"] == 4003
        await stream.wire.ended()
        assert isinstance(poll, PollClient)
        assert (await poll.take()).headers["connection"] == "close"
        await poll.wire.ended()
        await until_gone(registry, user)
        answer = await request(gateway.internal_port, "DELETE", path_of(user), SECRET)
        assert (answer.status, answer.json) == (404, {"closed": 0})
        await pusher.push_one(f"{user}-other", b"undisturbed")
        assert (await other.message()).payload == b"undisturbed"


async def test_one_device_is_disconnected_and_the_users_others_stay(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    async with (
        v1(gateway, user, device="a phone") as phone,
        v1(gateway, user, device="tablet") as tablet,
        v1(gateway, user) as unnamed,
    ):
        path = path_of(user)
        missing = await pusher.http.delete(path, params={"device": "watch"})
        assert (missing.status_code, missing.json()) == (404, {"closed": 0})
        answer = await pusher.http.delete(path, params={"device": "a phone"})
        assert (answer.status_code, answer.json()) == (200, {"closed": 1})
        assert (await phone.ended()).code == 4003
        assert await pusher.push([{"user": user, "data": "x"}]) == [2]
        for client in (tablet, unnamed):
            assert (await client.message()).payload == b"x"


async def test_only_who_has_the_internal_secret_disconnects_and_on_the_internal_port_alone(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    path = path_of(user)
    wrong = {"Authorization": f"Bearer {INTERNAL_SECRET}x"}
    async with v1(gateway, user) as client:
        asked = [
            (gateway.internal_port, {}, 401),
            (gateway.internal_port, wrong, 403),
            (gateway.internal_port, bearer(user), 403),
            (gateway.port, SECRET, 404),
            (gateway.port, bearer(user), 404),
        ]
        for port, headers, status in asked:
            assert (await request(port, "DELETE", path, headers)).status == status
        await pusher.push_one(user, b"still here")
        assert (await client.message()).payload == b"still here"
