"""The successor of a gateway without workers; the gateways here are scripts, and test doubles."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pushgate.reloads import Renewal
from pushgate.succession import Succession
from tests.support.orphans import adopting, children
from tests.support.worker_scripts import SECONDS, in_order, scripted, until_noted

pytestmark = pytest.mark.anyio


class Gateway:
    """The gateway that is taken over from, or stopped, when the test says so."""

    def __init__(self) -> None:
        self.successor: int | None = None
        self.leaves = asyncio.Event()
        self.was_stopped = False
        self.leave_seconds = 0.5

    async def until_stopped(self) -> None:
        await self.leaves.wait()


@pytest.fixture(autouse=True)
def orphans() -> Iterator[None]:
    with adopting():
        yield


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Give the file of the scripts' notes."""
    path = tmp_path / "notes"
    path.touch()
    return path


def succession(body: str, notes: Path, gateway: Gateway, *, seconds: float = SECONDS) -> Succession:
    command = scripted(f"note(f'pid {{os.getpid()}}')\n{body}", notes)
    return Succession(gateway, command, os.environ, ready_seconds=seconds)


async def renewal_of(succession: Succession, environment: dict[str, str] | None = None) -> Renewal:
    async with asyncio.timeout(SECONDS):
        (renewal,) = [renewal async for renewal in succession.renew(environment)]
    return renewal


async def test_a_successor_is_ready_with_the_new_settings(notes: Path) -> None:
    succeeding = succession("serve()", notes, Gateway())
    renewal = await renewal_of(succeeding, {**os.environ, "PUSHGATE_ORIGINS": "https://new"})
    assert (renewal.worker, renewal.error) == (None, None)
    assert f"None pid {renewal.pid}" in in_order(notes)
    assert "None serves https://new" in in_order(notes)


STARTER = """
import asyncio, json, sys
from pushgate.launch import Orphan
async def start():
    successor = await Orphan.start(json.loads(sys.argv[1]), {})
    await successor.until_ready()
    print(successor.pid, flush=True)
    sys.stdin.read()
asyncio.run(start())
"""


def test_a_successor_is_no_child_and_outlives_the_process_that_started_it(notes: Path) -> None:
    command = [sys.executable, "-c", STARTER, json.dumps(scripted("serve()", notes))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        assert starter.stdin is not None
        pid = int(starter.stdout.readline())
        assert pid in children(), "adopted while the starter runs"
        starter.stdin.close()
        assert starter.wait(SECONDS) == 0
    os.kill(pid, signal.SIGTERM)
    assert os.waitpid(pid, 0) == (pid, 0)
    assert "None SIGTERM" in in_order(notes)


async def test_a_successor_that_can_not_start_is_an_error(notes: Path) -> None:
    renewal = await renewal_of(succession("sys.exit(2)", notes, Gateway()))
    assert renewal.error is not None
    assert "the successor ended before it was ready" in renewal.error


async def test_a_command_that_can_not_be_run_is_an_error() -> None:
    unable = Succession(Gateway(), ["/nonexistent/command"], os.environ)
    renewal = await renewal_of(unable)
    assert renewal.error is not None


async def test_a_successor_that_hangs_is_killed(notes: Path) -> None:
    renewal = await renewal_of(succession("signal.pause()", notes, Gateway(), seconds=0.5))
    assert renewal.error is not None
    assert "was not ready in 1 s and was killed" in renewal.error
    (pid,) = (int(line.split()[2]) for line in in_order(notes) if "pid" in line)
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


async def test_a_gateway_that_is_stopped_meanwhile_has_its_successor_leave(notes: Path) -> None:
    gateway = Gateway()
    renewing = asyncio.create_task(renewal_of(succession("until_signals(1)", notes, gateway)))
    await until_noted(notes, "None waits")
    gateway.leaves.set()
    await until_noted(notes, "None SIGTERM")
    assert (await renewing).error is not None


async def test_a_stop_in_the_middle_of_a_take_over_is_passed_on(notes: Path) -> None:
    gateway = Gateway()
    gateway.was_stopped = True
    gateway.successor = 1
    assert (await renewal_of(succession("serve()", notes, gateway))).error is None
    await until_noted(notes, "None SIGTERM")


async def test_a_gateway_that_is_taken_over_from_lets_its_successor_live(notes: Path) -> None:
    gateway = Gateway()
    body = "note('waits')\nwhile 'go' not in place.read_text():\n    pass\nserve()"
    renewing = asyncio.create_task(renewal_of(succession(body, notes, gateway)))
    await until_noted(notes, "None waits")
    gateway.successor = 1
    gateway.leaves.set()
    await asyncio.sleep(0)
    with notes.open("a") as file:
        file.write("go\n")
    renewal = await renewing
    assert renewal.error is None
    assert not [line for line in in_order(notes) if "SIG" in line]
