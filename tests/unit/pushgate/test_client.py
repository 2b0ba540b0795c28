"""The client of `pushgate listen` reads an event stream however it is cut."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import httpx
import pytest

from pushgate.client import Message, sse

pytestmark = pytest.mark.anyio

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


@asynccontextmanager
async def serving(*chunks: bytes) -> AsyncIterator[str]:
    """Answer every request with the chunks, each a segment of its own, and then the end."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for chunk in chunks:
            writer.write(chunk)
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()


async def received(*chunks: bytes) -> list[Message]:
    async with serving(HEAD, *chunks) as url, asyncio.timeout(10):
        return [message async for message in sse(url, "token")]


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


async def test_a_refusal_is_raised_with_its_status() -> None:
    refusal = b"HTTP/1.1 401 X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    async with serving(refusal) as url:
        with pytest.raises(httpx.HTTPStatusError) as caught:
            await anext(sse(url, "token"))
    assert caught.value.response.status_code == 401


async def test_a_heartbeat_is_no_message_with_an_id_or_without() -> None:
    assert await received(
        b"event: pushgate.cursor\ndata: 25000\n\n",
        b"id: m-1\ndata: one\n\n",
        b"event: pushgate.cursor\nid: c\ndata: 25000\n\n",
    ) == [message("one")]
