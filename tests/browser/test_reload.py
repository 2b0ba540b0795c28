"""A page while its gateway is reloaded: nothing happens."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.chromium import Chromium
from tests.browser.conftest import StartGateway, StartProcessor
from tests.browser.pages import TRANSPORTS, messages, page_at, told, watch
from tests.browser.publisher import Publisher
from tests.support.clients import token
from tests.support.orphans import adopting
from tests.support.processes import STOP_SECONDS
from tests.support.valkey import RedisServer
from tests.system.tools import tool

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def orphans() -> Iterator[None]:
    with adopting():
        yield


async def test_a_page_hears_nothing_of_a_reload(
    chromium: Chromium,
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    publisher: Publisher,
    valkey: RedisServer,
    tmp_path: Path,
) -> None:
    path = tmp_path / "takeover"
    gateway = start_gateway("reloaded", takeover_socket=path)
    await publisher.until_the_registry_is_sure(start_processor())
    async with page_at(chromium, gateway.port) as page:
        for transport in TRANSPORTS:
            await watch(page, transport, token(publisher.user))
        async with publisher.steadily():
            for transport in TRANSPORTS:
                await messages(page, transport, 20)
            reloaded = await tool(valkey.url, "reload", takeover_socket=path)
            assert (reloaded.exit_code, reloaded.stderr) == (0, "")
            assert await asyncio.to_thread(gateway.wait, STOP_SECONDS) == 0
            before = len(publisher.sent)
            for transport in TRANSPORTS:
                await messages(page, transport, before + 20)
        for transport in TRANSPORTS:
            found = await messages(page, transport, len(publisher.sent))
            assert [message["data"] for message in found] == publisher.sent
            assert await told(page, transport) == ["open"]
