"""Long-poll: a session that outlives its requests, with a bounded buffer."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from typing import ClassVar, Final

from gateway.closes import Close
from gateway.connection import Connection, Identity, Keeper, State
from gateway.delivery import json_form
from gateway.wires import Wire

#: What a client may send behind a parked poll before it is cut off.
_MAX_EARLY_BYTES: Final = 16_384
Resume = Callable[[bytes], None]
#: Stands in the buffer for what was missed: it takes a place in the count, so that a client that
#: has been told acknowledges it like a message.
_GAP: Final = b""
_COUNT = re.compile(r"[0-9]{1,18}", re.ASCII)


class ParkedPoll:
    """A request whose answer waits for a message: the wire's holder until then."""

    __slots__ = ("_early", "_head", "_resume", "_session", "_wire")

    def __init__(self, session: PollSession, head: bytes, resume: Resume | None) -> None:
        """`head` is the answer's head, but for its length and whether the connection persists.

        `resume` takes the socket back; without it, the answer is the connection's last.
        """
        self._session = session
        self._head = head
        self._resume = resume
        self._wire: Wire | None = None
        self._early = b""

    def attach(self, wire: Wire) -> None:
        """Take the socket."""
        self._wire = wire
        wire.listen()

    def answer(self, body: bytes, *, last: bool = False) -> None:
        """Answer, and give the socket back to HTTP with what came meanwhile; or close it."""
        wire, self._wire = self._wire, None
        if wire is None:
            return
        resume = None if last else self._resume
        persistence = b"connection: close\r\n" if resume is None else b""
        length = b"content-length: %d\r\n\r\n" % len(body)
        written = wire.write(self._head + persistence + length + body)
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
        """Refuse to answer a client that does not read its answers: it is cut off."""
        return False

    def received(self, data: bytes) -> None:
        """Keep a pipelined request for later."""
        self._early += data
        if len(self._early) > _MAX_EARLY_BYTES:
            self._session.unpark(self)
            self.abort()

    def lost(self) -> None:
        """The client went away; its session waits for it."""
        self._wire = None
        self._session.unpark(self)


class PollSession(Connection):
    """What a long-poll client has instead of a socket: a bounded buffer, between polls too.

    A message stays until a cursor acknowledges it; cursors are `<key>.<messages so far>`.
    """

    __slots__ = (
        "_acknowledged",
        "_answered",
        "_buffer",
        "_bytes",
        "_flushing",
        "_parked",
        "_sessions",
        "key",
        "moves",
    )
    transport: ClassVar[str] = "poll"
    form = staticmethod(json_form)

    def __init__(self, identity: Identity, sessions: PollSessions, *, gap: bool) -> None:
        super().__init__(identity, sessions.keeper)
        self.key = secrets.token_urlsafe(12)
        self.state = State.OPEN  # there is no handshake to wait for
        self._sessions = sessions
        self._buffer = [_GAP] if gap else []  # a deque takes 760 bytes, empty
        self._bytes = 0
        self._acknowledged = 0
        self._answered = 0
        self._parked: ParkedPoll | None = None
        self._flushing = False
        self.moves = False  # the next answer is its connection's last: time for another node

    def write(self, data: bytes) -> bool:
        """Buffer one message; a parked poll is answered at the end of the loop's turn."""
        fits = self._bytes + len(data) <= self._keeper.bounds.poll_buffer_bytes
        if fits:
            self._buffer.append(data)
            self._bytes += len(data)
        elif self._all_answered() or self._buffer[-1] is not _GAP:
            self._buffer.append(_GAP)
        if self._parked is not None and not self._flushing:
            self._flushing = True
            self._sessions.soon(self._flush)  # the rest of the batch goes with it
        return fits

    @property
    def most_answer_bytes(self) -> int:
        """The length that an answer may reach: all that the buffer holds, with what joins it."""
        return 2 * self._keeper.bounds.poll_buffer_bytes

    def belongs_to(self, identity: Identity) -> bool:
        """Whether a credential speaks for the user and device that opened this session."""
        return (self.user, self.device) == (identity.user, identity.device)

    def knows(self, count: int) -> bool:
        """Whether a cursor is one this session still can answer."""
        return count in (self._acknowledged, self._answered)

    def poll(self, count: int) -> bytes | None:
        """Acknowledge up to `count`; return an answer, or None where there is nothing to say."""
        self._unpark_with(self.empty())
        if count == self._answered:
            self._acknowledge()
        elif self._answered > self._acknowledged:
            return self._outstanding()  # the same cursor again gives the same answer again
        return self._fresh()

    def empty(self) -> bytes:
        """Return the answer of a poll that nothing came for."""
        return self._body([])

    def park(self, parked: ParkedPoll, *, wait_seconds: float) -> None:
        """Let a request wait for a message."""
        self._parked = parked
        self._keeper.wake_at(self, wait_seconds)

    def unpark(self, parked: ParkedPoll) -> None:
        """Take note that a parked request is gone; the session waits for the next."""
        if self._parked is parked:
            self._parked = None
            self.rest()

    def rest(self) -> None:
        """Wait for the next poll for the grace time."""
        self._keeper.wake_at(self, self._keeper.bounds.poll_grace_seconds)

    def wake(self) -> None:
        """End the wait of a parked poll, or a session that nobody polls any more."""
        if self._parked is not None:
            self._unpark_with(self.empty())
        else:
            self._end("expired")

    def close(self, close: Close) -> None:
        """Answer a parked poll at once and end the session."""
        body = self._fresh() or self.empty()
        self._unpark_with(body, last=True)
        self._end(close.reason)

    def part(self, close: Close, delay_seconds: float) -> None:  # noqa: ARG002
        """Answer a parked poll at once and end the session: the next poll is its reconnect."""
        self.close(close)

    def aged(self) -> None:
        """Let the next answer close its connection; the session lives on."""
        self.moves = True

    def moved(self) -> None:
        """Take note that an answer closes its connection."""
        self.moves = False
        self._keeper.age_at(self, None)

    def expired(self) -> None:
        """Answer a parked poll at once: the next one needs another token."""
        if self._parked is not None:
            self._unpark_with(self.empty())

    def _end(self, reason: str) -> None:
        self._sessions.forget(self.key)
        self._closed(reason)

    def _flush(self) -> None:
        self._flushing = False
        if self._parked is not None and (body := self._fresh()):
            self._unpark_with(body)

    def _unpark_with(self, body: bytes, *, last: bool = False) -> None:
        parked, self._parked = self._parked, None
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
        if not self._buffer:
            return None
        self._answered = self._acknowledged + len(self._buffer)
        return self._outstanding()

    def _outstanding(self) -> bytes:
        return self._body(self._buffer[: self._answered - self._acknowledged])

    def _body(self, items: list[bytes]) -> bytes:
        cursor = b"%s.%d" % (self.key.encode("ascii"), self._acknowledged + len(items))
        messages = b", ".join(item for item in items if item is not _GAP)
        told = b', "gap": true' if _GAP in items else b""
        return b'{"cursor": "%s", "messages": [%s]%s}' % (cursor, messages, told)


class PollSessions:
    """The node's long-poll sessions, by the key in their cursors."""

    def __init__(self, keeper: Keeper, *, soon: Callable[[Callable[[], None]], object]) -> None:
        """`soon` defers a call to the end of the event loop's turn."""
        self.keeper = keeper
        self.soon = soon
        self._sessions: dict[str, PollSession] = {}

    def open(self, identity: Identity, *, gap: bool) -> PollSession:
        """Make a session; a `gap` tells the client that it may have missed messages."""
        session = PollSession(identity, self, gap=gap)
        self._sessions[session.key] = session
        session.rest()
        return session

    def holds(self, cursor: str) -> bool:
        """Whether a cursor is of a session that is here, whoever's it is."""
        return cursor.rpartition(".")[0] in self._sessions

    def find(self, cursor: str, identity: Identity) -> tuple[PollSession, int] | None:
        """Return the session and count that a cursor names, if it is this user's and known."""
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
