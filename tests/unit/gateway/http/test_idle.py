"""Idle sockets between two requests: closed after their time, however the last was answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from gateway.http.detach import exchange_of
from gateway.http.direct import Respond
from gateway.http.door import Door, DoorBounds
from gateway.http.listener import Listener, bind
from gateway.http.responses import answer

pytestmark = pytest.mark.anyio

HEAD_SECONDS, IDLE_SECONDS = 5.0, 75.0
REQUESTS = ("GET /asgi", "GET /at-once", "GET /lent", "POST /direct")
_TEXT = b"text/plain"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"] == "/asgi":
        Request(scope).headers  # noqa: B018 - starlette puts a list of its own into the scope
        await PlainTextResponse("hello")(scope, receive, send)
    elif scope["path"] == "/at-once":
        await exchange_of(scope).answer(200, _TEXT, b"hello")
    else:
        lent = exchange_of(scope).lend()
        assert lent is not None
        lent.transport.write(answer(200, _TEXT, b"hello", last=False))
        lent.resume(b"", last=False, unheard=lambda: None)


def direct(path: bytes, fields: Mapping[bytes, bytes]) -> Respond | None:
    return (lambda _: (200, _TEXT, b"hello")) if path == b"/direct" else None


@dataclass
class Listening:
    """A listener, and a client's connection to it."""

    listener: Listener
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, request_line: str) -> None:
        """Send a request, and read the answer."""
        request = f"{request_line} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
        self.writer.write(request.encode())
        async with asyncio.timeout(5.0):
            assert (await self.reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200 ")

    def let_pass(self, seconds: float) -> None:
        """Let so many seconds pass at the listener's door."""
        self.listener.advance(asyncio.get_running_loop().time() + seconds)

    async def ended(self) -> None:
        """Return when the listener has closed the connection, without a further answer."""
        async with asyncio.timeout(5.0):
            assert await self.reader.read() == b""


@pytest.fixture
async def listening() -> AsyncIterator[Listening]:
    socket = bind("127.0.0.1", 0)
    door = Door(DoorBounds(HEAD_SECONDS, 16_384, idle_seconds=IDLE_SECONDS))
    listener = Listener(socket, app, door, direct=direct)
    serving = asyncio.create_task(listener.serve())
    reader, writer = await asyncio.open_connection("127.0.0.1", socket.getsockname()[1])
    yield Listening(listener, reader, writer)
    writer.close()
    listener.stop()
    await serving


@pytest.mark.parametrize("request_line", REQUESTS)
async def test_a_socket_is_closed_when_it_was_idle_for_its_time(
    listening: Listening, request_line: str
) -> None:
    for _ in range(2):
        await listening.ask(request_line)
        listening.let_pass(IDLE_SECONDS - 1.0)  # and its next request is taken
    listening.let_pass(IDLE_SECONDS)
    await listening.ended()


@pytest.mark.parametrize("request_line", [each for each in REQUESTS if each != "GET /lent"])
async def test_an_idle_socket_is_closed_as_soon_as_the_node_drains(
    listening: Listening, request_line: str
) -> None:
    await listening.ask(request_line)
    listening.listener.stop_keep_alive()
    await listening.ended()
