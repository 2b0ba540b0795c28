"""A listening port: uvicorn's HTTP, and how a socket leaves it. Alone in importing uvicorn."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gateway.wires.takeover import TAKE_OVER, Takeover

_BACKLOG: Final = 4_096
_KEEP_ALIVE_SECONDS: Final = 75
_STOP_SECONDS: Final = 2
#: What may follow an upgrade request before somebody takes the socket.
_MAX_REST_BYTES: Final = 65_536


class HoldableHTTP(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, in which an application can take the socket of its request.

    Upgrade requests are routed like any other. Stock WebSocket and streaming servers keep
    20–45 KB a connection; once the socket is taken nothing of this object remains.
    """

    _rest: bytes | None = None

    def data_received(self, data: bytes) -> None:
        """Feed the parser; behind an upgrade request, keep what is not HTTP any more."""
        if self._rest is not None:
            self._keep(data)
            return
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._rest = b""
            self.cycle.keep_alive = False  # whatever follows is of another protocol
            self._keep(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse_what_follows()

    def on_headers_complete(self) -> None:
        """Offer the socket to the application."""
        super().on_headers_complete()
        extensions: dict[str, Any] = {TAKE_OVER: partial(self.take_over, self.cycle)}
        self.scope["extensions"] = extensions

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

    def _refuse_what_follows(self) -> None:
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body:
            self.send_400_response("Invalid HTTP request received.")
            return
        # The request before is whole: it is answered, and the connection ends with it.
        cycle.keep_alive = False
        self._rest = b""

    def _keep(self, data: bytes) -> None:
        self._rest = (self._rest or b"") + data
        if len(self._rest) > _MAX_REST_BYTES:
            self.transport.abort()

    def _resume_with(self, *, keep_alive: bool) -> Callable[[bytes], None]:
        config, state, app_state = self.config, self.server_state, self.app_state
        loop, transport = self.loop, self.transport

        def resume(early: bytes) -> None:
            if transport.is_closing():
                return
            if not keep_alive:
                transport.close()
                return
            protocol = HoldableHTTP(config, state, app_state, _loop=loop)
            protocol.connection_made(transport)
            transport.set_protocol(protocol)
            protocol.timeout_keep_alive_task = loop.call_later(
                protocol.timeout_keep_alive, protocol.timeout_keep_alive_handler
            )
            if early:
                protocol.data_received(early)

        return resume

    def _let_go(self, cycle: RequestResponseCycle) -> None:
        """Break every cycle through this object, so that it is freed now and not by the GC."""
        self.connections.discard(self)
        self._unset_keepalive_if_required()
        cycle.scope.pop("extensions", None)
        nothing: Any = None
        cycle.on_response = nothing
        self.transport = self.flow = self.parser = nothing
        self.cycle = self.scope = self.headers = nothing
        self.pipeline.clear()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the process, which has more than one listener."""
        yield


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes a free one.

    Raises:
        OSError: the address can't be bound; its text names it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise OSError(
            error.errno, f"can't listen on {host} port {port}: {error.strerror}"
        ) from None


class Listener:
    """A listening socket and the application behind it."""

    def __init__(self, listening: socket.socket, app: ASGIApp) -> None:
        self._socket = listening
        self._server = _Server(
            uvicorn.Config(
                app,
                http=HoldableHTTP,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                backlog=_BACKLOG,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=_STOP_SECONDS,
            )
        )

    async def serve(self) -> None:
        """Accept until `stop`; then finish the requests under way, two seconds at most."""
        await self._server.serve(sockets=[self._socket])

    def stop(self) -> None:
        """Accept no more."""
        self._server.should_exit = True
