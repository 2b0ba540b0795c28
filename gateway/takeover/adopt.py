"""The next process: it greets the running gateway, and takes over from it. See docs/takeover.md."""

from __future__ import annotations

import array
import asyncio
import os
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NamedTuple

import structlog

from gateway import metrics
from gateway.connections.admission import most_sockets
from gateway.connections.node import GatewayNode
from gateway.connections.repeats import Repeats
from gateway.errors import GatewayError
from gateway.push import Pusher
from gateway.takeover.channel import (
    BrokenChannel,
    Channel,
    Delivered,
    Inbox,
    descriptors_of,
    framed,
    peer_of,
)
from gateway.takeover.format import (
    FORMATS,
    Alive,
    Connections,
    Done,
    Ended,
    Hello,
    NotTaken,
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
from registry.process import VERSION

#: How long the running gateway may take to answer the greeting.
GREETING_SECONDS: Final = 5.0
#: Ticks of silence after which the earlier process counts as hung: ten seconds.
_SILENT_TICKS: Final = 40
#: How long the end of a process may take whose sockets are closed.
_END_SECONDS: Final = 0.5

log = structlog.get_logger("gateway.takeover")


class NotTakenOver(GatewayError, OSError):
    """This process can't take over, and must not be the node: the running gateway goes on."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"not taken over from the running gateway: {reason}")


class Inheritance(NamedTuple):
    """What the greeting has brought: the node, its listening sockets, and the way to the rest."""

    welcome: Welcome
    internal: socket.socket
    public: socket.socket
    plug: socket.socket
    inbox: Inbox
    path: str
    began: float

    def close(self) -> None:
        """Let go of everything: the running gateway goes on."""
        for plug in (self.plug, self.internal, self.public):
            plug.close()
        self.inbox.close()


def greet(path: str) -> Inheritance | None:
    """Greet the gateway that listens at `path`; None where none does.

    Blocks for GREETING_SECONDS at most; nobody is served here yet.

    Raises:
        NotTakenOver: the running gateway refuses, says nothing, or is another user's.
    """
    began = time.monotonic()
    plug = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    plug.settimeout(GREETING_SECONDS)
    try:
        plug.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):  # of a gateway that has ended, perhaps
        plug.close()
        return None
    except OSError as error:
        plug.close()
        raise NotTakenOver(f"{path}: {error}") from error
    inbox = Inbox(plug)
    try:
        if peer_of(plug)[1] != os.geteuid():
            raise NotTakenOver(f"the process at {path} is of another user")
        plug.sendall(framed(Hello(list(FORMATS), most_sockets(), VERSION), 0))
        welcome, descriptors = _welcomed(inbox, began + GREETING_SECONDS)
        internal, public = (socket.socket(fileno=descriptor) for descriptor in descriptors)
    except NotTakenOver:
        plug.close()
        raise
    except (OSError, BrokenChannel, ValueError) as error:
        plug.close()
        inbox.close()
        raise NotTakenOver(str(error) or "no answer") from error
    return Inheritance(welcome, internal, public, plug, inbox, path, began)


def _welcomed(inbox: Inbox, deadline: float) -> tuple[Welcome, list[int]]:
    while (delivered := inbox.next()) is None:
        if time.monotonic() > deadline or not inbox.receive():
            raise NotTakenOver("no answer to the greeting")
    message = delivered.message
    if isinstance(message, Refusal):
        raise NotTakenOver(message.reason)
    if not isinstance(message, Welcome):
        raise BrokenChannel("no welcome")
    return message, delivered.descriptors


class Adoption:
    """One take-over, seen from the next process: from the greeting to the goodbye."""

    def __init__(
        self,
        inheritance: Inheritance,
        *,
        node: GatewayNode,
        pusher: Pusher,
        repeats: Repeats,
        restorer: Restorer,
        accept: Callable[[], Awaitable[None]],
    ) -> None:
        """`accept` begins to accept on both ports."""
        self._inheritance = inheritance
        self._node = node
        self._pusher = pusher
        self._repeats = repeats
        self._restorer = restorer
        self._accept = accept
        self._peer = PeerProcess(peer_of(inheritance.plug)[0])
        self._channel = Channel(inheritance.plug, inheritance.inbox)
        self._other: OtherProcess | None = None
        self._accepts = False
        self._connections = 0
        self._to_take: deque[Sockets | Switch] = deque()
        self._taking: asyncio.Task[None] | None = None
        self._pushes: set[asyncio.Task[None]] = set()
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._drained = 0

    async def run(self) -> None:
        """Take over; return when this process is the node.

        Raises:
            NotTakenOver: the running gateway goes on; this process has to end, with all of its
                connections.
        """
        self._channel.begin(self, sent=1)
        self._channel.send(Ready())
        try:
            await self._end
        finally:
            self._channel.close()
            self._peer.close()
            if self._other is not None:
                self._other.gone()
            self._pusher.partner = None
            self._node.registrar.elsewhere = frozenset()
        await self._begin_to_accept()

    def advance(self) -> None:
        """Look whether the earlier process is silent; called at every tick of the node's clock."""
        self._channel.silent_ticks += 1
        if self._channel.silent_ticks > _SILENT_TICKS and not self._end.done():
            log.error("the earlier gateway process hangs, and is killed")
            self._peer.kill()
            self.ended("the earlier gateway process hung")

    def received(self, delivered: Delivered) -> None:
        """Take a message of the earlier process."""
        message = delivered.message
        match message:
            case Connections():
                self._adopt(message, delivered.descriptors)
            case Push():
                self._push(message)
            case Alive():
                pass  # any byte ends a silence
            case Pushed() if self._other is not None:
                self._other.pushed(message)
            case Switch():
                self._take_later(message)
            case Ended() if self._other is not None:
                self._forget(message.user)
            case Done():
                self._finish(message)
            case Refusal() if not self._end.done():
                self._end.set_exception(NotTakenOver(message.reason))
            case _:
                raise BrokenChannel(f"{type(message).__name__} was not due")

    def ended(self, reason: str) -> None:
        """The earlier process is gone, or goes on without this one; the path says which."""
        self._channel.close()
        if self._end.done():
            return
        if self._lives_on():
            self._end.set_exception(NotTakenOver(reason))
            return
        log.error("the earlier gateway process has ended in the take-over", reason=reason)
        for user in self._inheritance.welcome.users:
            if user not in self._node.hub:
                self._node.registrar.changed(user)
        if self._other is not None:
            for user in self._other.users:
                self._forget(user)
        self._report(None)
        self._end.set_result(None)

    def _adopt(self, batch: Connections, descriptors: list[int]) -> None:
        """Adopt a batch, or leave the whole of it: where the kernel had no descriptors for it."""
        if len(descriptors) < descriptors_of(batch):
            self._channel.send(NotTaken("no descriptors are left (RLIMIT_NOFILE)"))
            return
        self._connections += len(batch.records)
        self._take_later(self._restorer.restore(batch, descriptors))

    def _take_later(self, taken: Sockets | Switch) -> None:
        """Go on in the order in which messages came; the event loop takes some turns for some."""
        self._to_take.append(taken)
        if self._taking is None:
            self._taking = asyncio.get_running_loop().create_task(self._take())

    async def _take(self) -> None:
        while self._to_take:
            taken = self._to_take.popleft()
            if isinstance(taken, Switch):
                await self._switch(taken)
            else:
                await self._restorer.take(taken)
                self._channel.send(Taken())
        self._taking = None

    async def _switch(self, switch: Switch) -> None:
        """Become the one that clients and processors reach."""
        self._adopt_repeats(switch)
        for user in switch.unwritten:
            self._node.registrar.changed(user)
        self._drained = len(switch.remaining)
        if switch.remaining:
            self._other = OtherProcess(self._channel, self._node.hub, has_rest=False)
            self._other.users.update(switch.remaining)
            self._pusher.partner = self._other
            self._node.registrar.elsewhere = self._other.users
        await self._begin_to_accept()
        self._channel.send(Switched())

    def _adopt_repeats(self, switch: Switch) -> None:
        if switch.hash_check != hash_check():
            log.info("the window of repeats is not taken over: PYTHONHASHSEED differs")
            return
        self._repeats.adopt_generations(_window(switch.young), _window(switch.old))

    async def _begin_to_accept(self) -> None:
        if not self._accepts:
            self._accepts = True
            await self._accept()

    def _push(self, message: Push) -> None:
        self._node.pushed(len(message.body))
        pushing = push_for_partner(self._pusher, self._channel, message)
        task = asyncio.get_running_loop().create_task(pushing)
        self._pushes.add(task)
        task.add_done_callback(self._pushes.discard)

    def _forget(self, user: str) -> None:
        """A user has no connection there any more: the entry is this process's to write."""
        assert self._other is not None  # noqa: S101 - where users remain
        self._other.users.discard(user)
        if user not in self._node.hub:
            self._node.registrar.changed(user)

    def _finish(self, done: Done) -> None:
        self._channel.send(Done())
        self._report(done.longest_pause_seconds)
        if not self._end.done():
            self._end.set_result(None)

    def _report(self, longest_pause_seconds: float | None) -> None:
        seconds = time.monotonic() - self._inheritance.began
        metrics.TAKEN_OVER.set(self._connections - self._restorer.failed)
        metrics.DRAINED_INSTEAD.set(self._drained)
        metrics.TAKEOVER_SECONDS.set(seconds)
        metrics.TAKEOVER_PAUSE_SECONDS.set(longest_pause_seconds or 0.0)
        log.info(
            "taken over from the earlier gateway process",
            connections=self._connections - self._restorer.failed,
            failed=self._restorer.failed,
            drained_users=self._drained,
            seconds=round(seconds, 3),
            longest_pause_seconds=longest_pause_seconds,
        )

    def _lives_on(self) -> bool:
        """Whether the earlier process goes on, and so is the node.

        Its sockets may be closed a moment before its end. Where the process is not known, it is
        alive if it still listens for a next process.
        """
        has_ended = self._peer.ends(within_seconds=_END_SECONDS)
        if has_ended is not None:
            return not has_ended
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_END_SECONDS)
            return probe.connect_ex(self._inheritance.path) == 0


def hash_check() -> int:
    """Return a number that is the same in processes which hash texts alike."""
    return hash("pushgate take-over")


def _window(arrays: tuple[bytes, bytes]) -> Mapping[int, int]:
    hashes, results = array.array("q", arrays[0]), array.array("I", arrays[1])
    return dict(zip(hashes, results, strict=True))
