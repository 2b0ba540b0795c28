"""The stock servers to compare with: uvicorn and starlette, used in the usual way.

A stock server does the minimum of a push gateway: accept, hold, take batches on `POST /push` as the
gateway does, send heartbeats. There is no authentication (a client's bearer is the user's name), no
registry, no limits, no metrics: these omissions are in the stock servers' favour. JSON is encoded
by msgspec and permessage-deflate is off; event loop and HTTP parser are the same as in the gateway.

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
    """One message of a batch, for a user or a list of users."""

    user: str | list[str]
    data: str


_senders: dict[str, Callable[[str], Awaitable[None]]] = {}  # by user
_batch = msgspec.json.Decoder(list[Entry])


async def hold_socket(socket: WebSocket) -> None:
    """`/ws`: hold a WebSocket until the client leaves."""
    await socket.accept()
    user = _user(socket.headers)
    _senders[user] = socket.send_text
    try:
        while True:
            await socket.receive_text()
    except WebSocketDisconnect:
        pass
    finally:
        _senders.pop(user, None)


async def hold_stream(request: Request) -> Response:
    """`/sse`: hold an event stream until the client leaves."""
    ping_seconds = int(float(request.app.state.heartbeat_seconds))
    return EventSourceResponse(_events(_user(request.headers)), ping=ping_seconds)


async def _events(user: str) -> AsyncIterator[dict[str, str]]:
    queue: asyncio.Queue[str] = asyncio.Queue()
    _senders[user] = queue.put
    try:
        while True:
            yield {"data": await queue.get()}
    finally:
        _senders.pop(user, None)


async def push(request: Request) -> Response:
    """`POST /push`: send messages to their users; a result is 1, or 0 for an absent user."""
    results: list[int | list[int]] = []
    for entry in _batch.decode(await request.body()):
        counts = []
        for user in [entry.user] if isinstance(entry.user, str) else entry.user:
            send = _senders.get(user)
            if send is not None:
                await send(entry.data)
            counts.append(0 if send is None else 1)
        results.append(counts[0] if isinstance(entry.user, str) else counts)
    return Response(msgspec.json.encode({"results": results}), media_type="application/json")


def _user(headers: Headers) -> str:
    return headers["authorization"].removeprefix("Bearer ")


async def healthz(request: Request) -> Response:  # noqa: ARG001
    """`GET /healthz`: the benchmark waits for this answer before clients connect."""
    return PlainTextResponse("alive")


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
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
