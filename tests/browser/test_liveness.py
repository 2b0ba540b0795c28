"""Links that die, seen and unseen: how soon a page is back, with real gateways."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Final

import pytest

from tests.browser.balancer import balancer_to
from tests.browser.chromium import Chromium
from tests.browser.conftest import StartGateway, StartProcessor
from tests.browser.pages import LONGEST, TRANSPORTS, messages, page_at, told, watch
from tests.browser.publisher import SECONDS, Publisher
from tests.support.clients import eventually, pusher_to, token
from tests.support.processes import GatewayProcess
from tests.support.valkey import RedisServer

pytestmark = pytest.mark.anyio

STREAMS: Final = ("ws", "sse")
HEARTBEAT_SECONDS: Final = 2
#: How long a poll waits for a message: what its silence is reckoned from.
POLL_SECONDS: Final = 25
#: Silence, and the time that a page has after a timer that was late.
NOTICED_SECONDS: Final = 12
KILLS: Final = 12
BACK_SECONDS: Final = 6
AT_ONCE_SECONDS: Final = 3


async def test_a_frozen_gateway_is_noticed_on_each_transport_and_nothing_is_missed(
    chromium: Chromium,
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    publisher: Publisher,
) -> None:
    settings = {"heartbeat_seconds": HEARTBEAT_SECONDS}
    frozen, other = start_gateway("frozen", **settings), start_gateway("other", **settings)
    await publisher.until_the_registry_is_sure(start_processor())
    async with balancer_to(frozen.port) as balancer, page_at(chromium, balancer.port) as page:
        for transport in TRANSPORTS:
            await watch(page, transport, token(publisher.user))
        async with publisher.steadily():
            for transport in TRANSPORTS:
                await messages(page, transport, 20)
            balancer.target = other.port
            frozen.freeze()
            within = seconds_from_now(HEARTBEAT_SECONDS + NOTICED_SECONDS)
            for transport in STREAMS:
                await page.until(f"seen.{transport}.errors.length", timeout_seconds=within())
            within = seconds_from_now(POLL_SECONDS - HEARTBEAT_SECONDS)
            await page.until("seen.poll.errors.length", timeout_seconds=within())
            for transport in TRANSPORTS:
                await page.until(opened(transport, 2), timeout_seconds=BACK_SECONDS)
        count = len(publisher.sent)
        for transport in TRANSPORTS:
            came = f"seen.{transport}.messages.length >= {count}"
            await page.until(came, timeout_seconds=SECONDS)
            found = [message["data"] for message in await messages(page, transport, count)]
            assert found == publisher.sent
            assert await told(page, transport) == ["open", "error", "open"]


def seconds_from_now(seconds: float) -> Callable[[], float]:
    """Give a function that says how much of a time is left."""
    end = time.monotonic() + seconds
    return lambda: end - time.monotonic()


def opened(name: str, times: int) -> str:
    """JavaScript that is true once a connection was told so many times that it is open."""
    return f"seen.{name}.told.filter((said) => said === 'open').length === {times}"


@pytest.fixture
def nodes(valkey: RedisServer, topic: str) -> Iterator[list[GatewayProcess]]:
    """Give two gateways."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(GatewayProcess(f"{name}-{topic}", redis_url=valkey.url))
            for name in ("one", "two")
        ]


async def test_a_page_is_back_in_six_seconds_after_each_of_twelve_kills(
    chromium: Chromium, nodes: list[GatewayProcess]
) -> None:
    doomed, other = nodes
    async with balancer_to(doomed.port) as balancer, page_at(chromium, balancer.port) as page:
        await page.evaluate(LONGEST)  # the delays are at their bounds
        names = ("auto", *TRANSPORTS)
        for name in names:
            await watch(page, name, token("alice"))
        for kill in range(KILLS):
            balancer.target = other.port
            doomed.kill()
            # Chromium asks once more by itself where a poll was cut off: the page is told nothing.
            await connections(other, len(names), timeout_seconds=BACK_SECONDS)
            # What comes through shows that each is open: a link that is not may be left to wait.
            await push(other, len(names))
            for name in names:
                assert len(await messages(page, name, kill + 1)) == kill + 1
            doomed.start()
            doomed, other = other, doomed
        for name in ("auto", "ws", "sse"):
            await page.until(opened(name, KILLS + 1))


async def test_when_the_network_is_back_the_page_is_at_once(
    chromium: Chromium, nodes: list[GatewayProcess]
) -> None:
    node = nodes[0]
    async with balancer_to(node.port) as balancer, page_at(chromium, balancer.port) as page:
        await page.evaluate(LONGEST)
        for transport in STREAMS:
            await watch(page, transport, token("alice"))
        await page.go_offline()
        await balancer.cut()
        for transport in STREAMS:  # twice refused: the next delay is ten seconds
            await page.until(f"seen.{transport}.errors.length === 2")
        await page.go_online()
        within = seconds_from_now(AT_ONCE_SECONDS)
        for transport in STREAMS:
            await page.until(opened(transport, 2), timeout_seconds=within())
        await push(node, len(STREAMS))
        for transport in STREAMS:
            assert len(await messages(page, transport, 1)) == 1


async def push(node: GatewayProcess, count: int) -> None:
    """Push a message to alice, who has so many connections there."""
    async with pusher_to(node.internal_port) as pusher:
        assert await pusher.push([{"user": "alice", "data": "back"}]) == [count]


async def connections(
    node: GatewayProcess, count: int, *, timeout_seconds: float = SECONDS
) -> None:
    """Return when a node has so many connections."""

    async def are_there() -> bool:
        async with pusher_to(node.internal_port) as pusher:
            return await pusher.connections() == count

    await eventually(are_there, f"{count} connections", timeout_seconds=timeout_seconds)


async def test_when_the_network_was_away_an_open_link_is_replaced_unseen(
    chromium: Chromium, nodes: list[GatewayProcess]
) -> None:
    node = nodes[0]
    async with page_at(chromium, node.port) as page, pusher_to(node.internal_port) as pusher:
        for transport in STREAMS:
            await watch(page, transport, token("alice"))
        await page.evaluate("dispatchEvent(new Event('online'))")

        async def are_replaced() -> bool:
            opened, held = await pusher.opened(), await pusher.connections()
            return (opened, held) == (2 * len(STREAMS), len(STREAMS))

        await eventually(are_replaced, "a second link of each, and the first ones gone")
        await push(node, len(STREAMS))
        for transport in STREAMS:
            assert len(await messages(page, transport, 1)) == 1
            assert await told(page, transport) == ["open"]
