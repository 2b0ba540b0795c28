"""Long-poll: a session that outlives its requests, with a bounded buffer."""

from __future__ import annotations

import asyncio
import enum
import re
import secrets
from collections.abc import Callable
from typing import ClassVar, Final

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp

from gateway.connections.closes import Close
from gateway.connections.connection import Connection, Keeper, State
from gateway.connections.delivery import json_form
from gateway.connections.identity import Identity
from gateway.entry.entry import Entry
from gateway.http.detach import Resume
from gateway.http.head import Head
from gateway.http.responses import CLOSE_LINE, start_head, with_body
from gateway.wires import Wire

POLL_WAIT_SECONDS: Final = 25.0
MAX_POLL_WAIT_SECONDS: Final = 60.0
#: Bytes that a client may send behind a parked poll before it is cut off.
_MAX_EARLY_BYTES: Final = 16_384
#: Stands in a session's buffer for messages that were missed. A gap takes a place in the count of
#: messages, so a client that has been told of the gap acknowledges it like a message.
_GAP: Final = b""
_COUNT = re.compile(r"[0-9]{1,18}", re.ASCII)

_HEAD: Final = start_head(200, {"content-type": "application/json", "cache-control": "no-store"})


class Poll(enum.Enum):
    """Whether a request of a session's client is waiting."""

    NONE = "no request waits; the session ends when its grace does"
    PARKED = "a request waits for a message"
    DUE = "a request waits and a message is there; it is answered at the end of the loop's turn"


class ParkedPoll:
    """A request whose answer waits for a message: the holder of a lent wire until then."""

    __slots__ = ("_cors_lines", "_early", "_resume", "_session", "_wait_seconds", "_wire")

    def __init__(self, session: PollSession, *, cors_lines: bytes, wait_seconds: float) -> None:
        self._session = session
        self._cors_lines = cors_lines
        self._wait_seconds = wait_seconds
        self._resume: Resume | None = None
        self._wire: Wire | None = None
        self._early = b""

    @property
    def most_answer_bytes(self) -> int:
        """The length that the answer may reach: a full buffer, and the message that joins it."""
        return self._session.most_answer_bytes

    def attach(self, wire: Wire, resume: Resume | None) -> None:
        """Take the socket and wait for a message.

        `resume` gives the socket back to HTTP; without it, the answer is the connection's last.
        """
        self._wire = wire
        self._resume = None if self._session.moves_next() else resume
        wire.listen()
        self._session.park(self, wait_seconds=self._wait_seconds)

    def vanished(self) -> None:
        """Take note that the client had gone before its socket could be taken."""
        self._session.rest()

    def answer(self, body: bytes, *, last: bool = False) -> None:
        """Answer, and give the socket back to HTTP with the bytes behind the request, or close."""
        wire, self._wire = self._wire, None
        if wire is None:
            return
        resume = None if last else self._resume
        head = b"".join((_HEAD, self._cors_lines, CLOSE_LINE if resume is None else b""))
        written = wire.write(with_body(head, body))
        if not written:
            wire.abort()
        elif resume is None:
            wire.close()
        else:
            resume(self._early)

    def abort(self) -> None:
        """Cut the request off."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.abort()

    def overflowed(self) -> bool:
        """Make no room: a client that does not read its earlier answers is cut off."""
        return False

    def received(self, data: bytes) -> None:
        """Keep a pipelined request for later."""
        self._early += data
        if len(self._early) > _MAX_EARLY_BYTES:
            self._session.unpark(self)
            self.abort()

    def lost(self) -> None:
        """Take note that the client went away; its session waits for the next poll."""
        self._wire = None
        self._session.unpark(self)


class PollSession(Connection):
    """The connection of a long-poll client: a bounded buffer that is there between polls too.

    A message stays in the buffer until a cursor acknowledges it. A cursor is
    `<key>.<count of messages so far>`: the key names the session, the count what the client has.
    """

    __slots__ = (
        "_acknowledged",
        "_answered",
        "_buffer",
        "_bytes",
        "_moves",
        "_parked",
        "_poll",
        "_sessions",
        "key",
    )
    transport: ClassVar[str] = "poll"
    form = staticmethod(json_form)

    def __init__(
        self, identity: Identity, keeper: Keeper, sessions: PollSessions, *, gap: bool
    ) -> None:
        super().__init__(identity, keeper)
        self.key = secrets.token_urlsafe(12)
        self.state = State.OPEN  # there is no handshake to wait for
        self._sessions = sessions
        self._buffer = [_GAP] if gap else []  # a deque takes 760 bytes, empty
        self._bytes = 0
        self._acknowledged = 0  # messages that the client is known to have
        self._answered = 0  # messages up to the end of the last answer
        self._poll = Poll.NONE
        self._parked: ParkedPoll | None = None  # the waiting request; None in Poll.NONE
        self._moves = False  # the next answer is its connection's last: time for another node

    def write(self, data: bytes) -> bool:
        """Buffer one message; a parked poll is answered at the end of the loop's turn."""
        fits = self._bytes + len(data) <= self._keeper.bounds.poll_buffer_bytes
        if fits:
            self._buffer.append(data)
            self._bytes += len(data)
        elif self._all_answered() or self._buffer[-1] is not _GAP:
            self._buffer.append(_GAP)
        if self._poll is Poll.PARKED:
            self._poll = Poll.DUE
            self._sessions.soon(self._answer_due)  # the rest of the batch goes with the answer
        return fits

    @property
    def most_answer_bytes(self) -> int:
        """The length that an answer may reach: a full buffer, and the message that joins it."""
        return 2 * self._keeper.bounds.poll_buffer_bytes

    def belongs_to(self, identity: Identity) -> bool:
        """Whether a credential is of the user and device that opened this session."""
        return (self.user, self.device) == (identity.user, identity.device)

    def knows(self, count: int) -> bool:
        """Whether a cursor's count is one that this session can still answer."""
        return count in (self._acknowledged, self._answered)

    def poll(self, count: int) -> bytes | None:
        """Acknowledge up to `count`; return an answer, or None where there is nothing to say."""
        self._answer_parked(self.empty())
        if count == self._answered:
            self._acknowledge()
        elif self._answered > self._acknowledged:
            return self._outstanding()  # the same cursor again gives the same answer again
        return self._fresh()

    def empty(self) -> bytes:
        """Return the answer of a poll for which no message came."""
        return self._body([])

    def park(self, parked: ParkedPoll, *, wait_seconds: float) -> None:
        """NONE → PARKED: let a request wait for a message."""
        self._poll, self._parked = Poll.PARKED, parked
        self._keeper.wake_at(self, wait_seconds)

    def unpark(self, parked: ParkedPoll) -> None:
        """PARKED, DUE → NONE: a waiting request is gone; the session waits for the next."""
        if self._parked is parked:
            self._poll, self._parked = Poll.NONE, None
            self.rest()

    def rest(self) -> None:
        """Wait for the next poll, for the grace."""
        self._keeper.wake_at(self, self._keeper.bounds.poll_grace_seconds)

    def wake(self) -> None:
        """End the wait of a parked poll, or a session whose client does not poll any more."""
        if self._poll is Poll.NONE:
            self._end("expired")
        else:
            self._answer_parked(self.empty())

    def close(self, close: Close) -> None:
        """Answer a parked poll at once and end the session."""
        body = self._fresh() or self.empty()
        self._answer_parked(body, last=True)
        self._end(close.reason)

    def part(self, close: Close, delay_seconds: float) -> None:  # noqa: ARG002
        """Answer a parked poll at once and end the session: the next poll is its reconnect."""
        self.close(close)

    def aged(self) -> None:
        """Let the next answer close its connection; the session lives on."""
        self._moves = True

    def moves_next(self) -> bool:
        """Whether the answer that is being made closes its connection; the next one does not."""
        moves, self._moves = self._moves, False
        if moves:
            self._keeper.age_at(self, None)
        return moves

    def expired(self) -> None:
        """Answer a parked poll at once: the next one needs another token."""
        self._answer_parked(self.empty())

    def _end(self, reason: str) -> None:
        self._sessions.forget(self.key)
        self._forget(reason)

    def _answer_due(self) -> None:
        if self._poll is Poll.DUE and (body := self._fresh()):
            self._answer_parked(body)

    def _answer_parked(self, body: bytes, *, last: bool = False) -> None:
        """PARKED, DUE → NONE: answer the waiting request, if there is one."""
        parked, self._parked = self._parked, None
        self._poll = Poll.NONE
        if parked is not None:
            parked.answer(body, last=last)
            self.rest()

    def _all_answered(self) -> bool:
        return len(self._buffer) == self._answered - self._acknowledged

    def _acknowledge(self) -> None:
        count = self._answered - self._acknowledged
        self._bytes -= sum(map(len, self._buffer[:count]))
        del self._buffer[:count]
        self._acknowledged = self._answered

    def _fresh(self) -> bytes | None:
        """Return an answer of everything in the buffer; None where it is empty."""
        if not self._buffer:
            return None
        self._answered = self._acknowledged + len(self._buffer)
        return self._outstanding()

    def _outstanding(self) -> bytes:
        """Return the last answer again: everything answered and not acknowledged."""
        return self._body(self._buffer[: self._answered - self._acknowledged])

    def _body(self, items: list[bytes]) -> bytes:
        cursor = b"%s.%d" % (self.key.encode("ascii"), self._acknowledged + len(items))
        messages = b", ".join(item for item in items if item is not _GAP)
        gap = b', "gap": true' if _GAP in items else b""
        return b'{"cursor": "%s", "messages": [%s]%s}' % (cursor, messages, gap)


class PollSessions:
    """The way in of a node's long-poll clients, and their sessions by the key in their cursors."""

    def __init__(self, *, soon: Callable[[Callable[[], None]], object] | None = None) -> None:
        """`soon` defers a call to the end of the loop's turn: call_soon of the running loop."""
        self.soon = soon or asyncio.get_running_loop().call_soon
        self._sessions: dict[str, PollSession] = {}

    async def connect(self, head: Head, entry: Entry) -> ASGIApp:
        """Answer `GET /poll?cursor=C&wait=S`: at once, or park it; or refuse the request.

        Raises:
            HTTPException: the request is refused, or `wait` is no number of seconds.
        """
        cursor = head.query.get("cursor")
        held = cursor is not None and self.holds(cursor)
        admitted = await entry.admit(head, new=not held)
        identity = admitted.identity
        wait_seconds = _wait_seconds(head)
        found = self.find(cursor, identity) if cursor else None
        if found is None:
            if held:  # another user's session, or a count that is not the session's
                entry.refuse_for_load(admitted)
            session, count = self.open(identity, entry.node, gap=bool(cursor)), 0
            await entry.register(session, admitted)
        else:
            session, count = found
            entry.node.renew(session, identity)
        body = session.poll(count)
        if body is None and wait_seconds > 0 and session.state is State.OPEN:
            cors_lines = admitted.cors_lines
            return entry.park(ParkedPoll(session, cors_lines=cors_lines, wait_seconds=wait_seconds))
        if session.state is State.OPEN:
            session.rest()
        headers = {"cache-control": "no-store", **admitted.cors}
        if session.moves_next():
            headers["connection"] = "close"
        return Response(body or session.empty(), media_type="application/json", headers=headers)

    def open(self, identity: Identity, keeper: Keeper, *, gap: bool) -> PollSession:
        """Make a session; a `gap` tells the client that it may have missed messages."""
        session = PollSession(identity, keeper, self, gap=gap)
        self._sessions[session.key] = session
        session.rest()
        return session

    def holds(self, cursor: str) -> bool:
        """Whether a cursor is of a session of this node, whichever user's."""
        return cursor.rpartition(".")[0] in self._sessions

    def find(self, cursor: str, identity: Identity) -> tuple[PollSession, int] | None:
        """Return the session and count that a cursor names, if this user's session knows both."""
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


def _wait_seconds(head: Head) -> float:
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
