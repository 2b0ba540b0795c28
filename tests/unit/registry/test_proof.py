"""A proof is for one node: with any other name, epoch, address or secret it is another."""

from dataclasses import replace
from itertools import combinations

import pytest

from registry.directory import Node
from registry.proof import proof

SECRET = "internal secret of tests of thirty-two bytes or more"
NODE = Node("gw-a", "9f2c", "10.0.0.1:8081")


def test_a_proof_is_what_other_versions_make_of_the_same_node() -> None:
    """Gateways and processors of different versions meet: a changed form needs a new version."""
    digest = "cd2345f769fddf581c7e8b1392fb1d3d7fbe6e273a3f70329db85efdb56d954b"
    assert proof(SECRET, NODE) == f"v1.{digest}"


def test_a_proof_of_equal_parts_is_equal_and_shows_no_secret() -> None:
    assert proof(SECRET, NODE) == proof(SECRET, Node("gw-a", "9f2c", "10.0.0.1:8081"))
    assert SECRET not in proof(SECRET, NODE)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "gw-b"),
        ("name", "GW-A"),
        ("epoch", "9f2d"),
        ("address", "10.0.0.1:8082"),
        ("address", "10.0.0.2:8081"),
        ("address", "gw-a:8081"),
        ("address", "[::ffff:10.0.0.1]:8081"),
    ],
)
def test_with_another_field_it_is_another_proof(field: str, value: str) -> None:
    assert proof(SECRET, replace(NODE, **{field: value})) != proof(SECRET, NODE)


@pytest.mark.parametrize("other", [SECRET[:-1], SECRET + "x", SECRET.upper()])
def test_with_another_secret_it_is_another_proof(other: str) -> None:
    assert proof(other, NODE) != proof(SECRET, NODE)


def test_no_two_nodes_have_one_proof_by_the_cut_between_their_fields() -> None:
    address = "1.1.1.1:80"
    nodes = [
        Node("ab", "c", address),
        Node("a", "bc", address),
        Node("a.b", "c", address),
        Node("a", "b.c", address),
        Node("ab", "c1.1.1.1", "80.1.1.1:80"),
        Node("c", "ab", address),
    ]
    for one, other in combinations(nodes, 2):
        assert proof(SECRET, one) != proof(SECRET, other)
