"""One gateway process: two listeners, the clock, the registrar, and the drain at the end."""

from __future__ import annotations

import asyncio
import contextlib
import math
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypedDict

import structlog
from starlette.routing import BaseRoute

from gateway.app import Connect, public_app
from gateway.connections.admission import (
    Admission,
    Limits,
    most_connections,
    most_sockets,
)
from gateway.connections.as_of import AsOf
from gateway.connections.cgroup import memory_limit
from gateway.connections.connection import TICK_SECONDS, Bounds, Unrefreshed
from gateway.connections.drain import Drain
from gateway.connections.heap import Heap
from gateway.connections.hub import Hub
from gateway.connections.identity import Identity
from gateway.connections.memory import MemoryMark
from gateway.connections.node import GatewayNode, Lifetime
from gateway.connections.registrar import Registrar
from gateway.connections.repeats import Repeats
from gateway.entry.auth import Authenticator, Unauthenticated
from gateway.entry.entry import Entry, Refused
from gateway.entry.origin import Origins
from gateway.http.door import Door, DoorBounds
from gateway.http.listener import Listener, Probes, bind, set_options, tls_context
from gateway.internal import internal_app
from gateway.links import Links
from gateway.observation import observe
from gateway.push import Pusher
from gateway.resume.links import ResumeLinks
from gateway.resume.questions import Questions
from gateway.settings import GatewaySettings
from gateway.takeover.adopt import Adoption, Inheritance, NotTakenOver, greet
from gateway.takeover.offer import Offer, Parts
from gateway.takeover.restore import Restorer
from gateway.transports.longpoll import PollSessions
from gateway.wires.choice import Wires
from registry.directory import TIMINGS, Node, Processors
from registry.generations import Markers
from registry.redis_store import RedisRegistry

if TYPE_CHECKING:
    from registry.tracing import Tracing

#: How long a drained node waits until the last connections are closed, and then until the lease in
#: the registry is given up.
FAREWELL_SECONDS: Final = 2.0
RETIRE_SECONDS: Final = 1.5

#: How long all of a stop may take beyond the drain's window. Operators are told to let supervisors
#: wait for ten seconds (docs/operations.md, "Drain").
_STOP_SECONDS: Final = 9.0

#: A lease that was away for so much less than a node may be lost counts as gone for good: clocks of
#: the registry and of this process are compared.
_EARLY_SECONDS: Final = 5.0

log = structlog.get_logger("gateway")


class Gateway:
    """A gateway node, from bind to exit. Must be made inside the running event loop."""

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        extra_transports: Mapping[str, Connect] | None = None,
        extra_routes: Sequence[BaseRoute] = (),
        refused: Refused | None = None,
    ) -> None:
        """Bind both ports; extra transports (by path) and extra routes are for the public port.

        `refused` is told of each request that is refused there.

        Raises:
            OSError: a port can't be bound, or a certificate can't be read.
        """
        self._settings = settings
        tls = _tls("PUSHGATE_TLS", settings.tls_cert, settings.tls_key)
        internal_tls = _tls(
            "PUSHGATE_INTERNAL_TLS", settings.internal_tls_cert, settings.internal_tls_key
        )
        #: What the gateway that runs already has left to this one; None where none does.
        inheritance = _inheritance(settings)
        if inheritance is None:
            internal_socket = bind(settings.internal_host, settings.internal_port)
            public_socket = bind(
                settings.host,
                settings.port,
                reuse_port=settings.workers > 1,
                **_options(settings),
            )
        else:
            internal_socket, public_socket = inheritance.internal, inheritance.public
            set_options(public_socket, **_options(settings))
        self.internal_port: int = internal_socket.getsockname()[1]
        self.port: int = public_socket.getsockname()[1]
        #: The process that has taken over; None where none has.
        self.successor: int | None = None
        #: Whether `stop` was called.
        self.was_stopped = False
        self._registry = RedisRegistry(
            settings.redis_url,
            timeout_seconds=settings.redis_timeout_seconds,
            timings=TIMINGS,
            access=settings.redis_access,
            lost_seconds=settings.lost_node_seconds,
        )
        self._keys = settings.key_ring()
        self._auth = Authenticator(settings.token_rules, self._keys)
        self.node = self._node(settings, inheritance)
        self._stopping = asyncio.Event()
        self._took_over = asyncio.Event()
        #: None where no message is traced (PUSHGATE_OTLP_ENDPOINT).
        self._tracing = _tracing(self.node, settings)
        repeats = Repeats(settings.repeat_window_messages, unscreened=self.node.hub.unscreened)
        pusher = _pusher(self.node, settings, repeats, self._tracing)
        self._links = Links(self.node, pusher)
        #: None where clients don't resume (PUSHGATE_RESUME_SECONDS=0).
        self._questions = (
            Questions(self.node, resume_seconds=settings.resume_seconds)
            if settings.resume_seconds
            else None
        )
        self._resume_links = None if self._questions is None else ResumeLinks(self._questions)
        internal = internal_app(
            self.node,
            pusher,
            self._links,
            self._resume_links,
            secrets=settings.internal_secrets,
            max_payload_bytes=settings.max_payload_bytes,
            drain=self.stop,
        )
        self._internal = Listener(
            internal_socket,
            internal,
            Door(_door_bounds(settings), port="internal"),
            tls=internal_tls,
            direct=internal.direct,
        )
        self._wires = Wires(
            settings.wire,
            loop=asyncio.get_running_loop(),
            send_buffer_bytes=settings.send_buffer_bytes,
        )
        entry = Entry(
            self.node,
            origins=_origins(settings),
            auth=self._auth,
            wires=self._wires,
            questions=self._questions,
            refused=refused,
        )
        sessions = PollSessions()
        public = public_app(
            entry, sessions, extra_transports=extra_transports, extra_routes=extra_routes
        )
        door = Door(
            _door_bounds(settings, sockets=most_sockets()),
            balancers=settings.trusted_networks,
            count_detached=lambda: self.node.admission.held,
        )
        self._public = Listener(public_socket, public, door, tls=tls)
        self._adoption, self._offer = self._take_over(inheritance, pusher, repeats, sessions)
        observe(self.node, sockets=lambda: self._public.sockets, memory_mark=_memory_mark(settings))

    def stop(self) -> None:
        """Leave: drain, give up the lease, then return from `run`. A second call leaves faster.

        During a take-over this process leaves anyway: by it, or by a drain if the take-over fails.
        """
        self.was_stopped = True
        hand_over = None if self._offer is None else self._offer.hand_over
        if hand_over is not None and hand_over.is_under_way and not hand_over.stop_wanted:
            hand_over.stop_wanted = True
            return
        drain = self.node.drain
        if drain is not None:
            log.info("drain is hastened", connections=len(self.node.hub))
            drain.hasten(time.monotonic())
            return
        log.info(
            "gateway leaves; a second signal hastens it",
            connections=len(self.node.hub),
            window_seconds=self._settings.drain_seconds,
        )
        self.node.begin_drain(_drain(self._settings))
        self._stopping.set()

    @property
    def leave_seconds(self) -> float:
        """How long leaving takes at most, from `stop` to the end of `run`."""
        return self._settings.drain_seconds + _STOP_SECONDS

    async def until_stopped(self) -> None:
        """Return once `stop` has been called."""
        await self._stopping.wait()

    async def started(self) -> None:
        """Return once the node has its lease in the registry, and what it takes over."""
        await self.node.registrar.ready.wait()
        await self._took_over.wait()

    async def run(self) -> None:
        """Serve until `stop`, and then until the drain is over and the lease is given up."""
        log.info(
            "gateway starts",
            node=self.node.identity.name,
            port=self.port,
            internal=self.node.identity.address,
        )
        try:
            await self._serve()
        except* NotTakenOver as errors:
            raise errors.exceptions[0] from None
        self._wires.close()
        await self._registry.close()
        if self._tracing is not None:
            await self._tracing.end()
        log.info("gateway has left", node=self.node.identity.name)

    async def _serve(self) -> None:
        accepts = self._adoption is None
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._internal.serve(accepts=accepts))
            tasks.create_task(self._public.serve(accepts=accepts))
            keys = tasks.create_task(self._keep_keys())
            registrar = tasks.create_task(self._register())
            clock = tasks.create_task(self._tick())
            announce = tasks.create_task(self._announce())
            succession = tasks.create_task(self._succeed())
            await self._stopping.wait()
            if self.successor is not None:
                await self._finish_connections()
            else:
                await self._finish_drain()
            registrar.cancel()
            await asyncio.wait((registrar,))
            if self.successor is None:
                await self.node.registrar.retire(timeout_seconds=RETIRE_SECONDS)
            if self._offer is not None:
                self._offer.close()
            self._internal.stop()
            await self._end_links()
            for task in (clock, announce, keys, succession):
                task.cancel()
            if self._questions is not None:
                self._questions.close()

    def _take_over(
        self,
        inheritance: Inheritance | None,
        pusher: Pusher,
        repeats: Repeats,
        sessions: PollSessions,
    ) -> tuple[Adoption | None, Offer | None]:
        """Return the take-over from the earlier process, and the offer to the next."""
        path = self._settings.takeover_socket
        if path is None:
            return None, None

        def restorer() -> Restorer:
            return Restorer(
                self.node,
                wires=self._wires,
                sessions=sessions,
                questions=self._questions,
                repeats=repeats,
                public=self._public,
            )

        generation = 0
        adoption: Adoption | None = None
        if inheritance is not None:
            welcome = inheritance.welcome
            generation = welcome.generation
            self.node.admission.go_on(welcome.handshakes, time.monotonic())
            self.node.as_of.go_on(welcome.as_of_ms)
            self.node.registrar.go_on(welcome.lease_age_seconds)
            self._registry.go_on(Markers(welcome.markers, welcome.evicted))
            sessions.go_on(welcome.poll_names, generation=generation)
            pusher.begin_generation(generation)
            adoption = Adoption(
                inheritance,
                node=self.node,
                pusher=pusher,
                repeats=repeats,
                restorer=restorer(),
                accept=self._accept,
            )
        parts = Parts(
            node=self.node,
            pusher=pusher,
            repeats=repeats,
            sessions=sessions,
            restorer=restorer,
            public=self._public,
            internal=self._internal,
            generation=generation,
            markers=lambda: self._registry.markers,
            end_links=self._end_links,
            reopen_links=self._reopen_links,
            drain=lambda: self.node.begin_drain(_drain(self._settings)),
            left=self._leave_node,
            stop=self.stop,
        )
        return adoption, Offer(path, parts)

    async def _succeed(self) -> None:
        """Take over from the earlier process, if there is one; then wait for the next."""
        if self._adoption is not None:
            await self._adoption.run()
            self._adoption = None
        if self._offer is not None:
            self._offer.listen()
        self._took_over.set()

    async def _accept(self) -> None:
        """Accept on both ports, behind a take-over; processors' first."""
        await self._internal.accept()
        await self._public.accept()

    async def _end_links(self) -> None:
        await self._links.close()
        if self._resume_links is not None:
            await self._resume_links.close()

    def _reopen_links(self) -> None:
        self._links.reopen()
        if self._resume_links is not None:
            self._resume_links.reopen()

    def _leave_node(self, successor: int) -> None:
        """Leave the node to the next process: no drain, and no goodbye to the registry."""
        self.successor = successor
        self._stopping.set()

    def _node(self, settings: GatewaySettings, inheritance: Inheritance | None) -> GatewayNode:
        identity = settings.node(self.internal_port)
        if inheritance is not None:
            identity = _inherited(identity, inheritance)
        hub, as_of = Hub(), AsOf()

        def held(processors: Processors, away_seconds: float) -> None:
            # So long after a lapse its users are offline, whatever they are connected to.
            counted_seconds = max(0.0, settings.lost_node_seconds - _EARLY_SECONDS)
            if away_seconds > TIMINGS.lease_seconds + counted_seconds:
                log.warning("the lease lapsed for too long; clients are told of a gap")
                self.node.tell_all_of_gap()
            as_of.held(processors.now_ms, processors.names, at=time.monotonic())

        return GatewayNode(
            identity,
            hub,
            Registrar(
                self._registry,
                identity,
                hub,
                timings=TIMINGS,
                held=held if settings.resume_seconds else None,
            ),
            Admission(_limits(settings), MemoryMark(_memory_mark(settings), Heap())),
            as_of=as_of,
            bounds=_bounds(settings),
            lifetime=Lifetime(
                max_age=settings.max_age_seconds,
                max_age_jitter=settings.max_age_jitter_seconds,
                reconnect_delay=settings.reconnect_delay_seconds,
            ),
            identify=self._identify,
        )

    def _identify(self, token: str) -> Identity:
        try:
            return self._auth.identify(token)
        except Unauthenticated as error:
            raise Unrefreshed(str(error)) from error

    async def _keep_keys(self) -> None:
        if self._keys is not None:
            try:
                await self._keys.run()
            finally:
                await self._keys.close()

    async def _register(self) -> None:
        if self._keys is not None and "HS256" not in self._settings.algorithms:
            await self._keys.loaded.wait()  # without keys, every token would be refused
        await self.node.registrar.run()

    async def _finish_drain(self) -> None:
        drain = self.node.drain
        assert drain is not None  # noqa: S101 - `stop` has begun the drain
        self._public.stop_keep_alive()
        await _until(lambda: drain.settled(time.monotonic()))
        self._public.stop_keep_alive()  # again, for sockets accepted while the drain settled
        await _until(lambda: drain.has_ended(time.monotonic()) or self.node.empty.is_set())
        await self._finish_connections()

    async def _finish_connections(self) -> None:
        """Accept no more, close the remaining connections, and let goodbyes be read."""
        self._public.stop()
        self.node.advance()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS):
                await self.node.empty.wait()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = asyncio.get_running_loop().time()
            self._public.advance(now)
            self._internal.advance(now)
            self.node.admission.out_of_sockets = self._public.full
            self.node.advance()
            if self._adoption is not None:
                self._adoption.advance()
            if self._offer is not None:
                self._offer.advance()
            if self._questions is not None and self._resume_links is not None:
                self._resume_links.advance(time.monotonic())
                self._questions.advance()

    async def _announce(self) -> None:
        await self.started()
        log.info("gateway is ready", node=self.node.identity.name)


async def _until(condition: Callable[[], bool]) -> None:
    """Return when `condition` holds; asked at every tick, since passing time sets no event."""
    while True:
        if condition():
            return
        await asyncio.sleep(TICK_SECONDS)


def _tls(settings: str, certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    """Return the TLS context of a port, or None for plaintext, where neither file is set."""
    if certificate is None or key is None:
        return None
    return tls_context(certificate, key, settings=settings)


def _door_bounds(settings: GatewaySettings, *, sockets: int | None = None) -> DoorBounds:
    # A door looks at its limits once a tick; a busy loop's tick, or accept, is late (1,000 sockets
    # at a load of ten processes a core: up to 0.6 s). So a door's limit is four ticks (of a short
    # limit: a quarter) before the setting's, after which no socket is left.
    seconds = settings.head_seconds
    limit = seconds - min(4 * TICK_SECONDS, seconds / 4)
    return DoorBounds(limit, settings.max_head_bytes, sockets)


def _origins(settings: GatewaySettings) -> Origins:
    """Make the allow-list of origins, and say it loudly where the list allows every page."""
    origins = settings.allowed_origins()
    if origins.allows_all:
        log.warning(
            "PUSHGATE_ORIGINS has *: pages of every origin may connect with a token",
            cookie="counts only for the gateway's own pages, and for origins that the list names",
        )
    return origins


def _inheritance(settings: GatewaySettings) -> Inheritance | None:
    """Greet the gateway that runs already; None where there is none.

    Raises:
        NotTakenOver: it stays, or this process's settings need other ports.
    """
    if settings.takeover_socket is None:
        return None
    inheritance = greet(settings.takeover_socket)
    if inheritance is None:
        return None
    for name, wanted, plug in (
        ("PUSHGATE_PORT", settings.port, inheritance.public),
        ("PUSHGATE_INTERNAL_PORT", settings.internal_port, inheritance.internal),
    ):
        port = plug.getsockname()[1]
        if wanted not in (0, port):
            inheritance.close()
            raise NotTakenOver(f"{name} is {wanted}, and {port} there: stop it, then start")
    return inheritance


def _inherited(wanted: Node, inheritance: Inheritance) -> Node:
    """Return the node of the earlier process, which has to be the one of the settings.

    Raises:
        NotTakenOver: the settings have another name or address.
    """
    welcome = inheritance.welcome
    node = Node(welcome.name, welcome.epoch, welcome.address)
    if (wanted.name, wanted.address) != (node.name, node.address):
        inheritance.close()
        raise NotTakenOver(
            f"this would be node {wanted.name} at {wanted.address}, and {node.name} at "
            f"{node.address} runs (PUSHGATE_NODE_NAME, PUSHGATE_ADVERTISE_ADDRESS): stop it, "
            "then start"
        )
    return node


def _pusher(
    node: GatewayNode, settings: GatewaySettings, repeats: Repeats, tracing: Tracing | None
) -> Pusher:
    epoch, limit = node.identity.epoch, settings.max_payload_bytes
    if tracing is None:
        return Pusher(node.hub, repeats, node.as_of, epoch=epoch, max_payload_bytes=limit)
    # Imported here, since only traces need the packages of the extra `tracing`.
    from gateway.tracing import TracedPusher  # noqa: PLC0415

    return TracedPusher(
        node.hub,
        repeats,
        node.as_of,
        epoch=epoch,
        max_payload_bytes=limit,
        tracing=tracing,
        node=node.identity.name,
    )


def _tracing(node: GatewayNode, settings: GatewaySettings) -> Tracing | None:
    if settings.otlp_endpoint is None:
        return None
    from registry.tracing import Tracing, by_otlp  # noqa: PLC0415 - as above

    return Tracing("pushgate-gateway", node.identity.name, by_otlp(settings.otlp_endpoint))


def _drain(settings: GatewaySettings) -> Drain:
    return Drain(
        began=time.monotonic(),
        window_seconds=settings.drain_seconds,
        settle_seconds=settings.drain_settle_seconds,
        reconnect_delay_seconds=settings.reconnect_delay_seconds,
        rate=settings.drain_rate,
    )


def _limits(settings: GatewaySettings) -> Limits:
    return Limits(
        connections=settings.max_connections or most_connections(),
        per_address=settings.max_connections_per_address,
        per_user=settings.max_connections_per_user,
        handshakes_per_second=settings.handshakes_per_second,
    )


def _options(settings: GatewaySettings) -> _Options:
    """Return what the sockets of clients inherit from the public port's."""
    return {
        "kernel_buffer_bytes": settings.kernel_buffer_bytes,
        "unacknowledged_seconds": settings.heartbeat_timeout_seconds,
        "probes": _probes(settings),
    }


class _Options(TypedDict):
    kernel_buffer_bytes: int
    unacknowledged_seconds: float
    probes: Probes


def _probes(settings: GatewaySettings) -> Probes:
    """Return when the kernel probes the clients of parked polls.

    Twice as often as held connections have heartbeats: the rest of a heartbeat's interval is then
    left as grace for a client whose network has changed (`_bounds`).
    """
    timeout = settings.heartbeat_timeout_seconds
    after = max(1, int(settings.heartbeat_seconds / 2))
    return Probes(after, math.ceil(max(1, timeout / 2, timeout - after)))


def _memory_mark(settings: GatewaySettings) -> int:
    """Return the mark in bytes, for one worker; 0 for no mark."""
    if settings.max_memory_bytes is not None:
        return settings.max_memory_bytes
    return (memory_limit() or 0) * 9 // 10 // settings.workers


def _bounds(settings: GatewaySettings) -> Bounds:
    # A poll session ends as long after its client's last sign of life as a held connection does.
    longest_silence = settings.heartbeat_seconds + settings.heartbeat_timeout_seconds
    vanished = max(0.0, longest_silence - _probes(settings).silence_seconds)
    frames = settings.inbound_frames_per_second * settings.heartbeat_seconds
    return Bounds(
        heartbeat_seconds=settings.heartbeat_seconds,
        heartbeat_timeout_seconds=settings.heartbeat_timeout_seconds,
        inbound_bytes=settings.inbound_bytes,
        inbound_frames=max(1, int(frames)),
        drops_oldest=settings.slow_consumer == "drop-oldest",
        send_buffer_bytes=settings.send_buffer_bytes,
        poll_grace_seconds=settings.poll_grace_seconds,
        poll_vanished_seconds=min(settings.poll_grace_seconds, vanished),
        poll_buffer_bytes=settings.poll_buffer_bytes,
        resume_seconds=settings.resume_seconds,
    )
