"""The node: what happens to a connection between its handshake and its end.

Every connection of the node is held here, and released and forgotten here.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Final, ParamSpec

import structlog

from gateway import metrics
from gateway.connections.admission import Admission
from gateway.connections.as_of import AsOf
from gateway.connections.closes import DISCONNECTED, GOING_AWAY, Close
from gateway.connections.connection import (
    TICK_SECONDS,
    Bounds,
    Captured,
    Connection,
    State,
    StreamConnection,
    Unrefreshed,
)
from gateway.connections.drain import Drain
from gateway.connections.hub import Hub
from gateway.connections.identity import Identity
from gateway.connections.registrar import Registrar
from gateway.connections.slowness import Slowness
from gateway.connections.sweep import Sweep
from gateway.takeover.format import Held, Stalled, Stream
from registry.directory import Node

log = structlog.get_logger("gateway.connection")

#: The 101 or 200 is sent when the user is registered, or after this many seconds at the latest.
REGISTRATION_SECONDS: Final = 1.0
_opened: Final = cache(metrics.OPENED.labels)
_connections: Final = cache(metrics.CONNECTIONS.labels)
_closed: Final = cache(metrics.CLOSED.labels)
#: Returns the user, device and expiry of a token; raises Unrefreshed for an invalid token.
Identify = Callable[[str], Identity]
_P = ParamSpec("_P")


@dataclass(frozen=True, slots=True)
class Lifetime:
    """How long connections live, in seconds.

    A `max_age` of 0 is no maximum. The maximum age of one connection is below `max_age` by up to
    `max_age_jitter`. `reconnect_delay` is the longest wait of a client that is told to reconnect.
    """

    max_age: float
    max_age_jitter: float
    reconnect_delay: float

    def draw_age(self) -> float | None:
        """Draw the maximum age of a connection; None for no maximum."""
        if not self.max_age:
            return None
        jitter = min(self.max_age_jitter, self.max_age)
        return self.max_age - random.uniform(0.0, jitter)  # noqa: S311


class GatewayNode:
    """Holds connections. Here alone hub, registrar and clock are told, and always together."""

    def __init__(
        self,
        identity: Node,
        hub: Hub,
        registrar: Registrar,
        admission: Admission,
        *,
        as_of: AsOf,
        bounds: Bounds,
        lifetime: Lifetime,
        identify: Identify,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.identity = identity
        self.hub = hub
        self.as_of = as_of
        self.registrar = registrar
        self.admission = admission
        self.bounds = bounds
        self.sweep = Sweep(now=clock())
        self.slowness = Slowness(silence_seconds=bounds.heartbeat_timeout_seconds)
        self.drain: Drain | None = None
        self.empty = asyncio.Event()  # no connection is left, not even one that says goodbye
        self.empty.set()
        # By user, the connections whose clients were told to reconnect; True where a new connection
        # of the user has taken the place.
        self._parting: dict[str, dict[Connection, bool]] = {}
        self._lifetime = lifetime
        self._identify = identify
        self._clock = clock
        self._wall_clock = wall_clock
        # The time of the last tick, in epoch ms: one object that all connections of a tick share.
        self._tick_ms = int(wall_clock() * 1_000)

    @property
    def status(self) -> str:
        """Readiness for new connections, as text: `/readyz` answers 200 for `ready` only.

        Once ready, a node stays ready when the registry is lost.
        """
        if self.drain is not None:
            return "draining"
        if not self.registrar.ready.is_set():
            return "waiting for the registry"
        return "overloaded" if self.admission.overloaded else "ready"

    @property
    def drain_left_seconds(self) -> float | None:
        """How long the drain's window still lasts; None without a drain."""
        return None if self.drain is None else self.drain.seconds_left(self._clock())

    @property
    def takes_new(self) -> bool:
        """Whether new connections are taken, apart from load: also while a drain settles."""
        drain = self.drain
        return self.registrar.ready.is_set() and not (drain and drain.settled(self._clock()))

    @property
    def refuses_everyone(self) -> bool:
        """Whether new connections are refused for load, whoever the user.

        A full node still admits users whose clients it has told to reconnect.
        """
        return self.admission.exhausted or (self.admission.full and not self._parting)

    def refusal(self, address: str, user: str | None = None) -> str | None:
        """Return the reason to refuse a new connection from `address` for load; None to admit.

        `user` is None where the user is not known. One new connection of a user takes the place of
        one that was told to reconnect: the two are a hand-over, however full the node.
        """
        replaces = user is not None and self._replaceable(user) is not None
        return self.admission.refusal(address, self._clock(), replaces=replaces)

    def user_refusal(self, user: str) -> str | None:
        """Return the reason to refuse another connection of `user`; None to admit.

        Connections that were told to reconnect do not count.
        """
        return self.admission.user_refusal(self.hub.count(user) - len(self._parting.get(user, ())))

    def hold(self, connection: Connection, *, expires_at: int, address: str) -> None:
        """Take a connection in: from now on the connection gets its user's messages.

        `expires_at` is the expiry of the token (Unix time, seconds), `address` the client's.
        """
        connection.address = self.admission.count_in(address)
        connection.held_since_ms = self._tick_ms
        if (replaced := self._replaceable(connection.user)) is not None:
            self._parting[connection.user][replaced] = True
        self.empty.clear()
        _opened(connection.transport).inc()
        _connections(connection.transport).inc()
        if self.hub.add(connection):
            self.registrar.changed(connection.user)
        connection.expiry_tick = self._tick_of(expires_at)
        self.age_at(connection, None)
        log.debug(
            "connection is held",
            connection=connection.id,
            user=connection.user,
            device=connection.device,
            transport=connection.transport,
            client=address,
        )

    def registered(self, connection: Connection) -> Awaitable[bool]:
        """Return a wait until the connection's user is in the registry, a second at most.

        The wait's result is False where the second has passed.
        """
        return self.registrar.written(connection.user, timeout_seconds=REGISTRATION_SECONDS)

    def release(self, connection: Connection, reason: str) -> None:
        """Take a connection out: the connection gets no more messages.

        With the user's last connection here, the node's element of the user is removed.
        """
        if self.hub.remove(connection):
            self.registrar.changed(connection.user)
        self._part_no_more(connection)
        _connections(connection.transport).dec()
        _closed(connection.transport, reason).inc()
        log.debug("connection is released", connection=connection.id, reason=reason)

    def forget(self, connection: Connection) -> None:
        """Drop a closed connection from the clock and from what admission counts."""
        log.debug("connection is forgotten", connection=connection.id)
        self._drop(connection)

    def capture(self, connection: Connection) -> Captured:
        """Give a connection to the next process, which also registers its user from now on.

        Only where the connection `can_be_captured`; nothing of it is left here.

        Raises:
            OSError: no descriptor is left; the connection is unchanged.
        """
        now = self._clock()
        replaced = self._parting.get(connection.user, {}).get(connection)
        held = connection.record(int(now / TICK_SECONDS), replaced=replaced)
        stream = Stream()
        if isinstance(connection, StreamConnection):
            stream = Stream(stalled=self.slowness.record(connection, now))
            captured = connection.capture(held, stream)
            self.slowness.forget(connection)
        else:
            captured = connection.capture(held, stream)
        self.hub.remove(connection)
        self._part_no_more(connection)
        _connections(connection.transport).dec()
        self._drop(connection)
        return captured

    def adopt(self, connection: Connection, held: Held, stalled: Stalled | None = None) -> None:
        """Hold a connection that the earlier process has captured, in its state."""
        now = self._clock()
        connection.adopt(held, int(now / TICK_SECONDS))
        connection.address = self.admission.adopt(held.address)
        self.empty.clear()
        _connections(connection.transport).inc()
        self.hub.add(connection)
        self.sweep.place(connection)
        if held.replaced is not None:
            self._parting.setdefault(connection.user, {})[connection] = held.replaced
        if stalled is not None and isinstance(connection, StreamConnection):
            self.slowness.adopt(connection, stalled, now)

    def wake_at(self, connection: Connection, delay_seconds: float) -> None:
        """Call the connection's `wake` after `delay_seconds`; replaces an earlier call."""
        connection.wake_tick = Sweep.tick_at(self._clock() + delay_seconds)
        self.sweep.place(connection)

    def age_at(self, connection: Connection, delay_seconds: float | None) -> None:
        """Call the connection's `aged` after `delay_seconds`, or (None) at its maximum age."""
        if delay_seconds is None:
            delay_seconds = self._lifetime.draw_age()
        if delay_seconds is not None:
            connection.age_tick = Sweep.tick_at(self._clock() + delay_seconds)
        self.sweep.place(connection)

    def parting(self, connection: Connection) -> None:
        """Let a new connection of the user take the place of `connection`, a client that parts.

        A node that takes no new connections keeps no places.
        """
        log.debug("client is told to reconnect", connection=connection.id)
        if self.takes_new:
            self._parting.setdefault(connection.user, {})[connection] = False

    def cursor(self, connection: Connection) -> str:
        """Return what a client comes back with; empty where clients don't resume.

        With the position of the connection's last message while that message is in the window: a
        client of an event stream keeps one cursor alone.
        """
        as_of = self.as_of
        if not as_of.text:
            return ""
        if connection.screen is not None:
            return connection.screen.cursor(as_of.ms)
        if connection.cursor:
            time_text, _, position = connection.cursor.partition(",")
            age_ms = as_of.ms - int(time_text, 36)
            if position and age_ms < self.bounds.resume_seconds * 1_000:
                return f"{as_of.text},{position}"
            connection.cursor = None
        return as_of.text

    def reconnect_delay(self) -> float:
        """Draw how long, in seconds, a client that is told to reconnect is to wait."""
        longest = self.drain.longest_delay if self.drain else self._lifetime.reconnect_delay
        return random.uniform(0.0, longest)  # noqa: S311

    def refresh(self, connection: Connection, token: str) -> float:
        """Let a connection live as long as `token`; return for how many seconds that is.

        Raises:
            Unrefreshed: the token is not valid, or is of another user or device.
        """
        identity = self._identify(token)
        if (identity.user, identity.device) != (connection.user, connection.device):
            raise Unrefreshed("the token is another's")
        self.renew(connection, identity)
        return identity.expires_at - self._wall_clock()

    def renew(self, connection: Connection, identity: Identity) -> None:
        """Let a connection live as long as `identity`, its user's newest credential."""
        connection.warned = False
        connection.expiry_tick = self._tick_of(identity.expires_at)
        self.sweep.place(connection)

    def dropped(self, connection: Connection, messages: int) -> None:
        """Count messages that were dropped to make room for newer ones."""
        metrics.DROPPED.labels(connection.transport).inc(messages)

    def watch(self, connection: StreamConnection) -> None:
        """Close a connection as too slow if its wire makes no progress while bytes wait."""
        self.slowness.watch(connection, self._clock())

    def unsent(self, messages: int, reason: str) -> None:
        """Count messages that were taken, and not sent before the connection's end."""
        if messages:
            metrics.UNSENT_AT_CLOSE.labels(reason).inc(messages)

    def pushed(self, size: int) -> None:
        """Take note of a batch of `size` bytes that is about to be delivered."""
        self.admission.memory.pushed(size, self._clock())
        self.hub.is_short_of_memory = self.admission.memory.reached

    def disconnect(
        self,
        user: str,
        *,
        device: str | None = None,
        connection_id: str | None = None,
        close: Close = DISCONNECTED,
    ) -> int:
        """End the connections of a user, of a device, or one connection; return their number.

        With GOING_AWAY clients are told to reconnect at once, as in a drain.
        """
        connections = [
            held
            for held in self.hub.of(user)
            if device in (None, held.device) and connection_id in (None, held.id)
        ]
        for connection in connections:
            if close is GOING_AWAY:
                _apart(connection, connection.part, close, 0.0)
            else:
                _apart(connection, connection.close, close)
        return len(connections)

    def tell_all_of_gap(self) -> None:
        """Tell every client that messages may be missing."""
        for connection in self.hub.connections():
            _apart(connection, connection.tell_gap)

    def advance(self) -> None:
        """Do everything that is due for connections, for admission and for a drain."""
        now = self._clock()
        self._tick_ms = int(self._wall_clock() * 1_000)
        self.sweep.advance(now)
        for connection in self.slowness.advance(now):
            _apart(connection, connection.too_slow)
        self.admission.advance(now)
        self.hub.is_short_of_memory = self.admission.memory.reached
        if self.drain is not None:
            self._step_drain(self.drain, now)

    def begin_drain(self, drain: Drain) -> None:
        """Begin to leave; called again, with the drain hastened, leave faster."""
        self.drain = drain
        self._step_drain(drain, self._clock())

    def _step_drain(self, drain: Drain, now: float) -> None:
        if drain.has_ended(now):
            for connection in self.hub.connections():
                _apart(connection, connection.close, GOING_AWAY)
            return
        # Connections that were told to reconnect because of their age are leaving already.
        untold = [held for held in self.hub.connections() if held.state is State.OPEN]
        for connection in islice(untold, drain.step(now, untold=len(untold))):
            _apart(connection, connection.part, GOING_AWAY, self.reconnect_delay())

    def _part_no_more(self, connection: Connection) -> None:
        """Keep no place for a new connection of the user any more."""
        if (parting := self._parting.get(connection.user)) is not None:
            parting.pop(connection, None)
            if not parting:
                del self._parting[connection.user]

    def _drop(self, connection: Connection) -> None:
        self.sweep.forget(connection)
        self.admission.count_out(connection.address)
        if not self.admission.held:
            self.empty.set()

    def _replaceable(self, user: str) -> Connection | None:
        """Return a connection of `user` whose place a new connection may take, or None."""
        parting = self._parting.get(user) if self._parting else None
        if parting is None:
            return None
        return next((held for held, replaced in parting.items() if not replaced), None)

    def _tick_of(self, expires_at: int) -> int:
        # Ticks count monotonic time: a later jump of the wall clock ends no connection.
        return Sweep.tick_at(self._clock() + expires_at - self._wall_clock())


def _apart(
    connection: Connection, act: Callable[_P, None], *args: _P.args, **kwargs: _P.kwargs
) -> None:
    """Call a method of one connection; an unexpected error ends this connection alone."""
    try:
        act(*args, **kwargs)
    except Exception:  # whatever the fault: the other connections, and the process, go on
        connection.failed()
