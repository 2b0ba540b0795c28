"""The public port: a table of the transports by path, and a table of all other routes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.entry.entry import Entry
from gateway.http.detach import exchange_of
from gateway.http.head import Head
from gateway.internal import health_routes, plain_text
from gateway.script import script_route
from gateway.transports import sse, websocket
from gateway.transports.longpoll import PollSessions

#: A transport's entry point: takes the head of a request for a connection, and returns the
#: response, which may detach the request's socket. Raises HTTPException to refuse the request.
Connect = Callable[[Head, Entry], Awaitable[ASGIApp]]


def transports(sessions: PollSessions) -> dict[str, Connect]:
    """Return a node's transports by path. A further transport is a file of its own, and a line."""
    return {
        "/ws": websocket.connect,
        "/sse": sse.connect,
        "/poll": sessions.connect,
    }


def public_app(
    entry: Entry,
    sessions: PollSessions,
    *,
    extra_transports: Mapping[str, Connect] | None = None,
    extra_routes: Sequence[BaseRoute] = (),
) -> ASGIApp:
    """Return the application of the public port, with extra transports (by path) and extra routes.

    A transport is found by path alone, before starlette's middleware and starlette's patterns of
    routes: every connecting client pays for the way to its transport.
    """
    connects = transports(sessions) | dict(extra_transports or {})

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - registered for HTTPException
        entry.count_refusal(error)
        return await plain_text(request, error)

    app = Starlette(
        routes=[
            script_route(),
            *health_routes(entry.node),
            *extra_routes,
        ],
        exception_handlers={HTTPException: refused},
    )
    app.router.redirect_slashes = False  # an unknown path is answered 404, never redirected

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        connect = connects.get(scope["path"])
        if connect is None:
            await app(scope, receive, send)
            return
        # Before admission: limits that were checked before a long wait would no longer hold.
        await exchange_of(scope).flush()
        try:
            head = Head(scope)
            response = (
                await connect(head, entry) if head.method == "GET" else _unconnected(head, entry)
            )
        except HTTPException as error:
            response = await refused(Request(scope), error)
        await response(scope, receive, send)

    return route


def _unconnected(head: Head, entry: Entry) -> ASGIApp:
    """Return the response to OPTIONS on a transport's path; refuse every other method."""
    if head.method == "OPTIONS":
        return entry.preflight(head)
    raise HTTPException(405, "GET is what connects", {"allow": "GET, OPTIONS"})
