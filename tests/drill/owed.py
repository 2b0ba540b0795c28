"""What clients that come back are owed, and what is wrong with what they got.

A client that resumes (`pushgate.v1`, event streams, long-polls) is owed every message for its user
and device from its first connection on: once, in the order of its lane, over however many
connections; and no gap, as long as nothing ran out of the window. Three things may be missing, by
the rules of publishing: a message that a newer one with its collapse key replaces, one whose TTL
may have run out, and one with a TTL of 0 where the client's connection has ended since. A plain
WebSocket may miss anything, and each of its connections gets messages in order, none twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

#: A message with a shorter TTL may run out while a processor's partitions have no owner.
LONG_TTL_SECONDS: Final = 60
#: A node keeps a poll session, with the messages that it has taken, for so long between two polls:
#: the default of PUSHGATE_POLL_GRACE_SECONDS.
POLL_HELD_SECONDS: Final = 30


@dataclass(frozen=True, slots=True)
class Published:
    """A message that Kafka has acknowledged; numbers ascend in the order of publishing."""

    number: int
    user: str
    lane: str
    published_ms: int
    device: str | None = None
    ttl_seconds: int | None = None
    collapse_key: str | None = None
    #: Connections of the user that look-ups found when the message was published; of a TTL of 0.
    present: tuple[Session, ...] = ()

    @property
    def payload(self) -> bytes:
        """What is published."""
        return f"{self.user} {self.lane} {self.number}".encode()

    def is_for(self, client: Received) -> bool:
        """Whether the client's token names the user, and the device where there is one."""
        return self.user == client.user and self.device in (None, client.device)


@dataclass(eq=False, slots=True)
class Session:
    """A connection of a client, from its request to its end."""

    began_ms: int
    node: str = ""
    payloads: list[bytes] = field(default_factory=list)
    gaps: int = 0
    has_ended: bool = False


@dataclass(eq=False, slots=True)
class Received:
    """A client and all that it got."""

    name: str
    user: str
    device: str | None
    resumes: bool
    #: Whether gateways hold messages for it between two of its connections: a long-poll client.
    is_polling: bool = False
    #: The number of the first message that it is owed; None before its first connection.
    owed_from: int | None = None
    sessions: list[Session] = field(default_factory=list)

    @property
    def payloads(self) -> list[bytes]:
        """All that it got, over all connections."""
        return [payload for session in self.sessions for payload in session.payloads]


def wrongs(published: Sequence[Published], clients: Sequence[Received]) -> list[str]:
    """Return in words everything that is wrong with what clients got."""
    by_payload = {message.payload: message for message in published}
    found: list[str] = []
    for client in clients:
        found += (f"{client.name}: {what}" for what in _wrongs_of(client, published, by_payload))
    return found


def _wrongs_of(
    client: Received, published: Sequence[Published], by_payload: dict[bytes, Published]
) -> Iterator[str]:
    for session in client.sessions:
        yield from _foreign(client, session, by_payload)
        yield from _too_late(client, session, by_payload)
    streams = [client.payloads] if client.resumes else [s.payloads for s in client.sessions]
    for payloads in streams:
        yield from _repeated_or_disordered([p for p in payloads if p in by_payload], by_payload)
    if client.resumes:
        gaps = sum(session.gaps for session in client.sessions)
        if gaps:
            yield f"{gaps} gaps told where nothing was missing"
        yield from _missing(client, published)


def _foreign(
    client: Received, session: Session, by_payload: dict[bytes, Published]
) -> Iterator[str]:
    for payload in session.payloads:
        message = by_payload.get(payload)
        if message is None:
            yield f"{payload!r} was never published"
        elif not message.is_for(client):
            yield f"{_name(message)} is another's"


def _too_late(
    client: Received, session: Session, by_payload: dict[bytes, Published]
) -> Iterator[str]:
    """A connection that began after the end of a TTL gets the message neither live nor replayed.

    Unless a poll session took the message in time, and held it.
    """
    for payload in session.payloads:
        message = by_payload.get(payload)
        if message is not None and message.ttl_seconds:
            ended_ms = message.published_ms + 1_000 * message.ttl_seconds
            if session.began_ms > ended_ms and not _may_be_held(client, session, ended_ms):
                yield f"{_name(message)} came {session.began_ms - ended_ms} ms after its TTL"


def _may_be_held(client: Received, session: Session, ended_ms: int) -> bool:
    """Whether the node of a connection may have held a message since before the end of its TTL.

    In the client's poll session: one that was there before, and that the client has never left
    alone for longer than the session lives between two polls.
    """
    if not client.is_polling:
        return False
    began = [s.began_ms for s in client.sessions if s.node == session.node]
    if min(began) > ended_ms:
        return False
    held_until_ms = ended_ms + 1_000 * POLL_HELD_SECONDS
    for at_ms in sorted(at for at in began if ended_ms < at <= session.began_ms):
        if at_ms > held_until_ms:
            return False
        held_until_ms = at_ms + 1_000 * POLL_HELD_SECONDS  # the answer may have been lost
    return True


def _repeated_or_disordered(
    payloads: Sequence[bytes], by_payload: dict[bytes, Published]
) -> Iterator[str]:
    seen: set[bytes] = set()
    last: dict[str, int] = {}  # by lane
    for payload in payloads:
        message = by_payload[payload]
        if payload in seen:
            yield f"{_name(message)} came twice"
        elif message.number < last.get(message.lane, -1):
            yield f"{_name(message)} came behind {last[message.lane]}"
        seen.add(payload)
        last[message.lane] = max(message.number, last.get(message.lane, -1))


def _missing(client: Received, published: Sequence[Published]) -> Iterator[str]:
    if client.owed_from is None:
        return
    got = set(client.payloads)
    replaced = _replaced(published)
    for message in published:
        if (
            message.number >= client.owed_from
            and message.is_for(client)
            and message.payload not in got
            and message.number not in replaced
            and not _may_have_run_out(message, client)
        ):
            yield f"{_name(message)} is missing"


def _may_have_run_out(message: Published, client: Received) -> bool:
    ttl = message.ttl_seconds
    if ttl == 0:
        return not any(s in client.sessions and not s.has_ended for s in message.present)
    return ttl is not None and ttl < LONG_TTL_SECONDS


def _replaced(published: Sequence[Published]) -> set[int]:
    """Return the numbers of messages that a newer one of their collapse key may have replaced."""
    newest: dict[tuple[str, str, str | None, str], int] = {}
    replaced: set[int] = set()
    for message in published:
        if message.collapse_key is not None:
            place = (message.user, message.lane, message.device, message.collapse_key)
            if place in newest:
                replaced.add(newest[place])
            newest[place] = message.number
    return replaced


def _name(message: Published) -> str:
    wishes = {
        "device": message.device,
        "ttl": message.ttl_seconds,
        "key": message.collapse_key,
    }
    said = "".join(f", {name} {wish}" for name, wish in wishes.items() if wish is not None)
    return f"message {message.number} ({message.lane}{said})"
