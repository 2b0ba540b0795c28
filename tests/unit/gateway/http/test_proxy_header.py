"""PROXY headers: what is read out of them, how much of them, and what is refused."""

import random
import struct
from ipaddress import ip_address

import pytest

from gateway.http.proxy_header import (
    MAX_V1_BYTES,
    MAX_V2_BYTES,
    BadProxyHeader,
    ProxyHeader,
    read,
)

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
LOCAL, PROXY = 0x20, 0x21
UNSPECIFIED, TCP4, TCP6, UNIX = 0x00, 0x11, 0x21, 0x31


def v2(command: int, family: int, body: bytes = b"") -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(body)) + body


def addresses(source: str, destination: str) -> bytes:
    packed = ip_address(source).packed + ip_address(destination).packed
    return packed + struct.pack("!HH", 40_000, 443)


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


V4 = addresses("203.0.113.7", "192.0.2.1")
V6 = addresses("2001:db8::7", "2001:db8::1")
MAPPED = addresses("::ffff:203.0.113.7", "::ffff:192.0.2.1")

GOOD = {
    "v1-tcp4": (b"PROXY TCP4 203.0.113.7 192.0.2.1 40000 443\r\n", ("203.0.113.7", 40_000)),
    "v1-tcp6": (b"PROXY TCP6 2001:db8::7 2001:db8::1 40000 443\r\n", ("2001:db8::7", 40_000)),
    "v1-mapped": (
        b"PROXY TCP6 ::ffff:203.0.113.7 ::ffff:192.0.2.1 40000 443\r\n",
        ("203.0.113.7", 40_000),
    ),
    "v1-unknown": (b"PROXY UNKNOWN\r\n", None),
    "v1-unknown-with-more": (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", None),
    "v1-longest": (b"PROXY UNKNOWN " + b"f" * (MAX_V1_BYTES - 16) + b"\r\n", None),
    "v2-tcp4": (v2(PROXY, TCP4, V4), ("203.0.113.7", 40_000)),
    "v2-tcp6": (v2(PROXY, TCP6, V6), ("2001:db8::7", 40_000)),
    "v2-mapped": (v2(PROXY, TCP6, MAPPED), ("203.0.113.7", 40_000)),
    "v2-with-tlvs": (
        v2(PROXY, TCP4, V4 + tlv(0x02, b"example.com") + tlv(0xEA, b"x" * 100)),
        ("203.0.113.7", 40_000),
    ),
    "v2-with-a-tlv-that-is-cut": (v2(PROXY, TCP4, V4 + b"\x01\xff\xff."), ("203.0.113.7", 40_000)),
    "v2-local": (v2(LOCAL, UNSPECIFIED), None),
    "v2-local-with-addresses": (v2(LOCAL, TCP4, V4), None),
    "v2-unspecified": (v2(PROXY, UNSPECIFIED), None),
    "v2-unix": (v2(PROXY, UNIX, b"/path".ljust(216, b"\x00")), None),
    "v2-longest": (
        v2(PROXY, TCP4, V4 + tlv(0xEA, bytes(MAX_V2_BYTES - 16 - len(V4) - 3))),
        ("203.0.113.7", 40_000),
    ),
}  # fmt: skip

BAD = {
    "http": b"GET / HTTP/1.1\r\n",
    "tls": b"\x16\x03\x01",
    "lower-case": b"proxy ",
    "v1-no-family": b"PROXY \r\n",
    "v1-udp": b"PROXY UDP4 203.0.113.7 192.0.2.1 40000 443\r\n",
    "v1-three-parts": b"PROXY TCP4 203.0.113.7 192.0.2.1\r\n",
    "v1-no-address": b"PROXY TCP4 evil 192.0.2.1 40000 443\r\n",
    "v1-wrong-family": b"PROXY TCP4 2001:db8::7 2001:db8::1 40000 443\r\n",
    "v1-port": b"PROXY TCP4 203.0.113.7 192.0.2.1 65536 443\r\n",
    "v1-not-ascii": b"PROXY TCP4 203.0.113.\xb2 192.0.2.1 40000 443\r\n",
    "v1-endless": b"PROXY TCP4 " + b"1" * MAX_V1_BYTES,
    "v1-one-byte-too-long": b"PROXY UNKNOWN " + b"f" * (MAX_V1_BYTES - 15) + b"\r\n",
    "v2-version-1": v2(0x11, TCP4, V4),
    "v2-command": v2(0x22, TCP4, V4),
    "v2-too-short-for-its-family": v2(PROXY, TCP6, V4),
    "v2-no-addresses": v2(PROXY, TCP4),
    "v2-unix-not-ascii": v2(PROXY, UNIX, b"\xff" * 216),
    "v2-checksum-of-one-byte": v2(PROXY, TCP4, V4 + tlv(0x03, b"x")),
    "v2-claims-64-kib": SIGNATURE + struct.pack("!BBH", PROXY, TCP4, 65_535),
    "v2-signature": SIGNATURE[:-1] + b"X",
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_header_names_the_client_and_ends_where_it_ends(name: str) -> None:
    header, client = GOOD[name]
    assert read(header) == ProxyHeader(len(header), client)
    assert read(header + b"GET / HTTP/1.1\r\n\r\n") == ProxyHeader(len(header), client)


@pytest.mark.parametrize("name", GOOD)
def test_a_header_that_is_cut_short_wants_more(name: str) -> None:
    header, _ = GOOD[name]
    assert {read(header[:size]) for size in range(len(header))} == {None}


@pytest.mark.parametrize("name", BAD)
def test_anything_else_is_refused(name: str) -> None:
    with pytest.raises(BadProxyHeader):
        read(BAD[name])


def test_no_bytes_raise_anything_else() -> None:
    chance = random.Random(7)
    for header, _ in GOOD.values():
        for _ in range(500):
            changed = bytearray(header)
            for _ in range(chance.randint(1, 4)):
                changed[chance.randrange(len(changed))] = chance.randrange(256)
            try:
                found = read(bytes(changed))
            except BadProxyHeader:
                continue
            assert found is None or found.size <= MAX_V2_BYTES
