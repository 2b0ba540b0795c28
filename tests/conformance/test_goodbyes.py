"""Clients that are in the midst of sending when the gateway ends: each gets the whole goodbye.

A socket that is closed with unread bytes in it resets the connection, and the peer's kernel then
throws away what the peer has not read yet: the Close frame, or the refusal of a request.
"""

import asyncio
import os
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Final

import pytest

from pushgate.embedded import LOOPBACK
from tests.conformance.steps import tls_to
from tests.conformance.test_hostile_frames import MORE_BYTES, bystander
from tests.support.certificate import write_certificate
from tests.support.clients import (
    BINARY,
    CLOSE,
    PING,
    TEXT,
    Pusher,
    bearer,
    close_frame,
    eventually,
    frame,
    head,
    open_websocket,
    pusher_to,
    upgrade_headers,
    wire_to,
)
from tests.support.processes import GatewayProcess
from tests.support.valkey import RedisServer

pytestmark = pytest.mark.anyio

REPETITIONS: Final = 20
GRACE_SECONDS: Final = 4.0
HEAD_SECONDS: Final = 4.0
"""How long a refused request's sender may take to read the refusal."""
SLACK_SECONDS: Final = 2.0
SECONDS: Final = 15.0
MIB: Final = 1024 * 1024
MOST_BYTES: Final = 65_536
KEY: Final = os.urandom(4)
#: More than the buffers of both kernels hold: who sends this waits for the gateway to read.
MORE: Final = bytes(8 * MIB)

BAD: Final[dict[str, tuple[bytes, int]]] = {
    "too-big": (b"\x82\xff" + struct.pack("!Q", len(MORE)) + KEY, 1009),
    "too-many-frames": (frame(PING) * 10_000, 1008),
    # What follows is good: of two faults in one segment the later one may be found first.
    "bad-text": (frame(TEXT, b"\xc0\xaf") + frame(PING, bytes(125)) * (len(MORE) // 131), 1007),
    "bad-frame": (b"\xc1\x80" + KEY, 1002),
}
#: Bad requests, and the status of their answers.
REFUSED: Final = (
    "head-too-large",
    "no-http",
    "no-host",
    "body",
    "body-and-close",
    "body-of-http-1.0",
    "head-behind-a-request",
    "request-behind-the-last-one",
)


def bad_request(name: str) -> tuple[bytes, int]:
    """Return a bad request, with a token that is made now, and the status of its answer."""
    requests: dict[str, tuple[bytes, int]] = {
        "head-too-large": (b"GET / HTTP/1.1\r\nx: ", 431),
        "no-http": (b"\x00\x01\x02\r\n\r\n", 400),
        "no-host": (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
        "body": (head("GET", "/poll", {**bearer("b"), "Content-Length": "100000000"}), 413),
        "body-and-close": (
            head("GET", "/none", {"Connection": "close", "Content-Length": "100000000"}),
            404,
        ),
        "body-of-http-1.0": (
            head("POST", "/none", {"Content-Length": "100000000"}, version="1.0"),
            404,
        ),
        "head-behind-a-request": (
            head("GET", "/poll?wait=0", bearer("p")) + b"GET / HTTP/1.1\r\nx: ",
            200,
        ),
        "request-behind-the-last-one": (
            head("GET", "/poll?wait=0", {**bearer("l"), "Connection": "close"}),
            200,
        ),
    }
    return requests[name]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Give a certificate's file and its key's."""
    return write_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def trust(files: tuple[Path, Path]) -> ssl.SSLContext:
    """Give a client's context that trusts this certificate alone."""
    return ssl.create_default_context(cafile=str(files[0]))


@pytest.fixture(scope="module", params=["epoll", "transport", "transport-tls"])
def way(request: pytest.FixtureRequest) -> str:
    """Give the wire, with or without TLS: with TLS there is the transport wire alone."""
    return str(request.param)


@pytest.fixture(scope="module")
def tls(way: str) -> bool:
    return way.endswith("-tls")


@pytest.fixture(scope="module")
def gateway(
    valkey: RedisServer, way: str, tls: bool, files: tuple[Path, Path]
) -> Iterator[GatewayProcess]:
    """Give a gateway with and without TLS; sockets of TLS stay on the transport wire."""
    wire = way.removesuffix("-tls")
    secured = {"tls_cert": files[0], "tls_key": files[1]} if tls else {}
    with GatewayProcess(
        f"goodbyes-{way}", redis_url=valkey.url, wire=wire, head_seconds=HEAD_SECONDS, **secured
    ) as process:
        yield process


class Sender:
    """A client that reads nothing while it sends, as many HTTP clients do. It blocks."""

    def __init__(self, port: int, trust: ssl.SSLContext | None) -> None:
        self.plug = socket.create_connection((LOOPBACK, port), timeout=SECONDS)
        if trust is not None:
            self.plug = trust.wrap_socket(self.plug, server_hostname=LOOPBACK)

    def until(self, separator: bytes) -> bytes:
        """Read up to and with `separator`, byte by byte: what follows stays unread."""
        received = b""
        while not received.endswith(separator):
            received += self.plug.recv(1)
        return received

    def rest(self) -> bytes:
        """Read to the end, which is no reset."""
        received = b""
        while chunk := self.plug.recv(65_536):
            received += chunk
        return received


def upgraded(port: int, trust: ssl.SSLContext | None, user: str) -> Sender:
    sender = Sender(port, trust)
    sender.plug.sendall(head("GET", "/ws", {**upgrade_headers(), **bearer(user)}))
    assert sender.until(b"\r\n\r\n").startswith(b"HTTP/1.1 101")
    return sender


def code_of(received: bytes) -> int:
    """Read the code of the Close frame, which is the last of the gateway's frames."""
    while received[0] & 0x0F != CLOSE:
        assert received[1] < 126, "control frames are short (RFC 6455 §5.5)"
        received = received[2 + received[1] :]
    assert len(received) == 2 + received[1], "nothing follows a Close frame"
    (code,) = struct.unpack("!H", received[2:4])
    return int(code)


async def repeated(act: Callable[[], int]) -> list[int]:
    """Give the results of a blocking client, a few at a time."""
    at_once = asyncio.Semaphore(4)

    async def one() -> int:
        async with at_once:
            return await asyncio.to_thread(act)

    return await asyncio.gather(*(one() for _ in range(REPETITIONS)))


def client_context(tls: bool, trust: ssl.SSLContext) -> ssl.SSLContext | None:
    return trust if tls else None


@pytest.mark.parametrize("name", BAD)
async def test_who_sends_what_is_wrong_gets_the_close_code_in_the_midst_of_sending(
    gateway: GatewayProcess, tls: bool, trust: ssl.SSLContext, name: str
) -> None:
    bad, code = BAD[name]

    def send() -> int:
        sender = upgraded(gateway.port, client_context(tls, trust), "bad")
        with sender.plug:
            sender.plug.sendall(bad + MORE)
            return code_of(sender.rest())

    assert await repeated(send) == [code] * REPETITIONS


@pytest.mark.parametrize(
    ("target", "status"),
    [("/poll?wait=0", 200), ("/poll?wait=5", 200), ("/sse", 200), ("/none", 404)],
)
async def test_a_refusal_of_a_later_request_disturbs_no_earlier_request(
    gateway: GatewayProcess, tls: bool, trust: ssl.SSLContext, target: str, status: int
) -> None:
    bad_chunk = head("POST", "/none", {"Transfer-Encoding": "chunked"}) + b"nonsense\r\n"

    def send() -> bytes:
        with (sender := Sender(gateway.port, client_context(tls, trust))).plug:
            sender.plug.sendall(head("GET", target, bearer("earlier")) + bad_chunk)
            # An event stream has no end.
            return sender.until(b"\r\n\r\n") if target == "/sse" else sender.rest()

    answers = await asyncio.to_thread(send)
    assert answers.startswith(b"HTTP/1.1 %d " % status)
    assert answers.count(b"HTTP/1.1 ") == 1, "the bad request has no answer of its own"
    assert "without starting response" not in gateway.log
    assert "Traceback" not in gateway.log


@pytest.mark.parametrize("name", REFUSED)
async def test_who_sends_a_bad_request_gets_the_refusal_in_the_midst_of_sending(
    gateway: GatewayProcess, tls: bool, trust: ssl.SSLContext, name: str
) -> None:
    bad, status = bad_request(name)

    def send() -> int:
        with (sender := Sender(gateway.port, client_context(tls, trust))).plug:
            sender.plug.sendall(bad + b"x" * len(MORE))
            return int(sender.rest().split(b" ", 2)[1])

    assert await repeated(send) == [status] * REPETITIONS


async def test_who_is_disconnected_gets_the_close_code_in_the_midst_of_sending(
    gateway: GatewayProcess, tls: bool, trust: ssl.SSLContext
) -> None:
    half = frame(BINARY, bytes(MOST_BYTES)) * 64

    async def kicked(pusher: Pusher, user: str) -> int:
        sender = await asyncio.to_thread(upgraded, gateway.port, client_context(tls, trust), user)
        with sender.plug:
            await asyncio.to_thread(sender.plug.sendall, half)
            answer = await pusher.http.delete(f"/connections/{user}")
            assert answer.json() == {"closed": 1}
            await asyncio.to_thread(sender.plug.sendall, half + close_frame(1000))
            return code_of(await asyncio.to_thread(sender.rest))

    async with pusher_to(gateway.internal_port) as pusher:
        codes = [await kicked(pusher, f"kicked-{number}") for number in range(REPETITIONS)]
    assert codes == [4003] * REPETITIONS


async def test_who_never_closes_is_gone_from_the_node_at_once_and_its_socket_by_the_grace(
    gateway: GatewayProcess, tls: bool, trust: ssl.SSLContext
) -> None:
    before = gateway.descriptors
    async with AsyncExitStack() as stack, pusher_to(gateway.internal_port) as pusher:
        for _ in range(REPETITIONS):
            context = client_context(tls, trust)
            sender = await asyncio.to_thread(upgraded, gateway.port, context, "stays")
            stack.enter_context(sender.plug)
            await asyncio.to_thread(sender.plug.sendall, BAD["bad-frame"][0])
            refused = await asyncio.to_thread(Sender, gateway.port, context)
            stack.enter_context(refused.plug)
            await asyncio.to_thread(refused.plug.sendall, bad_request("no-http")[0])
        await eventually(
            lambda: _is_absent(pusher, "stays"), "it is gone", timeout_seconds=GRACE_SECONDS / 2
        )
        await eventually(
            lambda: gateway.descriptors <= before + 1,  # the pusher's own
            "the sockets are gone",
            timeout_seconds=GRACE_SECONDS + SLACK_SECONDS,
        )


async def _is_absent(pusher: Pusher, user: str) -> bool:
    return (await pusher.http.get(f"/push/{user}")).status_code == 404


async def test_who_floods_behind_a_close_is_cut_by_the_grace_and_nobody_else_notices(
    gateway: GatewayProcess, tls: bool, trust: ssl.SSLContext
) -> None:
    async def flood(user: str) -> float:
        async with tls_to(gateway.port, trust) if tls else wire_to(gateway.port) as wire:
            await open_websocket(wire, bearer(user))
            began = time.monotonic()
            with suppress(ConnectionError, RuntimeError):  # uvloop's for a closed transport
                await wire.send(BAD["bad-frame"][0])
                while True:
                    await wire.send(MORE[:MIB])
                    await asyncio.sleep(0.01)  # the pace of the attack, not a wait
            return time.monotonic() - began

    async with pusher_to(gateway.internal_port) as pusher:
        gateway.forget_peak()
        before = gateway.resident_bytes
        async with bystander(gateway, pusher, "beside", trust=trust if tls else None):
            lives = await asyncio.gather(*(flood(f"flood-{number}") for number in range(10)))
        assert gateway.peak_bytes - before < MORE_BYTES
    assert max(lives) < GRACE_SECONDS + SLACK_SECONDS
