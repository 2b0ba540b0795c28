"""Batches of pushes to one gateway over HTTP, and a result for every message.

The only file that imports httpx. httpx searches its whole pool on every request (1.3 ms of CPU with
one connection, 7.3 ms with 64), so every gateway has a client of its own with few connections.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import httpx
import msgspec

from processor import metrics
from processor.sending.reach import Reach
from registry.calls import OutsideNetworks
from registry.directory import Node
from registry.message import BATCH_MEDIA_TYPE, Push

#: The most connections to one gateway.
MAX_CONNECTIONS: Final = 4
_CONNECT_SECONDS: Final = 1.0
#: Less than the gateway's keep-alive, so that a request never meets a closing connection.
_KEEP_ALIVE_SECONDS: Final = 30.0
#: Bytes of a push in MessagePack beside its strings of variable length: the head of the map, keys,
#: lengths, and the id's scope, which has 34 bytes at most.
_ELEMENT_BYTES: Final = 96


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a message was not delivered, or may not have been; a short name, fit for a label."""

    reason: str


@dataclass(frozen=True, slots=True)
class Partly:
    """`taken` of the user's connections took the message, and the others had no room.

    When the message comes again, only the others get it.
    """

    taken: int


#: Connections that took the message (0: the user is not on the node), or why some or all did not.
Result = int | Partly | Failure
#: A result for every push of a batch, or the reason why the node has answered for none.
Answer = list[Result] | Failure

#: The user is on the node, but not the device that the message is for.
NO_DEVICE: Final = Failure("no-device")
#: The user is on the node, and no connection of the user has room for the message.
OVERLOADED: Final = Failure("overloaded")
#: The node did not answer in time.
TIMEOUT: Final = Failure("timeout")
#: No connection to the node, or the connection broke before the answer.
UNREACHABLE: Final = Failure("unreachable")
#: The node refuses what this processor presents: the internal secrets differ.
REFUSED: Final = Failure("refused")
#: At the node's address is another node, or another start of the node: no user is there.
MISDIRECTED: Final = Failure("misdirected")
#: The node's address is in none of PUSHGATE_GATEWAY_NETWORKS: nothing was sent.
OUTSIDE_NETWORKS: Final = Failure("outside-networks")


class _Answer(msgspec.Struct):
    results: list[int | dict[str, str | int]]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Answer).decode


class Forwarder:
    """Posts batches to gateways. Never raises an error of a gateway: every message has a result."""

    def __init__(self, reach: Reach, *, timeout_seconds: float) -> None:
        """`timeout_seconds` bounds one POST, connecting included; `reach` has the nodes' URLs."""
        self._reach = reach
        self._timeout = timeout_seconds
        # As many as there are live nodes: `retain` closes the clients of the others.
        self._clients: dict[Node, httpx.AsyncClient] = {}
        self._posting: Counter[Node] = Counter()  # forwards under way

    async def forward(self, node: Node, pushes: Sequence[Push]) -> Answer:
        """Post pushes to `node` as one batch, in order; return a result for every push.

        Or return a Failure where the node has answered for no push: the batch may have been
        delivered, in whole or in part, and may be sent again, since nodes recognise repeats. At
        most MAX_BATCH_MESSAGES and MAX_BATCH_BYTES (`push_size`); none is a question whether the
        node answers.
        """
        began = time.perf_counter()
        self._posting[node] += 1
        try:
            async with asyncio.timeout(self._timeout):
                url = await self._reach.url(node)
                response = await _ask(self._client(node), f"{url}/push", _encode(pushes))
            self._reach.answered(node, response.status_code)
            return _results(response, len(pushes))
        except OutsideNetworks:
            return OUTSIDE_NETWORKS
        except (TimeoutError, httpx.TimeoutException) as error:
            self._reach.failed(node, error)
            return TIMEOUT
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            # ValueError: the host is no valid name (IDNA), and only the attempt finds out.
            self._reach.failed(node, error)
            return UNREACHABLE
        finally:
            metrics.FORWARD_SECONDS.observe(time.perf_counter() - began)
            self._posting[node] -= 1
            if not self._posting[node]:
                del self._posting[node]

    async def retain(self, present: Callable[[Node], bool]) -> None:
        """Close the clients of nodes that are not present, but for those with a forward under way.

        `present` says whether a node is live or lost (registry/directory.py).
        """
        for node in list(self._clients):
            if not self._posting[node] and not present(node):
                await self._clients.pop(node).aclose()
        self._reach.retain(present)

    async def close(self) -> None:
        """Close all connections."""
        clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            await client.aclose()

    def _client(self, node: Node) -> httpx.AsyncClient:
        client = self._clients.get(node)
        if client is None:
            calls = self._reach.calls
            client = self._clients[node] = httpx.AsyncClient(
                headers={**calls.headers(node), "content-type": BATCH_MEDIA_TYPE},
                # Ends before the time-out in _post, which bounds the whole request: two time-outs
                # that end at once get in the way of each other, and httpx leaves nothing open
                # after its own.
                timeout=httpx.Timeout(self._timeout * 0.9, connect=_CONNECT_SECONDS),
                limits=httpx.Limits(
                    max_connections=MAX_CONNECTIONS, keepalive_expiry=_KEEP_ALIVE_SECONDS
                ),
                # The node registered the address itself: no proxy and no redirect may change it.
                trust_env=False,
                follow_redirects=False,
                verify=calls.tls,
            )
        return client


async def _ask(client: httpx.AsyncClient, url: str, content: bytes) -> httpx.Response:
    try:
        return await client.post(url, content=content)
    except (httpx.NetworkError, httpx.RemoteProtocolError):
        # Nothing was sent, or the node recognises repeats by their ids: a second post is safe.
        return await client.post(url, content=content)


def push_size(push: Push) -> int:
    """Return how many bytes a push has in a batch, at most.

    A string of n characters takes 4 n bytes of UTF-8 at most; nearly all take n.
    """
    size = _ELEMENT_BYTES + len(push.data) + 4 * (len(push.user) + len(push.id))
    if push.type is None and push.device is None:
        return size
    return size + 4 * (len(push.type or "") + len(push.device or ""))


def _results(response: httpx.Response, expected: int) -> Answer:
    status = response.status_code
    if status == httpx.codes.MISDIRECTED_REQUEST:
        return MISDIRECTED
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return REFUSED
    if status != httpx.codes.OK:
        return Failure(f"status-{status}")
    try:
        answer = _decode(response.content)
    except msgspec.DecodeError:
        return _BAD_ANSWER
    if len(answer.results) != expected:
        return _BAD_ANSWER
    return [_result(result) for result in answer.results]


def _result(result: int | dict[str, str | int]) -> Result:
    if isinstance(result, int):
        return result if result >= 0 else _BAD_ANSWER
    taken = result.get("taken")
    if isinstance(taken, int) and taken > 0:
        return Partly(taken)
    return _ERRORS.get(result.get("error"), _BAD_ANSWER)


_BAD_ANSWER: Final = Failure("bad-answer")
_ERRORS: Final[dict[object, Failure]] = {
    failure.reason: failure
    for failure in (NO_DEVICE, OVERLOADED, Failure("too-large"), Failure("invalid"))
}
