"""Questions to the processors: which messages have returning clients missed?

A resuming connection is asked for once the user's entry is written and the lease is held: look-ups
from then on find the connection, and messages taken in before are in the answer. Questions are
gathered while an ask is under way. A silent processor is asked again, for a minute: after the end
of a processor, partitions have no owner for up to twenty seconds. Without an answer by then, the
client is told of a gap.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import islice
from typing import Final, NamedTuple, ParamSpec, Protocol, cast

import msgspec
import structlog

from gateway import metrics
from gateway.connections.closes import TOO_SLOW
from gateway.connections.connection import Connection
from gateway.connections.cursor import (
    MOST_AHEAD_MS,
    Cursor,
    Partition,
    is_position,
    read_cursor,
)
from gateway.connections.delivery import Delivery
from gateway.connections.gate import Gate, Replayed, SharedEnds
from gateway.connections.node import GatewayNode
from gateway.errors import GatewayError
from gateway.takeover.format import GateRecord, ReplayedRecord
from registry.message import Push, valid_id, valid_type
from registry.resume import (
    MAX_ASK_BYTES,
    MAX_QUESTIONS,
    Answer,
    Ask,
    Position,
    Question,
    Replay,
    Stamp,
    push_in,
)

#: The least and the longest time between two asks; a client that comes after a longer pause is
#: asked for at once. An ask takes some 0.2 ms of CPU, here and at each processor, beside 1 ms for
#: each proof of ownership there: with 250 clients a second and gateway the longest time saves a
#: quarter of what a client costs (1.32 ms for 1.68 in turns; loadtest/results/resumes.json).
_BETWEEN_ASKS_SECONDS: Final = (0.02, 0.1)
#: The time to the next ask grows by so much for each client of the last ask: a few clients a second
#: wait for the least time, from 100 a second on for the longest.
_A_CLIENT_SECONDS: Final = 0.01
#: Unanswered asks of a processor at most; further connections wait.
MOST_ASKS: Final = 4
#: Bytes of a question without positions, and of a position, at most.
_QUESTION_BYTES: Final = 1_024
_POSITION_BYTES: Final = 270
#: How long the answers to an ask are waited for, before the connections are asked for again.
_ANSWER_SECONDS: Final = 2.0
#: Pauses before a connection is asked for again.
_AGAIN_SECONDS: Final = (0.1, 0.25, 0.5, 1.0, 2.0)
#: How long a connection is asked for in all.
_GIVE_UP_SECONDS: Final = 60.0
#: How long a connection waits behind messages of a partition that no processor names, though all
#: live processors answer.
_STRANGERS_SECONDS: Final = 5.0
#: How long a wait for the registry takes, at most.
_FIND_SECONDS: Final = 5.0

#: For how many clients messages of answers are written in one turn of the loop: some 3 ms, behind
#: which pushes to other clients go on.
_CLIENTS_A_TURN: Final = 20

#: Missed messages are written together, up to so many bytes and the rest of a message.
_SLICE_BYTES: Final = 16 * 1024

_P = ParamSpec("_P")
_resumes: Final = cache(metrics.RESUMES.labels)

log = structlog.get_logger("gateway.resume")


class Link(Protocol):
    """The resume link of a processor."""

    @property
    def processor(self) -> str | None:
        """The processor's name; None before the first stamp."""

    def ask(self, ask: Ask) -> None:
        """Send questions."""

    def replayed(self, delivery: Delivery) -> None:
        """Note that a connection has taken a message of the processor's answers."""


class _Missed(Delivery):
    """A missed message, of a processor's answer: for a single connection."""

    __slots__ = ("link",)

    def __init__(self, push: Push, link: Link) -> None:
        super().__init__(
            push.data, message_id=push.id, event_type=push.type, position=push.position
        )
        self.link = link

    def with_cursor(self, cursor: str) -> Delivery:
        """Change the cursor: no other connection gets the message."""
        if cursor != self._cursor:
            self._cursor = cursor
            self._encoded.clear()
        return self


class _Resuming:
    """A connection behind a gate, and the state of the questions."""

    __slots__ = (
        "ask_when_written",
        "attempts",
        "connection",
        "gate",
        "has_more",
        "opened",
        "since",
        "strange_since",
    )

    def __init__(self, connection: Connection, gate: Gate, now: float) -> None:
        self.connection = connection
        self.gate = gate
        self.opened = now
        self.since = now  # when an answer last brought the connection further
        #: From when on messages wait of a partition that no live processor names; None for none.
        self.strange_since: float | None = None
        self.attempts = 0  # asks without all answers
        self.has_more = False  # an answer was cut: the rest is asked for without a pause
        self.ask_when_written = False  # once the client has read the last answer

    @property
    def lasts(self) -> bool:
        """Whether the gate is still to be opened."""
        return self.connection.screen is self.gate


class _UnderWay:
    """An ask without all answers."""

    __slots__ = ("awaited", "began", "ended", "owners", "pending", "resuming", "taking")

    def __init__(self, resuming: Sequence[_Resuming], awaited: set[Link], began: float) -> None:
        self.resuming = resuming
        self.awaited = awaited
        self.began = began
        self.taking = 0  # answers that are being taken, a part in each turn of the loop
        #: The connections are asked for again; a late answer counts all the same.
        self.ended = False
        self.owners: set[str] = set()  # processors that have answered, and named a partition
        self.pending: set[Partition] = set()  # partitions that can't be answered for yet


class _Taking(NamedTuple):
    """An answer that is being taken; `replays` are left."""

    ask: _UnderWay
    link: Link
    answer: Answer
    replays: Iterator[tuple[_Resuming, Replay]]


class Questions:
    """Asks for the missed messages of connections, and writes the answers."""

    def __init__(
        self,
        node: GatewayNode,
        *,
        resume_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node = node
        self._resume_seconds = resume_seconds
        self._clock = clock
        self._links: set[Link] = set()
        self._waiting: deque[_Resuming] = deque()  # to be asked for
        self._again: list[tuple[float, _Resuming]] = []  # to be asked for from a time on
        self._under_way: dict[int, _UnderWay] = {}
        #: Answers to asks under way, and the next turn of the loop that takes a part.
        self._taking: deque[_Taking] = deque()
        self._next_turn: asyncio.Handle | None = None
        self._writing: dict[_Resuming, None] = {}  # answers wait for the client to read
        self._screens: deque[tuple[float, Connection]] = deque()  # with their last moment
        self._shared: SharedEnds = {}
        self._finding: set[asyncio.Task[None]] = set()
        self._next_number = 0
        self._soon: asyncio.Handle | None = None  # the next ask
        self._next_ask_at = -math.inf  # by the loop's time
        self._warned_of: set[str] = set()

    def cursor_in(self, text: str) -> Cursor | None:
        """Return the cursor in a client's text; None where the text is no use for a question.

        A text of no gateway, a time in the future, a time before the window.
        """
        cursor = read_cursor(text)
        now_ms = self._node.as_of.clock.now_ms(self._clock())
        if cursor is None or now_ms is None:
            return None
        age_ms = now_ms - cursor.as_of_ms
        return cursor if -MOST_AHEAD_MS <= age_ms <= self._resume_seconds * 1_000 else None

    def gate(self, connection: Connection, cursor: Cursor) -> None:
        """Put a gate in front of a connection, before the node holds the connection."""
        connection.screen = Gate(cursor, most_bytes=self._node.bounds.send_buffer_bytes)

    def gate_from_now(self, connection: Connection) -> None:
        """Put a gate in front of a held connection, for what is published from now on.

        Nothing is done where the client resumes from a cursor, or a look-up has found it already.
        """
        now_ms = self._node.as_of.clock.now_ms(self._clock())
        is_new = connection.takes_messages and connection.screen is None
        if is_new and now_ms is not None and not connection.has_backlog():
            gate = Gate(Cursor(now_ms), most_bytes=self._node.bounds.send_buffer_bytes)
            self._node.hub.put_screen(connection, gate)

    def begin(self, connection: Connection) -> None:
        """Ask for the missed messages of a connection behind a gate, after the handshake."""
        gate = connection.screen
        if not isinstance(gate, Gate):
            return
        resuming = _Resuming(connection, gate, self._clock())
        if self._node.registrar.is_findable(connection.user):
            self._waiting.append(resuming)
            self._ask_soon()
        else:
            task = asyncio.get_running_loop().create_task(self._find(resuming))
            self._finding.add(task)
            task.add_done_callback(self._finding.discard)

    def adopt(self, connection: Connection, record: GateRecord | ReplayedRecord) -> None:
        """Put the screen of a connection of the earlier process in front of a held connection.

        Behind a gate, what the client has missed is asked for; see Gate.adopt.
        """
        hub = self._node.hub
        if isinstance(record, GateRecord):
            gate = Gate.adopt(record, most_bytes=self._node.bounds.send_buffer_bytes)
            hub.put_screen(connection, gate)
            self.begin(connection)
        else:
            screen = Replayed.adopt(record, self._shared)
            hub.put_screen(connection, screen)
            self._screens.append((self._clock() + self._resume_seconds, connection))

    def join(self, link: Link) -> None:
        """Ask a processor too from now on; at once for connections that wait for their next ask.

        A node that has just started is ready before processors have links to it.
        """
        self._links.add(link)
        self._waiting.extend(resuming for _, resuming in self._again)
        self._again.clear()
        if self._waiting:
            self._ask_soon()

    def leave(self, link: Link) -> None:
        """Ask a processor no more; unanswered questions are asked again."""
        self._links.discard(link)
        for number, ask in list(self._under_way.items()):
            if link in ask.awaited:
                ask.awaited.discard(link)
                self._end_if_answered(number, ask)

    def close(self) -> None:
        """Ask nothing more."""
        for task in self._finding:
            task.cancel()
        for handle in (self._soon, self._next_turn):
            if handle is not None:
                handle.cancel()

    def stamped(self, stamp: Stamp) -> None:
        """Take a processor's stamp; tell the connections of users with missed messages of a gap."""
        hub = self._node.hub
        for user in hub.users() if stamp.missed_more else stamp.missed:
            for connection in hub.of(user):
                self._apart(connection, connection.tell_gap)
        self._node.as_of.stamped(stamp.processor, stamp.stamp_ms)
        if stamp.resume_seconds != self._resume_seconds and stamp.processor not in self._warned_of:
            self._warned_of.add(stamp.processor)
            log.warning(
                "PUSHGATE_RESUME_SECONDS differs between this gateway and a processor",
                gateway=self._resume_seconds,
                processor=stamp.resume_seconds,
            )

    def answered(self, link: Link, answer: Answer) -> None:
        """Write missed messages to connections, as far as a processor answers."""
        ask = self._under_way.get(answer.number)
        if ask is None or link not in ask.awaited:
            return
        ask.awaited.discard(link)
        ask.pending.update(answer.pending)
        if answer.owned or answer.pending:
            ask.owners.add(answer.processor)
        if len(answer.replays) != len(ask.resuming):
            self._end_if_answered(answer.number, ask)
            return
        ask.taking += 1
        pairs = zip(ask.resuming, answer.replays, strict=True)
        self._taking.append(_Taking(ask, link, answer, pairs))
        if self._next_turn is None:
            self._take_some()

    def _take_some(self) -> None:
        """Take answers for some clients now, and the rest in the loop's next turns."""
        self._next_turn = None
        room = _CLIENTS_A_TURN
        while self._taking and room:
            ask, link, answer, replays = self._taking[0]
            resuming: _Resuming | None = None
            for resuming, replay in islice(replays, room):
                room -= 1
                if resuming.lasts:
                    self._apart(resuming.connection, self._take, resuming, link, answer, replay)
            if room or resuming is ask.resuming[-1]:
                self._taking.popleft()
                ask.taking -= 1
                self._end_if_answered(answer.number, ask)
        if self._taking:
            self._next_turn = asyncio.get_running_loop().call_soon(self._take_some)

    def advance(self) -> None:
        """Do the due work: called at every tick of the node's clock."""
        now = self._clock()
        for number, ask in list(self._under_way.items()):
            if not ask.ended and now - ask.began >= _ANSWER_SECONDS:
                self._end(ask)
            if now - ask.began >= _GIVE_UP_SECONDS:
                del self._under_way[number]
        for resuming in list(self._writing):
            self._apart(resuming.connection, self._write, resuming)
        due = [resuming for at, resuming in self._again if at <= now]
        if due:
            self._again = [(at, resuming) for at, resuming in self._again if at > now]
            self._waiting.extend(due)
        while self._screens and self._screens[0][0] <= now:
            _, connection = self._screens.popleft()
            if isinstance(connection.screen, Replayed):
                self._node.hub.put_screen(connection, None)
        self._shared.clear()  # connections with one answer finish in one turn
        self._give_up_those_in_vain(now)
        self._ask()

    async def _find(self, resuming: _Resuming) -> None:
        """Wait until look-ups find the connection; then ask."""
        connection = resuming.connection
        while resuming.lasts:
            if await self._node.registrar.findable(connection.user, timeout_seconds=_FIND_SECONDS):
                self._waiting.append(resuming)
                self._ask_soon()
                return
            if self._clock() - resuming.opened > _GIVE_UP_SECONDS:
                self._apart(connection, self._give_up, resuming)
                return
            await asyncio.sleep(_AGAIN_SECONDS[-1])

    def _ask_soon(self) -> None:
        """Ask with all clients of this turn of the loop, or of the time to the next ask.

        The clients of one registration come in one turn.
        """
        if self._soon is None:
            loop = asyncio.get_running_loop()
            wait = self._next_ask_at - loop.time()
            if wait > 0:
                self._soon = loop.call_later(wait, self._ask_gathered)
            else:
                self._soon = loop.call_soon(self._ask_gathered)

    def _ask_gathered(self) -> None:
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        if self._waiting:
            least, longest = _BETWEEN_ASKS_SECONDS
            pause = max(least, min(longest, _A_CLIENT_SECONDS * len(self._waiting)))
            self._next_ask_at = asyncio.get_running_loop().time() + pause
            self._ask()

    def _ask(self) -> None:
        """Ask for waiting connections, where processors have few unanswered asks."""
        while self._waiting:
            unanswered = Counter(link for ask in self._under_way.values() for link in ask.awaited)
            links = {link for link in self._links if unanswered[link] < MOST_ASKS}
            if self._links and not links:
                return
            batch = self._next_batch()
            if not batch:
                return
            number, self._next_number = self._next_number, self._next_number + 1
            under_way = self._under_way[number] = _UnderWay(batch, links, self._clock())
            ask = Ask(number, [_question(resuming) for resuming in batch])
            for link in list(links):
                link.ask(ask)
            if not under_way.awaited:  # no processor to ask
                del self._under_way[number]
                self._end(under_way)

    def _next_batch(self) -> list[_Resuming]:
        batch: list[_Resuming] = []
        size = 0
        while self._waiting and len(batch) < MAX_QUESTIONS and size < MAX_ASK_BYTES // 2:
            resuming = self._waiting.popleft()
            if resuming.lasts:
                batch.append(resuming)
                size += _QUESTION_BYTES + _POSITION_BYTES * len(resuming.gate.positions)
        return batch

    def _take(self, resuming: _Resuming, link: Link, answer: Answer, replay: Replay) -> None:
        """Take a processor's answer for a connection, and write the messages."""
        connection, gate = resuming.connection, resuming.gate
        messages: dict[Partition, list[Delivery]] = {}
        try:
            for message in replay.messages:
                delivery = _missed(push_in(message), link, connection)
                topic, number, _ = cast("Position", delivery.place)
                messages.setdefault((topic, number), []).append(delivery)
        except (msgspec.MsgspecError, NotForConnection) as error:
            log.error("an answer is of no use", connection=connection.id, error=str(error))
            return
        gate.heard.add(answer.processor)
        gate.take_counts(answer.partitions)
        if replay.incomplete and not gate.has_gap:
            gate.has_gap = True
            connection.tell_gap()
        for at, (topic, number, end) in enumerate(answer.owned):
            partition = (topic, number)
            if at in replay.void:
                gate.void(partition)
                connection.forget_position(partition)
            cut = replay.cut.get(at)
            further = gate.answer(
                partition,
                messages.get(partition, ()),
                end if cut is None else cut,
                whole=cut is None,
            )
            if further:
                resuming.since = self._clock()
        resuming.has_more |= bool(replay.cut)
        self._write(resuming)

    def _write(self, resuming: _Resuming) -> None:
        """Write answered and waiting messages, as far as there is room."""
        connection, gate = resuming.connection, resuming.gate
        if not resuming.lasts:
            self._writing.pop(resuming, None)
            return
        write = _write_slice if connection.joins_writes else _write_one
        while gate.next_to_write() is not None:
            taken = write(connection, gate) if connection.takes_replay() else ()
            if not taken:
                self._writing[resuming] = None
                return
            # And no live messages that have waited.
            missed = [delivery for delivery in taken if isinstance(delivery, _Missed)]
            metrics.REPLAYED.inc(len(missed))
            for delivery in missed:
                delivery.link.replayed(delivery)
        self._writing.pop(resuming, None)
        if gate.is_whole(self._node.as_of.processors):
            self._finish(resuming, "gap" if gate.has_gap else "whole")
        elif resuming.ask_when_written:
            resuming.ask_when_written = False
            self._waiting.append(resuming)

    def _end_if_answered(self, number: int, ask: _UnderWay) -> None:
        if not (ask.awaited or ask.taking):
            self._under_way.pop(number, None)
            has_more = any(resuming.has_more for resuming in ask.resuming)
            if not ask.ended:
                self._end(ask)
            if has_more:
                self._ask_gathered()
            elif self._waiting:
                self._ask_soon()

    def _end(self, ask: _UnderWay) -> None:
        """End an ask: connections without all answers are asked for again."""
        ask.ended = True
        now = self._clock()
        for resuming in ask.resuming:
            if not resuming.lasts:
                continue
            self._look_for_strangers(resuming, ask)
            if self._is_in_vain(resuming, now):
                self._apart(resuming.connection, self._give_up, resuming)
            elif resuming.gate.is_writing:
                resuming.ask_when_written = True
            elif resuming.has_more:
                resuming.has_more = False
                self._waiting.append(resuming)
            else:
                pause = _AGAIN_SECONDS[min(resuming.attempts, len(_AGAIN_SECONDS) - 1)]
                resuming.attempts += 1
                self._again.append((now + pause, resuming))

    def _is_in_vain(self, resuming: _Resuming, now: float) -> bool:
        """Whether no answer is going to come.

        Where no processor names a partition for seconds, and its messages come, the partition's
        processor does not take part: an older version, for example.
        """
        if resuming.gate.is_writing:
            return False
        strange_since = resuming.strange_since
        if strange_since is not None and now - strange_since > _STRANGERS_SECONDS:
            return True
        return now - resuming.since > _GIVE_UP_SECONDS

    def _look_for_strangers(self, resuming: _Resuming, ask: _UnderWay) -> None:
        """Note since when messages wait of a partition that no live processor names.

        A processor that has died is live until its lease lapses, later than its partitions have
        another owner; one that names no partition may be about to get some. Both say nothing.
        """
        is_known = ask.owners.issuperset(self._node.as_of.processors)
        if not (is_known and resuming.gate.waits_beside(ask.pending)):
            resuming.strange_since = None
        elif resuming.strange_since is None:
            resuming.strange_since = ask.began

    def _give_up_those_in_vain(self, now: float) -> None:
        """Give up connections in the queue of questions, where processors answer too slowly."""
        waiting = [*self._waiting, *(resuming for _, resuming in self._again)]
        for resuming in waiting:
            if resuming.lasts and self._is_in_vain(resuming, now):
                self._apart(resuming.connection, self._give_up, resuming)

    def _give_up(self, resuming: _Resuming) -> None:
        """Tell a client of a gap for want of answers; the client goes on from here."""
        connection, gate = resuming.connection, resuming.gate
        if not gate.has_gap:
            gate.has_gap = True
            connection.tell_gap()
        if not resuming.lasts:  # to tell has ended the connection
            return
        gate.open_all()
        while (delivery := gate.next_to_write()) is not None:
            if not connection.write(gate.encoded(delivery, connection.form)):
                connection.close(TOO_SLOW)  # to go on would carry the cursor past a hole
                return
            gate.wrote(delivery)
        self._finish(resuming, "timed-out")

    def _finish(self, resuming: _Resuming, result: str) -> None:
        """Take the gate away: live messages come at once from now on."""
        now = self._clock()
        _resumes(result).inc()
        metrics.RESUME_SECONDS.observe(now - resuming.opened)
        self._writing.pop(resuming, None)
        self._node.hub.put_screen(resuming.connection, resuming.gate.replayed(self._shared))
        self._screens.append((now + self._resume_seconds, resuming.connection))
        resuming.connection.resumed()

    def _apart(
        self, connection: Connection, act: Callable[_P, None], *args: _P.args, **kwargs: _P.kwargs
    ) -> None:
        """Act for a connection; an unexpected error ends the connection, and nothing more."""
        try:
            act(*args, **kwargs)
        except Exception:  # any fault: further connections go on
            connection.failed()


def _write_slice(connection: Connection, gate: Gate) -> Sequence[Delivery]:
    """Write the next messages in one write: ten writes cost 35 µs more. Return what was taken.

    A connection that joins writes takes every write as long as there is no backlog, or has ended.
    """
    taken: list[Delivery] = []
    encoded: list[bytes] = []
    size = 0
    while size < _SLICE_BYTES and (delivery := gate.next_to_write()) is not None:
        taken.append(delivery)
        encoded.append(gate.encoded(delivery, connection.form))
        size += len(encoded[-1])
        gate.wrote(delivery)
    return taken if connection.write(b"".join(encoded)) else ()


def _write_one(connection: Connection, gate: Gate) -> Sequence[Delivery]:
    """Write the next message. Return what was taken: nothing where there is no room."""
    delivery = gate.next_to_write()
    if delivery is None or not connection.write(gate.encoded(delivery, connection.form)):
        return ()
    gate.wrote(delivery)
    return (delivery,)


class NotForConnection(GatewayError):
    """An answer has a message for another connection, or for none."""


def _question(resuming: _Resuming) -> Question:
    connection, gate = resuming.connection, resuming.gate
    positions = [
        (topic, partition, offset) for (topic, partition), offset in gate.positions.items()
    ]
    return Question(connection.user, connection.device, gate.as_of_ms, positions)


def _missed(push: Push, link: Link, connection: Connection) -> _Missed:
    """Return a message of an answer as a delivery to a connection.

    Raises:
        NotForConnection: the message is for another user or device, or breaks a rule.
    """
    position = push.position
    for_it = push.user == connection.user and push.device in (None, connection.device)
    valid = (
        position is not None
        and is_position(position)
        and (push.id == position or valid_id(push.id))
        and (push.type is None or valid_type(push.type))
    )
    if not (for_it and valid):
        raise NotForConnection(f"message {push.id!r}")
    return _Missed(push, link)
