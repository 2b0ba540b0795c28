"""Requests' heads that come late, never, or too large: how they end, and what they cost."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final

import pytest

from tests.conformance.test_hostile_frames import MORE_BYTES, bystander
from tests.support.clients import (
    TEXT,
    Answer,
    Pusher,
    Wire,
    bearer,
    connect,
    frame,
    head,
    open_websocket,
    pusher_to,
    request,
    upgrade_headers,
    wire_to,
)
from tests.support.processes import INTERNAL_SECRET, GatewayProcess
from tests.support.valkey import RedisServer

pytestmark = pytest.mark.anyio

HEAD_SECONDS: Final = 2.0
LATE_SECONDS: Final = HEAD_SECONDS + 2.0
"""How long is waited for a socket's end, which is to come within HEAD_SECONDS."""
CROWD: Final = 500
ROW_SECONDS: Final = 10.0
"""PUSHGATE_HEAD_SECONDS if nothing is set, and so when no socket without a head is left."""
MOST_HEAD_BYTES: Final = 32_768
MIB: Final = 1024 * 1024
HEALTH: Final = head("GET", "/healthz")
HALF: Final = HEALTH[:-10]


@pytest.fixture(scope="module")
def gateway(valkey: RedisServer) -> Iterator[GatewayProcess]:
    """Give a gateway that waits two seconds for a head; how it holds sockets does not matter."""
    with GatewayProcess("heads", redis_url=valkey.url, head_seconds=HEAD_SECONDS) as process:
        yield process


@pytest.fixture
async def pusher(gateway: GatewayProcess) -> AsyncIterator[Pusher]:
    async with pusher_to(gateway.internal_port) as pushing:
        yield pushing


@asynccontextmanager
async def costing_little(gateway: GatewayProcess, pusher: Pusher, user: str) -> AsyncIterator[None]:
    """See that what is done meanwhile takes 20 MB at most, and that nobody beside it notices."""
    gateway.forget_peak()
    before = gateway.resident_bytes
    async with bystander(gateway, pusher, user):
        yield
    assert gateway.peak_bytes - before < MORE_BYTES


def head_of(size: int) -> bytes:
    """Spell a good head of so many bytes."""
    return head("GET", "/healthz", {"X": "x" * (size - len(head("GET", "/healthz", {"X": ""})))})


async def send(wire: Wire, data: bytes) -> None:
    """Send as much as the gateway takes."""
    try:
        await wire.send(data)
    except ConnectionError:
        return


# Late


async def life(wire: Wire, began: float, *, timeout: float = LATE_SECONDS) -> float:
    """Give how many seconds after `began` the gateway has closed the socket."""
    await wire.ended(timeout)
    return time.monotonic() - began


async def test_a_crowd_that_says_nothing_or_half_of_it_is_gone_in_ten_seconds(
    valkey: RedisServer, user: str
) -> None:
    """Fault 14: 500 silent and 500 half-header sockets, at the default setting."""
    lives: list[asyncio.Task[float]] = []
    with GatewayProcess("crowd", redis_url=valkey.url) as gateway:
        async with (
            pusher_to(gateway.internal_port) as pusher,
            costing_little(gateway, pusher, user),
            AsyncExitStack() as wires,
            asyncio.TaskGroup() as tasks,
        ):
            for sent in (b"", HALF) * CROWD:
                began = time.monotonic()
                wire = await wires.enter_async_context(wire_to(gateway.port))
                await wire.send(sent)
                lives.append(tasks.create_task(life(wire, began, timeout=2 * ROW_SECONDS)))
            for number, transport in enumerate(("ws-v1", "sse", "poll")):
                async with connect(transport, gateway.port, f"{user}-{number}") as client:
                    await pusher.push_one(f"{user}-{number}", b"let in")
                    assert (await client.message()).payload == b"let in"
            assert not any(each.done() for each in lives), "the crowd had gone by then"
    assert len(lives) == 2 * CROWD
    assert min(each.result() for each in lives) > ROW_SECONDS / 2
    assert max(each.result() for each in lives) <= ROW_SECONDS


@pytest.mark.parametrize("sent", [b"", HALF], ids=["nothing", "half"])
async def test_no_socket_is_left_after_the_time_for_a_head(
    gateway: GatewayProcess, sent: bytes
) -> None:
    async def connected() -> float:
        began = time.monotonic()
        async with wire_to(gateway.port) as wire:
            await wire.send(sent)
            return await life(wire, began)

    lives = await asyncio.gather(*(connected() for _ in range(20)))
    assert min(lives) > HEAD_SECONDS / 2
    assert max(lives) <= HEAD_SECONDS


async def test_a_head_that_comes_byte_by_byte_is_taken(gateway: GatewayProcess, user: str) -> None:
    async with wire_to(gateway.port) as wire:
        for byte in head("GET", "/ws", {**upgrade_headers(), **bearer(user)}):
            await wire.send(bytes((byte,)))
        assert (await wire.answer()).status == 101


async def test_a_head_that_trickles_is_cut_off(gateway: GatewayProcess) -> None:
    async with wire_to(gateway.port) as wire:
        began = time.monotonic()

        async def trickle() -> None:
            await send(wire, HALF)
            while True:
                await send(wire, b"x")
                await asyncio.sleep(0.1)  # the pace of the attack, not a wait

        trickling = asyncio.create_task(trickle())
        try:
            await wire.ended(LATE_SECONDS)
        finally:
            trickling.cancel()
        assert time.monotonic() - began > HEAD_SECONDS / 2


@pytest.mark.parametrize("next_one", [b"G", b"\r\n", HALF], ids=["byte", "line-end", "half"])
async def test_a_second_request_that_is_begun_has_as_long(
    gateway: GatewayProcess, next_one: bytes
) -> None:
    async with wire_to(gateway.port) as wire:
        await wire.send(HEALTH)
        assert (await wire.answer()).status == 200
        await wire.send(next_one)
        await wire.ended(LATE_SECONDS)


async def test_a_second_request_begun_in_the_segment_of_the_first_has_as_long(
    gateway: GatewayProcess,
) -> None:
    async with wire_to(gateway.port) as wire:
        await wire.send(HEALTH + HALF)
        assert (await wire.answer()).status == 200
        await wire.ended(LATE_SECONDS)


async def test_between_requests_there_is_more_time(gateway: GatewayProcess) -> None:
    async with wire_to(gateway.port) as wire:
        for _ in range(2):
            await wire.send(HEALTH)
            assert (await wire.answer()).status == 200
            with pytest.raises(TimeoutError):
                await wire.exactly(1, timeout=LATE_SECONDS)


@pytest.mark.parametrize("target", ["/poll", "/healthz", "/nowhere", "/pushgate.js"])
@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ({"Content-Length": "1000000000"}, b"some of it"),
        ({"Transfer-Encoding": "chunked"}, b"5\r\nhello\r\n"),
        ({"Content-Length": "1000000000", "Expect": "100-continue"}, b""),
    ],
    ids=["length", "chunked", "expect"],
)
async def test_a_body_that_does_not_end_ends_the_connection(
    gateway: GatewayProcess, user: str, target: str, fields: dict[str, str], sent: bytes
) -> None:
    async with wire_to(gateway.port) as wire:
        await wire.send(head("GET", target, {**bearer(user), **fields}) + sent)
        answer = await wire.answer()
        assert answer.status == {"/poll": 413, "/nowhere": 404}.get(target, 200)
        await wire.ended(1.0)


async def test_the_answer_to_a_body_is_not_lost_and_its_sender_is_cut_off_in_time(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    async with costing_little(gateway, pusher, user), wire_to(gateway.port) as wire:
        began = time.monotonic()
        await wire.send(head("GET", "/nowhere", {"Content-Length": "1000000000"}))

        async def flood() -> None:
            with suppress(ConnectionError, RuntimeError):  # uvloop's for a closed transport
                while True:
                    await wire.send(bytes(MIB))
                    await asyncio.sleep(0.01)  # the pace of the attack, not a wait

        async with asyncio.timeout(LATE_SECONDS):
            await flood()
        assert time.monotonic() - began > HEAD_SECONDS / 2
    async with wire_to(gateway.port) as wire:
        await wire.send(head("GET", "/nowhere", {"Content-Length": str(16 * MIB)}))
        await wire.send(bytes(16 * MIB))
        assert (await wire.answer()).status == 404
        await wire.ended(1.0)


# Large


@pytest.mark.parametrize("name", ["url", "field-name", "field-value", "fields", "blank-lines"])
async def test_a_head_of_64_mib_is_431_and_costs_nothing(
    gateway: GatewayProcess, pusher: Pusher, user: str, name: str
) -> None:
    start, unit = {
        "url": (b"GET /", b"x"),
        "field-name": (b"GET / HTTP/1.1\r\n", b"x"),
        "field-value": (b"GET / HTTP/1.1\r\nx: ", b"x"),
        "fields": (b"GET / HTTP/1.1\r\n", b"x: y\r\n"),
        "blank-lines": (b"", b"\r\n"),
    }[name]
    data = start + unit * (64 * MIB // len(unit))
    for port in (gateway.port, gateway.internal_port):
        async with costing_little(gateway, pusher, user), wire_to(port) as wire:
            sending = asyncio.create_task(send(wire, data))
            assert (await wire.answer()).status == 431
            await wire.ended()
            sending.cancel()
            await asyncio.wait((sending,))


async def test_a_head_may_have_its_size_and_no_byte_more(gateway: GatewayProcess) -> None:
    for port in (gateway.port, gateway.internal_port):
        async with wire_to(port) as wire:
            for _ in range(2):  # a later head of a connection is counted by itself
                await wire.send(head_of(MOST_HEAD_BYTES))
                assert (await wire.answer()).status == 200
            await wire.send(head_of(MOST_HEAD_BYTES + 1))
            answer = await wire.answer()
            assert answer.status == 431
            assert answer.headers["connection"] == "close"
            await wire.ended()


@pytest.mark.parametrize("upgrade", [False, True])
async def test_a_head_may_have_100_fields_and_no_more(
    gateway: GatewayProcess, user: str, upgrade: bool
) -> None:
    wanted = {**(upgrade_headers() if upgrade else {}), **bearer(user)}
    path = "/ws" if upgrade else "/healthz"

    async def ask(number: int) -> Answer:
        more = {f"X-{n}": "y" for n in range(number - len(wanted) - 1)}  # Host is one
        return await request(gateway.port, "GET", path, {**wanted, **more})

    assert (await ask(100)).status == (101 if upgrade else 200)
    assert (await ask(101)).status == 431
    assert (await ask(5_000)).status == 431
    assert "Traceback" not in gateway.log


async def test_frames_behind_a_head_do_not_count(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    early = frame(TEXT, b"x" * (MOST_HEAD_BYTES - 100))
    async with wire_to(gateway.port) as wire:
        client = await open_websocket(wire, bearer(user), follow=early)
        await pusher.push_one(user, b"here")
        assert (await client.message()).payload == b"here"


async def test_a_head_that_is_too_large_waits_for_the_answer_before_it(
    gateway: GatewayProcess, user: str
) -> None:
    async with wire_to(gateway.port) as wire:
        poll = head("GET", "/poll?wait=0", bearer(user))  # answered once it is registered
        await wire.send(poll + b"GET / HTTP/1.1\r\nx: " + b"x" * 2 * MOST_HEAD_BYTES)
        assert (await wire.answer()).status == 200
        await wire.rest()


async def test_requests_piled_up_in_one_segment_cost_little(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    async with AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(wire_to(gateway.port)) for _ in range(10)]
        async with costing_little(gateway, pusher, user):
            pile = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n" * 50_000
            sending = [asyncio.create_task(send(wire, pile)) for wire in wires]
            for wire in wires:
                assert (await wire.rest(20.0)).startswith((b"HTTP/1.1 404", b""))
            await asyncio.gather(*sending)


async def test_bodies_of_the_internal_listener_may_be_larger(gateway: GatewayProcess) -> None:
    content = b"[" + b" " * (4 * MIB - 2) + b"]"
    fields = {
        "Authorization": f"Bearer {INTERNAL_SECRET}",
        "Content-Type": "application/json",
        "Content-Length": str(len(content)),
    }
    answer = await request(gateway.internal_port, "POST", "/push", fields, body=content)
    assert (answer.status, answer.json) == (200, {"results": []})


@pytest.fixture
def user(request: pytest.FixtureRequest) -> str:
    return f"heads-{request.node.name[:60]}"
