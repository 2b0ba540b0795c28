"""Gateways behind HAProxy and nginx, with the configurations that deploy/ ships."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import pytest
from aiokafka import AIOKafkaProducer

from tests.support.balancer import Balanced, Balancer
from tests.support.clients import (
    TRANSPORTS,
    Wire,
    bearer,
    connect,
    eventually,
    head,
    open_sse,
    open_websocket,
    pusher_to,
)
from tests.support.haproxy import haproxy
from tests.support.nginx import judged, nginx, rendered
from tests.support.processes import GatewayProcess, http_status
from tests.system.conftest import StartGateway, StartProcessor
from tests.system.steps import publish_all, take

pytestmark = pytest.mark.anyio

#: Runs a balancer in front of two gateways.
Between = Callable[[Balanced, Balanced], AbstractContextManager[Balancer]]
BALANCERS: Final[dict[str, Between]] = {"haproxy": haproxy, "nginx": nginx}
#: The same, which tells gateways the addresses of clients.
TELLING: Final[dict[str, Between]] = {
    "haproxy, version 2": partial(haproxy, send_proxy=True),
    "nginx, version 1": partial(nginx, send_proxy=True),
}


@pytest.fixture(params=list(BALANCERS.values()), ids=list(BALANCERS))
def between(request: pytest.FixtureRequest) -> Between:
    kind: Between = request.param
    return kind


@pytest.fixture(params=list(TELLING.values()), ids=list(TELLING))
def telling(request: pytest.FixtureRequest) -> Between:
    kind: Between = request.param
    return kind


async def count_on(gateway: GatewayProcess) -> int:
    """Give how many connections a gateway holds."""
    async with pusher_to(gateway.internal_port) as pusher:
        text = (await pusher.http.get("/metrics")).text
    prefix = "pushgate_gateway_connections{"
    return sum(int(float(x.split()[-1])) for x in text.splitlines() if x.startswith(prefix))


async def test_clients_on_every_transport_get_their_messages_through_it(
    between: Between,
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    a, b = start_gateway(), start_gateway()
    start_processor()
    with between(a, b) as balancer:
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(connect(transport, balancer.port, user))
                for transport in TRANSPORTS * 2
            ]
            assert await count_on(a) > 0
            assert await count_on(b) > 0
            await publish_all(backend, topic, user, ["1", "2", "3"])
            for client in clients:
                assert [m.payload for m in await take(client, 3)] == [b"1", b"2", b"3"]


async def test_a_gateway_that_drains_is_taken_out_and_its_clients_go_to_the_other(
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    a, b = start_gateway(), start_gateway()
    start_processor()
    with haproxy(a, b) as balancer:
        async with AsyncExitStack() as stack:
            users = [f"{user}-{number}" for number in range(4)]
            clients = [
                await stack.enter_async_context(connect("ws-v1", balancer.port, name))
                for name in users
            ]
            assert (await count_on(a), await count_on(b)) == (2, 2)
            a.signal(signal.SIGTERM)
            ends = [asyncio.create_task(client.ended(timeout=20.0)) for client in clients]
            for end in ends:
                stack.callback(end.cancel)
            await eventually(
                lambda: sum(end.done() for end in ends) == 2,
                "a's clients are told to go",
                timeout_seconds=10.0,
            )
            sent_away = [name for name, end in zip(users, ends, strict=True) if end.done()]
            assert [end.result().code for end in ends if end.done()] == [1001, 1001]
            # Until HAProxy has asked twice, a still gets new clients, and refuses them.
            assert await asyncio.to_thread(a.wait, 10.0) == 0
            again = [
                await stack.enter_async_context(connect("ws-v1", balancer.port, name))
                for name in sent_away
            ]
            assert await count_on(b) == 4
            for name, client in zip(sent_away, again, strict=True):
                await publish_all(backend, topic, name, ["after"])
                assert (await take(client, 1))[0].payload == b"after"
        await eventually(
            lambda: http_status(balancer.port, "/readyz") == 200, "the other one answers"
        )


@asynccontextmanager
async def wire_from(address: str, port: int) -> AsyncIterator[Wire]:
    """Connect from one of this machine's loopback addresses."""
    wire = Wire(*await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0)))
    try:
        yield wire
    finally:
        await wire.close()


async def test_gateways_see_the_clients_behind_it_and_not_its_own_address(
    start_gateway: StartGateway, telling: Between, user: str
) -> None:
    gateway = start_gateway(proxy_protocol_from="127.0.0.1/32", max_connections_per_address=1)
    async with AsyncExitStack() as stack:
        # One gateway in both places: each would take one client of an address.
        port = stack.enter_context(telling(gateway, gateway)).port
        pusher = await stack.enter_async_context(pusher_to(gateway.internal_port))
        first, again, other, spoofing = [
            await stack.enter_async_context(wire_from(address, port))
            for address in ("127.0.0.9", "127.0.0.9", "127.0.0.10", "127.0.0.11")
        ]
        websocket = await open_websocket(first, bearer(user))
        await again.send(head("GET", "/poll?wait=0", bearer(f"{user}-again")))
        assert (await again.answer()).status == 503
        stream = await open_sse(other, bearer(f"{user}-other"))
        await spoofing.send(b"PROXY TCP4 203.0.113.7 192.0.2.1 40000 8080\r\n")
        assert (await spoofing.answer()).status == 400
        for client, name in ((websocket, user), (stream, f"{user}-other")):
            await pusher.push_one(name, b"through it")
            assert (await client.message()).payload == b"through it"


async def test_a_reload_keeps_clients_and_refuses_none(
    start_gateway: StartGateway, telling: Between, user: str
) -> None:
    trusting = {"proxy_protocol_from": "127.0.0.1/32"}
    a, b, c = (start_gateway(**trusting) for _ in range(3))
    with telling(a, b) as balancer:
        async with AsyncExitStack() as stack:
            old = [
                await stack.enter_async_context(connect("ws-v1", balancer.port, f"{user}-{n}"))
                for n in range(2)
            ]
            assert (await count_on(a), await count_on(b)) == (1, 1)
            statuses: list[int] = []
            asking = asyncio.create_task(ask_on(balancer.port, statuses))
            stack.callback(asking.cancel)
            await eventually(lambda: len(statuses) > 10, "requests before the reload")
            await asyncio.to_thread(balancer.reload, a, c)
            asked = len(statuses)
            new = [
                await stack.enter_async_context(connect("ws-v1", balancer.port, f"{user}-{n}"))
                for n in range(2, 8)
            ]
            await eventually(lambda: len(statuses) > asked + 10, "requests after the reload")
            assert set(statuses) == {200}
            assert await count_on(b) == 1
            assert await count_on(c) > 0
            for number, client in enumerate([*old, *new]):
                await push_to(f"{user}-{number}", b"after", a, b, c)
                assert (await client.message()).payload == b"after"


async def ask_on(port: int, statuses: list[int]) -> None:
    """Ask for `/healthz` over and over, each time on a connection of its own."""
    while True:
        statuses.append(await asyncio.to_thread(http_status, port, "/healthz"))


async def push_to(user: str, payload: bytes, *gateways: GatewayProcess) -> None:
    """Push to a user on whichever gateway has the user."""
    for gateway in gateways:
        async with pusher_to(gateway.internal_port) as pusher:
            await pusher.push([{"user": user, "data": payload}], packed=True)


async def test_nginx_passes_a_gateway_by_that_is_gone(
    start_gateway: StartGateway, user: str
) -> None:
    a, b = start_gateway(), start_gateway()
    with nginx(a, b) as balancer:
        b.kill()
        async with AsyncExitStack() as stack:
            for number in range(4):
                await stack.enter_async_context(connect("ws-v1", balancer.port, f"{user}-{number}"))
            assert await count_on(a) == 4


def test_nginx_sends_version_1_alone(tmp_path: Path) -> None:
    """When this fails, nginx has learnt version 2: say so in deploy/nginx/README.md."""
    variables = {
        "PUSHGATE_NGINX_BIND": "127.0.0.1:8080",
        "PUSHGATE_GATEWAY_A": "127.0.0.1:8180",
        "PUSHGATE_GATEWAY_B": "127.0.0.1:8280",
    }
    file, pid_file = tmp_path / "nginx.conf", str(tmp_path / "pid")
    for setting in ("on", "off"):
        file.write_text(rendered(pid_file, **variables, PUSHGATE_NGINX_PROXY_PROTOCOL=setting))
        assert "syntax is ok" in judged(file)
    setting = "on; proxy_protocol_version 2"
    file.write_text(rendered(pid_file, **variables, PUSHGATE_NGINX_PROXY_PROTOCOL=setting))
    assert 'unknown directive "proxy_protocol_version"' in judged(file)
