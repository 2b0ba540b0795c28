"""Connections through a balancer: do they stay, and do heartbeats come through?

A WebSocket, an event stream and a long poll, for as long as the operator says.
Heartbeats have to come more often than the idle time-outs of all balancers and proxies on the way.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import httpx
from websockets.exceptions import WebSocketException

from pushgate.client import TRANSPORTS, Message, Place, Refused, websocket
from pushgate.doctor.finding import Finding, Subject

BALANCER: Final = Subject("balancer")

#: How to connect, as a browser: a client's own pings would keep connections open.
_TRANSPORTS: Final[dict[str, Callable[[str, str, Place], AsyncIterator[Message]]]] = {
    **TRANSPORTS,
    "ws": partial(websocket, ping_seconds=None),
}
#: How long a connection may take to open.
_OPEN_SECONDS: Final = 10.0
#: How late a heartbeat may be.
_LATE_SECONDS: Final = 5.0
#: The transports whose heartbeats a client sees.
_BEATING: Final = ("ws", "sse")
_NAMES: Final = {"ws": "WebSocket", "sse": "event stream", "poll": "long poll"}


class End(enum.Enum):
    """How a connection was when the time was over."""

    OPEN = "still open"
    NEVER_OPEN = "never open"
    REFUSED = "refused"
    ENDED = "ended"


@dataclass(slots=True)
class Life:
    """A connection: its opening, heartbeats and end. Times are of the same clock."""

    transport: str
    began_at: float
    opened_at: float | None = None
    beats: list[float] = field(default_factory=list)
    end: End = End.NEVER_OPEN
    ended_at: float = 0.0
    reason: str = ""

    @property
    def silent_seconds(self) -> float:
        """How long nothing had come when the connection ended."""
        latest = self.beats[-1] if self.beats else self.opened_at
        return self.ended_at - (self.began_at if latest is None else latest)


class _Watched(Place):
    """A client's place with the times of the opening and of heartbeats."""

    def __init__(self, life: Life, clock: Callable[[], float]) -> None:
        super().__init__(told_open=self._opened)
        self._life = life
        self._now = clock

    def beat(self, cursor: str | None) -> None:
        self._life.beats.append(self._now())
        super().beat(cursor)

    def _opened(self) -> None:
        self._life.opened_at, self._life.end = self._now(), End.OPEN


async def check_through(
    url: str,
    token: str,
    *,
    seconds: float,
    heartbeat_seconds: float,
    clock: Callable[[], float],
) -> Sequence[Finding]:
    """Hold a connection by every transport for `seconds`; `clock` gives monotonic seconds."""
    lives = await asyncio.gather(
        *(_live(url.rstrip("/"), token, each, seconds, clock) for each in _TRANSPORTS)
    )
    return [judge(life, seconds=seconds, heartbeat_seconds=heartbeat_seconds) for life in lives]


async def _live(
    url: str, token: str, transport: str, seconds: float, clock: Callable[[], float]
) -> Life:
    life = Life(transport, clock())
    place = _Watched(life, clock)
    try:
        async with asyncio.timeout(seconds) as limit:
            opening = asyncio.get_running_loop().call_later(_OPEN_SECONDS, _give_up, life, limit)
            try:
                async for _ in _TRANSPORTS[transport](url, token, place):
                    pass
            finally:
                opening.cancel()
        life.end, life.reason = End.ENDED, "the connection was closed"
    except TimeoutError:
        pass  # the time is over: open, or never opened
    except Refused as error:
        life.end, life.reason = End.REFUSED, str(error)
    except (httpx.HTTPError, WebSocketException, OSError) as error:
        life.reason = str(error) or type(error).__name__
        if life.opened_at is not None:
            life.end = End.ENDED
    life.ended_at = clock()
    return life


def _give_up(life: Life, limit: asyncio.Timeout) -> None:
    """End the attempt to open a connection."""
    if life.opened_at is None:
        limit.reschedule(0.0)


def judge(life: Life, *, seconds: float, heartbeat_seconds: float) -> Finding:
    """Judge a connection, to be held for `seconds`."""
    name = _NAMES[life.transport]
    if life.end is End.REFUSED:
        return BALANCER.fault(
            f"{name}: refused with {life.reason}",
            why="clients can't connect here",
            cure="docs/troubleshooting.md has each refusal; a status that is not there is a "
            "proxy's",
        )
    if life.end is End.NEVER_OPEN:
        return BALANCER.fault(
            f"{name}: no connection in {life.ended_at - life.began_at:.0f} s "
            f"({life.reason or 'no answer'})",
            why="clients can't connect here",
            cure="see that --through is the gateways' public address, and that a proxy on the way "
            "passes Upgrade, and streams",
        )
    if life.end is End.ENDED:
        return _ended(life, name, heartbeat_seconds)
    if life.transport in _BEATING and _lacks_beats(life, heartbeat_seconds):
        return BALANCER.fault(
            f"{name}: open for {seconds:g} s, and {len(life.beats)} signs of life came",
            why=f"a gateway sends one at the opening and every PUSHGATE_HEARTBEAT_SECONDS "
            f"({heartbeat_seconds:g}): something on the way collects what is sent",
            cure="switch buffering and compression off for the gateways in the proxy (nginx: "
            "proxy_buffering off), or balance at layer 4",
        )
    if seconds <= heartbeat_seconds:
        return BALANCER.note(
            f"{name}: open for {seconds:g} s",
            why=f"that is no longer than PUSHGATE_HEARTBEAT_SECONDS ({heartbeat_seconds:g})",
            cure="give --for more than the longest idle time-out that you suspect",
        )
    return BALANCER.ok(f"{name}: open for {seconds:g} s")


def _lacks_beats(life: Life, heartbeat_seconds: float) -> bool:
    """Whether the sign of life at the opening, or a heartbeat, is overdue."""
    late = _LATE_SECONDS if not life.beats else heartbeat_seconds + _LATE_SECONDS
    return life.silent_seconds > late


def _ended(life: Life, name: str, heartbeat_seconds: float) -> Finding:
    held = life.ended_at - (life.opened_at or life.began_at)
    return BALANCER.warning(
        f"{name}: ended after {held:.0f} s, {life.silent_seconds:.0f} s after the last sign of "
        f"life ({life.reason})",
        why="clients connect again and again, all day",
        cure="where the silence is a round time below PUSHGATE_HEARTBEAT_SECONDS "
        f"({heartbeat_seconds:g}), an idle time-out on the way is shorter: raise it, or lower the "
        "setting. Else a balancer limits the life of connections, or a gateway drains (try again)",
    )
