"""What is said on a resume link: it comes out as it went in, and nothing else comes out."""

from __future__ import annotations

import msgspec
import pytest

from registry.message import Push
from registry.resume import (
    MAX_ASK_BYTES,
    MAX_RECEIPT_MESSAGES,
    Ack,
    Answer,
    Ask,
    Question,
    Receipt,
    Replay,
    Stamp,
    encode,
    gateways_word_in,
    position_of,
    push_in,
    word_in,
)

PUSH = Push("\u00e9", b"\x00\xff", "m", "t", "d", 7, "push-0-5")
REPLAY = Replay([msgspec.Raw(encode(PUSH))], {1: 2**62}, [0], [1])


@pytest.mark.parametrize(
    "word",
    [
        Stamp("p1", 1_764_360_000_000, 120.0),
        Stamp("p1", 0, 0.5, ["alice", "\u00e9"], missed_more=True, receipts=True),
        Answer(7, "p1", [("push", 0, 2**62)], {"push": 12}, [REPLAY, Replay()]),
        Answer(0, "", [], {}, []),
    ],
)
def test_a_processors_word_survives_the_link(word: Stamp | Answer) -> None:
    assert word_in(encode(word)) == word


@pytest.mark.parametrize(
    "word",
    [
        Ask(0, []),
        Ask(7, [Question("\u00e9", None, 5, []), Question("u", "d", 0, [("t", 1, 2**62)])]),
        Ack(1_764_360_000_000),
        Receipt([]),
        Receipt([("push", 0, [5, 5, 2**62]), ("\u00e9", 1, [])]),
    ],
)
def test_a_gateways_word_survives_the_link(word: Ask | Ack | Receipt) -> None:
    assert gateways_word_in(encode(word)) == word


def test_the_fullest_receipt_of_the_longest_names_fits_its_frame() -> None:
    receipt = Receipt([("t" * 249, 2**31 - n, [2**63 - 1]) for n in range(MAX_RECEIPT_MESSAGES)])
    assert len(encode(receipt)) < MAX_ASK_BYTES


def test_a_field_that_a_newer_peer_adds_is_ignored() -> None:
    """Also by gateways that know no receipts: they send none, whatever a stamp asks for."""
    fields = {"processor": "p1", "stamp_ms": 7, "resume_seconds": 1.5}
    assert word_in(encode({"type": "stamp", **fields, "new": [1]})) == Stamp(**fields)  # type: ignore[arg-type]
    assert gateways_word_in(encode({"type": "ack", "stamp_ms": 7, "new": True})) == Ack(7)


def test_a_stamp_of_an_older_processor_asks_for_no_receipts() -> None:
    word = word_in(encode({"type": "stamp", "processor": "p1", "stamp_ms": 7, "resume_seconds": 1}))
    assert isinstance(word, Stamp)
    assert not word.receipts


def test_a_replayed_message_survives_the_link() -> None:
    word = word_in(encode(Answer(7, "p1", [], {}, [REPLAY])))
    assert isinstance(word, Answer)
    assert push_in(word.replays[0].messages[0]) == PUSH


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x07",
        encode([]),
        encode({}),
        encode({"type": "other"}),
        encode({"type": "stamp"}),
        encode({"type": "ask", "number": -1}),
        encode({"type": "answer", "number": "7"}),
        encode(Ask(7, []))[:-1],
        encode(Stamp("p1", 1, 1.0))[:-1],
        b"\x91" * 100_000,  # nested deeply
    ],
    ids=lambda body: repr(body[:20]),
)
def test_nothing_else_is_a_word(body: bytes) -> None:
    for read in (word_in, gateways_word_in):
        with pytest.raises((msgspec.MsgspecError, RecursionError)):
            read(body)


def test_a_word_of_one_side_is_none_of_the_other() -> None:
    with pytest.raises(msgspec.MsgspecError):
        word_in(encode(Ask(7, [])))
    with pytest.raises(msgspec.MsgspecError):
        gateways_word_in(encode(Stamp("p1", 1, 1.0)))


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("push-0-17", ("push", 0, 17)),
        ("a-b-3-4-5", ("a-b-3", 4, 5)),
        ("-1-2-3", ("-1", 2, 3)),
        (f"t-{2**31 - 1}-{2**63 - 1}", ("t", 2**31 - 1, 2**63 - 1)),
        ("", None),
        ("push", None),
        ("push-0", None),
        ("-0-17", None),
        ("push--17", None),
        ("push-0-", None),
        ("push-0-1.5", None),
        ("push-0-\u0661", None),
        ("push-\u00b2-1", None),
        ("push-0-" + "9" * 20, None),
        ("push-0-" + "9" * 1_000_000, None),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_position_is_topic_partition_and_offset(
    text: str, position: tuple[str, int, int] | None
) -> None:
    assert position_of(text) == position
