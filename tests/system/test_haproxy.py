"""Two gateways behind HAProxy, with the configuration that deploy/haproxy ships."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

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
from tests.support.haproxy import CONFIGURATION, haproxy
from tests.support.processes import GatewayProcess, http_status
from tests.system.conftest import StartGateway, StartProcessor
from tests.system.steps import publish_all, take

pytestmark = pytest.mark.anyio


async def count_on(gateway: GatewayProcess) -> int:
    """Give how many connections a gateway holds."""
    async with pusher_to(gateway.internal_port) as pusher:
        text = (await pusher.http.get("/metrics")).text
    prefix = "pushgate_gateway_connections{"
    return sum(int(float(x.split()[-1])) for x in text.splitlines() if x.startswith(prefix))


async def test_clients_on_every_transport_get_their_messages_through_it(
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    a, b = start_gateway(), start_gateway()
    start_processor()
    with haproxy(a, b) as port:
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(connect(transport, port, user))
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
    with haproxy(a, b) as port:
        async with AsyncExitStack() as stack:
            users = [f"{user}-{number}" for number in range(4)]
            clients = [
                await stack.enter_async_context(connect("ws-v1", port, name)) for name in users
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
                await stack.enter_async_context(connect("ws-v1", port, name)) for name in sent_away
            ]
            assert await count_on(b) == 4
            for name, client in zip(sent_away, again, strict=True):
                await publish_all(backend, topic, name, ["after"])
                assert (await take(client, 1))[0].payload == b"after"
        await eventually(lambda: http_status(port, "/readyz") == 200, "the other one answers")


@pytest.fixture(params=["send-proxy-v2", "send-proxy"])
def sending(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Give the configuration that is shipped, and the same with the protocol's version 1."""
    text = CONFIGURATION.read_text()
    assert text.count("default-server send-proxy-v2\n") == 1
    changed = tmp_path / "haproxy.cfg"
    changed.write_text(text.replace("send-proxy-v2\n", f"{request.param}\n"))
    return changed


@asynccontextmanager
async def wire_from(address: str, port: int) -> AsyncIterator[Wire]:
    """Connect from one of this machine's loopback addresses."""
    wire = Wire(*await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0)))
    try:
        yield wire
    finally:
        await wire.close()


async def test_gateways_see_the_clients_behind_it_and_not_its_own_address(
    start_gateway: StartGateway, sending: Path, user: str
) -> None:
    gateway = start_gateway(proxy_protocol_from="127.0.0.1/32", max_connections_per_address=1)
    async with AsyncExitStack() as stack:
        # One gateway in both places: each would take one client of an address.
        port = stack.enter_context(
            haproxy(gateway, gateway, configuration=sending, send_proxy=True)
        )
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
