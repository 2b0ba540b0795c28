"""`/pushgate.js` and real gateways that tell their clients to go, to come back or to stay away."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import pytest

from pushgate.token import mint
from tests.browser.balancer import balancer_to
from tests.browser.chromium import Chromium, Page
from tests.browser.pages import messages, page_at, told, watch
from tests.support.clients import Pusher, eventually, pusher_to, token
from tests.support.processes import JWT_SECRET, GatewayProcess

pytestmark = pytest.mark.anyio

STREAMS = ("ws", "sse")
#: Counts the connections that a page opens, by transport.
COUNT = """
window.made = {ws: 0, sse: 0};
window.WebSocket = class extends WebSocket {
  constructor(...given) { super(...given); made.ws += 1; }
};
((original) => {
  window.fetch = (url, options) => { made.sse += 1; return original(url, options); };
})(window.fetch);
"""


@asynccontextmanager
async def publishing(push: Callable[[str], Awaitable[int]]) -> AsyncIterator[list[str]]:
    """Push about a hundred messages a second to alice; give their ids so far."""
    sent: list[str] = []
    done = asyncio.Event()

    async def publish() -> None:
        while not done.is_set():
            push_id = str(len(sent))
            assert await push(push_id) >= 1, f"{push_id} found nobody"
            sent.append(push_id)
            await asyncio.sleep(0.01)  # the pace: nothing is waited for

    task = asyncio.create_task(publish())
    try:
        yield sent
    finally:
        done.set()
        await task


def to_alice(*pushers: Pusher) -> Callable[[str], Awaitable[int]]:
    """Give a push to each of alice's nodes, as processors do; it says how many took it."""

    async def push_to(pusher: Pusher, push_id: str) -> int:
        try:
            [taken] = await pusher.push([{"user": "alice", "data": push_id, "id": push_id}])
        except httpx.TransportError:
            return 0  # the node has left
        return int(taken)

    async def push(push_id: str) -> int:
        return sum(await asyncio.gather(*(push_to(pusher, push_id) for pusher in pushers)))

    return push


async def assert_each_came_once(page: Page, name: str, sent: list[str]) -> None:
    found = await messages(page, name, len(sent))
    assert [message["id"] for message in found] == sent
    assert await told(page, name) == ["open"]


@pytest.mark.parametrize("transport", STREAMS)
async def test_at_its_maximum_age_a_connection_is_replaced_without_loss(
    chromium: Chromium, redis_url: str, transport: str
) -> None:
    settings = {"max_age_seconds": 1, "max_age_jitter_seconds": 0, "reconnect_delay_seconds": 0.5}
    with GatewayProcess("aging", redis_url=redis_url, **settings) as gateway:
        async with (
            page_at(chromium, gateway.port) as page,
            pusher_to(gateway.internal_port) as pusher,
        ):
            await page.evaluate(COUNT)
            await watch(page, transport, token("alice"))
            async with publishing(to_alice(pusher)) as sent:
                await page.until(f"made.{transport} === 4")
            await assert_each_came_once(page, transport, sent)


async def test_when_a_node_drains_its_clients_move_to_another_without_loss(
    chromium: Chromium, redis_url: str
) -> None:
    leaving = GatewayProcess("leaving", redis_url=redis_url, drain_seconds=3)
    staying = GatewayProcess("staying", redis_url=redis_url)
    with leaving, staying:
        async with (
            balancer_to(leaving.port) as balancer,
            page_at(chromium, balancer.port) as page,
            pusher_to(leaving.internal_port) as old,
            pusher_to(staying.internal_port) as new,
        ):
            for transport in STREAMS:
                await watch(page, transport, token("alice"))
            balancer.target = staying.port
            async with publishing(to_alice(old, new)) as sent:
                assert (await old.http.post("/drain")).status_code == 202
                await eventually(
                    lambda: leaving.returncode is not None, "it has left", timeout_seconds=10.0
                )
            for transport in STREAMS:
                await assert_each_came_once(page, transport, sent)
        assert leaving.returncode == 0


def renewing(first: str, second: str, *, at: float) -> str:
    """JavaScript of a function that gives the first token until `at`, a Unix time."""
    return f"() => Date.now() < {at * 1000} ? {json.dumps(first)} : {json.dumps(second)}"


async def test_a_websocket_outlives_its_first_token(chromium: Chromium, redis_url: str) -> None:
    with GatewayProcess("renewing", redis_url=redis_url) as gateway:
        async with (
            page_at(chromium, gateway.port) as page,
            pusher_to(gateway.internal_port) as pusher,
        ):
            await page.evaluate(COUNT)
            expires_at = int(time.time()) + 4
            source = json.dumps([mint("alice", JWT_SECRET, ttl_seconds=4), token("alice")])
            await page.evaluate(f"window.left = {source}")
            await page.evaluate("watch('ws', {token: () => left.shift()})")
            await page.until("seen.ws.connection.state === 'open'")
            await eventually(
                lambda: time.time() > expires_at + 2, "it has expired", timeout_seconds=10.0
            )
            await pusher.push_one("alice", b"later")
            assert [message["data"] for message in await messages(page, "ws", 1)] == ["later"]
            assert await told(page, "ws") == ["open"]
            assert await page.evaluate("[made.ws, left.length]") == [1, 0]


@pytest.mark.parametrize("transport", ["sse", "poll"])
async def test_an_event_stream_and_a_poll_outlive_their_tokens_unseen(
    chromium: Chromium, redis_url: str, transport: str
) -> None:
    with GatewayProcess("renewing", redis_url=redis_url) as gateway:
        async with (
            page_at(chromium, gateway.port) as page,
            pusher_to(gateway.internal_port) as pusher,
        ):
            expires_at = int(time.time()) + 4
            source = json.dumps([mint("alice", JWT_SECRET, ttl_seconds=4), token("alice")])
            await page.evaluate(f"window.left = {source}")
            options = f"{{transport: '{transport}', token: () => left.shift()}}"
            await page.evaluate(f"watch('{transport}', {options})")
            await page.until(f"seen.{transport}.connection.state === 'open'")
            async with publishing(to_alice(pusher)) as sent:
                await eventually(
                    lambda: time.time() > expires_at + 2, "it has expired", timeout_seconds=10.0
                )
            await assert_each_came_once(page, transport, sent)
            assert await page.evaluate("left.length") == 0


@pytest.mark.parametrize("transport", STREAMS)
async def test_after_its_token_has_expired_it_comes_back_with_a_new_one(
    chromium: Chromium, redis_url: str, transport: str
) -> None:
    with GatewayProcess("expiring", redis_url=redis_url) as gateway:
        async with (
            page_at(chromium, gateway.port) as page,
            pusher_to(gateway.internal_port) as pusher,
        ):
            short = mint("alice", JWT_SECRET, ttl_seconds=2)
            expires_at = int(time.time()) + 2  # as the token says it, or a little later
            source = renewing(short, token("alice"), at=expires_at)
            await page.evaluate(
                f"watch('{transport}', {{transport: '{transport}', token: {source}}})"
            )
            await watch(page, "fixed", short, transport=transport)
            await page.until(f"seen.{transport}.told.length === 3")
            assert await told(page, transport) == ["open", "error", "open"]
            [error] = await page.evaluate(f"seen.{transport}.errors")
            assert error["reason"] == "token expired"
            assert error["retryIn"] <= 1_000
            await page.until("seen.fixed.connection.state === 'closed'")
            assert await told(page, "fixed") == ["open", "error", "close"]
            await pusher.push_one("alice", b"back")
            assert [m["data"] for m in await messages(page, transport, 1)] == ["back"]


@pytest.mark.parametrize("transport", STREAMS)
async def test_a_user_who_is_disconnected_stays_away(
    chromium: Chromium, redis_url: str, transport: str
) -> None:
    with GatewayProcess("strict", redis_url=redis_url) as gateway:
        async with (
            page_at(chromium, gateway.port) as page,
            pusher_to(gateway.internal_port) as pusher,
        ):
            await watch(page, transport, token("alice"))
            answer = await pusher.http.delete("/connections/alice")
            assert answer.is_success, answer.text
            await page.until(f"seen.{transport}.connection.state === 'closed'")
            assert await told(page, transport) == ["open", "error", "close"]
            [error] = await page.evaluate(f"seen.{transport}.errors")
            assert (error["reason"], error["retryIn"]) == ("disconnected", None)
