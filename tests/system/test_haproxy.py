"""Two gateways behind HAProxy, with the configuration that deploy/haproxy ships."""

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from tests.support.clients import TRANSPORTS, connect, eventually, pusher_to
from tests.support.processes import GatewayProcess, free_port, http_status, wait_until
from tests.system.conftest import StartGateway, StartProcessor
from tests.system.steps import publish_all, take

pytestmark = pytest.mark.anyio

CONFIGURATION = Path(__file__).parents[2] / "deploy/haproxy/haproxy.cfg"


@contextmanager
def haproxy(a: GatewayProcess, b: GatewayProcess) -> Iterator[int]:
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
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [binary, "-db", "-f", str(CONFIGURATION)],
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
