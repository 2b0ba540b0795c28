"""uvicorn's HTTP/1.1, with bounds on what a client sends, and with a way out for sockets.

Alone in importing uvicorn. Subclassed privates: `HttpToolsProtocol` with its `RequestResponseCycle`
(its public interface has no way to detach a socket) and `Server.startup` (which gives a TLS
handshake no deadline). tests/unit/test_privates.py fails when they change.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from gateway.errors import GatewayError
from gateway.http import responses
from gateway.http.detach import ANSWER, DETACH, Detached, Resume
from gateway.http.door import Door
from gateway.http.proxy_header import BadProxyHeader, read

#: Connections that the kernel completes ahead of `accept` (listen(2)).
BACKLOG: Final = 4_096
_KEEP_ALIVE_SECONDS: Final = 75
_STOP_SECONDS: Final = 1
#: Bytes that may follow an upgrade request before the application detaches its socket.
_MAX_REST_BYTES: Final = 65_536
#: Fields of a request's head.
MAX_HEADERS: Final = 100
#: Requests that may wait behind the one that is answered: 18 bytes of a client cost kilobytes here.
MAX_WAITING_REQUESTS: Final = 16


class DetachableHTTP(HttpToolsProtocol):
    """One HTTP/1.1 connection, whose socket an application can detach from HTTP.

    Upgrade requests are routed like any other. A connection that uvicorn or starlette goes on
    holding takes 20–45 KB; of this object nothing remains once its socket is detached. uvicorn and
    httptools bound neither the size of a head nor its time (measured: an idle socket stays for
    ever), so both bounds are here.
    """

    _rest: bytes | None = None  # bytes behind an upgrade request; None before one
    _proxy_header: bytes | None = None  # the part of an awaited PROXY header that has arrived
    _head_bytes = 0  # bytes of the incomplete head
    _in_body = False
    _refused = False

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        door: Door,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(config, server_state, app_state, loop)
        self._door = door

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the head's deadline, or turn the socket away where there are too many."""
        super().connection_made(transport)
        door = self._door
        # uvicorn has counted this connection among its own already.
        if not door.admit(self, self.loop.time(), http_sockets=len(self.connections) - 1):
            return
        if door.is_balancer is not None and self.client and door.is_balancer(self.client[0]):
            self._proxy_header = b""

    def connection_resumed(
        self, transport: asyncio.Transport, client: tuple[str, int] | None
    ) -> None:
        """Continue on a socket that was detached, between two requests of `client`."""
        super().connection_made(transport)
        self.client = client
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    @property
    def unused(self) -> bool:
        """Whether no byte of a request has ever arrived."""
        return self.cycle is None and not self._head_bytes

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the head's deadline."""
        self._door.awaited_heads.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; keep the bytes behind an upgrade request: they are not HTTP."""
        if self._rest is not None:
            self._keep_rest(data)
            return
        self._unset_keepalive_if_required()
        if self._proxy_header is not None:
            data = self._without_proxy_header(self._proxy_header + data)
        while data and not self._refused:
            if self._in_body:
                self._feed(data)
                return
            room = self._door.bounds.size - self._head_bytes
            piece, data = data[:room], data[room:]
            self._head_bytes += len(piece)
            self._door.awaited_heads.setdefault(self, self.loop.time())
            self._feed(piece)
            if self._rest is not None:
                self._keep_rest(data)
                return
            if self._head_bytes >= self._door.bounds.size and data:
                self._refuse(431, "the head of the request is too large")

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._rest = b""
            self.cycle.keep_alive = False  # the bytes that follow are of another protocol
            self._keep_rest(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            if not self._refused:
                self._refuse(400, "this is no HTTP request")

    def _without_proxy_header(self, data: bytes) -> bytes:
        """Return the bytes behind the PROXY header, once the header is complete."""
        try:
            header = read(data)
        except BadProxyHeader:
            self._refused = True
            self._door.turn_away(self, "a balancer's connection without a good PROXY header")
            return b""
        if header is None:
            self._proxy_header = data
            return b""
        self._proxy_header = None
        self.client = header.client or self.client
        return data[header.size :]

    def on_headers_complete(self) -> None:
        """Offer the request's socket to the application."""
        self._door.awaited_heads.pop(self, None)
        self._head_bytes = 0
        self._in_body = True
        if len(self.headers) > MAX_HEADERS:
            self._refuse(431, "the request has too many header fields")
            raise _HeadRefused
        if len(self.pipeline) >= MAX_WAITING_REQUESTS:
            self._refuse(400, "too many requests at once")
            raise _HeadRefused
        super().on_headers_complete()
        self.scope["extensions"] = self._extensions(self.cycle)
        if self._door.closing:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """Expect another head."""
        self._in_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on with the next request, unless the body of this one would be awaited for ever."""
        if not self.pipeline and self.cycle is not None and self.cycle.more_body:
            self._close_gracefully()
        if self.scope is not self.cycle.scope:  # another head has begun behind this request
            self._door.awaited_heads.setdefault(self, self.loop.time())
        super().on_response_complete()

    def _close_gracefully(self) -> None:
        """Close our half; the client has a head's time to stop sending and to close its own.

        Closing a socket with unread bytes resets the connection, and the client might lose the
        answer (RFC 9112 §9.6).
        """
        self._refused = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._door.awaited_heads.setdefault(self, self.loop.time())
        else:  # TLS has no half-closed state
            self.transport.close()

    def _refuse(self, status: int, text: str) -> None:
        self._refused = True
        self._door.awaited_heads.pop(self, None)
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete and not cycle.more_body:
            # The request before is complete: it gets its answer, and the connection ends with it.
            cycle.keep_alive = False
            return
        self.transport.write(responses.refusal(status, text))
        self.transport.close()

    def _extensions(self, cycle: RequestResponseCycle) -> dict[str, Any]:
        # Bound to the request's own cycle: with pipelined requests `self.cycle` is a later one.
        return {DETACH: partial(self.detach, cycle), ANSWER: partial(self.answer, cycle)}

    async def answer(self, cycle: RequestResponseCycle, content_type: bytes, body: bytes) -> None:
        """Answer the request of `cycle` with 200, in one write: uvicorn's two cost 15 µs more."""
        if self.flow.write_paused:
            await self.flow.drain()
        if cycle.disconnected:
            return
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        last = not cycle.keep_alive
        self.transport.write(responses.answer(content_type, body, last=last))
        if last:
            self.transport.close()
        cycle.on_response()

    def detach(self, cycle: RequestResponseCycle) -> Detached | None:
        """Detach the socket for the request of `cycle`; None when the client has gone already."""
        transport = self.transport
        if cycle.disconnected or transport.is_closing():
            return None
        # A request that has begun behind this one gets no answer: its client repeats it.
        keep_alive = cycle.keep_alive and self.scope is cycle.scope
        resume = self._resume(keep_alive=keep_alive)
        detached = Detached(transport, self._rest or b"", keep_alive, resume)
        cycle.response_started = cycle.response_complete = cycle.disconnected = True
        self._drop_references(cycle)
        return detached

    def _keep_rest(self, data: bytes) -> None:
        self._rest = (self._rest or b"") + data
        if len(self._rest) > _MAX_REST_BYTES:
            self.transport.abort()

    def _resume(self, *, keep_alive: bool) -> Resume:
        config, state, app_state = self.config, self.server_state, self.app_state
        loop, transport, door, client = self.loop, self.transport, self._door, self.client

        def resume(early: bytes) -> None:
            if transport.is_closing():
                return
            if not keep_alive:
                transport.close()
                return
            protocol = DetachableHTTP(config, state, app_state, door, loop)
            protocol.connection_resumed(transport, client)
            transport.set_protocol(protocol)
            if early:
                protocol.data_received(early)

        return resume

    def _drop_references(self, cycle: RequestResponseCycle) -> None:
        """Break every reference cycle through this object, so that it is freed at once."""
        self.connections.discard(self)
        self._door.awaited_heads.pop(self, None)
        self._unset_keepalive_if_required()
        cycle.scope.pop("extensions", None)
        nothing: Any = None
        cycle.on_response = nothing
        self.transport = self.flow = self.parser = nothing
        self.cycle = self.scope = self.headers = nothing
        self.pipeline.clear()


class _HeadRefused(GatewayError):
    """Stops the parser from within a callback; the parser then raises an HttpParserError."""


class HttpServer(uvicorn.Server):
    """uvicorn's server over listening sockets that are bound already."""

    def __init__(self, app: ASGIApp, door: Door, *, tls: ssl.SSLContext | None) -> None:
        config = uvicorn.Config(
            app,
            http=DetachableHTTP,  # `startup` makes them: they need the door
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,  # a balancer names its client in a PROXY header
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_STOP_SECONDS,
        )
        super().__init__(config)
        self._door = door
        self._tls = tls

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the process, which has more than one listener."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept, with a deadline for the TLS handshake: uvicorn gives none."""
        loop = asyncio.get_running_loop()

        def protocol() -> DetachableHTTP:
            return DetachableHTTP(self.config, self.server_state, {}, self._door, loop)

        tls: dict[str, Any] = {}
        if self._tls is not None:
            tls = {"ssl": self._tls, "ssl_handshake_timeout": self._door.bounds.seconds}
        self.servers = [
            await loop.create_server(protocol, sock=listening, backlog=BACKLOG, **tls)
            for listening in sockets or ()
        ]
        self.started = True

    @property
    def http_sockets(self) -> int:
        """The number of sockets that speak HTTP now."""
        return len(self.server_state.connections)

    def close_between_requests(self) -> None:
        """Close each socket after the request that is under way; incomplete heads go on."""
        for connection in list(self.server_state.connections):
            if (
                isinstance(connection, DetachableHTTP)
                and connection not in self._door.awaited_heads
            ):
                connection.shutdown()
