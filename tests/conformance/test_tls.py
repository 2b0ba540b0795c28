"""TLS on both ports: the transports over it, and who does not finish a handshake."""

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import pytest

from pushgate.embedded import LOOPBACK
from tests.conformance.steps import open_on, tls_to
from tests.support.certificate import make_key, pem, write_certificate
from tests.support.clients import (
    TEXT,
    Answer,
    PollClient,
    Pusher,
    bearer,
    frame,
    head,
    open_websocket,
    pusher_to,
    wire_to,
)
from tests.support.processes import GatewayProcess
from tests.support.valkey import RedisServer

pytestmark = pytest.mark.anyio

HEAD_SECONDS: Final = 2.0
LATE_SECONDS: Final = HEAD_SECONDS + 2.0
CROWD: Final = 100
START_SECONDS: Final = 10.0


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Give a certificate's file and its key's."""
    return write_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module", params=["auto", "epoll", "transport"])
def gateway(
    valkey: RedisServer, files: tuple[Path, Path], request: pytest.FixtureRequest
) -> Iterator[GatewayProcess]:
    """Give a gateway with TLS; sockets of TLS stay on the transport wire, whatever is chosen."""
    with GatewayProcess(
        f"tls-{request.param}",
        redis_url=valkey.url,
        wire=request.param,
        tls_cert=files[0],
        tls_key=files[1],
        head_seconds=HEAD_SECONDS,
    ) as process:
        yield process


@pytest.fixture
async def pusher(gateway: GatewayProcess) -> AsyncIterator[Pusher]:
    async with pusher_to(gateway.internal_port) as pushing:
        yield pushing


@pytest.fixture
def trust(files: tuple[Path, Path]) -> ssl.SSLContext:
    """Give a client's context that trusts this certificate alone."""
    return ssl.create_default_context(cafile=str(files[0]))


@pytest.mark.parametrize("transport", ["pushgate.plain", "pushgate.v1", "sse", "poll"])
async def test_messages_arrive_over_tls_in_order(
    gateway: GatewayProcess, pusher: Pusher, trust: ssl.SSLContext, transport: str
) -> None:
    payloads = [b"one", b"x" * 60_000, "ü漢".encode()]
    async with tls_to(gateway.port, trust) as wire:
        client = await open_on(wire, transport, f"user-{transport}")
        for payload in payloads:
            await pusher.push_one(f"user-{transport}", payload)
        assert [(await client.message()).payload for _ in payloads] == payloads


async def test_a_waiting_poll_is_answered_over_tls(
    gateway: GatewayProcess, pusher: Pusher, trust: ssl.SSLContext
) -> None:
    async with tls_to(gateway.port, trust) as wire:
        client = await PollClient(wire, Answer("", 0, {}), bearer("waiting")).open()
        for payload in (b"first", b"second"):  # over one connection
            await client.send(wait=10)
            await pusher.push_one("waiting", payload)
            assert (await client.message()).payload == payload


async def test_frames_in_the_segment_of_the_upgrade_are_taken_over_tls(
    gateway: GatewayProcess, trust: ssl.SSLContext
) -> None:
    async with tls_to(gateway.port, trust) as wire:
        follow = frame(TEXT, b"hello") + frame(0x9, b"there?")
        client = await open_websocket(wire, bearer("early"), follow=follow)
        assert (await client.frame())[:2] == (0xA, b"there?")


async def test_what_is_older_than_tls_1_2_is_refused(
    gateway: GatewayProcess, trust: ssl.SSLContext
) -> None:
    versions = {}
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        trust.minimum_version = trust.maximum_version = version
        async with tls_to(gateway.port, trust) as wire:
            await wire.send(head("GET", "/healthz"))
            versions[version] = (await wire.answer()).status
    assert versions == {ssl.TLSVersion.TLSv1_2: 200, ssl.TLSVersion.TLSv1_3: 200}
    # A ClientHello of TLS 1.1, spelled out: libraries no longer offer it.
    body = b"\x03\x02" + bytes(32) + b"\x00\x00\x02\xc0\x09\x01\x00"
    hello = b"\x01" + len(body).to_bytes(3) + body
    async with wire_to(gateway.port) as wire:
        await wire.send(b"\x16\x03\x01" + len(hello).to_bytes(2) + hello)
        answer = await wire.rest(HEAD_SECONDS / 2)
    # Alert, fatal, protocol_version (RFC 5246 §7.2), or nothing but the end.
    assert answer == b"" or (answer[:1], answer[-2:]) == (b"\x15", b"\x02\x46")


async def test_handshakes_that_stall_end_in_time_and_nobody_else_notices(
    gateway: GatewayProcess, pusher: Pusher, trust: ssl.SSLContext
) -> None:
    started = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"  # of a ClientHello of 512 bytes
    async with AsyncExitStack() as stack:
        began = time.monotonic()
        wires = [await stack.enter_async_context(wire_to(gateway.port)) for _ in range(CROWD)]
        for wire in wires[: CROWD // 2]:
            await wire.send(started)
        last = time.monotonic()
        ends = asyncio.gather(*(wire.ended(LATE_SECONDS) for wire in wires))
        client = await open_on(
            await stack.enter_async_context(tls_to(gateway.port, trust)), "sse", "in"
        )
        await pusher.push_one("in", b"let in")
        assert (await client.message(1.0)).payload == b"let in"
        assert not ends.done()
        await ends
        assert time.monotonic() - began > HEAD_SECONDS / 2
        assert time.monotonic() - last < LATE_SECONDS
    assert "Traceback" not in gateway.log


async def test_silence_behind_a_handshake_and_half_a_head_end_in_time(
    gateway: GatewayProcess, trust: ssl.SSLContext
) -> None:
    async with tls_to(gateway.port, trust) as silent, tls_to(gateway.port, trust) as half:
        await half.send(head("GET", "/healthz")[:-5])
        await asyncio.gather(silent.ended(LATE_SECONDS), half.ended(LATE_SECONDS))


async def test_plaintext_to_the_tls_port_ends_without_an_answer(gateway: GatewayProcess) -> None:
    async with wire_to(gateway.port) as wire:
        await wire.send(head("GET", "/healthz"))
        assert not (await wire.rest(LATE_SECONDS)).startswith(b"HTTP")
    assert "Traceback" not in gateway.log


async def test_the_internal_port_stays_plaintext(gateway: GatewayProcess) -> None:
    async with wire_to(gateway.internal_port) as wire:
        await wire.send(head("GET", "/readyz"))
        assert (await wire.answer()).status == 200


async def test_the_internal_port_speaks_tls_where_its_own_files_are_set(
    valkey: RedisServer, files: tuple[Path, Path], trust: ssl.SSLContext
) -> None:
    cert, key = files
    settings = {"internal_tls_cert": cert, "internal_tls_key": key, "head_seconds": HEAD_SECONDS}
    with GatewayProcess("internal-tls", redis_url=valkey.url, **settings) as gateway:
        for path in ("/healthz", "/readyz", "/metrics"):
            async with tls_to(gateway.internal_port, trust) as wire:
                await wire.send(head("GET", path))
                assert (await wire.answer()).status == 200
        async with wire_to(gateway.internal_port) as plain:
            await plain.send(head("GET", "/healthz"))
            assert not (await plain.rest(LATE_SECONDS)).startswith(b"HTTP")
        async with wire_to(gateway.internal_port) as silent:
            await silent.ended(LATE_SECONDS)
        async with wire_to(gateway.port) as public:
            await public.send(head("GET", "/readyz"))
            assert (await public.answer()).status == 200
        assert "Traceback" not in gateway.log


@pytest.mark.parametrize("port", ["tls", "internal_tls"])
@pytest.mark.parametrize("fault", ["missing", "no-pem", "another-key", "encrypted"])
def test_bad_files_end_the_start_with_the_settings_names(
    valkey: RedisServer, files: tuple[Path, Path], tmp_path: Path, fault: str, port: str
) -> None:
    cert_file, key_file = files[0], tmp_path / "key.pem"
    contents = {
        "no-pem": b"nonsense",
        "another-key": pem(make_key()),
        "encrypted": pem(make_key(), b"a password"),
    }
    if fault in contents:
        key_file.write_bytes(contents[fault])
    settings = {f"{port}_cert": cert_file, f"{port}_key": key_file}
    process = GatewayProcess(f"tls-{fault}", redis_url=valkey.url, **settings)
    try:
        process.start(until_ready=False)
        assert process.wait(START_SECONDS) != 0
        assert f"PUSHGATE_{port.upper()}_KEY" in process.log
        assert str(key_file) in process.log
        assert "Traceback" not in process.log
        with socket.socket() as probe:
            assert probe.connect_ex((LOOPBACK, process.port)) != 0
    finally:
        process.close()
