"""RFC 6455 as a client sees it, on a raw socket."""

import struct

import pytest

from tests.support.clients import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    Ended,
    Pusher,
    SseClient,
    WebSocketClient,
    Wire,
    bearer,
    close_frame,
    connect,
    eventually,
    frame,
    head,
    open_websocket,
    upgrade_headers,
    wire_to,
)
from tests.support.processes import GatewayProcess

pytestmark = pytest.mark.anyio


async def opened(wire: Wire, user: str) -> WebSocketClient:
    return await open_websocket(wire, bearer(user))


async def test_a_ping_is_answered_with_its_payload(gateway: GatewayProcess, user: str) -> None:
    async with wire_to(gateway.port) as wire:
        client = await opened(wire, user)
        for payload in (b"", b"are you there", b"\xff" * 125):
            await wire.send(frame(PING, payload))
            assert (await client.frame())[:2] == (PONG, payload)


async def test_frames_may_come_byte_by_byte(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    async with wire_to(gateway.port) as wire:
        client = await opened(wire, user)
        for byte in frame(TEXT, b"ignored") + frame(PONG) + frame(PING, b"slowly"):
            await wire.send(bytes([byte]))
            await pusher.push_one(user, b"between")  # a round trip: the bytes come one by one
            assert (await client.frame())[1] in (b"between", b"slowly")
        await pusher.push_one(user, b"after")
        payloads = [(await client.frame())[1] for _ in range(2)]
        assert payloads[-1] == b"after"


async def test_a_request_may_come_byte_by_byte(gateway: GatewayProcess, user: str) -> None:
    raw = head("GET", "/ws", {**upgrade_headers(), **bearer(user)}) + frame(PING, b"with it")
    async with wire_to(gateway.port) as wire:
        for byte in raw:
            await wire.send(bytes([byte]))
        answer = await wire.answer()
        assert answer.status == 101
        assert (await WebSocketClient(wire, answer).frame())[:2] == (PONG, b"with it")


async def test_a_message_in_fragments_with_a_ping_between_is_taken(
    gateway: GatewayProcess, user: str
) -> None:
    async with wire_to(gateway.port) as wire:
        client = await opened(wire, user)
        await wire.send(frame(TEXT, b"one ", fin=False))
        await wire.send(frame(PING, b"between"))
        assert (await client.frame())[:2] == (PONG, b"between")
        await wire.send(frame(0x0, b"two ", fin=False) + frame(0x0, b"three"))
        await wire.send(frame(PING, b"after"))
        assert (await client.frame())[:2] == (PONG, b"after")


async def test_what_clients_send_is_ignored(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    async with wire_to(gateway.port) as wire:
        client = await opened(wire, user)
        await wire.send(frame(TEXT, b"hello") + frame(BINARY, b"\xff") + frame(TEXT))
        await pusher.push_one(user, b"still here")
        assert (await client.message()).payload == b"still here"


async def test_frames_in_the_segment_of_the_handshake_are_not_lost(
    gateway: GatewayProcess, user: str
) -> None:
    async with wire_to(gateway.port) as wire:
        follow = frame(TEXT, b"ignored") + frame(PING, b"early")
        client = await open_websocket(wire, bearer(user), follow=follow)
        assert (await client.frame())[:2] == (PONG, b"early")


async def test_half_a_frame_in_the_segment_of_the_handshake_is_not_lost(
    gateway: GatewayProcess, user: str
) -> None:
    ping = frame(PING, b"halved")
    async with wire_to(gateway.port) as wire:
        client = await open_websocket(wire, bearer(user), follow=ping[:5])
        await wire.send(ping[5:])
        assert (await client.frame())[:2] == (PONG, b"halved")


async def test_a_close_in_the_segment_of_the_handshake_comes_after_the_101(
    gateway: GatewayProcess, user: str
) -> None:
    async with wire_to(gateway.port) as wire:
        client = await open_websocket(wire, bearer(user), follow=close_frame(1000))
        assert (await client.frame())[:2] == (CLOSE, struct.pack("!H", 1000))
        await wire.ended()


async def test_a_protocol_error_in_the_segment_of_the_handshake_comes_after_the_101(
    gateway: GatewayProcess, user: str
) -> None:
    async with wire_to(gateway.port) as wire:
        follow = frame(TEXT, b"not masked", mask=False)
        client = await open_websocket(wire, bearer(user), follow=follow)
        opcode, payload, _ = await client.frame()
        assert (opcode, payload[:2]) == (CLOSE, struct.pack("!H", 1002))
        await wire.ended()


@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999])
async def test_a_close_is_echoed_and_the_socket_ends(
    gateway: GatewayProcess, user: str, code: int
) -> None:
    async with wire_to(gateway.port) as wire:
        client = await opened(wire, user)
        await wire.send(close_frame(code, "bye"))
        opcode, payload, _ = await client.frame()
        assert (opcode, payload[:2]) == (CLOSE, struct.pack("!H", code))
        await wire.ended()


async def test_a_close_without_a_code_is_answered(gateway: GatewayProcess, user: str) -> None:
    async with wire_to(gateway.port) as wire:
        client = await opened(wire, user)
        await wire.send(frame(CLOSE))
        assert (await client.frame())[0] == CLOSE
        await wire.ended()


async def test_nothing_is_pushed_to_a_client_that_has_closed(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    async with wire_to(gateway.port) as wire:
        client = await opened(wire, user)
        await wire.send(close_frame(1000))
        assert (await client.frame())[0] == CLOSE
        await wire.ended()
        assert await pusher.push([{"user": user, "data": "late"}]) == [0]


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        pytest.param(frame(TEXT, b"x", mask=False), 1002, id="unmasked"),
        pytest.param(b"\xc1\x80abcd", 1002, id="rsv1-not-negotiated"),
        pytest.param(frame(0x3, b"x"), 1002, id="reserved-opcode"),
        pytest.param(frame(0x0, b"x"), 1002, id="continuation-of-nothing"),
        pytest.param(frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"), 1002, id="interleaved"),
        pytest.param(frame(PING, b"x", fin=False), 1002, id="fragmented-ping"),
        pytest.param(frame(PING, b"x" * 126), 1002, id="long-ping"),
        pytest.param(frame(CLOSE, b"x"), 1002, id="close-of-one-byte"),
        pytest.param(close_frame(1005), 1002, id="close-code-1005"),
        pytest.param(frame(BINARY, b"x" * 65_537), 1009, id="too-big"),
        pytest.param(
            frame(BINARY, b"x" * 40_000, fin=False) + frame(0x0, b"x" * 40_000),
            1009,
            id="too-big-in-fragments",
        ),
        pytest.param(b"\x82\xff" + b"\x7f" + b"\xff" * 7 + b"mask", 1009, id="claims-8-EiB"),
        pytest.param(b"\x82\xfe\x00\x7d" + bytes(4 + 125), 1002, id="2-bytes-for-a-length-of-125"),
        pytest.param(b"\x82\xff" + bytes(6) + b"\xff\xff", 1002, id="8-bytes-for-65535"),
        pytest.param(b"\x89\xfe\x00\x00" + bytes(4), 1002, id="2-bytes-for-an-empty-ping"),
    ],
)
async def test_a_protocol_error_closes_with_its_code(
    gateway: GatewayProcess, user: str, sent: bytes, code: int
) -> None:
    async with wire_to(gateway.port) as wire:
        client = await opened(wire, user)
        await wire.send(sent)
        opcode, payload, _ = await client.frame()
        assert (opcode, payload[:2]) == (CLOSE, struct.pack("!H", code))
        await wire.ended()


async def test_a_client_that_vanishes_without_a_close_is_let_go(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    async with connect("ws-plain", gateway.port, user):
        assert await pusher.push([{"user": user, "data": "x"}]) == [1]

    async def gone() -> bool:
        return bool(await pusher.push([{"user": user, "data": "x"}]) == [0])

    await eventually(gone, "the user is not here any more")


async def test_an_event_stream_ignores_what_follows_its_request(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    async with connect("sse", gateway.port, user) as client:
        await client.wire.send(b"GET /poll HTTP/1.1\r\n\r\n" + b"\xff" * 100_000)
        await pusher.push_one(user, b"still here")
        assert (await client.message()).payload == b"still here"


async def test_an_event_stream_ignores_what_is_in_the_segment_of_its_request(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    for follow in (head("GET", "/healthz"), b"GET /hea", b"\xff" * 100):
        async with wire_to(gateway.port) as wire:
            await wire.send(head("GET", "/sse", bearer(user)) + follow)
            stream = SseClient(wire, await wire.answer(bodiless=True))
            assert stream.answer.status == 200
            await pusher.push_one(user, b"undisturbed")
            assert (await stream.message()).payload == b"undisturbed"
            await wire.close()


async def test_a_closed_websocket_says_ended(gateway: GatewayProcess, user: str) -> None:
    async with wire_to(gateway.port) as wire:
        client = await opened(wire, user)
        await wire.send(close_frame(1000))
        with pytest.raises(Ended, match="1000"):
            await client.message()
