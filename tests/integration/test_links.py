"""Links between a processor's forwarder and real gateways: trust, restarts, silence, resets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from processor.sending.forward import MISDIRECTED, REFUSED, TIMEOUT, UNREACHABLE, Forwarder
from processor.sending.reach import Reach
from registry.calls import GatewayCalls
from registry.directory import Node
from registry.message import Push
from registry.redis_store import RedisRegistry
from tests.support.certificate import write_certificate
from tests.support.clients import Client, connect, eventually, request
from tests.support.processes import INTERNAL_SECRET, GatewayProcess
from tests.support.proxy import Direction, Proxy
from tests.support.valkey import RedisServer

pytestmark = pytest.mark.anyio

NEW_SECRET = "the secret of tomorrow in thirty-two bytes or more"
SECRET = {"Authorization": f"Bearer {INTERNAL_SECRET}"}
USER = "alice"


@pytest.fixture
def gateway(valkey: RedisServer) -> Iterator[GatewayProcess]:
    """Give a gateway that is the test's own, to freeze, kill and restart."""
    with GatewayProcess("linked", redis_url=valkey.url) as process:
        yield process


@asynccontextmanager
async def forwarding(
    *, secret: str = INTERNAL_SECRET, seconds: float = 10.0, ca: Path | None = None
) -> AsyncIterator[Forwarder]:
    calls = GatewayCalls(secret=secret, ca_file=str(ca) if ca else None)
    made = Forwarder(Reach(calls), timeout_seconds=seconds)
    yield made
    await made.close()


async def node_of(gateway: GatewayProcess, *, address: str | None = None) -> Node:
    """Give the node as it registers itself."""
    listing = (await request(gateway.internal_port, "GET", "/connections", SECRET)).json
    own = f"127.0.0.1:{gateway.internal_port}"
    return Node(listing["node"], listing["epoch"], address or own)


async def links_of(gateway: GatewayProcess) -> float:
    text = (await request(gateway.internal_port, "GET", "/metrics")).body.decode()
    (line,) = (row for row in text.splitlines() if row.startswith("pushgate_gateway_links "))
    return float(line.split()[-1])


def pushes(*ids: int) -> list[Push]:
    return [Push(USER, b"%d" % number, str(number)) for number in ids]


async def payloads(client: Client, count: int) -> list[bytes]:
    return [(await client.message(10.0)).payload for _ in range(count)]


async def test_batches_go_over_one_link_until_the_forwarder_closes_it(
    gateway: GatewayProcess,
) -> None:
    async with forwarding() as forwarder, connect("ws-plain", gateway.port, USER) as client:
        node = await node_of(gateway)
        for number in range(20):
            assert await forwarder.forward(node, pushes(2 * number, 2 * number + 1)) == [1, 1]
            assert await forwarder.forward(node, []) == []
        assert await payloads(client, 40) == [b"%d" % number for number in range(40)]
        assert await links_of(gateway) == 1

    async def gone() -> bool:
        return await links_of(gateway) == 0

    await eventually(gone, "the link is gone")


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Give a certificate's file and its key's; the certificate is its own CA."""
    return write_certificate(tmp_path)


async def test_links_over_tls_trust_the_ca_alone(
    valkey: RedisServer, files: tuple[Path, Path], tmp_path: Path
) -> None:
    cert, key = files
    with GatewayProcess(
        "tls-linked", redis_url=valkey.url, internal_tls_cert=cert, internal_tls_key=key
    ) as gateway:
        async with connect("ws-plain", gateway.port, USER) as client:
            other = tmp_path / "other"
            other.mkdir()
            async with (
                forwarding(ca=cert) as forwarder,
                forwarding(ca=write_certificate(other)[0]) as distrustful,
                forwarding(seconds=2.0) as in_the_clear,
            ):
                node = await node_over_tls(gateway, valkey)
                for number in range(3):
                    large = Push(USER, b"x" * 60_000, f"large-{number}")
                    assert await forwarder.forward(node, [large] * 20) == [1] * 20
                    assert (await client.message(10.0)).payload == large.data
                for distrusted in (distrustful, in_the_clear):
                    assert await distrusted.forward(node, pushes(1)) == UNREACHABLE
        assert gateway.terminate() == 0


async def node_over_tls(gateway: GatewayProcess, valkey: RedisServer) -> Node:
    """Give the node by its lease."""
    store = RedisRegistry(valkey.url)
    nodes = [node for node in await store.nodes() if node.name == gateway.name]
    await store.close()
    return nodes[0]


async def test_a_rotated_secret_opens_new_links_and_breaks_none_that_are_held(
    gateway: GatewayProcess,
) -> None:
    async with forwarding() as old, forwarding(secret=NEW_SECRET) as new:
        before = await node_of(gateway)
        assert await old.forward(before, []) == []
        assert await new.forward(before, []) == REFUSED
        gateway.terminate()
        rotating = {"INTERNAL_SECRET": NEW_SECRET, "INTERNAL_SECRET_PREVIOUS": INTERNAL_SECRET}
        gateway.env |= {f"PUSHGATE_{name}": value for name, value in rotating.items()}
        gateway.start()
        now = await node_of(gateway)
        for forwarder in (old, new):
            assert await forwarder.forward(now, []) == []
        assert await old.forward(before, pushes(1)) == MISDIRECTED
        assert await links_of(gateway) == 2


async def test_another_start_at_the_address_is_another_node(gateway: GatewayProcess) -> None:
    async with forwarding() as forwarder:
        before = await node_of(gateway)
        assert await forwarder.forward(before, pushes(1)) == [0]
        gateway.kill()
        assert await forwarder.forward(before, pushes(1)) == UNREACHABLE
        gateway.start()
        assert await forwarder.forward(before, pushes(1)) == MISDIRECTED
        async with connect("ws-plain", gateway.port, USER) as client:
            assert await forwarder.forward(await node_of(gateway), pushes(1)) == [1]
            assert await payloads(client, 1) == [b"1"]


async def test_a_frozen_gateway_is_silent_and_delivers_once_when_it_goes_on(
    gateway: GatewayProcess,
) -> None:
    async with forwarding(seconds=2.0) as hasty, forwarding() as forwarder:
        node = await node_of(gateway)
        async with connect("ws-plain", gateway.port, USER) as client:
            assert await hasty.forward(node, pushes(0)) == [1]
            gateway.freeze()
            for _ in range(2):  # on the link, and in vain for another
                assert await hasty.forward(node, pushes(1, 2)) == TIMEOUT
            gateway.thaw()
            assert await forwarder.forward(node, pushes(1, 2, 3)) == [1, 1, 1]
            assert await payloads(client, 4) == [b"0", b"1", b"2", b"3"]
        assert "Traceback" not in gateway.log


async def test_links_that_are_reset_in_the_middle_lose_and_repeat_nothing(
    valkey: RedisServer,
) -> None:
    async with Proxy() as proxy, forwarding() as forwarder:
        gateway = GatewayProcess("proxied", redis_url=valkey.url)
        gateway.env["PUSHGATE_ADVERTISE_ADDRESS"] = proxy.address
        proxy.target_port = gateway.internal_port
        with gateway:
            node = await node_of(gateway, address=proxy.address)
            async with connect("ws-plain", gateway.port, USER) as client:
                for number in range(5):
                    # The batch arrives, and its answer does not.
                    assert await forwarder.forward(node, []) == []
                    proxy.silence(Direction.TO_CLIENT)
                    asked = asyncio.create_task(forwarder.forward(node, pushes(number)))
                    assert await payloads(client, 1) == [b"%d" % number]
                    proxy.reset()
                    proxy.release()
                    assert await asked == [1], "asked again on another link, and recognised"
                assert await forwarder.forward(node, pushes(5)) == [1]
                assert await payloads(client, 1) == [b"5"]
