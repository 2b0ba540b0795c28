"""`pushgate gateway --workers N`: several nodes on one port, under a parent that holds nothing."""

import asyncio
import contextlib
import os
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from typing import Final

import pytest

from registry.directory import Node
from registry.redis_store import RedisRegistry
from tests.support.clients import Client, Ended, connect, eventually, pusher_to
from tests.support.processes import STOP_SECONDS, GatewayProcess, http_status
from tests.support.valkey import RedisServer
from tests.support.workers_process import COUNT, WorkersProcess

pytestmark = pytest.mark.anyio

#: Enough that the kernel gives one of two workers none of them once in 2**31 runs.
CLIENTS: Final = 32

StartWorkers = Callable[..., WorkersProcess]


@pytest.fixture
def start_workers(processes: ExitStack, valkey: RedisServer) -> StartWorkers:
    """Give a function that starts a parent of the test's own."""

    def start(**settings: object) -> WorkersProcess:
        return processes.enter_context(WorkersProcess(redis_url=valkey.url, **settings))

    return start


@pytest.fixture
def make_workers(processes: ExitStack, valkey: RedisServer) -> StartWorkers:
    """Give a function that makes one, for a test to start; it may never become ready."""

    def make(**settings: object) -> WorkersProcess:
        workers = WorkersProcess(redis_url=valkey.url, **settings)
        processes.callback(workers.close)
        return workers

    return make


@asynccontextmanager
async def clients_of(workers: WorkersProcess, user: str) -> AsyncIterator[dict[str, Client]]:
    """Connect many users, so that every worker has some; their names and clients."""
    async with AsyncExitStack() as stack:
        names = [f"{user}-{number}" for number in range(CLIENTS)]
        yield {
            name: await stack.enter_async_context(connect("ws-plain", workers.port, name))
            for name in names
        }


async def nodes_of(registry: RedisRegistry, users: list[str]) -> dict[str, Node]:
    """Give the one node that the registry has for each user."""
    await registry.refresh()
    found = [nodes or () for nodes in await registry.lookup(users)]
    return {user: node for user, (node,) in zip(users, found, strict=True)}


def exists(pid: int) -> bool:
    """Whether there is a process of this id, be it a zombie."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


async def until_gone(workers: WorkersProcess) -> None:
    await eventually(workers.gone, "no worker answers", timeout_seconds=STOP_SECONDS)


async def test_each_worker_is_a_node_of_its_own_on_the_one_port(
    start_workers: StartWorkers, registry: RedisRegistry, user: str
) -> None:
    workers = start_workers()
    async with clients_of(workers, user) as clients:
        nodes = await nodes_of(registry, list(clients))
        of_port = {port: f"{workers.name}-{i}" for i, port in enumerate(workers.internal_ports)}
        addresses = {f"127.0.0.1:{port}": name for port, name in of_port.items()}
        assert {node.address: node.name for node in nodes.values()} == addresses
        assert len({node.epoch for node in nodes.values()}) == COUNT
        held = Counter(node.address for node in nodes.values())
        for port in workers.internal_ports:
            async with pusher_to(port) as pusher:
                results = await pusher.push([{"user": name, "data": "x"} for name in clients])
                here = [int(nodes[name].address == f"127.0.0.1:{port}") for name in clients]
                assert results == here
                metrics = (await pusher.http.get("/metrics")).text
            pushed = f'pushgate_gateway_pushed_total{{result="not-here"}} {here.count(0)}.0'
            assert pushed in metrics.splitlines()
            assert held[f"127.0.0.1:{port}"] == here.count(1) > 0
        for client in clients.values():
            assert (await client.message()).payload == b"x"
    ready = {line["worker"]: line["node"] for line in workers.events("gateway is ready")}
    assert ready == {index: f"{workers.name}-{index}" for index in range(COUNT)}


async def test_a_killed_worker_comes_back_as_a_new_node_and_no_other_client_notices(
    start_workers: StartWorkers, registry: RedisRegistry, user: str
) -> None:
    workers = start_workers()
    async with clients_of(workers, user) as clients:
        nodes = await nodes_of(registry, list(clients))
        name = f"{workers.name}-1"
        (before,) = {node for node in nodes.values() if node.name == name}
        pid = workers.pid_of(1)
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: not exists(pid), "no zombie is left")
        await eventually(
            lambda: workers.pid_of(1) != pid and workers.readyz() == 200, "it is back",
            timeout_seconds=STOP_SECONDS,
        )  # fmt: skip
        (died,) = workers.events("worker has died")
        assert (died["worker"], died["signal"]) == (1, "SIGKILL")
        async with pusher_to(workers.internal_ports[0]) as pusher:
            for other in (user for user in clients if nodes[user] != before):
                await pusher.push_one(other, b"still here")
                assert (await clients[other].message()).payload == b"still here"
        for victim in (user for user in clients if nodes[user] == before):
            with pytest.raises((Ended, OSError)):
                await clients[victim].message()
        async with clients_of(workers, f"{user}-later") as later:
            nodes = await nodes_of(registry, list(later))
            (after,) = {node for node in nodes.values() if node.name == name}
            assert after.address == before.address
            assert after.epoch != before.epoch


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_all_of_them_and_the_parent_ends_with_0(
    start_workers: StartWorkers, user: str, number: signal.Signals
) -> None:
    workers = start_workers()
    async with clients_of(workers, user) as clients:
        assert all(os.getpgid(workers.pid_of(i)) != workers.pid for i in range(COUNT))
        os.killpg(workers.pid, number)
        for client in clients.values():
            assert (await client.ended(STOP_SECONDS)).code == 1001
        assert await asyncio.to_thread(workers.wait, STOP_SECONDS) == 0
    assert workers.gone()
    assert len(workers.events("worker has left")) == COUNT
    assert not workers.events("worker has died")


async def test_workers_whose_parent_is_killed_leave(start_workers: StartWorkers, user: str) -> None:
    workers = start_workers()
    async with clients_of(workers, user) as clients:
        await asyncio.to_thread(workers.kill)
        for client in clients.values():
            assert (await client.ended(STOP_SECONDS)).code == 1001
    await until_gone(workers)
    await eventually(lambda: len(workers.events("gateway has left")) == COUNT, "both have left")


async def test_a_worker_that_is_drained_stays_out_and_with_the_last_the_parent_ends(
    start_workers: StartWorkers,
) -> None:
    workers = start_workers()

    async def drain(index: int) -> None:
        async with pusher_to(workers.internal_ports[index]) as pusher:
            assert (await pusher.http.post("/drain")).is_success

    await drain(1)
    await eventually(
        lambda: [event["worker"] for event in workers.events("worker has left")] == [1],
        "worker 1 has left",
        timeout_seconds=STOP_SECONDS,
    )
    # The other dies and is back: by then a restart of the drained one would have begun as well.
    os.kill(workers.pid_of(0), signal.SIGKILL)
    await eventually(
        lambda: (
            len(workers.events("worker starts")) > COUNT and workers.statuses("/readyz") == [200, 0]
        ),
        "worker 0 is back",
        timeout_seconds=STOP_SECONDS,
    )
    assert [event["worker"] for event in workers.events("worker starts")].count(1) == 1
    await drain(0)
    assert await asyncio.to_thread(workers.wait, STOP_SECONDS) == 0


@pytest.fixture
def taken() -> Iterator[list[socket.socket]]:
    """Give a list whose sockets are closed with the test."""
    sockets: list[socket.socket] = []
    yield sockets
    for one in sockets:
        one.close()


async def test_workers_without_a_port_end_with_a_message(
    make_workers: StartWorkers, taken: list[socket.socket]
) -> None:
    workers = make_workers()
    taken += [socket.create_server(("127.0.0.1", port)) for port in workers.internal_ports]
    workers.start(until_ready=False)
    assert await asyncio.to_thread(workers.wait, STOP_SECONDS) == 2
    for port in workers.internal_ports:
        assert f"can't listen on 127.0.0.1 port {port}" in workers.log
    assert [event["status"] for event in workers.events("worker can't start")] == [2] * COUNT
    assert "Traceback" not in workers.log


async def test_a_worker_without_a_port_says_so_until_it_has_one_and_the_other_serves(
    make_workers: StartWorkers, taken: list[socket.socket], user: str
) -> None:
    workers = make_workers()
    taken.append(socket.create_server(("127.0.0.1", workers.internal_ports[1])))
    workers.start(until_ready=False)
    await eventually(
        lambda: len(workers.events("worker can't start")) > 1 and workers.statuses("/readyz")[0],
        "worker 1 has tried twice",
        timeout_seconds=STOP_SECONDS,
    )
    assert workers.returncode is None
    assert f"can't listen on 127.0.0.1 port {workers.internal_ports[1]}" in workers.log
    async with connect("sse", workers.port, user):
        taken.pop().close()
        await asyncio.to_thread(workers.wait_until_ready)
    assert await asyncio.to_thread(workers.terminate) == 0


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"tls_cert": "/nowhere/cert.pem", "tls_key": "/nowhere/key.pem"}, "/nowhere/"),
        ({"origins": "example.com"}, "PUSHGATE_ORIGINS"),
    ],
    ids=["tls", "origins"],
)
async def test_bad_settings_end_it_with_a_message(
    make_workers: StartWorkers, bad: dict[str, object], said: str
) -> None:
    workers = make_workers(**bad).start(until_ready=False)
    assert await asyncio.to_thread(workers.wait, STOP_SECONDS) == 2
    assert said in workers.log
    assert "Traceback" not in workers.log


async def test_variables_that_are_no_settings_are_told_once_by_the_parent(
    make_workers: StartWorkers,
) -> None:
    workers = make_workers()
    workers.env |= {
        "PUSHGATE_REDIS_ULR": "redis://localhost",
        "PUSHGATE_SERVICE_HOST": "10.0.0.1",
        "PUSHGATE_PORT_8080_TCP": "tcp://10.0.0.1:8080",
        "PUSHGATE_PROCESSOR_PORT": "tcp://10.0.0.2:8082",
    }
    workers.start()
    assert workers.log.count("PUSHGATE_REDIS_ULR (nearest: PUSHGATE_REDIS_URL)") == 1
    assert workers.log.count("enableServiceLinks: false") == 1


async def test_one_worker_is_the_process_itself(processes: ExitStack, valkey: RedisServer) -> None:
    gateway = GatewayProcess(
        "alone", redis_url=valkey.url, workers=1, drain_seconds=0, worker_index=1
    )
    processes.enter_context(gateway)
    assert http_status(gateway.internal_port, "/readyz") == 200
    assert "worker" not in gateway.log
    # Nobody else may share its port: it was not bound to be shared.
    with pytest.raises(OSError, match="in use"):
        socket.create_server(("127.0.0.1", gateway.port), reuse_port=True)
    assert await asyncio.to_thread(gateway.terminate) == 0
