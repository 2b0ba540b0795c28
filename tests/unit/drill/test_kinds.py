"""What the drill's clients say and hear: cursors are kept as each kind keeps them."""

from __future__ import annotations

import pytest

from pushgate.client import Place
from tests.drill.kinds import (
    KINDS,
    EventSourceSpeaker,
    LastCursor,
    PlainSpeaker,
    PollSpeaker,
    V1Speaker,
)

SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


class Listener:
    """Keeps what is heard and heeded."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.heeded: list[tuple[str, int | None]] = []

    def hear(self, data: bytes) -> bool:
        is_new = data not in self.heard
        self.heard.append(data)
        return is_new

    def heed(self, control: str, after_ms: int | None) -> None:
        self.heeded.append((control, after_ms))


def frame(text: str) -> bytes:
    return bytes((0x81, 126, len(text) >> 8, len(text) & 0xFF)) + text.encode()


def answer(body: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def test_v1_keeps_the_newest_position_of_each_partition_and_the_last_time() -> None:
    listener, place = Listener(), Place()
    speaker = V1Speaker(listener, place)
    assert b"pushgate.v1\r\n" in speaker.opening("token")
    speaker.feed(
        SWITCHED
        + frame('{"control": "hello", "heartbeat_ms": 25000, "cursor": "a1"}')
        + frame('{"id": "x", "cursor": "a1,t-0-7", "type": null, "data": "one"}')
        + frame('{"id": "y", "cursor": "a1,t-0-7,t-1-3", "type": null, "data": "two"}')
        + frame('{"control": "reconnect", "after_ms": 5, "code": 4000, "cursor": "a2,t-0-7"}')
    )
    assert listener.heard == [b"one", b"two"]
    assert listener.heeded == [("hello", None), ("reconnect", 5)]
    request = V1Speaker(listener, place).opening("token")
    assert b"Sec-WebSocket-Protocol: pushgate.v1, cursor.a2~t-0-7~t-1-3\r\n" in request


def test_a_copy_by_the_second_connection_of_a_hand_over_does_not_set_v1_back() -> None:
    listener, place = Listener(), Place()
    first, second = V1Speaker(listener, place), V1Speaker(listener, place)
    first.feed(SWITCHED)
    second.feed(SWITCHED)
    for number in (1, 2):
        first.feed(frame(f'{{"id": "{number}", "cursor": "b,t-0-{number}", "data": "{number}"}}'))
    second.feed(frame('{"id": "1", "cursor": "a,t-0-1", "data": "1"}'))
    assert place.cursor == "a,t-0-2"


def test_v1_forgets_positions_at_a_gap() -> None:
    listener, place = Listener(), Place()
    speaker = V1Speaker(listener, place)
    speaker.feed(SWITCHED + frame('{"id": "x", "cursor": "a1,t-0-7", "data": "one"}'))
    speaker.feed(frame('{"control": "gap"}'))
    assert place.cursor == "a1"
    assert listener.heeded == [("gap", None)]


def test_an_event_source_sends_the_last_id_and_hears_only_whole_events() -> None:
    listener, last = Listener(), LastCursor()
    speaker = EventSourceSpeaker(listener, last)
    assert b"Last-Event-ID" not in speaker.opening("token")
    speaker.feed(STREAM + b"event: pushgate.cursor\ndata: 25000\nid: a1\n\n")
    speaker.feed(b"data: one\nid: a1,t-0-7 x\n\nevent: pushgate.gap\ndata: {}\n\n")
    assert listener.heard == [b"one"]
    assert listener.heeded == [("cursor", None), ("gap", None)]
    speaker.feed(
        b"event: pushgate.cursor\ndata: 25000\nid: a2,t-0-7\n\ndata: two\nid: a2,t-0-8 y\n"
    )
    assert listener.heard == [b"one"]
    request = EventSourceSpeaker(listener, last).opening("token")
    assert b"\r\nLast-Event-ID: a2,t-0-7\r\n" in request


def test_a_poll_goes_on_with_the_cursor_of_the_last_answer() -> None:
    listener, last = Listener(), LastCursor()
    speaker = PollSpeaker(listener, last)
    assert speaker.opening("token").startswith(b"GET /poll?wait=0 HTTP/1.1\r\n")
    again = speaker.feed(answer('{"cursor": "k.1", "messages": [{"id": "x", "data": "one"}]}'))
    assert again.startswith(b"GET /poll?wait=10&cursor=k.1 HTTP/1.1\r\n")
    speaker.feed(answer('{"cursor": "k+2", "messages": [], "gap": true}')[:-1])  # cut off
    assert listener.heeded == []
    another = PollSpeaker(listener, last)
    assert another.opening("token").startswith(b"GET /poll?wait=0&cursor=k.1 HTTP/1.1\r\n")
    another.feed(answer('{"cursor": "k+2", "messages": [], "gap": true}'))
    assert listener.heeded == [("gap", None)]
    assert b"cursor=k%2B2 " in PollSpeaker(listener, last).opening("token")


def test_a_plain_websocket_has_no_cursor() -> None:
    listener, last = Listener(), LastCursor("a1")
    speaker = PlainSpeaker(listener, last)
    assert b"a1" not in speaker.opening("token")
    speaker.feed(SWITCHED + b"\x81\x03one")
    assert listener.heard == [b"one"]


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_kind_that_greets_says_how_far_its_client_has_come_before_all_messages(
    kind: str,
) -> None:
    speaker = KINDS[kind].speaker(Listener(), KINDS[kind].bookmark())
    assert speaker.greets is (kind in ("ws-v1", "sse"))
