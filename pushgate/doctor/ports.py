"""What listens at an address: for the finding that a server is not what a setting says.

Each protocol is tried on a connection of its own, with bytes that change nothing on any server.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import ssl
import struct
from typing import Final

_CONNECT_SECONDS: Final = 2.0
_ANSWER_SECONDS: Final = 1.0
_ANSWER_BYTES: Final = 64
#: To Redis an inline command with too few words. No Host field, which Redis logs as an attack.
_HTTP: Final = b"GET / HTTP/1.0\r\n\r\n"
#: Kafka's ApiVersions, version 0 (KIP-35): length, key 18, version, correlation id, no client id.
_CORRELATION: Final = 0x70757368
_KAFKA: Final = struct.pack(">ihhih", 10, 18, 0, _CORRELATION, -1)
#: A handshake may take a round trip more than an answer.
_TLS_SECONDS: Final = 2.0
#: How the errors begin by which OpenSSL says that a peer speaks no TLS.
_NO_TLS: Final = frozenset(
    {"WRONG_VERSION_NUMBER", "UNEXPECTED_EOF_WHILE_READING", "RECORD_LAYER_FAILURE"}
    | {"PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST"}
)


class Listener(enum.Enum):
    """What is at an address, in words that follow the address."""

    UNKNOWN_HOST = "the host name can't be resolved"
    NOTHING = "nothing listens there"
    UNREACHABLE = "no answer to a connection: a wrong address, or a firewall"
    SILENT = "takes connections and answers nothing: frozen, or another protocol"
    REDIS = "a Redis answers there, without TLS"
    KAFKA = "a Kafka broker answers there, without TLS"
    HTTP = "an HTTP server answers there, without TLS"
    TLS = "a server with TLS answers there"
    OTHER = "a server answers there that is neither Kafka nor Redis nor HTTP"


#: Found by a probe of the server's own protocol; others leave further probes their time.
_CERTAIN: Final = frozenset({Listener.REDIS, Listener.KAFKA, Listener.HTTP, Listener.TLS})


async def listener_at(host: str, port: int) -> Listener:
    """Return what listens at `host:port`; within four seconds, and mostly at once."""
    if (refusal := await _refusal(host, port)) is not None:
        return refusal
    to_http = asyncio.create_task(_by_http(host, port))
    probes = [
        to_http,
        asyncio.create_task(_by_kafka(host, port)),
        asyncio.create_task(_by_tls(host, port)),
    ]
    try:
        for probe in asyncio.as_completed(probes):
            if (listener := await probe) in _CERTAIN:
                return listener
        return to_http.result()
    finally:
        for each in probes:
            each.cancel()
        await asyncio.wait(probes)


async def _refusal(host: str, port: int) -> Listener | None:
    """Return why there is no connection; None where there is one."""
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return Listener.UNREACHABLE
    except socket.gaierror:
        return Listener.UNKNOWN_HOST
    except ConnectionRefusedError:
        return Listener.NOTHING
    except OSError:
        return Listener.UNREACHABLE
    writer.close()
    return None


async def _by_http(host: str, port: int) -> Listener:
    answer = await _answer(host, port, _HTTP)
    if answer is None:
        return Listener.SILENT
    if answer.startswith(b"HTTP/"):
        return Listener.HTTP
    return Listener.REDIS if answer.startswith((b"-", b"+", b"$")) else Listener.OTHER


async def _by_kafka(host: str, port: int) -> Listener:
    answer = await _answer(host, port, _KAFKA)
    is_kafka = answer is not None and answer[4:8] == struct.pack(">i", _CORRELATION)
    return Listener.KAFKA if is_kafka else Listener.OTHER


async def _by_tls(host: str, port: int) -> Listener:
    """Find TLS: a handshake succeeds, or is refused as TLS refuses."""
    try:
        await certificate_at(host, port)
    except ssl.SSLError as error:
        has_tls = error.reason is not None and error.reason not in _NO_TLS
        return Listener.TLS if has_tls else Listener.OTHER
    except OSError:  # TimeoutError is one
        return Listener.OTHER
    return Listener.TLS


async def _answer(host: str, port: int, request: bytes) -> bytes | None:
    """Return the first bytes of an answer, none where the connection ends; None for silence."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(request)
            return await reader.read(_ANSWER_BYTES)
    except TimeoutError:
        return None
    except OSError:
        return b""
    finally:
        if writer is not None:
            writer.transport.abort()


async def certificate_at(host: str, port: int) -> bytes:
    """Return the certificate (DER) that a server shows in a TLS handshake, unchecked.

    Raises:
        OSError: no connection, no answer in two seconds, or (ssl.SSLError) no TLS.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with asyncio.timeout(_TLS_SECONDS):
        _, writer = await asyncio.open_connection(host, port, ssl=context)
    shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    with contextlib.suppress(OSError):
        writer.transport.abort()
    return shown
