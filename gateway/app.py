"""The applications behind both ports: routes → auth → admission → the transport."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway import metrics
from gateway.auth import Authenticator, Unauthenticated, credential
from gateway.closes import GOING_AWAY
from gateway.connection import Identity, State, StreamConnection
from gateway.head import Head
from gateway.node import GatewayNode
from gateway.origin import Origins
from gateway.push import PushEndpoints, RequireSecret, push_routes, user_in_path
from gateway.repeats import Repeats
from gateway.settings import GatewaySettings
from gateway.transports import sse
from gateway.transports.longpoll import ParkedPoll, PollSession, PollSessions
from gateway.transports.sse import SseConnection
from gateway.transports.websocket import BadHandshake, WebSocketConnection, answer_handshake
from gateway.wires.choice import Wires
from gateway.wires.takeover import TAKE_OVER

POLL_WAIT_SECONDS: Final = 25.0
MAX_POLL_WAIT_SECONDS: Final = 60.0
#: How many users are told of `GET /connections` in one turn of the event loop.
USERS_A_PIECE: Final = 1_000
#: Told to clients that are refused for load, in seconds; drawn for each.
RETRY_AFTER_SECONDS: Final = (1, 10)
#: What a request comes to: a Response, or what takes its socket.
Endpoint = Callable[[Head], Awaitable[ASGIApp]]

_OPEN_PATHS: Final = ("/healthz", "/readyz", "/metrics")


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that may connect."""

    identity: Identity
    cors: dict[str, str]
    address: str

    @property
    def cors_lines(self) -> bytes:
        """The CORS headers as they stand in a response's head."""
        return "".join(f"{name}: {value}\r\n" for name, value in self.cors.items()).encode("ascii")


class Public:
    """The public listener's routes."""

    def __init__(
        self, node: GatewayNode, settings: GatewaySettings, wires: Wires, auth: Authenticator
    ) -> None:
        self._node = node
        self._auth = auth
        self._origins = Origins(settings.origins)
        self._wires = wires
        loop = asyncio.get_running_loop()
        self._sessions = PollSessions(node, soon=loop.call_soon)
        self._client = files("gateway").joinpath("pushgate.js").read_bytes()

    def routes(self) -> list[BaseRoute]:
        """Return the routes."""
        return [
            Route("/pushgate.js", self.client, methods=["GET"]),
            *health_routes(self._node),
        ]

    def connecting(self) -> dict[str, Endpoint]:
        """Return what connects clients, by path."""
        return {
            "/ws": self._connecting(self.websocket),
            "/sse": self._connecting(self.sse),
            "/poll": self._connecting(self.poll),
        }

    async def websocket(self, head: Head) -> ASGIApp:
        """`GET /ws`."""
        offered = head.subprotocols
        admitted = await self._admit(head, offered)
        try:
            answer, subprotocol = answer_handshake(head.fields, offered)
        except BadHandshake as bad:
            headers = {"upgrade": "websocket", "sec-websocket-version": "13", **admitted.cors}
            raise HTTPException(bad.status, bad.detail, headers) from bad
        connection = WebSocketConnection(admitted.identity, self._node, subprotocol=subprotocol)
        return Hold(connection, admitted, answer, self._node, self._wires)

    async def sse(self, head: Head) -> ASGIApp:
        """`GET /sse`."""
        try:
            admitted = await self._admit(head)
        except Overloaded as overloaded:
            if "text/event-stream" not in head.fields.get("accept", ""):
                raise
            _count_refusal(overloaded)  # as what it is: the 200 is only how this client is told
            # An EventSource that gets a 503 never comes back; a stream that ends, it retries.
            headers = {"cache-control": "no-store", "connection": "close", **self._cors(head)}
            return Response(sse.retry(), media_type="text/event-stream", headers=headers)
        connection = SseConnection(admitted.identity, self._node)
        return Hold(connection, admitted, sse.head(admitted.cors_lines), self._node, self._wires)

    async def poll(self, head: Head) -> ASGIApp:
        """`GET /poll?cursor=C&wait=S`."""
        cursor = head.query.get("cursor")
        held = cursor is not None and self._sessions.holds(cursor)
        admitted = await self._admit(head, new=not held)
        identity = admitted.identity
        wait = _wait(head)
        found = self._sessions.find(cursor, identity) if cursor else None
        if found is None:
            if held:  # by somebody else, or with a count that is not its own
                self._refuse_for_load(identity.user, admitted.address, admitted.cors)
            session, count = self._sessions.open(identity, gap=bool(cursor)), 0
            self._node.hold(session, expires_at=identity.expires_at, address=admitted.address)
            await self._node.registered(session)
        else:
            session, count = found
            self._node.renew(session, identity)
        body = session.poll(count)
        if body is None and wait > 0 and session.state is State.OPEN:
            return Park(
                session, cors_lines=admitted.cors_lines, wait_seconds=wait, wires=self._wires
            )
        if session.state is State.OPEN:
            session.rest()
        headers = {"cache-control": "no-store", **admitted.cors}
        if session.moves:
            headers["connection"] = "close"
            session.moved()
        return Response(body or session.empty(), media_type="application/json", headers=headers)

    async def client(self, request: Request) -> Response:  # noqa: ARG002
        """`GET /pushgate.js`."""
        headers = {"access-control-allow-origin": "*"}  # a module is fetched with CORS
        return Response(self._client, media_type="text/javascript; charset=utf-8", headers=headers)

    def _connecting(self, connect: Endpoint) -> Endpoint:
        """Answer OPTIONS, and refuse all but GET."""

        async def endpoint(head: Head) -> ASGIApp:
            if head.method == "OPTIONS":
                return self._preflight(head)
            if head.method != "GET":
                raise HTTPException(405, "GET is what connects", {"allow": "GET, OPTIONS"})
            return await connect(head)

        return endpoint

    async def _admit(
        self, head: Head, offered: Sequence[str] = (), *, new: bool = True
    ) -> Admitted:
        """Let a request in, or refuse it before anything is allocated for it.

        What is not `new` belongs to something that is held already: no load refuses it.
        """
        origin = head.fields.get("origin")
        cors = self._cors(head)
        if origin is not None and not cors:
            raise HTTPException(403, "this origin is not allowed; see PUSHGATE_ORIGINS")
        if head.has_body:
            # The listener ends the connection unless the body is over. With "connection: close"
            # uvicorn would, at once, and a client that still sends might lose the answer.
            raise HTTPException(413, "no body is taken here", cors)
        if new and self._node.admission.overloaded:
            raise Overloaded(cors, self._node.refusal(head.address))
        identity = await self._identify(head, offered, cors)
        if new:
            self._refuse_for_load(identity.user, head.address, cors)
        return Admitted(identity, cors, head.address)

    async def _identify(self, head: Head, offered: Sequence[str], cors: dict[str, str]) -> Identity:
        try:
            token = credential(
                authorization=head.fields.get("authorization"),
                subprotocols=offered,
                query_token=head.query.get("token"),
                cookies=head.cookies if cors else {},
                origin_allowed=bool(cors),
            )
            return await self._auth.authenticate(token)
        except Unauthenticated as error:
            raise HTTPException(401, str(error), {"www-authenticate": "Bearer", **cors}) from error

    def _refuse_for_load(self, user: str, address: str, cors: dict[str, str]) -> None:
        if not self._node.takes_new:
            raise Overloaded(cors, "not taking connections now")
        reason = self._node.user_refusal(user) or self._node.refusal(address)
        if reason is not None:
            raise Overloaded(cors, reason)

    def _cors(self, head: Head) -> dict[str, str]:
        """Return CORS headers for an allowed Origin; none for a foreign one or where none is."""
        origin = head.fields.get("origin")
        host = head.fields.get("host", "")
        if origin is None or not self._origins.allow(origin, host=host):
            return {}
        return {
            "access-control-allow-origin": origin,
            "access-control-allow-credentials": "true",
            "access-control-expose-headers": "retry-after",
            "vary": "origin",
        }

    def _preflight(self, head: Head) -> Response:
        cors = self._cors(head)
        if not cors:
            raise HTTPException(403, "this origin is not allowed; see PUSHGATE_ORIGINS")
        allowed = {
            "access-control-allow-methods": "GET",
            "access-control-allow-headers": "authorization, last-event-id",
            "access-control-max-age": "600",
        }
        return Response(status_code=204, headers={**cors, **allowed})


class Overloaded(HTTPException):
    """503 with a jittered Retry-After; it ends its connection: the next may go elsewhere."""

    def __init__(self, headers: dict[str, str], reason: str | None) -> None:
        wait = random.randint(*RETRY_AFTER_SECONDS)  # noqa: S311
        always = {"retry-after": str(wait), "connection": "close"}
        super().__init__(503, reason or "overloaded", {**always, **headers})


class Hold:
    """A response that takes the socket and keeps it: the connection's way in."""

    def __init__(
        self,
        connection: StreamConnection,
        admitted: Admitted,
        head: bytes,
        node: GatewayNode,
        wires: Wires,
    ) -> None:
        self._connection = connection
        self._admitted = admitted
        self._head = head
        self._node = node
        self._wires = wires

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Take the socket, be registered, then answer: the client is told last."""
        taken = scope["extensions"][TAKE_OVER]()
        if taken is None:
            return
        connection, admitted = self._connection, self._admitted
        connection.attach(self._wires.hold(taken.transport, connection))
        expires_at = admitted.identity.expires_at
        self._node.hold(connection, expires_at=expires_at, address=admitted.address)
        await self._node.registered(connection)
        connection.open(self._head, early=taken.rest)
        if not self._node.takes_new:  # the drain went on while this handshake was under way
            connection.close(GOING_AWAY)


class Park:
    """A response that takes the socket until there is something to answer."""

    def __init__(
        self, session: PollSession, *, cors_lines: bytes, wait_seconds: float, wires: Wires
    ) -> None:
        self._session = session
        self._cors_lines = cors_lines
        self._wait_seconds = wait_seconds
        self._wires = wires

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Take the socket and park it with the session."""
        taken = scope["extensions"][TAKE_OVER]()
        if taken is None:
            self._session.rest()
            return
        resume = taken.resume if taken.keep_alive and not self._session.moves else None
        if self._session.moves:
            self._session.moved()
        parked = ParkedPoll(self._session, _POLL_HEAD + self._cors_lines, resume)
        room = self._session.most_answer_bytes
        parked.attach(self._wires.lend(taken.transport, parked, answer_bytes=room))
        self._session.park(parked, wait_seconds=self._wait_seconds)


_POLL_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncache-control: no-store\r\n"
)


def public_app(
    node: GatewayNode,
    settings: GatewaySettings,
    wires: Wires,
    auth: Authenticator,
    *,
    extra_routes: Sequence[BaseRoute] = (),
) -> ASGIApp:
    """Return the application of the public port.

    What connects is found by its path, before starlette's middleware and its routes' patterns.
    """
    public = Public(node, settings, wires, auth)
    app = Starlette(
        routes=[*public.routes(), *extra_routes],
        exception_handlers={HTTPException: _refused},
    )
    app.router.redirect_slashes = False  # a path that is not ours is 404, nothing else
    connecting = public.connecting()

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = connecting.get(scope["path"])
        if endpoint is None:
            await app(scope, receive, send)
            return
        try:
            answer = await endpoint(Head(scope))
        except HTTPException as error:
            answer = await _refused(Request(scope), error)
        await answer(scope, receive, send)

    return route


def internal_app(
    node: GatewayNode, settings: GatewaySettings, *, drain: Callable[[], None]
) -> ASGIApp:
    """Return the application of the internal port. Batches don't go through starlette's router."""
    endpoints = PushEndpoints(
        node,
        Repeats(settings.repeat_window_messages),
        max_payload_bytes=settings.max_payload_bytes,
    )

    async def exposition(request: Request) -> Response:  # noqa: ARG001
        return Response(metrics.exposition(), media_type=metrics.CONTENT_TYPE_LATEST)

    async def start_drain(request: Request) -> Response:  # noqa: ARG001
        drain()
        return PlainTextResponse("draining\n", 202)

    async def connections(request: Request) -> Response:  # noqa: ARG001
        return StreamingResponse(_connections(node), media_type="application/json")

    async def disconnect(request: Request) -> Response:
        user = user_in_path(request, "/connections/")
        closed = node.disconnect(user, request.query_params.get("device"))
        return JSONResponse({"closed": closed}, 200 if closed else 404)

    app = Starlette(
        routes=[
            *push_routes(endpoints),
            Route("/metrics", exposition, methods=["GET"]),
            Route("/drain", start_drain, methods=["POST"]),
            Route("/connections", connections, methods=["GET"]),
            Route("/connections/{user:path}", disconnect, methods=["DELETE"]),
            *health_routes(node),
        ],
        exception_handlers={HTTPException: _plain},
    )
    app.router.redirect_slashes = False

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["path"] == "/push" and scope["method"] == "POST":
                await endpoints.batch(scope, receive)
            else:
                await app(scope, receive, send)
        except HTTPException as error:
            await (await _plain(Request(scope), error))(scope, receive, send)
        except ClientDisconnect:
            return  # its body will not be whole, and nobody waits for an answer

    return RequireSecret(route, secrets=settings.internal_secrets, open_paths=_OPEN_PATHS)


def health_routes(node: GatewayNode) -> list[BaseRoute]:
    """Return `/healthz` (alive) and `/readyz` (taking connections); both are on both ports."""

    async def healthz(request: Request) -> Response:  # noqa: ARG001
        return JSONResponse({"status": "alive"})

    async def readyz(request: Request) -> Response:  # noqa: ARG001
        status = node.status
        return JSONResponse({"status": status}, 200 if status == "ready" else 503)

    return [
        Route("/healthz", healthz, methods=["GET"]),
        Route("/readyz", readyz, methods=["GET"]),
    ]


async def _connections(node: GatewayNode) -> AsyncIterator[bytes]:
    """Write a JSON object of the node's users, each with a number of connections.

    A piece a turn of the event loop: all at once would hold it up. Users who come meanwhile may
    not be in it; those who leave before it is their turn are not.
    """
    node_is = {"node": node.identity.name, "epoch": node.identity.epoch}
    yield msgspec.json.encode(node_is)[:-1] + b',"users":{'
    users, comma = node.hub.users(), b""
    for start in range(0, len(users), USERS_A_PIECE):
        piece = users[start : start + USERS_A_PIECE]
        counts = {user: count for user in piece if (count := node.hub.count(user))}
        if counts:
            yield comma + msgspec.json.encode(counts)[1:-1]
            comma = b","
        await asyncio.sleep(0)
    yield b"}}"


def _count_refusal(error: HTTPException) -> None:
    metrics.REFUSED.labels(str(error.status_code)).inc()


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it alone
    _count_refusal(error)
    return await _plain(request, error)


async def _plain(request: Request, error: Exception) -> Response:  # noqa: ARG001
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it alone
    return PlainTextResponse(f"{error.detail}\n", error.status_code, error.headers)


def _wait(head: Head) -> float:
    text = head.query.get("wait")
    if text is None:
        return POLL_WAIT_SECONDS
    try:
        wait = float(text)
    except ValueError as error:
        raise HTTPException(400, f"wait is a number of seconds: {text[:20]!r}") from error
    if not wait >= 0:  # also false for NaN
        raise HTTPException(400, "wait is 0 or more seconds")
    return min(wait, MAX_POLL_WAIT_SECONDS)
