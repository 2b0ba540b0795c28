"""What a WebSocket client sends, put together: messages, fragments, and what ends it."""

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.transports.inbound import Inbound
from tests.unit.gateway.transports.test_websocket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    client_frame,
    close_frame,
    server_frames,
)

MAX_BYTES = 10_000
MAX_FRAMES = 100
MIXED = "aé€😀z"


def made() -> Inbound:
    return Inbound(max_bytes=MAX_BYTES)


def taken(inbound: Inbound, *parts: bytes, max_frames: int = MAX_FRAMES) -> list[str | bytes]:
    return [whole for part in parts for whole in inbound.messages(part, max_frames=max_frames)]


def ended_with(inbound: Inbound) -> tuple[int, str | None]:
    """Return the code that is sent, and why it has ended."""
    assert not inbound.open
    opcode, payload = server_frames(inbound.answer())[-1]
    assert opcode == CLOSE
    code: int = struct.unpack("!H", payload[:2])[0]
    return code, inbound.end


def fragments(data: bytes, *sizes: int, opcode: int = TEXT) -> list[bytes]:
    frames = []
    for size in sizes:
        frames.append(client_frame(opcode, data[:size], fin=False))
        data, opcode = data[size:], CONTINUATION
    return [*frames, client_frame(opcode, data)]


@pytest.mark.parametrize("text", ["", "hello", MIXED, "\x00", "\ufeffbom", "x" * MAX_BYTES])
def test_a_text_message_is_text(text: str) -> None:
    assert taken(made(), client_frame(TEXT, text.encode())) == [text]


@pytest.mark.parametrize("data", [b"", b"\xff\x00", b"hello"])
def test_a_binary_message_is_bytes_whatever_is_in_it(data: bytes) -> None:
    assert taken(made(), client_frame(BINARY, data)) == [data]


def test_messages_in_a_row_are_each_whole() -> None:
    frames = client_frame(TEXT, b"one") + client_frame(BINARY, b"two") + client_frame(TEXT, b"3")
    assert taken(made(), frames) == ["one", b"two", "3"]


@pytest.mark.parametrize("cut", range(len(MIXED.encode()) + 1))
def test_a_character_may_be_cut_by_a_fragments_end(cut: int) -> None:
    inbound = made()
    assert taken(inbound, *fragments(MIXED.encode(), cut)) == [MIXED]
    assert inbound.open


def test_fragments_of_a_byte_each_are_one_message() -> None:
    data = MIXED.encode()
    inbound = made()
    *first, last = fragments(data, *[1] * (len(data) - 1))
    assert taken(inbound, *first) == []
    assert taken(inbound, last) == [MIXED]


def test_empty_fragments_add_nothing() -> None:
    assert taken(made(), *fragments(b"\xc3\xa9", 0, 1, 0, 1, 0)) == ["é"]


def test_binary_fragments_are_not_read_as_text() -> None:
    assert taken(made(), *fragments(b"\xff\xc3x", 1, 1, opcode=BINARY)) == [b"\xff\xc3x"]


def test_a_ping_between_fragments_is_answered_and_no_part_of_the_message() -> None:
    inbound = made()
    first, last = fragments(b"hello", 2)
    assert taken(inbound, first + client_frame(PING, b"?") + last) == ["hello"]
    assert server_frames(inbound.answer()) == [(PONG, b"?")]
    assert inbound.answer() == b""


BAD_TEXTS = [
    [b"\xff"],
    [b"good, then \xff"],
    [b"\xc3"],  # cut short at the message's end
    [b"\xc3", b"x"],
    [b"\xe2\x82", b"", b"x"],
    [b"\xed\xa0\x80"],  # a surrogate
    [b"\xf4\x90\x80\x80"],  # beyond U+10FFFF
    [b"\xc0\x80"],  # longer than need be
    [b"fine", b"fine", b"\x80"],
]


@pytest.mark.parametrize("parts", BAD_TEXTS, ids=repr)
def test_text_that_is_not_utf_8_is_1007_and_no_message(parts: list[bytes]) -> None:
    inbound = made()
    data = b"".join(parts)
    sizes = [len(part) for part in parts[:-1]]
    assert taken(inbound, b"".join(fragments(data, *sizes))) == []
    assert ended_with(inbound) == (1007, "text is not UTF-8")


def test_bad_text_is_found_before_the_message_is_whole() -> None:
    inbound = made()
    taken(inbound, client_frame(TEXT, b"\xff", fin=False))
    assert ended_with(inbound) == (1007, "text is not UTF-8")


def test_what_follows_bad_text_is_no_message() -> None:
    inbound = made()
    bad = client_frame(TEXT, b"\xff")
    assert taken(inbound, bad + client_frame(TEXT, b"late") + client_frame(BINARY, b"late")) == []
    assert ended_with(inbound)[0] == 1007


def test_a_close_reason_that_is_not_utf_8_is_1007() -> None:
    inbound = made()
    taken(inbound, client_frame(CLOSE, b"\x03\xe8\xff"))
    assert ended_with(inbound) == (1007, "text is not UTF-8")


@pytest.mark.parametrize("frame", [client_frame(PONG), client_frame(TEXT), client_frame(PING)])
def test_more_frames_than_allowed_are_1008(frame: bytes) -> None:
    inbound = made()
    taken(inbound, frame * MAX_FRAMES)
    assert inbound.open
    assert inbound.frames == MAX_FRAMES
    taken(inbound, frame)
    assert ended_with(inbound) == (1008, "too many frames")


def test_fragments_count_as_frames() -> None:
    inbound = made()
    empty = client_frame(CONTINUATION, fin=False)
    taken(inbound, client_frame(TEXT, fin=False) + empty * (MAX_FRAMES - 1))
    assert inbound.open
    taken(inbound, empty)
    assert ended_with(inbound) == (1008, "too many frames")


def test_a_flood_in_one_piece_is_not_parsed_to_its_end() -> None:
    inbound = made()
    flood = client_frame(TEXT, b"x") * 9_000
    messages = taken(inbound, flood, max_frames=MAX_FRAMES)
    assert inbound.frames == len(messages)
    assert MAX_FRAMES < inbound.frames < 10 * MAX_FRAMES
    assert ended_with(inbound)[0] == 1008


def test_a_message_may_be_as_large_as_the_bound_and_no_larger() -> None:
    inbound = made()
    assert taken(inbound, client_frame(BINARY, b"x" * MAX_BYTES)) == [b"x" * MAX_BYTES]
    assert taken(inbound, client_frame(BINARY, b"x" * (MAX_BYTES + 1))) == []
    assert ended_with(inbound) == (1009, "message too big")


def test_the_size_of_fragments_counts_together() -> None:
    inbound = made()
    frames = fragments(b"x" * (MAX_BYTES + 1), MAX_BYTES // 2, MAX_BYTES // 2)
    taken(inbound, *frames[:-1])
    assert inbound.open
    taken(inbound, frames[-1])
    assert ended_with(inbound) == (1009, "message too big")


def test_a_message_that_is_announced_too_large_ends_it_before_it_comes() -> None:
    inbound = made()
    taken(inbound, client_frame(BINARY, b"x" * 70_000)[:14])
    assert ended_with(inbound)[0] == 1009


@pytest.mark.parametrize(
    "bad",
    [
        client_frame(TEXT, mask=False),
        client_frame(CONTINUATION),
        client_frame(0x3),
        client_frame(PING, fin=False),
        client_frame(TEXT, b"a", fin=False) + client_frame(TEXT),
        bytes([0xC1]) + client_frame(TEXT, b"deflated")[1:],
    ],
)
def test_what_breaks_the_protocol_is_1002(bad: bytes) -> None:
    inbound = made()
    assert taken(inbound, bad) == []
    assert ended_with(inbound) == (1002, "protocol error")


def long_form(opcode: int, payload: bytes, *, length_bytes: int) -> bytes:
    """Spell a frame whose length is in so many bytes, needed or not."""
    start = bytes([0x80 | opcode, 0x80 | {2: 126, 8: 127}[length_bytes]])
    return start + len(payload).to_bytes(length_bytes) + bytes(4) + payload


@pytest.mark.parametrize(
    ("length_bytes", "size", "minimal"),
    [(2, 0, False), (2, 125, False), (2, 126, True), (2, 9_000, True), (8, 0, False),
     (8, 125, False), (8, 126, False), (8, 9_000, False)],
)  # fmt: skip
@pytest.mark.parametrize("piece", [1, 3, 20_000])
def test_a_length_that_is_not_minimal_is_1002(
    length_bytes: int, size: int, minimal: bool, piece: int
) -> None:
    before = client_frame(TEXT, b"before") + client_frame(PING, b"?") + fragments(b"xy", 1)[0]
    frame = long_form(CONTINUATION, b"z" * size, length_bytes=length_bytes)
    data = before + frame + client_frame(TEXT, b"behind")
    inbound = made()
    parts = [data[start : start + piece] for start in range(0, len(data), piece)]
    messages = taken(inbound, *parts)
    if minimal:
        assert messages == ["before", "x" + "z" * size, "behind"]
        assert inbound.open
        assert inbound.between_messages
    else:
        assert messages == ["before"]
        frames = server_frames(inbound.answer())
        assert frames[0] == (PONG, b"?")
        assert [opcode for opcode, _ in frames] == [PONG, CLOSE]
        assert struct.unpack("!H", frames[1][1][:2])[0] == 1002
        assert inbound.end == "protocol error"


def test_a_length_of_eight_bytes_is_minimal_from_65536_on() -> None:
    inbound = Inbound(max_bytes=100_000)
    whole = long_form(BINARY, b"x" * 65_536, length_bytes=8)
    assert taken(inbound, whole + client_frame(TEXT, b"next")) == [b"x" * 65_536, "next"]
    taken(inbound, long_form(BINARY, b"x" * 65_535, length_bytes=8))
    assert ended_with(inbound) == (1002, "protocol error")


@pytest.mark.parametrize("code", [1000, 1001, 4999])
def test_a_close_is_echoed_and_is_the_clients_leave(code: int) -> None:
    inbound = made()
    taken(inbound, close_frame(code, "bye"))
    assert ended_with(inbound) == (code, "client left")


@pytest.mark.parametrize("begun", [b"", b"half of it", "é".encode()[:1]])
def test_a_close_between_fragments_is_a_close(begun: bytes) -> None:
    inbound = made()
    first = client_frame(TEXT, begun, fin=False)
    assert taken(inbound, first, client_frame(CLOSE, struct.pack("!H", 1000))) == []
    assert ended_with(inbound) == (1000, "client left")


def test_nothing_is_taken_behind_a_close() -> None:
    inbound = made()
    assert taken(inbound, close_frame(1000) + client_frame(TEXT, b"late")) == []
    assert taken(inbound, client_frame(TEXT, b"later")) == []
    assert server_frames(inbound.answer()) == [(CLOSE, struct.pack("!H", 1000))]


def test_while_it_is_open_there_is_no_end() -> None:
    assert made().end is None


@pytest.mark.parametrize("text", [b"", b"a", b"hello" * 100])
def test_it_can_be_let_go_of_between_messages_and_at_no_other_time(text: bytes) -> None:
    inbound = made()
    assert inbound.between_messages
    frame = client_frame(TEXT, text)
    for number, byte in enumerate(frame, 1):
        taken(inbound, bytes([byte]))
        assert inbound.between_messages is (number == len(frame))


def test_it_is_needed_until_the_last_fragment() -> None:
    inbound = made()
    first, second, last = fragments(b"abc", 1, 1)
    for part, between in ((first, False), (client_frame(PING), False), (second, False)):
        taken(inbound, part)
        assert inbound.between_messages is between
    taken(inbound, last)
    assert inbound.between_messages


@st.composite
def conversations(draw: st.DrawFn) -> bytes:
    """Messages of one to four fragments, with Pings between, and lengths of every form."""
    frames: list[bytes] = []
    for _ in range(draw(st.integers(1, 3))):
        opcode = draw(st.sampled_from((TEXT, BINARY)))
        size = draw(st.sampled_from((0, 1, 125, 126, 127, 300, 2_500)))
        payload = (MIXED * size)[:size].encode() if opcode == TEXT else b"b" * size
        cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=3)))
        sizes = [end - start for start, end in pairwise((0, *cuts))]
        for each in fragments(payload, *sizes, opcode=opcode):
            frames += [client_frame(PING, b"p")] * draw(st.integers(0, 1))
            frames.append(each)
    return b"".join(frames)


@given(conversations(), st.data())
def test_wherever_a_client_is_cut_another_parser_goes_on(data: bytes, draws: st.DataObject) -> None:
    whole = taken(made(), data, max_frames=10_000)
    cut = draws.draw(st.integers(0, len(data)))
    pieces = sorted(draws.draw(st.lists(st.integers(0, cut), max_size=4)))
    first, second = made(), made()
    got = taken(first, *(data[a:b] for a, b in pairwise((0, *pieces, cut))), max_frames=10_000)
    first.answer()
    assert taken(second, first.begun()) == []
    assert second.answer() == b""
    assert second.between_messages == first.between_messages
    assert got + taken(second, data[cut:], max_frames=10_000) == whole
