"""Long-poll: the way in of a poll, on any node.

A client polls on whichever node a balancer chooses, always with the cursor of its last answer. Each
node has a session of its own for the client (poll_session.py). A client that is new here resumes
from the cursor as any other client does; one that comes back has what it lacks in the session's
buffer, and no processor is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Final

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.connections.connection import Keeper, State
from gateway.connections.identity import Identity
from gateway.entry.entry import Entry
from gateway.http.detach import exchange_of
from gateway.http.head import Head
from gateway.takeover.format import PollRecord
from gateway.transports.poll_cursor import PollCursor, new_key, new_names, read_poll_cursor
from gateway.transports.poll_session import ParkedPoll, PollSession

#: How long a poll waits for a message where the request has no `wait`.
POLL_WAIT_SECONDS: Final = 25.0
#: How many sessions a process names, before the numbers of the next one begin.
_GENERATION_BITS: Final = 40
#: The longest `wait` that counts; a longer `wait` is shortened.
MAX_POLL_WAIT_SECONDS: Final = 60.0


class PollSessions:
    """The poll sessions of a node, by the key in the cursors, and the way in of the clients."""

    def __init__(self, *, soon: Callable[[Callable[[], None]], object] | None = None) -> None:
        """`soon` defers a call to the event loop's next turn: call_soon of the running loop."""
        self.soon = soon or asyncio.get_running_loop().call_soon
        self.names = new_names()
        self._numbers = count()
        self._sessions: dict[str, PollSession] = {}

    async def connect(self, head: Head, entry: Entry) -> ASGIApp:
        """Answer `GET /poll?cursor=C&wait=S`: respond at once, park the request, or refuse.

        Raises:
            HTTPException: the request is refused, or `wait` is no number of seconds.
        """
        text = head.query.get("cursor")
        cursor = read_poll_cursor(text) if text else None
        session_is_held = cursor is not None and self.holds(cursor)
        admitted = await entry.admit(head, new=not session_is_held)
        identity = admitted.identity
        wait_seconds = _wait_seconds(head)
        session = self.take_up(cursor, identity)
        if session is None:
            # The cursor named a session of another user, or a session without a part that the
            # client lacks, or the session has ended meanwhile. Then the request needs a new session
            # after all, and is refused where the node, the user or the address has no room.
            if session_is_held:
                entry.check_load(admitted)
            if cursor is not None and self.holds(cursor):
                cursor = None  # another user's or device's: it says nothing about this client
            session = self.open(identity, entry.node, cursor)
            resumes = cursor is not None and entry.resume(session, cursor.resume)
            session.begin(gap=bool(text) and not (resumes and session.is_resuming))
            await entry.register(session, admitted)
            entry.ask(session)
            body = session.poll()
        else:
            entry.node.renew(session, identity)
            body = session.poll(cursor)
        waits = wait_seconds > 0 or session.is_resuming
        if body is None and waits and session.state is State.OPEN:
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

    def open(
        self, identity: Identity, keeper: Keeper, cursor: PollCursor | None = None
    ) -> PollSession:
        """Open a session for a client, with the key in the client's cursor, or with a new key."""
        key = new_key() if cursor is None else cursor.key
        session = PollSession(identity, keeper, self, cursor, key=key, number=next(self._numbers))
        self._sessions[session.key] = session
        session.await_next_poll()
        return session

    def adopt(self, record: PollRecord, identity: Identity, keeper: Keeper) -> PollSession:
        """Keep a session that the earlier process has captured."""
        session = PollSession.from_record(record, identity, keeper, self)
        self._sessions[session.key] = session
        return session

    def go_on(self, names: str, *, generation: int) -> None:
        """Name sessions as the earlier process has, with numbers that it has not given."""
        self.names = names
        self._numbers = count(generation << _GENERATION_BITS)

    def holds(self, cursor: PollCursor) -> bool:
        """Whether a session of this node, of any user, has the key."""
        return cursor.key in self._sessions

    def take_up(self, cursor: PollCursor | None, identity: Identity) -> PollSession | None:
        """Take up the client's session, if it has everything that the client lacks.

        A session that lacks a part is replaced by a new one, and ends.
        """
        session = None if cursor is None else self._sessions.get(cursor.key)
        if cursor is None or session is None or not session.belongs_to(identity):
            return None
        if session.continues(cursor):
            return session
        session.replace()
        return None

    def forget(self, session: PollSession) -> None:
        """Drop a session that has ended."""
        self._sessions.pop(session.key, None)


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
