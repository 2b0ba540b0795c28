"""A user's connections on all nodes, by the nodes' internal ports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import quote

import httpx
import msgspec

from registry.calls import GatewayCalls, OutsideNetworks
from registry.directory import Node, Registry

_TIMEOUT_SECONDS: Final = 2.0


class Connections(msgspec.Struct):
    """What is known of a user: entries in the registry, and connections as the nodes list them.

    `nodes` are the names of the nodes that a look-up finds. Each of the `listings` is a node's
    answer to `GET /connections/{user}`. `errors` say what could not be asked.
    """

    nodes: list[str]
    listings: list[dict[str, Any]]
    errors: list[str]


class Nodes:
    """Asks the nodes that the registry has."""

    def __init__(self, registry: Registry, calls: GatewayCalls, http: httpx.AsyncClient) -> None:
        self._registry = registry
        self._calls = calls
        self._http = http

    async def refresh(self) -> None:
        """Read the live nodes again: no task refreshes this registry, unlike the processor's.

        Raises:
            RegistryUnavailable: the registry does not answer.
        """
        await self._registry.refresh()

    async def connections_of(self, user: str) -> Connections:
        """Return a user's connections.

        Raises:
            RegistryUnavailable: the registry does not answer.
        """
        [found], live = await asyncio.gather(self._registry.lookup([user]), self._registry.nodes())
        answers = await asyncio.gather(*(self._call("GET", node, user) for node in live))
        return Connections(
            [node.name for node in found or ()],
            [answer for answer in answers if not isinstance(answer, str) and answer["total"]],
            [answer for answer in answers if isinstance(answer, str)],
        )

    async def disconnect(self, user: str, selection: Mapping[str, str]) -> tuple[int, list[str]]:
        """End a user's connections on all nodes; return how many, and what nodes refused.

        `selection` are the parameters of `DELETE /connections/{user}`.

        Raises:
            RegistryUnavailable: the registry does not answer.
        """
        live = await self._registry.nodes()
        answers = await asyncio.gather(
            *(self._call("DELETE", node, user, selection) for node in live)
        )
        closed = sum(answer["closed"] for answer in answers if not isinstance(answer, str))
        return closed, [answer for answer in answers if isinstance(answer, str)]

    async def _call(
        self, method: str, node: Node, user: str, selection: Mapping[str, str] | None = None
    ) -> dict[str, Any] | str:
        """Call a node for a user; return the answer, or what is wrong."""
        try:
            url = f"{await self._calls.url(node)}/connections/{quote(user, safe='')}"
            headers = self._calls.headers(node)
            answer = await self._http.request(method, url, params=selection, headers=headers)
            if answer.status_code != 404:  # where a node has nothing to end
                answer.raise_for_status()
            decoded: dict[str, Any] = msgspec.json.decode(answer.content)
        except (
            httpx.HTTPError, OutsideNetworks, OSError, ValueError, msgspec.DecodeError,
        ) as error:  # fmt: skip
            return f"node {node.name}: {error or type(error).__name__}"
        return decoded


@asynccontextmanager
async def calling(calls: GatewayCalls) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client for calls to nodes, and to nowhere else: without proxies or redirects."""
    timeout = httpx.Timeout(_TIMEOUT_SECONDS)
    async with httpx.AsyncClient(timeout=timeout, trust_env=False, verify=calls.tls) as http:
        yield http
