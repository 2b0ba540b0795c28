"""One connection of each kind: captured in one process, restored in the next."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import pytest

from gateway.connections.admission import Admission, Limits
from gateway.connections.as_of import AsOf
from gateway.connections.closes import GOING_AWAY
from gateway.connections.connection import (
    NEVER,
    NO_CURSOR,
    Captured,
    Connection,
    State,
    StreamConnection,
)
from gateway.connections.cursor import Cursor
from gateway.connections.gate import Gate, Replayed
from gateway.connections.hub import Hub
from gateway.connections.memory import MemoryMark
from gateway.connections.node import GatewayNode, Lifetime
from gateway.connections.registrar import Registrar
from gateway.connections.repeats import Repeats
from gateway.http.detach import Lent
from gateway.resume.questions import Questions
from gateway.takeover.format import (
    Connections,
    HttpRecord,
    PartlyTakenRecord,
    PollRecord,
    WebSocketRecord,
    decode,
    encode,
)
from gateway.takeover.restore import Restorer
from gateway.transports.longpoll import PollSessions
from gateway.transports.poll_cursor import read_poll_cursor
from gateway.transports.poll_session import ParkedPoll, PollSession
from gateway.transports.sse import SseConnection
from gateway.transports.websocket import PLAIN, V1, WebSocketConnection
from gateway.wires.choice import Wires
from registry.directory import TIMINGS
from tests.support.clients import BINARY, TEXT, eventually, frame
from tests.unit.gateway.fakes import (
    BOUNDS,
    NODE,
    FakeMemory,
    FakeRegistry,
    FakeResume,
    FakeWire,
    identity,
    message,
)

pytestmark = pytest.mark.anyio

LIMIT: Final = 1_000_000
WALL: Final = 1_900_000_000.0


class Public:
    """The public port of a process (gateway/http/listener.py), as far as a take-over asks it."""

    def __init__(self) -> None:
        self.http: list[HttpRecord] = []
        self.resume = FakeResume()

    async def adopt(self, record: HttpRecord, descriptor: int) -> None:
        self.http.append(record)
        os.close(descriptor)

    async def adopt_lent(self, record: HttpRecord, descriptor: int) -> Lent:
        self.resume.client = record.client
        transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
            asyncio.Protocol, socket.socket(fileno=descriptor)
        )
        return Lent(transport, True, self.resume)


class Process:
    """A node of one process, with its wires and poll sessions."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.hub = Hub()
        self.node = GatewayNode(
            NODE,
            self.hub,
            Registrar(FakeRegistry(), NODE, self.hub, timings=TIMINGS),
            Admission(Limits(100, 10, 0, 0), MemoryMark(0, FakeMemory())),
            as_of=AsOf(),
            bounds=replace(BOUNDS, inbound_bytes=100_000),
            lifetime=Lifetime(1_000.0, 0.0, 5.0),
            identify=identity,
            clock=lambda: self.now,
            wall_clock=lambda: WALL,
        )
        self.node.registrar.ready.set()
        self.wires = Wires("epoll", loop=asyncio.get_running_loop(), send_buffer_bytes=LIMIT)
        self.sessions = PollSessions()
        self.repeats = Repeats(100, unscreened=self.hub.unscreened)
        self.questions = Questions(self.node, resume_seconds=120.0)
        self.public = Public()
        self.restorer = Restorer(
            self.node,
            wires=self.wires,
            sessions=self.sessions,
            questions=self.questions,
            repeats=self.repeats,
            public=cast("Any", self.public),
        )

    def hold(self, connection: StreamConnection, plug: socket.socket) -> None:
        """Hold a connection over a socket, open."""
        wire = self.wires.adopt(plug.detach(), connection)
        connection.attach(wire)
        self.node.hold(connection, expires_at=int(WALL) + 500, address="192.0.2.7")
        connection.open(b"")

    def session(self, user: str = "alice") -> PollSession:
        session = self.sessions.open(identity(user), self.node)
        self.node.hold(session, expires_at=int(WALL) + 500, address="192.0.2.7")
        session.begin(gap=False)
        return session

    async def restore(self, captured: Captured, **batch: Any) -> Connection:
        """Restore what another process has captured, as its frames bring it."""
        descriptors = [] if captured.descriptor is None else [captured.descriptor]
        arrived = decode(encode(Connections([captured.record], **batch)))
        assert isinstance(arrived, Connections)
        await self.restorer.take(self.restorer.restore(arrived, descriptors))
        (connection,) = self.hub.connections()
        return connection


@dataclass
class Pair:
    """The earlier process and the next, whose clocks differ, and a client's socket."""

    earlier: Process
    later: Process
    client: socket.socket
    server: socket.socket

    async def read(self, count: int) -> bytes:
        """Read what the client has got."""
        loop = asyncio.get_running_loop()
        got = b""
        async with asyncio.timeout(5.0):
            while len(got) < count:
                got += (part := await loop.sock_recv(self.client, count - len(got)))
                assert part, f"the end came behind {got!r}"
        return got

    async def say(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.client, data)


@asynccontextmanager
async def two_processes() -> AsyncIterator[Pair]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        server, _ = listening.accept()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    for plug in (client, server):
        plug.setblocking(False)
    pair = Pair(Process(1_000.0), Process(5_000_000.0), client, server)
    yield pair
    for process in (pair.earlier, pair.later):
        for connection in process.hub.connections():
            connection.abort("the test ends")
        process.questions.close()
    await asyncio.sleep(0)
    for process in (pair.earlier, pair.later):
        process.wires.close()
    client.close()
    server.close()


def ticks(process: Process, tick: int) -> int:
    """Return how many ticks are left until a tick of a process's clock."""
    return tick - int(process.now * 4)


@pytest.mark.parametrize("kind", ["plain", "v1", "sse"])
async def test_a_held_socket_goes_on_in_the_next_process(kind: str) -> None:
    async with two_processes() as pair:
        node = pair.earlier.node
        connection: StreamConnection
        if kind == "sse":
            connection = SseConnection(identity("alice", "phone"), node)
        else:
            subprotocol = V1 if kind == "v1" else PLAIN
            connection = WebSocketConnection(
                identity("alice", "phone"), node, subprotocol=subprotocol
            )
        pair.earlier.hold(connection, pair.server)
        big = [message("x" * (20_000 + number), f"m-{number}") for number in range(3)]
        expected = b""
        for delivery in big:
            assert connection.write(delivery.encoded(connection.form))
            expected += delivery.encoded(connection.form)
        connection.write_control(b"control")
        waits = connection.next_tick() - int(pair.earlier.now * 4)
        captured = node.capture(connection)
        assert connection.state is State.CLOSED
        assert connection.wire is None
        assert "alice" not in pair.earlier.hub
        assert node.admission.held == 0
        assert len(node.slowness) == 0

        restored = await pair.later.restore(captured)
        assert isinstance(restored, StreamConnection)
        assert type(restored) is type(connection)
        assert (restored.user, restored.device) == ("alice", "phone")
        assert restored.form is connection.form
        assert restored.state is State.OPEN
        assert restored.held_since_ms == connection.held_since_ms
        assert (restored.cursor is NO_CURSOR) == (kind == "plain")
        assert restored.next_tick() - int(pair.later.now * 4) == waits
        assert ticks(pair.later, restored.expiry_tick) == 2_000
        assert ticks(pair.later, restored.age_tick) == 4_000
        assert pair.later.node.admission.held == 1
        assert len(pair.later.node.slowness) == 1
        assert restored.has_backlog()
        last = message("last", "m-9").encoded(restored.form)
        assert restored.write(last)
        expected += b"control" + last
        assert await pair.read(len(expected)) == expected
        await eventually(lambda: not restored.has_backlog(), "all is sent")


async def test_a_client_that_parts_goes_on_parting() -> None:
    async with two_processes() as pair:
        connection = WebSocketConnection(identity(), pair.earlier.node, subprotocol=V1)
        pair.earlier.hold(connection, pair.server)
        connection.part(GOING_AWAY, 3.0)
        restored = await pair.later.restore(pair.earlier.node.capture(connection))
        assert restored.state is State.PARTING
        assert ticks(pair.later, restored.age_tick) == 28  # 3 s, and 4 s of grace
        again = WebSocketConnection(identity(), pair.later.node, subprotocol=V1)
        pair.later.node.hold(again, expires_at=int(WALL) + 500, address="192.0.2.7")
        record = pair.later.node.capture(restored).record
        assert isinstance(record, WebSocketRecord)
        assert record.held.replaced is True


@pytest.mark.parametrize("cut", [1, 2, 5, 6, 7, 20, 68, 75, 79])
async def test_a_message_that_has_arrived_in_part_is_whole_there(cut: int) -> None:
    refresh = b'{"control": "refresh", "token": "alice"}'
    half = len(refresh) // 2
    sent = frame(TEXT, refresh[:half], fin=False) + frame(0, refresh[half:])
    async with two_processes() as pair:
        connection = WebSocketConnection(identity(), pair.earlier.node, subprotocol=V1)
        pair.earlier.hold(connection, pair.server)
        connection.received(frame(BINARY, b"whole") + sent[:cut])
        captured = pair.earlier.node.capture(connection)
        assert isinstance(captured.record, WebSocketRecord)
        restored = await pair.later.restore(captured)
        assert isinstance(restored, WebSocketConnection)
        await pair.say(sent[cut:])
        got = await pair.read(14)
        assert got[2:] == b'{"control":"'[:12]
        assert b"refreshed" in got + await pair.read(10)


async def test_a_session_between_two_polls_has_what_is_not_acknowledged() -> None:
    async with two_processes() as pair:
        session = pair.earlier.session()
        session.poll()
        for number in range(2):
            assert session.write(message(str(number), f"m-{number}").encoded(session.form))
        answer = session.poll()
        assert answer is not None
        session.tell_gap()
        session.await_next_poll()
        captured = pair.earlier.node.capture(session)
        assert captured.descriptor is None
        pair.later.sessions.go_on(pair.earlier.sessions.names, generation=1)
        restored = await pair.later.restore(captured)
        assert isinstance(restored, PollSession)
        assert restored.name == session.name
        assert ticks(pair.later, restored.wake_tick) == BOUNDS.poll_grace_seconds * 4
        cursor = read_poll_cursor(answer.partition(b'"cursor": "')[2].partition(b'"')[0].decode())
        assert cursor is not None
        assert pair.later.sessions.take_up(cursor, identity()) is restored
        again = restored.poll(cursor)  # acknowledges both
        assert again is not None
        assert b'"messages": [], "gap": true' in again
        later = pair.later.sessions.open(identity("bob"), pair.later.node)
        assert later.name not in (restored.name, session.name)


async def test_a_poll_that_waits_is_answered_by_the_next_process() -> None:
    async with two_processes() as pair:
        session = pair.earlier.session()
        assert session.poll() is None
        parked = ParkedPoll(session, cors_lines=b"vary: origin\r\n", wait_seconds=25.0)
        wire = FakeWire()
        wire.descriptor = pair.server.detach()
        parked.attach(wire, FakeResume(), last=False)
        pair.earlier.now += 5.0
        captured = pair.earlier.node.capture(session)
        assert isinstance(captured.record, PollRecord)
        restored = await pair.later.restore(captured)
        assert isinstance(restored, PollSession)
        assert ticks(pair.later, restored.wake_tick) == 80
        assert pair.later.public.resume.client == FakeResume.client
        restored.write(message("hello").encoded(restored.form))
        assert await pair.read(15) == b"HTTP/1.1 200 OK"
        assert b"vary: origin" in await pair.read(100)
        assert b'"data":"hello"' in await asyncio.get_running_loop().sock_recv(pair.client, 1_000)
        assert pair.later.public.resume.early == b""


async def test_a_gate_goes_along_with_the_messages_that_wait() -> None:
    async with two_processes() as pair:
        connection = SseConnection(identity(), pair.earlier.node)
        connection.screen = Gate(Cursor(1_000, {("t", 0): 5}), most_bytes=1_000)
        pair.earlier.hold(connection, pair.server)
        delivery = message("waits", "m-7")
        delivery.position = "t-0-7"
        connection.screen.meet(delivery)
        restored = await pair.later.restore(pair.earlier.node.capture(connection))
        gate = restored.screen
        assert isinstance(gate, Gate)
        assert (gate.as_of_ms, gate.positions, gate.waiting) == (1_000, {("t", 0): 5}, 1)
        assert gate.answer(("t", 0), (), 8, whole=True)
        written = gate.next_to_write()
        assert written is not None
        assert (written.id, written.payload) == ("m-7", b"waits")
        assert pair.later.hub.screened == {"alice": 1}


async def test_the_screen_of_a_client_that_has_resumed_goes_along() -> None:
    async with two_processes() as pair:
        connection = SseConnection(identity(), pair.earlier.node)
        connection.screen = Replayed({("t", 0): 9}, {("t", 1): 4})
        pair.earlier.hold(connection, pair.server)
        restored = await pair.later.restore(pair.earlier.node.capture(connection))
        assert isinstance(restored.screen, Replayed)
        assert restored.screen.record() == connection_screen_record()


def connection_screen_record() -> object:
    return Replayed({("t", 0): 9}, {("t", 1): 4}).record()


async def test_takers_of_a_message_and_unwritten_users_go_along() -> None:
    async with two_processes() as pair:
        connection = SseConnection(identity(), pair.earlier.node)
        pair.earlier.hold(connection, pair.server)
        restored = await pair.later.restore(
            pair.earlier.node.capture(connection),
            unwritten=["alice"],
            partly_taken=[PartlyTakenRecord("alice", "m-1", None, "orders", [0])],
        )
        assert pair.later.repeats.takers(("alice", "m-1", None, "orders")) == {restored}
        assert pair.later.node.registrar.unwritten() == ["alice"]


async def test_a_connection_that_can_not_be_restored_is_closed_and_its_user_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with two_processes() as pair:
        connection = SseConnection(identity(), pair.earlier.node)
        pair.earlier.hold(connection, pair.server)
        captured = pair.earlier.node.capture(connection)

        def fail(*_: object) -> None:
            raise OSError("no watch is left")

        monkeypatch.setattr(pair.later.wires, "adopt", fail)
        assert captured.descriptor is not None
        pair.later.restorer.restore(Connections([captured.record]), [captured.descriptor])
        assert pair.later.restorer.failed == 1
        assert pair.later.node.registrar.unwritten() == ["alice"]
        assert await asyncio.get_running_loop().sock_recv(pair.client, 1) == b""


async def test_a_socket_between_two_requests_is_the_listeners() -> None:
    async with two_processes() as pair:
        record = HttpRecord(("192.0.2.7", 4_711), True)
        sockets = pair.later.restorer.restore(Connections([record]), [pair.server.detach()])
        await pair.later.restorer.take(sockets)
        assert pair.later.public.http == [record]


def test_a_tick_that_never_comes_stays_away() -> None:
    connection = SseConnection(identity(), cast("Any", None))
    connection.adopt(connection.record(100), 7)
    assert (connection.wake_tick, connection.age_tick, connection.expiry_tick) == (NEVER,) * 3
