"""Batches of pushes to one gateway over HTTP, and a result for every message.

The only file that imports httpx. httpx searches its whole pool on every request (1.3 ms of CPU with
one connection, 7.3 ms with 64), so every gateway has a client of its own with few connections.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import httpx
import msgspec

from processor import metrics
from registry.directory import Node
from registry.message import (
    BATCH_MEDIA_TYPE,
    EPOCH_HEADER,
    MAX_BATCH_BYTES,
    MAX_BATCH_MESSAGES,
    NODE_HEADER,
    Push,
)

#: The most connections to one gateway.
MAX_CONNECTIONS: Final = 4
#: Forwards are plaintext. Without a context of ours httpx loads a CA bundle for every client, which
#: takes 21–60 ms of the event loop and 0.7 MB (measured).
_NO_TLS: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
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


#: Connections that took the message (0: the user is not on the node), or a failure.
Result = int | Failure

#: The user is on the node, but not the device that the message is for.
NO_DEVICE: Final = Failure("no-device")
_TIMEOUT: Final = Failure("timeout")


class _Answer(msgspec.Struct):
    results: list[int | dict[str, str]]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Answer).decode


class Forwarder:
    """Posts batches to gateways. Never raises an error of a gateway: every message has a result."""

    def __init__(self, *, secret: str, timeout_seconds: float) -> None:
        """`timeout_seconds` bounds one POST, connecting included; `secret` is the bearer secret."""
        self._headers = {
            "authorization": f"Bearer {secret}",
            "content-type": BATCH_MEDIA_TYPE,
        }
        self._timeout = timeout_seconds
        # As many as there are live nodes: `retain` closes the clients of the others.
        self._clients: dict[Node, httpx.AsyncClient] = {}
        self._posting: Counter[Node] = Counter()  # forwards under way

    async def forward(self, node: Node, pushes: Sequence[Push]) -> list[Result]:
        """Post pushes to `node`, in order; return a result for every push.

        More pushes than a gateway takes at once (MAX_BATCH_MESSAGES, MAX_BATCH_BYTES) go in several
        batches, one after the other.
        """
        results: list[Result] = []
        for batch in _batches(pushes):
            answers = await self._post(node, batch)
            results += answers
            if answers[0] == _TIMEOUT:
                break  # every later batch would wait as long for nothing
        return results + [_TIMEOUT] * (len(pushes) - len(results))

    async def retain(self, live_nodes: Collection[Node]) -> None:
        """Close the clients of nodes that are not live, but for those with a forward under way."""
        for node in self._clients.keys() - set(live_nodes):
            if not self._posting[node]:
                await self._clients.pop(node).aclose()

    async def close(self) -> None:
        """Close all connections."""
        clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            await client.aclose()

    async def _post(self, node: Node, batch: Sequence[Push]) -> list[Result]:
        began = time.perf_counter()
        self._posting[node] += 1
        try:
            async with asyncio.timeout(self._timeout):
                response = await _ask(self._client(node), _encode(batch))
            return _results(response, len(batch))
        except (TimeoutError, httpx.TimeoutException):
            return [_TIMEOUT] * len(batch)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError):
            # ValueError: the host is no valid name (IDNA), and only the attempt finds out.
            return [Failure("unreachable")] * len(batch)
        finally:
            metrics.FORWARD_SECONDS.observe(time.perf_counter() - began)
            self._posting[node] -= 1
            if not self._posting[node]:
                del self._posting[node]

    def _client(self, node: Node) -> httpx.AsyncClient:
        client = self._clients.get(node)
        if client is None:
            client = self._clients[node] = httpx.AsyncClient(
                base_url=f"http://{node.address}",
                headers={**self._headers, NODE_HEADER: node.name, EPOCH_HEADER: node.epoch},
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
                verify=_NO_TLS,
            )
        return client


async def _ask(client: httpx.AsyncClient, content: bytes) -> httpx.Response:
    try:
        return await client.post("/push", content=content)
    except (httpx.NetworkError, httpx.RemoteProtocolError):
        # Nothing was sent, or the node recognises repeats by their ids: a second post is safe.
        return await client.post("/push", content=content)


def _batches(pushes: Sequence[Push]) -> Iterator[Sequence[Push]]:
    start, size = 0, 0
    for index, push in enumerate(pushes):
        # A string of n characters takes 4 n bytes of UTF-8 at most; nearly all take n.
        element = _ELEMENT_BYTES + len(push.data) + 4 * (len(push.user) + len(push.id))
        element += 4 * (len(push.type or "") + len(push.device or ""))
        if index > start and (
            index - start == MAX_BATCH_MESSAGES or size + element > MAX_BATCH_BYTES - 16
        ):
            yield pushes[start:index]
            start, size = index, 0
        size += element
    if start < len(pushes):
        yield pushes[start:]


def _results(response: httpx.Response, expected: int) -> list[Result]:
    if response.status_code == httpx.codes.MISDIRECTED_REQUEST:
        return [0] * expected  # another node, or another start of the node: no user is here
    if response.status_code != httpx.codes.OK:
        return [Failure(f"status-{response.status_code}")] * expected
    try:
        answer = _decode(response.content)
    except msgspec.DecodeError:
        return [Failure("bad-answer")] * expected
    if len(answer.results) != expected:
        return [Failure("bad-answer")] * expected
    return [_result(result) for result in answer.results]


def _result(result: int | dict[str, str]) -> Result:
    if isinstance(result, int):
        return result if result >= 0 else Failure("bad-answer")
    error = result.get("error")
    return Failure(error if error in _ERRORS else "bad-answer")


_ERRORS: Final = frozenset({"no-device", "overloaded", "too-large", "invalid"})
