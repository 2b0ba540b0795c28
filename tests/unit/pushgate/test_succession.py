"""The successor of a gateway without workers; the gateways here are scripts, and test doubles."""

import asyncio
import contextlib
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
from tests.support.clients import eventually
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


@pytest.fixture
def notes(tmp_path: Path) -> Iterator[Path]:
    """Give the file of the scripts' notes; no script outlives the test."""
    path = tmp_path / "notes"
    path.touch()
    yield path
    for line in in_order(path):
        if "pid" in line:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(line.split()[2]), signal.SIGKILL)


def succession(body: str, notes: Path, gateway: Gateway, *, seconds: float = SECONDS) -> Succession:
    command = scripted(f"note(f'pid {{os.getpid()}}')\n{body}", notes)
    return Succession(gateway, command, os.environ, ready_seconds=seconds)


async def renewal_of(succession: Succession, environment: dict[str, str] | None = None) -> Renewal:
    async with asyncio.timeout(SECONDS):
        (renewal,) = [renewal async for renewal in succession.renew(environment)]
    return renewal


def told_of(pid: int, column: str) -> str:
    """Give a column of `ps`; nothing where there is no such process."""
    done = subprocess.run(
        ["ps", "-o", f"{column}=", "-p", str(pid)], check=False, capture_output=True, text=True
    )
    return done.stdout.strip()


async def until_gone(pid: int) -> None:
    # Who adopts orphans here may leave zombies.
    await eventually(
        lambda: told_of(pid, "stat")[:1] in ("", "Z"), f"{pid} is gone", timeout_seconds=SECONDS
    )


async def test_a_successor_is_ready_with_the_new_settings_and_no_child(notes: Path) -> None:
    succeeding = succession("serve()", notes, Gateway())
    renewal = await renewal_of(succeeding, {**os.environ, "PUSHGATE_ORIGINS": "https://new"})
    assert (renewal.worker, renewal.error) == (None, None)
    assert f"None pid {renewal.pid}" in in_order(notes)
    assert "None serves https://new" in in_order(notes)
    assert told_of(renewal.pid, "ppid") not in ("", str(os.getpid()))


async def test_a_successor_lives_on_after_the_process_that_started_it(
    notes: Path, tmp_path: Path
) -> None:
    starter = tmp_path / "starter.py"
    starter.write_text(
        "import asyncio, json, sys\n"
        "from pushgate.launch import Orphan\n"
        "async def start():\n"
        "    successor = await Orphan.start(json.loads(sys.argv[1]), {})\n"
        "    await successor.until_ready()\n"
        "asyncio.run(start())\n"
    )
    command = scripted("note(f'pid {os.getpid()}')\nserve()", notes)
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, str(starter), json.dumps(command)], check=False
    )
    assert done.returncode == 0
    (pid,) = (int(line.split()[2]) for line in in_order(notes) if "pid" in line)
    os.kill(pid, signal.SIGTERM)
    await until_noted(notes, "None SIGTERM")


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
    await until_gone(pid)


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
