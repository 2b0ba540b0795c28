"""Links of a node, over real sockets: the upgrade, batches in order, and what ends a link."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from gateway import metrics
from gateway.connections.repeats import Repeats
from gateway.http.door import Door, DoorBounds
from gateway.http.listener import Listener, bind
from gateway.internal import internal_app
from gateway.links import Links
from gateway.push import Pusher
from registry.frames import FrameReader
from registry.message import MAX_BATCH_BYTES
from tests.support.clients import eventually
from tests.support.links import SWITCHING, frame
from tests.unit.gateway.connections.test_node import Rig
from tests.unit.gateway.fakes import NODE, FakeConnection, identity

pytestmark = pytest.mark.anyio

SECRET = "internal secret"
UPGRADE = {
    "Host": "h",
    "Authorization": f"Bearer {SECRET}",
    "Connection": "Upgrade",
    "Upgrade": "pushgate-batch",
}


class Node:
    """A node's internal port, whose pushes a test can hold up or spoil."""

    def __init__(self, port: int) -> None:
        self.rig = Rig()
        self.port = port
        self.pusher = HeldPusher(self.rig)
        self.links = Links(self.rig.node, self.pusher)

    async def link(self) -> Client:
        """Give a link to the node."""
        client = await self.connect()
        client.send(request(UPGRADE))
        assert await client.reader.readexactly(len(SWITCHING)) == SWITCHING
        return client

    async def connect(self) -> Client:
        return Client(*await asyncio.open_connection("127.0.0.1", self.port))


class HeldPusher(Pusher):
    """Pushes as ever, once the test lets it; or answers with so many bytes, or fails."""

    def __init__(self, rig: Rig) -> None:
        super().__init__(rig.hub, Repeats(100), rig.node.as_of, epoch="e1", max_payload_bytes=1_000)
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.bodies: list[bytes] = []  # of the batches that have begun
        self.answer_bytes = 0
        self.error: Exception | None = None

    async def batch(self, media_type: bytes, body: bytes) -> tuple[bytes, bytes]:
        self.bodies.append(body)
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        answer = await super().batch(media_type, body)
        return (answer[0], bytes(self.answer_bytes)) if self.answer_bytes else answer


class Client:
    """The processor's side, by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._frames = FrameReader(most_bytes=MAX_BATCH_BYTES)

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> dict[str, object]:
        """Give the next answer."""
        async with asyncio.timeout(10):
            while not self._frames.has_next:
                data = await self.reader.read(65_536)
                assert data, "the link ended"
                self._frames.feed(data)
        answer = self._frames.next()
        assert answer is not None
        decoded: dict[str, object] = msgspec.msgpack.decode(answer.body)
        return decoded

    async def ended(self) -> None:
        """Return once the node has closed its half, with nothing unread before."""
        async with asyncio.timeout(10):
            assert await self.reader.read() == b""
        assert len(self._frames) == 0


def request(fields: dict[str, str], method: str = "GET") -> bytes:
    lines = [f"{method} /push HTTP/1.1", *(f"{name}: {fields[name]}" for name in fields)]
    return "\r\n".join((*lines, "", "")).encode()


def batch(*users: str, data: bytes = b"x") -> bytes:
    return msgspec.msgpack.encode([{"user": user, "data": data} for user in users])


def hold(node: Node, *users: str) -> list[FakeConnection]:
    connections = [FakeConnection(identity(user)) for user in users]
    for connection in connections:
        node.rig.hub.add(connection)
    return connections


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with serving() as made:
        yield made


@asynccontextmanager
async def serving() -> AsyncIterator[Node]:
    listening = bind("127.0.0.1", 0)
    made = Node(listening.getsockname()[1])
    app = internal_app(
        made.rig.node,
        made.pusher,
        made.links,
        None,
        secrets=[SECRET],
        max_payload_bytes=1_000,
        drain=lambda: None,
    )
    listener = Listener(listening, app, Door(DoorBounds(5.0, 16_384)))
    task = asyncio.create_task(listener.serve())
    yield made
    made.pusher.go_on.set()
    listener.stop()
    await made.links.close()
    await task
    assert not made.links._links


async def ends_of(node: Node, sent: bytes, *, reason: str) -> list[EventDict]:
    """Send bytes on a link that they end; give what is logged of it."""
    before = metrics.LINKS_ENDED.labels(reason)._value.get()
    client = await node.link()
    with capture_logs() as logged:
        client.send(sent)
        await client.ended()
        client.writer.close()
        await eventually(lambda: not node.links._links, "the link is forgotten")
    assert metrics.LINKS_ENDED.labels(reason)._value.get() == before + 1
    return [line for line in logged if line["log_level"] != "debug"]


# The upgrade


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"Upgrade": "websocket"},
        {"Upgrade": "pushgate-batch, pushgate-batch"},
        {"Connection": "close"},
        {"Upgrade": ""},
    ],
    ids=str,
)
async def test_a_request_for_no_link_or_another_protocol_is_426(
    node: Node, fields: dict[str, str]
) -> None:
    asked = {**UPGRADE, **fields} if fields else {k: UPGRADE[k] for k in ("Host", "Authorization")}
    client = await node.connect()
    client.send(request(asked))
    head = await client.reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 426 ")
    assert b"upgrade: pushgate-batch\r\n" in head.lower()
    client.writer.close()


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"Authorization": "Bearer wrong"}, 403),
        ({"Content-Length": "1"}, 413),
        ({"Pushgate-Node": "another", "Pushgate-Epoch": NODE.epoch}, 421),
        ({"Pushgate-Node": NODE.name, "Pushgate-Epoch": "earlier"}, 421),
    ],
    ids=str,
)
async def test_a_link_is_refused_as_any_call_is(
    node: Node, fields: dict[str, str], status: int
) -> None:
    client = await node.connect()
    client.send(request({**UPGRADE, **fields}))
    assert (await client.reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 %d " % status)
    client.writer.close()
    assert not node.links._links


async def test_a_link_counts_while_it_is_held(node: Node) -> None:
    before = metrics.LINKS._value.get()
    client = await node.link()
    assert metrics.LINKS._value.get() == before + 1
    client.writer.close()
    await eventually(lambda: metrics.LINKS._value.get() == before, "it is counted out")


# Batches


async def test_bytes_that_come_one_by_one_make_the_same_batches(node: Node) -> None:
    (alice,) = hold(node, "alice")
    client = await node.connect()
    for byte in request(UPGRADE) + frame(0, batch("alice", "bob")) + frame(1, batch("alice")):
        client.send(bytes([byte]))
        await client.writer.drain()
        await asyncio.sleep(0)
    assert await client.reader.readexactly(len(SWITCHING)) == SWITCHING
    assert await client.answer() == {"results": [1, 0]}
    assert await client.answer() == {"results": [1]}
    assert len(alice.got) == 2
    client.writer.close()


async def test_batches_of_a_link_are_delivered_one_after_the_other(node: Node) -> None:
    client = await node.link()
    node.pusher.go_on.clear()
    bodies = [batch(f"user-{number}") for number in range(5)]
    for number, body in enumerate(bodies):
        client.send(frame(number, body))
    await eventually(lambda: node.pusher.bodies, "the first has begun")
    other = await node.link()
    other.send(frame(0, batch("other")))
    await eventually(lambda: len(node.pusher.bodies) == 2, "another link's batch goes by")
    assert node.pusher.bodies == [bodies[0], batch("other")]
    node.pusher.go_on.set()
    for _ in bodies:
        assert await client.answer() == {"results": [0]}
    assert node.pusher.bodies[2:] == bodies[1:]
    for one in (client, other):
        one.writer.close()


async def test_what_a_processor_sends_ahead_is_bounded(node: Node) -> None:
    client = await node.link()
    node.pusher.go_on.clear()
    number, size = 0, 100_000
    body = msgspec.msgpack.encode([{"user": "u", "data": bytes(size)}])
    while client.writer.transport.get_write_buffer_size() < 1_000_000:
        client.send(frame(number, body))
        number += 1
        await asyncio.sleep(0)
        assert number < 1_000, "the node reads without end"
    (link,) = node.links._links
    assert len(link._frames) < 2 * size + 300_000
    assert node.pusher.bodies == [body]
    node.pusher.go_on.set()
    for _ in range(number):
        assert await client.answer() == {"results": [{"error": "too-large"}]}
    client.writer.close()


async def test_a_processor_that_reads_no_answers_gets_no_more_of_its_batches_delivered(
    node: Node,
) -> None:
    node.pusher.answer_bytes = 1_000_000
    client = await node.link()
    transport = client.writer.transport
    for number in range(100):
        client.send(frame(number, batch("u")))
    begun = -1
    while begun < len(node.pusher.bodies):
        begun = len(node.pusher.bodies)
        await asyncio.sleep(0.05)
    assert begun < 100
    (link,) = node.links._links
    assert link._transport.get_write_buffer_size() < 3_000_000
    node.pusher.answer_bytes = 0
    read = 0
    while read < begun * 1_000_012:
        read += len(await client.reader.read(1_000_000))
    await eventually(lambda: len(node.pusher.bodies) == 100, "the rest is delivered")
    transport.abort()


# What ends a link


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"\xff" * 12, f"{(1 << 32) - 1} bytes; at most {MAX_BATCH_BYTES}"),
        (frame(0, b"")[:-12] + b"\x00\x40\x00\x01" + bytes(8), "4194305 bytes"),
        (frame(1, batch("u")), "frame 1, where 0 was due"),
        (b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n", "bytes; at most"),
    ],
    ids=["no frame", "one byte too many", "a wrong number", "HTTP"],
)
async def test_what_is_no_frame_ends_the_link_with_a_reason(
    node: Node, sent: bytes, told: str
) -> None:
    (line,) = await ends_of(node, sent, reason="bad-frame")
    assert told in line["reason"]
    assert line["processor"] == "127.0.0.1"
    assert node.pusher.bodies == []


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (b"", 400, "no list of messages"),
        (b"\xc1", 400, "no list of messages"),
        (batch("u")[:-1], 400, "no list of messages"),
        (b"\x9f" + batch("u")[1:], 400, "no list of messages"),
        (b"\xdd\xff\xff\xff\xff", 400, "no list of messages"),
        (batch(*["u"] * 1_001), 413, "at most 1000"),
        (msgspec.msgpack.encode([{"user": ["u"] * 10_001, "data": b""}]), 413, "at most 10000"),
    ],
    ids=["nothing", "garbage", "cut off", "a lying count", "a huge count", "messages", "users"],
)
async def test_a_batch_that_is_refused_is_answered_and_is_the_last(
    node: Node, body: bytes, status: int, told: str
) -> None:
    client = await node.link()
    with capture_logs() as logged:
        client.send(frame(0, batch("u")) + frame(1, body) + frame(2, batch("behind")))
        assert await client.answer() == {"results": [0]}
        answer = await client.answer()
        await client.ended()
        client.writer.close()
    assert answer["refused"] == status
    assert told in str(answer["reason"])
    assert any(told in line.get("reason", "") for line in logged)
    assert batch("behind") not in node.pusher.bodies


async def test_a_processor_that_stops_in_the_middle_of_a_frame_is_told_of(node: Node) -> None:
    client = await node.link()
    with capture_logs() as logged:
        client.send(frame(0, batch("u")) + frame(1, batch("v"))[:-1])
        assert await client.answer() == {"results": [0]}
        client.writer.close()
        await eventually(lambda: not node.links._links, "the link is forgotten")
    assert "in the middle of a frame" in logged[-1]["reason"]
    assert node.pusher.bodies == [batch("u")]


async def test_a_processor_that_never_completes_a_frame_is_closed(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.links._FRAME_SECONDS", 0.2)
    client, other = await node.link(), await node.link()
    with capture_logs() as logged:
        other.send(frame(0, batch("u")))
        assert await other.answer() == {"results": [0]}
        client.send(frame(0, batch("v")) + frame(1, batch("w"))[:-1])
        assert await client.answer() == {"results": [0]}
        await client.ended()
        client.writer.close()
        await eventually(lambda: len(node.links._links) == 1, "the link is forgotten")
    assert [line["reason"] for line in logged] == ["a frame stayed incomplete for 0.2 s"]
    assert node.pusher.bodies == [batch("u"), batch("v")]
    other.send(frame(1, batch("x")))  # a link that is idle between two frames is not stalled
    assert await other.answer() == {"results": [0]}
    other.writer.close()


async def test_the_time_limit_of_a_frame_is_not_that_of_the_next(node: Node) -> None:
    client = await node.link()
    client.send(frame(0, batch("u")) + frame(1, batch("v"))[:-1])
    assert await client.answer() == {"results": [0]}
    (link,) = node.links._links
    link._look_at_frame(0)  # the limit of frame 0 is over; frame 1 is incomplete
    client.send(frame(1, batch("v"))[-1:])
    assert await client.answer() == {"results": [0]}
    client.writer.close()


async def test_a_processor_that_has_closed_its_half_gets_its_answers(node: Node) -> None:
    client = await node.link()
    node.pusher.go_on.clear()
    with capture_logs() as logged:
        client.send(frame(0, batch("u")) + frame(1, batch("v", "w")))
        client.writer.write_eof()
        await eventually(lambda: node.pusher.bodies, "the first has begun")
        node.pusher.go_on.set()
        assert await client.answer() == {"results": [0]}
        assert await client.answer() == {"results": [0, 0]}
        await client.ended()
    assert logged == []
    client.writer.close()


async def test_a_fault_of_the_node_is_answered_and_ends_this_link_alone(node: Node) -> None:
    client, other = await node.link(), await node.link()
    node.pusher.error = RuntimeError("injected")
    client.send(frame(0, batch("u")))
    assert (await client.answer())["refused"] == 500
    await client.ended()
    client.writer.close()
    node.pusher.error = None
    other.send(frame(0, batch("u")))
    assert await other.answer() == {"results": [0]}
    other.writer.close()


async def test_a_batch_whose_link_is_reset_is_delivered_whole(node: Node) -> None:
    (alice,) = hold(node, "alice")
    client = await node.link()
    node.pusher.go_on.clear()
    client.send(frame(0, batch("alice")))
    await eventually(lambda: node.pusher.bodies, "it has begun")
    plug = client.writer.get_extra_info("socket")
    plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.writer.transport.abort()  # with a RST
    await eventually(lambda: not node.links._links, "the link is forgotten")
    node.pusher.go_on.set()
    await eventually(lambda: alice.got, "it is delivered")


async def test_at_the_goodbye_what_has_arrived_is_answered_and_nothing_more(node: Node) -> None:
    client, idle = await node.link(), await node.link()
    node.pusher.go_on.clear()
    client.send(frame(0, batch("u")) + frame(1, batch("v")))
    await eventually(lambda: node.pusher.bodies, "the first has begun")
    closing = asyncio.create_task(node.links.close())
    await idle.ended()
    client.send(frame(2, batch("late")))
    late = await node.connect()
    late.send(request(UPGRADE))
    assert (await late.reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 503 ")
    node.pusher.go_on.set()
    for _ in range(2):
        assert await client.answer() == {"results": [0]}
    await client.ended()
    assert batch("late") not in node.pusher.bodies
    for one in (client, idle, late):
        one.writer.close()
    await closing


async def test_a_processor_that_stays_is_cut_off_in_time(node: Node) -> None:
    client = await node.link()
    node.pusher.go_on.clear()
    client.send(frame(0, batch("u")))
    await eventually(lambda: node.pusher.bodies, "it has begun")
    await asyncio.wait_for(node.links.close(), 5)
    await eventually(lambda: not node.links._links, "it is cut off")
    client.writer.close()
