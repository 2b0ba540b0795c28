"""What supervisors hear: systemd on its socket, and a process of pushgate on standard input."""

import asyncio
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pushgate.attendance import attend
from pushgate.supervisor import Supervisor
from tests.support.notify import NotifySocket

pytestmark = pytest.mark.anyio


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[NotifySocket]:
    with NotifySocket(str(tmp_path / "notify")) as heard:
        yield heard


@pytest.fixture
def supervisor(systemd: NotifySocket) -> Iterator[Supervisor]:
    with closing(Supervisor.of_process({"NOTIFY_SOCKET": systemd.address})) as supervisor:
        yield supervisor


def test_systemd_hears_of_the_life_of_a_process(
    supervisor: Supervisor, systemd: NotifySocket
) -> None:
    supervisor.ready()
    before = time.monotonic_ns() // 1000
    supervisor.reloading(time.monotonic())
    after = time.monotonic_ns() // 1000 + 1
    supervisor.succeeded_by(4_194_304)
    ready, reloading, succeeded = systemd.words()
    assert (ready, succeeded) == ("READY=1\n", "MAINPID=4194304\n")
    begun = re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=([0-9]+)\n", reloading)
    assert begun is not None
    assert before - 1 <= int(begun[1]) <= after


def test_an_abstract_address_begins_with_an_at_sign() -> None:
    with NotifySocket(f"@pushgate-{secrets.token_hex(8)}") as systemd:
        with closing(Supervisor.of_process({"NOTIFY_SOCKET": systemd.address})) as supervisor:
            supervisor.ready()
        assert systemd.words() == ["READY=1\n"]


def test_a_reload_that_ends_after_the_stop_says_nothing(
    supervisor: Supervisor, systemd: NotifySocket
) -> None:
    supervisor.stopping()
    supervisor.ready()
    assert systemd.words() == ["STOPPING=1\n"]


def test_a_supervisor_that_is_gone_hears_nothing_and_nothing_fails(
    supervisor: Supervisor, systemd: NotifySocket
) -> None:
    systemd.close()
    supervisor.ready()
    for environment in ({"NOTIFY_SOCKET": "/nowhere/notify"}, {}):
        with closing(Supervisor.of_process(environment)) as unheard:
            unheard.ready()


def test_the_process_that_started_this_one_hears_the_same(
    monkeypatch: pytest.MonkeyPatch, systemd: NotifySocket
) -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(10.0)
    with ours, theirs:
        monkeypatch.setattr(os, "dup", lambda descriptor: theirs.detach() if not descriptor else -1)
        supervisor = Supervisor.of_process({"NOTIFY_SOCKET": systemd.address}, launched=True)
        supervisor.ready()
        assert ours.recv(100) == b"READY=1\n"
    assert systemd.words() == ["READY=1\n"]
    supervisor.stopping()  # the other one has ended
    assert systemd.words() == ["STOPPING=1\n"]


class Server:
    """A server that is ready, and leaves, when the test says so."""

    def __init__(self) -> None:
        self.is_ready, self.leaves = asyncio.Event(), asyncio.Event()

    async def started(self) -> None:
        await self.is_ready.wait()

    async def until_stopped(self) -> None:
        await self.leaves.wait()


@pytest.mark.parametrize(("heir", "last"), [(None, "STOPPING=1\n"), (7, "MAINPID=7\n")])
async def test_a_server_that_leaves_has_stopped_or_a_successor(
    supervisor: Supervisor, systemd: NotifySocket, heir: int | None, last: str
) -> None:
    server = Server()
    attending = asyncio.create_task(attend(server, supervisor, successor=lambda: heir))
    await asyncio.sleep(0)
    assert systemd.words() == []
    server.is_ready.set()
    assert await asyncio.to_thread(systemd.next) == "READY=1\n"
    server.leaves.set()
    await asyncio.wait_for(attending, 10)
    assert systemd.words() == [last]


async def test_a_server_that_leaves_before_it_was_ready_says_that_alone(
    supervisor: Supervisor, systemd: NotifySocket
) -> None:
    server = Server()
    server.leaves.set()
    await asyncio.wait_for(attend(server, supervisor), 10)
    assert systemd.words() == ["STOPPING=1\n"]
