"""A gateway that does what a test says: WebSockets that end, hand over and overlap on demand."""

import asyncio
import http
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from pushgate.embedded import LOOPBACK
from tests.browser.chromium import Page

SECONDS: Final = 10.0
V1: Final = Subprotocol("pushgate.v1")


class Held:
    """One WebSocket that a page has opened."""

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection
        assert connection.request is not None
        offered = connection.request.headers["Sec-WebSocket-Protocol"].split(", ")
        self.token = offered[-1].removeprefix("bearer.")
        """What it came with; the subprotocol where it has none."""
        cursors = [name.removeprefix("cursor.") for name in offered if name.startswith("cursor.")]
        self.cursor = cursors[0] if cursors else None
        """Where it resumes from, as a browser sends it."""

    async def send(self, **form: object) -> None:
        """Send a JSON object: a message, or a control frame."""
        await self._connection.send(json.dumps(form))

    async def message(self, push_id: str, cursor: str | None = None) -> None:
        """Send a message that holds its own id."""
        fields = {} if cursor is None else {"cursor": cursor}
        await self.send(id=push_id, type=None, data=push_id, **fields)

    async def hello(self, cursor: str | None = None) -> None:
        """Send the first frame, of a gateway that resumes where there is a cursor."""
        fields = {} if cursor is None else {"cursor": cursor}
        await self.send(control="hello", heartbeat_ms=60_000, **fields)

    async def received(self) -> Any:
        """Give the next JSON object from the page."""
        async with asyncio.timeout(SECONDS):
            return json.loads(await self._connection.recv())

    async def close(self, code: int, reason: str = "") -> None:
        """Close with `code`."""
        await self._connection.close(code, reason)

    def cut(self) -> None:
        """End it without a Close frame."""
        self._connection.transport.abort()

    async def ended(self) -> None:
        """Return when it is closed."""
        async with asyncio.timeout(SECONDS):
            await self._connection.wait_closed()

    async def closed_by_page(self) -> int:
        """Give the code that the page closes it with."""
        await self.ended()
        received = self._connection.protocol.close_rcvd
        assert received is not None, "it was cut"
        return received.code


class ScriptedGateway:
    """Takes what connects, until it is told to refuse or to delay."""

    def __init__(self, *, greets: bool) -> None:
        self.port = 0
        self.greets = greets
        """Whether it says hello by itself, as a gateway that does not resume."""
        self.refuses = False
        self.admits = asyncio.Event()
        self.admits.set()
        self.asked = 0
        """How many handshakes have come."""
        self._accepted: asyncio.Queue[Held] = asyncio.Queue()

    async def accepted(self) -> Held:
        """Give the next WebSocket that has opened."""
        async with asyncio.timeout(SECONDS):
            return await self._accepted.get()

    async def hold(self, connection: ServerConnection) -> None:
        """Hand a WebSocket to the test, and keep it until it ends."""
        held = Held(connection)
        if self.greets:
            await held.hello()
        self._accepted.put_nowait(held)
        await connection.wait_closed()

    async def admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer a handshake that is refused; let the others pass in their time."""
        if "Upgrade" in request.headers:
            self.asked += 1
        if self.refuses:
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "no\n")
        await self.admits.wait()
        return None


def _select(connection: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol:
    assert V1 in offered
    return V1


@asynccontextmanager
async def scripted_gateway(*, greets: bool = True) -> AsyncIterator[ScriptedGateway]:
    """Listen on a port of its own."""
    gateway = ScriptedGateway(greets=greets)
    async with serve(
        gateway.hold,
        LOOPBACK,
        0,
        select_subprotocol=_select,
        process_request=gateway.admit,
        compression=None,
        ping_interval=None,
    ) as server:
        gateway.port = next(iter(server.sockets)).getsockname()[1]
        yield gateway


async def connect(page: Page, gateway: ScriptedGateway, *, source: str = "'t1'") -> Held:
    """Connect a page by WebSocket; `source` is its token in JavaScript.

    The page is open where the gateway greets, and else once the test says hello.
    """
    url = json.dumps(f"http://{LOOPBACK}:{gateway.port}")
    await page.evaluate(f"watch('ws', {{transport: 'ws', token: {source}, url: {url}}})")
    held = await gateway.accepted()
    if gateway.greets:
        await page.until("seen.ws.connection.state === 'open'")
    return held


async def hand_over(held: Held, gateway: ScriptedGateway) -> Held:
    """Tell the page to reconnect, and give its second WebSocket."""
    await held.send(control="reconnect", after_ms=0, code=1001)
    return await gateway.accepted()


#: Event streams in place of the network: a test says what is on them.
STREAMS: Final = """
window.streams = [];
window.fetch = async (url, {headers, signal}) => {
  const stream = {url: String(url), headers, aborted: false};
  const body = new ReadableStream({start(controller) { stream.controller = controller; }});
  signal.addEventListener('abort', () => {
    stream.aborted = true;
    try { stream.controller.error(signal.reason); } catch (_) {}
  });
  stream.say = (text) => stream.controller.enqueue(new TextEncoder().encode(text));
  if (window.greets) stream.say('event: pushgate.cursor\\ndata: 60000\\n\\n');
  streams.push(stream);
  return new Response(body);
};
"""
#: The same, of a gateway that says hello by itself and does not resume.
GREETING_STREAMS: Final = STREAMS + "window.greets = true;"


async def say(page: Page, number: int, text: str) -> None:
    """Send on one of the page's event streams."""
    await page.evaluate(f"streams[{number}].say({json.dumps(text)})")
