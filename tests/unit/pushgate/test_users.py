"""A user's connections, where a node of the user's is lost or the registry was emptied."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import httpx
import msgspec
import pytest

from pushgate.ports import NoAnswer, Ports
from pushgate.users import Users
from registry.calls import GatewayCalls
from registry.directory import Node, Registry

pytestmark = pytest.mark.anyio

LIVE = Node("gw-live", "e1", "127.0.0.1:8081")
LOST = Node("gw-lost", "e1", "127.0.0.1:8082")
CONNECTION = {
    "id": "c-1", "transport": "sse", "device": None, "state": "open",
    "since_ms": 1_700_000_000_000, "age_ms": 5,
}  # fmt: skip
LISTING = {"node": "gw-live", "epoch": "e1", "total": 1, "connections": [CONNECTION]}


def registry(found: tuple[Node, ...] | None) -> Registry:
    """Give a registry with one live node, that has found these nodes for any user."""

    async def nodes() -> list[Node]:
        return [LIVE]

    async def lookup(names: list[str]) -> list[tuple[Node, ...] | None]:
        return [found for _ in names]

    fakes = SimpleNamespace(nodes=nodes, lookup=lookup, lost=lambda node: node == LOST)
    return cast("Registry", fakes)


def users(found: tuple[Node, ...] | None, answers: dict[str, Any]) -> Users:
    """Give users of a registry that has found these nodes, and of nodes that answer so."""

    async def ask(
        method: str, node: Node, path: str, shape: type[Any], **options: object
    ) -> object:
        assert node == LIVE, "a lost node is not asked"
        if isinstance(answers[method], NoAnswer):
            raise answers[method]
        return msgspec.convert(answers[method], shape)

    return Users(registry(found), cast("Ports", SimpleNamespace(ask=ask)))


async def test_a_lost_node_is_named_and_what_it_may_hold_is_told() -> None:
    asked = users((LIVE, LOST), {"GET": LISTING, "DELETE": {"closed": 1}})
    found = await asked.connections_of("alice")
    assert (found.nodes, found.lost, found.errors) == (["gw-live", "gw-lost"], ["gw-lost"], [])
    ended = await asked.disconnect("alice", {})
    assert ended.closed == 1
    assert "gw-lost is lost" in ended.errors[0]


async def test_unknown_is_not_offline() -> None:
    found = await users(None, {"GET": LISTING | {"total": 0, "connections": []}}).connections_of(
        "alice"
    )
    assert (found.unknown, found.nodes, found.listings) == (True, [], [])


async def test_what_a_node_refuses_is_an_error_beside_the_rest() -> None:
    refused = NoAnswer(LIVE, "answers 403, no", status=403)
    asked = users((LIVE,), {"GET": refused, "DELETE": refused})
    assert (await asked.connections_of("alice")).errors == [str(refused)]
    assert (await asked.disconnect("alice", {})).errors == [str(refused)]


@pytest.mark.parametrize(
    "body",
    [
        {},
        LISTING | {"total": None},
        LISTING | {"connections": [{}]},
        LISTING | {"connections": [CONNECTION | {"since_ms": 10**18}]},
    ],
)
async def test_a_listing_without_its_fields_is_an_error_beside_the_rest(
    body: dict[str, Any],
) -> None:
    answer = httpx.MockTransport(lambda _: httpx.Response(200, json=body))
    async with httpx.AsyncClient(transport=answer) as http:
        ports = Ports(GatewayCalls(secret="s" * 32), http)
        found = await Users(registry((LIVE,)), ports).connections_of("alice")
    assert found.listings == []
    assert "gw-live at 127.0.0.1:8081: another answer than expected" in found.errors[0]
