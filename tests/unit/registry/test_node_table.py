"""What an entry means in the light of the live nodes: poison and the dead mean nothing."""

import random

import pytest

from registry.directory import Node
from registry.node_table import NodeTable

A = Node("gw-a", "e1", "10.0.0.1:8081")
B = Node("gw-b", "e2", "10.0.0.2:8081")
NOW = 1_700_000_000
TABLE = NodeTable([A, B], now=NOW)


def element(node: Node, expires: int = NOW + 60) -> bytes:
    return b"%s:%d" % (node.tag, expires)


def test_an_entry_names_the_nodes_that_hold_the_user() -> None:
    assert TABLE.meaning(element(A)) == (A,)
    assert TABLE.meaning(element(B) + b" " + element(A)) == (B, A)


def test_an_entry_means_the_same_each_time_it_is_read() -> None:
    table = NodeTable([A], now=NOW)
    assert [table.meaning(element(A)) for _ in range(3)] == [(A,)] * 3
    assert [table.meaning(element(B)) for _ in range(3)] == [()] * 3


def test_a_node_that_is_named_twice_counts_once() -> None:
    assert TABLE.meaning(element(A) + b" " + element(A, NOW + 90)) == (A,)


def test_an_expired_element_does_not_count() -> None:
    assert TABLE.meaning(element(A, NOW)) == ()
    assert TABLE.meaning(element(A, NOW + 1)) == (A,)
    assert TABLE.meaning(element(A, NOW - 1) + b" " + element(B)) == (B,)


def test_an_earlier_start_of_a_live_node_does_not_count() -> None:
    before = Node(A.name, "e0", A.address)
    assert TABLE.meaning(element(before)) == ()
    assert TABLE.meaning(element(before) + b" " + element(A)) == (A,)


def test_a_table_of_no_nodes_knows_nobody() -> None:
    assert NodeTable().meaning(element(A)) == ()


def strangers(*entries: bytes, dead: set[bytes] | None = None) -> set[bytes]:
    table = NodeTable([A, B], now=NOW)
    table.take_for_dead(dead or set())
    for entry in entries:
        table.meaning(entry)
    return table.strangers


def test_strangers_are_the_nodes_that_are_not_in_the_table() -> None:
    other, earlier = Node("gw-c", "e3", "10.0.0.3:8081"), Node(A.name, "e0", A.address)
    assert strangers(element(other)) == {other.tag}
    assert strangers(element(A) + b" " + element(other)) == {other.tag}
    assert strangers(element(earlier), element(other)) == {earlier.tag, other.tag}
    assert not strangers(element(A) + b" " + element(B, NOW - 1))


def test_what_a_fresh_reading_did_not_show_is_no_stranger_any_more() -> None:
    dead, other = Node("gw-d", "e4", "10.0.0.4:8081"), Node("gw-c", "e3", "10.0.0.3:8081")
    assert strangers(element(dead), element(other), dead={dead.tag}) == {other.tag}


@pytest.mark.parametrize(
    "poison",
    [
        b"",
        b" ",
        b":",
        b"::",
        b"gw-a",
        b"gw-a:e1",
        b"gw-a:e1:",
        b"gw-a:e1:-1",
        b"gw-a:e1:+1800000000",
        b"gw-a:e1:1e99",
        b"gw-a:e1:" + b"9" * 13,
        b"gw-a:e1:" + b"9" * 5_000,
        b"gw-a:e1:1800000000:1",
        b"gw-a :e1:1800000000",
        "gw-a:e1:١٨٠٠٠٠٠٠٠٠".encode(),
        b"http://gw-a:e1:1800000000",
        b"http://evil.example/:1800000000",
        b"gw-a:e1@evil.example:1800000000",
        b"gw-a:e1\r\nhost:1800000000",
        b"GW-A:e1:1800000000",
        b"\x00gw-a:e1:1800000000",
        b"\xff" * 100,
        b"gw-a:e1:1800000000 " * 60_000,  # 1.1 MB, and every element is right
        b"x" * 1_048_576,
    ],
    ids=lambda poison: repr(poison[:24]),
)
def test_a_poisoned_entry_names_nobody(poison: bytes) -> None:
    assert TABLE.meaning(poison) == ()
    assert A.tag not in strangers(poison)


def test_poison_beside_a_good_element_does_not_spoil_it() -> None:
    assert TABLE.meaning(b"http://evil:1\r\n\xff:: " + element(A) + b" \r\nx") == (A,)


def test_a_huge_entry_is_worth_no_fresh_look() -> None:
    assert not strangers(b"x" * 1_048_576)


def test_random_bytes_name_live_nodes_or_nobody() -> None:
    source = random.Random(20_260)
    pieces = [A.tag, B.tag, b":", b" ", b"\n", b"1800000000", b"gw-a", b"\x00", b"\xff", b"e1"]
    table = NodeTable([A, B], now=NOW)
    for _ in range(5_000):
        entry = b"".join(source.choices(pieces, k=source.randrange(12))) + source.randbytes(2)
        found = table.meaning(entry)
        assert set(found) <= {A, B}
        assert all(node.tag + b":" in entry for node in found)


def test_more_entries_than_are_remembered_are_still_read_right() -> None:
    table = NodeTable([A], now=NOW)
    for number in range(20_000):
        assert table.meaning(b"gw-a:e1:%d" % (NOW + 1 + number)) == (A,)
    assert table.meaning(element(B)) == ()
