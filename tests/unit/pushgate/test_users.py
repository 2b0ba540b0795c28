"""A user's connections, where a node of the user's is lost or the registry was emptied."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from pushgate.ports import NoAnswer, Ports
from pushgate.users import Users
from registry.directory import Node, Registry

pytestmark = pytest.mark.anyio

LIVE = Node("gw-live", "e1", "127.0.0.1:8081")
LOST = Node("gw-lost", "e1", "127.0.0.1:8082")


def users(found: tuple[Node, ...] | None, answers: dict[str, Any]) -> Users:
    """Give users of a registry that has found these nodes, and of nodes that answer so."""

    async def nodes() -> list[Node]:
        return [LIVE]

    async def lookup(names: list[str]) -> list[tuple[Node, ...] | None]:
        return [found for _ in names]

    async def ask(
        method: str, node: Node, path: str, shape: type[Any], **options: object
    ) -> object:
        assert node == LIVE, "a lost node is not asked"
        if isinstance(answers[method], NoAnswer):
            raise answers[method]
        return shape(**answers[method])

    registry = SimpleNamespace(nodes=nodes, lookup=lookup, lost=lambda node: node == LOST)
    return Users(cast("Registry", registry), cast("Ports", SimpleNamespace(ask=ask)))


async def test_a_lost_node_is_named_and_what_it_may_hold_is_told() -> None:
    asked = users((LIVE, LOST), {"GET": {"total": 1}, "DELETE": {"closed": 1}})
    found = await asked.connections_of("alice")
    assert (found.nodes, found.lost, found.errors) == (["gw-live", "gw-lost"], ["gw-lost"], [])
    ended = await asked.disconnect("alice", {})
    assert ended.closed == 1
    assert "gw-lost is lost" in ended.errors[0]


async def test_unknown_is_not_offline() -> None:
    found = await users(None, {"GET": {"total": 0}}).connections_of("alice")
    assert (found.unknown, found.nodes, found.listings) == (True, [], [])


async def test_what_a_node_refuses_is_an_error_beside_the_rest() -> None:
    refused = NoAnswer(LIVE, "answers 403, no", status=403)
    asked = users((LIVE,), {"GET": refused, "DELETE": refused})
    assert (await asked.connections_of("alice")).errors == [str(refused)]
    assert (await asked.disconnect("alice", {})).errors == [str(refused)]
