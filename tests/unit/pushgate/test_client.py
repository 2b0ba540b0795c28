"""The client of `pushgate listen`: event streams however they are cut, and coming back."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.typing import Subprotocol

from gateway.connections.cursor import read_cursor
from pushgate.client import Message, Place, Refused, poll, sse, websocket

pytestmark = pytest.mark.anyio

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


@dataclass
class Server:
    """Where it is, and what was asked for."""

    url: str = ""
    targets: list[str] = field(default_factory=list)


@asynccontextmanager
async def serving(*chunks: bytes) -> AsyncIterator[Server]:
    """Answer every request with the chunks, each a segment of its own, and then the end."""
    served = Server()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        served.targets.append(head.split()[1].decode())
        for chunk in chunks:
            writer.write(chunk)
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    served.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield served
    finally:
        server.close()
        await server.wait_closed()


async def received(*chunks: bytes) -> list[Message]:
    async with serving(HEAD, *chunks) as server, asyncio.timeout(10):
        return [message async for message in sse(server.url, "token")]


def message(payload: str, message_id: str = "m-1", event_type: str | None = None) -> Message:
    return Message(message_id, event_type, payload.encode())


async def test_an_event_is_a_message() -> None:
    assert await received(b":\n\nid: m-1\nevent: chat\ndata: hello\n\n") == [
        message("hello", event_type="chat")
    ]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("step", [1, 2, 3, 7, 1_000])
async def test_a_stream_may_come_in_pieces_of_any_size(end: bytes, step: int) -> None:
    stream = b"\n".join([b":", b"", b"id: m-1", b"data: one", b"data: two", b"", b""])
    stream = (stream + b"id: m-2\ndata: three\n\n").replace(b"\n", end)
    pieces = [stream[start : start + step] for start in range(0, len(stream), step)]
    assert await received(*pieces) == [message("one\ntwo"), message("three", "m-2")]


async def test_a_lone_cr_ends_a_line() -> None:
    assert await received(b"id: m-1\rdata: one\rdata: two\r\r:\n\n") == [message("one\ntwo")]


@pytest.mark.parametrize(
    "text", ["a\u2028b\u2029c", "a\x85b", "a\x0bb\x0cc\x1cd\x1ee", "\x00", "\ufeffbom", "😀"]
)
async def test_nothing_else_ends_a_line(text: str) -> None:
    assert await received(f"id: m-1\ndata: {text}\n\n".encode()) == [message(text)]


@pytest.mark.parametrize(
    ("line", "text"), [("data: x", "x"), ("data:x", "x"), ("data:  x", " x"), ("data: :", ":")]
)
async def test_one_space_after_the_colon_is_not_of_the_value(line: str, text: str) -> None:
    assert await received(f"id: m-1\n{line}\n\n".encode()) == [message(text)]


async def test_an_empty_message_is_a_message() -> None:
    assert await received(b"id: m-1\ndata: \n\n", b"id: m-2\ndata:\n\n") == [
        message(""),
        message("", "m-2"),
    ]


async def test_a_control_event_is_no_message() -> None:
    events: Sequence[bytes] = (
        b"event: pushgate.gap\ndata: {}\n\n",
        b"retry: 100\n\n",
        b":\n\n",
        b"id: m-1\ndata: x\n\n",
    )
    assert await received(*events) == [message("x")]


async def test_a_binary_event_is_its_bytes() -> None:
    form = b'{"id":"m-1","type":"chat","data":"/wA=","encoding":"base64"}'
    assert await received(b"id: m-1\nevent: pushgate.binary\ndata: " + form + b"\n\n") == [
        Message("m-1", "chat", b"\xff\x00")
    ]


async def test_the_id_is_the_last_part_of_the_cursor() -> None:
    assert (await received(b"id: epoch 17 m-9\ndata: x\n\n"))[0].id == "m-9"


async def test_an_event_that_is_cut_off_is_no_message() -> None:
    assert await received(b"id: m-1\ndata: whole\n\nid: m-2\ndata: cut\n") == [message("whole")]


@pytest.mark.parametrize("transport", [websocket, sse, poll])
async def test_a_refusal_is_raised_with_its_status_and_reason(
    transport: Callable[[str, str], AsyncIterator[Message]],
) -> None:
    refusal = b"HTTP/1.1 401 X\r\ncontent-length: 6\r\nconnection: close\r\n\r\nno exp"
    async with serving(refusal) as server:
        with pytest.raises(Refused) as caught:
            await anext(transport(server.url, "token"))
    assert (caught.value.status, caught.value.reason) == (401, "no exp")


async def test_a_heartbeat_is_no_message_with_an_id_or_without() -> None:
    assert await received(
        b"event: pushgate.cursor\ndata: 25000\n\n",
        b"id: m-1\ndata: one\n\n",
        b"event: pushgate.cursor\nid: c\ndata: 25000\n\n",
    ) == [message("one")]


def test_a_place_is_the_time_that_came_last_and_the_last_position_of_each_partition() -> None:
    place = Place()
    assert (place.cursor, place.resumes) == (None, False)
    place.beat("a1")
    place.move("a2,push-0-5")
    place.move("a2,high-prio-3-7")
    place.move("a3,high-prio-3-7,push-0-9")
    place.move("a4")  # is in no log
    place.move(None)
    place.beat("a3,push-0-5")  # a position of an earlier message
    assert (place.cursor, place.resumes) == ("a3,high-prio-3-7,push-0-9", True)


def test_a_position_is_dropped_when_the_time_covers_it() -> None:
    now = 0.0
    place = Place(clock=lambda: now)
    place.move("a1,push-0-1")
    now = 119.0
    place.move("a2,push-1-1")
    now = 1_000.0
    place.beat("a2")  # away, or waiting for what was missed
    assert place.cursor == "a2,push-0-1,push-1-1"
    now = 121.0
    place.beat("b1")
    assert place.cursor == "b1,push-1-1"


def test_a_place_has_no_more_positions_than_a_gateway_takes() -> None:
    place = Place()
    for partition in range(100):
        place.move(f"a1,push-{partition}-1")
    assert place.cursor is not None
    cursor = read_cursor(place.cursor)
    assert cursor is not None
    assert list(cursor.positions) == [("push", partition) for partition in range(36, 100)]


def test_a_gap_is_told_and_positions_are_forgotten() -> None:
    gaps: list[str | None] = []
    place = Place(lambda: gaps.append(place.cursor))
    place.move("a1,push-0-5")
    place.gap()
    assert gaps == [place.cursor] == ["a1"]


def test_a_gateway_that_does_not_resume_is_one_gap() -> None:
    gaps: list[None] = []
    place = Place(lambda: gaps.append(None))
    place.beat(None)
    assert not gaps
    place.beat("a1")
    place.beat(None)
    place.beat(None)
    assert (place.cursor, len(gaps)) == (None, 1)


async def test_an_event_stream_begins_at_the_place_and_moves_it() -> None:
    gaps: list[None] = []
    place = Place(lambda: gaps.append(None))
    events = (
        b"event: pushgate.cursor\ndata: 25000\nid: a1\n\n",
        b"data: x\nid: a1,push-0-5 m-1\n\n",
        b"event: pushgate.cursor\ndata: 25000\nid: a2,push-0-5\n\n",
    )
    async with serving(HEAD, *events) as server:
        assert [m.id async for m in sse(server.url, "token", place)] == ["m-1"]
    async with serving(HEAD, events[0], b"event: pushgate.gap\ndata: {}\n\n") as second:
        assert [m async for m in sse(second.url, "token", place)] == []
    assert server.targets == ["/sse"]
    assert second.targets == ["/sse?cursor=a2%2Cpush-0-5"]
    assert (place.cursor, len(gaps)) == ("a1", 1)


async def test_a_websocket_begins_at_the_place_and_moves_it() -> None:
    gaps: list[None] = []
    place = Place(lambda: gaps.append(None))
    offered: list[str] = []
    frames = [
        {"control": "hello", "heartbeat_ms": 25_000, "cursor": "a1"},
        {"control": "unknown"},
        {"id": "m-1", "cursor": "a1,push-0-5", "type": None, "data": "x"},
        {"control": "heartbeat", "cursor": "a2,push-0-5"},
    ]

    async def hold(connection: ServerConnection) -> None:
        assert connection.request is not None
        offered.append(connection.request.headers["Sec-WebSocket-Protocol"])
        for frame in frames:
            await connection.send(json.dumps(frame))

    async with serve(hold, "127.0.0.1", 0, subprotocols=[Subprotocol("pushgate.v1")]) as server:
        url = f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        assert [m.id async for m in websocket(url, "t", place)] == ["m-1"]
        frames[1:] = [{"control": "gap"}]
        assert [m async for m in websocket(url, "t", place)] == []
    assert offered == [
        "pushgate.v1, bearer.t",
        "pushgate.v1, bearer.t, cursor.a2~push-0-5",
    ]
    assert (place.cursor, len(gaps)) == ("a1", 1)


async def first_ids(messages: AsyncIterator[Message], count: int) -> list[str]:
    assert isinstance(messages, AsyncGenerator)
    async with aclosing(messages):
        return [(await anext(messages)).id for _ in range(count)]


async def test_a_poll_goes_on_with_its_session_and_tells_of_a_gap() -> None:
    gaps: list[None] = []
    place = Place(lambda: gaps.append(None))
    body = b'{"cursor": "k.1", "messages": [{"id": "m-1", "type": null, "data": "x"}], "gap": true}'
    answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
    async with serving(answer % (len(body), body)) as server:
        assert await first_ids(poll(server.url, "token", place), 2) == ["m-1", "m-1"]
        assert await first_ids(poll(server.url, "token", place), 1) == ["m-1"]
    # The first poll of a client is answered at once: then the client is connected.
    assert server.targets == ["/poll?wait=0", "/poll?cursor=k.1", "/poll?cursor=k.1&wait=0"]
    assert len(gaps) == 3
