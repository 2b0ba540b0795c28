"""Long-poll: a poll session that outlives the client's requests, with a bounded buffer.

A poll is one request. It is answered at once with the messages in the session's buffer. Where the
buffer is empty the request is parked: its socket leaves HTTP, and a wire (gateway/wires) holds the
socket until a message arrives or the wait is over. Then the socket goes back to HTTP for the
client's next request. Between two polls the session goes on buffering for a grace period.
"""

from __future__ import annotations

import asyncio
import enum
import re
import secrets
from collections.abc import Callable
from typing import ClassVar, Final

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.connections.closes import BY_REASON, Close
from gateway.connections.connection import NO_CURSOR, Connection, Keeper, State
from gateway.connections.delivery import json_form
from gateway.connections.identity import Identity
from gateway.entry.entry import Entry
from gateway.http.detach import Resume, exchange_of
from gateway.http.head import Head
from gateway.http.responses import CLOSE_LINE, start_head, with_body
from gateway.wires import Wire

#: How long a poll waits for a message where the request has no `wait`.
POLL_WAIT_SECONDS: Final = 25.0
#: The longest `wait` that counts; a longer `wait` is shortened.
MAX_POLL_WAIT_SECONDS: Final = 60.0
#: Bytes that a client may send behind a parked poll; a client that sends more is cut off.
_MAX_EARLY_BYTES: Final = 16_384
#: Stands at the start of a session's buffer where the client may have missed messages. A gap takes
#: a place in the count of messages, so the client acknowledges a gap like a message. No message is
#: empty: each is a JSON object.
_GAP: Final = b""
_COUNT = re.compile(r"[0-9]{1,18}", re.ASCII)

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
    def most_answer_bytes(self) -> int:
        """An upper bound of the answer's length, in bytes; see PollSession."""
        return self._session.most_answer_bytes

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
        self._session.park(self, wait_seconds=self._wait_seconds)

    def vanished(self) -> None:
        """Take note that the client had disconnected before the socket could be taken."""
        self._session.await_next_poll()

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

    Every answer carries a cursor, `<key>.<count>`: the key names the session, and the count says
    how many messages and gaps the session has sent, up to the end of the answer. The client puts
    the cursor of its last answer into the next poll, and so acknowledges all messages up to the
    count. A message stays in the buffer until a cursor acknowledges the message.

    A poll may come with either of two counts. With `_answered`, the count of the last answer, the
    client acknowledges the last answer and gets newer messages. With `_acknowledged`, the count
    before, the client repeats a poll whose answer was lost, and gets the same messages again.
    """

    __slots__ = (
        "_acknowledged",
        "_answered",
        "_buffer",
        "_bytes",
        "_ended_wait",
        "_moves",
        "_parked",
        "_sessions",
        "_waiting",
        "key",
    )
    transport: ClassVar[str] = "poll"
    form = staticmethod(json_form)

    def __init__(
        self, identity: Identity, keeper: Keeper, sessions: PollSessions, *, gap: bool
    ) -> None:
        super().__init__(identity, keeper)
        self.key = secrets.token_urlsafe(12)
        self.cursor = NO_CURSOR
        self.state = State.OPEN  # there is no handshake to wait for
        self._sessions = sessions
        # Every message and gap that is not acknowledged. A list, since sessions are many and mostly
        # idle: an empty deque takes 760 bytes.
        self._buffer = [_GAP] if gap else []
        self._bytes = 0  # of the messages in the buffer
        self._acknowledged = 0  # messages that the client is known to have
        self._answered = 0  # messages up to the end of the last answer
        self._waiting = Waiting.NONE
        self._parked: ParkedPoll | None = None  # the waiting request; None in Waiting.NONE
        # The last request, if its wait has ended without a message and no other poll has come.
        self._ended_wait: ParkedPoll | None = None
        # Set at the maximum age. The next poll's answer is then the last on its HTTP connection, so
        # that the client's next connection may reach another node, where it gets a new session.
        self._moves = False

    def write(self, data: bytes) -> bool:
        """Buffer one message; a parked poll is answered in the event loop's next turn.

        Returns False for a message that does not fit the buffer: the processor sends the message
        again when there is room, so no gap is told. An empty buffer takes a message of any length.
        """
        if self._bytes and self._bytes + len(data) > self._keeper.bounds.poll_buffer_bytes:
            return False
        self._buffer.append(data)
        self._bytes += len(data)
        if self._waiting is Waiting.PARKED:
            self._waiting = Waiting.DUE
            # Later, so that the answer has all messages of the batch that is being delivered.
            self._sessions.soon(self._answer_due)
        return True

    def tell_gap(self) -> None:
        """Put a gap into the buffer, for the next answer."""
        unanswered = self._buffer[self._answered - self._acknowledged :]
        if _GAP not in unanswered:
            self._buffer.append(_GAP)

    def has_backlog(self) -> bool:
        """Whether messages wait for the client's next poll."""
        return self._waiting is Waiting.NONE and bool(self._buffer)

    @property
    def most_answer_bytes(self) -> int:
        """An upper bound of an answer's length, in bytes, for the limit of the lent wire.

        Twice a full buffer: the second half is for the head, the cursor and the separators.
        """
        return 2 * self._keeper.bounds.poll_buffer_bytes

    def belongs_to(self, identity: Identity) -> bool:
        """Whether `identity` has the user and device for which the session was opened."""
        return (self.user, self.device) == (identity.user, identity.device)

    def knows(self, count: int) -> bool:
        """Whether the session can still answer a cursor with this count: see the class."""
        return count in (self._acknowledged, self._answered)

    def poll(self, count: int) -> bytes | None:
        """Acknowledge messages up to `count`; return an answer, or None where no message waits.

        `count` is a count that the session `knows`.
        """
        self._ended_wait = None
        # One request waits at a time: a second poll ends the first with an empty answer.
        self._answer_parked(self.empty_answer())
        if count != self._answered:
            return self._outstanding()  # the same cursor again gets the same answer again
        self._acknowledge()
        return self._all_buffered()

    def empty_answer(self) -> bytes:
        """Return the answer to a poll for which no message came."""
        return self._body([])

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
            body = self._all_buffered() or self.empty_answer()
            self._answer_parked(body, last=True)
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
        leaves = self.state is State.PARTING and (
            self._answered - self._acknowledged == len(self._buffer)
        )
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

    def _end(self, reason: str) -> None:
        """Any → CLOSED: drop the session; no cursor finds the session any more."""
        self._ended_wait = None
        if self.state is not State.CLOSED:
            unanswered = self._buffer[self._answered - self._acknowledged :]
            self._keeper.unsent(sum(item is not _GAP for item in unanswered), reason)
        self._buffer, self._bytes = [], 0  # the session may be held as a taker (partly_taken.py)
        self._sessions.forget(self.key)
        self._forget(reason)

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

    def _acknowledge(self) -> None:
        """Drop the messages of the last answer from the buffer."""
        count = self._answered - self._acknowledged
        self._bytes -= sum(map(len, self._buffer[:count]))
        del self._buffer[:count]
        self._acknowledged = self._answered

    def _all_buffered(self) -> bytes | None:
        """Answer with everything in the buffer, which then counts as answered; None if empty."""
        if not self._buffer:
            return None
        self._answered = self._acknowledged + len(self._buffer)
        return self._outstanding()

    def _outstanding(self) -> bytes:
        """Return the last answer: all messages that were answered and are not acknowledged."""
        return self._body(self._buffer[: self._answered - self._acknowledged])

    def _body(self, items: list[bytes]) -> bytes:
        """Return the JSON object of an answer with the first messages of the buffer, `items`."""
        cursor = b"%s.%d" % (self.key.encode("ascii"), self._acknowledged + len(items))
        messages = b", ".join(item for item in items if item is not _GAP)
        gap = b', "gap": true' if _GAP in items else b""
        return b'{"cursor": "%s", "messages": [%s]%s}' % (cursor, messages, gap)


class PollSessions:
    """The poll sessions of a node, by the key in the cursors, and the way in of the clients."""

    def __init__(self, *, soon: Callable[[Callable[[], None]], object] | None = None) -> None:
        """`soon` defers a call to the event loop's next turn: call_soon of the running loop."""
        self.soon = soon or asyncio.get_running_loop().call_soon
        self._sessions: dict[str, PollSession] = {}

    async def connect(self, head: Head, entry: Entry) -> ASGIApp:
        """Answer `GET /poll?cursor=C&wait=S`: respond at once, park the request, or refuse.

        Raises:
            HTTPException: the request is refused, or `wait` is no number of seconds.
        """
        cursor = head.query.get("cursor")
        session_is_held = cursor is not None and self.holds(cursor)
        admitted = await entry.admit(head, new=not session_is_held)
        identity = admitted.identity
        wait_seconds = _wait_seconds(head)
        session_and_count = self.find(cursor, identity) if cursor else None
        if session_and_count is None:
            # The cursor named a session of another user, or a count that the session does not know,
            # or the session has ended meanwhile. Then the request needs a new session after all,
            # and is refused where the node, the user or the address has no room (Overloaded).
            if session_is_held:
                entry.check_load(admitted)
            session, count = self.open(identity, entry.node, gap=bool(cursor)), 0
            await entry.register(session, admitted)
        else:
            session, count = session_and_count
            entry.node.renew(session, identity)
        body = session.poll(count)
        if body is None and wait_seconds > 0 and session.state is State.OPEN:
            cors_lines = admitted.cors_lines
            return entry.park(ParkedPoll(session, cors_lines=cors_lines, wait_seconds=wait_seconds))
        headers = {"cache-control": "no-store", **admitted.cors}
        answer = body or session.empty_answer()
        last = session.take_goodbye() or session.take_move()
        if last:
            headers["connection"] = "close"
        response = Response(answer, media_type="application/json", headers=headers)
        if session.state is State.CLOSED:
            return response
        session.await_next_poll()
        return response if last else _Staying(response)

    def open(self, identity: Identity, keeper: Keeper, *, gap: bool) -> PollSession:
        """Open a session; `gap` tells the client that messages may have been missed."""
        session = PollSession(identity, keeper, self, gap=gap)
        self._sessions[session.key] = session
        session.await_next_poll()
        return session

    def holds(self, cursor: str) -> bool:
        """Whether the cursor names a session of this node, of any user."""
        return cursor.rpartition(".")[0] in self._sessions

    def find(self, cursor: str, identity: Identity) -> tuple[PollSession, int] | None:
        """Return the session and the count that a cursor names.

        None where no session has the key, where the session is not for the user and device of
        `identity`, or where the session can't answer the count.
        """
        key, _, count = cursor.rpartition(".")
        session = self._sessions.get(key)
        if session is None or not session.belongs_to(identity):
            return None
        if not (_COUNT.fullmatch(count) and session.knows(int(count))):
            return None
        return session, int(count)

    def forget(self, key: str) -> None:
        """Drop a session that has ended."""
        self._sessions.pop(key, None)


class _Staying:
    """A response whose client has to come back to this node, for its session: also in a drain."""

    def __init__(self, response: Response) -> None:
        self._response = response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, and keep the connection open."""
        exchange_of(scope).stay()
        await self._response(scope, receive, send)


def _wait_seconds(head: Head) -> float:
    """Return the query's `wait` in seconds, within 0 and `MAX_POLL_WAIT_SECONDS`.

    Raises:
        HTTPException: 400, `wait` is no number, or is negative.
    """
    text = head.query.get("wait")
    if text is None:
        return POLL_WAIT_SECONDS
    try:
        wait_seconds = float(text)
    except ValueError as error:
        raise HTTPException(400, f"wait is a number of seconds: {text[:20]!r}") from error
    if not wait_seconds >= 0:  # also false for NaN
        raise HTTPException(400, "wait is 0 or more seconds")
    return min(wait_seconds, MAX_POLL_WAIT_SECONDS)
