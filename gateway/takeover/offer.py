"""The running gateway: listens for the next process, and hands over.

docs/takeover.md has the steps: the methods of `HandOver.run`, in order.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import math
import os
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from gateway.connections.connection import TICK_SECONDS, Captured, Connection
from gateway.connections.node import GatewayNode
from gateway.connections.repeats import Repeats
from gateway.errors import GatewayError
from gateway.http.listener import Listener
from gateway.push import Pusher
from gateway.takeover.adopt import hash_check
from gateway.takeover.channel import (
    MOST_UNACKNOWLEDGED,
    BrokenChannel,
    Channel,
    Delivered,
    peer_of,
)
from gateway.takeover.format import (
    FORMATS,
    Alive,
    ConnectionRecord,
    Connections,
    Done,
    Ended,
    Hello,
    HttpRecord,
    Message,
    NotTaken,
    PartlyTakenRecord,
    PollRecord,
    Push,
    Pushed,
    Ready,
    Refusal,
    Switch,
    Switched,
    Taken,
    Welcome,
)
from gateway.takeover.partner import OtherProcess, push_for_partner
from gateway.takeover.process import PeerProcess
from gateway.takeover.restore import Restorer, Sockets
from gateway.transports.longpoll import PollSessions
from gateway.transports.poll_session import PollSession
from registry.generations import Markers

#: Connections of a batch, give or take those of its last user. A batch takes some 5 ms on either
#: side, for which messages of all other users wait.
BATCH: Final = 64
#: Bytes of records after which a batch is sent.
_BATCH_BYTES: Final = 1024 * 1024
#: Ticks of silence after which a next process counts as hung that owes an answer: five seconds.
_SILENT_TICKS: Final = 20
#: How long requests under way, and handshakes, are waited for, before the rest is left behind.
_SETTLE_SECONDS: Final = 1.5
_POLL_SECONDS: Final = 0.005
#: Descriptors of a next process beside connections.
_SPARE_DESCRIPTORS: Final = 64

log = structlog.get_logger("gateway.takeover")


class _Everybody:
    """A container of every user."""

    def __contains__(self, user: object) -> bool:
        return True


_EVERYBODY: Final = _Everybody()


class _Failed(GatewayError):
    """The take-over has failed: this process goes on as the node."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a running gateway that a hand-over moves, and the calls at the end."""

    node: GatewayNode
    pusher: Pusher
    repeats: Repeats
    sessions: PollSessions
    restorer: Callable[[], Restorer]
    public: Listener
    internal: Listener
    generation: int
    markers: Callable[[], Markers]
    #: Ends the links of processors behind their last answers.
    end_links: Callable[[], Awaitable[None]]
    #: Takes links again, where `end_links` has ended them.
    reopen_links: Callable[[], None]
    #: Begins the drain of connections that can't be passed.
    drain: Callable[[], None]
    #: Is called with the id of the next process when the next process is the node.
    left: Callable[[int], None]
    #: Begins to leave: a stop was asked for during a failed take-over.
    stop: Callable[[], None]


class Offer:
    """The socket at which the next process greets this one."""

    def __init__(self, path: str, parts: Parts) -> None:
        self._path = Path(path)
        self._parts = parts
        self._plug: socket.socket | None = None
        self.hand_over: HandOver | None = None
        self._running: asyncio.Task[None] | None = None

    def listen(self) -> None:
        """Listen at the path, in place of a process that has listened there before.

        Raises:
            OSError: the path can't be made.
        """
        plug = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        beside = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        if self._path.exists() and not self._path.is_socket():
            raise OSError(errno.EEXIST, f"PUSHGATE_TAKEOVER_SOCKET {self._path}: is no socket")
        earlier_mask = os.umask(0o177)
        try:
            beside.unlink(missing_ok=True)
            plug.bind(str(beside))
        except OSError as error:
            plug.close()
            raise OSError(
                error.errno, f"PUSHGATE_TAKEOVER_SOCKET {self._path}: {error.strerror or error}"
            ) from error
        finally:
            os.umask(earlier_mask)
        plug.listen()
        plug.setblocking(False)
        beside.rename(self._path)
        self._plug = plug
        asyncio.get_running_loop().add_reader(plug.fileno(), self._greeted)

    def close(self) -> None:
        """Listen no more; remove the path, which is the next process's behind a take-over."""
        if self._running is not None:
            self._running.cancel()
        plug, self._plug = self._plug, None
        if plug is None:
            return
        asyncio.get_running_loop().remove_reader(plug.fileno())
        if self.hand_over is None or not self.hand_over.is_over:
            self._path.unlink(missing_ok=True)  # first: who is refused here binds it anew
        plug.close()

    def advance(self) -> None:
        """Look whether the next process is silent; called at every tick of the node's clock."""
        if self.hand_over is not None:
            self.hand_over.advance()

    def _greeted(self) -> None:
        assert self._plug is not None  # noqa: S101 - the reader is removed before
        try:
            plug, _ = self._plug.accept()
        except OSError:
            return
        pid, uid = peer_of(plug)
        if uid != os.geteuid():
            log.warning("a process of another user is refused the take-over", pid=pid, uid=uid)
            plug.close()
            return
        hand_over = HandOver(self._parts, Channel(plug), PeerProcess(pid))
        if self.hand_over is not None:
            hand_over.refuse("another process is taking over")
            return
        self.hand_over = hand_over
        self._running = asyncio.get_running_loop().create_task(self._run(hand_over))

    async def _run(self, hand_over: HandOver) -> None:
        if not await hand_over.run():
            self.hand_over = None
            if hand_over.stop_wanted:
                self._parts.stop()


class HandOver:
    """One take-over, seen from the running gateway."""

    def __init__(self, parts: Parts, channel: Channel, peer: PeerProcess) -> None:
        self._parts = parts
        self._channel = channel
        self._peer = peer
        self._other = OtherProcess(channel, parts.node.hub, has_rest=True)
        self._answers: asyncio.Queue[Message] = asyncio.Queue()
        self._awaits = False  # the next process owes an answer
        #: Batches that are not acknowledged: descriptors to be closed, and when they were captured.
        self._in_transit: deque[tuple[Connections, list[int]]] = deque()
        #: Batches that the next process has refused.
        self._untouched: list[tuple[Connections, list[int]]] = []
        self._changed = asyncio.Event()  # set whenever a batch is acknowledged
        self._numbers: dict[Connection, int] = {}
        self._http: list[tuple[HttpRecord, int]] = []
        self._accepts = True
        self._switched = False
        self._failure: str | None = None
        self._longest_pause = 0.0
        self._pushes: set[asyncio.Task[None]] = set()
        #: Whether anything has been handed over, so that a stop has to wait for the end.
        self.is_under_way = False
        #: Whether the next process is the node.
        self.is_over = False
        #: A stop was asked for, in case this process goes on.
        self.stop_wanted = False

    def refuse(self, reason: str) -> None:
        """Refuse the next process."""
        self._channel.begin(self)
        self._channel.send(Refusal(reason))
        self._channel.close()
        self._peer.close()

    async def run(self) -> bool:
        """Hand over; False where this process goes on as the node."""
        self._channel.begin(self)
        try:
            await self._welcome()
            await self._move_streams()
            await self._stop_accepting()
            await self._move_rest()
            await self._switch()
            await self._say_goodbye()
        except _Failed as failed:
            await self._go_on(str(failed))
            return False
        except Exception:  # any fault: this process is the node
            log.exception("a take-over has failed")
            await self._go_on("see the log of the earlier process")
            return False
        finally:
            self._channel.close()
            self._peer.close()
        self.is_over = True
        self._parts.left(self._peer.pid)
        return True

    def advance(self) -> None:
        """Look whether the next process is silent; called at every tick of the node's clock."""
        if self.is_under_way:
            self._channel.send(Alive())
        awaits = self._awaits or bool(self._in_transit) or self._other.awaits
        self._channel.silent_ticks = self._channel.silent_ticks + 1 if awaits else 0
        if self._channel.silent_ticks > _SILENT_TICKS and self._failure is None:
            if self.is_under_way:
                self._peer.kill()
            self.ended("the next process is silent")

    def received(self, delivered: Delivered) -> None:
        """Take a message of the next process."""
        message = delivered.message
        match message:
            case Taken() if self._in_transit:
                self._acknowledge()
            case NotTaken() if self._in_transit:
                self._untouched += self._in_transit  # the later ones too: nothing more is taken
                self._in_transit.clear()
                self._fail(message.reason)
            case Push():
                self._push(message)
            case Pushed():
                self._other.pushed(message)
            case Hello() | Ready() | Switched() | Done():
                self._answers.put_nowait(message)
            case _:
                raise BrokenChannel(f"{type(message).__name__} was not due")

    def ended(self, reason: str) -> None:
        """The next process is gone."""
        self._fail(reason)

    def _fail(self, reason: str) -> None:
        """End the take-over, at any step."""
        if self._failure is None:
            self._failure = reason
        self._answers.put_nowait(Refusal(reason))
        self._changed.set()
        self._other.gone()

    async def _answer(self, kind: type[Message]) -> Message:
        """Return the next answer, which has to be of a kind.

        Raises:
            _Failed: the next process is gone, hangs, or sends something else.
        """
        self._awaits = True
        message = await self._answers.get()
        self._awaits = False
        if self._failure is not None or not isinstance(message, kind):
            raise _Failed(self._failure or "an answer was not due")
        return message

    async def _welcome(self) -> None:
        hello = await self._answer(Hello)
        assert isinstance(hello, Hello)  # noqa: S101 - `_answer`
        node, now = self._parts.node, time.monotonic()
        if (reason := self._reason_to_refuse(hello)) is not None:
            self._channel.send(Refusal(reason))
            raise _Failed(reason)
        identity = node.identity
        welcome = Welcome(
            max(set(hello.formats).intersection(FORMATS)),
            identity.name,
            identity.epoch,
            identity.address,
            node.hub.users(),
            node.registrar.lease_age_seconds,
            node.as_of.ms,
            self._parts.generation + 1,
            self._parts.sessions.names,
            node.admission.handshakes_left(now),
            None if node.drain is None else node.drain.record(now),
            *self._parts.markers(),
        )
        self._channel.send(
            welcome, [self._parts.internal.descriptor, self._parts.public.descriptor]
        )
        await self._answer(Ready)
        self._channel.acknowledged()
        self.is_under_way = True
        log.info("the next gateway process takes over", connections=len(node.hub))
        async with self._parts.pusher.held_back():
            self._parts.pusher.partner = self._other
        node.registrar.elsewhere = self._other.users

    def _reason_to_refuse(self, hello: Hello) -> str | None:
        if not set(hello.formats).intersection(FORMATS):
            return f"this process passes formats {FORMATS}, and the next reads {hello.formats}"
        needed = self._parts.public.sockets + _SPARE_DESCRIPTORS
        if hello.room < needed:
            return f"{needed} descriptors are needed, and the next process has {hello.room}"
        if not self._parts.node.registrar.ready.is_set():
            return "this process waits for the registry itself"
        if self._parts.node.drain is not None:
            return "this process drains, and ends by itself"
        return None

    async def _move_streams(self) -> None:
        """Move the users whose connections are all held sockets, while everything goes on."""
        await self._move(lambda held: held.can_be_captured and not isinstance(held, PollSession))

    async def _stop_accepting(self) -> None:
        """Take the public port's idle sockets out of HTTP; wait for requests under way."""
        public = self._parts.public
        self._accepts = False
        public.stop_accepting()
        deadline = time.monotonic() + _SETTLE_SECONDS
        self._http += public.captured()
        while public.busy and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_SECONDS)
            self._http += public.captured()

    async def _move_rest(self) -> None:
        """Move all further users, then HTTP's sockets; leave the rest behind."""
        await self._move(lambda held: held.can_be_captured)
        self._send_http()
        deadline = time.monotonic() + _SETTLE_SECONDS
        node = self._parts.node
        while time.monotonic() < deadline and any(
            held.can_be_captured or held.is_in_between for held in node.hub.connections()
        ):
            await asyncio.sleep(_POLL_SECONDS)
            await self._move(lambda held: held.can_be_captured)
        await self._move(lambda held: held.can_be_captured, whole=False)
        await self._until(lambda: not self._in_transit)

    async def _move(self, is_movable: Callable[[Connection], bool], *, whole: bool = True) -> None:
        """Move the users with movable connections: with no other ones, if `whole`."""
        hub, registrar = self._parts.node.hub, self._parts.node.registrar

        def movable(user: str) -> bool:
            held = hub.of(user)
            if not whole:
                return any(map(is_movable, held))
            return bool(held) and all(map(is_movable, held)) and not registrar.is_writing(user)

        users = filter(movable, hub.users())
        while True:
            async with self._parts.pusher.held_back():
                self._check()
                batch = self._next_users(users)
                self._capture(batch)
            if not batch:
                return
            await self._until(lambda: len(self._in_transit) < MOST_UNACKNOWLEDGED)

    def _next_users(self, users: Iterator[str]) -> list[str]:
        batch: list[str] = []
        connections = 0
        for user in users:
            batch.append(user)
            connections += self._parts.node.hub.count(user)
            if connections >= BATCH:
                break
        return batch

    def _capture(self, users: Iterable[str]) -> None:
        """Capture users' connections, and send them in one or more batches."""
        node = self._parts.node
        batch = _Batch()
        for user in users:
            is_late = user in self._other.users
            if node.registrar.leave_to_next(user) or is_late:
                batch.unwritten.append(user)
            self._other.users.add(user)
            for connection in node.hub.of(user):
                if not connection.can_be_captured:
                    continue
                try:
                    captured = node.capture(connection)
                except OSError as error:  # no descriptor is left for a moment: stays, is drained
                    log.warning("a connection can't be passed", error=str(error))
                    continue
                self._numbers[connection] = len(self._numbers)
                batch.add(captured)
                if batch.is_full:
                    self._send(batch)
                    batch = _Batch()
        names = self._parts.repeats.partly_taken_of(frozenset(users))
        for (user, message_id, device, scope), takers in names:
            numbers = [self._numbers[taker] for taker in takers if taker in self._numbers]
            batch.partly_taken.append(PartlyTakenRecord(user, message_id, device, scope, numbers))
        self._send(batch)

    def _send(self, batch: _Batch) -> None:
        if not batch.records:
            return
        message = Connections(batch.records, batch.unwritten, batch.partly_taken, time.monotonic())
        self._in_transit.append((message, batch.descriptors))
        self._channel.send(message, batch.descriptors)

    def _send_http(self) -> None:
        batch = _Batch()
        while self._http:
            record, descriptor = self._http.pop()
            batch.add(Captured(record, descriptor))
            if batch.is_full:
                self._send(batch)
                batch = _Batch()
        self._send(batch)

    async def _switch(self) -> None:
        """Let the next process accept, and processors find it."""
        node = self._parts.node
        await self._until(lambda: not node.registrar.is_writing_any, _SETTLE_SECONDS)
        # Everybody is for the next process to register, and to write as gone.
        node.registrar.elsewhere = _EVERYBODY
        remaining = node.hub.users()
        young, old = self._parts.repeats.generations()
        self._parts.internal.stop_accepting()
        self._switched = True
        switch = Switch(
            node.registrar.unwritten(), remaining, hash_check(), _arrays(young), _arrays(old)
        )
        self._channel.send(switch)
        await self._answer(Switched)
        await self._parts.end_links()
        await self._until(lambda: not self._other.awaits)
        self._parts.pusher.partner = None

    async def _say_goodbye(self) -> None:
        """Drain the remaining connections; then leave the node to the next process."""
        node = self._parts.node
        remaining = set(node.hub.users())
        if remaining:
            self._parts.drain()
        while remaining:
            await self._until(lambda: not remaining.issubset(node.hub.users()))
            for user in remaining.difference(node.hub.users()):
                self._channel.send(Ended(user))
            remaining.intersection_update(node.hub.users())
        self._channel.send(Done(self._longest_pause))
        await self._answer(Done)
        log.info(
            "the next gateway process has taken over",
            connections=len(self._numbers),
            longest_pause_seconds=round(self._longest_pause, 3),
        )

    def _acknowledge(self) -> None:
        """The next process has the oldest batch: its sockets are closed here."""
        message, descriptors = self._in_transit.popleft()
        for descriptor in descriptors:
            os.close(descriptor)
        self._longest_pause = max(self._longest_pause, time.monotonic() - message.captured_at)
        if descriptors:
            self._channel.acknowledged()
        self._changed.set()

    def _push(self, message: Push) -> None:
        self._parts.node.pushed(len(message.body))
        pushing = push_for_partner(self._parts.pusher, self._channel, message)
        task = asyncio.get_running_loop().create_task(pushing)
        self._pushes.add(task)
        task.add_done_callback(self._pushes.discard)

    def _check(self) -> None:
        if self._failure is not None:
            raise _Failed(self._failure)

    async def _until(self, condition: Callable[[], bool], most_seconds: float = math.inf) -> None:
        """Return when a condition holds, or the time is over.

        Raises:
            _Failed: the take-over has failed meanwhile.
        """
        deadline = time.monotonic() + most_seconds
        while True:
            self._check()
            if condition() or time.monotonic() > deadline:
                return
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await self._changed.wait()

    async def _go_on(self, reason: str) -> None:
        """Be the node again; captured users are written as gone, unless they come back."""
        parts, node = self._parts, self._parts.node
        self._channel.send(Refusal(reason))
        self._fail(reason)
        await self._take_back()
        parts.pusher.partner = None
        node.registrar.elsewhere = frozenset()
        for user in self._other.users:
            node.registrar.changed(user)
        if not self._accepts:
            await parts.public.accept()
        if self._switched:
            await parts.internal.accept()
            parts.reopen_links()
        log.error(
            "no take-over; this process goes on",
            reason=reason,
            lost_users=sum(user not in node.hub for user in self._other.users),
        )

    async def _take_back(self) -> None:
        """Restore untouched connections; close all that the next process may have written to."""
        for _, descriptors in self._in_transit:
            for descriptor in descriptors:
                os.close(descriptor)
        self._in_transit.clear()
        restorer = self._parts.restorer()
        for message, descriptors in self._untouched:
            await restorer.take(restorer.restore(message, descriptors))
        for record, descriptor in self._http:
            await restorer.take(Sockets(http=[(record, descriptor)]))


class _Batch:
    """Records with their descriptors, until they fill a frame."""

    def __init__(self) -> None:
        self.records: list[ConnectionRecord] = []
        self.descriptors: list[int] = []
        self.unwritten: list[str] = []
        self.partly_taken: list[PartlyTakenRecord] = []
        self._bytes = 0

    def add(self, captured: Captured) -> None:
        """Add a captured connection."""
        self.records.append(captured.record)
        if captured.descriptor is not None:
            self.descriptors.append(captured.descriptor)
        self._bytes += _size(captured.record)

    @property
    def is_full(self) -> bool:
        """Whether the batch is to be sent."""
        return len(self.records) >= BATCH or self._bytes >= _BATCH_BYTES


def _size(record: ConnectionRecord) -> int:
    """Return about how many bytes a record has, if many."""
    if isinstance(record, PollRecord):
        return sum(map(len, record.items))
    if isinstance(record, HttpRecord) or record.stream.unsent is None:
        return 0
    return sum(map(len, record.stream.unsent.writes))


def _arrays(results: Mapping[int, int]) -> tuple[bytes, bytes]:
    return array.array("q", results).tobytes(), array.array("I", results.values()).tobytes()
