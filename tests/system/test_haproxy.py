"""Two gateways behind HAProxy, with the configuration that deploy/haproxy ships."""

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
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
from tests.support.processes import GatewayProcess, free_port, http_status, wait_until
from tests.system.conftest import StartGateway, StartProcessor
from tests.system.steps import publish_all, take

pytestmark = pytest.mark.anyio

CONFIGURATION = Path(__file__).parents[2] / "deploy/haproxy/haproxy.cfg"


@contextmanager
def haproxy(
    a: GatewayProcess,
    b: GatewayProcess,
    *,
    configuration: Path = CONFIGURATION,
    send_proxy: bool = False,
) -> Iterator[int]:
    """Run HAProxy in front of two gateways; gives its port once both are in."""
    binary = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
    if binary is None:
        assert os.environ.get("PUSHGATE_REQUIRE_HAPROXY") != "1", "haproxy is required and missing"
        pytest.skip("needs haproxy, which is not installed")
    port = free_port()
    env = {
        "PUSHGATE_HAPROXY_BIND": f"127.0.0.1:{port}",
        "PUSHGATE_GATEWAY_A": f"127.0.0.1:{a.port}",
        "PUSHGATE_GATEWAY_B": f"127.0.0.1:{b.port}",
        "PUSHGATE_GATEWAY_A_HEALTH": f"127.0.0.1:{a.internal_port}",
        "PUSHGATE_GATEWAY_B_HEALTH": f"127.0.0.1:{b.internal_port}",
    }
    if send_proxy:
        env["PUSHGATE_HAPROXY_SEND_PROXY_V2"] = "1"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [binary, "-db", "-f", str(configuration)],
            env=os.environ | env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_until(lambda: process.poll() is not None or _answers(port), "haproxy answers")
            assert process.poll() is None, "haproxy ended at its start"
            yield port
        except BaseException:
            log.seek(0)
            print(log.read().decode(errors="replace"))  # noqa: T201 - pytest shows it
            raise
        finally:
            process.kill()
            process.wait()


def _answers(port: int) -> bool:
    return http_status(port, "/readyz") == 200


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
            ends = await asyncio.gather(
                *(client.ended(timeout=1.0) for client in clients), return_exceptions=True
            )
            sent_away = [name for name, end in zip(users, ends, strict=True) if _went(end)]
            assert len(sent_away) == 2
            again = [
                await stack.enter_async_context(connect("ws-v1", port, name)) for name in sent_away
            ]
            assert await asyncio.to_thread(a.wait, 10.0) == 0
            assert await count_on(b) == 4
            for name, client in zip(sent_away, again, strict=True):
                await publish_all(backend, topic, name, ["after"])
                assert (await take(client, 1))[0].payload == b"after"
        await eventually(lambda: http_status(port, "/readyz") == 200, "the other one answers")


def _went(end: object) -> bool:
    if isinstance(end, TimeoutError):
        return False
    assert getattr(end, "code", None) == 1001, end
    return True


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
