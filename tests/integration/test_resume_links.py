"""Resume links: a processor's end and a gateway's, over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager

import pytest

from gateway.connections.repeats import Repeats
from gateway.http.door import Door, DoorBounds
from gateway.http.listener import Listener, bind
from gateway.internal import internal_app
from gateway.links import Links
from gateway.push import Pusher
from gateway.resume.links import ResumeLinks as GatewayLinks
from processor.reading.message import Message
from processor.replay.links import ResumeLinks as ProcessorLinks
from processor.sending.reach import Reach
from registry.calls import GatewayCalls
from registry.directory import Node
from registry.frames import FrameReader
from registry.resume import (
    MAX_ANSWER_BYTES,
    MAX_ASK_BYTES,
    Ack,
    Answer,
    Ask,
    Question,
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

    def __init__(self, name: str = "p1") -> None:
        self.asks: list[Ask] = []
        self.answers_at_once = asyncio.Event()
        self.answers_at_once.set()
        self.cancelled = 0
        self.replay = Replay()
        self._tasks: set[asyncio.Task[None]] = set()
        reach = Reach(GatewayCalls(secret=SECRET, auth="bearer"))
        self.links = ProcessorLinks(
            name, reach, self._answer, resume_seconds=RESUME_SECONDS, spawn=self._spawn
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
    async with serving() as gateway:
        await processor.linked(gateway.node)
        processor.links.observe([], BACK_MS)
        await eventually(lambda: gateway.open_links == 0, "the link has ended")
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

    def send(self, word: Ask | Ack) -> None:
        self.writer.write(frame(self._sent, encode(word)))
        self._sent += 1

    @property
    def stamps(self) -> list[Stamp]:
        return [word for word in self.words if isinstance(word, Stamp)]

    @property
    def answers(self) -> list[int]:
        return [word.number for word in self.words if isinstance(word, Answer)]


@asynccontextmanager
async def peers() -> AsyncIterator[tuple[Node, list[Peer]]]:
    """Give a node, and the links that it gets."""
    found: list[Peer] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(SWITCHING)
        found.append(peer := Peer(reader, writer))
        await peer.read()

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
