"""A node is a name, an epoch and host:port, and nothing that a registry could be poisoned with."""

from typing import Any

import pytest

from registry.directory import TIMINGS, Node, Timings


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:8081",
        "gateway-0.gateways.prod.svc.cluster.local:1",
        "localhost:65535",
        "[::1]:8081",
        "[fe80::1]:80",
        "[::ffff:10.0.0.1]:80",
    ],
)
def test_a_node_has_a_host_and_a_port(address: str) -> None:
    assert Node("gw-a", "e1", address).address == address


@pytest.mark.parametrize(
    "address",
    [
        "",
        "host",
        "host:",
        ":8081",
        "host:port",
        "http://host:80",
        "host:80/path",
        "host:80?query",
        "host:80#part",
        "user@host:80",
        "user:word@host:80",
        "host:80\r\nx: y",
        "host:80\n",
        "\nhost:80",
        "host\x00:80",
        "ho st:80",
        "::1:80",
        "[::1]",
        "[::1%eth0]:80",
        "[host]:80",
        "hôst:80",
        "host:٨٠",
        "h" * 254 + ":80",
        "h" * 1_048_576,
    ],
    ids=lambda address: repr(address[:24]),
)
def test_what_is_no_host_and_port_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        Node("gw-a", "e1", address)


@pytest.mark.parametrize(
    "address",
    ["host:65536", "host:99999", "host:0", "999.999.999.999:80", "[::::]:80", "[1.2]:80"],
)
def test_what_no_client_could_connect_to_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        Node("gw-a", "e1", address)


@pytest.mark.parametrize(
    "name", ["", "a b", "a:b", "a/b", "a\n", "\r\n", "é", "\x00", "a" * 65, "http://a", "a" * 2**20]
)
def test_a_name_or_epoch_that_could_break_an_entry_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name and epoch"):
        Node(name, "e1", "host:80")
    with pytest.raises(ValueError, match="name and epoch"):
        Node("gw-a", name, "host:80")


def test_the_longest_name_passes() -> None:
    assert Node("n" * 64, "e" * 64, "host:80").tag == b"n" * 64 + b":" + b"e" * 64


def test_a_refusal_does_not_repeat_a_megabyte() -> None:
    with pytest.raises(ValueError, match="host:port") as caught:
        Node("gw-a", "e1", "h" * 1_048_576)
    assert len(str(caught.value)) < 200
    with pytest.raises(ValueError, match="name and epoch") as caught:
        Node("n" * 1_048_576, "e1", "host:80")
    assert len(str(caught.value)) < 200


def test_a_node_of_another_epoch_is_another_node() -> None:
    assert Node("gw-a", "e1", "host:80") != Node("gw-a", "e2", "host:80")
    assert Node("gw-a", "e1", "host:80").tag == b"gw-a:e1"


def test_the_timings_of_a_cluster_agree_with_each_other() -> None:
    assert Timings() == TIMINGS


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"lease_seconds": 9.9}, "a lease of 9.9 s is shorter than 5 heartbeats of 2 s"),
        ({"heartbeat_seconds": 3.1}, "a lease of 15 s is shorter than 5 heartbeats of 3.1 s"),
        ({"entry_seconds": 1_200}, "an entry of 1200 s does not outlive two re-assertions of 600"),
        ({"reassertion_seconds": 900.0}, "an entry of 1800 s does not outlive two re-assertions"),
        ({"registration_seconds": 6.9}, "a registration of 6.9 s is shorter than a heartbeat of 2"),
        ({"heartbeat_seconds": 2.5}, "a registration of 7 s is shorter than a heartbeat of 2.5 s"),
    ],
)
def test_timings_that_contradict_each_other_stop_the_start(
    given: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        Timings(**given)


@pytest.mark.parametrize(
    "given",
    [
        {"lease_seconds": 10.0},
        {"heartbeat_seconds": 3.0, "registration_seconds": 8.0},
        {"entry_seconds": 1_201},
        {"reassertion_seconds": 899.9},
    ],
)
def test_timings_may_be_as_short_as_their_inequalities_say(given: dict[str, Any]) -> None:
    Timings(**given)
