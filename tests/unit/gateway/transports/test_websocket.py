"""WebSocket (RFC 6455): handshakes, frames either way, heartbeats, and what is kept in between."""

import gc
import json
import struct
from base64 import b64encode
from dataclasses import dataclass, replace
from typing import Any

import pytest

from gateway.connections.closes import CLOSE_GRACE_SECONDS, GOING_AWAY, TOO_OLD, TOO_SLOW
from gateway.connections.connection import Bounds, State
from gateway.connections.delivery import Delivery
from gateway.http.head import Head
from gateway.transports.inbound import Inbound
from gateway.transports.websocket import (
    BadHandshake,
    WebSocketConnection,
    _cursor_text,
    answer_handshake,
    hello,
)
from tests.unit.gateway.fakes import BOUNDS, FakeKeeper, FakeWire, give, identity, message

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
HANDSHAKE = {
    "connection": "Upgrade",
    "upgrade": "websocket",
    "sec-websocket-version": "13",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",  # the example of RFC 6455 §1.3
}


def client_frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, mask: bool = True
) -> bytes:
    """A client's frame, as §5.2 draws it."""
    head = bytes([(0x80 if fin else 0) | opcode])
    bit = 0x80 if mask else 0
    if len(payload) < 126:
        head += bytes([bit | len(payload)])
    elif len(payload) < 65_536:
        head += bytes([bit | 126]) + struct.pack("!H", len(payload))
    else:
        head += bytes([bit | 127]) + struct.pack("!Q", len(payload))
    if not mask:
        return head + payload
    key = b"\x01\x02\x03\x04"
    return head + key + bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))


def close_frame(code: int, reason: str = "") -> bytes:
    return client_frame(CLOSE, struct.pack("!H", code) + reason.encode())


def server_frames(data: bytes) -> list[tuple[int, bytes]]:
    """Opcode and payload of each frame; fails on what a server must not send."""
    frames = []
    while data:
        assert data[0] & 0x80, "a server's frame is whole here"
        assert not data[0] & 0x70, "no extension was negotiated"
        assert not data[1] & 0x80, "a server masks nothing"
        length, start = data[1], 2
        if length == 126:
            length, start = struct.unpack_from("!H", data, 2)[0], 4
        elif length == 127:
            length, start = struct.unpack_from("!Q", data, 2)[0], 10
        assert len(data) >= start + length, "a frame that is cut short"
        frames.append((data[0] & 0x0F, data[start : start + length]))
        data = data[start + length :]
    return frames


@dataclass
class Rig:
    keeper: FakeKeeper
    wire: FakeWire
    connection: WebSocketConnection

    def frames(self) -> list[tuple[int, bytes]]:
        return server_frames(self.wire.take())

    def receive(self, *frames: bytes) -> list[tuple[int, bytes]]:
        for frame in frames:
            self.connection.received(frame)
        return self.frames()

    def controls(self) -> list[dict[str, Any]]:
        """Take what the server sent, which is control frames alone."""
        frames = self.frames()
        assert all(opcode == TEXT for opcode, _ in frames)
        return [json.loads(payload) for _, payload in frames]

    def say(self, text: str | bytes, opcode: int = TEXT) -> list[dict[str, Any]]:
        """Send one message and return the answer."""
        payload = text.encode() if isinstance(text, str) else text
        self.connection.received(client_frame(opcode, payload))
        return self.controls()

    @property
    def closed_with(self) -> int:
        ((opcode, payload),) = self.frames()
        assert opcode == CLOSE
        assert self.wire.closed
        code: int = struct.unpack("!H", payload[:2])[0]
        return code


def make(subprotocol: str | None = None, *, bounds: Bounds = BOUNDS) -> Rig:
    keeper, wire = FakeKeeper(bounds), FakeWire()
    connection = WebSocketConnection(identity(), keeper, subprotocol=subprotocol)
    connection.attach(wire)
    return Rig(keeper, wire, connection)


@pytest.fixture
def rig() -> Rig:
    rig = make()
    rig.connection.open(b"")
    return rig


@pytest.fixture
def v1() -> Rig:
    rig = make("pushgate.v1")
    rig.connection.open(b"")
    return rig


# The opening handshake (§4.2)


def test_a_handshake_is_answered_as_in_the_standards_example() -> None:
    head, subprotocol = answer_handshake(HANDSHAKE, [])
    status, *lines, empty, end = head.split(b"\r\n")
    assert status == b"HTTP/1.1 101 Switching Protocols"
    assert (empty, end) == (b"", b"")
    assert sorted(lines) == [
        b"Connection: Upgrade",
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
        b"Upgrade: websocket",
    ]
    assert subprotocol is None


def test_tokens_of_the_handshake_have_no_case_and_may_have_company() -> None:
    headers = HANDSHAKE | {"connection": "keep-alive, UPGRADE", "upgrade": "WebSocket"}
    assert answer_handshake(headers, [])[0].startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize(
    ("offered", "selected"),
    [
        (["pushgate.v1"], "pushgate.v1"),
        (["pushgate.plain"], "pushgate.plain"),
        (["bearer.abc", "pushgate.v1"], "pushgate.v1"),
        (["pushgate.plain", "pushgate.v1", "bearer.abc"], "pushgate.plain"),
        (["bearer.abc"], None),
        (["chat", "PUSHGATE.V1", "pushgate.v2"], None),
        ([], None),
    ],
)
def test_our_first_subprotocol_that_is_offered_is_selected(
    offered: list[str], selected: str | None
) -> None:
    head, subprotocol = answer_handshake(HANDSHAKE, offered)
    assert subprotocol == selected
    line = f"Sec-WebSocket-Protocol: {selected}\r\n".encode()
    assert (line in head) is (selected is not None)
    assert b"bearer" not in head


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"upgrade": "h2c"}, 426),
        ({"upgrade": ""}, 426),
        ({"connection": "keep-alive"}, 426),
        ({"connection": "notupgrade"}, 426),
        ({"sec-websocket-version": "8"}, 426),
        ({"sec-websocket-version": ""}, 426),
        ({"sec-websocket-key": ""}, 400),
        ({"sec-websocket-key": "too short"}, 400),
        ({"sec-websocket-key": b64encode(b"x" * 15).decode()}, 400),
        ({"sec-websocket-key": b64encode(b"x" * 17).decode()}, 400),
        ({"sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==\u00e9"}, 400),
        ({"sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ== x"}, 400),
    ],
)
def test_what_is_no_handshake_of_version_13_is_refused(
    changed: dict[str, str], status: int
) -> None:
    with pytest.raises(BadHandshake) as caught:
        answer_handshake(HANDSHAKE | changed, [])
    assert caught.value.status == status


@pytest.mark.parametrize("name", HANDSHAKE)
def test_every_header_of_the_handshake_is_needed(name: str) -> None:
    headers = {key: value for key, value in HANDSHAKE.items() if key != name}
    with pytest.raises(BadHandshake):
        answer_handshake(headers, [])


# Messages out


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 100_000])
def test_a_plain_message_is_one_frame_of_its_payload_alone(rig: Rig, size: int) -> None:
    assert give(rig.connection, message("x" * size))
    assert rig.frames() == [(TEXT, b"x" * size)]


def test_what_is_no_text_is_a_binary_frame(rig: Rig) -> None:
    give(rig.connection, message(b"\xff\x00"))
    assert rig.frames() == [(BINARY, b"\xff\x00")]


def test_v1_is_a_json_object_in_a_text_frame_whatever_the_payload() -> None:
    rig = make("pushgate.v1")
    rig.connection.open(b"")
    give(rig.connection, Delivery(b"hi", message_id="m-1", event_type="chat"))
    give(rig.connection, message(b"\xff"))
    assert rig.frames() == [
        (TEXT, b'{"id":"m-1","type":"chat","data":"hi"}'),
        (TEXT, b'{"id":"m-1","type":null,"data":"/w==","encoding":"base64"}'),
    ]


def test_messages_before_the_answer_follow_it_in_order() -> None:
    rig = make("pushgate.plain")
    give(rig.connection, message("one"))
    rig.connection.received(client_frame(PING, b"early"))
    give(rig.connection, message("two"))
    rig.connection.open(b"101\r\n")
    assert rig.wire.sent.startswith(b"101\r\n")
    assert server_frames(rig.wire.sent[5:]) == [(TEXT, b"one"), (PONG, b"early"), (TEXT, b"two")]


@pytest.mark.parametrize("early", [close_frame(1000), client_frame(TEXT, b"x", mask=False)])
def test_a_client_that_ends_before_the_answer_is_sent_no_frame(early: bytes) -> None:
    rig = make()
    rig.connection.received(early)
    rig.connection.open(b"101\r\n")
    assert rig.wire.sent == b""
    assert len(rig.keeper.released) == 1


# Frames in


def test_a_ping_is_answered_with_its_own_payload(rig: Rig) -> None:
    assert rig.receive(client_frame(PING, b"are you there")) == [(PONG, b"are you there")]
    assert rig.receive(client_frame(PING)) == [(PONG, b"")]


def test_what_a_client_says_means_nothing_and_is_not_answered(rig: Rig) -> None:
    frames = [client_frame(TEXT, b"hello"), client_frame(BINARY, b"\xff"), client_frame(PONG, b"x")]
    assert rig.receive(*frames, client_frame(PONG)) == []
    assert rig.connection.state is State.OPEN


CONVERSATION = (
    client_frame(PONG)
    + client_frame(TEXT, "é".encode(), fin=False)
    + client_frame(PING, b"in between")
    + client_frame(CONTINUATION, b"x" * 300)
    + client_frame(PONG)
    + client_frame(BINARY, b"\x8a\x80\x00\x00\x00\x00")
    + client_frame(PING, b"last")
)


@pytest.mark.parametrize("step", [1, 2, 3, 5, 6, 7, 64, 10_000])
def test_frames_may_come_in_pieces_of_any_size(rig: Rig, step: int) -> None:
    for start in range(0, len(CONVERSATION), step):
        rig.connection.received(CONVERSATION[start : start + step])
    assert rig.frames() == [(PONG, b"in between"), (PONG, b"last")]
    assert rig.connection.state is State.OPEN


@pytest.mark.parametrize("cut", range(1, len(CONVERSATION)))
def test_frames_may_be_cut_anywhere(rig: Rig, cut: int) -> None:
    rig.connection.received(CONVERSATION[:cut])
    rig.connection.received(CONVERSATION[cut:])
    assert rig.frames() == [(PONG, b"in between"), (PONG, b"last")]
    assert rig.connection.state is State.OPEN


def test_six_bytes_that_look_like_a_pong_within_a_frame_are_its_payload(rig: Rig) -> None:
    lookalike = client_frame(PONG)
    whole = client_frame(BINARY, b"x" * 20)
    rig.connection.received(whole[:10])
    rig.connection.received(lookalike)  # six bytes of the payload
    rig.connection.received(whole[16:])
    assert rig.receive(client_frame(PING, b"in step")) == [(PONG, b"in step")]


def test_a_message_in_fragments_is_kept_in_mind_over_pauses_between_its_frames(rig: Rig) -> None:
    rig.connection.received(client_frame(TEXT, b"a", fin=False))
    rig.connection.received(client_frame(CONTINUATION, b"b", fin=False))
    rig.connection.received(client_frame(CONTINUATION, b"c"))
    assert rig.frames() == []
    rig.connection.received(client_frame(CONTINUATION, b"d"))
    assert rig.closed_with == 1002


def test_a_new_message_within_one_in_fragments_is_a_protocol_error(rig: Rig) -> None:
    rig.connection.received(client_frame(TEXT, b"a", fin=False))
    rig.connection.received(client_frame(TEXT, b"b"))
    assert rig.closed_with == 1002


def holds_a_parser(connection: WebSocketConnection) -> bool:
    return any(isinstance(part, Inbound) for part in gc.get_referents(connection))


@pytest.mark.parametrize(
    ("received", "kept"),
    [
        ([client_frame(PONG)], False),
        ([client_frame(TEXT, b"hello")], False),
        ([client_frame(PING, b"hello")], False),
        ([client_frame(TEXT, b"hello") * 3], False),
        ([client_frame(TEXT, b"hello")[:1]], True),
        ([client_frame(TEXT, b"hello")[:4]], True),
        ([client_frame(TEXT, b"hello")[:-1]], True),
        ([client_frame(TEXT, b"hello")[:-1], client_frame(TEXT, b"hello")[-1:]], False),
        ([client_frame(TEXT, b"a", fin=False)], True),
        ([client_frame(TEXT, b"a", fin=False), client_frame(PING)], True),
        ([client_frame(TEXT, b"", fin=False)], True),
        ([client_frame(TEXT, b"a", fin=False), client_frame(CONTINUATION)], False),
    ],
)
def test_a_parser_costs_memory_only_within_a_frame_or_a_message(
    rig: Rig, received: list[bytes], kept: bool
) -> None:
    for data in received:
        rig.connection.received(data)
    assert holds_a_parser(rig.connection) is kept


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (client_frame(TEXT, b"x", mask=False), 1002),
        (client_frame(PING, b"", mask=False), 1002),
        (client_frame(0x3, b"x"), 1002),
        (client_frame(0xB), 1002),
        (client_frame(CONTINUATION, b"x"), 1002),
        (client_frame(PING, b"x" * 126), 1002),
        (client_frame(PING, b"x", fin=False), 1002),
        (bytes([0xC1]) + client_frame(TEXT, b"deflated")[1:], 1002),
        (client_frame(CLOSE, b"\x03"), 1002),
        (close_frame(1005), 1002),
        (client_frame(TEXT, b"x" * (BOUNDS.inbound_bytes + 1)), 1009),
        (client_frame(TEXT, b"x" * 70_000)[:14], 1009),  # it is enough to announce it
        (client_frame(TEXT, b"\xff"), 1007),
        (client_frame(TEXT, b"\xc3", fin=False) + client_frame(CONTINUATION, b"x"), 1007),
        (client_frame(PONG) * (BOUNDS.inbound_frames + 1), 1008),
        (client_frame(BINARY) + client_frame(TEXT) * BOUNDS.inbound_frames, 1008),
    ],
)
def test_a_client_that_breaks_the_protocol_is_told_why_and_closed(
    rig: Rig, bad: bytes, code: int
) -> None:
    rig.connection.received(bad)
    assert rig.closed_with == code
    assert rig.keeper.released == [
        {
            1002: "protocol error",
            1007: "text is not UTF-8",
            1008: "too many frames",
            1009: "message too big",
        }[code]
    ]
    assert not give(rig.connection, message())


def test_a_message_at_the_bound_passes(rig: Rig) -> None:
    assert rig.receive(client_frame(TEXT, b"x" * BOUNDS.inbound_bytes)) == []
    assert rig.connection.state is State.OPEN


def test_fragments_count_together(rig: Rig) -> None:
    half = b"x" * (BOUNDS.inbound_bytes // 2 + 1)
    rig.connection.received(client_frame(TEXT, half, fin=False))
    rig.connection.received(client_frame(CONTINUATION, half, fin=False))
    assert rig.closed_with == 1009


@pytest.mark.parametrize(
    "frame", [client_frame(PONG), client_frame(PONG, b"x"), client_frame(TEXT)]
)
def test_frames_that_come_one_by_one_count_together(rig: Rig, frame: bytes) -> None:
    for _ in range(BOUNDS.inbound_frames):
        rig.connection.received(frame)
    assert rig.connection.state is State.OPEN
    rig.connection.received(frame)
    assert rig.closed_with == 1008
    assert rig.keeper.released == ["too many frames"]


def heartbeat(rig: Rig) -> None:
    """Let the answer to a ping be seen, and the next ping go out."""
    rig.keeper.wake(rig.connection)
    rig.keeper.wake(rig.connection)
    assert rig.frames() == [(PING, b"")]


@pytest.mark.parametrize("under_way", [b"", client_frame(TEXT, b"a", fin=False)])
def test_frames_are_counted_anew_with_each_heartbeat(rig: Rig, under_way: bytes) -> None:
    rig.connection.received(under_way)
    rig.keeper.wake(rig.connection)
    rig.wire.take()
    for _ in range(5):
        for _ in range(BOUNDS.inbound_frames):
            rig.connection.received(client_frame(PONG))
        heartbeat(rig)
    rig.connection.received(client_frame(PONG) * BOUNDS.inbound_frames)
    assert rig.connection.state is State.OPEN
    rig.connection.received(client_frame(PONG))
    assert rig.closed_with == 1008


@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999])
def test_a_close_is_echoed_and_the_wire_closed(rig: Rig, code: int) -> None:
    rig.connection.received(close_frame(code, "bye"))
    assert rig.closed_with == code
    assert rig.keeper.released == ["client left"]


def test_a_close_without_a_code_is_echoed_without_one(rig: Rig) -> None:
    assert rig.receive(client_frame(CLOSE)) == [(CLOSE, b"")]
    assert rig.wire.closed


def test_what_follows_a_close_is_not_answered(rig: Rig) -> None:
    rig.connection.received(close_frame(1000) + client_frame(PING, b"x"))
    assert rig.closed_with == 1000
    assert rig.receive(client_frame(PING, b"x"), close_frame(1000), b"\xff" * 100) == []
    assert rig.keeper.released == ["client left"]


# Heartbeats


def test_the_first_ping_is_out_of_step_with_others() -> None:
    waits = set()
    for _ in range(20):
        rig = make()
        rig.connection.open(b"")
        assert rig.keeper.wake_in is not None
        assert BOUNDS.heartbeat_seconds / 2 <= rig.keeper.wake_in <= BOUNDS.heartbeat_seconds
        waits.add(rig.keeper.wake_in)
    assert len(waits) > 10


def test_a_ping_that_is_not_answered_ends_the_connection(rig: Rig) -> None:
    rig.keeper.wake(rig.connection)
    assert rig.frames() == [(PING, b"")]
    assert rig.keeper.wake_in == BOUNDS.heartbeat_timeout_seconds
    rig.keeper.wake(rig.connection)
    assert rig.keeper.released == ["no answer"]
    assert rig.wire.aborted


@pytest.mark.parametrize("sign", [client_frame(PONG), client_frame(PONG, b"x"), b"\x81"])
def test_any_sign_of_life_answers_a_ping(rig: Rig, sign: bytes) -> None:
    rig.keeper.wake(rig.connection)
    rig.connection.received(sign)
    rig.keeper.wake(rig.connection)
    assert rig.connection.state is State.OPEN


def test_pings_go_on_in_their_interval(rig: Rig) -> None:
    for _ in range(3):
        rig.keeper.wake(rig.connection)
        assert rig.frames() == [(PING, b"")]
        waited = rig.keeper.wake_in or 0.0
        rig.connection.received(client_frame(PONG))
        rig.keeper.wake(rig.connection)
        assert rig.frames() == []
        assert waited + (rig.keeper.wake_in or 0.0) == BOUNDS.heartbeat_seconds


@pytest.mark.parametrize("is_silent", [True, False])
def test_a_time_out_above_the_interval_counts_in_heartbeats(is_silent: bool) -> None:
    rig = make(bounds=replace(BOUNDS, heartbeat_seconds=4.0, heartbeat_timeout_seconds=10.0))
    rig.connection.open(b"")
    rig.wire.take()
    for _ in range(3):
        rig.keeper.wake(rig.connection)
        assert rig.frames() == [(PING, b"")]
        assert rig.keeper.wake_in == 4.0
        if not is_silent:
            rig.connection.received(client_frame(PONG))
    rig.keeper.wake(rig.connection)
    assert rig.wire.aborted is is_silent
    assert rig.frames() == ([] if is_silent else [(PING, b"")])


def test_with_each_ping_a_page_gets_a_heartbeat_that_it_can_see(v1: Rig) -> None:
    v1.keeper.wake(v1.connection)
    assert v1.frames() == [(PING, b""), (TEXT, b'{"control":"heartbeat"}')]


def test_the_hello_says_how_long_the_interval_is() -> None:
    assert server_frames(hello(25.0)) == [(TEXT, b'{"control":"hello","heartbeat_ms":25000}')]


def test_an_answer_from_before_a_ping_does_not_count(rig: Rig) -> None:
    rig.connection.received(client_frame(PONG))
    rig.keeper.wake(rig.connection)
    rig.keeper.wake(rig.connection)
    assert rig.keeper.released == ["no answer"]


def test_a_goodbye_is_a_close_frame_that_the_client_may_answer(rig: Rig) -> None:
    rig.connection.close(GOING_AWAY)
    rig.connection.close(GOING_AWAY)
    assert rig.frames() == [(CLOSE, struct.pack("!H", 1001) + b"node is leaving")]
    assert not rig.wire.closed
    assert rig.receive(close_frame(1001)) == []
    assert rig.wire.closed
    assert rig.keeper.released == ["node is leaving"]


def test_a_goodbye_without_an_answer_is_cut_off_after_its_grace(rig: Rig) -> None:
    rig.connection.close(GOING_AWAY)
    assert rig.keeper.wake_in == CLOSE_GRACE_SECONDS
    rig.connection.received(client_frame(PONG))
    rig.keeper.wake(rig.connection)
    assert rig.wire.aborted


# Controls


def test_a_good_token_refreshes_and_says_for_how_long(v1: Rig) -> None:
    v1.keeper.tokens["new"] = 90.5
    answer = v1.say('{"control": "refresh", "token": "new"}')
    assert answer == [{"control": "refreshed", "expires_in_ms": 90_500}]
    assert v1.connection.state is State.OPEN


def test_a_bad_token_is_refused_and_ends_nothing(v1: Rig) -> None:
    answer = v1.say('{"control": "refresh", "token": "secret-token"}')
    assert answer == [{"control": "refused", "reason": "no good token"}]
    assert v1.connection.state is State.OPEN


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "{}",
        "[]",
        "null",
        '{"control": "refresh"}',
        '{"control": "refresh", "token": null}',
        '{"control": "refresh", "token": 7}',
        '{"control": "other", "token": "new"}',
        '{"token": "new"}',
        '{"control": ["refresh"], "token": "new"}',
        '{"control": "refresh", "token": "new"',
        '{"control": "refresh", "token": "new"} x',
        "[" * 990,
        "\x00",
    ],
)
def test_what_is_no_refresh_means_nothing(v1: Rig, text: str) -> None:
    v1.keeper.tokens["new"] = 90.0
    assert v1.say(text) == []
    assert v1.connection.state is State.OPEN


@pytest.mark.parametrize("refused", ["", "other", "\\ud800", "\\u0000", "x" * 900])
def test_whatever_is_given_as_a_token_ends_nothing(v1: Rig, refused: str) -> None:
    assert all(
        answer == {"control": "refused", "reason": "no good token"}
        for answer in v1.say(f'{{"control": "refresh", "token": "{refused}"}}')
    )
    assert v1.connection.state is State.OPEN


def test_a_refresh_is_a_text_message_of_v1_and_of_nothing_else(v1: Rig) -> None:
    refresh = '{"control": "refresh", "token": "new"}'
    v1.keeper.tokens["new"] = 90.0
    assert v1.say(refresh, BINARY) == []
    for subprotocol in ("pushgate.plain", None):
        rig = make(subprotocol)
        rig.keeper.tokens["new"] = 90.0
        rig.connection.open(b"")
        assert rig.say(refresh) == []


def test_a_refresh_may_come_in_fragments(v1: Rig) -> None:
    v1.keeper.tokens["é"] = 90.0
    data = '{"control": "refresh", "token": "é"}'.encode()
    cut = data.index(b"\xc3") + 1  # within the character
    v1.connection.received(client_frame(TEXT, data[:cut], fin=False))
    v1.connection.received(client_frame(CONTINUATION, data[cut:]))
    assert [frame["control"] for frame in v1.controls()] == ["refreshed"]


def test_a_token_that_is_about_to_run_out_is_told_to_v1_alone(v1: Rig, rig: Rig) -> None:
    v1.connection.warn(29.5)
    assert v1.controls() == [{"control": "expiring", "in_ms": 29_500}]
    rig.connection.warn(29.5)
    assert rig.frames() == []


def test_a_v1_client_is_told_to_reconnect_and_gets_messages_until_it_does(v1: Rig) -> None:
    v1.connection.part(TOO_OLD, 2.5)
    assert v1.controls() == [{"control": "reconnect", "after_ms": 2_500, "code": 4000}]
    assert v1.connection.state is State.PARTING
    assert give(v1.connection, message())
    assert v1.receive(client_frame(PING, b"still there"))[-1] == (PONG, b"still there")
    assert v1.receive(close_frame(1000)) == [(CLOSE, struct.pack("!H", 1000))]
    assert v1.keeper.released == ["client left"]


def test_a_client_that_is_parting_may_refresh(v1: Rig) -> None:
    v1.keeper.tokens["new"] = 90.0
    v1.connection.part(TOO_OLD, 2.5)
    v1.wire.take()
    answer = v1.say('{"control": "refresh", "token": "new"}')
    assert answer == [{"control": "refreshed", "expires_in_ms": 90_000}]


@pytest.mark.parametrize("subprotocol", ["pushgate.plain", None])
def test_a_plain_client_is_closed_instead(subprotocol: str | None) -> None:
    rig = make(subprotocol)
    rig.connection.open(b"")
    rig.connection.part(TOO_OLD, 2.5)
    assert rig.frames() == [(CLOSE, struct.pack("!H", 4000) + b"maximum age reached")]
    assert rig.keeper.released == ["maximum age reached"]


def test_who_does_not_read_is_told_so_and_has_a_grace(rig: Rig) -> None:
    rig.wire.full = True
    assert not give(rig.connection, message("too much"))
    assert rig.connection.state is State.OPEN
    rig.connection.too_slow()
    assert rig.frames() == [(CLOSE, struct.pack("!H", 4001) + TOO_SLOW.reason.encode())]
    assert not rig.wire.aborted
    assert rig.keeper.released == [TOO_SLOW.reason]
    assert rig.keeper.wake_in == CLOSE_GRACE_SECONDS
    rig.keeper.wake(rig.connection)
    assert rig.wire.aborted


def test_while_a_backlog_waits_there_is_no_ping_and_its_answer_is_not_missed(rig: Rig) -> None:
    rig.keeper.wake(rig.connection)
    assert rig.frames() == [(PING, b"")]
    rig.wire.waiting = True
    for _ in range(3):
        rig.keeper.wake(rig.connection)
        assert rig.frames() == []
    assert not rig.wire.aborted
    rig.wire.waiting = False
    rig.keeper.wake(rig.connection)
    assert rig.frames() == [(PING, b"")]
    rig.keeper.wake(rig.connection)
    assert rig.wire.aborted


def test_while_a_backlog_waits_frames_are_counted_by_intervals_as_ever(rig: Rig) -> None:
    rig.wire.waiting = True
    for _ in range(3):
        for _ in range(BOUNDS.inbound_frames):
            rig.connection.received(b"\x8a\x80abcd")
        rig.keeper.wake(rig.connection)
    assert rig.connection.state is State.OPEN


@pytest.mark.parametrize(
    ("subprotocol", "notice"),
    [("pushgate.v1", [(TEXT, b'{"control":"gap"}')]), ("pushgate.plain", []), (None, [])],
)
def test_where_the_oldest_is_dropped_v1_is_told_of_the_gap(
    subprotocol: str | None, notice: list[tuple[int, bytes]]
) -> None:
    rig = make(subprotocol)
    rig.keeper.bounds = replace(BOUNDS, drops_oldest=True)
    rig.connection.open(b"")
    rig.wire.full, rig.wire.droppable = True, 2
    assert give(rig.connection, message())
    assert [server_frames(sent) for sent in rig.wire.notices] == [notice]
    assert rig.keeper.dropped_messages == 2


# Cursors


def test_hello_heartbeat_and_reconnect_say_what_the_client_comes_back_with(v1: Rig) -> None:
    assert json.loads(server_frames(hello(25.0, "k"))[0][1]) == {
        "control": "hello",
        "cursor": "k",
        "heartbeat_ms": 25_000,
    }
    v1.keeper.cursors = "k,push-0-7"
    v1.keeper.wake(v1.connection)
    (_, (_, heartbeat)) = v1.frames()
    assert json.loads(heartbeat) == {"control": "heartbeat", "cursor": "k,push-0-7"}
    v1.connection.part(TOO_OLD, 2.5)
    (reconnect,) = v1.controls()
    assert (reconnect["control"], reconnect["cursor"]) == ("reconnect", "k,push-0-7")


def test_a_message_has_its_cursor_in_v1_and_no_trace_of_it_in_plain_frames(v1: Rig) -> None:
    delivery = Delivery(b"x", message_id="m-1", position="push-0-7", as_of="k")
    give(v1.connection, delivery)
    ((_, form),) = v1.frames()
    assert json.loads(form)["cursor"] == "k,push-0-7"
    plain = make()
    plain.connection.open(b"")
    plain.keeper.cursors = "k"
    give(plain.connection, delivery)
    plain.keeper.wake(plain.connection)
    assert plain.frames() == [(TEXT, b"x"), (PING, b"")]


@pytest.mark.parametrize(
    ("offered", "query", "text"),
    [
        (["pushgate.v1"], "", None),
        (["pushgate.v1", "cursor.k"], "", "k"),
        (["cursor.k~push-0-7~other-1-2", "pushgate.v1"], "", "k,push-0-7,other-1-2"),
        (["pushgate.v1", "cursor.k"], "cursor=other", "k"),
        (["pushgate.v1"], "cursor=k,push-0-7", "k,push-0-7"),
        (["pushgate.v1", "cursor."], "", ""),
        (["pushgate.v1", "bearer.cursor.k"], "", None),
    ],
)
def test_a_client_comes_back_with_a_subprotocol_or_with_a_query(
    offered: list[str], query: str, text: str | None
) -> None:
    scope = {
        "headers": [],
        "http_version": "1.1",
        "client": ("10.0.0.1", 1),
        "method": "GET",
        "scheme": "http",
        "query_string": query.encode(),
    }
    assert _cursor_text(Head(scope), offered) == text


def test_a_cursor_among_the_subprotocols_is_never_selected() -> None:
    for offered in (["cursor.k", "pushgate.v1"], ["pushgate.v1", "cursor.k"]):
        answer, subprotocol = answer_handshake(HANDSHAKE, offered)
        assert subprotocol == "pushgate.v1"
        assert b"cursor" not in answer
    assert answer_handshake(HANDSHAKE, ["cursor.k"])[1] is None
