"""Cursors: what a gateway writes it reads again, and what no gateway has written is none."""

from __future__ import annotations

import random
import time

import pytest

from gateway.connections.cursor import (
    MAX_CURSOR_BYTES,
    MAX_POSITIONS,
    Cursor,
    base36,
    cursor_text,
    move,
    read_cursor,
)

LONGEST_TOPIC = "t" * 249
MAX_OFFSET = 2**63 - 1


@pytest.mark.parametrize(
    "cursor",
    [
        Cursor(0),
        Cursor(1),
        Cursor(1_764_360_000_123),
        Cursor(36**11 - 1),
        Cursor(7, {("push", 0): 0}),
        Cursor(7, {("push", 2**31 - 1): MAX_OFFSET}),
        Cursor(7, {("a-b-3-4", 5): 6, ("a-b-3", 4): 5}),
        Cursor(7, {("._-", 1): 2, ("-", 3): 4}),
        Cursor(7, {(LONGEST_TOPIC, number): MAX_OFFSET for number in range(MAX_POSITIONS)}),
    ],
    ids=lambda cursor: cursor_text(cursor.as_of_ms, cursor.positions)[:40],
)
def test_what_is_written_is_read_again(cursor: Cursor) -> None:
    text = cursor_text(cursor.as_of_ms, cursor.positions)
    assert read_cursor(text) == cursor


def test_whatever_times_and_positions_are_written_are_read_again() -> None:
    draw = random.Random(36)
    for _ in range(500):
        positions = {
            (
                "".join(draw.choices("aZ0._-", k=draw.randint(1, 12))),
                draw.randrange(2 ** draw.randint(1, 31)),
            ): draw.randrange(2 ** draw.randint(1, 63))
            for _ in range(draw.randrange(6))
        }
        as_of_ms = draw.randrange(10 ** draw.randint(1, 16))
        assert read_cursor(cursor_text(as_of_ms, positions)) == Cursor(as_of_ms, positions)


def test_a_cursor_is_fit_for_a_header_a_query_and_an_events_id() -> None:
    text = cursor_text(1_764_360_000_123, {("A.b_c-d", 3): 17})
    assert text == "mijae0zf,A.b_c-d-3-17"
    assert " " not in text
    assert "~" not in text, "it stands for a comma in a subprotocol"


@pytest.mark.parametrize("number", [0, 1, 35, 36, 37, 36**2 - 1, 2**53])
def test_base_36_is_pythons(number: int) -> None:
    assert int(base36(number), 36) == number


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ",",
        "k,",
        ",push-0-1",
        "k,push-0-1,",
        "k,,push-0-1",
        "k push-0-1",
        "K",
        "k\n",
        "-1",
        "+1",
        "1_000",
        "k" * 12,
        "\u0663",  # a digit of another alphabet, which int() reads
        "k,push-0",
        "k,push-0-",
        "k,push--1",
        "k,-0-1",
        "k,0-1",
        "k,push-0--1",
        "k,push-0-1.0",
        "k,push-0-\u0661",
        "k,push-\u00b2-1",  # str.isdigit() is true of it
        "k,push-0-1 ",
        "k,push-0-1\r\nid: 7",
        "k,pu sh-0-1",
        "k,push/-0-1",
        "k,pu\u0455h-0-1",
        f"k,{LONGEST_TOPIC}t-0-1",
        f"k,push-{2**31}-1",
        f"k,push-0-{2**63}",
        f"k,push-0-{'9' * 5_000}",  # int() raises ValueError above 4,300 digits
        "k," + ",".join(["push-0-1"] * (MAX_POSITIONS + 1)),
        "k," + ",".join(f"push-{number}-1" for number in range(1_000)),
        "push-0-17",  # the id of an event, as gateways without cursors sent it
        "a3f1c2.17",  # a cursor of long-poll
        "550e8400-e29b-41d4-a716-446655440000",  # another server's
        "\ud800",
        "k" * (1024 * 1024),
        "," * (1024 * 1024),
        "k,push-0-1" + "0" * (1024 * 1024),
    ],
    ids=lambda text: ascii(text[:30]),
)
def test_what_no_gateway_has_written_is_no_cursor(text: str) -> None:
    began = time.perf_counter()
    assert read_cursor(text) is None
    assert time.perf_counter() - began < 0.1, "a long text is refused by its length"


def test_the_longest_cursor_is_within_the_bound() -> None:
    positions = {(LONGEST_TOPIC, 2**31 - 1 - n): MAX_OFFSET for n in range(MAX_POSITIONS)}
    assert len(cursor_text(2**53, positions)) <= MAX_CURSOR_BYTES


def test_of_too_many_positions_the_last_ones_are_written() -> None:
    positions = {("push", number): 1 for number in range(MAX_POSITIONS + 5)}
    cursor = read_cursor(cursor_text(7, positions))
    assert cursor is not None
    assert list(cursor.positions) == [("push", number) for number in range(5, MAX_POSITIONS + 5)]


def test_of_two_positions_in_one_partition_the_later_counts() -> None:
    cursor = read_cursor("k,push-0-9,push-0-4")
    assert cursor is not None
    assert cursor.positions == {("push", 0): 9}


def test_a_position_moves_forward_alone_and_the_newest_stands_last() -> None:
    positions = {("a", 0): 5, ("b", 0): 7}
    move(positions, ("a", 0, 6))
    assert list(positions.items()) == [(("b", 0), 7), (("a", 0), 6)]
    move(positions, ("b", 0, 3))
    assert list(positions.items()) == [(("a", 0), 6), (("b", 0), 7)]
    move(positions, ("c", 1, 0))
    assert list(positions.items())[-1] == (("c", 1), 0)
