"""Compares registry and nodes: the users that look-ups find against the users with connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import msgspec
from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

from pushgate.errors import PushgateError
from pushgate.ports import NoAnswer, Ports, calling
from pushgate.printable import printable
from registry.calls import GatewayCalls
from registry.directory import Node

#: A user, and a node where the user is registered or connected.
Place = tuple[str, Node]
_TIMEOUT_SECONDS: Final = 30.0
#: How much of another node's name is shown.
_MOST_CHARACTERS: Final = 64


class AuditError(PushgateError):
    """The comparison could not be made; the text says why."""


class Whole(Protocol):
    """A registry whose entries can be iterated over."""

    async def nodes(self) -> Sequence[Node]:
        """Return the live nodes."""

    def entries(self) -> AsyncIterator[tuple[str, tuple[Node, ...]]]:
        """Iterate over all users with the live nodes that a look-up would return."""


class _Users(msgspec.Struct):
    node: str
    epoch: str
    users: dict[str, int]


@dataclass(frozen=True, slots=True)
class Audit:
    """The findings of a comparison.

    `phantoms` are places that are registered without a connection; `missing` are places with a
    connection that are not registered. `nodes` and `users` are the numbers compared.
    """

    nodes: int
    users: int
    phantoms: frozenset[Place]
    missing: frozenset[Place]

    @property
    def clean(self) -> bool:
        """Whether registry and nodes agree."""
        return not (self.phantoms or self.missing)


async def audit(registry: Whole, calls: GatewayCalls, *, pause_seconds: float) -> Audit:
    """Compare registry and nodes; where they differ, compare again `pause_seconds` later.

    Only differences of both comparisons are findings: users who connect or disconnect during a
    comparison are none.

    Raises:
        AuditError: a live node does not answer, or may not be asked.
        RegistryUnavailable: the registry does not answer.
    """
    async with calling(calls, timeout_seconds=_TIMEOUT_SECONDS) as ports:
        first = await _compare(registry, ports)
        if first.clean:
            return first
        await asyncio.sleep(pause_seconds)
        second = await _compare(registry, ports)
    return Audit(
        second.nodes,
        second.users,
        first.phantoms & second.phantoms,
        first.missing & second.missing,
    )


def write_metrics(found: Audit, path: Path) -> None:
    """Write the numbers of findings to `path`, for the node exporter's textfile collector."""
    registry = CollectorRegistry()
    for name, help_text, places in (
        ("phantom", "Users registered at a live node that does not have them.", found.phantoms),
        ("missing", "Users of a live node who are not registered there.", found.missing),
    ):
        Gauge(f"pushgate_registry_{name}_users", help_text, registry=registry).set(len(places))
    write_to_textfile(str(path), registry)


async def _compare(registry: Whole, ports: Ports) -> Audit:
    nodes = await registry.nodes()
    # All questions end before the first error is raised: a call that is under way at the end of an
    # event loop of uvloop's is an error of its own.
    answers = await asyncio.gather(
        *(_places_of(ports, node) for node in nodes), return_exceptions=True
    )
    connected: set[Place] = set()
    for places in answers:
        if isinstance(places, BaseException):
            raise places
        connected.update(places)
    registered: set[Place] = set()
    async for user, live_nodes in registry.entries():
        registered.update((user, node) for node in live_nodes if node in nodes)
    users = {user for user, _ in connected | registered}
    phantoms, missing = frozenset(registered - connected), frozenset(connected - registered)
    return Audit(len(nodes), len(users), phantoms, missing)


async def _places_of(ports: Ports, node: Node) -> Iterable[Place]:
    try:
        listing = await ports.ask("GET", node, "/connections", _Users)
    except NoAnswer as error:
        raise AuditError(str(error)) from error
    if (listing.node, listing.epoch) != (node.name, node.epoch):
        other = printable(listing.node, most=_MOST_CHARACTERS)
        raise AuditError(f"at {node.address} is node {other}, not {node.name}")
    return [(user, node) for user in listing.users]
