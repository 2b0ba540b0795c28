"""The PROXY protocol's header, versions 1 and 2: who is behind a layer-4 balancer.

The specification is HAProxy's `proxy-protocol.txt`. Bytes in, an address out; nothing is read here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

from proxyprotocol.result import ProxyResult, is_ipv4, is_ipv6
from proxyprotocol.v1 import ProxyProtocolV1
from proxyprotocol.v2 import ProxyProtocolV2

from gateway.errors import GatewayError

#: The longest line that §2.1 allows, CRLF included.
MAX_V1_BYTES: Final = 107
#: Version 2 counts up to 64 KiB; addresses and the TLVs of balancers take some hundred bytes.
MAX_V2_BYTES: Final = 4_096

_V1: Final = b"PROXY "
_V2: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_START_BYTES: Final = 16
_KNOWN_PEERS: Final = 256

Network = IPv4Network | IPv6Network


class BadProxyHeader(GatewayError):
    """What a connection starts with is no PROXY header that is accepted."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """A header of `size` bytes; `client` is None where it names nobody but the balancer itself."""

    size: int
    client: tuple[str, int] | None


def read(data: bytes) -> ProxyHeader | None:
    """Return the header that `data` starts with; None while more bytes are needed to tell.

    Raises:
        BadProxyHeader: it does not start with one, or with one that is too long.
    """
    if data.startswith(_V1[: len(data)]):
        return _read_line(data)
    if data.startswith(_V2[: len(data)]):
        return _read_binary(data)
    raise BadProxyHeader("no PROXY header")


def within(networks: Sequence[Network]) -> Callable[[str], bool]:
    """Return what tells whether an address is in one of `networks`.

    IPv4 addresses in IPv6 clothing count as IPv4 ones. Answers are remembered: balancers are few.
    """

    @lru_cache(_KNOWN_PEERS)
    def is_within(host: str) -> bool:
        address = _plain(ip_address(host))
        return any(address in network for network in networks)

    return is_within


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
    except (ValueError, struct.error) as error:  # too few bytes for an address are the latter
        raise BadProxyHeader(str(error)) from error


def _client(result: ProxyResult) -> tuple[str, int] | None:
    # LOCAL, UNKNOWN, and families that no IP client has: the connection is the peer's own.
    if is_ipv4(result) or is_ipv6(result):
        address, port = result.source
        return str(_plain(address)), port
    return None


def _plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
