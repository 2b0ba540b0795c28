"""The way in: a request is admitted or refused; its socket is held for good, or parked.

Transports call `admit` first and then return `hold` or `park` as the request's response.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway import metrics
from gateway.connections.closes import GOING_AWAY
from gateway.connections.connection import Connection, StreamConnection
from gateway.connections.identity import Identity
from gateway.connections.node import GatewayNode
from gateway.entry.auth import Authenticator, Unauthenticated, credential
from gateway.entry.origin import Origins
from gateway.errors import GatewayError
from gateway.http.detach import DETACH, Detached, Resume
from gateway.http.head import Head
from gateway.http.responses import field_lines
from gateway.wires import Holder, Wire
from gateway.wires.choice import Wires

#: The range of Retry-After for clients that are refused for load, in seconds; drawn for each.
RETRY_AFTER_SECONDS: Final = (1, 10)

_FOREIGN_ORIGIN: Final = "this origin is not allowed; see PUSHGATE_ORIGINS"


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that may connect; `cors` are the CORS fields of its response."""

    identity: Identity
    cors: dict[str, str]
    address: str

    @property
    def cors_lines(self) -> bytes:
        """The CORS fields as they stand in a response's head."""
        return field_lines(self.cors)


class Parkable(Holder, Protocol):
    """A request whose answer waits for a message."""

    @property
    def most_answer_bytes(self) -> int:
        """The length that the answer may reach."""

    def attach(self, wire: Wire, resume: Resume | None) -> None:
        """Take the socket and wait. `resume` gives the socket back to HTTP after the answer.

        Without `resume` the answer is the last on its connection.
        """

    def vanished(self) -> None:
        """Take note that the client had gone before its socket could be taken."""


class Entry:
    """Admits requests to one node, and has the node hold their sockets."""

    def __init__(
        self, node: GatewayNode, *, origins: Origins, auth: Authenticator, wires: Wires
    ) -> None:
        self.node = node
        self._origins = origins
        self._auth = auth
        self._wires = wires

    async def admit(
        self, head: Head, subprotocols: Sequence[str] = (), *, new: bool = True
    ) -> Admitted:
        """Let a request in, or refuse it before anything is allocated for it.

        The checks, in order: Origin, body, load of the node, credential, load by user and address.
        A request for a session that the node holds already is not `new`: no load refuses it.

        Raises:
            Overloaded: the node, or the share of this user or address, is full.
            HTTPException: 401, 403 or 413, with the CORS fields of the refused request.
        """
        origin = head.fields.get("origin")
        cors = self.cors(head)
        if origin is not None and not cors:
            raise HTTPException(403, _FOREIGN_ORIGIN)
        if head.has_body:
            # The listener ends the connection unless the body is complete. With "connection: close"
            # uvicorn would end it at once, and a client that still sends might lose the answer.
            raise HTTPException(413, "no body is taken here", cors)
        if new and self.node.admission.overloaded:
            raise Overloaded(cors, self.node.refusal(head.address))
        identity = await self._identify(head, subprotocols, cors)
        admitted = Admitted(identity, cors, head.address)
        if new:
            self.refuse_for_load(admitted)
        return admitted

    def refuse_for_load(self, admitted: Admitted) -> None:
        """Refuse a new connection where its user's or its address's share is used up.

        Raises:
            Overloaded: it is refused.
        """
        if not self.node.takes_new:
            raise Overloaded(admitted.cors, "not taking connections now")
        user, address = admitted.identity.user, admitted.address
        reason = self.node.user_refusal(user) or self.node.refusal(address)
        if reason is not None:
            raise Overloaded(admitted.cors, reason)

    def hold(self, connection: StreamConnection, admitted: Admitted, answer: bytes) -> ASGIApp:
        """Return the response that detaches the socket for `connection`, and then is `answer`."""
        return _Hold(self, connection, admitted, answer)

    def park(self, request: Parkable) -> ASGIApp:
        """Return the response that detaches the socket until `request` has its answer."""
        return _Park(self, request)

    async def register(self, connection: Connection, admitted: Admitted) -> None:
        """Have the node hold a connection, and wait for its user's entry, a second at most."""
        expires_at = admitted.identity.expires_at
        self.node.hold(connection, expires_at=expires_at, address=admitted.address)
        await self.node.registered(connection)

    def take_wire(self, detached: Detached, connection: StreamConnection) -> None:
        """Give a connection the wire of its detached socket."""
        connection.attach(self._wires.hold(detached.transport, connection))

    def lend_wire(self, detached: Detached, request: Parkable) -> None:
        """Give a parked request the wire of its detached socket, until it is answered."""
        room = request.most_answer_bytes
        wire = self._wires.lend(detached.transport, request, answer_bytes=room)
        request.attach(wire, detached.resume if detached.keep_alive else None)

    def cors(self, head: Head) -> dict[str, str]:
        """Return the CORS fields for an allowed Origin; none for a foreign one or without one."""
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

    def preflight(self, head: Head) -> Response:
        """Answer OPTIONS (Fetch standard, "CORS-preflight fetch").

        Raises:
            HTTPException: 403, the origin is foreign.
        """
        cors = self.cors(head)
        if not cors:
            raise HTTPException(403, _FOREIGN_ORIGIN)
        allowed = {
            "access-control-allow-methods": "GET",
            "access-control-allow-headers": "authorization, last-event-id",
            "access-control-max-age": "600",
        }
        return Response(status_code=204, headers={**cors, **allowed})

    async def _identify(
        self, head: Head, subprotocols: Sequence[str], cors: dict[str, str]
    ) -> Identity:
        try:
            token = credential(
                authorization=head.fields.get("authorization"),
                subprotocols=subprotocols,
                query_token=head.query.get("token"),
                cookies=head.cookies if cors else {},
                origin_allowed=bool(cors),
            )
            return await self._auth.authenticate(token)
        except Unauthenticated as error:
            raise HTTPException(401, str(error), {"www-authenticate": "Bearer", **cors}) from error


class Overloaded(GatewayError, HTTPException):
    """503 with a jittered Retry-After. Its connection ends: the next may reach another node."""

    def __init__(self, headers: dict[str, str], reason: str | None) -> None:
        wait = random.randint(*RETRY_AFTER_SECONDS)  # noqa: S311
        always = {"retry-after": str(wait), "connection": "close"}
        HTTPException.__init__(self, 503, reason or "overloaded", {**always, **headers})


def count_refusal(refusal: HTTPException) -> None:
    """Count a request that is refused on the public listener, by status."""
    metrics.REFUSED.labels(str(refusal.status_code)).inc()


class _Hold:
    """A response that detaches its socket and keeps it."""

    def __init__(
        self, entry: Entry, connection: StreamConnection, admitted: Admitted, answer: bytes
    ) -> None:
        self._entry = entry
        self._connection = connection
        self._admitted = admitted
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Detach the socket, be registered, then answer: the client is told last."""
        detached: Detached | None = scope["extensions"][DETACH]()
        if detached is None:
            return
        entry, connection = self._entry, self._connection
        entry.take_wire(detached, connection)
        await entry.register(connection, self._admitted)
        connection.open(self._answer, early=detached.rest)
        if not entry.node.takes_new:  # the drain went on while this handshake was under way
            connection.close(GOING_AWAY)


class _Park:
    """A response that detaches its socket until there is an answer."""

    def __init__(self, entry: Entry, request: Parkable) -> None:
        self._entry = entry
        self._request = request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Detach the socket and lend it to the request."""
        detached: Detached | None = scope["extensions"][DETACH]()
        if detached is None:
            self._request.vanished()
        else:
            self._entry.lend_wire(detached, self._request)
