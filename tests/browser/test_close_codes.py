"""A page that breaks the rules learns the close code, though it is in the midst of sending."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from pushgate.embedded import LOOPBACK
from tests.browser.chromium import Chromium
from tests.support.certificate import write_certificate
from tests.support.clients import token
from tests.support.processes import GatewayProcess
from tests.support.valkey import RedisServer

pytestmark = pytest.mark.anyio

REPETITIONS: Final = 20
#: What a page sends, in JavaScript, and the code that it gets.
BAD: Final = {
    "too-big": ("socket.send(new Uint8Array(8 << 20))", 1009),
    "too-many-frames": ("for (let n = 0; n < 20000; n++) socket.send('x')", 1008),
}
#: Gives the codes of so many sockets, one after the other.
CODES: Final = """(async () => {
  const codes = [];
  for (let n = 0; n < %d; n++) {
    codes.push(await new Promise((resolve) => {
      const socket = new WebSocket('%s');
      socket.onopen = () => { %s };
      socket.onclose = ({code}) => resolve(code);
    }));
  }
  return codes;
})()"""


@pytest.fixture(params=["epoll", "transport", "tls"])
def address(
    valkey: RedisServer, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[tuple[str, int]]:
    """Give scheme and port of a gateway, with each wire and with TLS."""
    cert, key = write_certificate(tmp_path)
    secured = {"tls_cert": cert, "tls_key": key} if request.param == "tls" else {}
    wire = "transport" if secured else request.param
    with GatewayProcess("codes", redis_url=valkey.url, wire=wire, **secured) as process:
        yield ("https" if secured else "http"), process.port


@pytest.mark.parametrize("name", BAD)
async def test_a_page_that_breaks_the_rules_gets_the_close_code(
    chromium: Chromium, address: tuple[str, int], name: str
) -> None:
    scheme, port = address
    act, code = BAD[name]
    async with chromium.page(f"{scheme}://{LOOPBACK}:{port}/healthz") as page:
        url = f"{scheme.replace('http', 'ws')}://{LOOPBACK}:{port}/ws?token={token('page')}"
        codes = await page.evaluate(CODES % (REPETITIONS, url, act))
    assert codes == [code] * REPETITIONS
