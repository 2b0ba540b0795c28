"""The internal port: the secret, the routes, health, and listings. Never public.

Processors push batches here; people and tools push single messages, list users, end connections,
start a drain, and read metrics and the status.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final
from urllib.parse import unquote_to_bytes

import msgspec
import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.status import HTTP_403_FORBIDDEN
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway import metrics, refusals
from gateway.connections.closes import DISCONNECTED, GOING_AWAY
from gateway.connections.connection import Connection
from gateway.connections.node import GatewayNode
from gateway.http.detach import exchange_of
from gateway.http.direct import Direct, Respond
from gateway.links import Links
from gateway.push import BadBatch, Item, Pusher, Result
from gateway.resume.links import ResumeLinks
from registry.credentials import Credentials
from registry.directory import Node
from registry.message import EPOCH_HEADER, MAX_BATCH_BYTES, NODE_HEADER, valid_user
from registry.process import VERSION
from registry.proof import SCHEME
from registry.resume import RESUME_PATH
from registry.status import Status

#: How often a wrong credential is logged at most.
_LOG_SECONDS: Final = 60.0
#: How many users `GET /connections` lists in one turn of the event loop.
USERS_A_TURN: Final = 1_000
#: How many connections of one user are listed at most: a user may have every connection of a node.
MOST_LISTED: Final = 1_000
_CONNECTIONS_OF: Final = "/connections/"
#: With what `DELETE /connections/{user}` ends connections, by the parameter `code`.
_ENDS: Final = {str(close.code): close for close in (DISCONNECTED, GOING_AWAY)}

log = structlog.get_logger("gateway.internal")

_OPEN_PATHS: Final = ("/healthz", "/readyz", "/metrics")
_NODE_HEADER: Final = NODE_HEADER.encode("ascii")
_EPOCH_HEADER: Final = EPOCH_HEADER.encode("ascii")
#: What the paths of single pushes begin with; the user follows.
_PUSH_TO: Final = "/push/"
_PLAIN_TEXT: Final = b"text/plain; charset=utf-8"
#: The HTTP status of the answer to a single message, by the error in the message's result.
_STATUS: Final = {"invalid": 400, "no-device": 404, "too-large": 413, "overloaded": 503}


def internal_app(
    node: GatewayNode,
    pusher: Pusher,
    links: Links,
    resume_links: ResumeLinks | None,
    *,
    secrets: Sequence[str],
    max_payload_bytes: int,
    drain: Callable[[], None],
) -> _RequireSecret:
    """Return the application of the internal port. Pushes don't go through starlette's router.

    Most single pushes are answered without ASGI: the result has a Direct (`direct`) for them.

    Processors send batches on `links`, people and tools post them. On `resume_links` processors are
    asked what clients have missed; None where clients don't resume. Any of `secrets` opens the
    port, and so does a proof of it for this node. `drain` begins the node's drain, or hastens it.
    """
    pushes = _Pushes(node, pusher, links, max_payload_bytes=max_payload_bytes)
    operations = _Operations(node, drain=drain)
    app = Starlette(
        routes=[*pushes.routes(), *operations.routes(), *health_routes(node)],
        exception_handlers={HTTPException: _refused},
    )
    app.router.redirect_slashes = False

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            path, is_post = scope["path"], scope["method"] == "POST"
            if is_post and path == "/push":
                await pushes.batch(scope, receive)
            elif is_post and path.startswith(_PUSH_TO):
                await pushes.single(scope, receive)
            elif path == "/push" and scope["method"] == "GET":
                await pushes.link(scope)
            elif path == RESUME_PATH and scope["method"] == "GET" and resume_links is not None:
                pushes.refuse_if_misdirected(scope)
                await resume_links.open(scope)
            else:
                await app(scope, receive, send)
        except HTTPException as error:
            await (await _refused(Request(scope), error))(scope, receive, send)
        except ClientDisconnect:
            return  # the body stays incomplete, and no client waits for an answer

    return _RequireSecret(
        route, pushes.direct, secrets=secrets, node=node.identity, open_paths=_OPEN_PATHS
    )


def health_routes(node: GatewayNode) -> list[BaseRoute]:
    """Return `/healthz` (process alive) and `/readyz` (taking connections), for both ports."""

    async def healthz(request: Request) -> Response:  # noqa: ARG001
        return JSONResponse({"status": "alive"})

    async def readyz(request: Request) -> Response:  # noqa: ARG001
        status, warnings = node.status, _warnings(node)
        answer = {"status": status} | ({"warnings": warnings} if warnings else {})
        return JSONResponse(answer, 200 if status == "ready" else 503)

    return [
        Route("/healthz", healthz, methods=["GET"]),
        Route("/readyz", readyz, methods=["GET"]),
    ]


def _warnings(node: GatewayNode) -> list[str]:
    return [node.registrar.warning] if node.registrar.warning else []


async def plain_text(request: Request, error: Exception) -> Response:  # noqa: ARG001
    """Answer a refused request with the reason of the refusal, as one line of text."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for HTTPException
    return PlainTextResponse(f"{error.detail}\n", error.status_code, error.headers)


async def _refused(request: Request, error: Exception) -> Response:
    """Count a request that is refused on the internal port, and answer it."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for HTTPException
    refusals.count("internal", error.status_code, error.detail)
    return await plain_text(request, error)


class _Pushes:
    """The routes for pushes: batches, and single messages as users of `curl` and Zuul send them."""

    def __init__(
        self, node: GatewayNode, pusher: Pusher, links: Links, *, max_payload_bytes: int
    ) -> None:
        self._node = node
        self._pusher = pusher
        self._links = links
        self._max_payload_bytes = max_payload_bytes

    def routes(self) -> list[BaseRoute]:
        """Return the routes that go through starlette's router: a push takes half as long past it.

        The router knows the path of single pushes, for the answer to other methods (405).
        """
        return [Route(_PUSH_TO + "{user:path}", self.is_here, methods=["GET"])]

    async def batch(self, scope: Scope, receive: Receive) -> None:
        """`POST /push`: at most 1,000 messages, 10,000 users, 4 MiB; answers a result for each.

        Raises:
            HTTPException: the batch is refused as a whole.
        """
        headers = dict(scope["headers"])
        self._refuse_if_misdirected(headers)
        media_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        body = await _body(headers, receive, limit=MAX_BATCH_BYTES)
        self._node.pushed(len(body))
        try:
            answer = await self._pusher.batch(media_type, body)
        except BadBatch as bad:
            raise HTTPException(bad.status, bad.detail) from bad
        await exchange_of(scope).answer(200, *answer)

    async def link(self, scope: Scope) -> None:
        """`GET /push`: hold the request's socket as a link of a processor, for many batches.

        Raises:
            HTTPException: the link is refused.
        """
        # Once is enough for all batches of the link: name and epoch are those of this process.
        self.refuse_if_misdirected(scope)
        await self._links.open(scope)

    async def single(self, scope: Scope, receive: Receive) -> None:
        """`POST /push/{user}`: the body is the payload; push-id, push-type, push-device apply.

        Answers 200 where a connection took the message, 404 where the user is not on this node.

        Raises:
            HTTPException: the push is refused.
        """
        headers = dict(scope["headers"])
        self._refuse_if_misdirected(headers)
        user = _user_in_path(scope["raw_path"], _PUSH_TO)
        body = await _body(headers, receive, limit=self._max_payload_bytes)
        self._node.pushed(len(body))
        result = await self._pusher.one(_item(user, headers, body))
        await exchange_of(scope).answer(*_told(result))

    def direct(self, path: bytes, fields: Mapping[bytes, bytes]) -> Respond | None:
        """Return what answers a `POST /push/{user}` without ASGI; None to leave it to `single`.

        Left to `single` are pushes that are refused by their heads, bodies without a length,
        pushes to a crowd, which take some turns of the event loop, and those during a take-over.
        """
        if not path.startswith(_PUSH_TO.encode()) or b"transfer-encoding" in fields:
            return None
        if self._pusher.partner is not None:  # to push takes a while
            return None
        if int(fields.get(b"content-length", b"0")) > self._max_payload_bytes:
            return None
        try:
            self._refuse_if_misdirected(fields)
            user = _user_in_path(path, _PUSH_TO)
        except HTTPException:
            return None
        return None if user in self._node.hub.crowds else partial(self._at_once, user, fields)

    def _at_once(
        self, user: str, fields: Mapping[bytes, bytes], body: bytes
    ) -> tuple[int, bytes, bytes]:
        self._node.pushed(len(body))
        return _told(self._pusher.one_at_once(_item(user, fields, body)))

    async def is_here(self, request: Request) -> Response:
        """`GET /push/{user}`: 200 if the user has a connection on this node, else 404."""
        here = _user_in_path(request.scope["raw_path"], _PUSH_TO) in self._node.hub
        return PlainTextResponse("here\n" if here else "not on this node\n", 200 if here else 404)

    def refuse_if_misdirected(self, scope: Scope) -> None:
        """Refuse a link that is meant for another node, or for an earlier start of this one.

        Raises:
            HTTPException: 421.
        """
        self._refuse_if_misdirected(dict(scope["headers"]))

    def _refuse_if_misdirected(self, headers: Mapping[bytes, bytes]) -> None:
        """Answer 421 to a push that names another node or an earlier start of this node."""
        identity = self._node.identity
        for header, own_value in ((_NODE_HEADER, identity.name), (_EPOCH_HEADER, identity.epoch)):
            value = headers.get(header)
            if value is not None and value != own_value.encode():
                raise _misdirected(identity)


def _item(user: str, fields: Mapping[bytes, bytes], body: bytes) -> Item:
    """Return the message of a single push, from its fields push-id, push-type and push-device."""
    message_id = _text(fields.get(b"push-id"))
    event_type, device = _text(fields.get(b"push-type")), _text(fields.get(b"push-device"))
    return Item(user, body, None, message_id, event_type, device)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")


def _told(result: Result) -> tuple[int, bytes, bytes]:
    """Return status, content type and body of the answer to a single push."""
    if isinstance(result, dict) and "error" in result:
        error = str(result["error"])
        return _STATUS[error], _PLAIN_TEXT, b"%b\n" % error.encode()
    taken = int(result["taken"] if isinstance(result, dict) else result)
    if not taken:
        return 404, _PLAIN_TEXT, b"not on this node\n"
    return 200, _PLAIN_TEXT, b"delivered to %d\n" % taken


def _misdirected(node: Node) -> HTTPException:
    """Return the refusal of a request for another node: 421 (RFC 9110 §15.5.20)."""
    return HTTPException(421, f"this is node {node.name}, epoch {node.epoch}")


class _Operations:
    """The routes for operators: metrics, status, drain, connected users."""

    def __init__(
        self,
        node: GatewayNode,
        *,
        drain: Callable[[], None],
        now_ms: Callable[[], int] = lambda: int(time.time() * 1_000),
    ) -> None:
        """`drain` begins the node's drain, or hastens it."""
        self._node = node
        self._drain = drain
        self._now_ms = now_ms
        self._started_ms = now_ms()

    def routes(self) -> list[BaseRoute]:
        """Return the routes."""
        return [
            Route("/metrics", self.exposition, methods=["GET"]),
            Route("/status", self.status, methods=["GET"]),
            Route("/drain", self.start_drain, methods=["POST"]),
            Route("/connections", self.connections, methods=["GET"]),
            Route(_CONNECTIONS_OF + "{user:path}", self.connections_of, methods=["GET"]),
            Route(_CONNECTIONS_OF + "{user:path}", self.disconnect, methods=["DELETE"]),
        ]

    async def exposition(self, request: Request) -> Response:  # noqa: ARG002
        """`GET /metrics`: all metrics, as Prometheus reads them."""
        return Response(metrics.exposition(), media_type=metrics.CONTENT_TYPE_LATEST)

    async def status(self, request: Request) -> Response:  # noqa: ARG002
        """`GET /status`: what the node says of itself, with its metrics, as JSON."""
        node = self._node
        status = Status(
            kind="gateway",
            name=node.identity.name,
            epoch=node.identity.epoch,
            address=node.identity.address,
            version=VERSION,
            status=node.status,
            warnings=_warnings(node),
            started_ms=self._started_ms,
            now_ms=self._now_ms(),
            drain_seconds=node.drain_left_seconds,
            metrics=metrics.samples(),
        )
        return Response(msgspec.json.encode(status), media_type="application/json")

    async def start_drain(self, request: Request) -> Response:  # noqa: ARG002
        """`POST /drain`: begin the node's drain, or hasten it."""
        self._drain()
        return PlainTextResponse("draining\n", 202)

    async def connections(self, request: Request) -> Response:  # noqa: ARG002
        """`GET /connections`: the node's users with their numbers of connections."""
        return StreamingResponse(_listing(self._node), media_type="application/json")

    async def connections_of(self, request: Request) -> Response:
        """`GET /connections/{user}`: MOST_LISTED of the user's connections, and how many there are.

        A user without a connection has an empty list.
        """
        user = _user_in_path(request.scope["raw_path"], _CONNECTIONS_OF)
        identity, connections = self._node.identity, self._node.hub.of(user)
        now_ms = self._now_ms()
        listed = [_listed(held, now_ms) for held in connections[:MOST_LISTED]]
        listing = _UserListing(
            identity.name, identity.epoch, user, len(connections), listed, now_ms
        )
        return Response(msgspec.json.encode(listing), media_type="application/json")

    async def disconnect(self, request: Request) -> Response:
        """`DELETE /connections/{user}?device=D&id=I&code=C`: end the user's connections.

        All, those of a device, or one by its id in the listing; with 4003, or with 1001.
        """
        user = _user_in_path(request.scope["raw_path"], _CONNECTIONS_OF)
        query = request.query_params
        close = _ENDS.get(query.get("code", str(DISCONNECTED.code)))
        if close is None:
            raise HTTPException(400, f"code is one of {', '.join(_ENDS)}")
        closed = self._node.disconnect(
            user, device=query.get("device"), connection_id=query.get("id"), close=close
        )
        return JSONResponse({"closed": closed}, 200 if closed else 404)


class _Listed(msgspec.Struct):
    """A connection in the listing of its user."""

    id: str
    transport: str  # websocket, sse or poll
    device: str | None
    state: str  # opening, open, parting
    since_ms: int  # epoch ms, to a tick: when the node took the connection in
    age_ms: int


class _UserListing(msgspec.Struct):
    """The answer to `GET /connections/{user}`."""

    node: str
    epoch: str
    user: str
    total: int  # all connections of the user to this node
    connections: list[_Listed]
    now_ms: int  # epoch ms: the node's clock, at the answer


def _listed(held: Connection, now_ms: int) -> _Listed:
    age_ms = max(0, now_ms - held.held_since_ms)
    state = held.state.name.lower()
    return _Listed(held.id, held.transport, held.device, state, held.held_since_ms, age_ms)


async def _listing(node: GatewayNode) -> AsyncIterator[bytes]:
    """Write a JSON object of the node's users with their numbers of connections.

    A thousand users a turn of the event loop: all users at once would hold up the loop. Users who
    connect during the listing may be missing; users who disconnect before their turn are left out.
    """
    node_fields = {"node": node.identity.name, "epoch": node.identity.epoch}
    yield msgspec.json.encode(node_fields)[:-1] + b',"users":{'
    users, comma = node.hub.users(), b""
    for start in range(0, len(users), USERS_A_TURN):
        listed = users[start : start + USERS_A_TURN]
        counts = {user: count for user in listed if (count := node.hub.count(user))}
        if counts:
            yield comma + msgspec.json.encode(counts)[1:-1]
            comma = b","
        await asyncio.sleep(0)
    yield b"}}"


def _user_in_path(raw_path: bytes, prefix: str) -> str:
    """Return the user that follows `prefix` in a raw path, percent-decoded once, slashes too.

    The decoded path of the ASGI scope would not tell an encoded slash from a plain slash.

    Raises:
        HTTPException: 400, there is no valid user id.
    """
    raw_user = raw_path[len(prefix) :]
    try:
        user = (unquote_to_bytes(raw_user) if b"%" in raw_user else raw_user).decode()
    except UnicodeDecodeError as error:
        raise HTTPException(400, "the user in the path is not UTF-8") from error
    if not valid_user(user):
        raise HTTPException(400, "a user id is 1–256 bytes without control characters")
    return user


async def _body(headers: Mapping[bytes, bytes], receive: Receive, *, limit: int) -> bytes:
    """Read a body of at most `limit` bytes; answer 413 before more than `limit` bytes are kept.

    Raises:
        HTTPException: 413, the body is larger.
        ClientDisconnect: the client left before the body was complete.
    """
    too_large = HTTPException(413, f"at most {limit} bytes")
    if int(headers.get(b"content-length", b"0")) > limit:
        raise too_large
    pieces: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        pieces.append(message["body"])
        size += len(message["body"])
        more = message["more_body"]
        if size > limit:
            raise too_large
    return b"".join(pieces)


class _RequireSecret:
    """Admits requests with an internal secret, or with a proof of it: 401 without, 403 wrong."""

    def __init__(
        self,
        app: ASGIApp,
        direct: Direct,
        *,
        secrets: Sequence[str],
        node: Node,
        open_paths: Collection[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Guard every path but `open_paths`; any of `secrets` is accepted (for rotation).

        `clock` is in seconds, and says when a refusal may be logged again.
        """
        self._app = app
        self._direct = direct
        self._secrets = secrets
        self._node = node
        self._open_paths = frozenset(open_paths)
        self._clock = clock
        self._log_after = clock()
        self._credentials = Credentials(secrets, node)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on to the application, or refuse it."""
        headers = dict(scope["headers"])
        credential = headers.get(b"authorization")
        if scope["path"] in self._open_paths or (
            credential is not None and self._credentials.accept(credential)
        ):
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(credential, headers)
        if refusal.status_code == HTTP_403_FORBIDDEN:
            self._log_refusal(scope)
        await (await _refused(Request(scope), refusal))(scope, receive, send)

    def direct(self, path: bytes, fields: Mapping[bytes, bytes]) -> Respond | None:
        """Pass a request on to what is answered without ASGI; None where it is to be refused."""
        credential = fields.get(b"authorization")
        if credential is None or not self._credentials.accept(credential):
            return None
        return self._direct(path, fields)

    def _log_refusal(self, scope: Scope) -> None:
        """Log a wrong credential with the cure: once a minute, since anybody may send one."""
        now = self._clock()
        if now >= self._log_after:
            self._log_after = now + _LOG_SECONDS
            log.error(
                "the internal port refuses a credential",
                cure="set the same PUSHGATE_INTERNAL_SECRET on gateways and processors; it was "
                "another secret, or a proof for another address",
                client=(scope.get("client") or ("unknown",))[0],
                advertised=self._node.address,
            )

    def _refusal(self, credential: bytes | None, headers: Mapping[bytes, bytes]) -> HTTPException:
        if credential is None:
            challenges = {"www-authenticate": f"Bearer, {SCHEME}"}
            return HTTPException(401, "send the internal secret, or a proof of it", challenges)
        if self._is_for_another_node(credential, headers):
            return _misdirected(self._node)
        return HTTPException(403, "neither the internal secret nor a proof of it for this node")

    def _is_for_another_node(self, credential: bytes, headers: Mapping[bytes, bytes]) -> bool:
        """Whether a proof is good for the node that the request names, at this node's address.

        The caller has the secret, and calls a node that was at this address before, for example
        an earlier start of this node.
        """
        try:
            name, epoch = (
                headers.get(each, b"").decode() for each in (_NODE_HEADER, _EPOCH_HEADER)
            )
            named = replace(self._node, name=name, epoch=epoch)
        except ValueError:
            return False
        return Credentials(self._secrets, named).accept(credential)
