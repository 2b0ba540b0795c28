"""What `pushgate doctor` says listens at a port: real servers, each on a wrong port."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pushgate.doctor.certificates import check_servers
from pushgate.doctor.kafka import check_kafka
from pushgate.doctor.ports import Listener, certificate_at, listener_at
from pushgate.embedded import LOOPBACK
from pushgate.settings import DoctorSettings
from registry.networks import authority
from tests.support.certificate import write_certificate
from tests.support.findings import only
from tests.support.kafka import KafkaServer
from tests.support.processes import free_port
from tests.support.valkey import RedisServer

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def listening(
    answer: bytes | None, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Give the port of a server that gives one answer; None: no answer, and no end."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await (reader.read() if answer is None else reader.read(1))
        if answer is not None:
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, LOOPBACK, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def test_redis_is_recognised(valkey: RedisServer) -> None:
    assert await listener_at(LOOPBACK, valkey.port) is Listener.REDIS


async def test_redis_with_a_password_is_recognised(own_valkey: RedisServer) -> None:
    with own_valkey.client() as client:
        client.config_set("requirepass", "needed")
    assert await listener_at(LOOPBACK, own_valkey.port) is Listener.REDIS


async def test_kafka_is_recognised(kafka: KafkaServer) -> None:
    host, _, port = kafka.bootstrap.rpartition(":")
    assert await listener_at(host, int(port)) is Listener.KAFKA


async def test_tls_is_recognised_and_shows_its_certificate(tmp_path: Path) -> None:
    cert_file, key_file = write_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert_file, key_file)
    async with listening(None, tls=context) as port:
        assert await listener_at(LOOPBACK, port) is Listener.TLS
        shown = await certificate_at(LOOPBACK, port)
        url = f"https://{LOOPBACK}:{port}"
        (judged,) = await check_servers(DoctorSettings(), through=url, now=datetime.now(UTC))
    assert ssl.DER_cert_to_PEM_cert(shown) == cert_file.read_text()
    assert f"--through, {LOOPBACK}:{port}: expires on" in judged.what


async def test_tls_on_one_side_alone_of_kafka_is_named(kafka: KafkaServer, tmp_path: Path) -> None:
    settings = DoctorSettings(kafka_bootstrap=kafka.bootstrap, kafka_security_protocol="SSL")
    finding = only(await check_kafka(settings, wall=time.time))
    assert "can't be used: a Kafka broker answers there, without TLS" in finding.what
    assert "PUSHGATE_KAFKA_SECURITY_PROTOCOL is SSL" in finding.cure
    cert_file, key_file = write_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert_file, key_file)
    async with listening(None, tls=context) as port:
        plain = DoctorSettings(kafka_bootstrap=f"{LOOPBACK}:{port}")
        finding = only(await check_kafka(plain, wall=time.time))
    assert "can't be used: a server with TLS answers there" in finding.what
    assert "PUSHGATE_KAFKA_SECURITY_PROTOCOL is PLAINTEXT" in finding.cure


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", Listener.HTTP),
        (b"SSH-2.0-OpenSSH_9.2\r\n", Listener.OTHER),
        (b"", Listener.OTHER),
        (None, Listener.SILENT),
    ],
)
async def test_other_servers_are_told_apart(answer: bytes | None, expected: Listener) -> None:
    async with listening(answer) as port:
        assert await listener_at(LOOPBACK, port) is expected


async def test_nobody_is_named() -> None:
    assert await listener_at(LOOPBACK, free_port()) is Listener.NOTHING
    assert await listener_at("::1", free_port()) in {Listener.NOTHING, Listener.UNREACHABLE}
    assert await listener_at("no-such-host.invalid", 1) is Listener.UNKNOWN_HOST


def test_addresses_are_written_as_settings_have_them() -> None:
    assert authority("redis.example.com", 6379) == "redis.example.com:6379"
    assert authority("::1", 6379) == "[::1]:6379"
