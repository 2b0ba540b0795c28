"""Registry and nodes compared: what look-ups return against the connections there are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import httpx
import msgspec
from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

from pushgate.errors import PushgateError
from registry.directory import Node

#: A user of a node.
Place = tuple[str, Node]
_TIMEOUT_SECONDS: Final = 30.0


class AuditError(PushgateError):
    """The comparison could not be made; says why."""


class Whole(Protocol):
    """A registry that can be gone through as a whole."""

    async def nodes(self) -> Sequence[Node]:
        """Return the live nodes."""

    def entries(self) -> AsyncIterator[tuple[str, tuple[Node, ...]]]:
        """Go through all users with the live nodes that a look-up would return."""


class _Users(msgspec.Struct):
    node: str
    epoch: str
    users: dict[str, int]


@dataclass(frozen=True, slots=True)
class Audit:
    """What was found: places that are registered without a connection, and the other way round."""

    nodes: int
    users: int
    phantoms: frozenset[Place]
    missing: frozenset[Place]

    @property
    def clean(self) -> bool:
        """Whether both agree."""
        return not (self.phantoms or self.missing)


async def audit(registry: Whole, *, secret: str, pause_seconds: float) -> Audit:
    """Compare twice, `pause_seconds` apart: what comes and goes meanwhile is no finding.

    Raises:
        AuditError: a live node does not answer.
        RegistryUnavailable: the registry does not.
    """
    async with _client(secret) as http:
        first = await _compare(registry, http)
        if first.clean:
            return first
        await asyncio.sleep(pause_seconds)
        second = await _compare(registry, http)
    return Audit(
        second.nodes,
        second.users,
        first.phantoms & second.phantoms,
        first.missing & second.missing,
    )


def write_metrics(found: Audit, path: Path) -> None:
    """Write the counts as a text file for the node exporter's collector."""
    registry = CollectorRegistry()
    for name, what, count in (
        ("phantom", "Users registered at a live node that does not have them.", found.phantoms),
        ("missing", "Users of a live node who are not registered there.", found.missing),
    ):
        Gauge(f"pushgate_registry_{name}_users", what, registry=registry).set(len(count))
    write_to_textfile(str(path), registry)


async def _compare(registry: Whole, http: httpx.AsyncClient) -> Audit:
    nodes = await registry.nodes()
    held = await asyncio.gather(*(_held(http, node) for node in nodes))
    live: set[Place] = {place for places in held for place in places}
    registered: set[Place] = set()
    async for user, where in registry.entries():
        registered.update((user, node) for node in where if node in nodes)
    users = {user for user, _ in live | registered}
    return Audit(len(nodes), len(users), frozenset(registered - live), frozenset(live - registered))


async def _held(http: httpx.AsyncClient, node: Node) -> Iterable[Place]:
    try:
        answer = await http.get(f"http://{node.address}/connections")
        answer.raise_for_status()
        found = msgspec.json.decode(answer.content, type=_Users)
    except (httpx.HTTPError, httpx.InvalidURL, msgspec.DecodeError) as error:
        raise AuditError(f"node {node.name} at {node.address}: {error}") from error
    if (found.node, found.epoch) != (node.name, node.epoch):
        raise AuditError(f"at {node.address} is node {found.node}, not {node.name}")
    return [(user, node) for user in found.users]


@asynccontextmanager
async def _client(secret: str) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {secret}"}
    timeout = httpx.Timeout(_TIMEOUT_SECONDS)
    # The address is the node's own word; no proxy and no redirect may change it.
    async with httpx.AsyncClient(headers=headers, timeout=timeout, trust_env=False) as http:
        yield http
