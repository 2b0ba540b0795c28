"""Networks in CIDR form, read and compared with addresses; hosts and ports."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

#: Addresses for which the answer of `within` is remembered.
_KNOWN_ADDRESSES: Final = 256

Network = IPv4Network | IPv6Network


def networks(text: str) -> tuple[Network, ...]:
    """Read a comma list of networks, `10.0.0.0/8, fd00::/8`; a bare address is a network too.

    Raises:
        ValueError: an element is no network, or has bits set to the right of its prefix.
    """
    parts = filter(None, (part.strip() for part in text.split(",")))
    return tuple(ip_network(part) for part in parts)


def network_list(text: str) -> str:
    """Return the text of a setting unchanged, after `networks` has read the text."""
    networks(text)
    return text


def within(allowed: Sequence[Network]) -> Callable[[str], bool]:
    """Return a function that is true for IP addresses in the networks `allowed`.

    An IPv4-mapped IPv6 address (RFC 4291 §2.5.5.2) counts as the IPv4 address. Answers are
    remembered: the peers of a server are few.
    """

    @lru_cache(_KNOWN_ADDRESSES)
    def is_within(host: str) -> bool:
        address = plain(ip_address(host))
        return any(address in network for network in allowed)

    return is_within


def plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the IPv4 address of an IPv4-mapped IPv6 address, and any other address unchanged."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def authority(host: str, port: int | str) -> str:
    """Return `host:port`, an IPv6 address in brackets (RFC 3986 §3.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host_and_port(text: str) -> tuple[str, str]:
    """Return host and port of `host:port`, an IPv6 address without its brackets."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), port


def is_ip_address(host: str) -> bool:
    """Whether `host` is an IP address, without brackets."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether `host` is `localhost` or a loopback address: no other host reaches it."""
    return host == "localhost" or (is_ip_address(host) and plain(ip_address(host)).is_loopback)


def is_wildcard(host: str) -> bool:
    """Whether `host` stands for every address of a machine, as 0.0.0.0 does, or is empty."""
    host = host.strip("[]")
    try:
        # inet_aton() also knows that "0" is the address 0.0.0.0.
        packed = socket.inet_pton(socket.AF_INET6, host) if ":" in host else socket.inet_aton(host)
    except OSError:
        return not host
    return not any(packed)
