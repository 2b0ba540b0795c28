"""Idle sockets between two requests: closed after their time, however the last was answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from gateway.http.detach import exchange_of
from gateway.http.direct import Respond
from gateway.http.door import Door, DoorBounds
from gateway.http.listener import Listener, bind
from gateway.http.responses import answer

pytestmark = pytest.mark.anyio

IDLE_SECONDS = 75.0
_TEXT = b"text/plain"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"] == "/asgi":
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


@pytest.fixture
async def listening() -> AsyncIterator[tuple[int, Callable[[float], None]]]:
    """Give a port, and what lets so many seconds pass at its door."""
    socket = bind("127.0.0.1", 0)
    port: int = socket.getsockname()[1]
    door = Door(DoorBounds(5.0, 16_384, idle_seconds=IDLE_SECONDS))
    listener = Listener(socket, app, door, direct=direct)
    serving = asyncio.create_task(listener.serve())
    loop = asyncio.get_running_loop()
    yield port, lambda seconds: listener.advance(loop.time() + seconds)
    listener.stop()
    await serving


@pytest.mark.parametrize("request_line", ["GET /asgi", "GET /at-once", "GET /lent", "POST /direct"])
async def test_a_socket_is_closed_when_it_was_idle_for_its_time(
    listening: tuple[int, Callable[[float], None]], request_line: str
) -> None:
    port, let_pass = listening
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(2):
        writer.write(f"{request_line} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
        async with asyncio.timeout(5.0):
            assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200 ")
        let_pass(IDLE_SECONDS - 1.0)  # and its next request is taken
    let_pass(IDLE_SECONDS)
    async with asyncio.timeout(5.0):
        assert await reader.read() == b""
    writer.close()
