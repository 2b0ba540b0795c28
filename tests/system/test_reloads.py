"""Gateways that are reloaded: no client notices, and systemd hears of it on a socket of the test's.

systemd itself does not run here. The test's process adopts orphans as systemd does.
"""

import asyncio
import os
import signal
import ssl
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from pushgate.embedded import LOOPBACK
from tests.support.certificate import write_certificate
from tests.support.clients import Client, bearer, connect, head, pusher_to, request
from tests.support.notify import NotifySocket
from tests.support.orphans import adopting, children
from tests.support.processes import INTERNAL_SECRET, STOP_SECONDS, GatewayProcess, inherited
from tests.support.valkey import RedisServer
from tests.support.workers_process import COUNT, WorkersProcess

pytestmark = pytest.mark.anyio

KINDS = ("ws-plain", "ws-v1", "sse", "poll")
Process = TypeVar("Process", bound=GatewayProcess)


@pytest.fixture(autouse=True)
def orphans() -> Iterator[None]:
    with adopting():
        yield


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[NotifySocket]:
    with NotifySocket(str(tmp_path / "notify")) as heard:
        yield heard


@pytest.fixture
def gateway(
    processes: ExitStack, valkey: RedisServer, systemd: NotifySocket, tmp_path: Path
) -> GatewayProcess:
    """Give a gateway without workers, ready, whose supervisor is the test."""
    gateway = GatewayProcess(
        "reloaded", redis_url=valkey.url, takeover_socket=tmp_path / "takeover", log_json=True
    )
    return supervised(gateway, processes, systemd)


@pytest.fixture
def workers(
    processes: ExitStack, valkey: RedisServer, systemd: NotifySocket, tmp_path: Path
) -> WorkersProcess:
    """Give a parent with its workers, ready, whose supervisor is the test."""
    workers = WorkersProcess(redis_url=valkey.url, takeover_socket=tmp_path / "takeover")
    return supervised(workers, processes, systemd)


def supervised(process: Process, processes: ExitStack, systemd: NotifySocket) -> Process:
    process.env["NOTIFY_SOCKET"] = systemd.address
    processes.enter_context(process)
    assert systemd.next_with_sender() == ("READY=1\n", process.pid)
    return process


@asynccontextmanager
async def clients_of(port: int, user: str, count: int = 1) -> AsyncIterator[dict[str, Client]]:
    """Connect clients of every kind, with a user each."""
    async with AsyncExitStack() as stack:
        yield {
            name: await stack.enter_async_context(connect(kind, port, name))
            for kind in KINDS
            for name in (f"{user}-{kind}-{number}" for number in range(count))
        }


async def deliver(port: int, clients: dict[str, Client], payload: bytes) -> None:
    """Push one message to each user who is on the node; each client gets it and nothing before."""
    async with pusher_to(port) as pusher:
        results = await pusher.push([{"user": u, "data": payload.decode()} for u in clients])
    taken = [user for user, result in zip(clients, results, strict=True) if result]
    for user in taken:
        assert (await clients[user].message()).payload == payload


async def reload(gateway: GatewayProcess, *flags: str, **variables: str) -> tuple[int, str]:
    """Run `pushgate reload` with the gateway's variables and `variables`; status and output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pushgate", "reload", *flags),
        env={**inherited(), **gateway.env, **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(), 60.0)
    return process.returncode or 0, said.decode()


async def epoch_of(port: int) -> str:
    secret = {"Authorization": f"Bearer {INTERNAL_SECRET}"}
    epoch: str = (await request(port, "GET", "/connections", secret)).json["epoch"]
    return epoch


async def heard(systemd: NotifySocket) -> tuple[str, int]:
    return await asyncio.to_thread(systemd.next_with_sender)


async def test_a_gateway_has_a_successor_and_no_client_notices(
    gateway: GatewayProcess, systemd: NotifySocket, user: str
) -> None:
    epoch = await epoch_of(gateway.internal_port)
    async with clients_of(gateway.port, user) as clients:
        await deliver(gateway.internal_port, clients, b"before")
        reloading = asyncio.create_task(
            reload(gateway, "--environment", PUSHGATE_MAX_CONNECTIONS="4")
        )
        begun, sender = await heard(systemd)
        assert begun.startswith("RELOADING=1\nMONOTONIC_USEC=")
        assert sender == gateway.pid
        (ready, successor), (main, old) = sorted([await heard(systemd), await heard(systemd)])[::-1]
        assert (ready, main, old) == ("READY=1\n", f"MAINPID={successor}\n", gateway.pid)
        assert successor in children(), "systemd waits for children of its own alone"
        assert await asyncio.to_thread(gateway.wait, STOP_SECONDS) == 0
        assert await reloading == (0, f"gateway: renewed, process {successor}\n")
        assert await epoch_of(gateway.internal_port) == epoch
        await deliver(gateway.internal_port, clients, b"after")
        refused = await request(gateway.port, "GET", f"/sse?token={user}")
        assert refused.status == 503, "the new limit counts"
        os.kill(successor, signal.SIGTERM)
        assert await heard(systemd) == ("STOPPING=1\n", successor)
        assert await asyncio.to_thread(os.waitpid, successor, 0) == (successor, 0)
    assert systemd.words() == []
    assert "PYTHONHASHSEED differs" not in gateway.log


async def test_a_signal_reloads_too_and_a_successor_has_a_successor(
    gateway: GatewayProcess, systemd: NotifySocket, user: str
) -> None:
    async with clients_of(gateway.port, user) as clients:
        main = gateway.pid
        for payload in (b"1", b"2"):
            os.kill(main, signal.SIGHUP)
            words = [await heard(systemd) for _ in range(3)]
            (main,) = {int(word[8:]) for word, _ in words if word.startswith("MAINPID=")}
            await deliver(gateway.internal_port, clients, payload)


async def test_a_gateway_whose_successor_can_not_start_serves_on(
    gateway: GatewayProcess, systemd: NotifySocket, user: str
) -> None:
    async with clients_of(gateway.port, user) as clients:
        status, said = await reload(gateway, "--environment", PUSHGATE_ORIGINS="no origin")
        assert status == 1
        assert "gateway: not renewed: the successor ended before it was ready" in said
        assert (await heard(systemd))[0].startswith("RELOADING=1\n")
        assert await heard(systemd) == ("READY=1\n", gateway.pid)
        assert "PUSHGATE_ORIGINS" in gateway.log
        await deliver(gateway.internal_port, clients, b"x")
        status, _ = await reload(gateway)
        assert status == 0


async def test_a_new_certificate_counts_and_connections_over_tls_are_drained(
    processes: ExitStack,
    valkey: RedisServer,
    systemd: NotifySocket,
    tmp_path: Path,
    user: str,
) -> None:
    cert, key = write_certificate(tmp_path)
    gateway = GatewayProcess(
        "tls-reloaded",
        redis_url=valkey.url,
        takeover_socket=tmp_path / "takeover",
        tls_cert=cert,
        tls_key=key,
    )
    supervised(gateway, processes, systemd)
    trusting = ssl.create_default_context(cafile=cert)
    reader, writer = await asyncio.open_connection(LOOPBACK, gateway.port, ssl=trusting)
    writer.write(head("GET", "/sse", bearer(user)))
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    write_certificate(tmp_path)
    reloading = asyncio.create_task(reload(gateway))
    said = await asyncio.wait_for(reader.read(), STOP_SECONDS)
    assert b'event: pushgate.close\ndata: {"code":1001,' in said
    writer.close()
    assert (await reloading)[0] == 0
    address = (LOOPBACK, gateway.port)
    served = await asyncio.to_thread(ssl.get_server_certificate, address)
    assert served.split() == cert.read_text().split()


async def test_workers_are_renewed_and_no_client_notices(
    workers: WorkersProcess, systemd: NotifySocket, user: str
) -> None:
    epochs = [await epoch_of(port) for port in workers.internal_ports]
    before = [workers.pid_of(index) for index in range(COUNT)]
    async with clients_of(workers.port, user, 8) as clients:
        status, said = await reload(workers)
        assert status == 0, said + workers.log
        assert [line.split(":")[0] for line in said.splitlines()] == ["worker 0", "worker 1"]
        begun, ready = await heard(systemd), await heard(systemd)
        assert begun[0].startswith("RELOADING=1\nMONOTONIC_USEC=")
        assert ready == ("READY=1\n", workers.pid)
        assert begun[1] == workers.pid
        assert [await epoch_of(port) for port in workers.internal_ports] == epochs
        after = [int(line.split()[-1]) for line in said.splitlines()]
        assert len({*before, *after}) == 2 * COUNT
        for port in workers.internal_ports:
            await deliver(port, clients, b"after")
        held = Counter([await opened(port) for port in workers.internal_ports])
        assert held == {0: COUNT}, "the new processes have opened none"
        assert not workers.events("the window of repeats is not taken over: PYTHONHASHSEED differs")
    assert await asyncio.to_thread(workers.terminate) == 0
    assert await heard(systemd) == ("STOPPING=1\n", workers.pid)


async def opened(port: int) -> int:
    async with pusher_to(port) as pusher:
        return await pusher.opened()


async def test_a_worker_whose_successor_can_not_start_serves_on_and_so_does_the_other(
    workers: WorkersProcess, systemd: NotifySocket, user: str
) -> None:
    async with clients_of(workers.port, user, 4) as clients:
        status, said = await reload(workers, "--environment", PUSHGATE_ORIGINS="no origin")
        assert status == 1
        assert said.startswith("worker 0: not renewed: its successor ended before it was ready")
        assert "worker 1" not in said
        assert (await heard(systemd))[0].startswith("RELOADING=1\n")
        assert await heard(systemd) == ("READY=1\n", workers.pid)
        for port in workers.internal_ports:
            await deliver(port, clients, b"x")
        status, _ = await reload(workers)
        assert status == 0, "the settings of before are those of the next reload"
