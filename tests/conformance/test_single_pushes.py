"""Single pushes on one connection: answered with ASGI or without, and always in order."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.clients import connect, head, wire_to
from tests.support.processes import INTERNAL_SECRET, GatewayProcess

pytestmark = pytest.mark.anyio

Start = Callable[..., GatewayProcess]
SECRET = {"Authorization": f"Bearer {INTERNAL_SECRET}"}
CHUNKED = b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"


def push(user: str, body: bytes, **fields: str) -> bytes:
    named = {name.replace("_", "-"): value for name, value in fields.items()}
    length = {"Content-Length": str(len(body))}
    return head("POST", f"/push/{user}", {**SECRET, **length, **named}) + body


async def test_pipelined_pushes_are_answered_and_arrive_in_order(
    gateway: GatewayProcess, user: str
) -> None:
    async with connect("ws-plain", gateway.port, user) as client:
        async with wire_to(gateway.internal_port) as wire:
            count = 12
            await wire.send(b"".join(push(user, b"%d" % number) for number in range(count)))
            for _ in range(count):
                answer = await wire.answer()
                assert (answer.status, answer.body) == (200, b"delivered to 1\n")
                assert "text/plain" in answer.headers["content-type"]
        payloads = [(await client.message()).payload for _ in range(count)]
    assert payloads == [b"%d" % number for number in range(count)]


async def test_a_push_in_pieces_is_one_message(gateway: GatewayProcess, user: str) -> None:
    async with connect("ws-plain", gateway.port, user) as client:
        async with wire_to(gateway.internal_port) as wire:
            request = push(user, b"x" * 3_000)
            for start in range(0, len(request), 700):
                await wire.send(request[start : start + 700])
            assert (await wire.answer()).status == 200
        assert (await client.message()).payload == b"x" * 3_000


async def test_a_head_that_begins_behind_an_answer_has_its_time_and_no_more(
    start_gateway: Start, user: str
) -> None:
    gateway = start_gateway(head_seconds=1.0)
    async with wire_to(gateway.internal_port) as wire:
        await wire.send(push(user, b"x") + b"POST /push/")
        assert (await wire.answer()).status == 404
        await wire.ended()


async def test_requests_of_all_kinds_are_answered_in_their_order(
    gateway: GatewayProcess, user: str
) -> None:
    async with (
        connect("ws-plain", gateway.port, user),
        wire_to(gateway.internal_port) as wire,
    ):
        here, batch = f"/push/{user}", b'[{"user":"nobody","data":"x"}]'
        json = {**SECRET, "Content-Length": str(len(batch)), "Content-Type": "application/json"}
        chunked = {**SECRET, "Transfer-Encoding": "chunked"}
        requests = [
            (push(user, b"1"), 200),
            (head("GET", here, SECRET), 200),
            (push("nobody-" + user, b"2"), 404),
            (head("POST", "/push", json) + batch, 200),
            (push(user, b"3"), 200),
            (push(user, b"x" * 65_537), 413),
        ]
        await wire.send(b"".join(request for request, _ in requests))
        for _, status in requests:
            assert (await wire.answer()).status == status
    async with (
        connect("ws-plain", gateway.port, user) as client,
        wire_to(gateway.internal_port) as wire,
    ):
        requests = [
            (push(user, b"a"), 200),
            (head("POST", here, chunked) + CHUNKED, 200),
            (push(user, b"b", Push_Id="not an id"), 400),
            (push(user, b"b", Push_Device="none"), 404),
            (push(user, b"b", Pushgate_Node="another"), 421),
            (push(user, b"b", Authorization="Bearer wrong"), 403),
            (push("%FF", b"b"), 400),
            (push(user, b"c", Push_Id="i"), 200),
            (push(user, b"c", Push_Id="i"), 200),
            (push(user, b"d", Connection="close"), 200),
            (push(user, b"behind the last answer"), 0),
        ]
        await wire.send(b"".join(request for request, _ in requests[:4]))
        for _, status in requests[:4]:
            assert (await wire.answer()).status == status
        for request, status in requests[4:-2]:
            await wire.send(request)
            assert (await wire.answer()).status == status
        await wire.send(requests[-2][0] + requests[-1][0])
        answer = await wire.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        await wire.ended()
        for payload in (b"a", b"abcde", b"c", b"d"):
            assert (await client.message()).payload == payload
