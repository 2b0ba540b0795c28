"""What was published is what arrives: bytes, id, type and order, on every transport."""

import json

import pytest

from tests.support.clients import Message, Pusher, connect
from tests.support.processes import GatewayProcess

pytestmark = pytest.mark.anyio

TEXTS = {
    "empty": "",
    "space": " ",
    "leading-space": "  two spaces",
    "cr": "a\rb",
    "lf": "a\nb",
    "crlf": "a\r\nb",
    "only-line-ends": "\n\n\r\r\n",
    "ends-in-lf": "a\n",
    "starts-with-lf": "\na",
    "nul": "a\x00b",
    "controls": "".join(map(chr, range(1, 32))) + "\x7f\x85",
    "line-separators": "a\u2028b\u2029c\x0b\x0c\x1c\x1d\x1e\x85d",
    "bom": "\ufeffa",
    "emoji": "👩‍👩‍👧‍👦 é ß 漢字 \U0010ffff",
    "quotes": """"'`\\" \\u0041 \\n""",
    "script": "</script><!--",
    "injected-event": "data: x\n\nevent: y\ndata: z\n\nid: 7\nretry: 1\n\n: comment",
    "json": '{"id": "other", "control": "x", "data": null}',
    "colon": ": not a comment",
    "64-KiB": "x" * 65_536,
    "64-KiB-of-line-ends": "\n" * 65_536,
    "64-KiB-of-quotes": '"' * 65_536,
}
BINARIES = {
    "no-utf-8": b"\xff\xfe\x00 \r\n",
    "lone-surrogate": "\ud800".encode(errors="surrogatepass"),
    "overlong": b"\xc0\xaf",
    "cut-off": "€".encode()[:2],
    "every-byte": bytes(range(256)),
    "64-KiB": b"\xff" * 65_536,
}


def expected_on(transport: str, payload: bytes) -> bytes:
    """Give what a transport carries of a text: SSE has lines, and CR and CRLF arrive as LF."""
    if transport == "sse":
        return payload.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return payload


@pytest.fixture(params=TEXTS)
def text(request: pytest.FixtureRequest) -> str:
    return TEXTS[request.param]


@pytest.fixture(params=BINARIES)
def binary(request: pytest.FixtureRequest) -> bytes:
    return BINARIES[request.param]


async def test_text_arrives_as_it_was_published_and_nothing_beside_it(
    gateway: GatewayProcess, pusher: Pusher, transport: str, user: str, text: str
) -> None:
    async with connect(transport, gateway.port, user) as client:
        await pusher.push_one(user, text.encode(), id="first")
        message = await client.message()
        # Only now: 64 KiB of line ends, as SSE's lines, are more than waits for one client.
        await pusher.push_one(user, b"next", id="second")
        assert message.payload == expected_on(transport, text.encode())
        assert not message.binary
        assert message.id in ("first", None)
        assert (await client.message()).payload == b"next"


async def test_text_pushed_as_json_is_the_text_pushed_as_messagepack(
    gateway: GatewayProcess, pusher: Pusher, transport: str, user: str, text: str
) -> None:
    async with connect(transport, gateway.port, user) as client:
        assert await pusher.push([{"user": user, "data": text}]) == [1]
        assert (await client.message()).payload == expected_on(transport, text.encode())


async def test_what_is_not_utf_8_arrives_byte_for_byte_and_marked(
    gateway: GatewayProcess, pusher: Pusher, transport: str, user: str, binary: bytes
) -> None:
    async with connect(transport, gateway.port, user) as client:
        await pusher.push_one(user, binary, id="b", type="photo")
        await pusher.push_one(user, b"next")
        message = await client.message()
        assert message.payload == binary
        assert message.binary
        if transport != "ws-plain":
            assert (message.id, message.type) == ("b", "photo")
        assert (await client.message()).payload == b"next"


async def test_json_data_is_one_parse_away_everywhere(
    gateway: GatewayProcess, pusher: Pusher, transport: str, user: str
) -> None:
    document = {"a": [1, "zwei", None, {"b": "</script>\u2028"}]}
    async with connect(transport, gateway.port, user) as client:
        await pusher.push_one(user, json.dumps(document).encode())
        assert json.loads((await client.message()).payload) == document


@pytest.mark.parametrize("message_id", ["7", "topic-3-42", "a/b:c{}\"'", "x" * 128, "ü-漢"])
@pytest.mark.parametrize("event_type", [None, "chat", "a b: c", "漢", "x" * 128, "message"])
async def test_id_and_type_arrive_as_given(
    gateway: GatewayProcess, pusher: Pusher, message_id: str, event_type: str | None, user: str
) -> None:
    fields = {"type": event_type} if event_type is not None else {}
    for transport in ("ws-v1", "sse", "poll"):
        name = f"{user}-{transport}"  # to one user, an id comes once
        async with connect(transport, gateway.port, name) as client:
            await pusher.push_one(name, b"x", id=message_id, **fields)
            message = await client.message()
            assert (message.id, message.type) == (message_id, event_type)


async def test_messages_without_id_get_one_each(
    gateway: GatewayProcess, pusher: Pusher, transport: str, user: str
) -> None:
    if transport == "ws-plain":
        return
    async with connect(transport, gateway.port, user) as client:
        await pusher.push([{"user": user, "data": "a"}, {"user": user, "data": "b"}])
        ids = {(await client.message()).id, (await client.message()).id}
        assert len(ids - {None, ""}) == 2


async def test_sse_has_no_event_line_without_a_type(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    async with connect("sse", gateway.port, user) as client:
        await pusher.push_one(user, b"x")
        assert b"event:" not in (await client.message()).raw


async def test_a_thousand_messages_arrive_in_order(
    gateway: GatewayProcess, pusher: Pusher, transport: str, user: str
) -> None:
    texts = [f"{number}".encode() for number in range(1_000)]
    async with connect(transport, gateway.port, user) as client:
        batch = [{"user": user, "data": text, "id": text.decode()} for text in texts]
        assert await pusher.push(batch, packed=True) == [1] * 1_000
        messages: list[Message] = [await client.message() for _ in texts]
    assert [message.payload for message in messages] == texts
    assert [m.id for m in messages] in ([None] * 1_000, [text.decode() for text in texts])


async def test_messages_of_many_batches_arrive_in_order(
    gateway: GatewayProcess, pusher: Pusher, transport: str, user: str
) -> None:
    async with connect(transport, gateway.port, user) as client:
        for number in range(100):
            await pusher.push_one(user, b"%d" % number)
        got = [(await client.message()).payload for _ in range(100)]
    assert got == [b"%d" % number for number in range(100)]


async def test_raw_plain_frame_is_header_and_payload_alone(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    async with connect("ws-plain", gateway.port, user) as client:
        await pusher.push_one(user, b"hi", id="unseen", type="unseen")
        assert (await client.message()).raw == b"\x81\x02hi"
