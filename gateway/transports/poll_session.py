"""A poll session: the connection of a long-poll client, which outlives the client's requests.

A poll is one request. It is answered at once with the messages in the session's buffer. Where the
buffer is empty the request is parked: its socket leaves HTTP, and a wire (gateway/wires) holds the
socket until a message arrives or the wait is over. Then the socket goes back to HTTP for the
client's next request. Between two polls the session goes on buffering for a grace period.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import ClassVar, Final, Protocol

from gateway import metrics
from gateway.connections.closes import BY_REASON, Close
from gateway.connections.connection import (
    NEVER,
    NO_CURSOR,
    Captured,
    Connection,
    Keeper,
    State,
)
from gateway.connections.cursor import (
    MOST_AHEAD_MS,
    Partition,
    base36,
    later,
    read_cursor,
    with_positions,
)
from gateway.connections.gate import Gate
from gateway.connections.identity import Identity
from gateway.http.detach import Resume
from gateway.http.responses import CLOSE_LINE, start_head, with_body
from gateway.takeover.format import Held, ParkedRecord, PollRecord, Stream
from gateway.transports.poll_buffer import GAP, PollBuffer, json_of, poll_form
from gateway.transports.poll_cursor import MAX_POLL_CURSOR_BYTES, PollCursor
from gateway.wires import Wire

#: How long a poll waits for missed messages at least, also a poll with a shorter `wait`: a client
#: that polls each time on another node would never get any.
RESUME_WAIT_SECONDS: Final = 2.0
#: How long a session with a full buffer waits for its client's next poll. The client has left for
#: another node, perhaps, and further messages of its user wait meanwhile.
_FULL_GRACE_SECONDS: Final = 1.0
#: Bytes that a client may send behind a parked poll; a client that sends more is cut off.
_MAX_EARLY_BYTES: Final = 16_384

_HEAD: Final = start_head(200, {"content-type": "application/json", "cache-control": "no-store"})


class Waiting(enum.Enum):
    """Whether a request of the session's client waits for its answer."""

    NONE = "no request waits; the session ends when its grace does"
    PARKED = "a request waits for a message"
    DUE = "a request waits and a message has come; the request is answered in the loop's next turn"


class ParkedPoll:
    """A request that waits for a message, and holds the lent wire of its socket meanwhile."""

    __slots__ = ("_cors_lines", "_early", "_last", "_resume", "_session", "_wait_seconds", "_wire")

    def __init__(self, session: PollSession, *, cors_lines: bytes, wait_seconds: float) -> None:
        self._session = session
        self._cors_lines = cors_lines
        self._wait_seconds = wait_seconds
        self._resume: Resume | None = None
        self._wire: Wire | None = None
        self._early = b""
        self._last = False

    @property
    def id(self) -> str:
        """The session's name in listings and in the log."""
        return self._session.id

    @property
    def most_answer_bytes(self) -> int:
        """An upper bound of the answer's length, in bytes; see PollSession."""
        return self._session.most_answer_bytes

    @property
    def is_short(self) -> bool:
        """Whether the request waits for missed messages alone: a short poll."""
        return self._wait_seconds == 0

    def attach(self, wire: Wire, resume: Resume, *, last: bool) -> None:
        """Take the socket and wait for a message.

        Called in the turn of the event loop in which the session had no message: no message and no
        other poll can come in between. `resume` gives the socket back to HTTP after the answer.
        `last` says that the client wants no further request on this connection. Then, and when the
        session has reached its maximum age, the answer is the last on its HTTP connection.
        """
        self._wire = wire
        self._resume = resume
        self._last = self._session.take_move() or last
        wire.listen()
        least_seconds = RESUME_WAIT_SECONDS if self._session.is_resuming else 0.0
        self._session.park(self, wait_seconds=max(self._wait_seconds, least_seconds))

    def vanished(self) -> None:
        """Take note that the client had disconnected before the socket could be taken."""
        self._session.await_next_poll()

    @property
    def can_be_captured(self) -> bool:
        """Whether the request's socket can go to the next process."""
        return self._wire is not None and self._wire.can_be_captured

    def capture(self) -> tuple[ParkedRecord, int]:
        """Give the request to the next process; return its record and its socket's descriptor.

        Raises:
            OSError: no descriptor is left; the request is unchanged.
        """
        wire, resume = self._wire, self._resume
        assert wire is not None and resume is not None  # noqa: S101, PT018 - `can_be_captured`
        descriptor, _ = wire.capture()
        self._wire = self._resume = None
        record = ParkedRecord(
            self._wait_seconds, self._cors_lines, self._last, self._early, resume.client
        )
        return record, descriptor

    @classmethod
    def adopt(cls, session: PollSession, record: ParkedRecord) -> ParkedPoll:
        """Return a request that the earlier process has parked, without its socket."""
        parked = cls(session, cors_lines=record.cors_lines, wait_seconds=record.wait_seconds)
        parked._early, parked._last = record.early, record.last
        return parked

    def attach_again(self, wire: Wire, resume: Resume, *, wait_seconds: float) -> None:
        """Take the socket of a request that the earlier process has parked."""
        self._wire, self._resume = wire, resume
        wire.listen()
        self._session.park(self, wait_seconds=wait_seconds)
        self._session.answer_soon()

    def answer(self, body: bytes, *, last: bool = False) -> None:
        """Send the answer, then give the socket back to HTTP.

        The bytes that arrived behind the request go back to HTTP with the socket. `last` ends the
        HTTP connection in any case.
        """
        wire, self._wire = self._wire, None
        resume, self._resume = self._resume, None
        if wire is None or resume is None:
            return
        last = last or self._last
        head = b"".join((_HEAD, self._cors_lines, CLOSE_LINE if last else b""))
        if wire.write(with_body(head, body)):
            resume(self._early, last=last, unheard=self.unheard)
        else:
            wire.abort()

    def abort(self) -> None:
        """Close the socket of the request without an answer."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.abort()

    def backlogged(self) -> None:
        """Leave a client that does not read its answer to the kernel (TCP_USER_TIMEOUT)."""

    def received(self, data: bytes) -> None:
        """Keep the bytes of pipelined requests for later; cut off a client that sends too many."""
        self._early += data
        if len(self._early) > _MAX_EARLY_BYTES:
            self._session.unpark(self)
            self.abort()

    def unheard(self) -> None:
        """Take note that the client has vanished, before the answer or with the answer unread."""
        self._session.unheard(self)

    def lost(self, unsent: int = 0) -> None:  # noqa: ARG002
        """Take note that the client has disconnected; the session waits for the next poll."""
        self._wire = None
        self._session.unpark(self)


class PollSession(Connection):
    """The connection of a long-poll client: a bounded buffer that stays between polls.

    Every answer carries a cursor (poll_cursor.py). The client puts the cursor of its last answer
    into the next poll, and so acknowledges the answer. A message stays in the buffer until a cursor
    acknowledges the message.

    On its own node a client polls with the count of the last answer, or repeats a poll whose answer
    was lost with the count before, and gets the same messages again. A client that comes from
    another node gets what its resume cursor lacks.
    """

    __slots__ = (
        "_as_of",
        "_buffer",
        "_ended_wait",
        "_is_full",
        "_moves",
        "_number",
        "_parked",
        "_positions_at",
        "_sessions",
        "_since",
        "_waiting",
        "key",
    )
    transport: ClassVar[str] = "poll"
    form = staticmethod(poll_form)

    def __init__(
        self,
        identity: Identity,
        keeper: Keeper,
        sessions: Sessions,
        came_with: PollCursor | None,
        *,
        key: str,
        number: int,
    ) -> None:
        """`came_with` is the cursor of a client that has been at other nodes.

        `key` and `number` are of no other session of the node.
        """
        super().__init__(identity, keeper)
        self.key = key
        self._number = number
        self.cursor = NO_CURSOR
        self.state = State.OPEN  # there is no handshake to wait for
        self._sessions = sessions
        resume = read_cursor(came_with.resume) if came_with else None
        self._buffer = PollBuffer(resume.positions if resume else None)
        #: The time in the cursor of the last answer, and the time that the buffer goes back to:
        #: whoever has everything until then finds everything later in the buffer.
        self._as_of = self._since = ""
        self._positions_at = ""  # the time of the last acknowledgement of a message
        self._waiting = Waiting.NONE
        self._parked: ParkedPoll | None = None  # the waiting request; None in Waiting.NONE
        # The last request, if its wait has ended without a message and no other poll has come.
        self._ended_wait: ParkedPoll | None = None
        # Set at the maximum age. The next poll's answer is then the last on its HTTP connection, so
        # that the client's next connection may reach another node.
        self._moves = False
        self._is_full = False  # a message had no room since the last poll

    def begin(self, *, gap: bool) -> None:
        """Begin, behind a gate where the client resumes; `gap` tells of missed messages."""
        self._as_of = self._since = self._time()
        if gap:
            self._buffer.forget_all()
            self.tell_gap()

    def write(self, data: bytes) -> bool:
        """Buffer one message; a parked poll is answered in the event loop's next turn.

        Returns False for a message that does not fit the buffer: the processor sends the message
        again when there is room, so no gap is told. An empty buffer takes a message of any length.
        """
        buffer = self._buffer
        if buffer.is_old(data):
            return True
        if buffer.size and buffer.size + len(data) > self._keeper.bounds.poll_buffer_bytes:
            self._become_full()
            return False
        buffer.add(data)
        self.answer_soon()
        return True

    def answer_soon(self) -> None:
        """PARKED → DUE, if there is a message: answer the parked poll in the loop's next turn.

        Later, so that the answer has all messages of the batch that is being delivered.
        """
        if self._waiting is Waiting.PARKED and self._buffer:
            self._waiting = Waiting.DUE
            self._sessions.soon(self._answer_due)

    @property
    def can_be_captured(self) -> bool:
        """Whether no answer is due, and the socket of a parked poll can go to the next process."""
        if self.state is State.CLOSED or self._waiting is Waiting.DUE:
            return False
        return self._parked is None or self._parked.can_be_captured

    @property
    def is_in_between(self) -> bool:
        """Whether an answer is due."""
        return self._waiting is Waiting.DUE

    def capture(self, held: Held, stream: Stream) -> Captured:  # noqa: ARG002
        """OPEN, PARTING → CLOSED: give the session to the next process, and a parked poll with it.

        Raises:
            OSError: no descriptor is left; the session is unchanged.
        """
        parked, descriptor = None, None
        if self._parked is not None:
            parked, descriptor = self._parked.capture()
        record = PollRecord(
            held,
            self.key,
            self._number,
            as_of=self._as_of,
            since=self._since,
            positions_at=self._positions_at,
            moves=self._moves,
            is_full=self._is_full,
            parked=parked,
        )
        record = self._buffer.fill(record)
        self.state = State.CLOSED
        self.wake_tick = self.age_tick = self.expiry_tick = NEVER
        self._parked, self._waiting = None, Waiting.NONE
        self._buffer = PollBuffer()
        self._sessions.forget(self)
        return Captured(record, descriptor)

    @classmethod
    def from_record(
        cls, record: PollRecord, identity: Identity, keeper: Keeper, sessions: Sessions
    ) -> PollSession:
        """Return a session that the earlier process has captured, without a parked poll."""
        session = cls(identity, keeper, sessions, None, key=record.key, number=record.number)
        session._buffer = PollBuffer.adopt(record)
        session._as_of, session._since = record.as_of, record.since
        session._positions_at = record.positions_at
        session._moves, session._is_full = record.moves, record.is_full
        return session

    def tell_gap(self) -> None:
        """Put a gap into the buffer, for the next answer."""
        metrics.GAPS.inc()
        self._buffer.add_gap()

    def has_backlog(self) -> bool:
        """Whether messages wait for the client's next poll."""
        return self._waiting is Waiting.NONE and bool(self._buffer)

    def takes_replay(self) -> bool:
        """Say yes: `write` refuses what the buffer has no room for."""
        return True

    def resumed(self) -> None:
        """Answer a short poll, which has waited for missed messages and got none."""
        if self._parked is not None and self._parked.is_short and not self._buffer:
            self._answer_parked(self.empty_answer())

    def forget_position(self, partition: Partition) -> None:
        """Forget the client's position in a topic made anew."""
        self._buffer.forget(partition)

    @property
    def most_answer_bytes(self) -> int:
        """An upper bound of an answer's length, in bytes, for the limit of the lent wire.

        Twice a full buffer: the second half is for the head and the separators.
        """
        return 2 * self._keeper.bounds.poll_buffer_bytes + MAX_POLL_CURSOR_BYTES

    @property
    def name(self) -> str:
        """The session's name in cursors: put together when asked for, since sessions are many."""
        return f"{self._sessions.names}{self._number:x}"

    @property
    def is_resuming(self) -> bool:
        """Whether missed messages are still asked for."""
        return isinstance(self.screen, Gate)

    def belongs_to(self, identity: Identity) -> bool:
        """Whether `identity` has the user and device for which the session was opened."""
        return (self.user, self.device) == (identity.user, identity.device)

    def continues(self, cursor: PollCursor) -> bool:
        """Whether the session has everything that a client with this cursor lacks."""
        if self._is_own(cursor):
            return True
        resume = read_cursor(cursor.resume)
        if resume is None or not self._since:
            return False
        if resume.as_of_ms > int(self._time(), 36) + MOST_AHEAD_MS:
            return False
        as_of = base36(resume.as_of_ms)
        return later(as_of, self._since) == as_of and self._buffer.has_all_after(resume.positions)

    def poll(self, cursor: PollCursor | None = None) -> bytes | None:
        """Acknowledge what the client has; return an answer, or None where no message waits.

        `cursor` is one that the session `continues`; None for the poll that opens the session.
        """
        self._ended_wait = None
        self._is_full = False
        # One request waits at a time: a second poll ends the first with an empty answer.
        self._answer_parked(self.empty_answer())
        if cursor is not None and not self._is_own(cursor):
            self._rebase(cursor)
        elif cursor is not None and not self._buffer.is_last_answer(cursor.count):
            return self._body(self._buffer.last_answer())  # the same cursor, the same answer
        elif self._buffer.acknowledge():
            self._positions_at = self._as_of
        return self._all_buffered()

    def empty_answer(self) -> bytes:
        """Return the answer to a poll for which no message came."""
        return self._body(())

    def park(self, parked: ParkedPoll, *, wait_seconds: float) -> None:
        """NONE → PARKED: let a request wait for a message, `wait_seconds` at most."""
        self._waiting, self._parked = Waiting.PARKED, parked
        self._keeper.wake_at(self, wait_seconds)

    def unpark(self, parked: ParkedPoll) -> None:
        """PARKED, DUE → NONE: the waiting request is gone; the session waits for the next poll.

        A late call, by a request that no longer waits, changes nothing.
        """
        if self._parked is parked:
            self._waiting, self._parked = Waiting.NONE, None
            self.await_next_poll()

    def unheard(self, parked: ParkedPoll) -> None:
        """PARKED, DUE → NONE: the client has vanished; the rest of its grace is shorter.

        The kernel has heard nothing of the client for a while, as `Bounds.poll_vanished_seconds`
        allows for. Where the wait has ended meanwhile, the kernel notices later, by the answer.
        After an answer with messages the client has the whole grace to repeat its poll.
        """
        bounds = self._keeper.bounds
        if self._parked is parked:
            self._waiting, self._parked = Waiting.NONE, None
            self._keeper.wake_at(self, bounds.poll_vanished_seconds)
        elif self._ended_wait is parked:
            rest = bounds.poll_vanished_seconds - bounds.heartbeat_timeout_seconds
            self._keeper.wake_at(self, max(0.0, rest))

    def await_next_poll(self) -> None:
        """Begin the grace period: the session ends after it unless another poll comes.

        The session has one alarm (`wake_at`), which each call sets anew.
        """
        self._keeper.wake_at(self, self._keeper.bounds.poll_grace_seconds)

    def wake(self) -> None:
        """End the wait of a parked poll, or end a session whose client has stopped polling."""
        if self._waiting is Waiting.NONE:
            self._end("expired")
        else:
            self._ended_wait = self._parked
            self._answer_parked(self.empty_answer())  # in DUE too: the next poll gets the message

    def close(self, close: Close) -> None:
        """Answer a parked poll at once, with all messages in the buffer, and end the session."""
        if self._parked is not None:
            self._answer_parked(self._all_buffered() or self.empty_answer(), last=True)
        self._end(close.reason)

    def abort(self, reason: str) -> None:
        """End the session without an answer; a parked poll's socket is closed."""
        parked, self._parked = self._parked, None
        self._waiting = Waiting.NONE
        self._end(reason)
        if parked is not None:
            parked.abort()

    def part(self, close: Close, delay_seconds: float) -> None:  # noqa: ARG002
        """Answer a parked poll at once and end the session: the next poll is the reconnect.

        OPEN → PARTING where no poll waits: the answer to the next poll is the last. Until then the
        session takes messages, since its client comes back here, on the same HTTP connection.
        No delay: the node parts from its clients one after the other (drain.py), spread over time.
        """
        if self._waiting is Waiting.NONE and self.state is State.OPEN:
            self._begin_parting(close)
        else:
            self.close(close)

    def take_goodbye(self) -> bool:
        """PARTING → CLOSED, if the present poll's answer has all messages; return whether it has.

        Where a client repeats a poll, its next one is answered too.
        """
        leaves = self.state is State.PARTING and self._buffer.is_answered
        if leaves:
            self.close(BY_REASON[self._reason])
        return leaves

    def aged(self) -> None:
        """Let the next poll's answer close its HTTP connection; the session lives on.

        A poll that waits already keeps its connection: its answer may be far off.
        """
        self._moves = True

    def take_move(self) -> bool:
        """Whether the present poll's answer closes its HTTP connection.

        True for one poll after each maximum age that the session reaches; the next age begins here.
        """
        moves, self._moves = self._moves, False
        if moves:
            self._keeper.age_at(self, None)
        return moves

    def expired(self) -> None:
        """Answer a parked poll at once, since the token has expired: the next needs another one."""
        self._answer_parked(self.empty_answer())

    def replace(self) -> None:
        """Any → CLOSED: a new session of the client takes the place."""
        self._answer_parked(self.empty_answer())
        self._end("replaced")

    def _end(self, reason: str) -> None:
        """Any → CLOSED: drop the session; no cursor finds the session any more."""
        self._ended_wait = None
        if self.state is not State.CLOSED:
            unanswered = self._buffer.unanswered()
            self._keeper.unsent(sum(item is not GAP for item in unanswered), reason)
        self._buffer.clear()  # the session may be held as a taker (partly_taken.py)
        self._sessions.forget(self)
        self._forget(reason)

    def _become_full(self) -> None:
        """Shorten the grace: a client that has left for another node can resume there."""
        resumes = bool(self._since) and not self._buffer.has_unlogged
        if resumes and not self._is_full and self._waiting is Waiting.NONE:
            self._is_full = True
            self._keeper.wake_at(self, _FULL_GRACE_SECONDS)

    def _is_own(self, cursor: PollCursor) -> bool:
        """Whether a cursor is of an answer that the session can still acknowledge or repeat."""
        return cursor.session == self.name and self._buffer.knows(cursor.count)

    def _rebase(self, cursor: PollCursor) -> None:
        """Acknowledge what the client has got from other nodes."""
        resume = read_cursor(cursor.resume)
        if resume is not None:
            self._buffer.rebase(resume.positions)
            self._positions_at = self._as_of = later(self._as_of, base36(resume.as_of_ms))

    def _answer_due(self) -> None:
        if self._waiting is Waiting.DUE and (body := self._all_buffered()):
            self._answer_parked(body)

    def _answer_parked(self, body: bytes, *, last: bool = False) -> None:
        """PARKED, DUE → NONE: answer the waiting request, if a request waits."""
        parked, self._parked = self._parked, None
        self._waiting = Waiting.NONE
        if parked is not None:
            parked.answer(body, last=last)
            self.await_next_poll()

    def _all_buffered(self) -> bytes | None:
        """Answer with everything in the buffer, which then counts as answered; None if empty."""
        return self._body(self._buffer.answer()) if self._buffer else None

    def _body(self, items: Sequence[bytes]) -> bytes:
        """Return the JSON object of an answer with the first items of the buffer."""
        messages = b", ".join(json_of(item) for item in items if item is not GAP)
        gap = b', "gap": true' if GAP in items else b""
        cursor = self._cursor_behind(items).encode()
        return b'{"cursor": "%b", "messages": [%b]%b}' % (cursor, messages, gap)

    def _cursor_behind(self, items: Sequence[bytes]) -> str:
        """Return the cursor of an answer with the first items of the buffer."""
        buffer = self._buffer
        session = f"{self.key}.{self.name}.{buffer.count_behind(items)}"
        if not self._since:  # at the node's start there is no time yet
            self._as_of = self._since = self._time()
        if not self._since:
            return session
        if len(items) == len(buffer):  # otherwise the time would pass what stays in the buffer
            self._as_of = later(self._as_of, self._time())
        if not items:
            self._forget_positions()
        resume = with_positions(self._as_of, (buffer.ahead if items else buffer.positions) or {})
        return f"{session},{resume}"

    def _forget_positions(self) -> None:
        """Forget positions that are older than the window: the time in the cursor says enough."""
        if self._positions_at and not self._buffer:
            age_ms = int(self._as_of, 36) - int(self._positions_at, 36)
            if age_ms >= self._keeper.bounds.resume_seconds * 1_000:
                self._since, self._positions_at = self._positions_at, ""
                self._buffer.forget_all()

    def _time(self) -> str:
        """Return the time of cursors; empty where clients don't resume."""
        return self._keeper.cursor(self).partition(",")[0]


class Sessions(Protocol):
    """The sessions of a node, as one of them sees them."""

    soon: Callable[[Callable[[], None]], object]
    names: str  # what all names of the node's sessions begin with

    def forget(self, session: PollSession) -> None:
        """Drop a session that has ended."""
