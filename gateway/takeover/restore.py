"""Records become connections: in the next process, or back in the earlier one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from gateway.connections.connection import TICK_SECONDS, Connection, StreamConnection
from gateway.connections.identity import Identity
from gateway.connections.node import GatewayNode
from gateway.connections.partly_taken import Takers
from gateway.connections.repeats import Repeats
from gateway.http.listener import Listener
from gateway.resume.questions import Questions
from gateway.takeover.channel import has_socket
from gateway.takeover.format import (
    ConnectionRecord,
    Connections,
    Held,
    HttpRecord,
    ParkedRecord,
    PartlyTakenRecord,
    PollRecord,
    SseRecord,
    Stream,
    WebSocketRecord,
)
from gateway.transports.longpoll import PollSessions
from gateway.transports.poll_session import ParkedPoll, PollSession
from gateway.transports.sse import SseConnection
from gateway.transports.websocket import WebSocketConnection
from gateway.wires.choice import Wires

log = structlog.get_logger("gateway.takeover")


@dataclass(frozen=True, slots=True)
class Sockets:
    """Sockets of a batch for the event loop to take, in some turns."""

    http: list[tuple[HttpRecord, int]] = field(default_factory=list)
    parked: list[tuple[PollSession, ParkedRecord, int, float]] = field(default_factory=list)


class Restorer:
    """Makes connections of records, and has the node hold them."""

    def __init__(
        self,
        node: GatewayNode,
        *,
        wires: Wires,
        sessions: PollSessions,
        questions: Questions | None,
        repeats: Repeats,
        public: Listener,
    ) -> None:
        """`questions` is None where clients don't resume."""
        self._node = node
        self._wires = wires
        self._sessions = sessions
        self._questions = questions
        self._repeats = repeats
        self._public = public
        #: By number in the take-over; None for a connection after a failure.
        self._by_number: list[Connection | None] = []
        self.failed = 0

    def restore(self, batch: Connections, descriptors: Sequence[int]) -> Sockets:
        """Hold the connections of a batch at once; return the sockets for the event loop."""
        sockets = Sockets()
        unused = iter(descriptors)
        for record in batch.records:
            descriptor = next(unused) if has_socket(record) else None
            if isinstance(record, HttpRecord):
                assert descriptor is not None  # noqa: S101 - an HTTP socket is one
                sockets.http.append((record, descriptor))
            else:
                self._by_number.append(self._restored(record, descriptor, sockets))
        for partly_taken in batch.partly_taken:
            self._remember(partly_taken)
        for user in batch.unwritten:
            self._node.registrar.changed(user)
        return sockets

    async def take(self, sockets: Sockets) -> None:
        """Have the event loop take sockets of HTTP, and of parked polls."""
        for session, record, descriptor, wait_seconds in sockets.parked:
            try:
                await self._attach(session, record, descriptor, wait_seconds)
            except OSError as error:
                log.warning("a parked poll has ended", connection=session.id, error=str(error))
        for http_record, descriptor in sockets.http:
            try:
                await self._public.adopt(http_record, descriptor)
            except OSError as error:
                log.warning("a socket between two requests has ended", error=str(error))

    def _restored(
        self, record: ConnectionRecord, descriptor: int | None, sockets: Sockets
    ) -> Connection | None:
        """Return the held connection of a record; after a failure the client has to reconnect."""
        assert not isinstance(record, HttpRecord)  # noqa: S101 - `restore`
        try:
            if isinstance(record, PollRecord):
                return self._session(record, descriptor, sockets)
            assert descriptor is not None  # noqa: S101 - a stream has a socket
            return self._stream(record, descriptor)
        except Exception:  # any fault: further connections go on
            log.exception("a connection could not be taken over", user=record.held.user)
            self.failed += 1
            self._node.registrar.changed(record.held.user)
            if descriptor is not None:
                os.close(descriptor)
            return None

    def _stream(self, record: WebSocketRecord | SseRecord, descriptor: int) -> Connection:
        connection: StreamConnection
        if isinstance(record, WebSocketRecord):
            identity = _identity(record.held)
            connection = WebSocketConnection.from_record(record, identity, self._node)
        else:
            connection = SseConnection(_identity(record.held), self._node)
        wire = self._wires.adopt(descriptor, connection)
        connection.attach(wire)
        self._hold(connection, record.held, record.stream)
        wire.go_on(record.stream.unsent)
        return connection

    def _session(self, record: PollRecord, descriptor: int | None, sockets: Sockets) -> PollSession:
        session = self._sessions.adopt(record, _identity(record.held), self._node)
        self._hold(session, record.held, Stream())
        if record.parked is not None and descriptor is not None:
            wait_seconds = (record.held.wake_ticks or 0) * TICK_SECONDS
            session.await_next_poll()  # until the request is attached
            sockets.parked.append((session, record.parked, descriptor, wait_seconds))
        return session

    def _hold(self, connection: Connection, held: Held, stream: Stream) -> None:
        self._node.adopt(connection, held, stream.stalled)
        if held.screen is not None and self._questions is not None:
            self._questions.adopt(connection, held.screen)

    async def _attach(
        self, session: PollSession, record: ParkedRecord, descriptor: int, wait_seconds: float
    ) -> None:
        """Have a parked poll wait on for a message of its session."""
        lent = await self._public.adopt_lent(HttpRecord(record.client), descriptor)
        parked = ParkedPoll.adopt(session, record)
        wire = self._wires.lend(lent.transport, parked, answer_bytes=session.most_answer_bytes)
        if session.takes_messages:
            parked.attach_again(wire, lent.resume, wait_seconds=max(0.0, wait_seconds))
        else:  # ended meanwhile: the client polls again
            wire.abort()

    def _remember(self, record: PartlyTakenRecord) -> None:
        takers: Takers = frozenset(self._of_numbers(record.takers))
        self._repeats.adopt_partly_taken(
            (record.user, record.id, record.device, record.scope), takers
        )

    def _of_numbers(self, numbers: Sequence[int]) -> Iterator[Connection]:
        for number in numbers:
            connection = self._by_number[number] if number < len(self._by_number) else None
            if connection is not None:
                yield connection


def _identity(held: Held) -> Identity:
    """Return the identity of a connection; the expiry is among the ticks of the record."""
    return Identity(held.user, held.device, _NEVER_READ)


_NEVER_READ: Final = 0
