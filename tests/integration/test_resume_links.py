"""Resume links: a processor's end and a gateway's, over real sockets."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Self

import pytest

from gateway import metrics
from gateway.connections.delivery import Delivery
from gateway.connections.repeats import Repeats
from gateway.http.door import Door, DoorBounds
from gateway.http.listener import Listener, bind
from gateway.internal import internal_app
from gateway.links import Links
from gateway.push import Pusher
from gateway.resume.links import ResumeLink
from gateway.resume.links import ResumeLinks as GatewayLinks
from gateway.resume.questions import MOST_ASKS
from processor import metrics as processor_metrics
from processor.outcomes.outcomes import Replayed
from processor.reading.message import Message
from processor.replay import links as processor_links
from processor.replay.links import ResumeLinks as ProcessorLinks
from processor.replay.receipts import Receipts
from processor.sending.reach import Reach
from registry.calls import GatewayCalls
from registry.directory import Node
from registry.frames import FrameReader
from registry.resume import (
    MAX_ANSWER_BYTES,
    MAX_ASK_BYTES,
    MAX_RECEIPT_MESSAGES,
    Ack,
    Answer,
    Ask,
    Question,
    Receipt,
    Replay,
    Stamp,
    encode,
    gateways_word_in,
    word_in,
)
from tests.support.clients import eventually
from tests.support.links import frame, listening
from tests.unit.gateway.fakes import NODE
from tests.unit.gateway.resume.test_questions import BACK_MS, RESUME_SECONDS, pushes, running, v1
from tests.unit.gateway.resume.test_questions import Node as AskingNode
from tests.unit.gateway.transports.test_websocket import server_frames
from tests.unit.processor.replay.taken_in import Partition

pytestmark = pytest.mark.anyio

SECRET = "the internal secret of these tests"
UPGRADE = (
    b"GET /resume HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer %b\r\n"
    b"Connection: Upgrade\r\nUpgrade: pushgate-resume\r\n\r\n" % SECRET.encode()
)
SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: pushgate-resume\r\n\r\n"
)


class Gateway:
    """A node that asks, behind its internal port."""

    def __init__(self, asking: AskingNode, node: Node, *, resumes: bool) -> None:
        self.asking = asking
        self.node = node
        self.links = GatewayLinks(asking.questions) if resumes else None

    @property
    def open_links(self) -> int:
        return 0 if self.links is None else len(self.links._links)

    @property
    def link(self) -> ResumeLink:
        """The only link."""
        assert self.links is not None
        (link,) = self.links._links
        return link


@asynccontextmanager
async def serving(*, resumes: bool = True) -> AsyncIterator[Gateway]:
    async with running() as asking:
        plug = bind("127.0.0.1", 0)
        node = Node(NODE.name, NODE.epoch, f"127.0.0.1:{plug.getsockname()[1]}")
        made = Gateway(asking, node, resumes=resumes)
        pusher = Pusher(asking.hub, Repeats(0), asking.as_of, epoch="e1", max_payload_bytes=1_000)
        app = internal_app(
            asking.node,
            pusher,
            Links(asking.node, pusher),
            made.links,
            secrets=[SECRET],
            max_payload_bytes=1_000,
            drain=lambda: None,
        )
        listener = Listener(plug, app, Door(DoorBounds(5.0, 16_384)))
        task = asyncio.create_task(listener.serve())
        try:
            yield made
        finally:
            listener.stop()
            if made.links is not None:
                await made.links.close()
            await task


class Processor:
    """A processor's links, and what it answers."""

    def __init__(self, name: str = "p1", *, reports: bool = False) -> None:
        self.asks: list[Ask] = []
        self.reported: list[Replayed] = []
        self.answers_at_once = asyncio.Event()
        self.answers_at_once.set()
        self.cancelled = 0
        self.replay = Replay()
        self._tasks: set[asyncio.Task[None]] = set()
        reach = Reach(GatewayCalls(secret=SECRET, auth="bearer"))
        self.links = ProcessorLinks(
            name,
            reach,
            self._answer,
            Receipts(self.reported.extend) if reports else None,
            resume_seconds=RESUME_SECONDS,
            spawn=self._spawn,
        )
        self.name = name

    async def _answer(self, ask: Ask) -> Answer:
        self.asks.append(ask)
        try:
            await self.answers_at_once.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        replays = [self.replay for _ in ask.questions]
        return Answer(ask.number, self.name, [("push", 0, 9)], {"push": 1}, replays)

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def missed(self, node: Node, *users: str) -> None:
        messages: list[Message] = []
        for number, user in enumerate(users):
            message = Partition().message(number, user)
            message.missed_at = (node,)
            messages.append(message)
        self.links.settled(messages)

    async def linked(self, *nodes: Node) -> None:
        """Open links, and wait until they are open."""
        self.links.observe(nodes, None)
        await eventually(
            lambda: all(self.links._links.get(node) is not None for node in nodes), "linked"
        )

    async def close(self) -> None:
        await self.links.close(None)
        await asyncio.gather(*self._tasks)


@pytest.fixture
async def processor() -> AsyncIterator[Processor]:
    made = Processor()
    yield made
    await made.close()


@pytest.fixture
async def reporting() -> AsyncIterator[Processor]:
    """Give a processor that reports outcomes."""
    made = Processor(reports=True)
    yield made
    await made.close()


async def test_a_client_comes_back_and_gets_over_the_link_what_it_missed(
    processor: Processor,
) -> None:
    processor.replay = Replay(pushes(5, 6))
    async with serving() as gateway:
        asking = gateway.asking
        await processor.linked(gateway.node)
        asking.live("p1")
        processor.links.observe([gateway.node], BACK_MS)
        await eventually(lambda: asking.questions._links, "the processor is known")
        client = asking.come_back()
        await eventually(lambda: client.is_through, "it resumed")
        assert client.got() == ["5", "6"]
        assert [q.user for q in processor.asks[0].questions] == ["alice"]


async def test_a_stamp_moves_the_nodes_time_and_who_missed_something_is_told_once(
    processor: Processor,
) -> None:
    async with serving() as gateway:
        asking = gateway.asking
        await processor.linked(gateway.node)
        asking.live("p1")
        asking.as_of.held(BACK_MS + 60_000, {"p1"}, at=asking.now)
        alice = asking.hold("alice", make=v1)
        processor.missed(gateway.node, "alice", "nobody")
        processor.links.observe([gateway.node], BACK_MS + 1_000)
        await eventually(lambda: asking.as_of.ms == BACK_MS + 1_000, "the stamp has come")
        await eventually(
            lambda: not processor.links._missed.get(gateway.node), "it is acknowledged"
        )
        processor.links.observe([gateway.node], BACK_MS + 2_000)
        await eventually(lambda: asking.as_of.ms == BACK_MS + 2_000, "the next has come")
        controls = [json.loads(payload) for _, payload in server_frames(alice.wire.take())]
        assert controls == [{"control": "gap"}]


async def test_a_gateway_without_clients_that_resume_is_asked_for_a_link_once(
    processor: Processor,
) -> None:
    async with serving(resumes=False) as gateway:
        for _ in range(3):
            processor.links.observe([gateway.node], BACK_MS)
            await eventually(lambda: not processor._tasks, "it has tried")
        assert processor.links._without == {gateway.node}
        assert processor.links._links == {}


async def test_a_link_ends_with_its_nodes_lease_and_is_opened_anew(processor: Processor) -> None:
    gauges = (metrics.RESUME_LINKS, processor_metrics.RESUME_LINKS)
    before = [gauge._value.get() for gauge in gauges]

    def counted() -> list[float]:
        return [gauge._value.get() - number for gauge, number in zip(gauges, before, strict=True)]

    async with serving() as gateway:
        await processor.linked(gateway.node)
        assert counted() == [1, 1]
        processor.links.observe([], BACK_MS)
        await eventually(lambda: gateway.open_links == 0, "the link has ended")
        await eventually(lambda: counted() == [0, 0], "at both ends")
        await processor.linked(gateway.node)
        await eventually(lambda: gateway.open_links == 1, "one link")


async def test_the_late_end_of_an_old_link_leaves_the_new_one(processor: Processor) -> None:
    async with serving() as gateway:
        await processor.linked(gateway.node)
        old = processor.links._links[gateway.node]
        assert old is not None
        processor.links.observe([], BACK_MS)  # its socket ends in a later turn
        await processor.linked(gateway.node)
        await eventually(lambda: gateway.open_links == 1, "the old one has ended")
        assert processor.links._links[gateway.node] not in (None, old)


async def test_a_link_that_a_gateway_ends_is_opened_again(processor: Processor) -> None:
    async with serving() as gateway:
        await processor.linked(gateway.node)
        assert gateway.links is not None
        for link in list(gateway.links._links):
            link.abort()
        await eventually(lambda: processor.links._links == {}, "it has ended here too")
        await processor.linked(gateway.node)
        assert gateway.open_links == 1


async def test_after_the_goodbye_no_link_is_opened(processor: Processor) -> None:
    async with serving() as gateway:
        await processor.linked(gateway.node)
        assert gateway.links is not None
        await gateway.links.close()
        assert gateway.open_links == 0
        port = int(gateway.node.address.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(UPGRADE)
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 503 ")
        writer.close()


async def test_what_a_client_has_taken_of_an_answer_is_reported_once(reporting: Processor) -> None:
    reporting.replay = Replay(pushes(5, 6))
    async with serving() as gateway:
        asking = gateway.asking
        await reporting.linked(gateway.node)
        asking.live("p1")
        reporting.links.observe([gateway.node], BACK_MS)
        await eventually(lambda: asking.questions._links, "the processor is known")
        client = asking.come_back()
        await eventually(lambda: client.is_through, "it resumed")
        for _ in range(2):
            assert gateway.links is not None
            gateway.links.advance(time.monotonic())
            await eventually(lambda: len(reporting.reported) >= 2, "reported")
        expected = [Replayed("alice", f"m-{n}", None, NODE.name, "push", 0, n) for n in (5, 6)]
        await acknowledged(reporting, gateway.node)
        assert reporting.reported == expected


async def acknowledged(processor: Processor, node: Node) -> None:
    """Return once all that the gateway has sent so far has come: a stamp goes there and back."""
    processor.links.observe([node], BACK_MS + 1_000)
    link = processor.links._links[node]
    await eventually(lambda: link is not None and not link.unacknowledged, "acknowledged")


async def test_a_processor_that_reports_nothing_gets_no_receipts(processor: Processor) -> None:
    async with serving() as gateway, FakeProcessor(gateway.node) as peer:
        await peer.send(Stamp("p1", BACK_MS, RESUME_SECONDS, receipts=False))
        assert await peer.next() == Ack(BACK_MS)
        link = gateway.link
        link.replayed(taken(5))
        link.send_receipt()
        await peer.send(Stamp("p1", BACK_MS + 1, RESUME_SECONDS))
        assert await peer.next() == Ack(BACK_MS + 1), "and nothing between"


async def test_a_receipt_that_no_processor_asked_for_changes_nothing(processor: Processor) -> None:
    async with peers() as (node, found):
        await processor.linked(node)
        found[0].send(Receipt([("push", 0, [1])]))
        found[0].send(Ask(0, [Question("alice", None, 0, [])]))
        await eventually(lambda: found[0].answers == [0], "the link is as it was")


async def test_receipts_gather_and_a_full_one_goes_at_once() -> None:
    async with serving() as gateway, FakeProcessor(gateway.node) as peer:
        await peer.stamp()
        for offset in range(MAX_RECEIPT_MESSAGES + 1):
            gateway.link.replayed(taken(offset))
        gateway.link.replayed(taken(7, partition=1))
        assert await peer.next() == Receipt([("push", 0, [*range(MAX_RECEIPT_MESSAGES)])])
        assert gateway.links is not None
        gateway.links.advance(time.monotonic())
        rest = Receipt([("push", 0, [MAX_RECEIPT_MESSAGES]), ("push", 1, [7])])
        assert await peer.next() == rest


async def test_receipts_for_a_processor_that_does_not_read_are_bounded_and_end_no_link() -> None:
    before = dropped()
    async with serving() as gateway, FakeProcessor(gateway.node) as peer:
        await peer.stamp()
        link = gateway.link
        for number in range(3):  # it reads none of these
            link.ask(Ask(number, [Question("u" * 4_000_000, None, 0, [])]))
        for offset in range(MAX_RECEIPT_MESSAGES + 10):
            link.replayed(taken(offset))
        assert dropped() - before == 10
        assert not link._transport.is_closing()
        for number in range(3):
            word = await peer.next()
            assert isinstance(word, Ask)
            assert word.number == number
        await eventually(lambda: not link._transport.get_write_buffer_size(), "all is read")
        link.send_receipt()
        assert await peer.next() == Receipt([("push", 0, [*range(MAX_RECEIPT_MESSAGES)])])


async def test_with_a_link_its_next_receipt_is_lost_and_counted() -> None:
    before = dropped()
    async with serving() as gateway:
        async with FakeProcessor(gateway.node) as peer:
            await peer.stamp()
            link = gateway.link
            link.replayed(taken(1))
            link.replayed(taken(2))
        await eventually(lambda: gateway.open_links == 0, "the link has ended")
        assert dropped() - before == 2
        link.replayed(taken(3))
        link.send_receipt()
        assert dropped() - before == 3


async def test_a_node_that_says_goodbye_sends_its_last_receipts() -> None:
    async with serving() as gateway, FakeProcessor(gateway.node) as peer:
        await peer.stamp()
        gateway.link.replayed(taken(1))
        assert gateway.links is not None
        closing = asyncio.create_task(gateway.links.close())
        assert await peer.next() == Receipt([("push", 0, [1])])
        assert await peer.next() is None
        peer.close()
        await closing


# Half open: the other end is silent, and its socket stays


async def test_a_gateway_gives_up_a_link_on_which_nothing_comes() -> None:
    async with serving() as gateway, FakeProcessor(gateway.node) as peer:
        await peer.stamp()
        link = gateway.link
        assert gateway.links is not None
        gateway.links.advance(link.heard_at + 15.0)
        assert not link._transport.is_closing()
        gateway.links.advance(link.heard_at + 15.1)
        await eventually(lambda: gateway.open_links == 0, "it is given up")
        assert gateway.asking.questions._links == set(), "and asked no more"


async def test_a_processor_gives_up_a_link_whose_stamps_are_not_acknowledged(
    processor: Processor,
) -> None:
    async with peers() as (node, found):
        await processor.linked(node)
        for number in range(9):
            processor.links.observe([node], number)
        await eventually(lambda: len(found[0].stamps) == 9, "nine stamps")
        found[0].send(Ack(8))
        link = processor.links._links[node]
        await eventually(lambda: link is not None and not link.unacknowledged, "it is heard")
        for number in range(9, 19):
            processor.links.observe([node], number)
        await eventually(lambda: len(found[0].stamps) == 19, "ten stamps more")
        assert not found[0].closed.is_set()
        processor.links.observe([node], 19)
        await asyncio.wait_for(found[0].closed.wait(), 5.0)
        await eventually(lambda: processor.links._links == {}, "it is gone")
        await processor.linked(node)
        processor.links.observe([node], 20)
        await eventually(lambda: found[1].stamps, "and a new one is opened")


async def test_a_link_whose_upgrade_is_not_answered_is_tried_again(
    processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor_links, "_UPGRADE_SECONDS", 0.2)
    requests = 0

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        requests += 1
        await reader.read()

    async with listening(silent) as node:
        for number in range(1, 3):
            processor.links.observe([node], BACK_MS)
            await eventually(lambda n=number: requests == n, "asked for a link")  # type: ignore[misc]
            assert processor.links._links == {node: None}
            await eventually(lambda: processor.links._links == {}, "it is given up")


async def test_a_gateway_ends_a_link_whose_processor_leaves_too_much_unread() -> None:
    async with serving() as gateway, FakeProcessor(gateway.node) as peer:
        await peer.stamp()
        link = gateway.link
        ask = Ask(0, [Question("u" * 4_000_000, None, 0, [])])
        for _ in range(4):
            link.ask(ask)
        assert not link._transport.is_closing(), "16 MiB may wait"
        for _ in range(6):  # what the kernel's buffers took is not counted
            link.ask(ask)
        assert link._transport.is_closing()
        await eventually(lambda: gateway.open_links == 0, "it is gone")


async def test_a_processor_ends_a_link_whose_gateway_leaves_too_much_unread(
    processor: Processor,
) -> None:
    async with peers(reads=False) as (node, _):
        await processor.linked(node)
        link = processor.links._links[node]
        assert link is not None
        for _ in range(4):
            assert link.send(b"x" * 8_000_000)
        sent = [link.send(b"x" * 8_000_000) for _ in range(4)]
        assert not sent[-1], "32 MiB may wait, and what the kernel's buffers take"
        await eventually(lambda: processor.links._links == {}, "it is gone")


async def test_a_processor_takes_as_many_asks_as_a_gateway_has_under_way(
    processor: Processor,
) -> None:
    processor.answers_at_once.clear()
    async with peers() as (node, found):
        await processor.linked(node)
        for number in range(MOST_ASKS):
            found[0].send(Ask(number, []))
        await eventually(lambda: len(processor.asks) == MOST_ASKS, "asked")
        processor.answers_at_once.set()
        await eventually(lambda: len(found[0].answers) == MOST_ASKS, "all are answered")
        assert processor.cancelled == 0


# A gateway that is none


class Peer:
    """The gateway's end, by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.words: list[Stamp | Answer] = []
        self.closed = asyncio.Event()
        self._frames = FrameReader(most_bytes=MAX_ANSWER_BYTES)
        self._sent = 0

    async def read(self) -> None:
        while data := await self.reader.read(65_536):
            self._frames.feed(data)
            while (found := self._frames.next()) is not None:
                self.words.append(word_in(found.body))
        self.closed.set()

    def send(self, word: Ask | Ack | Receipt) -> None:
        self.writer.write(frame(self._sent, encode(word)))
        self._sent += 1

    @property
    def stamps(self) -> list[Stamp]:
        return [word for word in self.words if isinstance(word, Stamp)]

    @property
    def answers(self) -> list[int]:
        return [word.number for word in self.words if isinstance(word, Answer)]


@asynccontextmanager
async def peers(*, reads: bool = True) -> AsyncIterator[tuple[Node, list[Peer]]]:
    """Give a node, and the links that it gets."""
    found: list[Peer] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(SWITCHING)
        found.append(peer := Peer(reader, writer))
        if reads:
            await peer.read()
        else:
            await peer.closed.wait()

    async with listening(serve) as node:
        yield node, found


async def test_whose_messages_are_missed_is_said_until_a_stamp_is_acknowledged(
    processor: Processor,
) -> None:
    async with peers() as (node, found):
        await processor.linked(node)
        processor.missed(node, "alice")
        processor.links.observe([node], 1_000)
        processor.links.observe([node], 2_000)
        await eventually(lambda: len(found[0].stamps) == 2, "two stamps")
        assert [stamp.missed for stamp in found[0].stamps] == [["alice"]] * 2
        found[0].writer.close()  # with whatever was in its buffers
        await eventually(lambda: processor.links._links == {}, "the link has ended")
        await processor.linked(node)
        processor.links.observe([node], 3_000)
        await eventually(lambda: found[1].stamps, "a stamp on the new link")
        assert found[1].stamps[0].missed == ["alice"]
        processor.missed(node, "bob")
        found[1].send(Ack(3_000))
        await eventually(lambda: processor.links._missed[node].keys() == {"bob"}, "heard")
        processor.links.observe([node], 4_000)
        await eventually(lambda: len(found[1].stamps) == 2, "another stamp")
        assert found[1].stamps[1].missed == ["bob"], "it came after the stamp"


async def test_of_too_many_users_it_is_said_that_there_are_more(processor: Processor) -> None:
    async with peers() as (node, found):
        await processor.linked(node)
        processor.missed(node, *(f"u{number}" for number in range(10_001)))
        processor.links.observe([node], 1_000)
        await eventually(lambda: found[0].stamps, "a stamp")
        assert found[0].stamps[0].missed_more


async def test_a_node_that_may_come_back_is_told_then(processor: Processor) -> None:
    async with peers() as (node, found):
        processor.missed(node, "alice")
        processor.links.observe([], 1_000, present=lambda _: True)
        await processor.linked(node)
        processor.links.observe([node], 2_000)
        await eventually(lambda: found[0].stamps, "a stamp")
        assert found[0].stamps[0].missed == ["alice"]
        processor.links.observe([], 3_000, present=lambda _: False)
        assert processor.links._missed == {}


async def test_of_too_many_asks_the_oldest_are_given_up_and_the_link_stays(
    processor: Processor,
) -> None:
    processor.answers_at_once.clear()
    async with peers() as (node, found):
        await processor.linked(node)
        for number in range(12):
            found[0].send(Ask(number, [Question("alice", None, 0, [])]))
            await eventually(lambda n=number: len(processor.asks) == n + 1, "asked")  # type: ignore[misc]
        processor.answers_at_once.set()
        await eventually(lambda: len(found[0].answers) == 8, "eight answers")
        assert sorted(found[0].answers) == list(range(4, 12))
        assert processor.cancelled == 4
        assert not found[0].closed.is_set()


@pytest.mark.parametrize(
    "sent",
    [
        frame(1, encode(Ack(1))),  # out of turn
        frame(0, b""),
        frame(0, b"\xc1"),
        frame(0, encode(Stamp("p", 1, 1.0))),
        (MAX_ASK_BYTES + 1).to_bytes(4, "big") + bytes(8),
        b"GET / HTTP/1.1\r\n\r\n" * 10,
    ],
    ids=["out of turn", "empty", "no word", "a processor's word", "too long", "http"],
)
async def test_a_processor_ends_a_link_with_anything_else_on_it(
    processor: Processor, sent: bytes
) -> None:
    async with peers() as (node, found):
        await processor.linked(node)
        found[0].writer.write(sent)
        await asyncio.wait_for(found[0].closed.wait(), 5.0)
        await eventually(lambda: processor.links._links == {}, "it is gone")


async def test_with_the_link_its_answers_are_given_up(processor: Processor) -> None:
    processor.answers_at_once.clear()
    async with peers() as (node, found):
        await processor.linked(node)
        found[0].send(Ask(0, []))
        await eventually(lambda: processor.asks, "asked")
        found[0].writer.close()
        await eventually(lambda: processor.cancelled == 1, "given up")


# A processor that is none


class FakeProcessor:
    """The processor's end, by hand: it reads when it is told to."""

    def __init__(self, node: Node) -> None:
        self._address = node.address
        self._frames = FrameReader(most_bytes=MAX_ASK_BYTES)
        self._sent = 0

    async def __aenter__(self) -> Self:
        host, _, port = self._address.rpartition(":")
        self._reader, self._writer = await asyncio.open_connection(host, int(port))
        self._writer.write(UPGRADE)
        await self._reader.readuntil(b"\r\n\r\n")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._writer.close()

    async def send(self, word: Stamp | Answer) -> None:
        self._writer.write(frame(self._sent, encode(word)))
        self._sent += 1
        await self._writer.drain()

    async def stamp(self) -> None:
        """Send a stamp that asks for receipts, and wait until it is acknowledged."""
        await self.send(Stamp("p1", BACK_MS, RESUME_SECONDS, receipts=True))
        assert await self.next() == Ack(BACK_MS)

    async def next(self) -> Ask | Ack | Receipt | None:
        """Return the next word of the gateway; None at the end of the link."""
        async with asyncio.timeout(5):
            while (found := self._frames.next()) is None:
                data = await self._reader.read(1024 * 1024)
                if not data:
                    return None
                self._frames.feed(data)
        return gateways_word_in(found.body)


def taken(offset: int, partition: int = 0) -> Delivery:
    position = f"push-{partition}-{offset}"
    return Delivery(b"", message_id=position, position=position)


def dropped() -> float:
    return metrics.RECEIPTS_DROPPED._value.get()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "sent",
    [
        frame(1, encode(Stamp("p1", 1, 1.0))),
        frame(0, b""),
        frame(0, b"\xc1"),
        frame(0, encode(Ask(0, []))),
        (MAX_ANSWER_BYTES + 1).to_bytes(4, "big") + bytes(8),
    ],
    ids=["out of turn", "empty", "no word", "a gateway's word", "too long"],
)
async def test_a_gateway_ends_a_link_with_anything_else_on_it(sent: bytes) -> None:
    async with serving() as gateway:
        host, _, port = gateway.node.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(UPGRADE)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        writer.write(sent)
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        await eventually(lambda: gateway.open_links == 0, "it is gone")
        writer.close()


async def test_a_stamp_and_an_answer_that_came_with_the_request_count() -> None:
    async with serving() as gateway:
        host, _, port = gateway.node.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(UPGRADE + frame(0, encode(Stamp("p1", BACK_MS, RESUME_SECONDS))))
        await reader.readuntil(b"\r\n\r\n")
        head = await reader.readexactly(12)
        body = await reader.readexactly(int.from_bytes(head[:4], "big"))
        assert gateways_word_in(body) == Ack(BACK_MS)
        await eventually(lambda: gateway.asking.questions._links, "the processor is known")
        writer.close()
        await eventually(lambda: not gateway.asking.questions._links, "and is asked no more")


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        (UPGRADE.replace(SECRET.encode(), b"x" * 32), 403),
        (UPGRADE.replace(b"pushgate-resume", b"pushgate-batch"), 426),
        (UPGRADE.replace(b"Connection: Upgrade\r\nUpgrade: pushgate-resume\r\n", b""), 426),
        (
            UPGRADE.replace(
                b"Host: h\r\n", b"Host: h\r\npushgate-node: gw-a\r\npushgate-epoch: e0\r\n"
            ),
            421,
        ),
    ],
    ids=["secret", "protocol", "no upgrade", "another start"],
)
async def test_a_link_that_may_not_be_is_refused(changed: bytes, status: int) -> None:
    async with serving() as gateway:
        host, _, port = gateway.node.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(changed)
        line = await reader.readline()
        writer.close()
        assert line.startswith(b"HTTP/1.1 %d " % status)
        assert gateway.open_links == 0
