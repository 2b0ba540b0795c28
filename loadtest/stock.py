"""The stock servers to compare with: uvicorn and starlette as everyone runs them.

Each does what a push gateway must, no more: accept, hold, take batches on `POST /push` as the
gateway does, ping. No authentication (a client's bearer is its user's name), no registry, no
limits, no metrics: what they leave out is in their favour. JSON is msgspec's, deflate is off; event
loop and HTTP parser are the gateway's own.

    python -m loadtest.stock ws|sse PORT HEARTBEAT_SECONDS [CERT KEY]
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import uvicorn
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect


class Entry(msgspec.Struct):
    """One element of a batch."""

    user: str | list[str]
    data: str


_takers: dict[str, Callable[[str], Awaitable[None]]] = {}
_batch = msgspec.json.Decoder(list[Entry])


async def hold_socket(socket: WebSocket) -> None:
    """`/ws`: hold a WebSocket until its client leaves."""
    await socket.accept()
    user = _user(socket.headers)
    _takers[user] = socket.send_text
    try:
        while True:
            await socket.receive_text()
    except WebSocketDisconnect:
        pass
    finally:
        _takers.pop(user, None)


async def hold_stream(request: Request) -> Response:
    """`/sse`: hold an event stream until its client leaves."""
    ping_seconds = int(float(request.app.state.heartbeat_seconds))
    return EventSourceResponse(_events(_user(request.headers)), ping=ping_seconds)


async def _events(user: str) -> AsyncIterator[dict[str, str]]:
    queue: asyncio.Queue[str] = asyncio.Queue()
    _takers[user] = queue.put
    try:
        while True:
            yield {"data": await queue.get()}
    finally:
        _takers.pop(user, None)


async def push(request: Request) -> Response:
    """`POST /push`: send each message to its user, or to each of its users; 1 or 0 for each."""
    results: list[int | list[int]] = []
    for entry in _batch.decode(await request.body()):
        taken = []
        for user in [entry.user] if isinstance(entry.user, str) else entry.user:
            take = _takers.get(user)
            if take is not None:
                await take(entry.data)
            taken.append(0 if take is None else 1)
        results.append(taken[0] if isinstance(entry.user, str) else taken)
    return Response(msgspec.json.encode({"results": results}), media_type="application/json")


def _user(headers: Headers) -> str:
    return headers["authorization"].removeprefix("Bearer ")


async def healthz(request: Request) -> Response:  # noqa: ARG001
    """`GET /healthz`."""
    return PlainTextResponse("alive")


def main() -> None:
    """Serve until a signal."""
    kind, port, heartbeat = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    cert, key = sys.argv[4:6] or (None, None)
    hold = WebSocketRoute("/ws", hold_socket) if kind == "ws" else Route("/sse", hold_stream)
    app = Starlette(
        routes=[hold, Route("/push", push, methods=["POST"]), Route("/healthz", healthz)]
    )
    app.state.heartbeat_seconds = heartbeat
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=port,
        loop="uvloop",
        http="httptools",
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        ws_ping_interval=heartbeat,
        ws_ping_timeout=heartbeat,
        ssl_certfile=cert,
        ssl_keyfile=key,
        backlog=4_096,
        lifespan="off",
        access_log=False,
        log_level="error",
        timeout_graceful_shutdown=1,
    )


if __name__ == "__main__":
    main()
