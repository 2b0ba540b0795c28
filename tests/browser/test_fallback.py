"""The transport that passes is found by itself, past proxies that take upgrades or keep answers."""

import json
from collections.abc import AsyncIterator

import pytest

from tests.browser.chromium import Chromium, Page
from tests.browser.middlebox import Middlebox, middlebox_to
from tests.browser.pages import page_at
from tests.support.clients import pusher_to, token
from tests.support.processes import GatewayProcess

pytestmark = pytest.mark.anyio


@pytest.fixture
async def middlebox(origin: GatewayProcess) -> AsyncIterator[Middlebox]:
    """Give a proxy in front of the gateway."""
    async with middlebox_to(origin.port) as box:
        yield box


async def client(page: Page, user: str, *, options: str = "") -> None:
    """Make a PushClient, and note all it tells."""
    credential = json.dumps(token(user))
    await page.evaluate(
        f"""(() => {{
          window.told = [];
          window.errors = [];
          window.client = new pushgate.PushClient('/', {{token: {credential}, {options}}});
          for (const name of ['open', 'gap', 'close']) {{
            client.addEventListener(name, () => told.push(name));
          }}
          client.onmessage = ({{data}}) => told.push(data);
          client.onerror = ({{status, reason}}) => errors.push({{status, reason}});
        }})()"""
    )


async def assert_it_gets_messages_by(page: Page, transport: str, node: GatewayProcess) -> None:
    """Wait until the client is open, by this transport, and push a message through."""
    await page.until("client.state === 'open'")
    assert await page.evaluate("client.transport") == transport
    async with pusher_to(node.internal_port) as pusher:
        await pusher.push_one("alice", b"passed")
    await page.until("told.length >= 2")
    assert await page.evaluate("told") == ["open", "passed"]
    assert await page.evaluate("errors") == []


async def test_without_anything_on_the_way_it_is_websocket(
    chromium: Chromium, origin: GatewayProcess, middlebox: Middlebox
) -> None:
    async with page_at(chromium, middlebox.port) as page:
        await client(page, "alice")
        await assert_it_gets_messages_by(page, "ws", origin)


async def test_past_a_proxy_that_takes_upgrades_it_is_an_event_stream_now_and_after_a_reload(
    chromium: Chromium, origin: GatewayProcess, middlebox: Middlebox
) -> None:
    middlebox.blocks_upgrades = True
    async with page_at(chromium, middlebox.port) as page:
        await client(page, "alice")
        await assert_it_gets_messages_by(page, "sse", origin)
        assert middlebox.upgrades == 2
        await page.evaluate("client.close()")
    async with page_at(chromium, middlebox.port) as page:
        await client(page, "alice")
        await assert_it_gets_messages_by(page, "sse", origin)
        assert middlebox.upgrades == 2  # this was remembered


async def test_past_a_proxy_that_keeps_what_has_not_ended_it_is_long_poll(
    chromium: Chromium, origin: GatewayProcess, middlebox: Middlebox
) -> None:
    middlebox.buffers = True
    async with page_at(chromium, middlebox.port) as page:
        await client(page, "alice")
        await assert_it_gets_messages_by(page, "poll", origin)


async def test_a_fixed_transport_says_what_does_not_pass(
    chromium: Chromium, middlebox: Middlebox
) -> None:
    middlebox.blocks_upgrades = True
    async with page_at(chromium, middlebox.port) as page:
        await client(page, "alice", options="transport: 'ws'")
        await page.until("errors.length")
        [error] = await page.evaluate("errors")
        assert error["status"] == 426
        assert "no upgrade to WebSocket has arrived" in error["reason"]


@pytest.mark.parametrize("transport", ["auto", "ws", "sse", "poll"])
async def test_a_page_of_a_foreign_origin_is_told_the_setting_and_stays_away(
    chromium: Chromium, origin: GatewayProcess, transport: str
) -> None:
    async with page_at(chromium, origin.port, host="localhost") as page:
        await page.evaluate(
            f"""(() => {{
              window.errors = [];
              window.connection = pushgate.connect({{token: 't', transport: '{transport}'}});
              connection.onerror = (error) => errors.push(error);
            }})()"""
        )
        await page.until("connection.state === 'closed'")
        [error] = await page.evaluate("errors")
        assert (error["status"], error["retryIn"]) == (403, None)
        assert "PUSHGATE_ORIGINS" in error["reason"]
