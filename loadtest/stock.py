"""The stock servers that idle.py compares with: uvicorn and starlette as everyone runs them.

Each does what a push gateway must, no more: accept, hold, send one message to all on `POST
/broadcast`, ping. No authentication, no registry, no metrics: what they leave out is in their
favour. Deflate is off; event loop and HTTP parser are the gateway's own.

    python -m loadtest.stock ws|sse PORT HEARTBEAT_SECONDS
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import uvicorn
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

_sockets: set[WebSocket] = set()
_queues: set[asyncio.Queue[str]] = set()


async def hold_socket(socket: WebSocket) -> None:
    """`/ws`: hold a WebSocket until its client leaves."""
    await socket.accept()
    _sockets.add(socket)
    try:
        while True:
            await socket.receive_text()
    except WebSocketDisconnect:
        pass
    finally:
        _sockets.discard(socket)


async def hold_stream(request: Request) -> Response:
    """`/sse`: hold an event stream until its client leaves."""
    ping_seconds = int(float(request.app.state.heartbeat_seconds))
    return EventSourceResponse(_events(), ping=ping_seconds)


async def _events() -> AsyncIterator[dict[str, str]]:
    queue: asyncio.Queue[str] = asyncio.Queue()
    _queues.add(queue)
    try:
        while True:
            yield {"data": await queue.get()}
    finally:
        _queues.discard(queue)


async def broadcast(request: Request) -> Response:
    """`POST /broadcast`: send the body to everyone."""
    text = (await request.body()).decode()
    for socket in list(_sockets):
        await socket.send_text(text)
    for queue in _queues:
        queue.put_nowait(text)
    return PlainTextResponse(str(len(_sockets) + len(_queues)))


async def healthz(request: Request) -> Response:  # noqa: ARG001
    """`GET /healthz`."""
    return PlainTextResponse("alive")


def main() -> None:
    """Serve until a signal."""
    kind, port, heartbeat = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    hold = WebSocketRoute("/ws", hold_socket) if kind == "ws" else Route("/sse", hold_stream)
    app = Starlette(
        routes=[
            hold,
            Route("/broadcast", broadcast, methods=["POST"]),
            Route("/healthz", healthz),
        ]
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
        backlog=4_096,
        lifespan="off",
        access_log=False,
        log_level="error",
        timeout_graceful_shutdown=1,
    )


if __name__ == "__main__":
    main()
