"""A listening port: uvicorn's HTTP, and how a socket leaves it. Alone in importing uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import httptools
import structlog
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from gateway.proxy_header import BadProxyHeader, Network, read, within
from gateway.wires.takeover import ANSWER, TAKE_OVER, Takeover

_BACKLOG: Final = 4_096
_KEEP_ALIVE_SECONDS: Final = 75
_STOP_SECONDS: Final = 1
#: While a node leaves, for so long a socket may be silent.
_SILENT_SECONDS: Final = 0.5
#: What may follow an upgrade request before somebody takes the socket.
_MAX_REST_BYTES: Final = 65_536
#: Fields of a request's head.
MAX_HEADERS: Final = 100
#: Requests that may wait behind the one that is answered: 18 bytes of a client's cost kilobytes.
MAX_WAITING_REQUESTS: Final = 16

_ANSWER: Final = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n%b\r\n"

log = structlog.get_logger("gateway.listener")


@dataclass(frozen=True, slots=True)
class HeadBounds:
    """How long a request's head may take, its largest size, and the most sockets there may be."""

    seconds: float
    size: int
    sockets: int | None = None


class Door:
    """What one listener lets in: the deadline and the size of a head, balancers, open sockets."""

    __slots__ = (
        "_said_at",
        "_turned_away",
        "bounds",
        "is_balancer",
        "leaving",
        "open_elsewhere",
        "waiting",
    )

    def __init__(
        self,
        bounds: HeadBounds,
        *,
        balancers: Sequence[Network] = (),
        open_elsewhere: Callable[[], int] = lambda: 0,
    ) -> None:
        """`open_elsewhere` counts the sockets that have left HTTP and still count as open."""
        self.bounds = bounds
        self.is_balancer = within(balancers) if balancers else None
        self.open_elsewhere = open_elsewhere
        self.leaving = False  # each answer is its connection's last
        #: Whose head is awaited, and since when: as each has as long, in the order of their ends.
        self.waiting: dict[HoldableHTTP, float] = {}
        self._turned_away: Counter[str] = Counter()
        self._said_at = 0.0

    def shed(self, protocol: HoldableHTTP) -> bool:
        """Whether there are too many sockets for one more, which is then closed at once."""
        sockets = len(protocol.connections) + self.open_elsewhere()
        if self.bounds.sockets is None or sockets <= self.bounds.sockets:
            return False
        self.turn_away(protocol, "no descriptors for more clients")
        return True

    def end_silent(self, now: float) -> None:
        """Close what was opened and not used: browsers connect ahead of need.

        It would carry the next request here. A request that is on its way gets its answer.
        """
        for protocol, since in list(self.waiting.items()):
            if protocol.silent and now - since >= _SILENT_SECONDS:
                protocol.shutdown()

    def turn_away(self, protocol: HoldableHTTP, why: str) -> None:
        """Close a socket without an answer."""
        self._turned_away[why] += 1
        protocol.transport.abort()

    def advance(self, now: float) -> None:
        """End those whose head is late; log who was turned away, once a second at most."""
        late = []
        for protocol, since in self.waiting.items():
            if now - since < self.bounds.seconds:
                break
            late.append(protocol)
        for protocol in late:
            del self.waiting[protocol]
            protocol.transport.abort()
        if self._turned_away and now - self._said_at >= 1.0:
            for why, closed in self._turned_away.items():
                log.warning(why, closed=closed)
            self._turned_away.clear()
            self._said_at = now


class HoldableHTTP(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 with bounds, in which an application can take the socket of its request.

    Upgrade requests are routed like any other. Stock WebSocket and streaming servers keep
    20–45 KB a connection; once the socket is taken nothing of this object remains. uvicorn and
    httptools bound neither a head's size nor its time (measured: a silent socket stays for ever).
    """

    _rest: bytes | None = None
    _proxy_header: bytes | None = None  # what is there of one that is still awaited
    _head_bytes = 0
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
        if door.shed(self):
            return
        door.waiting[self] = self.loop.time()
        if door.is_balancer is not None and self.client and door.is_balancer(self.client[0]):
            self._proxy_header = b""

    def connection_resumed(
        self, transport: asyncio.Transport, client: tuple[str, int] | None
    ) -> None:
        """Take a socket back, between two requests of `client`."""
        super().connection_made(transport)
        self.client = client
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    @property
    def silent(self) -> bool:
        """Whether no request has ever begun."""
        return self.cycle is None and not self._head_bytes

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the head's deadline."""
        self._door.waiting.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; behind an upgrade request, keep what is not HTTP any more."""
        if self._rest is not None:
            self._keep(data)
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
            self._door.waiting.setdefault(self, self.loop.time())
            self._feed(piece)
            if self._rest is not None:
                self._keep(data)
                return
            if self._head_bytes >= self._door.bounds.size and data:
                self._refuse(431, "the head of the request is too large")

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._rest = b""
            self.cycle.keep_alive = False  # whatever follows is of another protocol
            self._keep(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            if not self._refused:
                self._refuse(400, "this is no HTTP request")

    def _without_proxy_header(self, data: bytes) -> bytes:
        """Return what follows the PROXY header, once it is whole."""
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

    def on_message_complete(self) -> None:
        """Expect another head."""
        self._in_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on with the next request, unless this one's body would be awaited for ever."""
        if not self.pipeline and self.cycle is not None and self.cycle.more_body:
            self._end_dropping_what_comes()
        if self.scope is not self.cycle.scope:  # a head was begun behind this request
            self._door.waiting.setdefault(self, self.loop.time())
        super().on_response_complete()

    def _end_dropping_what_comes(self) -> None:
        """End our side; the client has a head's time to stop sending and to end its own.

        Closing before its bytes are read would reset the connection, and the client might lose
        the answer (RFC 9112 §9.6).
        """
        self._refused = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._door.waiting.setdefault(self, self.loop.time())
        else:  # TLS
            self.transport.close()

    def _refuse(self, status: int, text: str) -> None:
        self._refused = True
        self._door.waiting.pop(self, None)
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete and not cycle.more_body:
            # The request before is whole: it is answered, and the connection ends with it.
            cycle.keep_alive = False
            return
        content = text.encode("ascii") + b"\n"
        lines = [
            STATUS_LINE[status].rstrip(b"\r\n"),
            b"content-type: text/plain; charset=utf-8",
            b"content-length: %d" % len(content),
            b"connection: close",
            b"",
            content,
        ]
        self.transport.write(b"\r\n".join(lines))
        self.transport.close()

    def on_headers_complete(self) -> None:
        """Offer the socket to the application."""
        self._door.waiting.pop(self, None)
        self._head_bytes = 0
        self._in_body = True
        if len(self.headers) > MAX_HEADERS:
            self._refuse(431, "the request has too many header fields")
            raise _RefusedError
        if len(self.pipeline) >= MAX_WAITING_REQUESTS:
            self._refuse(400, "too many requests at once")
            raise _RefusedError
        super().on_headers_complete()
        self.scope["extensions"] = self._offers(self.cycle)
        if self._door.leaving:
            self.cycle.keep_alive = False

    def _offers(self, cycle: RequestResponseCycle) -> dict[str, Any]:
        return {TAKE_OVER: partial(self.take_over, cycle), ANSWER: partial(self.answer, cycle)}

    async def answer(self, cycle: RequestResponseCycle, content_type: bytes, body: bytes) -> None:
        """Answer the request of `cycle` with 200, in one write: uvicorn's two cost 15 µs more."""
        if self.flow.write_paused:
            await self.flow.drain()
        if cycle.disconnected:
            return
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        last = b"" if cycle.keep_alive else b"connection: close\r\n"
        self.transport.write(_ANSWER % (content_type, len(body), last) + body)
        if last:
            self.transport.close()
        cycle.on_response()

    def take_over(self, cycle: RequestResponseCycle) -> Takeover | None:
        """Take the socket for the request of `cycle`; None when the client has gone already."""
        transport = self.transport
        if cycle.disconnected or transport.is_closing():
            return None
        # A request that was begun behind this one is not answered: its client asks again.
        keep_alive = cycle.keep_alive and self.scope is cycle.scope
        resume = self._resume_with(keep_alive=keep_alive)
        taken = Takeover(transport, self._rest or b"", keep_alive, resume)
        cycle.response_started = cycle.response_complete = cycle.disconnected = True
        self._let_go(cycle)
        return taken

    def _keep(self, data: bytes) -> None:
        self._rest = (self._rest or b"") + data
        if len(self._rest) > _MAX_REST_BYTES:
            self.transport.abort()

    def _resume_with(self, *, keep_alive: bool) -> Callable[[bytes], None]:
        config, state, app_state = self.config, self.server_state, self.app_state
        loop, transport, door, client = self.loop, self.transport, self._door, self.client

        def resume(early: bytes) -> None:
            if transport.is_closing():
                return
            if not keep_alive:
                transport.close()
                return
            protocol = HoldableHTTP(config, state, app_state, door, loop)
            protocol.connection_resumed(transport, client)
            transport.set_protocol(protocol)
            if early:
                protocol.data_received(early)

        return resume

    def _let_go(self, cycle: RequestResponseCycle) -> None:
        """Break every cycle through this object, so that it is freed now and not by the GC."""
        self.connections.discard(self)
        self._door.waiting.pop(self, None)
        self._unset_keepalive_if_required()
        cycle.scope.pop("extensions", None)
        nothing: Any = None
        cycle.on_response = nothing
        self.transport = self.flow = self.parser = nothing
        self.cycle = self.scope = self.headers = nothing
        self.pipeline.clear()


class _RefusedError(Exception):
    """Stops the parser from within, which then fails with an HttpParserError."""


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, door: Door, tls: ssl.SSLContext | None) -> None:
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

        def protocol() -> HoldableHTTP:
            return HoldableHTTP(self.config, self.server_state, {}, self._door, loop)

        tls: dict[str, Any] = {}
        if self._tls is not None:
            tls = {"ssl": self._tls, "ssl_handshake_timeout": self._door.bounds.seconds}
        self.servers = [
            await loop.create_server(protocol, sock=listening, backlog=_BACKLOG, **tls)
            for listening in sockets or ()
        ]
        self.started = True


def tls_context(certificate: str, key: str) -> ssl.SSLContext:
    """Return what the public listener's TLS (1.2 or later) is made with, from PEM files.

    Raises:
        OSError: a file can't be read or is none of these; its text names the settings.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Without a password OpenSSL asks the terminal for an encrypted key's.
        context.load_cert_chain(certificate, key, password="")
    except OSError as error:
        raise OSError(
            error.errno,
            f"PUSHGATE_TLS_CERT {certificate!r} with PUSHGATE_TLS_KEY {key!r}: "
            f"{error.strerror or error}",
        ) from None
    return context


def bind(
    host: str,
    port: int,
    *,
    reuse_port: bool = False,
    kernel_buffer_bytes: int = 0,
    unacknowledged_seconds: float = 0.0,
) -> socket.socket:
    """Return a listening socket; port 0 takes a free one.

    With `reuse_port`, other processes of this user that say so too share the port, and the kernel
    deals connections out among them. What is accepted inherits the other two: SO_SNDBUF, and
    TCP_USER_TIMEOUT (RFC 5482), after which a peer that acknowledges nothing, or whose window
    stays closed, is gone. 0 leaves either to the kernel.

    Raises:
        OSError: the address can't be bound; its text names it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server(
            (host, port), family=family, backlog=_BACKLOG, reuse_port=reuse_port
        )
    except OSError as error:
        raise OSError(
            error.errno, f"can't listen on {host} port {port}: {error.strerror}"
        ) from None
    if kernel_buffer_bytes:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, kernel_buffer_bytes)
    if unacknowledged_seconds and hasattr(socket, "TCP_USER_TIMEOUT"):
        milliseconds = max(1, int(unacknowledged_seconds * 1_000))
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    return listening


class Listener:
    """A listening socket and the application behind it."""

    def __init__(
        self,
        listening: socket.socket,
        app: ASGIApp,
        door: Door,
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._socket = listening
        self._door = door
        config = uvicorn.Config(
            app,
            http=HoldableHTTP,  # _Server makes them
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,  # whoever is behind a balancer comes with a PROXY header
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_STOP_SECONDS,
        )
        self._server = _Server(config, door, tls)

    async def serve(self) -> None:
        """Accept until `stop`; then finish the requests under way, one second at most."""
        await self._server.serve(sockets=[self._socket])

    @property
    def full(self) -> bool:
        """Whether the next socket would be closed at once."""
        most = self._door.bounds.sockets
        sockets = len(self._server.server_state.connections) + self._door.open_elsewhere()
        return most is not None and sockets >= most

    def advance(self, now: float) -> None:
        """End whoever is late with a request's head; `now` is the event loop's time."""
        self._door.advance(now)
        if self._door.leaving:
            self._door.end_silent(now)

    def let_go(self) -> None:
        """Keep no connection alive any more: a client's next request may go elsewhere."""
        self._door.leaving = True
        for protocol in list(self._server.server_state.connections):
            if protocol not in self._door.waiting:
                protocol.shutdown()

    def stop(self) -> None:
        """Accept no more."""
        self._server.should_exit = True
