"""The way in: a request is admitted or refused; its socket is held for good, or parked.

A transport calls `admit` first, and then returns the result of `hold` (the socket stays held until
the connection ends) or of `park` (the socket goes back to HTTP after one answer) as the response.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final, Protocol

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway import metrics, refusals
from gateway.connections.closes import GOING_AWAY
from gateway.connections.connection import Connection, StreamConnection
from gateway.connections.identity import Identity
from gateway.connections.node import GatewayNode
from gateway.entry.auth import Authenticator, Unauthenticated, credential
from gateway.entry.origin import Origins, RefusedOrigins, Trust
from gateway.entry.turns import Turns
from gateway.errors import GatewayError
from gateway.http.detach import Detached, Lent, Resume, exchange_of
from gateway.http.head import Head
from gateway.http.responses import field_lines
from gateway.resume.questions import Questions
from gateway.wires import Borrower, Wire
from gateway.wires.choice import Wires

#: The range of Retry-After for clients that are refused for load, in seconds. Drawn for every
#: client, so that refused clients do not come back all at once.
RETRY_AFTER_SECONDS: Final = (1, 10)

#: Fields that a page's request may have beside the fields that need no leave (Fetch standard): what
#: client libraries send when they ask for an event stream, or poll.
_ALLOWED_FIELDS: Final = (
    "authorization, cache-control, content-type, last-event-id, pragma, x-requested-with"
)
#: Is called with the refusal of each request that is refused on the public listener.
Refused = Callable[[HTTPException], None]

_handshakes: Final = cache(metrics.HANDSHAKE_SECONDS.labels)
_FOREIGN_ORIGIN: Final = "this origin is not allowed; see PUSHGATE_ORIGINS"


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that may connect: for whom, from where, and with which CORS fields to answer."""

    identity: Identity
    cors: dict[str, str]
    address: str
    began: float  # when the request's head had arrived, by time.perf_counter()

    @property
    def cors_lines(self) -> bytes:
        """The CORS fields as they stand in a response's head."""
        return field_lines(self.cors)


class Parkable(Borrower, Protocol):
    """A request whose answer waits for a message, as the entry sees it."""

    @property
    def most_answer_bytes(self) -> int:
        """The greatest length of the answer, in bytes."""

    def attach(self, wire: Wire, resume: Resume, *, last: bool) -> None:
        """Take the socket and wait for a message.

        `resume` gives the socket back to HTTP after the answer. `last` says that the answer is the
        last on its connection.
        """

    def vanished(self) -> None:
        """Take note that the client had disconnected before the socket could be taken."""


class Entry:
    """Admits requests to one node, and has the node hold the connections."""

    def __init__(
        self,
        node: GatewayNode,
        *,
        origins: Origins,
        auth: Authenticator,
        wires: Wires,
        questions: Questions | None = None,
        refused: Refused | None = None,
    ) -> None:
        """`questions` ask for what clients have missed; None where clients don't resume.

        `refused` is told of each refused request.
        """
        self.node = node
        self._questions = questions
        self._origins = origins
        self._refused_origins = RefusedOrigins()
        self._auth = auth
        self._wires = wires
        self._refused = refused
        self._turns = Turns()

    async def admit(
        self, head: Head, subprotocols: Sequence[str] = (), *, new: bool = True
    ) -> Admitted:
        """Let a request in, or refuse the request before anything is allocated for it.

        A new connection waits for a turn of the event loop (turns.py). Limits are checked behind
        the wait: a limit that was checked before would no longer hold.

        The checks, in order: Origin, body, load of the node, credential, load by user and address.
        A request for a session that the node holds already is not `new`, and is never refused for
        load.

        Raises:
            Overloaded: the node is full, or the share of the user or the address is used up.
            HTTPException: 401 (credential), 403 (Origin) or 413 (body), with the CORS fields of
                the refused request.
        """
        began = time.perf_counter()
        origin = head.fields.get("origin")
        trust = self._trust(head)
        if trust is Trust.NONE:
            # The page may read why it is refused, unless the page has the browser send cookies.
            readable = {"access-control-allow-origin": origin or "", "vary": "origin"}
            raise self._foreign(origin, readable)
        cors = _cors(origin)
        if head.has_body:
            # Where the body is incomplete, the listener closes the connection gracefully.
            raise HTTPException(413, "no body is taken here", cors)
        if new:
            self._check_node(head, cors)  # a refusal takes no turn
            await self._turns.take()
            self._check_node(head, cors)
        identity = await self._identify(head, subprotocols, cors, trust)
        admitted = Admitted(identity, cors, head.address, began)
        if new:
            self.check_load(admitted)
        return admitted

    def _check_node(self, head: Head, cors: dict[str, str]) -> None:
        """Refuse a new connection where the node takes none, whoever the user."""
        if self.node.refuses_everyone:
            raise Overloaded(cors, self.node.refusal(head.address))

    def check_load(self, admitted: Admitted) -> None:
        """Refuse a new connection where the share of its user or its address is used up.

        Raises:
            Overloaded: the connection is refused, or the node takes no new connections at all.
        """
        if not self.node.takes_new:
            raise Overloaded(admitted.cors, "not taking connections now")
        user, address = admitted.identity.user, admitted.address
        reason = self.node.user_refusal(user) or self.node.refusal(address, user)
        if reason is not None:
            raise Overloaded(admitted.cors, reason)

    def resume(self, connection: Connection, cursor_text: str | None) -> bool:
        """Let a connection resume from a client's cursor, None for a client without one.

        Return False where the client has a cursor that nothing can be asked with: it is to be told
        of a gap.
        """
        if self._questions is None or not cursor_text:
            return True
        cursor = self._questions.cursor_in(cursor_text)
        if cursor is None:
            metrics.RESUMES.labels("unreadable").inc()
            return False
        self._questions.gate(connection, cursor)
        return True

    def ask(self, connection: Connection) -> None:
        """Ask for what a connection that resumes has missed, once its handshake is answered."""
        if self._questions is not None and connection.screen is not None:
            self._questions.begin(connection)

    def hold(self, connection: StreamConnection, admitted: Admitted, answer: bytes) -> ASGIApp:
        """Return the response for a held connection, to be called as an ASGI application.

        The response detaches the socket for `connection`, has the connection registered, and then
        sends `answer`, the bytes of the head.
        """
        return _Hold(self, connection, admitted, answer)

    def park(self, request: Parkable) -> ASGIApp:
        """Return the response that detaches the socket until `request` has its answer.

        The response is called as an ASGI application.
        """
        return _Park(self, request)

    async def register(self, connection: Connection, admitted: Admitted) -> None:
        """Have the node hold `connection`; wait until its user is registered, a second at most.

        A client that look-ups don't find by then resumes from now, once they do: it is answered all
        the same, and nobody else knows that it is here.
        """
        expires_at = admitted.identity.expires_at
        self.node.hold(connection, expires_at=expires_at, address=admitted.address)
        if not await self.node.registered(connection) and self._questions is not None:
            self._questions.gate_from_now(connection)
        _handshakes(connection.transport).observe(time.perf_counter() - admitted.began)

    def take_wire(self, detached: Detached, connection: StreamConnection) -> None:
        """Make the wire of a detached socket, and give it to `connection`."""
        connection.attach(self._wires.hold(detached.transport, connection))

    def lend_wire(self, lent: Lent, request: Parkable) -> None:
        """Make the wire of a lent socket, and lend it to `request` until the answer."""
        answer_bytes = request.most_answer_bytes
        wire = self._wires.lend(lent.transport, request, answer_bytes=answer_bytes)
        request.attach(wire, lent.resume, last=not lent.keep_alive)

    def count_refusal(self, refusal: HTTPException) -> None:
        """Count a request that is refused on the public port."""
        refusals.count("public", refusal.status_code, refusal.detail)
        if self._refused is not None:
            self._refused(refusal)

    def cors(self, head: Head) -> dict[str, str]:
        """Return the CORS fields for an allowed Origin; none for a foreign or a missing Origin."""
        return {} if self._trust(head) is Trust.NONE else _cors(head.fields.get("origin"))

    def preflight(self, head: Head) -> Response:
        """Answer OPTIONS (Fetch standard, "CORS-preflight fetch").

        Raises:
            HTTPException: 403, the Origin is not allowed.
        """
        cors = self.cors(head)
        if not cors:
            raise self._foreign(head.fields.get("origin"))
        allowed = {
            "access-control-allow-methods": "GET",
            "access-control-allow-headers": _ALLOWED_FIELDS,
            "access-control-max-age": "600",
        }
        return Response(status_code=204, headers={**cors, **allowed})

    def _trust(self, head: Head) -> Trust:
        fields = head.fields
        return self._origins.trust(
            fields.get("origin"),
            host=fields.get("host", ""),
            fetch_site=fields.get("sec-fetch-site", ""),
            tls=head.tls,
        )

    def _foreign(self, origin: str | None, headers: dict[str, str] | None = None) -> HTTPException:
        """Return the refusal of a foreign origin, and log the origin."""
        if origin is not None:
            self._refused_origins.note(origin, time.monotonic())
        return HTTPException(403, _FOREIGN_ORIGIN, headers)

    async def _identify(
        self, head: Head, subprotocols: Sequence[str], cors: dict[str, str], trust: Trust
    ) -> Identity:
        try:
            token = credential(
                authorization=head.fields.get("authorization"),
                subprotocols=subprotocols,
                query_token=head.query.get("token"),
                cookies=head.cookies,
                cookie_counts=trust is Trust.COOKIE,
            )
            return await self._auth.authenticate(token)
        except Unauthenticated as error:
            raise HTTPException(401, str(error), {"www-authenticate": "Bearer", **cors}) from error


class Overloaded(GatewayError, HTTPException):
    """503 with a drawn Retry-After. The connection ends: the next try may reach another node."""

    def __init__(self, headers: dict[str, str], reason: str | None) -> None:
        wait = random.randint(*RETRY_AFTER_SECONDS)  # noqa: S311
        retry_fields = {"retry-after": str(wait), "connection": "close"}
        HTTPException.__init__(self, 503, reason or "overloaded", {**retry_fields, **headers})


def _cors(origin: str | None) -> dict[str, str]:
    """Return the CORS fields for an allowed Origin; none where there is no Origin."""
    if origin is None:
        return {}
    return {
        "access-control-allow-origin": origin,
        # Also where the cookie does not count: pushgate.js has the browser send cookies, and then
        # the browser asks for this field.
        "access-control-allow-credentials": "true",
        "access-control-expose-headers": "retry-after",
        "vary": "origin",
    }


class _Hold:
    """A response that detaches the request's socket for good."""

    def __init__(
        self, entry: Entry, connection: StreamConnection, admitted: Admitted, answer: bytes
    ) -> None:
        self._entry = entry
        self._connection = connection
        self._admitted = admitted
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Detach the socket, register the user, then answer.

        The answer comes last: the user of an answered client is in the registry, or a second has
        passed.
        """
        detached = exchange_of(scope).detach()
        if detached is None:
            return
        entry, connection = self._entry, self._connection
        entry.take_wire(detached, connection)
        await entry.register(connection, self._admitted)
        connection.open(self._answer, early=detached.rest)
        entry.ask(connection)
        if not entry.node.takes_new:  # the drain has settled while the handshake was under way
            connection.close(GOING_AWAY)


class _Park:
    """A response that detaches the request's socket until there is an answer."""

    def __init__(self, entry: Entry, request: Parkable) -> None:
        self._entry = entry
        self._request = request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Detach the socket and lend it to the parked request."""
        lent = exchange_of(scope).lend()
        if lent is None:
            self._request.vanished()
        else:
            self._entry.lend_wire(lent, self._request)
