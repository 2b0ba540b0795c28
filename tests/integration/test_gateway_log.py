"""A gateway's log at its most talkative, and what its metrics say of refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.clients import bearer, connect, eventually, head, pusher_to, request, wire_to
from tests.support.processes import GatewayProcess
from tests.support.valkey import RedisServer

pytestmark = pytest.mark.anyio

HEAD_SECONDS = 1.0


@pytest.fixture(scope="module")
def gateway(valkey: RedisServer) -> Iterator[GatewayProcess]:
    """Give a gateway that logs everything, as JSON."""
    settings = {"log_level": "debug", "log_json": True, "head_seconds": HEAD_SECONDS}
    with GatewayProcess("log", redis_url=valkey.url, **settings) as process:
        yield process


def lines(gateway: GatewayProcess, **fields: object) -> list[dict[str, Any]]:
    """Return the lines with these fields, in order."""
    told = [json.loads(line) for line in gateway.log.splitlines()]
    return [line for line in told if fields.items() <= line.items()]


@pytest.mark.parametrize("transport", ["ws-v1", "sse", "poll"])
async def test_the_id_in_the_listing_ties_a_connections_lines_together(
    gateway: GatewayProcess, transport: str
) -> None:
    user = f"alice-{transport}"
    async with connect(transport, gateway.port, user), pusher_to(gateway.internal_port) as pusher:
        [listed] = (await pusher.http.get(f"/connections/{user}")).json()["connections"]
        assert (await pusher.http.delete(f"/connections/{user}")).json() == {"closed": 1}

        def told() -> list[str]:
            return [line["event"] for line in lines(gateway, connection=listed["id"])]

        await eventually(lambda: "connection is forgotten" in told(), "its end is logged")
    assert told() == ["connection is held", "connection is released", "connection is forgotten"]
    [held] = lines(gateway, event="connection is held", user=user)
    assert held["transport"] == listed["transport"]
    [released] = lines(gateway, event="connection is released", connection=listed["id"])
    assert released["reason"] == "disconnected"


REFUSALS = [
    ("public", "GET", "/ws", {}, 401, "no token"),
    ("public", "GET", "/sse", {"Authorization": "Bearer x"}, 401, "token refused: not a JWT"),
    ("public", "GET", "/poll", bearer("u", ttl_seconds=-5), 401, "token refused: expired"),
    ("public", "GET", "/poll?wait=alice", bearer("u", ttl_seconds=86_400), 400, "wait is"),
    ("public", "GET", "/sse", {"Origin": "https://x.test"}, 403, "this origin is not allowed"),
    ("public", "POST", "/ws", {}, 405, "GET is what connects"),
    ("public", "GET", "/nowhere", {}, 404, "Not Found"),
    ("public", "GET", "/ws", {f"x-{n}": "" for n in range(120)}, 431, "the request has too many"),
    ("internal", "GET", "/connections", {}, 401, "send the internal secret"),
    ("internal", "POST", "/push/u", {"Authorization": "Bearer x"}, 403, "neither the internal"),
]


@pytest.mark.parametrize(("port", "method", "path", "fields", "status", "reason"), REFUSALS)
async def test_a_refusal_is_counted_and_logged_by_its_reason(
    gateway: GatewayProcess,
    port: str,
    method: str,
    path: str,
    fields: dict[str, str],
    status: int,
    reason: str,
) -> None:
    number = gateway.port if port == "public" else gateway.internal_port
    async with pusher_to(gateway.internal_port) as pusher:
        before = await refused(pusher.http, port, status, reason)
        assert (await request(number, method, path, fields)).status == status
        assert await refused(pusher.http, port, status, reason) == before + 1
    told = lines(gateway, event="request is refused", port=port, status=status)
    assert any(line["reason"].startswith(reason) for line in told)


async def test_a_socket_that_is_cut_off_without_an_answer_is_counted(
    gateway: GatewayProcess,
) -> None:
    sample = 'pushgate_gateway_cut_off_total{port="public",reason="late"}'
    async with pusher_to(gateway.internal_port) as pusher, wire_to(gateway.port) as wire:
        before = await value(pusher.http, sample)
        await wire.send(head("GET", "/ws")[:10])
        await wire.ended()
        assert await value(pusher.http, sample) == before + 1


async def refused(http: Any, port: str, status: int, reason: str) -> float:
    name = f'pushgate_gateway_refused_total{{port="{port}",reason="{reason}'
    return await value(http, name, f'status="{status}"}}')


async def value(http: Any, *parts: str) -> float:
    """Return the sum of the samples with all parts in their names."""
    samples = [line for line in (await http.get("/metrics")).text.splitlines() if line[:1] != "#"]
    return sum(float(s.rpartition(" ")[2]) for s in samples if all(part in s for part in parts))
