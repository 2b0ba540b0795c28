"""Claims: what a member has settled reaches the next owner of each partition by the leader."""

from __future__ import annotations

from typing import Any, cast

import pytest
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocol

from processor.reading import handover as module
from processor.reading.handover import (
    Handover,
    Settled,
    claim_in,
    decode,
    encode,
    merged,
    word_of,
)
from processor.reading.kafka import TopicPartition
from processor.reading.progress import Progress

A, B, C, D = (TopicPartition("push", number) for number in range(4))


class Cluster:
    """A cluster with one topic of four partitions."""

    def partitions_for_topic(self, topic: str) -> set[int]:
        return {0, 1, 2, 3}


def progress(partition: TopicPartition, *, taken: range, settled: set[int]) -> Progress:
    result = Progress(partition, lane=0)
    for offset in taken:
        result.begin(offset, size=1, timestamp_ms=0)
    for offset in settled:
        result.settle(offset, size=1)
    return result


def rejoin(members: dict[str, Any]) -> None:
    """Let the members join as aiokafka lets them, with the first as the leader."""
    subscriptions = {
        name: ConsumerProtocol.METADATA.decode(member.metadata(["push"]).encode())
        for name, member in members.items()
    }
    leader = next(iter(members.values()))
    assignments = leader.assign(cast("Any", Cluster()), subscriptions)
    for name, member in members.items():
        member.on_assignment(ConsumerProtocol.ASSIGNMENT.decode(assignments[name].encode()))


def test_what_was_settled_without_a_commit_reaches_the_next_owner() -> None:
    first, second = Handover(), Handover()
    first.give(progress(A, taken=range(10, 20), settled={10, 11, 15, 16}))
    first.give(progress(B, taken=range(5, 7), settled={5, 6}))
    second.give(progress(C, taken=range(3), settled=set()))
    second.give(progress(D, taken=range(0), settled=set()))  # nothing was read
    rejoin({"1": second, "2": first})  # partitions go to 1 and 2 in turn
    assert second.claims == {A: Settled(12, frozenset({15, 16})), C: Settled(0)}
    assert first.claims == {B: Settled(7)}


def test_a_claim_survives_a_join_that_fails_and_an_assignment_that_is_not_begun() -> None:
    first, second = Handover(), Handover()
    first.give(progress(A, taken=range(10, 12), settled={10}))
    first.metadata(["push"])  # joined, and no assignment came
    rejoin({"1": second, "2": first})
    assert second.claims == {A: Settled(11)}
    assert first.claims == {}
    rejoin({"1": first, "2": second})  # the second had it, and read nothing
    assert first.claims == {A: Settled(11)}


def test_an_owner_who_has_read_nothing_yet_passes_on_what_it_received() -> None:
    first, second = Handover(), Handover()
    first.give(progress(A, taken=range(10, 20), settled={10, 15}))
    rejoin({"1": second, "2": first})
    second.give(progress(A, taken=range(0), settled=set()))
    rejoin({"1": first, "2": second})
    assert first.claims == {A: Settled(11, frozenset({15}))}
    first.give(progress(A, taken=range(11, 14), settled={11, 12}))
    rejoin({"1": second, "2": first})
    assert second.claims == {A: Settled(13, frozenset({15}))}


def test_claims_of_several_members_add_up() -> None:
    older, newer = Settled(10, frozenset({12, 30})), Settled(20, frozenset({25}))
    assert merged([{A: older}, {A: newer, B: older}]) == {
        A: Settled(20, frozenset({25, 30})),
        B: older,
    }


def test_members_without_claims_of_another_version_share_the_group() -> None:
    old = RoundRobinPartitionAssignor
    new = Handover()
    new.give(progress(A, taken=range(1), settled={0}))
    assert new.name == old.name
    new.give(progress(B, taken=range(1), settled={0}))
    rejoin({"1": old, "2": new})
    assert new.claims == {B: Settled(1)}, "its own, as the old leader passes none on"
    rejoin({"2": new, "1": old})
    assert new.claims == {B: Settled(1)}


def test_data_of_another_kind_claims_nothing() -> None:
    assert decode(b"\x00\x01no claims") == {}
    assert decode(encode({})) == {}


def test_a_claim_on_offsets_before_a_reset_is_given_up() -> None:
    member = Handover()
    member.give(progress(A, taken=range(500), settled=set(range(500))))
    member.give(progress(A, taken=range(10), settled={0, 1, 2, 5}))  # the topic was made anew
    assert member.claims == {A: Settled(3, frozenset({5}))}


def test_ranges_beyond_the_bound_are_not_claimed(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "_MOST_RANGES", 3)
    claims = {A: Settled(0, frozenset({2, 4, 5})), B: Settled(1, frozenset({3, 5, 7}))}
    assert decode(encode(claims)) == {
        A: Settled(0, frozenset({2, 4, 5})),
        B: Settled(1, frozenset({3})),
    }


@pytest.mark.parametrize("note", ["", "missing:topic-a,topic-b "])
def test_a_claim_in_a_note_is_the_claim_that_was_left(note: str) -> None:
    claim = Settled(100, frozenset({101, 102, 103, 500, 100_000}))
    assert claim_in(note + word_of(claim, most_bytes=4_000), 100) == claim


def test_of_a_claim_that_is_too_long_for_a_note_the_first_ranges_are_left() -> None:
    claim = Settled(0, frozenset(range(1, 40_000, 2)))
    word = word_of(claim, most_bytes=300)
    assert 150 < len(word) <= 300
    left = claim_in(word, 0)
    assert left is not None
    assert left.beyond == frozenset(range(1, 2 * len(left.beyond), 2))
    assert word_of(claim, most_bytes=10) == ""


@pytest.mark.parametrize(
    "note", ["", "missing:a", "settled:", "settled:%%%", "settled:AAAA", "settled:kQE=", "ü"]
)
def test_a_note_without_a_claim_claims_nothing(note: str) -> None:
    assert claim_in(note, 5) is None
