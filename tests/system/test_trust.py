"""Fault 33: somebody writes a lease into Redis, and waits at its address for what comes.

The rogue gets neither the internal secret nor what opens another node; and where gateways have
networks, or certificates, no payload either. That a payload does reach the rogue without them is
shown as well: else nothing here would prove anything.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from pushgate.embedded import LOOPBACK
from registry.directory import Node
from registry.frames import FrameReader
from registry.message import MAX_BATCH_BYTES
from registry.proof import proof
from registry.redis_store import RedisRegistry
from tests.support.certificate import write_certificate
from tests.support.clients import Pusher, connect, eventually, pusher_to, request
from tests.support.links import SWITCHING, Request, frame, http, results, take_all
from tests.support.processes import INTERNAL_SECRET, GatewayProcess
from tests.support.valkey import RedisServer
from tests.system.conftest import StartGateway, StartProcessor
from tests.system.steps import publish, until_outcomes
from tests.system.test_audit import audit
from tests.system.traffic import measure

pytestmark = pytest.mark.anyio

#: An address of this machine that is not the gateways', in the loopback network (RFC 1122).
ROGUE_ADDRESS = "127.0.0.2"
#: The same as a name: no IP address by its form, and what resolvers read as one (inet_aton(3)).
ROGUE_NAME = "0x7f000002"
HEAD = b"GET /push HTTP/1.1"
PAYLOAD = b"for the user's eyes only"
DELIVERED, OUTSIDE = ("delivered", ""), ("failed", "outside-networks")


class Rogue:
    """A listener that takes every push, and keeps what was sent."""

    def __init__(self) -> None:
        self.connections = 0
        self.got = b""
        self.port = 0

    def node(self, host: str = ROGUE_ADDRESS, *, name: str = "rogue", epoch: str = "e1") -> Node:
        """Give the node whose lease leads here."""
        return Node(name, epoch, f"{host}:{self.port}")

    @property
    def authorizations(self) -> set[str]:
        """The credentials of the requests so far."""
        return {found.decode() for found in re.findall(rb"(?i)authorization: ([^\r]*)", self.got)}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        frames: FrameReader | None = None  # of a link
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                self.got += data
                if frames is not None:
                    frames.feed(data)
                    while (batch := frames.next()) is not None:
                        writer.write(frame(batch.number, await take_all(Request(HEAD, batch.body))))
                elif b"Upgrade: " in data:
                    frames = FrameReader(most_bytes=MAX_BATCH_BYTES)
                    writer.write(SWITCHING)
                else:
                    writer.write(http(200, results(1)))
        writer.close()


@asynccontextmanager
async def listening() -> AsyncIterator[Rogue]:
    rogue = Rogue()
    server = await asyncio.start_server(rogue.serve, ROGUE_ADDRESS, 0)
    rogue.port = server.sockets[0].getsockname()[1]
    try:
        yield rogue
    finally:
        server.close()


def named_gateway(redis_url: str, **settings: object) -> GatewayProcess:
    """Give a gateway, not started, that registers a host name."""
    gateway = GatewayProcess("named", redis_url=redis_url, **settings)
    gateway.env["PUSHGATE_ADVERTISE_ADDRESS"] = f"localhost:{gateway.internal_port}"
    return gateway


@pytest.fixture
async def own_registry(own_valkey: RedisServer) -> AsyncIterator[RedisRegistry]:
    """Give what a rogue has: an account in Redis."""
    store = RedisRegistry(own_valkey.url)
    yield store
    await store.close()


async def plant(registry: RedisRegistry, node: Node, *users: str) -> None:
    """Write a lease that leads to the rogue, and register users there."""
    await registry.heartbeat(node, claim=True)
    await registry.write(node, users, [])


async def epoch_of(pusher: Pusher) -> str:
    epoch: str = (await pusher.http.get("/connections")).json()["epoch"]
    return epoch


async def push_with(gateway: GatewayProcess, credential: str) -> int:
    """Push an empty batch with a credential; give the status."""
    fields = {
        "Authorization": credential,
        "Content-Type": "application/json",
        "Content-Length": "2",
    }
    return (await request(gateway.internal_port, "POST", "/push", fields, body=b"[]")).status


async def test_a_rogue_lease_gets_no_secret_and_no_proof_that_opens_the_node_it_names(
    own_valkey: RedisServer,
    own_registry: RedisRegistry,
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    gateway = start_gateway(redis_url=own_valkey.url)
    start_processor(redis_url=own_valkey.url)
    async with listening() as rogue, pusher_to(gateway.internal_port) as pusher:
        epoch = await epoch_of(pusher)
        impostor = rogue.node(name=gateway.name, epoch=epoch)

        async def lured() -> bool:
            # Again and again: the gateway's own heartbeats write its true address.
            await plant(own_registry, impostor, user)
            await publish(backend, topic, user, PAYLOAD)
            # The control: nothing keeps a payload from the rogue. (The first call is a question.)
            return bool(rogue.authorizations) and PAYLOAD in rogue.got

        await eventually(lured, "the processor calls the rogue", timeout_seconds=20.0)
        assert INTERNAL_SECRET.encode() not in rogue.got
        (credential,) = rogue.authorizations
        assert credential == f"Pushgate {proof(INTERNAL_SECRET, impostor)}"
        assert await push_with(gateway, credential) == 403
        real = Node(gateway.name, epoch, f"{LOOPBACK}:{gateway.internal_port}")
        assert await push_with(gateway, f"Pushgate {proof(INTERNAL_SECRET, real)}") == 200


@pytest.mark.parametrize("host", [ROGUE_ADDRESS, ROGUE_NAME])
async def test_outside_the_gateways_networks_no_connection_is_made(
    own_valkey: RedisServer,
    own_registry: RedisRegistry,
    start_gateway: StartGateway,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
    host: str,
) -> None:
    gateway = start_gateway(redis_url=own_valkey.url)
    processor = start_processor(redis_url=own_valkey.url, gateway_networks=f"{LOOPBACK}/32")
    async with listening() as rogue, connect("ws-plain", gateway.port, user) as client:
        await plant(own_registry, rogue.node(host), user, f"{user}-lured")
        for name in (user, f"{user}-lured"):
            await publish(backend, topic, name, PAYLOAD)
        # The user is connected elsewhere too, and gets the message there.
        assert (await client.message()).payload == PAYLOAD
        await until_outcomes([processor], {DELIVERED: 1.0, OUTSIDE: 1.0})
        assert rogue.connections == 0
    assert await measure(processor, "pushgate_processor_outside_networks_total ") >= 1
    assert processor.log.count("PUSHGATE_GATEWAY_NETWORKS") == 1
    assert INTERNAL_SECRET not in processor.log


async def test_an_address_with_a_host_name_inside_the_networks_is_called(
    own_valkey: RedisServer,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    with named_gateway(own_valkey.url) as gateway:
        start_processor(redis_url=own_valkey.url, gateway_networks=f"{LOOPBACK}/32")
        async with connect("ws-plain", gateway.port, user) as client:
            await publish(backend, topic, user, PAYLOAD)
            assert (await client.message(10.0)).payload == PAYLOAD


async def test_audit_shows_a_rogue_no_secret_and_outside_the_networks_nothing(
    own_valkey: RedisServer, own_registry: RedisRegistry, start_gateway: StartGateway
) -> None:
    start_gateway(redis_url=own_valkey.url)
    async with listening() as rogue:
        await plant(own_registry, rogue.node())
        status, told = await audit(own_valkey.url)
        assert status == 1, told
        assert rogue.authorizations == {f"Pushgate {proof(INTERNAL_SECRET, rogue.node())}"}
        assert INTERNAL_SECRET.encode() not in rogue.got
        before = rogue.connections
        status, told = await audit(own_valkey.url, "--gateway-networks", f"{LOOPBACK}/32")
        assert status == 1, told
        assert "rogue" in told
        assert "PUSHGATE_GATEWAY_NETWORKS" in told
        assert rogue.connections == before


async def test_with_bearer_the_old_form_goes_out_and_the_start_says_so(
    own_valkey: RedisServer,
    own_registry: RedisRegistry,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    processor = start_processor(redis_url=own_valkey.url, internal_auth="bearer")
    assert "PUSHGATE_INTERNAL_AUTH=bearer" in processor.log
    async with listening() as old_gateway:
        await plant(own_registry, old_gateway.node(), user)
        await publish(backend, topic, user, PAYLOAD)
        await eventually(lambda: PAYLOAD in old_gateway.got, "it is called", timeout_seconds=20.0)
        assert old_gateway.authorizations == {f"Bearer {INTERNAL_SECRET}"}


# TLS


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Give a certificate's file and its key's; the certificate is its own CA."""
    return write_certificate(tmp_path)


@pytest.fixture
def tls_gateway(own_valkey: RedisServer, files: tuple[Path, Path]) -> Iterator[GatewayProcess]:
    """Give a gateway with TLS on its internal port, at a name that the certificate lacks."""
    cert, key = files
    gateway = named_gateway(own_valkey.url, internal_tls_cert=cert, internal_tls_key=key)
    with gateway:
        yield gateway


async def test_messages_and_audits_go_over_tls_from_end_to_end(
    own_valkey: RedisServer,
    tls_gateway: GatewayProcess,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    files: tuple[Path, Path],
    topic: str,
    user: str,
) -> None:
    start_processor(redis_url=own_valkey.url, internal_tls_ca=files[0])
    async with connect("ws-plain", tls_gateway.port, user) as client:
        for payload in (PAYLOAD, b"x" * 60_000):
            await publish(backend, topic, user, payload)
            assert (await client.message(10.0)).payload == payload
        status, told = await audit(own_valkey.url, "--internal-tls-ca", str(files[0]))
        assert status == 0, told
        assert told.startswith("1 users on 1 nodes")


async def test_a_gateway_without_a_certificate_of_the_ca_gets_no_payload(
    own_valkey: RedisServer,
    own_registry: RedisRegistry,
    start_processor: StartProcessor,
    backend: AIOKafkaProducer,
    tmp_path: Path,
    tls_gateway: GatewayProcess,
    topic: str,
    user: str,
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    ca = write_certificate(other)[0]
    processor = start_processor(redis_url=own_valkey.url, internal_tls_ca=ca)
    async with connect("ws-plain", tls_gateway.port, user), listening() as rogue:
        await plant(own_registry, rogue.node(), f"{user}-lured")
        for name in (user, f"{user}-lured"):
            await publish(backend, topic, name, PAYLOAD)
        silent = 'pushgate_processor_waiting_messages{for="silent"}'

        async def both_wait() -> bool:
            return await measure(processor, silent) == 2

        await eventually(both_wait, "a gateway that can't be trusted is silent", timeout_seconds=20)
        assert PAYLOAD not in rogue.got
        assert b"Pushgate" not in rogue.got
        await own_registry.retire(rogue.node())
    assert "PUSHGATE_INTERNAL_TLS_CA" in processor.log
    status, told = await audit(own_valkey.url, "--internal-tls-ca", str(ca))
    assert status == 1, told
    assert "PUSHGATE_INTERNAL_TLS_CA" in told
