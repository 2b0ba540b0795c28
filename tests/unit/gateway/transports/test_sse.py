"""Server-sent events, read back as the HTML standard says (§9.2.6)."""

import json
import re
from base64 import b64decode
from dataclasses import dataclass, replace

import pytest

from gateway.connections.closes import (
    CLOSE_GRACE_SECONDS,
    CLOSES,
    GOING_AWAY,
    TOO_OLD,
    TOO_SLOW,
    Close,
    Next,
)
from gateway.connections.connection import State
from gateway.connections.delivery import Delivery
from gateway.http.head import Head
from gateway.transports import sse
from gateway.transports.sse import SseConnection
from tests.unit.gateway.fakes import BOUNDS, FakeKeeper, FakeWire, give, identity, message


@dataclass
class Event:
    id: str
    type: str
    data: str


#: What is sent at the opening and at each heartbeat of 25 s: no id, so that the last one stays.
HEARTBEAT = Event("", "pushgate.cursor", "25000")


def parse(stream: bytes) -> tuple[list[Event], int | None]:
    """The standard's algorithm, line by line, with a browser's own state."""
    text = stream.decode("utf-8").removeprefix("\ufeff")
    *lines, rest = re.split(r"\r\n|\n|\r", text)
    assert rest == "", "the stream ends within a line"
    events: list[Event] = []
    retry: int | None = None
    last_id, data, name = "", "", ""
    for line in lines:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if line == "":
            if data:
                events.append(Event(last_id, name or "message", data.removesuffix("\n")))
            data, name = "", ""
        elif field == "event":
            name = value
        elif field == "data":
            data += value + "\n"
        elif field == "id" and "\x00" not in value:
            last_id = value
        elif field == "retry" and value.isdigit():
            retry = int(value)
        else:
            assert field == "", f"a field of no meaning: {line!r}"
    return events, retry


def events_of(*deliveries: Delivery) -> list[Event]:
    body = sse.stream_head(b"", heartbeat_seconds=25.0).partition(b"\r\n\r\n")[2]
    return parse(body + b"".join(map(sse.event, deliveries)))[0][1:]


HOSTILE = [
    "plain",
    "",
    " leading space",
    "  two",
    ":colon first",
    "data: injected",
    "\x00",
    "a\x00b",
    "\ufeffbom",
    "\u2028\u2029\x85\x0b\x0c\x1c\x1e",
    "😀" * 1_000,
    "x" * 65_536,
    "tab\tand back\\slash",
    "\n",
    "\n\n",
    "one\ntwo",
    "trailing\n",
    "one\n\nid: 7\nevent: open\ndata: injected\n\n",
    "one\n\n:comment\n\nretry: 1\n\n",
]


@pytest.mark.parametrize("payload", HOSTILE, ids=lambda text: repr(text[:20]))
def test_a_payload_arrives_as_it_was_published(payload: str) -> None:
    assert events_of(message(payload)) == [Event("m-1", "message", payload)]


@pytest.mark.parametrize("end", ["\r", "\r\n"])
def test_cr_and_crlf_arrive_as_lf_and_inject_nothing(end: str) -> None:
    payload = f"one{end}{end}id: 7{end}event: open{end}data: two{end}{end}"
    assert events_of(message(payload)) == [Event("m-1", "message", payload.replace(end, "\n"))]


def test_hostile_messages_in_a_row_stay_apart() -> None:
    deliveries = [message(text, f"m-{number}") for number, text in enumerate(HOSTILE)]
    assert [(event.id, event.data) for event in events_of(*deliveries)] == [
        (f"m-{number}", text) for number, text in enumerate(HOSTILE)
    ]


@pytest.mark.parametrize("name", ["chat", "chat message", "a:b", " spaced", "é", "data", "\u2028"])
def test_the_type_is_the_events_name(name: str) -> None:
    delivery = Delivery(b"x", message_id="m-1", event_type=name)
    assert events_of(delivery) == [Event("m-1", name, "x")]


def test_the_name_of_one_event_is_not_that_of_the_next() -> None:
    named = Delivery(b"x", message_id="m-1", event_type="chat")
    assert [event.type for event in events_of(named, message())] == ["chat", "message"]


def test_the_last_part_of_the_cursor_is_the_messages_id() -> None:
    assert events_of(message(message_id="push-0-7"))[0].id.split(" ")[-1] == "push-0-7"


def test_what_is_no_text_is_an_event_of_its_own_type_with_the_json_form() -> None:
    (event,) = events_of(Delivery(b"\xff\n\x00", message_id="m-1", event_type="chat"))
    assert event.type == "pushgate.binary"
    form = json.loads(event.data)
    assert b64decode(form.pop("data")) == b"\xff\n\x00"
    assert form == {"id": "m-1", "type": "chat", "encoding": "base64"}


def test_the_head_starts_an_event_stream_that_nobody_buffers() -> None:
    head, _, body = sse.stream_head(b"vary: origin\r\n", heartbeat_seconds=25.0).partition(
        b"\r\n\r\n"
    )
    lines = head.split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 200 OK"
    fields = dict(line.split(b": ", 1) for line in lines[1:])
    assert fields[b"content-type"].startswith(b"text/event-stream")
    assert fields[b"cache-control"] == b"no-store, no-transform"  # nor does a proxy compress it
    assert fields[b"x-accel-buffering"] == b"no"
    assert fields[b"vary"] == b"origin"
    assert b"content-length" not in fields
    assert parse(body) == ([HEARTBEAT], None)


def test_the_delay_of_a_client_is_drawn_for_each() -> None:
    delays = {parse(sse.retry())[1] for _ in range(50)}
    low, high = sse.RETRY_MS
    assert len(delays) > 10
    assert all(delay is not None and low <= delay <= high for delay in delays)


class Rig:
    def __init__(self) -> None:
        self.keeper = FakeKeeper()
        self.wire = FakeWire()
        self.connection = SseConnection(identity(), self.keeper)
        self.connection.attach(self.wire)
        self.connection.open(b"")


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_a_message_is_one_event(rig: Rig) -> None:
    assert give(rig.connection, message("one"))
    assert parse(rig.wire.take()) == ([Event("m-1", "message", "one")], None)


def test_a_heartbeat_is_an_event_and_asks_for_the_next(rig: Rig) -> None:
    assert rig.keeper.wake_in is not None
    assert BOUNDS.heartbeat_seconds / 2 <= rig.keeper.wake_in <= BOUNDS.heartbeat_seconds
    rig.keeper.wake(rig.connection)
    assert parse(rig.wire.take()) == ([HEARTBEAT], None)
    assert rig.keeper.wake_in == BOUNDS.heartbeat_seconds


def test_heartbeats_of_those_that_opened_together_are_out_of_step() -> None:
    assert len({Rig().keeper.wake_in for _ in range(20)}) > 10


def test_what_a_client_sends_means_nothing(rig: Rig) -> None:
    rig.connection.received(b"GET / HTTP/1.1\r\n\r\n" * 1_000)
    assert rig.connection.state is State.OPEN
    assert rig.wire.take() == b""


@pytest.mark.parametrize("close", CLOSES, ids=lambda close: str(close.code))
def test_goodbye_is_an_event_with_the_close_and_a_delay_and_the_end_of_the_stream(
    rig: Rig, close: Close
) -> None:
    rig.connection.close(close)
    rig.connection.close(close)
    ((event,), retry) = parse(rig.wire.take())
    assert (event.id, event.type) == ("", "pushgate.close")
    assert json.loads(event.data) == {"code": close.code, "reason": close.reason}
    assert retry is not None
    assert rig.wire.closed
    assert rig.keeper.released == [close.reason]


def test_the_delay_of_a_goodbye_is_the_longer_one_where_the_client_is_to_wait() -> None:
    delays: dict[Next, set[int]] = {}
    for close in CLOSES * 20:
        rig = Rig()
        rig.connection.close(close)
        delays.setdefault(close.next, set()).add(parse(rig.wire.take())[1] or 0)
    low, high = sse.RETRY_MS
    later = delays.pop(Next.LATER)
    assert len(later) > 10
    assert low <= min(later) <= max(later) <= high
    assert max(max(others) for others in delays.values()) <= low


def test_a_message_after_goodbye_is_refused(rig: Rig) -> None:
    rig.connection.close(GOING_AWAY)
    rig.wire.take()
    assert not give(rig.connection, message("late"))
    assert rig.wire.sent == b""


def test_the_newest_cursor_comes_in_front_of_a_reconnect(rig: Rig) -> None:
    rig.keeper.cursors = "mhqk,t-0-7"
    rig.connection.part(GOING_AWAY, 2.0)
    ((cursor, parting), _) = parse(rig.wire.take())
    assert (cursor.id, cursor.type) == ("mhqk,t-0-7", "pushgate.cursor")
    assert parting.type == "pushgate.reconnect"


def test_who_is_told_to_reconnect_gets_an_event_and_goes_on(rig: Rig) -> None:
    rig.connection.part(TOO_OLD, 2.5)
    ((event,), retry) = parse(rig.wire.take())
    assert (event.id, event.type) == ("", "pushgate.reconnect")
    assert json.loads(event.data) == {"after_ms": 2_500, "code": 4000}
    assert retry is not None
    assert rig.connection.state is State.PARTING
    assert not rig.wire.closed
    assert give(rig.connection, message("meanwhile"))
    assert parse(rig.wire.take())[0] == [Event("m-1", "message", "meanwhile")]


def test_a_control_event_leaves_the_last_events_id_as_it_was(rig: Rig) -> None:
    give(rig.connection, message("one", "m-7"))
    rig.connection.part(TOO_OLD, 1.0)
    assert b"id:" not in rig.wire.take().partition(b"\n\n")[2], "where clients don't resume"


def test_a_heartbeat_goes_on_while_parting(rig: Rig) -> None:
    rig.connection.part(TOO_OLD, 1.0)
    rig.wire.take()
    rig.keeper.wake(rig.connection)
    assert parse(rig.wire.take()) == ([HEARTBEAT], None)


def test_who_does_not_read_is_told_so_and_has_a_grace(rig: Rig) -> None:
    rig.wire.full = True
    assert not give(rig.connection, message("too much"))
    rig.connection.too_slow()
    ((event,), retry) = parse(rig.wire.take())
    assert event.type == "pushgate.close"
    assert json.loads(event.data) == {"code": 4001, "reason": TOO_SLOW.reason}
    assert retry is not None
    assert (rig.wire.closed, rig.wire.aborted) == (True, False)
    assert rig.keeper.wake_in == CLOSE_GRACE_SECONDS
    rig.keeper.wake(rig.connection)
    assert rig.wire.aborted


def test_where_the_oldest_is_dropped_the_gap_is_told(rig: Rig) -> None:
    rig.keeper.bounds = replace(BOUNDS, drops_oldest=True)
    rig.wire.full = True
    assert give(rig.connection, message("newest"))
    (notice,) = rig.wire.notices
    assert parse(notice)[0] == [Event("", "pushgate.gap", "{}")]


def test_while_a_backlog_waits_no_heartbeat_is_added(rig: Rig) -> None:
    rig.wire.waiting = True
    rig.keeper.wake(rig.connection)
    assert rig.wire.take() == b""
    rig.wire.waiting = False
    rig.keeper.wake(rig.connection)
    assert parse(rig.wire.take()) == ([HEARTBEAT], None)


def test_a_goodbye_that_nobody_reads_is_cut_off(rig: Rig) -> None:
    rig.connection.close(GOING_AWAY)
    assert rig.keeper.wake_in == CLOSE_GRACE_SECONDS
    rig.keeper.wake(rig.connection)
    assert rig.wire.aborted


# Cursors


def test_a_message_with_a_cursor_has_it_in_front_of_its_id() -> None:
    delivery = Delivery(b"x", message_id="m-1", position="push-0-7", as_of="k")
    assert events_of(delivery) == [Event("k,push-0-7 m-1", "message", "x")]


@pytest.mark.parametrize("payload", HOSTILE, ids=lambda text: repr(text[:20]))
def test_an_event_that_is_cut_anywhere_moves_no_id(payload: str) -> None:
    """A browser takes an event's id over with its end, other clients with the id's line."""
    delivery = Delivery(payload.encode(), message_id="m-1", position="push-0-7", as_of="k")
    encoded = sse.event(delivery)
    assert encoded.endswith(b"\nid: k,push-0-7 m-1\n\n"), "the id's line is the last"
    assert sum(line.startswith(b"id") for line in encoded.splitlines()) == 1


def test_the_opening_and_heartbeats_move_the_id_and_are_no_message() -> None:
    events, _ = parse(sse.heartbeat(25.0, "k,push-0-7"))
    assert events == [Event("k,push-0-7", "pushgate.cursor", "25000")]
    body = sse.stream_head(b"", heartbeat_seconds=25.0, cursor="k").partition(b"\r\n\r\n")[2]
    assert parse(body)[0] == [Event("k", "pushgate.cursor", "25000")]


def test_a_heartbeat_has_what_the_client_comes_back_with_then(rig: Rig) -> None:
    for cursor in ("k", "m,push-0-7", ""):
        rig.keeper.cursors = cursor
        rig.keeper.wake(rig.connection)
        assert parse(rig.wire.take())[0] == [Event(cursor, "pushgate.cursor", "25000")]


@pytest.mark.parametrize(
    ("last_id", "query", "text"),
    [
        (None, "", None),
        (None, "cursor=k,push-0-7", "k,push-0-7"),
        ("k,push-0-7 m-1", "", "k,push-0-7"),
        ("k", "cursor=other", "k"),
        ("", "cursor=k", "k"),
        (" m-1", "", ""),
        ("m-1", "", "m-1"),
    ],
)
def test_a_client_comes_back_with_its_last_events_id_or_with_a_query(
    last_id: str | None, query: str, text: str | None
) -> None:
    scope = {
        "headers": [] if last_id is None else [(b"last-event-id", last_id.encode())],
        "http_version": "1.1",
        "client": ("10.0.0.1", 1),
        "method": "GET",
        "scheme": "http",
        "query_string": query.encode(),
    }
    assert sse._cursor_text(Head(scope)) == text
