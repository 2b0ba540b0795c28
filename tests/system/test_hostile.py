"""Clients that vanish or never read, a machine that runs out, and a clock that jumps."""

import asyncio
import ctypes
import itertools
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Final

import pytest

from registry.redis_store import RedisRegistry
from tests.support.clients import (
    SECONDS,
    Answer,
    Client,
    Ended,
    PollClient,
    Pusher,
    Wire,
    bearer,
    connect,
    eventually,
    head,
    open_sse,
    open_websocket,
    pusher_to,
    request,
    upgrade_headers,
    wire_to,
)
from tests.support.processes import GatewayProcess, http_status
from tests.support.valkey import RedisServer
from tests.system.conftest import StartGateway

pytestmark = pytest.mark.anyio

PULSE_SECONDS: Final = 2.0
"""A heartbeat's interval here, and how long an answer may take."""
STALLED_SECONDS: Final = 4.0
PULSE: Final = {
    "heartbeat_seconds": PULSE_SECONDS,
    "heartbeat_timeout_seconds": PULSE_SECONDS,
}
GONE_SECONDS: Final = 2 * PULSE_SECONDS + 2.0
MOST_LOG_LINES: Final = 100
MARK_BYTES: Final = 150 * 1024 * 1024
GROUP_BYTES: Final = 200 * 1024 * 1024
PATIENCE_SECONDS: Final = 120.0
"""A heartbeat's interval where clients that never read are not to be cut."""
TWO_HOURS: Final = 2 * 3_600
MIB: Final = 1024 * 1024
_numbers = itertools.count(1)


# What the tests have in common


async def is_registered(registry: RedisRegistry, user: str) -> bool:
    await registry.refresh()
    return bool((await registry.lookup([user]))[0])


async def serves(pusher: Pusher, clients: dict[str, Client], payload: bytes) -> None:
    """See that every client gets a message of its own."""
    for user, client in clients.items():
        await pusher.push_one(user, payload)
        assert (await client.message()).payload == payload


def established(port: int) -> int:
    """Count the established connections of a local port, by the kernel's word."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


async def status_of_new(
    gateway: GatewayProcess, path: str, user: str, *, good_for: int = 600
) -> int:
    """Ask for a connection; 0 where it is closed without an answer."""
    fields = upgrade_headers() if path == "/ws" else {}
    try:
        async with wire_to(gateway.port) as wire:
            await wire.send(head("GET", path, {**fields, **bearer(user, ttl_seconds=good_for)}))
            return (await wire.answer(bodiless=path == "/sse")).status
    except (Ended, OSError):
        return 0


# Clients whose packets are dropped (half-open connections)


class Network:
    """A network namespace with one link to this one, over which packets can be dropped."""

    def __init__(self) -> None:
        number = os.getpid() % 16_384 * 4
        self.name = f"pushgate-{os.getpid()}"
        self.ours, self.theirs = f"pg{os.getpid()}a", f"pg{os.getpid()}b"
        # 198.18.0.0/15 is for tests between networks (RFC 2544), never routed.
        self.our_address = f"198.18.{number >> 8}.{number % 256 + 1}"
        self.their_address = f"198.18.{number >> 8}.{number % 256 + 2}"

    def set_up(self) -> None:
        """Make both ends and the link; CalledProcessError where that is not allowed."""
        _ip("netns", "add", self.name)
        _ip("link", "add", self.ours, "type", "veth", "peer", "name", self.theirs)
        _ip("link", "set", self.theirs, "netns", self.name)
        _ip("addr", "add", f"{self.our_address}/30", "dev", self.ours)
        _ip("link", "set", self.ours, "up")
        _ip("-n", self.name, "addr", "add", f"{self.their_address}/30", "dev", self.theirs)
        _ip("-n", self.name, "link", "set", self.theirs, "up")

    def tear_down(self) -> None:
        """Remove what is there of it. Harmless when repeated."""
        for command in (("link", "del", self.ours), ("netns", "del", self.name)):
            with suppress(subprocess.CalledProcessError):
                _ip(*command)

    def drop(self) -> None:
        """Let packets vanish both ways: each end sends to a link address that nobody has."""
        nobody = ("lladdr", "02:00:00:00:00:01", "nud", "permanent")
        _ip("neigh", "replace", self.their_address, "dev", self.ours, *nobody)
        there = ("-n", self.name, "neigh", "replace", self.our_address)
        _ip(*there, "dev", self.theirs, *nobody)

    async def wire_to(self, port: int) -> Wire:
        """Connect from within the namespace."""
        plug = await asyncio.to_thread(self._plug)
        async with asyncio.timeout(SECONDS):
            await asyncio.get_running_loop().sock_connect(plug, (self.our_address, port))
        return Wire(*await asyncio.open_connection(sock=plug))

    def _plug(self) -> socket.socket:
        """Make a socket of the namespace: a socket stays in the one that its thread was in."""
        with Path("/proc/thread-self/ns/net").open("rb") as ours:
            _enter(Path("/run/netns", self.name))
            try:
                plug = socket.socket()
            finally:
                _set_namespace(ours.fileno())
        plug.setblocking(False)
        return plug


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _enter(namespace: Path) -> None:
    with namespace.open("rb") as file:
        _set_namespace(file.fileno())


def _set_namespace(descriptor: int) -> None:
    """Call setns(2), which Python has from 3.12 on, for this thread."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, 0):
        raise OSError(ctypes.get_errno(), "setns")


@pytest.fixture
def network() -> Iterator[Network]:
    """Give a network of the test's own; skip where none can be made."""
    if shutil.which("ip") is None:
        pytest.skip("needs ip, which is not installed: apt-get install iproute2")
    made = Network()
    try:
        try:
            made.set_up()
        except subprocess.CalledProcessError as error:
            reason = error.stderr.decode(errors="replace").strip()
            pytest.skip(f"needs a network namespace, which root can make: {reason}")
        yield made
    finally:
        made.tear_down()


@pytest.mark.parametrize("wire", ["epoll", "transport"])
@pytest.mark.parametrize(("heartbeat", "timeout"), [(2.0, 2.0), (3.0, 1.0), (1.0, 3.0)])
async def test_clients_whose_packets_are_dropped_are_gone_in_time(
    start_gateway: StartGateway,
    network: Network,
    registry: RedisRegistry,
    user: str,
    wire: str,
    heartbeat: float,
    timeout: float,
) -> None:
    gateway = start_gateway(
        host=network.our_address,
        wire=wire,
        heartbeat_seconds=heartbeat,
        heartbeat_timeout_seconds=timeout,
    )
    users = [f"{user}-{kind}" for kind in ("ws", "v1", "sse")]
    wires = [await network.wire_to(gateway.port) for _ in users]
    try:
        async with pusher_to(gateway.internal_port) as pusher:
            v1 = "pushgate.v1"
            clients: dict[str, Client] = {
                users[0]: await open_websocket(wires[0], bearer(users[0])),
                users[1]: await open_websocket(wires[1], bearer(users[1]), subprotocol=v1),
                users[2]: await open_sse(wires[2], bearer(users[2])),
            }
            await serves(pusher, clients, b"before")
            assert all([await is_registered(registry, name) for name in users])
            assert established(gateway.port) == len(users)
            network.drop()

            async def gone() -> bool:
                left = [name for name in users if await is_registered(registry, name)]
                return not left and not await pusher.connections()

            await eventually(gone, "all are gone", timeout_seconds=heartbeat + timeout + 2.0)
            await eventually(lambda: not established(gateway.port), "all sockets are gone")
    finally:
        for held in wires:
            await held.close()


@pytest.mark.parametrize(
    ("wait_seconds", "settings", "gone_seconds"),
    [
        # The kernel's probes find it.
        pytest.param(30.0, PULSE, GONE_SECONDS, id="waits"),
        # The answer at the end of its wait stays unacknowledged.
        pytest.param(PULSE_SECONDS / 2, PULSE, GONE_SECONDS, id="its-wait-ends"),
        # Only its grace tells: between two polls there is nothing to acknowledge.
        pytest.param(0.0, {**PULSE, "poll_grace_seconds": 4.0}, GONE_SECONDS, id="between-polls"),
        # The grace is 30 seconds, and less than a heartbeat (25) and its timeout (10).
        pytest.param(0.0, {}, 30.0 + 2.0, id="between-polls-by-default"),
    ],
)
async def test_poll_clients_whose_packets_are_dropped_are_gone_in_time(
    start_gateway: StartGateway,
    network: Network,
    registry: RedisRegistry,
    user: str,
    wait_seconds: float,
    settings: dict[str, float],
    gone_seconds: float,
) -> None:
    gateway = start_gateway(host=network.our_address, **settings)
    wire = await network.wire_to(gateway.port)
    try:
        async with pusher_to(gateway.internal_port) as pusher:
            client = await PollClient(wire, Answer("", 0, {}), bearer(user)).open()
            await serves(pusher, {user: client}, b"before")
            if wait_seconds:
                await client.send(wait=wait_seconds)
                await eventually(lambda: probed(gateway.port), "the poll is parked")
            network.drop()

            async def gone() -> bool:
                return not await pusher.connections() and not await is_registered(registry, user)

            await eventually(gone, "it is gone", timeout_seconds=gone_seconds)
    finally:
        await wire.close()


def probed(port: int) -> bool:
    """Whether a kernel's keep-alive timer runs for an established connection of a local port."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(
        row[1].endswith(f":{port:04X}") and row[3] == "01" and row[5].startswith("02:")
        for row in rows
    )


async def test_a_poll_client_that_answers_the_kernel_is_not_taken_for_gone(
    start_gateway: StartGateway, network: Network, user: str
) -> None:
    gateway = start_gateway(
        host=network.our_address,
        heartbeat_seconds=PULSE_SECONDS,
        heartbeat_timeout_seconds=PULSE_SECONDS,
    )
    wire = await network.wire_to(gateway.port)
    try:
        client = await PollClient(wire, Answer("", 0, {}), bearer(user)).open()
        await client.send(wait=2 * GONE_SECONDS)
        with pytest.raises(TimeoutError):
            await wire.exactly(1, timeout=GONE_SECONDS + 1.0)
        async with pusher_to(gateway.internal_port) as pusher:
            await pusher.push_one(user, b"still here")
        assert (await client.message()).payload == b"still here"
    finally:
        await wire.close()


# Clients that never read


@pytest.mark.parametrize("transport", ["ws-plain", "sse"])
async def test_fifty_clients_that_never_read_are_cut_and_nobody_else_notices(
    start_gateway: StartGateway, registry: RedisRegistry, user: str, transport: str
) -> None:
    gateway = start_gateway(send_buffer_bytes=65_536, heartbeat_timeout_seconds=STALLED_SECONDS)
    stalled = [f"{user}-{number}" for number in range(50)]
    payload = "x" * 16_384
    async with pusher_to(gateway.internal_port) as pusher, AsyncExitStack() as stack:
        good: Client = await stack.enter_async_context(connect(transport, gateway.port, user))
        await serves(pusher, {user: good}, b"before")
        for name in stalled:
            silent = connect(transport, gateway.port, name, receive_buffer_bytes=4_096)
            await stack.enter_async_context(silent)
        began = time.monotonic()
        async with asyncio.timeout(20):
            results: list[int | dict[str, str]] = [1]
            while results != [0] * len(stalled):
                # A full buffer is no slowness yet: first there is no room, then nobody is here.
                assert all(result in (0, 1, {"error": "overloaded"}) for result in results)
                (results,) = await pusher.push([{"user": stalled, "data": payload}])
                await promptly(pusher, good, user)
        assert time.monotonic() - began > STALLED_SECONDS / 2
        assert not any([await is_registered(registry, name) for name in stalled])
        # Each has had a moment to read why; then it is cut, read or not.
        await eventually(
            lambda: established(gateway.port) == 1, "their sockets are gone", timeout_seconds=8.0
        )
        await promptly(pusher, good, user)
        assert await pusher.connections() == 1


async def promptly(pusher: Pusher, client: Client, user: str) -> None:
    began = time.monotonic()
    await pusher.push_one(user, b"beside")
    assert (await client.message()).payload == b"beside"
    assert time.monotonic() - began < 1.0


async def test_clients_that_stop_reading_below_the_bound_are_cut_by_the_heartbeat(
    start_gateway: StartGateway, registry: RedisRegistry, user: str
) -> None:
    gateway = start_gateway(
        send_buffer_bytes=4 * MIB,
        heartbeat_seconds=PULSE_SECONDS,
        heartbeat_timeout_seconds=PULSE_SECONDS,
    )
    stalled = [f"{user}-{number}" for number in range(50)]
    async with pusher_to(gateway.internal_port) as pusher, AsyncExitStack() as stack:
        good = await stack.enter_async_context(connect("sse", gateway.port, user))
        for number, name in enumerate(stalled):
            transport = ("ws-plain", "sse")[number % 2]
            silent = connect(transport, gateway.port, name, receive_buffer_bytes=4_096)
            await stack.enter_async_context(silent)
        for _ in range(10):
            (results,) = await pusher.push([{"user": stalled, "data": "x" * 60_000}])
        assert results == [1] * len(stalled), "nobody has been cut for what waits"

        async def gone() -> bool:
            await promptly(pusher, good, user)
            return await pusher.connections() == 1

        await eventually(gone, "they are gone", timeout_seconds=GONE_SECONDS)
        assert not any([await is_registered(registry, name) for name in stalled])


# A machine that runs out


def of_few_descriptors(valkey: RedisServer) -> GatewayProcess:
    """Give a gateway, not started, that may open 256 descriptors; skip where none can be made."""
    if shutil.which("prlimit") is None:
        pytest.skip("needs prlimit, which is not installed: apt-get install util-linux")
    gateway = GatewayProcess(f"few-{next(_numbers)}", redis_url=valkey.url)
    gateway.through = ("prlimit", "--nofile=256")
    return gateway


async def test_out_of_descriptors_those_that_are_in_are_served_and_the_log_stays_short(
    valkey: RedisServer, user: str
) -> None:
    with of_few_descriptors(valkey) as gateway:
        async with pusher_to(gateway.internal_port) as pusher, AsyncExitStack() as stack:
            clients: dict[str, Client] = {
                f"{user}-{number}": await stack.enter_async_context(
                    connect(("ws-v1", "sse")[number % 2], gateway.port, f"{user}-{number}")
                )
                for number in range(20)
            }
            await serves(pusher, clients, b"before")
            # Sockets that say nothing: they have a descriptor and are no connections yet.
            crowd = [await stack.enter_async_context(wire_to(gateway.port)) for _ in range(600)]
            asked = [
                asyncio.create_task(status_of_new(gateway, "/ws", f"{user}-late"))
                for _ in range(300)
            ]
            assert set(await asyncio.gather(*asked)) <= {0, 503}
            await serves(pusher, clients, b"meanwhile")
            await eventually(
                lambda: http_status(gateway.internal_port, "/readyz") == 503,
                "it notices at its next tick",
            )
            for wire in crowd:
                await wire.close()

            async def recovered() -> bool:
                ready = http_status(gateway.port, "/readyz") == 200
                return ready and await status_of_new(gateway, "/ws", user) == 101

            await eventually(recovered, "new clients are taken again")
            await serves(pusher, clients, b"after")
        assert gateway.log_lines <= MOST_LOG_LINES


async def test_with_every_place_taken_the_rest_is_refused_and_the_log_stays_short(
    valkey: RedisServer, user: str
) -> None:
    with of_few_descriptors(valkey) as gateway:
        async with pusher_to(gateway.internal_port) as pusher:
            async with AsyncExitStack() as stack:
                clients: dict[str, Client] = {}
                while http_status(gateway.internal_port, "/readyz") == 200:
                    assert len(clients) < 256, "it takes more than it has descriptors"
                    name = f"{user}-{len(clients)}"
                    clients[name] = await stack.enter_async_context(
                        connect("ws-v1", gateway.port, name)
                    )
                assert len(clients) > 128
                answers = [await status_of_new(gateway, "/ws", user) for _ in range(300)]
                assert set(answers) == {503}
                assert http_status(gateway.port, "/readyz") == 503
                await serves(pusher, clients, b"meanwhile")

            async def recovered() -> bool:
                ready = http_status(gateway.port, "/readyz") == 200
                return ready and await status_of_new(gateway, "/ws", user) == 101

            await eventually(recovered, "new clients are taken again")
        assert gateway.log_lines <= MOST_LOG_LINES


async def connect_slow(stack: AsyncExitStack, port: int, user: str, count: int) -> list[str]:
    """Connect so many clients that never read; return their users. Every fourth is a poll's."""
    users = [f"{user}-{number}" for number in range(count)]
    for number, name in enumerate(users):
        kind = ("ws-v1", "sse", "ws-plain", "poll")[number % 4]
        silent = connect(kind, port, name, receive_buffer_bytes=4_096)
        await stack.enter_async_context(silent)
    return users


async def push_until_refused(pusher: Pusher, users: list[str], size: int) -> None:
    """Push a message of so many bytes to each user, again and again, until nobody takes one.

    A batch has 1 MiB at most: its memory is free again after the push, and the node is at its mark
    all the same. Batches of 3 MB took a node to its mark that was 7 % below once they were gone.
    """
    most = min(50, MIB // size)
    async with asyncio.timeout(60):
        results: list[object] = [1]
        while 1 in results:
            results = []
            for some in [users[start : start + most] for start in range(0, len(users), most)]:
                data = os.urandom(size // 2).hex()
                # Bytes of its own for every user: a message for a list of users is held once.
                batch = [{"user": name, "data": f"{name} {data}"} for name in some]
                results += await pusher.push(batch, packed=True)
            assert all(result in (1, {"error": "overloaded"}) for result in results)


@pytest.mark.parametrize("size", [400, 8_000, 60_000])
async def test_slow_clients_bring_a_node_to_its_memory_mark_and_the_node_recovers_from_them(
    start_gateway: StartGateway, user: str, size: int
) -> None:
    gateway = start_gateway(
        max_memory_bytes=MARK_BYTES,
        send_buffer_bytes=4 * MIB,  # the mark is to be the bound, not the buffers
        poll_buffer_bytes=4 * MIB,
        heartbeat_seconds=PATIENCE_SECONDS,
        heartbeat_timeout_seconds=PATIENCE_SECONDS,
        # A poll session outlives its client's socket: a quarter of the memory stays for this test.
        poll_grace_seconds=PATIENCE_SECONDS,
    )
    async with (
        pusher_to(gateway.internal_port) as pusher,
        connect("ws-v1", gateway.port, f"{user}-ws") as websocket,
        connect("sse", gateway.port, f"{user}-sse") as stream,
    ):
        clients = {f"{user}-ws": websocket, f"{user}-sse": stream}
        async with AsyncExitStack() as stack:
            slow = await connect_slow(stack, gateway.port, f"{user}-slow", 700)
            await push_until_refused(pusher, slow, size)
            await sheds(gateway, user)
            await serves(pusher, clients, b"meanwhile")
            assert gateway.peak_bytes < 1.1 * MARK_BYTES
            assert gateway.log_lines <= MOST_LOG_LINES

        async def takes_new_clients() -> bool:
            return await status_of_new(gateway, "/ws", user) == 101

        await eventually(takes_new_clients, "it recovers", timeout_seconds=10.0)
        assert gateway.readyz() == 200
        assert await pusher.connections() >= len(slow) / 4, "no session had to end for that"


async def sheds(gateway: GatewayProcess, user: str) -> None:
    """See that new clients are refused for load, on both ports and all transports."""
    await eventually(lambda: gateway.readyz() == 503, "the mark is noticed")
    storm = [
        status_of_new(gateway, path, user)
        for path in ("/ws", "/sse", "/poll?wait=0")
        for _ in range(100)
    ]
    assert set(await asyncio.gather(*storm)) == {503}
    for port in (gateway.port, gateway.internal_port):
        assert (await request(port, "GET", "/readyz")).status == 503
        assert (await request(port, "GET", "/healthz")).status == 200


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """Give a control group with a memory limit, of either version; skip where none can be made."""
    name = f"pushgate-test-{os.getpid()}-{next(_numbers)}"
    for parent, limit in (
        ("/sys/fs/cgroup", "memory.max"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
    ):
        group = Path(parent, name)
        if not Path(parent, "cgroup.procs").exists():
            continue
        try:
            group.mkdir()
            (group / limit).write_text(str(GROUP_BYTES))
        except OSError as error:
            pytest.skip(f"needs a control group that limits memory, which root can make: {error}")
        else:
            yield group
            return
        finally:
            with suppress(OSError):
                group.rmdir()
    pytest.skip("needs control groups at /sys/fs/cgroup")


async def test_in_a_control_group_a_node_sheds_before_it_is_killed(
    valkey: RedisServer, memory_group: Path, user: str
) -> None:
    gateway = GatewayProcess(
        f"group-{next(_numbers)}",
        redis_url=valkey.url,
        send_buffer_bytes=64 * MIB,
        poll_buffer_bytes=64 * MIB,
    )
    join = f'echo $$ > {memory_group}/cgroup.procs && exec "$@"'
    gateway.through = ("sh", "-c", join, "sh")
    with gateway:
        async with pusher_to(gateway.internal_port) as pusher, AsyncExitStack() as stack:
            slow = await connect_slow(stack, gateway.port, user, 20)
            await push_until_refused(pusher, slow, 60_000)
            await sheds(gateway, user)
            assert GROUP_BYTES // 2 < gateway.peak_bytes < GROUP_BYTES
        assert gateway.returncode is None


# A clock that jumps


class Clocked(GatewayProcess):
    """A gateway with a wall clock of its own; the monotonic one is the machine's."""

    def __init__(self, name: str, clock: Path, *, redis_url: str) -> None:
        """`clock` is a file that it may make; skip where libfaketime is not installed."""
        libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
        if not libraries:
            pytest.skip("needs libfaketime, which is not installed: apt-get install faketime")
        super().__init__(name, redis_url=redis_url)
        self._clock = clock
        self.jump_to(0)
        self.env |= {
            "LD_PRELOAD": str(libraries[0]),
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def jump_to(self, seconds: int) -> None:
        """Set the wall clock to so many seconds off the machine's."""
        new = self._clock.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.replace(self._clock)


@pytest.mark.parametrize("jump", [TWO_HOURS, -TWO_HOURS])
async def test_a_clock_jump_drops_nobody_but_whose_token_has_expired(
    valkey: RedisServer, registry: RedisRegistry, tmp_path: Path, user: str, jump: int
) -> None:
    clock = tmp_path / "clock"
    with Clocked(f"clock-{next(_numbers)}", clock, redis_url=valkey.url) as gateway:
        async with pusher_to(gateway.internal_port) as pusher, AsyncExitStack() as stack:
            clients: dict[str, Client] = {
                f"{user}-{kind}": await stack.enter_async_context(
                    connect(kind, gateway.port, f"{user}-{kind}")
                )
                for kind in ("ws-plain", "ws-v1", "sse")
            }
            wire = await stack.enter_async_context(wire_to(gateway.port))
            expiring = await open_websocket(wire, bearer(f"{user}-brief", ttl_seconds=3))
            await serves(pusher, clients, b"before")

            gateway.jump_to(jump)
            began = time.monotonic()
            by_our_clock, by_its_own = [
                await status_of_new(gateway, "/ws", user, good_for=good_for)
                for good_for in (600, 600 + jump)
            ]
            assert (by_our_clock, by_its_own) == (401 if jump > 0 else 101, 101), "it has jumped"
            assert (await expiring.ended(timeout=8.0)).code == 4002
            assert time.monotonic() - began > 1.0, "not at the jump"
            await serves(pusher, clients, b"jumped")
            later = await stack.enter_async_context(wire_to(gateway.port))
            clients[user] = await open_websocket(later, bearer(user, ttl_seconds=600 + jump))
            for name in clients:
                assert await is_registered(registry, name), name

            gateway.jump_to(0)
            back = await status_of_new(gateway, "/ws", user, good_for=600 - TWO_HOURS)
            assert back == 401, "it has jumped back"
            await serves(pusher, clients, b"back again")
            for name in clients:
                assert await is_registered(registry, name), name
