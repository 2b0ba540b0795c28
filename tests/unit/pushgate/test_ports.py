"""What tools make of the answers at internal ports, of nodes and of other servers."""

from __future__ import annotations

import httpx
import msgspec
import pytest

from pushgate.ports import NoAnswer, Ports
from registry.calls import GatewayCalls
from registry.directory import Node

pytestmark = pytest.mark.anyio

NODE = Node("gw-1", "e1", "127.0.0.1:8081")


class Shape(msgspec.Struct):
    total: int


async def ask(answer: httpx.Response) -> Shape:
    calls = GatewayCalls(secret="s" * 32)
    async with httpx.AsyncClient(transport=httpx.MockTransport(lambda _: answer)) as http:
        return await Ports(calls, http).ask("GET", NODE, "/connections/u", Shape)


async def test_an_answer_has_the_shape_that_was_asked_for() -> None:
    assert await ask(httpx.Response(200, json={"total": 2, "more": True})) == Shape(2)


@pytest.mark.parametrize("body", [b"{}", b"[]", b"<html>", b"\xff"])
async def test_an_answer_of_another_shape_is_none(body: bytes) -> None:
    with pytest.raises(NoAnswer, match=r"gw-1 at .*: another answer than expected") as raised:
        await ask(httpx.Response(200, content=body))
    assert raised.value.status is None


async def test_no_refusal_takes_the_terminal_over() -> None:
    with pytest.raises(NoAnswer) as raised:
        await ask(httpx.Response(503, content=b"full\x1b[2J\nready"))
    assert raised.value.reason == "answers 503, full\ufffd[2J\ufffdready"
    assert str(raised.value) == f"gw-1 at 127.0.0.1:8081: {raised.value.reason}"
