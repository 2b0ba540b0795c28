"""The client's examples run: built, served from an origin of their own, with a real gateway."""

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from pushgate.embedded import LOOPBACK
from tests.browser.chromium import Chromium, Page
from tests.browser.sites import site
from tests.client.package import ROOT, run
from tests.support.clients import eventually, pusher_to, token
from tests.support.npm import install
from tests.support.processes import GatewayProcess
from tests.support.valkey import RedisServer

pytestmark = pytest.mark.anyio

SECONDS: Final = 20.0
GATEWAY_OF_DEV: Final = "http://localhost:8080"


@pytest.fixture(scope="module")
def gateway(valkey: RedisServer) -> Iterator[GatewayProcess]:
    """Give a gateway that admits pages of any loopback host, as `pushgate dev` does."""
    with GatewayProcess("examples", redis_url=valkey.url, origins="http://localhost:*") as process:
        yield process


@pytest.fixture(scope="module")
def examples(package: Path, gateway: GatewayProcess) -> Path:
    """Install the examples beside the built package, and build them for the gateway."""
    folder = package / "examples"
    if missing := install(ROOT / "client/examples", folder):
        pytest.skip(missing)
    url = f"http://{LOOPBACK}:{gateway.port}"
    run(folder, "npm", "run", "build", env={"VITE_PUSHGATE_URL": url})
    plain = folder / "plain/index.html"
    plain.write_text(plain.read_text("utf-8").replace(GATEWAY_OF_DEV, url), "utf-8")
    return folder


async def push(gateway: GatewayProcess, user: str, text: str) -> None:
    """Push to a user, once the user has a connection."""
    async with pusher_to(gateway.internal_port) as pusher:

        async def is_there() -> bool:
            results: list[int] = await pusher.push([{"user": user, "data": text}])
            return results == [1]

        await eventually(is_there, "the example has connected", timeout_seconds=SECONDS)


async def shown(page: Page, text: str) -> None:
    """Return when the page shows a message."""
    await page.until(f"document.querySelector('#messages').textContent.includes('{text}')")


@pytest.mark.parametrize("example", ["plain", "vite/dist", "react/dist", "service-worker/dist"])
async def test_a_page_shows_what_is_pushed(
    chromium: Chromium, examples: Path, gateway: GatewayProcess, example: str
) -> None:
    user = f"user of {example}"
    with ExitStack() as stack:
        origin = stack.enter_context(site(examples / example))
        async with chromium.page(f"{origin}/?token={token(user)}") as page:
            await push(gateway, user, "to a page")
            await shown(page, "to a page")
            assert page.exceptions == []


async def test_tabs_of_the_vite_example_share_the_connection_of_its_worker(
    chromium: Chromium, examples: Path, gateway: GatewayProcess
) -> None:
    address = f"?token={token('user of tabs')}"
    with site(examples / "vite/dist") as origin:
        async with (
            chromium.page(f"{origin}/{address}") as first,
            chromium.page(f"{origin}/{address}") as second,
        ):
            await push(gateway, "user of tabs", "to both")
            for page in (first, second):
                await shown(page, "to both")
            assert (
                await first.evaluate("(async () => (await navigator.locks.query()).held)()") == []
            )


async def test_the_node_example_prints_what_is_pushed(
    examples: Path, gateway: GatewayProcess
) -> None:
    env = {
        "PUSHGATE_URL": f"http://{LOOPBACK}:{gateway.port}",
        "PUSHGATE_TOKEN": token("user of node"),
    }
    process = await asyncio.create_subprocess_exec(
        "node", "node/listen.js", cwd=examples, env=os.environ | env, stdout=asyncio.subprocess.PIPE
    )
    try:
        await push(gateway, "user of node", "to a process")
        assert process.stdout is not None
        async with asyncio.timeout(SECONDS):
            assert json.loads(await process.stdout.readline())["data"] == "to a process"
    finally:
        process.terminate()
        await process.wait()
