"""A server whose stop does not end: the process ends all the same, and says what was running."""

import subprocess
import sys

import pytest

from pushgate.leaving import NOT_LEFT

SERVER = """
import asyncio, os, signal, sys
from pushgate.commands.running import serve

class Server:
    leave_seconds = 0.3

    def __init__(self):
        self.stopping = asyncio.Event()

    def stop(self):
        self.stopping.set()

    async def started(self):
        pass

    async def until_stopped(self):
        await self.stopping.wait()

    async def run(self):
        os.kill(os.getpid(), signal.SIGTERM)
        await self.stopping.wait()
        await {what}()

async def lingers():
    await asyncio.Event().wait()

async def leaves():
    pass

async def leaves_a_task_behind():
    async def stubborn():
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass
    asyncio.create_task(stubborn(), name="stubborn")
    await asyncio.sleep(0)

serve(Server)
"""


def run(what: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SERVER.format(what=what)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize(
    ("what", "named"),
    [("lingers", "Server.run > lingers > "), ("leaves_a_task_behind", "stubborn > ")],
)
def test_a_stop_without_an_end_has_one(what: str, named: str) -> None:
    ended = run(what)
    output = ended.stdout + ended.stderr
    assert ended.returncode == NOT_LEFT, output
    assert "not left in time" in output
    assert named in output


def test_a_stop_in_time_says_nothing() -> None:
    ended = run("leaves")
    assert ended.returncode == 0, ended.stderr
    assert "not left" not in ended.stdout + ended.stderr
