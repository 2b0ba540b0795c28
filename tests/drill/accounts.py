"""What clients got of what Kafka acknowledged, and what the outcomes topic says about the messages.

Pure book-keeping, with times passed in: seconds of one clock, CLOCK_MONOTONIC. Every client has a
log that outlives its connections. A **session** is one connection, from the answer that opened it
to its end as the client sees the end. What a client is owed follows from its sessions:

CONNECTED: the session in which the message was published lived on until the end, or ended long
    after the message's outcome. The message must arrive.
MOVED: the session was cut (its node was killed, or cut off), and the client came back in time. The
    message must arrive here or there.
BETWEEN: as MOVED, but only a resume can bring the message, between two connections: the node took
    the message just before the cut, and it is told as delivered, since it may be in the socket that
    was lost; or it is told as offline before the client was back, and after the node had said that
    the client is not there: it was started anew, or went on and saw the client's end; or the
    client came back to a node that has another client of the user, which had the message before:
    no node gets a message twice. Counted apart.
ABSENT: no session, or the client did not come back in time. Nothing is owed.

Nothing else is excused, whatever its outcome is. An outcome is wrong where it is `offline` or
`failed` for a user who has an owed client, `delivered` where no client got the message and none
lost it with a socket, or where a message has not exactly one outcome.
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

#: How long before a cut a message may have been told as delivered, and be lost with the socket.
IN_SOCKET_SECONDS: Final = 1.0
#: How many messages a finding shows.
_SHOWN: Final = 5


class Standing(enum.Enum):
    """What a client is owed of one message; see the module."""

    CONNECTED = enum.auto()
    MOVED = enum.auto()
    BETWEEN = enum.auto()
    ABSENT = enum.auto()


class Told(NamedTuple):
    """One outcome of a message: its kind, and when the kind was known."""

    kind: str
    at: float


class Arrival(NamedTuple):
    """A message that a client got, by its number among its user's, in one of its sessions."""

    number: int
    at: float
    session: int


@dataclass(slots=True)
class Session:
    """One connection of a client."""

    opened: float
    ended: float = math.inf
    cut: float = math.inf  # when its node was killed or cut off, where the end came of that
    node_lives: bool = True  # whether the node may have taken messages after the cut
    beside_another: bool = False  # whether its node has another client of the user
    gone: float = math.inf  # from when its node, started anew or thawed, says that it is over


@dataclass(slots=True, eq=False)
class Client:
    """One client's sessions, and all that it got in them."""

    sessions: list[Session] = field(default_factory=list)
    arrivals: list[Arrival] = field(default_factory=list)

    def open(self, now: float) -> None:
        """Begin a session."""
        self.sessions.append(Session(now))

    def end(self, now: float) -> None:
        """End the session."""
        self.sessions[-1].ended = now

    def arrive(self, number: int, now: float) -> None:
        """Note a message in the session."""
        self.arrivals.append(Arrival(number, now, len(self.sessions) - 1))

    @property
    def is_connected(self) -> bool:
        """Whether a session is open."""
        return bool(self.sessions) and self.sessions[-1].ended == math.inf

    def standing(self, published: float, told: Told | None, *, back_seconds: float) -> Standing:
        """Say what the client is owed of a message: see the module.

        `told` is an outcome of the message, `delivered` where the message has that one. A client
        that comes back after more than `back_seconds` was absent.
        """
        index = bisect_right(self.sessions, published, key=lambda session: session.opened) - 1
        if index < 0:
            return Standing.ABSENT
        session = self.sessions[index]
        if session.ended == math.inf:
            return Standing.CONNECTED
        cut = min(session.cut, session.ended)
        if told is not None and told.at < cut - IN_SOCKET_SECONDS:
            return Standing.CONNECTED
        following = self.sessions[index + 1 : index + 2]
        if not following or following[0].opened > session.ended + back_seconds:
            return Standing.ABSENT
        if told is not None and _is_the_resumes(told, published, session, following[0]):
            return Standing.BETWEEN
        return Standing.MOVED

    def repeats(self) -> int:
        """Return how many arrivals were of a message that the same session had brought before."""
        seen = {(arrival.number, arrival.session) for arrival in self.arrivals}
        return len(self.arrivals) - len(seen)

    def disordered(self) -> Iterator[int]:
        """Give the messages that arrived first behind a message that was published after them."""
        furthest = -1
        for number in dict.fromkeys(arrival.number for arrival in self.arrivals):
            if number < furthest:
                yield number
            furthest = max(furthest, number)


@dataclass(slots=True)
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

    def cut(self, now: float, *, node_lives: bool) -> list[Session]:
        """Note that the nodes of the user's clients may be cut off; return the sessions.

        A session that lives on is judged as if nothing had been: only an end makes the cut count.
        """
        sessions = [client.sessions[-1] for client in self.clients if client.is_connected]
        for session in sessions:
            session.cut, session.node_lives = now, node_lives
        return sessions


@dataclass(slots=True)
class Findings:
    """The figures of one account. `examples` has some messages of each kind that is wrong."""

    published: int = 0
    owed: int = 0  # copies: messages times the clients that they were for
    lost: int = 0
    between: int = 0
    told: Counter[str] = field(default_factory=Counter)
    told_wrongly: Counter[str] = field(default_factory=Counter)
    disordered: int = 0
    repeated: int = 0
    ended_sessions: int = 0
    away_seconds: float = 0.0  # the longest time between two sessions of a client
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
        arrived = [{arrival.number for arrival in client.arrivals} for client in user.clients]
        for number, acknowledged in enumerate(user.acknowledged):
            if acknowledged:
                here = [number in numbers for numbers in arrived]
                _judge_message(findings, user, number, here, back_seconds)
    return findings


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
        for number in client.disordered():
            findings.disordered += 1
            findings.show("out of order", f"{user.name}.{number}")
        sessions = client.sessions
        for before, after in itertools.pairwise(sessions):
            findings.away_seconds = max(findings.away_seconds, after.opened - before.ended)
        findings.ended_sessions += sum(session.ended < math.inf for session in sessions)
        findings.never_back += not client.is_connected


def _judge_message(
    findings: Findings, user: User, number: int, here: list[bool], back_seconds: float
) -> None:
    published, outcomes = user.published[number], user.told[number]
    told = min(outcomes, key=lambda told: told.kind != "delivered", default=None)
    standings = [
        client.standing(published, told, back_seconds=back_seconds) for client in user.clients
    ]
    findings.published += 1
    findings.told.update(told.kind for told in outcomes)
    name = f"{user.name}.{number}"
    for standing, arrived in zip(standings, here, strict=True):
        findings.owed += standing is not Standing.ABSENT
        if not arrived and standing is Standing.BETWEEN:
            findings.between += 1
        elif not arrived and standing is not Standing.ABSENT:
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
    if {Standing.CONNECTED, Standing.MOVED} & set(standings):
        yield from (kind for kind in ("offline", "failed") if kind in kinds)
        if "delivered" in kinds and not arrived and Standing.BETWEEN not in standings:
            yield "delivered to nobody"


def _is_the_resumes(told: Told, published: float, session: Session, following: Session) -> bool:
    """Whether a message of a session that was cut is one that only a resume can bring."""
    if told.kind == "offline":
        return told.at >= session.gone
    may_have_taken = session.node_lives or published <= min(session.cut, session.ended)
    return told.kind == "delivered" and (may_have_taken or following.beside_another)
