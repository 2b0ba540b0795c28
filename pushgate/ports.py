"""What tools reach: the registry, and the internal ports of the processes that it names."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import httpx
import msgspec

from pushgate.errors import PushgateError
from pushgate.printable import printable
from registry.calls import NO_TLS, REFUSED, GatewayCalls, OutsideNetworks, tls_fault
from registry.directory import Node
from registry.redis_store import RedisRegistry
from registry.settings import RegistrySettings

_TIMEOUT_SECONDS: Final = 2.0
#: How much of a refusal's text is shown.
_SHOWN_CHARACTERS: Final = 200

_Answer = TypeVar("_Answer")


class NoAnswer(PushgateError):
    """A node gave no answer, or refused the call; the text says why, and the cure if it is known.

    The text is fit for a terminal: another server may answer at a node's address.

    `status` is that of the refusal, None where there was no HTTP answer.
    """

    def __init__(self, node: Node, reason: str, *, status: int | None = None) -> None:
        super().__init__(printable(f"{node.name} at {node.address}: {reason}"))
        self.node = node
        self.reason = printable(reason)
        self.status = status


class Ports:
    """The internal ports of processes that the registry names."""

    def __init__(self, calls: GatewayCalls, http: httpx.AsyncClient) -> None:
        self._calls = calls
        self._http = http

    async def ask(
        self,
        method: str,
        node: Node,
        path: str,
        shape: type[_Answer],
        *,
        query: Mapping[str, str] | None = None,
        accept: int = 200,
    ) -> _Answer:
        """Call a node, and return the JSON of the answer as a `shape`.

        `accept` is a status of a refusal whose answer has the shape too.

        Raises:
            NoAnswer: no answer, a refusal, or an answer of another shape.
        """
        answer = await self._call(method, node, path, query)
        if not answer.is_success and answer.status_code != accept:
            raise NoAnswer(node, _refusal(answer), status=answer.status_code)
        try:
            return msgspec.json.decode(answer.content, type=shape)
        except msgspec.DecodeError as error:
            raise NoAnswer(node, f"another answer than expected: {error}") from error

    async def start_drain(self, node: Node) -> None:
        """Begin a node's drain; hasten a drain that has begun.

        Raises:
            NoAnswer: no answer, or a refusal.
        """
        answer = await self._call("POST", node, "/drain")
        if not answer.is_success:
            raise NoAnswer(node, _refusal(answer), status=answer.status_code)

    async def _call(
        self, method: str, node: Node, path: str, query: Mapping[str, str] | None = None
    ) -> httpx.Response:
        try:
            url, headers = await self._calls.url(node), self._calls.headers(node)
            return await self._http.request(method, url + path, params=query, headers=headers)
        except OutsideNetworks as error:
            raise NoAnswer(node, str(error)) from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            cure = f": {NO_TLS}" if tls_fault(error) is not None else ""
            raise NoAnswer(node, f"{str(error) or type(error).__name__}{cure}") from error


@asynccontextmanager
async def http_client(
    calls: GatewayCalls, *, timeout_seconds: float
) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client for calls to the addresses that processes registered, and nowhere else.

    There are no proxies of the environment, and no redirects. Each step of a call takes at most
    `timeout_seconds`; the wait for a connection of the pool takes as long as other calls do.
    """
    timeout = httpx.Timeout(timeout_seconds, pool=None)
    async with httpx.AsyncClient(timeout=timeout, trust_env=False, verify=calls.tls) as http:
        yield http


@asynccontextmanager
async def calling(
    calls: GatewayCalls, *, timeout_seconds: float = _TIMEOUT_SECONDS
) -> AsyncIterator[Ports]:
    """Yield ports whose calls go by `http_client`."""
    async with http_client(calls, timeout_seconds=timeout_seconds) as http:
        yield Ports(calls, http)


@asynccontextmanager
async def registry_of(settings: RegistrySettings) -> AsyncIterator[RedisRegistry]:
    """Yield the registry, as processors with these settings see it."""
    registry = RedisRegistry(
        settings.redis_url,
        timeout_seconds=settings.redis_timeout_seconds,
        access=settings.redis_access,
        lost_seconds=settings.lost_node_seconds,
    )
    try:
        yield registry
    finally:
        await registry.close()


def _refusal(answer: httpx.Response) -> str:
    text = f"answers {answer.status_code}, {answer.text.strip()[:_SHOWN_CHARACTERS]}"
    return f"{text}: {REFUSED}" if answer.status_code in (401, 403) else text
