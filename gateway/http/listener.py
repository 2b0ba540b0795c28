"""A listening socket with the ASGI application behind it: bind, accept, stop."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass

from starlette.types import ASGIApp

from gateway.http.detach import Lent
from gateway.http.direct import Direct
from gateway.http.door import Door
from gateway.http.http import BACKLOG, HttpServer
from gateway.takeover.format import HttpRecord


@dataclass(frozen=True, slots=True)
class Probes:
    """When the kernel probes a silent peer (TCP keep-alive, RFC 9293 §3.8.4), in whole seconds.

    The first probe follows after `after_seconds` of silence; a peer that has not answered
    `interval_seconds` later counts as gone, so long as both together are no less than
    TCP_USER_TIMEOUT.
    """

    after_seconds: int
    interval_seconds: int

    @property
    def silence_seconds(self) -> int:
        """The longest silence of a peer whose socket is not ended yet."""
        return self.after_seconds + self.interval_seconds


class Listener:
    """Accepts sockets on a bound port, and serves one application on these sockets."""

    def __init__(
        self,
        listening: socket.socket,
        app: ASGIApp,
        door: Door,
        *,
        tls: ssl.SSLContext | None = None,
        direct: Direct | None = None,
    ) -> None:
        """`direct` has the requests that are answered without the application."""
        self._socket = listening
        self._door = door
        self._server = HttpServer(app, door, tls=tls, direct=direct)

    async def serve(self, *, accepts: bool = True) -> None:
        """Accept until `stop`; then finish requests that are under way, one second at most.

        Without `accepts`, only from `accept` on.
        """
        await self._server.serve(sockets=[self._socket] if accepts else [])

    @property
    def descriptor(self) -> int:
        """The descriptor of the listening socket, for the next process."""
        return self._socket.fileno()

    async def accept(self) -> None:
        """Accept, where `serve` does not yet, or not any more."""
        await self._server.accept(self._socket)

    def stop_accepting(self) -> None:
        """Leave further clients in the queue of the listening socket; all else goes on."""
        self._server.stop_accepting()

    @property
    def busy(self) -> int:
        """How many sockets wait for the answer to a complete request."""
        return self._server.busy

    def captured(self) -> Iterator[tuple[HttpRecord, int]]:
        """Capture the sockets between two requests, for the next process."""
        return self._server.captured()

    async def adopt(self, record: HttpRecord, descriptor: int) -> None:
        """Serve a socket that the earlier process has captured.

        Raises:
            OSError: the socket has ended; the descriptor is closed.
        """
        await self._server.adopt(descriptor, record)

    async def adopt_lent(self, record: HttpRecord, descriptor: int) -> Lent:
        """Return the socket of a request that the earlier process has parked.

        Raises:
            OSError: the socket has ended; the descriptor is closed.
        """
        protocol = await self._server.adopt(descriptor, record)
        return protocol.lend_parked()

    @property
    def sockets(self) -> int:
        """How many sockets of clients are open: in HTTP, and detached."""
        return self._server.http_sockets + self._door.count_detached()

    @property
    def full(self) -> bool:
        """Whether the next accepted socket would be closed at once."""
        return self._door.is_full(self._server.http_sockets)

    def advance(self, now: float) -> None:
        """Close sockets whose request head is overdue; while the node drains, also unused sockets.

        `now` is the event loop's time.
        """
        self._door.advance(now)
        if self._door.draining:
            self._door.close_unused(now)

    def stop_keep_alive(self) -> None:
        """Close every connection after its next answer.

        A later request then needs a new connection, and may go to another node.
        """
        self._door.draining = True
        self._server.close_between_requests()

    def stop(self) -> None:
        """Accept no more sockets; `serve` then returns."""
        self._server.should_exit = True


def bind(
    host: str,
    port: int,
    *,
    reuse_port: bool = False,
    kernel_buffer_bytes: int = 0,
    unacknowledged_seconds: float = 0.0,
    probes: Probes | None = None,
) -> socket.socket:
    """Return a listening TCP socket; port 0 takes a free port.

    With `reuse_port` (SO_REUSEPORT), processes of the same user share the port if all of them set
    the option, and the kernel distributes connections among the processes. Accepted sockets inherit
    the other options. `kernel_buffer_bytes` is SO_SNDBUF. `unacknowledged_seconds` is
    TCP_USER_TIMEOUT (RFC 5482), after which a peer that acknowledges nothing, or keeps its window
    closed, counts as gone. 0 leaves either option to the kernel. `probes` counts for a socket once
    SO_KEEPALIVE is set on it.

    Raises:
        OSError: the address can't be bound; the text names the address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server(
            (host, port), family=family, backlog=BACKLOG, reuse_port=reuse_port
        )
    except OSError as error:
        raise OSError(
            error.errno, f"can't listen on {host} port {port}: {error.strerror}"
        ) from error
    set_options(
        listening,
        kernel_buffer_bytes=kernel_buffer_bytes,
        unacknowledged_seconds=unacknowledged_seconds,
        probes=probes,
    )
    return listening


def set_options(
    listening: socket.socket,
    *,
    kernel_buffer_bytes: int,
    unacknowledged_seconds: float,
    probes: Probes | None,
) -> None:
    """Set what accepted sockets inherit; see `bind`."""
    if kernel_buffer_bytes:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, kernel_buffer_bytes)
    if unacknowledged_seconds and hasattr(socket, "TCP_USER_TIMEOUT"):
        milliseconds = max(1, int(unacknowledged_seconds * 1_000))
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    if probes is not None and hasattr(socket, "TCP_KEEPIDLE"):
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, probes.after_seconds)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, probes.interval_seconds)
        # For systems without TCP_USER_TIMEOUT, which is decisive where it is set (tcp(7)).
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 1)


def tls_context(certificate: str, key: str, *, settings: str) -> ssl.SSLContext:
    """Return the TLS context (1.2 or later) of a listener, from PEM files.

    `settings` is what the names of both settings begin with, for the error.

    Raises:
        OSError: a file can't be read, or has no certificate or key; the text names the settings.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # With no password given, OpenSSL would ask for the password of an encrypted key on the
        # terminal.
        context.load_cert_chain(certificate, key, password="")
    except OSError as error:
        raise OSError(
            error.errno,
            f"{settings}_CERT {certificate!r} with {settings}_KEY {key!r}: "
            f"{error.strerror or error}",
        ) from error
    return context
