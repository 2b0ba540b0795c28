"""Where forwards go: URLs that are kept, made anew after a failure, and what is said, how often."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from processor import metrics
from processor.sending.reach import Reach
from registry.calls import GatewayCalls, OutsideNetworks
from registry.directory import Node
from registry.networks import networks

pytestmark = pytest.mark.anyio

SECRET = "internal secret of tests of thirty-two bytes or more"
Entries = list[MutableMapping[str, Any]]


class Calls(GatewayCalls):
    """Counts how often a URL is made."""

    def __init__(self, allowed: str = "127.0.0.0/8") -> None:
        super().__init__(secret=SECRET, allowed=networks(allowed))
        self.made = 0

    async def url(self, node: Node) -> str:
        self.made += 1
        return await super().url(node)


@pytest.fixture
def entries() -> Iterator[Entries]:
    with capture_logs() as captured:
        yield captured


def inside(name: str = "gw-a") -> Node:
    return Node(name, f"of-{name}", "localhost:8081")


def outside(name: str = "rogue") -> Node:
    return Node(name, f"of-{name}", "10.0.0.1:8081")


async def test_a_url_is_made_once_and_anew_after_a_failure() -> None:
    calls = Calls()
    reach = Reach(calls)
    for _ in range(3):
        assert await reach.url(inside()) == "http://127.0.0.1:8081"
    assert calls.made == 1
    reach.failed(inside(), TimeoutError())
    await reach.url(inside())
    assert calls.made == 2


async def test_urls_of_nodes_that_are_gone_are_forgotten_and_no_other() -> None:
    calls = Calls()
    reach = Reach(calls)
    for name in ("gw-a", "gw-b"):
        await reach.url(inside(name))
    reach.retain(lambda node: node in (inside("gw-b"), inside("gw-c")))
    await reach.url(inside("gw-b"))
    assert calls.made == 2
    await reach.url(inside("gw-a"))
    assert calls.made == 3


async def test_a_node_outside_the_networks_is_counted_each_time_and_logged_once_a_minute(
    entries: Entries,
) -> None:
    now = [0.0]
    reach = Reach(Calls(), clock=lambda: now[0])
    before = metrics.OUTSIDE_NETWORKS._value.get()
    for moment in (0.0, 1.0, 59.9, 60.0, 61.0):
        now[0] = moment
        for name in ("rogue", "rogue-2"):
            with pytest.raises(OutsideNetworks):
                await reach.url(outside(name))
    assert metrics.OUTSIDE_NETWORKS._value.get() - before == 10
    assert len(entries) == 2
    for entry in entries:
        assert entry["log_level"] == "error"
        assert (entry["node"], entry["address"]) == ("rogue", "10.0.0.1:8081")
        assert "PUSHGATE_GATEWAY_NETWORKS" in entry["reason"]


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_secret_is_logged_once_a_minute_with_the_cure(
    entries: Entries, status: int
) -> None:
    now = [0.0]
    reach = Reach(Calls(), clock=lambda: now[0])
    for moment in (0.0, 59.0, 60.0):
        now[0] = moment
        reach.refused(inside(), status)
    assert len(entries) == 2
    for cure in ("PUSHGATE_INTERNAL_SECRET", "PUSHGATE_INTERNAL_AUTH=bearer", "upgrade gateways"):
        assert cure in entries[0]["reason"]


def test_what_has_nothing_to_do_with_trust_is_not_logged_here(entries: Entries) -> None:
    reach = Reach(Calls())
    for error in (TimeoutError(), ConnectionError(), ValueError()):
        reach.failed(inside(), error)
    assert entries == []


def test_a_fault_of_tls_is_logged_with_the_setting(entries: Entries) -> None:
    error = ConnectionError()
    error.__cause__ = ssl.SSLError(1, "wrong version number")
    Reach(Calls()).failed(inside(), error)
    (entry,) = entries
    assert "PUSHGATE_INTERNAL_TLS_CA" in entry["reason"]
    assert "wrong version number" in entry["reason"]


async def test_kinds_of_lines_do_not_hide_each_other(entries: Entries) -> None:
    reach = Reach(Calls(), clock=lambda: 0.0)
    reach.refused(inside(), 403)
    reach.takes_no_links(inside(), 404)
    with pytest.raises(OutsideNetworks):
        await reach.url(outside())
    assert len(entries) == 3
