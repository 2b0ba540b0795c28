"""The PROXY protocol's header, versions 1 and 2: the client's address behind a layer-4 balancer.

The specification is HAProxy's `proxy-protocol.txt`. Bytes go in and an address comes out; sockets
are read elsewhere.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from proxyprotocol.result import ProxyResult, is_ipv4, is_ipv6
from proxyprotocol.v1 import ProxyProtocolV1
from proxyprotocol.v2 import ProxyProtocolV2

from gateway.errors import GatewayError
from registry.networks import plain

#: The longest header of version 1, a line, that §2.1 allows; CRLF included.
MAX_V1_BYTES: Final = 107
#: The longest header of version 2 that is accepted. The length field of §2.2 goes up to 64 KiB;
#: addresses and the TLVs of balancers take some hundred bytes.
MAX_V2_BYTES: Final = 4_096

_V1: Final = b"PROXY "
_V2: Final = b"\r\n\r\n\x00\r\nQUIT\n"
#: Signature, version and command, family, and the length of the remaining header (§2.2).
_V2_START_BYTES: Final = 16


class BadProxyHeader(GatewayError):
    """A balancer's connection does not start with an acceptable PROXY header."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """A complete header of `size` bytes.

    `client` is the address and port of the balancer's client; None where the header names no
    client, because the balancer speaks for itself.
    """

    size: int
    client: tuple[str, int] | None


def read(data: bytes) -> ProxyHeader | None:
    """Return the header at the start of `data`; None while the header is incomplete.

    Raises:
        BadProxyHeader: `data` does not start with a header, or the header is bad or too long.
    """
    if data.startswith(_V1[: len(data)]):
        return _read_line(data)
    if data.startswith(_V2[: len(data)]):
        return _read_binary(data)
    raise BadProxyHeader("no PROXY header")


def _read_line(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, MAX_V1_BYTES)
    if end < 0:
        if len(data) >= MAX_V1_BYTES:
            raise BadProxyHeader("the line does not end")
        return None
    size = end + 2
    try:
        return ProxyHeader(size, _client(ProxyProtocolV1().unpack_line(data[:size])))
    except ValueError as error:
        raise BadProxyHeader(str(error)) from error


def _read_binary(data: bytes) -> ProxyHeader | None:
    if len(data) < _V2_START_BYTES:
        return None
    size = _V2_START_BYTES + int.from_bytes(data[14:_V2_START_BYTES])
    if size > MAX_V2_BYTES:
        raise BadProxyHeader(f"{size} bytes are too many")
    if len(data) < size:
        return None
    try:
        return ProxyHeader(size, _client(ProxyProtocolV2().unpack(data[:size])))
    except (ValueError, struct.error) as error:  # struct.error: too few bytes for an address
        raise BadProxyHeader(str(error)) from error


def _client(result: ProxyResult) -> tuple[str, int] | None:
    # LOCAL, UNKNOWN, and families other than IP name no client: the connection is the balancer's
    # own, for example a health check.
    if is_ipv4(result) or is_ipv6(result):
        address, port = result.source
        return str(plain(address)), port
    return None
