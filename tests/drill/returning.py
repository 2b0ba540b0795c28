"""Clients that come back when they are told to: the library's of every kind, and plain WebSockets.

Each connection goes through a proxy of its own, so that a test can cut it, or keep bytes from it
that the gateway has sent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Final

import httpx
from websockets.exceptions import WebSocketException

from pushgate.client import Place, Refused, poll, sse, websocket
from pushgate.embedded import LOOPBACK
from tests.drill.owed import Received, Session
from tests.support.clients import Ended, connect, eventually, token
from tests.support.processes import GatewayProcess
from tests.support.proxy import Direction, Proxy

#: How long a connection may take to say hello.
OPEN_SECONDS: Final = 10.0
_PLAIN: Final = "plain"
_POLL: Final = "poll"


class _HeardPlace(Place):
    """A place that says when its connection has said hello."""

    def __init__(self, told_gap: Callable[[], None]) -> None:
        super().__init__(told_gap)
        self.heard = asyncio.Event()

    def beat(self, cursor: str | None) -> None:
        super().beat(cursor)
        self.heard.set()


#: Payloads of one connection, with the place that the connection begins from.
_Stream = Callable[[str, str, _HeardPlace], AsyncIterator[bytes]]


async def _v1(url: str, user_token: str, place: _HeardPlace) -> AsyncIterator[bytes]:
    async for message in websocket(url, user_token, place):
        yield message.payload


async def _sse(url: str, user_token: str, place: _HeardPlace) -> AsyncIterator[bytes]:
    async for message in sse(url, user_token, place):
        yield message.payload


async def _poll(url: str, user_token: str, place: _HeardPlace) -> AsyncIterator[bytes]:
    if place.session is None:  # a long poll would bring no cursor before a message comes
        headers = {"authorization": f"Bearer {user_token}"}
        async with httpx.AsyncClient(headers=headers, trust_env=False) as http:
            response = await http.get(f"{url}/poll", params={"wait": 0})
        response.raise_for_status()
        place.session = response.json()["cursor"]
    place.heard.set()
    async for message in poll(url, user_token, place):
        yield message.payload


_STREAMS: Final[dict[str, _Stream]] = {"v1": _v1, "sse": _sse, _POLL: _poll}
KINDS: Final = (*_STREAMS, _PLAIN)


class ReturningClient:
    """A client, and what it has got; used in one event loop."""

    def __init__(self, name: str, user: str, device: str | None, kind: str) -> None:
        """`kind` is one of KINDS."""
        self.received = Received(
            name, user, device, resumes=kind != _PLAIN, is_polling=kind == _POLL
        )
        self.faults: list[str] = []  # ends that no network and no gateway explains
        self.is_stalled = False
        self._kind = kind
        self._place = _HeardPlace(self._told_gap)
        self._proxy: Proxy | None = None
        self._receiving: asyncio.Task[None] | None = None

    @property
    def session(self) -> Session | None:
        """The connection that it has, or is about to have."""
        sessions = self.received.sessions
        return sessions[-1] if sessions and not sessions[-1].has_ended else None

    @property
    def is_open(self) -> bool:
        """Whether its connection has said hello, and has not ended."""
        return self.session is not None and self._place.heard.is_set()

    @property
    def is_held(self) -> bool:
        """Whether the gateway can send at any time: a long-poll waits for its next request."""
        return self.is_open and self._kind != _POLL

    async def begin(self, gateway: GatewayProcess) -> None:
        """Begin a connection to a gateway."""
        assert self.session is None
        self._place.heard.clear()
        self.is_stalled = False
        self._proxy = proxy = await Proxy(gateway.port).__aenter__()
        session = Session(time.time_ns() // 1_000_000, gateway.name)
        self.received.sessions.append(session)
        self._receiving = asyncio.create_task(self._receive(session, proxy))

    async def opened(self) -> bool:
        """Wait until the connection has said hello; False where it has ended instead."""
        await eventually(
            lambda: self.is_open or self.session is None,
            f"{self.received.name} has said hello",
            timeout_seconds=OPEN_SECONDS,
        )
        return self.is_open

    def stall(self) -> None:
        """Let nothing through to the client any more: what the gateway sends is under way."""
        if self._proxy is not None:
            self.is_stalled = True
            self._proxy.silence(Direction.TO_CLIENT)

    async def drop(self, *, with_reset: bool) -> None:
        """End the connection, by a reset of both sides or as a client does that leaves."""
        if self._receiving is not None:
            if with_reset and self._proxy is not None:
                self._proxy.reset()
            self._receiving.cancel()
            with suppress(asyncio.CancelledError):
                await self._receiving

    async def _receive(self, session: Session, proxy: Proxy) -> None:
        url = f"http://{LOOPBACK}:{proxy.port}"
        received = self.received
        try:
            if self._kind == _PLAIN:
                await self._receive_plain(session, proxy.port)
            else:
                user_token = token(received.user, device=received.device)
                async for payload in _STREAMS[self._kind](url, user_token, self._place):
                    session.payloads.append(payload)
        except (httpx.HTTPError, WebSocketException, OSError, Ended, Refused):
            pass  # the connection has ended, or was refused
        except AssertionError as error:
            if self._place.heard.is_set():
                self.faults.append(f"{received.name}: {error}")
        finally:
            session.has_ended = True
            await proxy.__aexit__(None, None, None)

    async def _receive_plain(self, session: Session, port: int) -> None:
        who = self.received
        async with connect("ws-plain", port, who.user, device=who.device) as client:
            self._place.heard.set()
            while True:
                with suppress(TimeoutError):
                    session.payloads.append((await client.message(60.0)).payload)

    def _told_gap(self) -> None:
        self.received.sessions[-1].gaps += 1
