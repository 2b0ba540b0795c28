"""The resume links of a processor: to every live gateway, for stamps and questions.

registry/resume.py has the frames of a link.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable
from functools import partial
from typing import Final

import msgspec
import structlog

from processor import metrics
from processor.reading.message import Message
from processor.replay.receipts import Receipts
from processor.sending.reach import Reach
from processor.sending.upgrade import NoAnswer, UpgradeRefused, upgraded
from processor.tasks import Spawn
from registry.calls import OutsideNetworks
from registry.directory import Node
from registry.frames import BadFrame, FrameReader, frame_head, probe_peer
from registry.resume import (
    MAX_ASK_BYTES,
    RESUME_PROTOCOL,
    Ack,
    Answer,
    Ask,
    Receipt,
    Stamp,
    encode,
    gateways_word_in,
)

#: How long the answer to the upgrade may take.
_UPGRADE_SECONDS: Final = 2.0
#: Unanswered asks of a gateway; a gateway has fewer under way.
_MOST_ASKS: Final = 8
#: Unacknowledged stamps, at a stamp a second, after which a link is ended.
_MOST_UNACKNOWLEDGED: Final = 10
#: Unread bytes after which a link is ended.
_MOST_UNREAD_BYTES: Final = 32 * 1024 * 1024
#: Users with missed messages on a gateway, until the gateway has acknowledged a stamp. Beyond the
#: bound the gateway hears only that there are more.
_MOST_MISSED: Final = 10_000

log = structlog.get_logger("processor.resume")

AnswerAsk = Callable[[Ask], Awaitable[Answer]]


class ResumeLinks:
    """Keeps a link to every live gateway that takes resume links."""

    def __init__(
        self,
        name: str,
        reach: Reach,
        answer: AnswerAsk,
        receipts: Receipts | None,
        *,
        resume_seconds: float,
        spawn: Spawn,
    ) -> None:
        """`name` is the processor's, `answer` answers a gateway's questions.

        `receipts` takes receipts of gateways: None where no outcomes are reported.
        """
        self._name = name
        self._reach = reach
        self._answer = answer
        self._receipts = receipts
        self._resume_seconds = resume_seconds
        self._spawn = spawn
        #: By gateway; None while the link is being opened.
        self._links: dict[Node, ResumeLink | None] = {}
        self._without: set[Node] = set()  # older gateways, without resume links
        #: By gateway and user: the time of the first stamp with the user, None before the stamp.
        self._missed: dict[Node, dict[str, int | None]] = {}

    def settled(self, messages: Iterable[Message]) -> None:
        """Note the gateways that may have missed settled messages."""
        for message in messages:
            for node in message.missed_at:
                users = self._missed.setdefault(node, {})
                if len(users) < _MOST_MISSED:
                    users[message.push.user] = None  # also where an earlier stamp said so

    def observe(
        self,
        live_nodes: Collection[Node],
        stamp_ms: int | None,
        *,
        present: Callable[[Node], bool] = lambda _: False,
    ) -> None:
        """Open links to gateways without a link; send stamps on all links. Called every second.

        `stamp_ms` is the registry's time, None where it is not known: by now every settled message
        has been answered by the gateways, or is noted as missed. `present` says whether a gateway
        without a lease may come back.
        """
        for node in self._links.keys() - set(live_nodes):
            self._end(node)
        self._without.intersection_update(live_nodes)
        self._missed = {
            node: users
            for node, users in self._missed.items()
            if node in live_nodes or present(node)
        }
        for node in live_nodes:
            link = self._links.get(node)
            if node not in self._links and node not in self._without:
                self._links[node] = None
                self._spawn(self._open(node))
            elif link is not None and stamp_ms is not None:
                self._stamp(node, link, stamp_ms)
        if self._receipts is not None:
            self._receipts.advance()

    def _stamp(self, node: Node, link: ResumeLink, stamp_ms: int) -> None:
        if link.unacknowledged >= _MOST_UNACKNOWLEDGED:
            link.abort()  # half open, or the gateway is frozen: a new link is opened
            return
        missed = self._missed.get(node, {})
        for user, since_ms in missed.items():
            missed[user] = stamp_ms if since_ms is None else since_ms
        more = len(missed) >= _MOST_MISSED
        stamp = Stamp(
            self._name,
            stamp_ms,
            self._resume_seconds,
            list(missed),
            more,
            receipts=self._receipts is not None,
        )
        link.unacknowledged += 1
        link.send(encode(stamp))

    def _acknowledged(self, node: Node, stamp_ms: int) -> None:
        """Forget the users in acknowledged stamps."""
        missed = self._missed.get(node, {})
        heard = [user for user, at in missed.items() if at is not None and at <= stamp_ms]
        for user in heard:
            del missed[user]

    async def close(self, stamp_ms: int | None) -> None:
        """Send the last stamps, and end all links."""
        self.observe(list(self._links), stamp_ms)
        for node in list(self._links):
            self._end(node)

    def _end(self, node: Node) -> None:
        link = self._links.pop(node, None)
        if link is not None:
            link.close()

    async def _open(self, node: Node) -> None:
        calls = self._reach.calls
        try:
            url = await self._reach.url(node)
            async with asyncio.timeout(_UPGRADE_SECONDS):
                transport, rest = await upgraded(
                    url, calls.headers(node), tls=calls.tls, protocol=RESUME_PROTOCOL
                )
        except (
            UpgradeRefused,
            NoAnswer,
            OutsideNetworks,
            OSError,
            ValueError,
            RuntimeError,  # uvloop's, for a write to a reset connection
        ) as error:
            if isinstance(error, UpgradeRefused) and error.status in (404, 405):
                self._without.add(node)
                log.info("a gateway is older: its clients can't resume", node=node.name)
            if node in self._links and self._links[node] is None:
                del self._links[node]
            return
        if node not in self._links or self._links[node] is not None:  # the gateway left meanwhile
            transport.abort()
            return

        def ended(link: ResumeLink) -> None:
            if self._links.get(node) is link:
                del self._links[node]

        self._links[node] = link = ResumeLink(
            transport,
            partial(self._answer_to, node),
            acknowledged=partial(self._acknowledged, node),
            take_receipt=partial(self._take_receipt, node),
            ended=ended,
        )
        link.begin(rest)

    async def _answer_to(self, node: Node, ask: Ask) -> Answer:
        answer = await self._answer(ask)
        if self._receipts is not None:
            await self._receipts.keep(node, answer)
        return answer

    def _take_receipt(self, node: Node, receipt: Receipt) -> None:
        if self._receipts is not None:
            self._receipts.take(node, receipt)


class ResumeLink(asyncio.Protocol):
    """A link: asks and receipts in, stamps and answers out."""

    def __init__(
        self,
        transport: asyncio.Transport,
        answer: AnswerAsk,
        *,
        acknowledged: Callable[[int], None],
        take_receipt: Callable[[Receipt], None],
        ended: Callable[[ResumeLink], None],
    ) -> None:
        """`acknowledged` is called with the time of a stamp, `ended` when the link is gone."""
        self._transport = transport
        self._answer = answer
        self._acknowledged = acknowledged
        self._take_receipt = take_receipt
        self._ended = ended
        self._frames = FrameReader(most_bytes=MAX_ASK_BYTES)
        self._next_number = 0
        self.unacknowledged = 0  # stamps since the last acknowledgement
        self._answering: dict[asyncio.Task[None], None] = {}  # the oldest first

    def begin(self, rest: bytes) -> None:
        """Become the protocol of an upgraded transport; `rest` are bytes behind the answer."""
        metrics.RESUME_LINKS.inc()
        probe_peer(self._transport)
        self._transport.set_protocol(self)
        self._transport.resume_reading()
        if rest:
            self.data_received(rest)

    def send(self, body: bytes) -> bool:
        """Send a stamp or an answer; False where the link has ended.

        The link is ended where the gateway does not read.
        """
        transport = self._transport
        if transport.is_closing():
            return False
        if transport.get_write_buffer_size() > _MOST_UNREAD_BYTES:
            log.warning("a gateway does not read its resume link; the link is ended")
            transport.abort()
            return False
        transport.writelines((frame_head(self._next_number, len(body)), body))
        self._next_number += 1
        return True

    def abort(self) -> None:
        """End the link at once."""
        self._transport.abort()

    def close(self) -> None:
        """End the link, once all sent bytes have gone out."""
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Take asks, for answers in any order, acknowledgements and receipts."""
        self._frames.feed(data)
        try:
            while (frame := self._frames.next()) is not None:
                word = gateways_word_in(frame.body)
                if isinstance(word, Ack):
                    self.unacknowledged = 0
                    self._acknowledged(word.stamp_ms)
                elif isinstance(word, Receipt):
                    self._take_receipt(word)
                else:
                    self._take(word)
        except (BadFrame, msgspec.MsgspecError) as bad:
            log.warning("a resume link is ended", reason=str(bad))
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Take note that the link is gone; give up due answers."""
        metrics.RESUME_LINKS.dec()
        for task in self._answering:
            task.cancel()
        self._ended(self)

    def _take(self, ask: Ask) -> None:
        """Begin an answer; the oldest of too many is given up: the gateway asks again."""
        if len(self._answering) >= _MOST_ASKS:
            next(iter(self._answering)).cancel()
        task = asyncio.get_running_loop().create_task(self._reply(ask))
        self._answering[task] = None
        task.add_done_callback(self._answering.pop)

    async def _reply(self, ask: Ask) -> None:
        try:
            answer = await self._answer(ask)
        except Exception:  # any fault: the gateway asks again
            log.exception("questions could not be answered")
            answer = Answer(ask.number, "", [], {}, [])
        self.send(encode(answer))
