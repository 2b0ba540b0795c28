"""Batches of pushes to gateways, each on its held connection, and a result for every message."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import msgspec
import structlog

from processor import metrics
from processor.sending.link import Link, LinkEnded
from processor.sending.reach import Reach
from processor.sending.upgrade import NoAnswer, UpgradeRefused, upgraded
from registry.calls import OutsideNetworks
from registry.directory import Node
from registry.message import MAX_BATCH_BYTES, Push

#: Bytes of a push in MessagePack beside its strings of variable length: the head of the map, keys,
#: lengths, the timestamp, the id's scope, which has 34 bytes at most, and the traceparent, with its
#: key 70.
_ELEMENT_BYTES: Final = 190


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
#: The node's address takes no links: an older gateway, or no gateway at all.
NO_LINK: Final = Failure("no-link")
#: At the node's address is another node, or another start of the node: no user is there.
MISDIRECTED: Final = Failure("misdirected")
#: The node's address is in none of PUSHGATE_GATEWAY_NETWORKS: nothing was sent.
OUTSIDE_NETWORKS: Final = Failure("outside-networks")


class _Answer(msgspec.Struct):
    """The body of an answer: results, or the status with which the batch was refused."""

    results: Sequence[int | dict[str, str | int]] = ()
    refused: int = 0


log = structlog.get_logger("processor.gateways")

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Answer).decode


class _Peer:
    """What the forwarder keeps of one node: its link, and the forwards under way."""

    __slots__ = ("connecting", "link", "under_way")

    def __init__(self) -> None:
        self.link: Link | None = None
        self.connecting = asyncio.Lock()
        self.under_way = 0


class Forwarder:
    """Sends batches to gateways. Never raises an error of a gateway: every message has a result."""

    def __init__(self, reach: Reach, *, timeout_seconds: float) -> None:
        """`timeout_seconds` bounds one forward, connecting included; `reach` has the nodes' URLs.

        Where another batch is under way to the node, it bounds the time from its answer.
        """
        self._reach = reach
        self._timeout = timeout_seconds
        # As many as there are live nodes: `retain` closes the links of the others.
        self._peers: dict[Node, _Peer] = {}

    async def forward(self, node: Node, pushes: Sequence[Push]) -> Answer:
        """Send pushes to `node` as one batch, in order; return a result for every push.

        Or return a Failure where the node has answered for no push: the batch may have been
        delivered, in whole or in part, and may be sent again, since nodes recognise repeats. At
        most MAX_BATCH_MESSAGES and MAX_BATCH_BYTES (`push_size`); none is a question whether the
        node answers. For one node, WINDOW batches at most at once.
        """
        began = time.perf_counter()
        peer = self._peers.get(node)
        if peer is None:
            peer = self._peers[node] = _Peer()
        peer.under_way += 1
        metrics.FORWARDING.inc()
        try:
            body = _encode(pushes)
            if len(body) > MAX_BATCH_BYTES:
                return Failure("too-large")  # one message; the node would end the link for it
            return _results(peer, await self._answer(node, peer, body), len(pushes))
        except OutsideNetworks:
            return OUTSIDE_NETWORKS
        except UpgradeRefused as refusal:
            return self._refused(node, refusal.status)
        except TimeoutError as error:
            self._reach.failed(node, error)
            return TIMEOUT
        except (LinkEnded, NoAnswer, OSError, ValueError) as error:
            # ValueError: the host is no valid name (IDNA), and only the attempt finds out.
            self._reach.failed(node, error)
            return UNREACHABLE
        finally:
            metrics.FORWARD_SECONDS.observe(time.perf_counter() - began)
            metrics.FORWARDING.dec()
            peer.under_way -= 1

    async def retain(self, present: Callable[[Node], bool]) -> None:
        """Close the links to nodes that are not present, but for those with a forward under way.

        `present` says whether a node is live or lost (registry/directory.py).
        """
        for node, peer in list(self._peers.items()):
            if not peer.under_way and not present(node):
                del self._peers[node]
                _close(peer)
        self._reach.retain(present)

    async def close(self) -> None:
        """Close all links."""
        peers, self._peers = list(self._peers.values()), {}
        for peer in peers:
            _close(peer)

    async def _answer(self, node: Node, peer: _Peer, body: bytes) -> bytes:
        """Ask on the peer's link; on another, once more, where that link ends without an answer."""
        deadline = asyncio.get_running_loop().time() + self._timeout
        link = peer.link
        try:
            if link is not None and not link.ended:
                return await link.ask(body)
            return await self._ask_anew(node, peer, body, deadline)
        except LinkEnded as ended:
            # Nothing was sent, or the node recognises repeats by their ids: to ask again is safe.
            log.warning("a link to a gateway has ended", node=node.name, reason=str(ended))
            return await self._ask_anew(node, peer, body, deadline)

    async def _ask_anew(self, node: Node, peer: _Peer, body: bytes, deadline: float) -> bytes:
        """Ask on a new link, or on one that another forward has opened meanwhile."""
        async with asyncio.timeout_at(deadline):
            async with peer.connecting:
                if peer.link is None or peer.link.ended:
                    peer.link = await self._link(node)
            return await peer.link.ask(body)

    def _refused(self, node: Node, status: int) -> Failure:
        """Return what the status means with which a node refuses a link: nothing was pushed."""
        if status == HTTPStatus.MISDIRECTED_REQUEST:
            return MISDIRECTED
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            self._reach.refused(node, status)
            return REFUSED
        # The node is leaving, or a proxy finds no node behind it: as if nobody were there.
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS:
            return UNREACHABLE
        self._reach.takes_no_links(node, status)
        return NO_LINK

    async def _link(self, node: Node) -> Link:
        calls = self._reach.calls
        url = await self._reach.url(node)
        transport, rest = await upgraded(url, calls.headers(node), tls=calls.tls)
        return Link(transport, rest, timeout_seconds=self._timeout)


def _close(peer: _Peer) -> None:
    if peer.link is not None:
        peer.link.end("retired", "this processor needs it no more")


def push_size(push: Push) -> int:
    """Return how many bytes a push has in a batch, at most.

    A string of n characters takes 4 n bytes of UTF-8 at most; nearly all take n.
    """
    size = _ELEMENT_BYTES + len(push.data) + 4 * (len(push.user) + len(push.id))
    # ASCII: the name of a topic has no other characters
    size += len(push.position or "")
    if push.lane is not None:
        size += len(push.lane)
    if push.type is None and push.device is None:
        return size
    return size + 4 * (len(push.type or "") + len(push.device or ""))


def _results(peer: _Peer, body: bytes, expected: int) -> Answer:
    try:
        answer = _decode(body)
    except msgspec.DecodeError:
        answer = _Answer()
    if answer.refused:
        return Failure(f"status-{answer.refused}")
    if len(answer.results) != expected:
        assert peer.link is not None  # noqa: S101 - the answer came on a link
        peer.link.end("bad-answer", "an answer is not that of its batch")
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
