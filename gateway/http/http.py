"""uvicorn's HTTP/1.1, with bounds on a client's requests, and with a way for sockets to leave HTTP.

The only file that imports uvicorn. Private interfaces of uvicorn are subclassed and used:
`HttpToolsProtocol` with its `RequestResponseCycle` (uvicorn's public interface has no way to detach
a socket) and `FlowControl`, and `Server.startup` (which gives a TLS handshake no deadline).
tests/unit/test_privates.py fails when uvicorn changes these interfaces.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import socket
import ssl
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import httptools
import structlog
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from gateway import refusals
from gateway.errors import GatewayError, has_vanished
from gateway.http import head, responses
from gateway.http.detach import EXCHANGE, Detached, Lent, Resume
from gateway.http.direct import Direct, Respond
from gateway.http.door import Door
from gateway.http.proxy_header import BadProxyHeader, read
from gateway.sockets import take_out
from gateway.takeover.format import HttpRecord

#: Connections that the kernel completes ahead of `accept` (listen(2)).
BACKLOG: Final = 4_096
#: How long requests under way may take after the listener was stopped.
_STOP_SECONDS: Final = 1
#: Bytes that may follow an upgrade request before the application detaches the socket.
_MAX_REST_BYTES: Final = 65_536
#: Header fields that the head of a request may have.
MAX_HEADERS: Final = 100
#: Pipelined requests that may wait for the answer to an earlier request. The bound is low because
#: a request of 18 bytes costs kilobytes of memory here.
MAX_WAITING_REQUESTS: Final = 16

#: ASGI's versions, in a request's scope (ASGI 3.0, "HTTP Connection Scope").
_ASGI: Final[Any] = {"version": "3.0", "spec_version": "2.3"}

_UVICORN_LOG: Final = logging.getLogger("uvicorn.error")
_ACCESS_LOG: Final = logging.getLogger("uvicorn.access")
log = structlog.get_logger("gateway.http")


class DetachableHTTP(HttpToolsProtocol):
    """One HTTP/1.1 connection, whose socket an application can detach from HTTP.

    Upgrade requests are routed like all others. A connection that uvicorn or starlette
    goes on holding takes 20–45 KB; after a detach nothing of this object remains. uvicorn and
    httptools bound neither the size of a request's head nor the time that a head may take
    (measured: an idle socket stays for ever), so this class sets both bounds.
    """

    _rest: bytes | None = None  # bytes behind an upgrade request; None before an upgrade request
    _proxy_header: bytes | None = None  # the part of an awaited PROXY header that has arrived
    _head_bytes = 0  # bytes of the incomplete head
    _in_body = False  # the head is complete, the request is not
    _refused = False  # further bytes of the client are discarded
    _unheard: Callable[[], None] | None = None  # called if the client vanishes before its next byte
    half_closed = False  # the last answer is out; further bytes of the client are discarded
    stays = False  # a drain leaves the connection open until the answer to the next request
    _respond: Respond | None = None  # what answers the present request, without ASGI
    _body = b""  # the body of that request, as far as it has arrived

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        door: Door,
        loop: asyncio.AbstractEventLoop,
        *,
        direct: Direct | None = None,
    ) -> None:
        # Not uvicorn's: it looks its loggers up for each connection, 5 of the 7 µs that it takes.
        self.config, self.app, self.loop = config, config.loaded_app, loop
        self.logger, self.access_logger, self.access_log = _UVICORN_LOG, _ACCESS_LOG, False
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.ws_protocol_class = None
        self.root_path, self.asgi_version = config.root_path, config.asgi_version
        self.limit_concurrency = None
        self.app_state = app_state
        self.timeout_keep_alive_task = None
        self.server_state = server_state
        self.connections, self.tasks = server_state.connections, server_state.tasks
        self.pipeline = deque()
        self.server = self.client = self.scheme = None
        self.expect_100_continue = False
        nothing: Any = None
        self.transport = self.flow = self.scope = self.headers = self.cycle = nothing
        self._door = door
        self._direct = direct

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the deadline of the first head, or close the socket where there are too many."""
        self._take(transport, transport.get_extra_info("peername"))
        door = self._door
        # uvicorn has added this connection to `connections` already.
        if not door.admit(self, self.loop.time(), http_sockets=len(self.connections) - 1):
            return
        if door.is_balancer is not None and self.client and door.is_balancer(self.client[0]):
            self._proxy_header = b""

    def connection_resumed(
        self, transport: asyncio.Transport, client: tuple[str, int] | None
    ) -> None:
        """Continue HTTP on a socket that was detached, between two requests of `client`.

        `client` is passed on, because the PROXY header that names the client comes only once.
        """
        self._take(transport, client)
        self.stays = True
        self._door.rest(self, self.loop.time())

    def _take(self, transport: asyncio.Transport, client: tuple[str, int] | None) -> None:
        """Do what uvicorn does when a connection is made, but for two looks at the socket.

        uvicorn asks the kernel for both addresses, by way of a socket object for each: 7 µs. The
        transport knows the peer's, and no application here asks for the other one.
        """
        self.connections.add(self)
        self.transport = transport
        self.flow = FlowControl(transport)
        self.client = (client[0], client[1]) if client else None
        self.scheme = "https" if transport.get_extra_info("sslcontext") else "http"

    def _should_upgrade(self) -> bool:
        """Leave every upgrade to the application; uvicorn would look through the fields first."""
        return False

    @property
    def unused(self) -> bool:
        """Whether no byte of a request has arrived on the socket."""
        return self.cycle is None and not self._head_bytes

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the deadline of an incomplete head."""
        self._door.satisfied(self)
        if self._unheard is not None and has_vanished(exc):
            self._unheard()
        if self.cycle is not None:
            # Breaks a reference cycle, as uvicorn does with the parser.
            self.cycle.transport = self.transport
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, with no more bytes of a head than `bounds.head_bytes`.

        Bytes behind an upgrade request are not HTTP, and are kept for the application.
        """
        self._unheard = None
        if self.half_closed:
            return
        if self._rest is not None:
            self._keep_rest(data)
            return
        if self._proxy_header is not None:
            data = self._without_proxy_header(self._proxy_header + data)
        while data and not self._refused:
            if self._in_body:
                self._feed(data)
                return
            room = self._door.bounds.head_bytes - self._head_bytes
            piece, data = data[:room], data[room:]
            self._head_bytes += len(piece)
            self._door.expect(self, self.loop.time())
            self._feed(piece)
            if self._rest is not None:
                self._keep_rest(data)
                return
            if self._head_bytes >= self._door.bounds.head_bytes and data:
                self._refuse(431, "the head of the request is too large")

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._rest = b""
            self.cycle.keep_alive = False  # the bytes behind the head are not HTTP
            self._keep_rest(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(400, "this is no HTTP request")

    def _without_proxy_header(self, data: bytes) -> bytes:
        """Read the PROXY header at the start of `data`, and return the bytes behind the header.

        Returns no bytes while the header is incomplete, and after a bad header, for which the
        socket is closed.
        """
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
        """Hand the request to the application, or refuse a head beyond the bounds or the rules.

        The scope offers the application an Exchange (detach.py).
        """
        self._door.satisfied(self)
        self.stays = False
        self._head_bytes = 0
        self._in_body = True
        if self._refused:  # the answer before was the last
            raise _HeadRefused
        version, fields = self.parser.get_http_version(), dict(self.headers)
        refusal = self._head_refusal(version, fields)
        if refusal is not None:
            self._refuse(*refusal)
            raise _HeadRefused
        if self._direct is not None and self._is_simple(version):
            self._respond = self._direct(self.url.partition(b"?")[0], fields)
            if self._respond is not None:
                return
        self.scope = self._new_scope()
        super().on_headers_complete()
        exchange = _Exchange(self, self.cycle)
        # uvicorn closes behind the last answer by `cycle.transport`.
        self.cycle.transport = exchange  # type: ignore[assignment]
        self.scope["extensions"] = {EXCHANGE: exchange}  # type: ignore[dict-item]
        if self._door.draining:
            self.cycle.keep_alive = False

    def _new_scope(self) -> Any:
        """Return the scope of the present request; uvicorn adds what the request line says."""
        return {
            "type": "http",
            "asgi": _ASGI,
            "http_version": "1.1",
            "server": None,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": "",
            "headers": self.headers,
        }

    def _head_refusal(self, version: str, fields: Mapping[bytes, bytes]) -> tuple[int, str] | None:
        """Return status and reason of the refusal of a complete head; None to take the request."""
        if len(self.headers) > MAX_HEADERS:
            return 431, "the request has too many header fields"
        if len(self.pipeline) >= MAX_WAITING_REQUESTS:
            return 400, "too many requests at once"
        return head.refusal(version, self.headers, fields)

    def on_message_complete(self) -> None:
        """Take note that the request is complete: the next bytes belong to a new head."""
        self._in_body = False
        if self._respond is None:
            super().on_message_complete()
        else:
            self._answer_directly(self._respond)

    def on_message_begin(self) -> None:
        """Begin a request; behind a request that was answered without ASGI, also its time limit.

        Not uvicorn's, which makes the request's scope here: only ASGI needs a scope.
        """
        nothing: Any = None
        self.scope = nothing  # until the head is complete
        self.url, self.headers, self.expect_100_continue = b"", [], False
        if self._direct is not None and not self._is_busy:
            self._door.expect(self, self.loop.time())

    def on_body(self, body: bytes) -> None:
        """Take a part of the request's body."""
        if self._respond is None:
            super().on_body(body)
        else:
            self._body += body

    @property
    def _is_busy(self) -> bool:
        """Whether the application has an earlier request to answer."""
        return self.cycle is not None and not self.cycle.response_complete

    def _is_simple(self, version: str) -> bool:
        """Whether the present request is a POST that can be answered as soon as it is complete."""
        return not (
            self._is_busy
            or self.flow.write_paused
            or self.expect_100_continue
            or self.parser.get_method() != b"POST"
            or version != "1.1"
            or self.parser.should_upgrade()
        )

    def _answer_directly(self, respond: Respond) -> None:
        """Answer a complete request without ASGI."""
        body, self._body, self._respond = self._body, b"", None
        try:
            answer = respond(body)
        except Exception:  # as with an application: the client gets an answer, whatever the fault
            log.exception("a request failed")
            answer = (500, b"text/plain; charset=utf-8", b"Internal Server Error\n")
        last = self._door.draining or not self.parser.should_keep_alive()
        self.transport.write(responses.answer(*answer, last=last))
        if last:
            self._refused = True
            self.close_gracefully()
        else:
            self._door.rest(self, self.loop.time())

    def shutdown(self) -> None:
        """Close the socket, or let the answer to the request under way be the last."""
        if self._respond is None:  # else `_answer_directly` closes, in a drain
            super().shutdown()

    def on_response_complete(self) -> None:
        """Go on with the next request, or close if the answered request's body is incomplete.

        The body has no deadline: the wait for the rest of it, and for the next head, might never
        end.
        """
        if not self.pipeline and self.cycle is not None and self.cycle.more_body:
            self.close_gracefully()
        if self.half_closed:
            return
        if self._has_begun_behind(self.cycle):
            self._door.expect(self, self.loop.time())
        # Not uvicorn's, which starts a timer for each answer.
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._door.rest(self, self.loop.time())

    def close_gracefully(self) -> None:
        """Close the server's half of the connection, and wait for the client to close the other.

        Bytes of the client are discarded meanwhile. The client has as long as a head may take. To
        close a socket with unread bytes resets the connection, and the client might lose the answer
        (RFC 9112 §9.6).
        """
        transport = self.transport
        if self.half_closed or transport.is_closing():
            return
        self.half_closed = True
        self._door.expect(self, self.loop.time())
        self.flow.resume_reading()
        if transport.can_write_eof():
            transport.write_eof()
        else:  # uvloop's TLS: sends close_notify, and discards bytes until the client's
            transport.close()

    def _refuse(self, status: int, text: str) -> None:
        """Answer an incomplete or bad request with `status`; only the first refusal counts."""
        if self._refused:
            return
        self._refused = True
        refusals.count(self._door.port, status, text)
        self._door.satisfied(self)
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if not cycle.more_body:
                # An earlier request is complete: the connection ends with the answer to that
                # request, and the refusal is not sent.
                cycle.keep_alive = False
                return
            if self.pipeline and self.pipeline[0][0] is cycle:
                # The bad request waits behind earlier ones. It is dropped, and the connection ends
                # with their answers (on_response_complete): a refusal now would stand in the place
                # of an earlier request's answer.
                self.pipeline.popleft()
                return
            # The refusal stands in place of the answer: as for the application, the client is gone.
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.write(responses.refusal(status, text))
        self.close_gracefully()

    async def flush(self) -> None:
        """Return when the kernel has every byte of earlier answers, or the connection is closed.

        A client that reads none of its answers is cut off by the kernel (TCP_USER_TIMEOUT).
        """
        transport = self.transport
        if transport.is_closing() or not transport.get_write_buffer_size():
            return
        transport.set_write_buffer_limits(high=0)  # `resume_writing` comes with an empty buffer
        # Said here too: a transport that was paused before its socket was lent, and given back,
        # pauses no second protocol.
        self.flow.pause_writing()
        await self.flow.drain()
        if not transport.is_closing():
            transport.set_write_buffer_limits()

    def detach(self, cycle: RequestResponseCycle) -> Detached | None:
        """Take the socket out of HTTP for good; None when the client has disconnected."""
        if self._has_left(cycle):
            return None
        detached = Detached(self.transport, self._rest or b"")
        self._drop_references(cycle)
        return detached

    def lend(self, cycle: RequestResponseCycle, *, keep_alive: bool) -> Lent | None:
        """Take the socket out of HTTP for a while; None when the client has disconnected.

        `keep_alive` is whether the client may send another request behind that of `cycle`.
        """
        if self._has_left(cycle):
            return None
        # A pipelined request that has begun behind the request of `cycle` gets no answer, and
        # the connection closes: the client repeats the request (RFC 9112 §9.3.2).
        keep_alive = keep_alive and not self._has_begun_behind(cycle)
        lent = Lent(self.transport, keep_alive, self._resume())
        self._drop_references(cycle)
        return lent

    @property
    def awaits_answer(self) -> bool:
        """Whether a request with a complete head waits for its answer."""
        is_busy = self._is_busy or self._in_body or bool(self.pipeline)
        return is_busy and not self.half_closed

    @property
    def can_be_captured(self) -> bool:
        """Whether the socket is open, plaintext, and between two requests: all bytes are out."""
        transport = self.transport
        return not (
            self.awaits_answer
            or self._head_bytes
            or self._proxy_header
            or self._refused
            or self.half_closed
            or self._rest is not None
            or transport.is_closing()
            or transport.get_write_buffer_size()
            or transport.get_extra_info("sslcontext") is not None
        )

    def capture(self) -> tuple[HttpRecord, int]:
        """Give the socket up for the next process; return its record and its descriptor.

        Only where `can_be_captured`.

        Raises:
            OSError: no descriptor is left; the socket is unchanged.
        """
        awaits = self._proxy_header is not None
        record = HttpRecord(self.client, self.stays, self.unused, awaits)
        descriptor = take_out(self.transport)
        self.connections.discard(self)
        self._door.satisfied(self)
        return record, descriptor

    def lend_parked(self) -> Lent:
        """Take a socket out of HTTP for a request that the earlier process has parked."""
        lent = Lent(self.transport, True, self._resume())
        self.connections.discard(self)
        self._door.satisfied(self)
        return lent

    def _has_left(self, cycle: RequestResponseCycle) -> bool:
        """Whether the client has disconnected, or has given up."""
        transport = self.transport
        if cycle.disconnected or self.half_closed or transport.is_closing():
            return True
        if _has_ended(transport):
            cycle.disconnected = True
            transport.abort()
            return True
        return False

    def _has_begun_behind(self, cycle: RequestResponseCycle) -> bool:
        """Whether a pipelined request has begun behind the request of `cycle`."""
        return self.scope is not cycle.scope

    def _keep_rest(self, data: bytes) -> None:
        """Keep bytes behind an upgrade request; cut off a client that sends too many."""
        self._rest = (self._rest or b"") + data
        if len(self._rest) > _MAX_REST_BYTES:
            self.transport.abort()

    def _resume(self) -> Resume:
        """Return the function that gives the socket back to HTTP, to a new DetachableHTTP."""
        return _Resume(self)

    def _drop_references(self, cycle: RequestResponseCycle) -> None:
        """Break every reference cycle through this object: its memory is then freed at once."""
        cycle.response_started = cycle.response_complete = cycle.disconnected = True
        self.connections.discard(self)
        self._door.satisfied(self)
        cycle.scope.pop("extensions", None)
        nothing: Any = None
        cycle.on_response = nothing
        cycle.transport = self.transport
        self.transport = self.flow = self.parser = nothing
        self.cycle = self.scope = self.headers = nothing
        self.pipeline.clear()


def _has_ended(transport: asyncio.Transport) -> bool:
    """Whether the peer has closed its half of the connection, which the loop may not know yet.

    The loop reads the bytes of a socket in one turn, and the end behind them in a later one. Behind
    a process that stood still both have come: of clients who gave up meanwhile. False where the
    system does not tell (Linux does, with POLLRDHUP). Takes 0.6 µs.
    """
    plug: socket.socket | None = transport.get_extra_info("socket")
    if plug is None or not hasattr(select, "POLLRDHUP"):
        return False
    poll = select.poll()
    poll.register(plug.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


class _Exchange:
    """The Exchange of one request (detach.py), and the transport of uvicorn's cycle of the request.

    Bound to the request's own cycle: with pipelined requests the protocol's cycle belongs to a
    later request. As a transport, its `close` lets the client read the last answer: see
    `DetachableHTTP.close_gracefully`.
    """

    __slots__ = ("_cycle", "_keep_alive", "_protocol")

    def __init__(self, protocol: DetachableHTTP, cycle: RequestResponseCycle) -> None:
        self._protocol = protocol
        self._cycle = cycle
        self._keep_alive = cycle.keep_alive  # what the client wants, also while the node drains

    async def flush(self) -> None:
        """Wait until the kernel has the answers to earlier requests."""
        await self._protocol.flush()

    def detach(self) -> Detached | None:
        """Take the socket out of HTTP for good; None when the client has disconnected."""
        return self._protocol.detach(self._cycle)

    def lend(self) -> Lent | None:
        """Take the socket out of HTTP for a while; None when the client has disconnected."""
        return self._protocol.lend(self._cycle, keep_alive=self._keep_alive)

    def stay(self) -> None:
        """Keep the connection open behind the answer, in a drain too."""
        self._cycle.keep_alive = self._protocol.stays = self._keep_alive

    async def answer(self, status: int, content_type: bytes, body: bytes) -> None:
        """Answer in one write.

        uvicorn writes the head and the body of an answer apart, which costs 15 µs more.
        """
        protocol, cycle = self._protocol, self._cycle
        if protocol.flow.write_paused:
            await protocol.flow.drain()
        if cycle.disconnected or protocol.half_closed:
            return
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        last = not cycle.keep_alive
        self.write(responses.answer(status, content_type, body, last=last))
        if last:
            self.close()
        cycle.on_response()

    def write(self, data: bytes) -> None:
        """Write a part of the answer; nothing behind a refusal of a later request."""
        if not self._protocol.half_closed:
            self._protocol.transport.write(data)

    def is_closing(self) -> bool:
        """Whether the client has disconnected, or was cut off."""
        return self._protocol.transport.is_closing()

    def close(self) -> None:
        """End the connection behind the answer."""
        self._protocol.close_gracefully()


class _Resume:
    """Gives a socket back to HTTP, to a new DetachableHTTP.

    The earlier one is not kept, as it would take its memory for as long as the socket is lent.
    """

    __slots__ = (
        "_app_state",
        "_config",
        "_direct",
        "_door",
        "_loop",
        "_state",
        "_transport",
        "client",
    )

    def __init__(self, protocol: DetachableHTTP) -> None:
        self._config, self._state = protocol.config, protocol.server_state
        self._app_state, self._loop = protocol.app_state, protocol.loop
        self._door, self._direct = protocol._door, protocol._direct
        self._transport = protocol.transport
        self.client = protocol.client

    def __call__(self, early: bytes, *, last: bool, unheard: Callable[[], None]) -> None:
        """Continue with `early`, or close behind the `last` answer."""
        transport = self._transport
        if transport.is_closing():
            return
        protocol = DetachableHTTP(
            self._config, self._state, self._app_state, self._door, self._loop, direct=self._direct
        )
        protocol.connection_resumed(transport, self.client)
        protocol._unheard = unheard
        transport.set_protocol(protocol)
        if last:
            protocol.close_gracefully()
        elif early:
            protocol.data_received(early)


class _AdoptedHTTP(DetachableHTTP):
    """A connection that the earlier process has accepted, between two requests."""

    record = HttpRecord()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Go on where the earlier process has stopped; a first request has a deadline again."""
        record = self.record
        if record.unused:
            super().connection_made(transport)
            if not record.awaits_proxy_header:
                self._proxy_header, self.client = None, record.client
        else:
            self.connection_resumed(transport, record.client)
            self.stays = record.stays


class _HeadRefused(GatewayError):
    """Stops the parser when raised in a callback; the parser then raises an HttpParserError."""


class HttpServer(uvicorn.Server):
    """uvicorn's server, over listening sockets that are bound already."""

    def __init__(
        self,
        app: ASGIApp,
        door: Door,
        *,
        tls: ssl.SSLContext | None,
        direct: Direct | None = None,
    ) -> None:
        config = uvicorn.Config(
            app,
            http=DetachableHTTP,  # made by `startup`, because the protocol needs the door
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,  # a balancer names the client in a PROXY header, not in a field
            timeout_graceful_shutdown=_STOP_SECONDS,
        )
        config.load()  # sockets may come before `serve`
        super().__init__(config)
        self.servers: list[asyncio.Server] = []
        self._door = door
        self._tls = tls
        self._direct = direct

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the process, which has more than one listener to stop."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept on the sockets."""
        for bound_socket in sockets or ():
            await self.accept(bound_socket)
        self.started = True

    async def accept(self, bound_socket: socket.socket) -> None:
        """Begin to accept, with a deadline for the TLS handshake, for which uvicorn has none.

        On a duplicate, which `stop_accepting` closes.
        """
        loop = asyncio.get_running_loop()

        def protocol() -> DetachableHTTP:
            return DetachableHTTP(
                self.config, self.server_state, {}, self._door, loop, direct=self._direct
            )

        tls: dict[str, Any] = {}
        if self._tls is not None:
            tls = {"ssl": self._tls, "ssl_handshake_timeout": self._door.bounds.head_seconds}
        server = await loop.create_server(protocol, sock=bound_socket.dup(), backlog=BACKLOG, **tls)
        self.servers.append(server)

    def stop_accepting(self) -> None:
        """Leave further clients in the queue of the listening socket, which stays open."""
        for server in self.servers:
            server.close()
        self.servers = []

    async def adopt(self, descriptor: int, record: HttpRecord) -> DetachableHTTP:
        """Serve a socket that the earlier process has accepted.

        Raises:
            OSError: no descriptor is left, or the socket has ended; the descriptor is closed.
        """
        plug = socket.socket(fileno=descriptor)
        protocol = _AdoptedHTTP(
            self.config,
            self.server_state,
            {},
            self._door,
            asyncio.get_running_loop(),
            direct=self._direct,
        )
        protocol.record = record
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, plug)
        except BaseException:
            plug.close()
            raise
        return protocol

    def captured(self) -> Iterator[tuple[HttpRecord, int]]:
        """Capture every socket that is between two requests, for the next process."""
        for connection in list(self.server_state.connections):
            assert isinstance(connection, DetachableHTTP)  # noqa: S101 - `startup` makes no other
            if connection.can_be_captured:
                try:
                    yield connection.capture()
                except OSError:  # no descriptor is left: the sockets stay until the process ends
                    return

    @property
    def busy(self) -> int:
        """The number of sockets with a complete request that is not answered yet."""
        connections = list(self.server_state.connections)
        return sum(isinstance(each, DetachableHTTP) and each.awaits_answer for each in connections)

    @property
    def http_sockets(self) -> int:
        """The number of open sockets that speak HTTP: accepted, and not detached."""
        return len(self.server_state.connections)

    def close_between_requests(self) -> None:
        """Close idle sockets at once, and busy sockets after the request that is under way.

        A socket with an incomplete head is left alone: the request gets its answer. So is the
        socket of a client that has to come back to this node (`Exchange.stay`).
        """
        for connection in list(self.server_state.connections):
            assert isinstance(connection, DetachableHTTP)  # noqa: S101 - `startup` makes no other
            if not (connection.stays or self._door.expects(connection)):
                connection.shutdown()
