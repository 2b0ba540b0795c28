"""What the doctor says of nodes, of which one answers as no gateway does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from pydantic import SecretStr

from pushgate.doctor import nodes as module
from pushgate.doctor.finding import Severity
from pushgate.doctor.nodes import check_nodes
from pushgate.settings import DoctorSettings
from registry.directory import Node
from registry.message import NODE_HEADER

pytestmark = pytest.mark.anyio

NODES = [Node(f"gw-{n}", "e1", f"127.0.0.1:808{n}") for n in (1, 2)]


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"status": 1}'])
async def test_a_node_whose_readiness_is_none_hides_no_other_node(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/readyz":
            is_odd = request.url.port == 8081
            return httpx.Response(200, content=body if is_odd else b'{"status": "ready"}')
        return httpx.Response(200, json={"node": request.headers[NODE_HEADER], "epoch": "e1"})

    @asynccontextmanager
    async def http_client(*_: object, **__: object) -> AsyncIterator[httpx.AsyncClient]:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
            yield http

    async def live_nodes(_: object) -> list[Node]:
        return NODES

    monkeypatch.setattr(module, "http_client", http_client)
    monkeypatch.setattr(module, "_live_nodes", live_nodes)
    settings = DoctorSettings(internal_secret=SecretStr("s" * 32))
    well, odd = await check_nodes(settings, clock=lambda: 0.0, wall=lambda: 0.0)
    assert "1 of 2 answer, with the right secret: gw-2" in well.what
    assert odd.severity is Severity.FAULT
    assert "node gw-1 at 127.0.0.1:8081: /readyz answers 200, and nothing that" in odd.what
