"""docs/lifecycle.md says what connections/connection.py does: states, and the ways between them."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.connections import connection as connection_module
from gateway.connections.closes import GOING_AWAY
from gateway.connections.connection import Connection, State, StreamConnection
from gateway.takeover.format import Stream
from gateway.transports.longpoll import PollSessions
from gateway.transports.sse import SseConnection
from gateway.transports.websocket import PLAIN, V1, WebSocketConnection
from tests.unit.gateway.fakes import FakeKeeper, FakeWire, identity

DOCUMENT = Path(__file__).parents[2] / "docs" / "lifecycle.md"
Transition = tuple[str, str]
#: All that happens to a held socket's connection.
EVENTS: dict[str, Callable[[StreamConnection], object]] = {
    "open": lambda c: c.open(b"head"),
    "write": lambda c: c.write(b"message"),
    "part": lambda c: c.part(GOING_AWAY, 1.0),
    "aged": lambda c: c.aged(),
    "expired": lambda c: c.expired(),
    "close": lambda c: c.close(GOING_AWAY),
    "ended": lambda c: c.ended("client left", b"bye"),
    "too_slow": lambda c: c.too_slow(),
    "abort": lambda c: c.abort("no answer"),
    "wake": lambda c: c.wake(),
    "lost": lambda c: c.lost(),
    "capture": lambda c: c.can_be_captured and c.capture(c.record(0), Stream()),
}
#: How a connection gets to where it meets one of them.
WAYS = ((), ("open",), ("open", "part"), ("open", "close"), ("open", "lost"))


class _Observed:
    """Remembers each change of `state`."""

    _changes: list[Transition]

    def __setattr__(self, name: str, value: object) -> None:
        if name == "state" and isinstance(value, State):
            before = getattr(self, "state", None)
            if isinstance(before, State):
                self._changes.append((before.name, value.name))
        super().__setattr__(name, value)


class _WebSocket(_Observed, WebSocketConnection):
    pass


class _Sse(_Observed, SseConnection):
    pass


MAKERS: dict[str, Callable[[], _WebSocket | _Sse]] = {
    "plain": lambda: _WebSocket(identity(), FakeKeeper(), subprotocol=PLAIN),
    "v1": lambda: _WebSocket(identity(), FakeKeeper(), subprotocol=V1),
    "sse": lambda: _Sse(identity(), FakeKeeper()),
}


def test_the_document_has_every_state_with_its_sentence_in_their_order() -> None:
    assert list(_table("States")) == [(state.name, state.value) for state in State]


def test_the_diagram_has_every_state_once() -> None:
    diagram = DOCUMENT.read_text().split("```")[1]
    assert sorted(re.findall(r"[A-Z]+", diagram)) == sorted(state.name for state in State)


def test_the_document_has_every_transition_that_is_made_and_no_other() -> None:
    made = {change for make in MAKERS.values() for change in _changes_of(make)}
    assert made == _documented()


def test_what_the_docstrings_name_is_documented() -> None:
    assert {(a, b) for a, b in _named() if "Any" not in (a, b) and a != b} <= _documented()


def test_what_is_documented_is_named_in_a_docstring() -> None:
    named = _named()
    assert {(a, b) for a, b in _documented() if {(a, b), ("Any", b)}.isdisjoint(named)} == set()


def test_a_poll_session_begins_open_and_parts_with_an_answer() -> None:
    session = PollSessions(soon=lambda _: None).open(identity(), FakeKeeper())
    states = [session.state]
    session.part(GOING_AWAY, 1.0)
    states.append(session.state)
    session.poll()
    session.take_goodbye()
    assert [*states, session.state] == [State.OPEN, State.PARTING, State.CLOSED]


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_held_socket_begins_opening(make: Callable[[], Connection]) -> None:
    assert make().state is State.OPENING


def _changes_of(make: Callable[[], _WebSocket | _Sse]) -> Iterator[Transition]:
    for way in WAYS:
        for event in EVENTS.values():
            connection = make()
            changes: list[Transition] = []
            connection._changes = changes
            connection.attach(FakeWire())
            for step in way:
                EVENTS[step](connection)
            event(connection)
            yield from changes


def _documented() -> set[Transition]:
    rows = (cell.split(" → ") for cell, _ in _table("Transitions"))
    return {(before, after) for before, after in rows}


def _named() -> set[Transition]:
    """Give what docstrings of connection.py name: `A, B → C` is two."""
    found: set[Transition] = set()
    for node in ast.walk(ast.parse(Path(connection_module.__file__).read_text())):
        if isinstance(node, ast.FunctionDef):
            text = ast.get_docstring(node) or ""
            for befores, after in re.findall(r"(\w+(?:, \w+)*) → (\w+)", text):
                found |= {(before, after) for before in befores.split(", ")}
    return found


def _table(section: str) -> Iterator[tuple[str, str]]:
    text = DOCUMENT.read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    for row in rows[1:]:  # the first is the head
        name, _, meaning = row.strip("| ").partition(" | ")
        yield name, meaning
