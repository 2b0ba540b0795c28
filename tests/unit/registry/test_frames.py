"""Frames: cut at any byte, they come out whole and in order; what is no frame is told at once."""

from __future__ import annotations

import random
import struct

import pytest

from registry.frames import BadFrame, Frame, FrameReader, frame_head

BODIES = [b"", b"x", b"\x90", bytes(range(256)), b"y" * 1_000]
STREAM = b"".join(frame_head(number, len(body)) + body for number, body in enumerate(BODIES))
FRAMES = [Frame(number, body) for number, body in enumerate(BODIES)]


def taken(reader: FrameReader) -> list[Frame]:
    frames = []
    while reader.has_next:
        frame = reader.next()
        assert frame is not None
        frames.append(frame)
    assert reader.next() is None
    return frames


def test_a_frame_is_length_number_and_body() -> None:
    assert frame_head(7, 3) == b"\x00\x00\x00\x03" + b"\x00" * 7 + b"\x07"


def test_frames_that_are_cut_at_any_byte_come_out_whole() -> None:
    for at in range(len(STREAM) + 1):
        reader = FrameReader(most_bytes=1_000)
        reader.feed(STREAM[:at])
        frames = taken(reader)
        reader.feed(STREAM[at:])
        assert frames + taken(reader) == FRAMES, at
        assert len(reader) == 0


@pytest.mark.parametrize("seed", range(20))
def test_frames_come_out_whole_from_pieces_of_any_size(seed: int) -> None:
    draw, reader, frames, rest = random.Random(seed), FrameReader(most_bytes=1_000), [], STREAM
    while rest:
        size = draw.choice([1, 2, 11, 12, 13, 500])
        reader.feed(rest[:size])
        rest = rest[size:]
        if draw.random() < 0.5:
            frames += taken(reader)
    assert frames + taken(reader) == FRAMES


@pytest.mark.parametrize("size", [1_001, 1 << 24, (1 << 32) - 1])
def test_a_frame_over_the_limit_is_refused_by_its_first_bytes(size: int) -> None:
    reader = FrameReader(most_bytes=1_000)
    reader.feed(frame_head(0, 1_000)[:-1])
    assert not reader.has_next
    reader = FrameReader(most_bytes=1_000)
    reader.feed(frame_head(0, size))
    assert reader.has_next
    with pytest.raises(BadFrame, match=f"{size} bytes; at most 1000"):
        reader.next()


@pytest.mark.parametrize("number", [0, 2, 1 << 32, (1 << 64) - 1])
def test_a_frame_out_of_turn_is_refused(number: int) -> None:
    reader = FrameReader(most_bytes=1_000)
    reader.feed(frame_head(0, 1) + b"x" + struct.pack("!IQ", 5, number))
    assert reader.next() == Frame(0, b"x")
    with pytest.raises(BadFrame, match=f"frame {number}, where 1 was due"):
        reader.next()
