"""The gate of a connection that resumes: first what was missed, then what came meanwhile, once."""

from __future__ import annotations

import random

import pytest

from gateway.connections.cursor import Cursor, Partition, cursor_text, read_cursor
from gateway.connections.delivery import Delivery, cursor_form
from gateway.connections.gate import MOST_WAITING, Gate, Replayed, Verdict

AS_OF_MS = 1_000_000
LATER_MS = 1_030_000
MOST_BYTES = 1_000


def live(offset: int, partition: int = 0, *, payload: bytes = b"x") -> Delivery:
    position = f"push-{partition}-{offset}"
    return Delivery(payload, message_id="m", position=position, as_of="zz")


def pushed() -> Delivery:
    """Give a message of POST /push, which is in no log."""
    return Delivery(b"pushed", message_id="m", as_of="zz")


def gate_at(**positions: int) -> Gate:
    """Give the gate of a client with these positions, by `p` and the partition's number."""
    known: dict[Partition, int] = {("push", int(p[1:])): at for p, at in positions.items()}
    return Gate(Cursor(AS_OF_MS, known), most_bytes=MOST_BYTES)


@pytest.fixture
def gate() -> Gate:
    return gate_at()


def answer(gate: Gate, end: int, *offsets: int, partition: int = 0, whole: bool = True) -> None:
    """Take an answer: messages, and the offset before which these are all that there are."""
    messages = [live(offset, partition) for offset in offsets]
    gate.answer(("push", partition), messages, end, whole=whole)


def written(gate: Gate, most: int = 1_000) -> list[str]:
    """Let the client read, so many messages; give their positions."""
    positions: list[str] = []
    while len(positions) < most and (delivery := gate.next_to_write()) is not None:
        assert delivery.position is not None
        positions.append(delivery.position)
        gate.wrote(delivery)
    return positions


def offsets_written(gate: Gate) -> list[int]:
    return [int(position.rpartition("-")[2]) for position in written(gate)]


# What waits, and what passes


def test_what_comes_live_waits_for_the_answer_and_follows_it(gate: Gate) -> None:
    assert gate.meet(live(7)) is Verdict.HAS
    assert gate.meet(live(8)) is Verdict.HAS
    assert written(gate) == [], "what came before is not known yet"
    answer(gate, 6, 4, 5)
    assert offsets_written(gate) == [4, 5, 7, 8]


def test_a_message_of_the_answer_that_comes_live_too_is_written_once(gate: Gate) -> None:
    for offset in (5, 6, 7):
        assert gate.meet(live(offset)) is Verdict.HAS
    answer(gate, 7, 4, 5, 6)
    assert offsets_written(gate) == [4, 5, 6, 7]
    assert gate.meet(live(5)) is Verdict.HAS


def test_what_waits_goes_out_in_the_logs_order_however_it_came(gate: Gate) -> None:
    offsets = [9, 6, 8, 7]
    assert {gate.meet(live(offset)) for offset in offsets} == {Verdict.HAS}
    answer(gate, 6)
    assert offsets_written(gate) == sorted(offsets)


def test_a_message_that_comes_twice_while_it_waits_is_written_once(gate: Gate) -> None:
    assert gate.meet(live(7)) is Verdict.HAS
    assert gate.meet(live(7)) is Verdict.HAS
    answer(gate, 7)
    assert offsets_written(gate) == [7]


def test_an_answered_partition_flows_while_others_wait(gate: Gate) -> None:
    answer(gate, 10, 9)
    assert gate.meet(live(11)) is Verdict.HAS, "the answer is to be written first"
    assert offsets_written(gate) == [9, 11]
    assert gate.meet(live(12)) is Verdict.PASSES
    assert gate.meet(live(9)) is Verdict.HAS, "a late copy"
    assert gate.meet(live(3, partition=1)) is Verdict.HAS
    assert written(gate) == [], "partition 1 is not answered"
    answer(gate, 3, partition=1)
    assert written(gate) == ["push-1-3"]


def test_nothing_of_a_partition_passes_what_is_still_to_be_written(gate: Gate) -> None:
    answer(gate, 10, 7, 8, 9)
    assert written(gate, most=1) == ["push-0-7"]
    assert gate.meet(live(10)) is Verdict.HAS
    assert offsets_written(gate) == [8, 9, 10]
    assert gate.meet(live(11)) is Verdict.PASSES


def test_what_the_client_has_does_not_come_again() -> None:
    gate = gate_at(p0=5)
    assert gate.meet(live(5)) is Verdict.HAS
    answer(gate, 7, 4, 5, 6)
    assert offsets_written(gate) == [6]
    answer(gate, 3, 2, partition=1)
    assert written(gate) == ["push-1-2"], "a position is of one partition"


def test_an_answer_for_a_partition_that_flows_changes_nothing(gate: Gate) -> None:
    answer(gate, 10, 8)
    assert written(gate, most=1) == ["push-0-8"]
    answer(gate, 13, 8, 11, 12)
    assert written(gate) == [], "11 and 12 are looked up after the question, and come live"
    assert gate.meet(live(11)) is Verdict.PASSES


def test_what_waits_is_written_though_the_answer_lacks_it(gate: Gate) -> None:
    """A TTL may have passed since, or, with a TTL of 0, the processor heard that it was taken."""
    assert gate.meet(live(5)) is Verdict.HAS
    answer(gate, 8, 4, 7)
    assert offsets_written(gate) == [4, 5, 7]


def test_a_position_of_an_earlier_topic_of_the_name_keeps_nothing_out() -> None:
    gate = gate_at(p0=5_000, p1=7)
    gate.void(("push", 0))
    answer(gate, 3, 0, 2)
    assert offsets_written(gate) == [0, 2]
    assert gate.meet(live(3)) is Verdict.PASSES
    assert gate.cursor(LATER_MS) == cursor_text(AS_OF_MS, {("push", 1): 7, ("push", 0): 2})


def test_a_position_that_the_client_has_come_to_since_is_not_voided(gate: Gate) -> None:
    answer(gate, 3, 2)
    written(gate)
    gate.void(("push", 0))
    assert gate.meet(live(2)) is Verdict.HAS


# Answers in pages


def test_below_the_answers_end_everything_is_had_though_the_client_got_none_of_it(
    gate: Gate,
) -> None:
    """It has expired since, or was for a device, or the client was told of a gap."""
    answer(gate, 10, 7)
    written(gate)
    assert gate.meet(live(8)) is Verdict.HAS
    replayed = gate.replayed({})
    assert replayed.meet(live(9)) is Verdict.HAS
    assert replayed.meet(live(10)) is Verdict.PASSES


def test_between_two_pages_the_partition_waits(gate: Gate) -> None:
    assert gate.meet(live(2)) is Verdict.HAS
    assert gate.meet(live(9)) is Verdict.HAS
    answer(gate, 4, 1, 3, whole=False)
    assert offsets_written(gate) == [1, 2, 3]
    assert gate.meet(live(10)) is Verdict.HAS
    assert written(gate) == []
    answer(gate, 9, 5, 8)
    assert offsets_written(gate) == [5, 8, 9, 10]
    assert gate.meet(live(11)) is Verdict.PASSES


def test_a_page_that_comes_again_before_it_is_written_is_written_once(gate: Gate) -> None:
    answer(gate, 6, 4, 5, whole=False)
    answer(gate, 8, 4, 5, 6, 7, whole=False)
    assert written(gate, most=1) == ["push-0-4"]
    answer(gate, 9, 5, 6, 7, 8)
    assert offsets_written(gate) == [5, 6, 7, 8]


def test_a_live_copy_of_a_page_that_is_still_to_be_written_is_no_other_message(gate: Gate) -> None:
    answer(gate, 6, 4, 5, whole=False)
    assert gate.meet(live(5)) is Verdict.HAS
    answer(gate, 6)
    assert offsets_written(gate) == [4, 5]


def test_a_position_never_goes_back(gate: Gate) -> None:
    gate.passed(live(9))
    gate.passed(live(4))
    assert gate.cursor(LATER_MS) == cursor_text(AS_OF_MS, {("push", 0): 9})


def test_what_is_in_no_log_passes_at_once(gate: Gate) -> None:
    assert gate.meet(pushed()) is Verdict.PASSES
    gate.passed(pushed())
    assert gate.cursor(LATER_MS) == cursor_text(AS_OF_MS, {})


def test_whatever_comes_in_whatever_order_each_message_is_written_once_and_in_order() -> None:
    draw = random.Random(5)
    for _ in range(200):
        gate = gate_at()
        end, last = draw.randrange(1, 20), 30
        lives = [live(offset) for offset in range(last) for _ in range(draw.randrange(3))]
        draw.shuffle(lives)  # look-ups of several owners
        cut = draw.randrange(len(lives) + 1)
        for delivery in lives[:cut]:
            gate.meet(delivery)
        answer(gate, end, *range(end))
        got = offsets_written(gate)
        seen = {int(str(d.position).rpartition("-")[2]) for d in lives[:cut]}
        assert got == sorted({*range(end), *seen})


# Bounds


def test_of_many_small_messages_the_last_have_no_room(gate: Gate) -> None:
    verdicts = [gate.meet(live(offset, payload=b"")) for offset in range(MOST_WAITING + 1)]
    assert verdicts == [Verdict.HAS] * MOST_WAITING + [Verdict.NO_ROOM]
    assert gate.meet(live(0)) is Verdict.HAS, "it is among those that wait"
    answer(gate, 0)
    assert len(offsets_written(gate)) == MOST_WAITING
    assert gate.meet(live(MOST_WAITING)) is Verdict.PASSES


def test_a_first_message_fits_whatever_its_size_and_a_second_only_within_the_bound(
    gate: Gate,
) -> None:
    assert gate.meet(live(1, payload=b"x" * (MOST_BYTES + 1))) is Verdict.HAS
    assert gate.meet(live(2, payload=b"x")) is Verdict.NO_ROOM
    answer(gate, 1)
    assert offsets_written(gate) == [1]
    assert gate.meet(live(1, partition=1, payload=b"x" * MOST_BYTES)) is Verdict.HAS
    assert gate.meet(live(2, partition=1, payload=b"")) is Verdict.HAS
    assert gate.meet(live(3, partition=1, payload=b"x")) is Verdict.NO_ROOM


# The cursor


def test_until_all_is_answered_the_cursor_keeps_the_time_with_which_the_client_came() -> None:
    gate = gate_at(p0=5)
    assert gate.cursor(LATER_MS) == cursor_text(AS_OF_MS, {("push", 0): 5})
    delivery = live(8)
    own = cursor_text(AS_OF_MS, {("push", 0): 8})
    assert f'"cursor":"{own}"'.encode() in gate.encoded(delivery, cursor_form)
    assert gate.cursor(LATER_MS) == cursor_text(AS_OF_MS, {("push", 0): 5}), "not taken yet"
    gate.passed(delivery)
    assert gate.cursor(LATER_MS) == cursor_text(AS_OF_MS, {("push", 0): 8})


def test_the_newest_position_stands_last_in_the_cursor() -> None:
    gate = gate_at(p0=1, p1=1)
    gate.passed(live(2, partition=0))
    cursor = read_cursor(gate.cursor(LATER_MS))
    assert cursor is not None
    assert list(cursor.positions.items()) == [(("push", 1), 1), (("push", 0), 2)]


def test_a_message_that_all_connections_get_keeps_its_own_cursor(gate: Gate) -> None:
    delivery = live(8)
    shared = delivery.encoded(cursor_form)
    assert gate.encoded(delivery, cursor_form) != shared
    assert delivery.encoded(cursor_form) == shared


# The end


def whole(gate: Gate, *processors: str) -> bool:
    return gate.is_whole(frozenset(processors))


def test_it_is_whole_when_all_processors_have_answered_for_all_partitions(gate: Gate) -> None:
    assert not whole(gate), "nobody has answered"
    gate.heard.add("p1")
    assert not whole(gate, "p1"), "and nobody knows of a partition"
    gate.take_counts({"push": 2})
    answer(gate, 4)
    written(gate)
    assert not whole(gate, "p1"), "partition 1 is nobody's"
    answer(gate, 4, 3, partition=1)
    assert not whole(gate, "p1"), "a message is still to be written"
    written(gate)
    assert whole(gate, "p1")
    assert not whole(gate, "p1", "p2"), "p2 may remember where the user was"
    gate.heard.add("p2")
    assert whole(gate, "p1", "p2")
    assert whole(gate), "they have left"


def test_after_the_gate_late_copies_of_replayed_messages_are_kept_out(gate: Gate) -> None:
    answer(gate, 10, 9)
    written(gate)
    gate.passed(live(15))
    replayed = gate.replayed({})
    assert [replayed.meet(live(at)) for at in (9, 8, 15, 12)] == [Verdict.HAS] * 4
    assert replayed.meet(live(16)) is Verdict.PASSES
    assert replayed.meet(live(1, partition=1)) is Verdict.PASSES
    assert replayed.meet(pushed()) is Verdict.PASSES
    replayed.passed(live(16))
    assert replayed.meet(live(16)) is Verdict.HAS


def test_after_the_gate_the_cursor_has_the_nodes_time_and_all_positions() -> None:
    replayed = Replayed({("push", 0): 10}, {("push", 0): 9, ("push", 1): 4})
    replayed.passed(live(12))
    delivery = live(12)
    assert replayed.encoded(delivery, cursor_form) == delivery.encoded(cursor_form)
    assert replayed.cursor(LATER_MS) == cursor_text(LATER_MS, {("push", 1): 4, ("push", 0): 12})


def test_all_that_any_processor_knows_of_has_to_be_answered(gate: Gate) -> None:
    gate.heard.update(("p1", "p2"))
    gate.take_counts({"push": 2})
    gate.take_counts({"push": 1})  # a processor that has not seen the topic grow
    answer(gate, 1)
    written(gate)
    assert not whole(gate, "p1", "p2")
    answer(gate, 1, partition=1)
    assert gate.meet(live(4, partition=2, payload=b"")) is Verdict.HAS
    written(gate)
    assert not whole(gate, "p1", "p2"), "somebody reads a third partition"
    answer(gate, 1, partition=2)
    assert written(gate) == ["push-2-4"]
    assert whole(gate, "p1", "p2")


def test_whoever_gives_up_gets_out_all_that_waits(gate: Gate) -> None:
    answer(gate, 5, 4)
    for partition in (1, 2):
        gate.meet(live(7, partition=partition))
        gate.meet(live(6, partition=partition))
    gate.open_all()
    assert written(gate) == ["push-0-4", "push-1-6", "push-1-7", "push-2-6", "push-2-7"]
    assert gate.meet(live(8, partition=1)) is Verdict.PASSES
