"""A user's connections on all nodes, as the registry and the nodes know them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any, Final
from urllib.parse import quote

import msgspec

from pushgate.ports import NoAnswer, Ports
from registry.directory import Node, Registry

#: The answer of a node that has no connection to end.
_NOT_HERE: Final = 404
#: The beginning of the year 9999: every later time is beyond what can be shown in some time zone.
_LATEST_MS: Final = 253_370_764_800_000


class Connection(msgspec.Struct):
    """A connection as its node lists it (docs/protocol.md, `GET /connections/{user}`)."""

    id: str
    transport: str
    device: str | None
    state: str
    since_ms: Annotated[int, msgspec.Meta(ge=0, le=_LATEST_MS)]
    age_ms: int


class Listing(msgspec.Struct):
    """A node's answer about a user; `total` counts connections that are not listed, too."""

    node: str
    epoch: str
    total: int
    connections: list[Connection]


class Connections(msgspec.Struct):
    """What is known of a user: entries in the registry, and connections as the nodes list them.

    `nodes` are the names of the nodes that a look-up finds; `lost` those of them that show no sign
    of life, and may have connections still. Where the look-up is `unknown`, the registry lost
    entries a moment ago. The `listings` are those of nodes with connections. `errors` say what
    could not be asked.
    """

    nodes: list[str]
    listings: list[Listing]
    errors: list[str]
    lost: list[str] = []
    unknown: bool = False


class Disconnected(msgspec.Struct):
    """How many connections were ended; `errors` say where connections may be left."""

    closed: int
    errors: list[str]


class _Closed(msgspec.Struct):
    closed: int


class Users:
    """Asks all nodes that the registry has for a user."""

    def __init__(self, registry: Registry, ports: Ports) -> None:
        self._registry = registry
        self._ports = ports

    async def connections_of(self, user: str) -> Connections:
        """Return a user's connections.

        Raises:
            RegistryUnavailable: the registry does not answer.
        """
        live = await self._live()
        [found] = await self._registry.lookup([user])
        path = _path(user)
        answers = await asyncio.gather(
            *(self._ports.ask("GET", node, path, Listing) for node in live),
            return_exceptions=True,
        )
        return Connections(
            [node.name for node in found or ()],
            [answer for answer in answers if isinstance(answer, Listing) and answer.total],
            _errors(answers),
            [node.name for node in self._lost(found)],
            found is None,
        )

    async def disconnect(self, user: str, selection: Mapping[str, str]) -> Disconnected:
        """End a user's connections on all live nodes.

        `selection` are the parameters of `DELETE /connections/{user}`.

        Raises:
            RegistryUnavailable: the registry does not answer.
        """
        live = await self._live()
        [found] = await self._registry.lookup([user])
        path = _path(user)
        answers = await asyncio.gather(
            *(
                self._ports.ask("DELETE", node, path, _Closed, query=selection, accept=_NOT_HERE)
                for node in live
            ),
            return_exceptions=True,
        )
        closed = sum(answer.closed for answer in answers if isinstance(answer, _Closed))
        lost = [
            f"{node.name} is lost, and was not asked: what the user has there may come back"
            for node in self._lost(found)
        ]
        return Disconnected(closed, _errors(answers) + lost)

    async def _live(self) -> list[Node]:
        return sorted(await self._registry.nodes(), key=lambda node: node.name)

    def _lost(self, found: tuple[Node, ...] | None) -> list[Node]:
        return [node for node in found or () if self._registry.lost(node)]


def _path(user: str) -> str:
    return f"/connections/{quote(user, safe='')}"


def _errors(answers: list[Any]) -> list[str]:
    """Return what went wrong, and raise what is no answer of a node."""
    errors = []
    for answer in answers:
        if isinstance(answer, NoAnswer):
            errors.append(str(answer))
        elif isinstance(answer, BaseException):
            raise answer
    return errors
