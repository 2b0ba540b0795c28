"""What clients got of what Kafka acknowledged, and what the outcomes topic says about the messages.

Pure book-keeping, with times passed in: seconds of one clock, CLOCK_MONOTONIC. Every client has a
log that outlives its connections. A **session** is one connection, from the answer that opened it
to its end as the client sees the end. A session may end for three reasons (`Ending`); any other end
is an error of its own ("connections that ended").

A client that **resumes** is owed every message from its first session on, whatever becomes of its
connections: once and in order. Of a message that is missing the client may have been told by a
gap; gaps are counted too.

What any other client is owed of a message follows from the session in which the message was
published, and so does, for every client, which outcome may be told:

CONNECTED: the session lived on, or ended more than a second after the message's outcome, or its
    successor was open before it ended. The message must arrive.
MOVED: the session ended before that, and the client came back in time. The message must arrive
    here or there.
Three standings are as MOVED, but only a resume can bring the message, between two connections. For
a client without one they are counted apart ("between"). Possible only for a session with an
`Ending`:

IN_SOCKET: told as delivered within a second before or after the end: the message may have been in
    the socket that was lost. Not where a node drained: a goodbye comes behind all messages. After a
    kill or a freeze only what was published before, since the node takes no more.
AWAY: told as offline after the node has said that the client is not there (`over`): the client has
    left, or the node was started anew; and less than a second after the client was back.
BESIDE: the user's other client has it, and was there alone (`over`). While the node is lost,
    messages wait for the client: then only where the client came back to that other client's node,
    since no node gets a message twice.

And two more:

UNREGISTERED: the session's node was cut off from the registry before the user was written there.
    The answer comes after a second all the same (docs/protocol.md), and no processor can know of
    the client. The message may be told as offline, and must arrive once the registry has the user.
ABSENT: no session, or the client did not come back in time. Nothing is owed.

Nothing else is excused, whatever its outcome is. An outcome is wrong where it is not `delivered`
for a user who has an owed client, `failed` for anybody with a client, `delivered` where no client
got the message and none lost it with a socket, or where a message has not exactly one outcome.
"""

from __future__ import annotations

import enum
import itertools
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

#: How far from a session's end a message may have been told as delivered, and be lost with the
#: socket; and how long after a look-up its outcome may be told, on a busy machine.
IN_SOCKET_SECONDS: Final = 1.0
#: How many messages a finding shows.
_SHOWN: Final = 5


class Standing(enum.Enum):
    """What a client is owed of one message; see the module."""

    CONNECTED = enum.auto()
    MOVED = enum.auto()
    IN_SOCKET = enum.auto()
    AWAY = enum.auto()
    BESIDE = enum.auto()
    UNREGISTERED = enum.auto()
    ABSENT = enum.auto()


#: The user may not be told as offline.
_THERE: Final = frozenset({Standing.CONNECTED, Standing.MOVED})
_OWED: Final = _THERE | {Standing.UNREGISTERED}
_BETWEEN: Final = frozenset({Standing.IN_SOCKET, Standing.AWAY, Standing.BESIDE})


class Ending(enum.Enum):
    """Why a session may end."""

    NONE = "the fault does not concern the session"
    CUT = "its node was killed, or has vanished"
    LEFT = "the client gave it up by itself"
    DRAINED = "its node drains, and says goodbye"


class Told(NamedTuple):
    """One outcome of a message: its kind, with a reason behind `failed`, and when it was known."""

    kind: str
    at: float


class Arrival(NamedTuple):
    """A message that a client got, by its number among its user's, in one of its sessions."""

    number: int
    at: float
    session: Session


@dataclass(slots=True, eq=False)
class Session:
    """One connection of a client. Times are infinite until they are known."""

    opened: float
    after: int = -1  # the client's newest message when it asked for the connection
    ended: float = math.inf
    ending: Ending = Ending.NONE
    cut: float = math.inf  # when its node was killed or frozen, and took no more messages
    gone: float = math.inf  # from when its node says that the client is not there
    node: str | None = None  # where it is known
    registered: float = -math.inf  # from when the registry has it

    @property
    def lost_at(self) -> float:
        """When the socket was lost."""
        return min(self.cut, self.ended)

    @property
    def over(self) -> float:
        """From when its user, without another session, is offline."""
        drained = self.ending is Ending.DRAINED
        return self.ended - IN_SOCKET_SECONDS if drained else self.gone

    def took(self, told: Told, published: float) -> bool:
        """Whether a message that is told as delivered may have been in the lost socket."""
        is_soon = told.at <= self.lost_at + IN_SOCKET_SECONDS and published <= self.cut
        return is_soon and self.ending is not Ending.DRAINED


class Failure(NamedTuple):
    """An attempt to connect that brought no session: when it ended, and why."""

    at: float
    why: str


@dataclass(slots=True, eq=False)
class Client:
    """One client's sessions, and all that it got in them.

    A client that `resumes` says with each session but the first how far it has come. One that
    `roams` has a session here over polls on many nodes.
    """

    resumes: bool = False
    roams: bool = False
    drains: list[tuple[float, float]] = field(default_factory=list)  # of nodes: from when to when
    sessions: list[Session] = field(default_factory=list)
    arrivals: list[Arrival] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)  # when it was told of one
    failures: list[Failure] = field(default_factory=list)  # attempts without a session
    newest: int = -1  # of the messages that arrived
    _arrived: set[int] = field(default_factory=set)

    def open(self, now: float, *, after: int = -1) -> Session:
        """Begin a session; an earlier one may go on for a while.

        `after` is the client's newest message at the session's request.
        """
        self.sessions.append(Session(now, after))
        return self.sessions[-1]

    def failed(self, why: str, now: float) -> None:
        """Note an attempt to connect that brought no session."""
        self.failures.append(Failure(now, why))

    def failures_between(self, ended: float, opened: float) -> str:
        """Give the attempts of that time, and after how many seconds each failed."""
        return ", ".join(
            f"{why} after {at - ended:.1f} s" for at, why in self.failures if ended < at <= opened
        )

    def end(self, session: Session, now: float) -> None:
        """End a session."""
        session.ended = now

    def arrive(self, number: int, now: float, session: Session | None = None) -> bool:
        """Note a message in a session, the newest if nothing else is said.

        Return whether the client was without the message.
        """
        self.arrivals.append(Arrival(number, now, session or self.sessions[-1]))
        self.newest = max(self.newest, number)
        is_new = number not in self._arrived
        self._arrived.add(number)
        return is_new

    def is_owed(self, published: float) -> bool:
        """Whether a client that resumes is owed a message, whatever has become of its sessions."""
        return self.resumes and bool(self.sessions) and published >= self.sessions[0].opened

    def is_behind_gap(self, published: float) -> bool:
        """Whether the client was told of a gap after a message was published."""
        return any(published <= told for told in self.gaps)

    @property
    def is_connected(self) -> bool:
        """Whether a session is open."""
        return any(session.ended == math.inf for session in self.sessions)

    @property
    def open_sessions(self) -> list[Session]:
        """The sessions that have not ended."""
        return [session for session in self.sessions if session.ended == math.inf]

    def standing(
        self,
        published: float,
        told: Told | None,
        *,
        back_seconds: float,
        elsewhere: Collection[Session] = (),
    ) -> Standing:
        """Say what the client is owed of a message: see the module.

        `told` is an outcome of the message, `delivered` where the message has that one. A client
        that comes back after more than `back_seconds` was absent. `elsewhere` are sessions of the
        user's other clients that brought the message.
        """
        index = bisect_right(self.sessions, published, key=lambda session: session.opened) - 1
        if index < 0:
            return Standing.ABSENT
        session, *following = self.sessions[index : index + 2]
        if published < session.registered:
            return Standing.UNREGISTERED
        if told is not None and told.kind == "offline" and self._is_between_nodes(told.at):
            return Standing.AWAY
        if session.ended == math.inf or (following and following[0].opened <= session.ended):
            return Standing.CONNECTED
        if told is not None and told.at < session.lost_at - IN_SOCKET_SECONDS:
            return Standing.CONNECTED
        returned = following[0] if following else None
        if session.ending is not Ending.NONE and told is not None:
            between = _between(told, published, session, returned, elsewhere)
            if between is not None:
                return between
        if returned is None or returned.opened > session.lost_at + back_seconds:
            return Standing.ABSENT
        return Standing.MOVED

    def _is_between_nodes(self, at: float) -> bool:
        """Whether the node of the last poll may have let the client go before the next poll."""
        return self.roams and any(began <= at <= ended for began, ended in self.drains)

    def repeats(self) -> int:
        """Return how many arrivals were of a message that their session should not have brought.

        The session had brought it before, or was asked for with a cursor behind the message. What
        two sessions that overlap both bring is no repeat: the second has the first's cursor.
        """
        seen = {(arrival.number, arrival.session) for arrival in self.arrivals}
        again = [number for number, session in seen if self.resumes and number <= session.after]
        return len(self.arrivals) - len(seen) + len(again)

    def disordered(self) -> Iterator[int]:
        """Give the messages that arrived first behind a message that was published after them."""
        furthest = -1
        for number in dict.fromkeys(arrival.number for arrival in self.arrivals):
            if number < furthest:
                yield number
            furthest = max(furthest, number)


@dataclass(slots=True, eq=False)
class User:
    """A user's messages in Kafka's order, and the user's clients."""

    name: str
    clients: list[Client]
    published: list[float] = field(default_factory=list)
    acknowledged: list[bool] = field(default_factory=list)
    told: list[list[Told]] = field(default_factory=list)

    def publish(self, now: float) -> int:
        """Note a message that is handed to Kafka; return its number."""
        self.published.append(now)
        self.acknowledged.append(False)
        self.told.append([])
        return len(self.published) - 1

    def mark(self, ending: Ending, **times: float) -> list[Session]:
        """Note that a fault concerns the user's open sessions; return those. See `spare`."""
        sessions = [session for client in self.clients for session in client.open_sessions]
        for session in sessions:
            session.ending = ending
            for name, at in times.items():
                setattr(session, name, at)
        return sessions


def spare(sessions: Collection[Session]) -> int:
    """Take the mark off sessions that a fault did not end; return the number of the others."""
    for session in sessions:
        if session.ended == math.inf:
            session.ending, session.cut, session.gone = Ending.NONE, math.inf, math.inf
    return sum(session.ended < math.inf for session in sessions)


@dataclass(slots=True)
class Findings:
    """The figures of one account. `examples` has some messages of each kind that is wrong."""

    published: int = 0
    owed: int = 0  # copies: messages times the clients that they were for
    lost: int = 0
    between: Counter[str] = field(default_factory=Counter)  # by the standing, in words
    gaps: int = 0  # told
    behind_gaps: int = 0  # copies that are missing, and whose client was told of a gap
    told: Counter[str] = field(default_factory=Counter)
    told_wrongly: Counter[str] = field(default_factory=Counter)
    disordered: int = 0
    repeated: int = 0
    ended_sessions: int = 0
    strays: int = 0  # of these: sessions that the fault did not concern
    away_seconds: float = 0.0  # the longest time between two sessions of a client
    last_back: str = ""  # the client that was away for so long, and its failures meanwhile
    never_back: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)

    def show(self, kind: str, message: str) -> None:
        """Keep an example of what is wrong."""
        examples = self.examples.setdefault(kind, [])
        if len(examples) < _SHOWN:
            examples.append(message)


def judge(users: Collection[User], *, back_seconds: float) -> Findings:
    """Compare what was published with what arrived and with what was told."""
    findings = Findings()
    for user in users:
        _judge_clients(findings, user)
        arrived = [_sessions_by_message(client) for client in user.clients]
        for number, acknowledged in enumerate(user.acknowledged):
            if acknowledged:
                here = [sessions.get(number, []) for sessions in arrived]
                _judge_message(findings, user, number, here, back_seconds)
    return findings


def _sessions_by_message(client: Client) -> dict[int, list[Session]]:
    sessions: dict[int, list[Session]] = {}
    for arrival in client.arrivals:
        sessions.setdefault(arrival.number, []).append(arrival.session)
    return sessions


def latencies(users: Collection[User], *, since: float, until: float) -> list[float]:
    """Return the seconds from publishing to each client's first copy, for messages of a period."""
    return [at - published for published, at in _first_copies(users) if since <= published < until]


def last_arrival(users: Collection[User], *, published_before: float) -> float:
    """Return when the last message that was published before then arrived at a client."""
    arrivals = [at for published, at in _first_copies(users) if published < published_before]
    return max(arrivals, default=published_before)


def _first_copies(users: Collection[User]) -> Iterator[tuple[float, float]]:
    """Give when a message was published and when a client got it first, for each of both."""
    for user in users:
        for client in user.clients:
            firsts: dict[int, float] = {}
            for arrival in client.arrivals:
                firsts.setdefault(arrival.number, arrival.at)
            for number, at in firsts.items():
                yield user.published[number], at


def _judge_clients(findings: Findings, user: User) -> None:
    for client in user.clients:
        findings.repeated += client.repeats()
        findings.gaps += len(client.gaps)
        for at in client.gaps:
            findings.show("gaps told", f"{user.name} at {at:.1f}")
        for number in client.disordered():
            findings.disordered += 1
            findings.show("out of order", f"{user.name}.{number}")
        sessions = client.sessions
        for before, after in itertools.pairwise(sessions):
            if after.opened - before.ended > findings.away_seconds:
                findings.away_seconds = after.opened - before.ended
                failures = client.failures_between(before.ended, after.opened)
                findings.last_back = f"{user.name}: {failures or 'no failure'}"
        ended = [session for session in sessions if session.ended < math.inf]
        findings.ended_sessions += len(ended)
        for session in ended:
            if session.ending is Ending.NONE:
                findings.strays += 1
                findings.show("connections that ended", f"{user.name} at {session.node}")
        findings.never_back += not client.is_connected


def _judge_message(
    findings: Findings, user: User, number: int, here: list[list[Session]], back_seconds: float
) -> None:
    """Judge one message; `here` has, for each client, the sessions that brought the message."""
    published, outcomes = user.published[number], user.told[number]
    told = min(outcomes, key=lambda told: told.kind != "delivered", default=None)
    standings = [
        client.standing(
            published,
            told,
            back_seconds=back_seconds,
            elsewhere=[s for other in here if other is not sessions for s in other],
        )
        for client, sessions in zip(user.clients, here, strict=True)
    ]
    findings.published += 1
    findings.told.update(told.kind for told in outcomes)
    name = f"{user.name}.{number}"
    for client, standing, sessions in zip(user.clients, standings, here, strict=True):
        between = not client.resumes and standing in _BETWEEN
        is_owed = client.is_owed(published) if client.resumes else standing in _OWED
        findings.owed += is_owed or between
        if sessions:
            continue
        if between:
            findings.between[standing.name.lower().replace("_", " ")] += 1
        if is_owed and client.is_behind_gap(published):
            findings.behind_gaps += 1
            findings.show("missing behind a gap", name)
        elif is_owed:
            findings.lost += 1
            findings.show("lost", f"{name} ({', '.join(t.kind for t in outcomes) or 'untold'})")
    for wrong in _wrong_outcomes(outcomes, standings, arrived=any(here)):
        findings.told_wrongly[wrong] += 1
        findings.show(wrong, name)


def _wrong_outcomes(
    outcomes: list[Told], standings: list[Standing], *, arrived: bool
) -> Iterator[str]:
    """Give what is wrong with a message's outcomes, in words."""
    kinds = {told.kind for told in outcomes}
    if len(outcomes) != 1:
        yield "untold" if not outcomes else "told twice"
    may_be = {"delivered"} if _THERE & set(standings) else {"delivered", "offline"}
    if standings:  # a user without a client that is read: nobody can say
        yield from sorted(kinds - may_be)
        if "delivered" in kinds and not arrived and Standing.IN_SOCKET not in standings:
            yield "delivered to nobody"


def _between(
    told: Told,
    published: float,
    session: Session,
    returned: Session | None,
    elsewhere: Collection[Session],
) -> Standing | None:
    """Return the standing of a message that only a resume can bring, or None where it is owed."""
    back = returned.opened if returned is not None else math.inf
    if told.kind == "offline":
        is_away = session.over <= told.at <= back + IN_SOCKET_SECONDS
        return Standing.AWAY if is_away else None
    if told.kind != "delivered":
        return None
    if session.took(told, published):
        return Standing.IN_SOCKET
    if session.over <= told.at <= back + IN_SOCKET_SECONDS:
        is_beside = bool(elsewhere)
    else:
        nodes = {other.node for other in elsewhere} - {None}
        is_beside = returned is not None and returned.node in nodes
    return Standing.BESIDE if is_beside else None
