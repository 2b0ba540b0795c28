"""Event streams through a proxy that compresses responses, from npm.

Such a proxy keeps what it compresses until its buffer is full: events do not come, and the stream
does not even open. `cache-control: no-transform` forbids that (RFC 9111 §5.2.2.6).
"""

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest

from pushgate.embedded import LOOPBACK, tied_to_parent
from tests.support.clients import SECONDS, bearer, pusher_to
from tests.support.npm import install
from tests.support.processes import GatewayProcess
from tests.system.conftest import StartGateway

pytestmark = pytest.mark.anyio

SOURCES: Final = Path(__file__).parents[1] / "support/compressing_proxy"


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the proxy and its pinned packages; skip where that can't be done."""
    folder = tmp_path_factory.mktemp("proxy")
    if missing := install(SOURCES, folder):
        pytest.skip(missing)
    return folder / "proxy.js"


@pytest.fixture
def gateway(start_gateway: StartGateway) -> GatewayProcess:
    """Give a gateway whose heartbeats come after the test."""
    return start_gateway(heartbeat_seconds=120)


@pytest.fixture
def proxy_port(script: Path, gateway: GatewayProcess) -> Iterator[int]:
    """Run the proxy in front of the gateway; give its port."""
    command = tied_to_parent(["node", str(script), f"http://{LOOPBACK}:{gateway.port}"])
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


async def test_a_compressing_proxy_passes_events_on_at_once(
    gateway: GatewayProcess, proxy_port: int, user: str
) -> None:
    fields = {**bearer(user), "Accept": "text/event-stream", "Accept-Encoding": "gzip"}
    async with (
        pusher_to(gateway.internal_port) as pusher,
        httpx.AsyncClient(base_url=f"http://{LOOPBACK}:{proxy_port}", trust_env=False) as browser,
        asyncio.timeout(3 * SECONDS),
    ):
        library = await browser.get("/pushgate.js", headers={"Accept-Encoding": "deflate"})
        assert library.headers["content-encoding"] == "deflate", "it is a proxy that compresses"
        async with browser.stream("GET", "/sse", headers=fields) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            assert "content-encoding" not in stream.headers
            lines = stream.aiter_lines()
            assert await anext(lines) == "event: pushgate.cursor"
            for number in range(5):
                await pusher.push_one(user, b"%d" % number)
                while (line := await anext(lines)) != f"data: {number}":
                    assert not line.startswith("data: ") or line == "data: 120000"
