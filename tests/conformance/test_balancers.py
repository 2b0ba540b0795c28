"""The PROXY protocol on the public port: who must speak it, who can't, and who is seen behind it.

A limit of one connection an address shows which address the gateway sees.
"""

import asyncio
import struct
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from typing import Final

import pytest

from tests.conformance.test_limits import wire_from
from tests.support.clients import (
    bearer,
    eventually,
    head,
    pusher_to,
    request,
    upgrade_headers,
)
from tests.support.processes import GatewayProcess, http_status
from tests.support.valkey import RedisServer

pytestmark = pytest.mark.anyio

BALANCER: Final = "127.0.0.9"
OTHER: Final = "127.0.0.8"
HEAD_SECONDS: Final = 1.0
LATE_SECONDS: Final = HEAD_SECONDS + 2.0


@pytest.fixture(scope="module")
def gateway(valkey: RedisServer) -> Iterator[GatewayProcess]:
    with GatewayProcess(
        "balanced",
        redis_url=valkey.url,
        proxy_protocol_from=f"{BALANCER}/32, fd00::/8",
        max_connections_per_address=1,
        head_seconds=HEAD_SECONDS,
        poll_grace_seconds=2,
    ) as process:
        yield process


def v1(client: str) -> bytes:
    family = "TCP6" if ":" in client else "TCP4"
    to = "::1" if ":" in client else "192.0.2.1"
    return f"PROXY {family} {client} {to} 40000 8080\r\n".encode()


def v2(client: str) -> bytes:
    address = ip_address(client)
    family = 0x11 if address.version == 4 else 0x21
    body = address.packed * 2 + struct.pack("!HH", 40_000, 8_080) + b"\x04\x00\x02.."
    return b"\r\n\r\n\x00\r\nQUIT\n" + struct.pack("!BBH", 0x21, family, len(body)) + body


LOCAL: Final = b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"


@asynccontextmanager
async def ask(
    gateway: GatewayProcess,
    header: bytes,
    *,
    peer: str = BALANCER,
    path: str = "/ws",
    byte_by_byte: bool = False,
) -> AsyncIterator[int]:
    """Connect through a balancer; gives the answer's status, and holds the connection meanwhile."""
    fields = upgrade_headers() if path == "/ws" else {}
    data = header + head("GET", path, {**fields, **bearer("u")})
    async with wire_from(peer, gateway.port) as wire:
        for part in (data[n : n + 1] for n in range(len(data))) if byte_by_byte else (data,):
            await wire.send(part)
            if byte_by_byte:
                await asyncio.sleep(0)  # the socket has no delay: each byte is a segment
        yield (await wire.answer(bodiless=path == "/sse")).status


@pytest.fixture(autouse=True)
async def _nobody_is_left(gateway: GatewayProcess) -> AsyncIterator[None]:
    yield
    async with pusher_to(gateway.internal_port) as pusher:

        async def empty() -> bool:
            return await pusher.connections() == 0

        await eventually(empty, "the clients of this test are gone")


@pytest.mark.parametrize("byte_by_byte", [False, True])
@pytest.mark.parametrize("path", ["/ws", "/sse"])
@pytest.mark.parametrize("spell", [v1, v2])
async def test_the_client_behind_a_balancer_is_the_one_that_counts(
    gateway: GatewayProcess, spell: object, path: str, byte_by_byte: bool
) -> None:
    assert callable(spell)
    for client, other in (("203.0.113.7", "203.0.113.8"), ("2001:db8::7", "2001:db8::8")):
        async with ask(gateway, spell(client), path=path, byte_by_byte=byte_by_byte) as first:
            assert first in (101, 200)
            async with ask(gateway, spell(client)) as second:
                assert second == 503
            async with ask(gateway, spell(other)) as third:
                assert third == 101


async def test_an_ipv4_client_is_the_same_one_in_ipv6_clothing(gateway: GatewayProcess) -> None:
    async with ask(gateway, v1("203.0.113.7")), ask(gateway, v2("::ffff:203.0.113.7")) as again:
        assert again == 503


@pytest.mark.parametrize("header", [LOCAL, b"PROXY UNKNOWN\r\n"], ids=["local", "unknown"])
async def test_a_connection_of_the_balancers_own_is_its_own(
    gateway: GatewayProcess, header: bytes
) -> None:
    async with ask(gateway, header) as first, ask(gateway, header) as second:
        assert (first, second) == (101, 503)


async def test_the_client_stays_the_same_from_poll_to_poll(gateway: GatewayProcess) -> None:
    async with wire_from(BALANCER, gateway.port) as wire:
        await wire.send(v2("203.0.113.7"))
        await wire.send(head("GET", "/poll?wait=0.1", bearer("u")))
        first = await wire.answer()
        assert first.status == 200
        query = f"cursor={first.json['cursor']}&wait=0.1"
        await wire.send(head("GET", f"/poll?{query}", bearer("u")))
        assert (await wire.answer()).status == 200
        await wire.send(head("GET", "/poll?wait=0", bearer("u")))  # another session
        assert (await wire.answer()).status == 503
        async with ask(gateway, LOCAL) as balancers_own:
            assert balancers_own == 101


@pytest.mark.parametrize(
    "data",
    [
        head("GET", "/healthz"),
        b"PROXY TCP4 203.0.113.7 192.0.2.1 40000 99999\r\n" + head("GET", "/healthz"),
        b"PROXY " + b"x" * 1_000_000,
        LOCAL[:12] + b"\x21\x11\xff\xff" + bytes(65_535),
        b"\x16\x03\x01\x02\x00\x01",
    ],
    ids=["no-header", "bad-port", "endless", "too-long", "tls"],
)
async def test_a_balancer_without_a_good_header_is_cut_off_and_the_log_says_so(
    gateway: GatewayProcess, data: bytes
) -> None:
    line = "a balancer's connection without a good PROXY header"
    before = gateway.log.count(line)
    async with wire_from(BALANCER, gateway.port) as wire:
        with suppress(ConnectionError):  # it ends before a megabyte is sent
            await wire.send(data)
        await wire.ended(HEAD_SECONDS / 2)
    await eventually(lambda: gateway.log.count(line) > before, "it is logged")


@pytest.mark.parametrize("part", [b"", b"PROXY TCP4 203.0", LOCAL[:14], v2("203.0.113.7")])
async def test_half_a_header_and_none_behind_one_end_in_time(
    gateway: GatewayProcess, part: bytes
) -> None:
    began = time.monotonic()
    async with wire_from(BALANCER, gateway.port) as wire:
        await wire.send(part)
        await wire.ended(LATE_SECONDS)
    assert time.monotonic() - began > HEAD_SECONDS / 2


@pytest.mark.parametrize("spell", [v1, v2])
async def test_whoever_is_no_balancer_can_claim_to_be_nobody_else(
    gateway: GatewayProcess, spell: object
) -> None:
    assert callable(spell)
    async with ask(gateway, spell("203.0.113.7"), peer=OTHER) as spoofed:
        assert spoofed == 400
    async with ask(gateway, b"", peer=OTHER) as plain, ask(gateway, b"", peer=OTHER) as again:
        assert (plain, again) == (101, 503)


async def test_a_second_header_behind_the_first_is_no_request(gateway: GatewayProcess) -> None:
    async with ask(gateway, v2("203.0.113.7") + v2("203.0.113.8")) as status:
        assert status == 400


async def test_the_internal_listener_knows_no_such_header(gateway: GatewayProcess) -> None:
    assert http_status(gateway.internal_port, "/readyz") == 200
    async with wire_from(BALANCER, gateway.internal_port) as wire:
        await wire.send(head("GET", "/readyz"))
        assert (await wire.answer()).status == 200
    async with wire_from(BALANCER, gateway.internal_port) as wire:
        await wire.send(v1("203.0.113.7") + head("GET", "/readyz"))
        assert (await wire.answer()).status == 400
    async with wire_from(BALANCER, gateway.port) as wire:
        await wire.send(head("GET", "/readyz"))
        await wire.ended()
    assert (await request(gateway.port, "GET", "/readyz")).status == 200
