"""The console of `pushgate dev`: a line for each failure that nothing else on the screen shows.

A line has the event's kind, the event, and a cure. A kind has a line a second at most; further
events of the second are counted, and the count is told when the second is over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

from starlette.exceptions import HTTPException

from gateway import metrics
from processor.outcomes.outcome import Kind, Outcome, outcome_of
from processor.reading.message import Message, Rejection
from pushgate.settings import DevSettings

_PAUSE_SECONDS: Final = 1.0
#: Characters shown of a name that a publisher or a client has chosen.
_MOST_CHARACTERS: Final = 200

#: Cures of failed messages, by the reason of the outcome (docs/protocol.md, "Outcomes").
_FAILURES: Final = {
    "unreachable": "a gateway does not answer, and too many messages wait for it",
    "overloaded": "the client does not read; PUSHGATE_OVERLOADED_SECONDS is how long it may",
    "too-large": "raise PUSHGATE_MAX_PAYLOAD_BYTES for gateways too",
    "outside-networks": "see PUSHGATE_GATEWAY_NETWORKS",
}
#: Cures of refused clients, by the refusal's status.
_REFUSALS: Final = {
    401: "pushgate token USER prints a good one",
    403: "allow the page's origin with PUSHGATE_ORIGINS",
}
#: The settings of a refusal for load, by the refusal's reason.
_LIMITS: Final = {
    "full": "PUSHGATE_MAX_CONNECTIONS",
    "short of memory": "PUSHGATE_MAX_MEMORY_BYTES",
    "too many new connections": "PUSHGATE_HANDSHAKES_PER_SECOND",
    "too many connections from this address": "PUSHGATE_MAX_CONNECTIONS_PER_ADDRESS",
    "too many connections of this user": "PUSHGATE_MAX_CONNECTIONS_PER_USER",
}


class Lines:
    """Writes lines, of each kind at a bounded rate. Times are in seconds of any clock."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._held: dict[str, int] = {}  # events since a kind's line, by kind
        self._told_at: dict[str, float] = {}

    def tell(self, kind: str, text: str, *, now: float) -> None:
        """Write a line, or count it where the kind's last line is less than a second old."""
        if kind in self._told_at:
            self._held[kind] += 1
            return
        self._told_at[kind], self._held[kind] = now, 0
        self._write(f"{kind:12} {text}")

    def advance(self, now: float) -> None:
        """Write the number of events that were held back, for kinds with a line a second ago."""
        for kind in [kind for kind, at in self._told_at.items() if now - at >= _PAUSE_SECONDS]:
            del self._told_at[kind]
            if held := self._held.pop(kind):
                self._write(f"{kind:12} {held} more within a second")


class Console:
    """Tells of rejected, offline and failed messages, of refused clients and of gaps."""

    def __init__(
        self, settings: DevSettings, write: Callable[[str], None], *, clock: Callable[[], float]
    ) -> None:
        """`write` takes a line; `clock` gives seconds."""
        self._settings = settings
        self._lines = Lines(lambda line: write(f"{datetime.now():%H:%M:%S} {line}"))
        self._clock = clock
        self._gaps = _gaps_told()

    def settled(self, messages: Sequence[Message]) -> None:
        """Tell of messages that were not delivered; a processor calls this."""
        for message in messages:
            outcome = outcome_of(message)
            if outcome.kind in {Kind.OFFLINE, Kind.FAILED, Kind.EXPIRED}:
                name = f"{message.push.id} for {message.push.user}"
                self._tell(outcome.name, name, _cure(message, outcome))

    def rejected(self, rejections: Sequence[Rejection]) -> None:
        """Tell of records that break the publishing rules; a processor calls this."""
        for rejection in rejections:
            record = rejection.record
            place = f"{record.topic}-{record.partition}-{record.offset}"
            topic = self._settings.dead_letter_topic
            self._tell("rejected", f"{place}: {rejection.error}", f"kept in {topic}")

    def refused(self, refusal: HTTPException) -> None:
        """Tell of a client that the gateway refuses for its credential, its page or for load."""
        status, reason = refusal.status_code, refusal.detail
        if status == 503:
            cure = _LIMITS.get(reason, "the client tries again")
        elif status in _REFUSALS:
            cure = _REFUSALS[status]
        else:
            return  # a malformed request, or no client's: the answer names the fault
        self._tell(f"refused {status}", reason, cure)

    def advance(self) -> None:
        """Tell of gaps, and of events that were held back; called several times a second."""
        gaps = _gaps_told()
        if gaps > self._gaps:
            seconds = f"{self._settings.resume_seconds:g}"
            self._tell(
                "gap",
                f"clients told that messages may be missing: {gaps - self._gaps:g}",
                f"away for longer than PUSHGATE_RESUME_SECONDS ({seconds}), or with an unknown "
                "cursor; the page fetches its state afresh",
            )
        self._gaps = gaps
        self._lines.advance(self._clock())

    def _tell(self, kind: str, event: str, cure: str) -> None:
        self._lines.tell(kind, f"{_shown(event)}: {_shown(cure)}", now=self._clock())


def _shown(text: str) -> str:
    """Return a line's part, cut where it is too long.

    Names are a publisher's or a client's choice: no line feed or escape reaches the terminal.
    """
    cut = text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"
    return "".join(character if character.isprintable() else "�" for character in cut)


def _gaps_told() -> float:
    """Return the number of gaps that this process's gateway has told to clients."""
    [family] = metrics.GAPS.collect()
    return next(s.value for s in family.samples if s.name.endswith("_total"))


def _cure(message: Message, outcome: Outcome) -> str:
    if outcome.kind is Kind.FAILED:
        return f"{outcome.reason}; {_FAILURES.get(outcome.reason, 'see the log')}"
    if outcome.kind is Kind.EXPIRED:
        return f"older than its push-ttl of {message.envelope.ttl_seconds} s"
    device = message.push.device
    if device is not None:
        return f"no connection of the device {device!r}, whose token names it"
    return f"no connection of this user; pushgate listen {message.push.user} is one"
