"""Fault 20: pushes without the secret, with a wrong one, on the public port, or smuggled in.

Each attack is sent as it is over a socket of its own, and a client whom it is meant for sees what
came of it. That a push with the secret in the same place does reach this client is shown as well:
else nothing here would prove anything.
"""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

import pytest

from registry.directory import Node
from registry.proof import proof
from tests.support.clients import Client, bearer, connect, head, pusher_to, request, wire_to
from tests.support.processes import INTERNAL_SECRET, GatewayProcess
from tests.support.valkey import RedisServer

pytestmark = pytest.mark.anyio

SECRET: Final = {"Authorization": f"Bearer {INTERNAL_SECRET}"}
OLD_SECRET: Final = "the secret of yesterday in thirty-two bytes or more"
NEW_SECRET: Final = "the secret of tomorrow in thirty-two bytes or more"


@pytest.fixture(scope="module")
def gateway(valkey: RedisServer) -> Iterator[GatewayProcess]:
    """Give a gateway; how it holds sockets does not matter."""
    with GatewayProcess("intruded", redis_url=valkey.url) as process:
        yield process


def authorized_by(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


@asynccontextmanager
async def undisturbed(gateway: GatewayProcess, user: str) -> AsyncIterator[Client]:
    """Give a client of `user`, and see that nothing reaches it but what is pushed openly after."""
    async with (
        connect("ws-plain", gateway.port, user) as client,
        pusher_to(gateway.internal_port) as pusher,
    ):
        yield client
        await pusher.push_one(user, b"openly")
        assert (await client.message()).payload == b"openly"
        assert gateway.readyz() == 200


def batch_for(user: str) -> bytes:
    return json.dumps([{"user": user, "data": "intruded", "id": "i"}]).encode()


# Who is let in


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        authorized_by(""),
        authorized_by("wrong"),
        authorized_by(INTERNAL_SECRET[:-1]),
        authorized_by(INTERNAL_SECRET + "x"),
        authorized_by(INTERNAL_SECRET.upper()),
        authorized_by(f"{INTERNAL_SECRET}, Bearer {INTERNAL_SECRET}"),
        {"Authorization": f"Basic {INTERNAL_SECRET}"},
        {"Authorization": INTERNAL_SECRET},
        {"Proxy-Authorization": f"Bearer {INTERNAL_SECRET}"},
        {"Cookie": f"Authorization=Bearer {INTERNAL_SECRET}"},
    ],
    ids=lambda fields: next(iter(fields.values()), "none")[:40],
)
async def test_a_push_without_the_secret_reaches_nobody(
    gateway: GatewayProcess, user: str, fields: dict[str, str]
) -> None:
    status = 403 if "Authorization" in fields else 401
    async with undisturbed(gateway, user):
        for path, body in (("/push", batch_for(user)), (f"/push/{user}", b"intruded")):
            length = {"Content-Length": str(len(body))}
            answer = await request(gateway.internal_port, "POST", path, fields | length, body=body)
            assert answer.status == status


async def test_the_public_port_pushes_nothing_whoever_asks(
    gateway: GatewayProcess, user: str
) -> None:
    async with undisturbed(gateway, user):
        for path in ("/push", f"/push/{user}", f"//push/{user}", f"/ws/../push/{user}"):
            body = batch_for(user)
            fields = {**SECRET, "Content-Length": str(len(body))}
            answer = await request(gateway.port, "POST", path, fields, body=body)
            assert answer.status == 404


async def test_a_push_with_the_secret_reaches_its_user(gateway: GatewayProcess, user: str) -> None:
    """The control of all the others."""
    async with undisturbed(gateway, user) as client:
        for path, body in (("/push", batch_for(user)), (f"/push/{user}", b"intruded")):
            fields = {**SECRET, "Content-Length": str(len(body))}
            answer = await request(gateway.internal_port, "POST", path, fields, body=body)
            assert answer.status == 200
            assert (await client.message()).payload == b"intruded"


# Two secrets, while they are rotated


async def statuses(gateway: GatewayProcess, *secrets: str) -> list[int]:
    """Give the status of a push with each of the secrets; nobody is there to be pushed to."""
    found = []
    for secret in secrets:
        fields = {**authorized_by(secret), "Content-Length": "2"}
        answer = await request(gateway.internal_port, "POST", "/push", fields, body=b"[]")
        found.append(answer.status)
    return found


async def test_while_secrets_are_rotated_both_are_good(valkey: RedisServer) -> None:
    given = (NEW_SECRET, OLD_SECRET, INTERNAL_SECRET, "", f"{NEW_SECRET}, Bearer {OLD_SECRET}")
    rotating = {"internal_secret": NEW_SECRET, "internal_secret_previous": OLD_SECRET}
    with GatewayProcess("rotating", redis_url=valkey.url, **rotating) as gateway:
        assert await statuses(gateway, *given) == [200, 200, 403, 403, 403]
    with GatewayProcess("rotated", redis_url=valkey.url, internal_secret=NEW_SECRET) as gateway:
        assert await statuses(gateway, *given) == [200, 403, 403, 403, 403]


async def test_proofs_of_both_secrets_are_good_while_they_are_rotated(valkey: RedisServer) -> None:
    rotating = {"internal_secret": NEW_SECRET, "internal_secret_previous": OLD_SECRET}
    with GatewayProcess("rotating", redis_url=valkey.url, **rotating) as gateway:
        listed = await request(
            gateway.internal_port, "GET", "/connections", authorized_by(NEW_SECRET)
        )
        node = Node("rotating", listed.json["epoch"], f"127.0.0.1:{gateway.internal_port}")
        for secret, status in ((NEW_SECRET, 200), (OLD_SECRET, 200), (INTERNAL_SECRET, 403)):
            fields = {"Authorization": f"Pushgate {proof(secret, node)}", "Content-Length": "2"}
            answer = await request(gateway.internal_port, "POST", "/push", fields, body=b"[]")
            assert answer.status == status


async def test_a_push_that_is_cut_off_leaves_nothing_in_the_log(
    gateway: GatewayProcess, user: str
) -> None:
    async with undisturbed(gateway, user):
        for path in ("/push", f"/push/{user}"):
            fields = {**SECRET, "Content-Length": "1000"}
            async with wire_to(gateway.internal_port) as wire:
                await wire.send(head("POST", path, fields) + b"intruded")
                await request(gateway.internal_port, "GET", "/healthz")  # it has been read
    assert "Traceback" not in gateway.log
    assert INTERNAL_SECRET not in gateway.log


# Smuggling: bytes that two parsers would cut differently

CHUNKED: Final = b"Transfer-Encoding: chunked"
LAST: Final = b"0\r\n\r\n"
GOODBYE: Final = head("GET", "/healthz", {"Connection": "close"})
"""Ends a connection on which requests are still read: its answer is the last."""


def hidden(user: str, fields: Mapping[str, str] | None = None) -> bytes:
    """Spell the push that an attacker would have the gateway find."""
    return head("POST", f"/push/{user}", {**(fields or {}), "Content-Length": "8"}) + b"intruded"


def outer(target: str, *lines: bytes, end: bytes = b"\r\n") -> bytes:
    """Spell the head of a push with the secret; its last fields are sent byte for byte."""
    secret = b"Authorization: Bearer " + INTERNAL_SECRET.encode()
    return end.join((f"POST {target} HTTP/1.1".encode(), b"Host: h", secret, *lines, b"", b""))


def chunk(data: bytes, *, extension: bytes = b"", end: bytes = b"\r\n") -> bytes:
    return b"%x%b%b%b%b" % (len(data), extension, end, data, end)


def ambiguous(target: str, inner: bytes) -> dict[str, bytes]:
    """Spell requests that have more than one reading; in one of them `inner` is a request."""
    whole = b"Content-Length: %d" % len(inner)
    length, behind = b"Content-Length: %d" % len(LAST + inner), LAST + inner
    short, chunks = b"Content-Length: 4", chunk(inner) + LAST
    return {
        "CL.TE": outer(target, length, CHUNKED) + behind,
        "TE.CL": outer(target, CHUNKED, short) + chunks,
        "TE.TE": outer(target, CHUNKED, b"Transfer-Encoding: identity") + behind,
        "two-lengths": outer(target, b"Content-Length: 0", whole) + inner,
        "two-lengths-turned": outer(target, whole, b"Content-Length: 0") + inner,
        "two-equal-lengths": outer(target, whole, whole) + inner,
        "length-list": outer(target, b"Content-Length: 0, %d" % len(inner)) + inner,
        "length-signed": outer(target, b"Content-Length: +0") + inner,
        "length-negative": outer(target, b"Content-Length: -1") + inner,
        "length-hex": outer(target, b"Content-Length: 0x0") + inner,
        "length-spaced": outer(target, b"Content-Length: 0 0") + inner,
        "length-empty": outer(target, b"Content-Length:") + inner,
        "length-huge": outer(target, b"Content-Length: %d" % (1 << 64)) + inner,
        "length-name-spaced": outer(target, b"Content-Length : %d" % len(inner)) + inner,
        "folded": outer(target, b"X: y\r\n " + whole) + inner,
        "folded-TE": outer(target, b"Transfer-Encoding:\r\n chunked", short) + chunks,
        "folded-first": outer(target, whole).replace(b"Host", b" Host", 1) + inner,
        "TE-unknown": outer(target, b"Transfer-Encoding: xchunked") + behind,
        "TE-not-last": outer(target, b"Transfer-Encoding: chunked, identity") + behind,
        "TE-vertical-tab": outer(target, b"Transfer-Encoding: \x0bchunked", short) + chunks,
        "TE-quoted": outer(target, b'Transfer-Encoding: "chunked"', short) + chunks,
        "TE-name-spaced": outer(target, b"Transfer-Encoding : chunked", short) + chunks,
        "bare-LF-in-the-head": outer(target, b"X: y\n" + whole) + inner,
        "bare-LF-all-over": outer(target, whole, end=b"\n") + inner,
        "bare-CR": outer(target, b"X: y\r" + whole) + inner,
        "NUL": outer(target, b"X: y\x00", whole) + inner,
        "chunk-bare-LF": outer(target, CHUNKED) + chunk(inner, end=b"\n") + LAST,
        "chunk-size-hex": outer(target, CHUNKED) + b"0x0\r\n\r\n" + inner,
        "chunk-size-signed": outer(target, CHUNKED) + b"-0\r\n\r\n" + inner,
        "chunk-size-spaced": outer(target, CHUNKED) + b" 0\r\n\r\n" + inner,
        "chunk-size-overflows": outer(target, CHUNKED) + b"1" + b"0" * 16 + b"\r\n" + inner,
        "chunk-too-short": outer(target, CHUNKED) + b"1\r\n" + inner + b"\r\n" + LAST,
        "chunk-extension-LF": outer(target, CHUNKED) + chunk(inner, extension=b";\n") + LAST,
        "length-in-a-trailer": outer(target, CHUNKED) + b"0\r\n" + whole + b"\r\n\r\n" + inner,
    }


def plain(target: str, inner: bytes) -> dict[str, tuple[bytes, bool]]:
    """Spell requests of one reading, and whether `inner` is one by itself."""
    length = b"Content-Length: %d" % len(inner)
    in_a_query = inner.decode().replace("\r\n", "%0d%0a").replace(" ", "+")
    extension = b';name=value;quoted="a b"'
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket"
    return {
        "in-a-body": (outer(target, length) + inner, False),
        "in-a-chunk": (outer(target, CHUNKED) + chunk(inner) + LAST, False),
        "in-an-extended-chunk": (
            outer(target, CHUNKED) + chunk(inner, extension=extension) + LAST,
            False,
        ),
        "in-a-field": (outer(target, b"X: " + inner.replace(b"\r\n", b" ")), False),
        "in-a-query": (outer(f"{target}?{in_a_query}"), False),
        "behind-an-upgrade": (outer(target, upgrade) + inner, False),
        "behind": (outer(target, b"Content-Length: 0") + inner, True),
        "behind-a-chunked-one": (outer(target, CHUNKED) + LAST + inner, True),
        "behind-blank-lines": (
            outer(target, b"Content-Length: 0") + b"\r\n\r\n" + inner,
            True,
        ),
    }


async def exchanged(port: int, data: bytes, *, in_lines: bool) -> list[int]:
    """Send bytes, and give the status of each answer up to the end of the connection.

    In lines, some come after what made the gateway end it: then the last answers may be missing.
    """
    async with wire_to(port) as wire:
        with contextlib.suppress(ConnectionError):
            for piece in data.splitlines(keepends=True) if in_lines else (data,):
                await wire.send(piece)
                if in_lines:
                    await asyncio.sleep(0)
        found = re.findall(rb"HTTP/1\.1 (\d{3}) ", await wire.rest())
    return [int(status) for status in found]


@pytest.mark.parametrize("name", ambiguous("/", b""))
async def test_a_request_of_two_readings_is_refused_as_a_whole(
    gateway: GatewayProcess, user: str, name: str
) -> None:
    # With the secret inside and outside: whatever of it was read as a push would come through.
    attack = ambiguous(f"/push/{user}", hidden(user, SECRET))[name]
    async with undisturbed(gateway, user):
        for port in (gateway.internal_port, gateway.port):
            assert await exchanged(port, attack, in_lines=False) == [400]
            # On the public port a 404 needs no body, and ends the connection before one comes.
            assert await exchanged(port, attack, in_lines=True) in ([400], [404], [])


@pytest.mark.parametrize("name", plain("/", b""))
async def test_a_push_hidden_in_another_request_needs_the_secret_itself(
    gateway: GatewayProcess, user: str, name: str
) -> None:
    outside = f"/push/nobody-like-{user}"
    for fields, status in (({}, 401), (authorized_by("wrong"), 403), (SECRET, 200)):
        attack, is_request = plain(outside, hidden(user, fields))[name]
        last = [] if "upgrade" in name else [200]
        expected = [404, status, *last] if is_request else [404, *last]
        for in_lines in (False, True):
            async with undisturbed(gateway, user) as client:
                data = attack + GOODBYE
                answers = await exchanged(gateway.internal_port, data, in_lines=in_lines)
                assert answers == expected[: len(answers) if in_lines else None]
                if is_request and fields == SECRET:  # the control: this is how it would be seen
                    assert (await client.message()).payload == b"intruded"


@pytest.mark.parametrize("name", plain("/", b""))
async def test_on_the_public_port_a_hidden_push_is_nothing(
    gateway: GatewayProcess, user: str, name: str
) -> None:
    attack, is_request = plain("/nowhere", hidden(user, SECRET))[name]
    last = [] if "upgrade" in name else [200]
    async with undisturbed(gateway, user):
        answers = await exchanged(gateway.port, attack + GOODBYE, in_lines=False)
        assert answers == ([404, 404, *last] if is_request else [404, *last])


async def test_a_push_behind_a_parked_poll_is_nothing(gateway: GatewayProcess, user: str) -> None:
    fields = bearer(f"{user}-polls")
    async with undisturbed(gateway, user):
        opened = await request(gateway.port, "GET", "/poll?wait=0", fields)
        poll = head("GET", f"/poll?cursor={opened.json['cursor']}&wait=0.2", fields)
        attack = poll + hidden(user, SECRET) + GOODBYE
        # What is begun before the poll is parked is not read: its connection ends with the answer.
        assert await exchanged(gateway.port, attack, in_lines=False) == [200]
        answers = await exchanged(gateway.port, attack, in_lines=True)
        assert answers in ([200], [200, 404], [200, 404, 200])
