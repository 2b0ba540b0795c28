"""The parent of workers: when it starts one again, when it gives up, and what it passes on.

Its workers here are scripts, in processes of their own; tests/system has real gateways.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
import structlog

from pushgate.embedded import tied_to_parent
from pushgate.launch import LaunchSettings
from pushgate.options import load
from pushgate.workers import CANNOT_START, Workers, next_delay
from tests.support.clients import eventually
from tests.support.worker_scripts import NOTES, SECONDS, lines, scripted, until_noted

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """Run on asyncio's own loop, as the parent does."""
    return "asyncio"


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Give the file where the scripts note what happens to them."""
    path = tmp_path / "notes"
    path.touch()
    return path


@pytest.fixture
def workers(notes: Path) -> Callable[..., Workers]:
    def make(body: str, count: int = 2) -> Workers:
        return Workers(tied_to_parent(scripted(body, notes)), count, environment=os.environ)

    return make


def test_the_delay_doubles_up_to_the_most_and_a_steady_life_resets_it() -> None:
    delays = [0.0]
    for _ in range(7):
        delays.append(next_delay(delays[-1], lived_seconds=59.9))
    assert delays[1:] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert next_delay(30.0, lived_seconds=60.0) == 1.0
    assert next_delay(0.0, lived_seconds=1e6) == 1.0


@pytest.mark.parametrize("value", ["one", "-1"])
def test_a_bad_index_is_a_usage_error(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("PUSHGATE_WORKER_INDEX", value)
    with pytest.raises(click.UsageError, match="PUSHGATE_WORKER_INDEX"):
        load(LaunchSettings, {})


async def test_workers_that_leave_by_themselves_are_not_started_again(
    workers: Callable[..., Workers], notes: Path
) -> None:
    async with asyncio.timeout(SECONDS):
        assert await workers("").run() == 0
    assert lines(notes) == ["0 lives", "1 lives"]


async def test_a_worker_that_dies_is_started_again_as_itself_and_the_other_is_left_alone(
    workers: Callable[..., Workers], notes: Path
) -> None:
    dying = workers("index == '1' and lives() == 1 and sys.exit(1)\nuntil_signals(1)")
    running = asyncio.create_task(dying.run())
    await until_noted(notes, "0 waits", "1 waits")
    dying.stop()
    assert await asyncio.wait_for(running, SECONDS) == 0
    assert lines(notes).count("1 lives") == 2
    assert lines(notes).count("0 lives") == 1


async def test_a_worker_that_is_killed_is_started_again(
    workers: Callable[..., Workers], notes: Path
) -> None:
    dying = workers("lives() == 1 and os.kill(os.getpid(), signal.SIGKILL)\nuntil_signals(1)", 1)
    running = asyncio.create_task(dying.run())
    await until_noted(notes, "0 waits")
    dying.stop()
    assert await asyncio.wait_for(running, SECONDS) == 0


async def test_when_no_worker_can_start_the_parent_ends_with_their_status(
    workers: Callable[..., Workers], notes: Path
) -> None:
    async with asyncio.timeout(SECONDS):
        assert await workers("sys.exit(2)").run() == CANNOT_START
    assert lines(notes) == ["0 lives", "1 lives"]


async def test_what_can_not_be_run_at_all_ends_the_parent() -> None:
    async with asyncio.timeout(SECONDS):
        assert (
            await Workers(["/nonexistent/command"], 2, environment=os.environ).run() == CANNOT_START
        )


async def test_a_worker_that_can_not_start_is_tried_again_while_another_runs(
    workers: Callable[..., Workers], notes: Path
) -> None:
    some = workers("index == '0' and lives() < 3 and sys.exit(2)\nuntil_signals(1)")
    running = asyncio.create_task(some.run())
    await until_noted(notes, "0 waits", "1 waits")
    some.stop()
    assert await asyncio.wait_for(running, SECONDS) == 0
    assert lines(notes).count("0 lives") == 3


async def test_a_second_attempt_that_runs_is_not_given_up_when_the_last_first_one_fails(
    workers: Callable[..., Workers], notes: Path
) -> None:
    some = workers(
        """
if lives() == 1:
    while index == "1" and "0 waits" not in pathlib.Path(sys.argv[1]).read_text():
        signal.sigtimedwait((), 0.01)
    sys.exit(2)
until_signals(1)
"""
    )
    running = asyncio.create_task(some.run())
    await until_noted(notes, "0 waits", "1 waits")
    some.stop()
    assert await asyncio.wait_for(running, SECONDS) == 0


async def test_every_stop_reaches_every_worker(
    workers: Callable[..., Workers], notes: Path
) -> None:
    stubborn = workers("until_signals(2)")
    running = asyncio.create_task(stubborn.run())
    await until_noted(notes, "0 waits", "1 waits")
    stubborn.stop()
    await until_noted(notes, "0 SIGTERM", "1 SIGTERM")
    assert not running.done()
    stubborn.stop()
    assert await asyncio.wait_for(running, SECONDS) == 0
    assert lines(notes).count("0 SIGTERM") == lines(notes).count("1 SIGTERM") == 2


async def test_a_stop_ends_the_wait_for_a_worker_that_died(
    workers: Callable[..., Workers], notes: Path
) -> None:
    dying = workers("note('dies'); sys.exit(1)", 1)
    with structlog.testing.capture_logs() as logs:
        running = asyncio.create_task(dying.run())
        # Its note comes a moment before its end: one that is stopped in between did not leave
        # cleanly, and rightly shows in the status.
        await eventually(
            lambda: [entry["event"] for entry in logs].count("worker has died") == 2,
            "two ends",
            timeout_seconds=SECONDS,
        )
    dying.stop()
    # The next attempt would come two seconds after the second end.
    assert await asyncio.wait_for(running, SECONDS) == 0
    assert lines(notes).count("0 dies") == 2


async def test_a_worker_that_is_told_while_it_starts_has_left_cleanly(
    workers: Callable[..., Workers], notes: Path
) -> None:
    starting = workers("signal.pause()")
    running = asyncio.create_task(starting.run())
    await until_noted(notes, "0 lives", "1 lives")
    starting.stop()
    assert await asyncio.wait_for(running, SECONDS) == 0


@pytest.mark.parametrize("end", ["sys.exit(3)", "os.kill(os.getpid(), signal.SIGKILL)"])
async def test_a_worker_that_does_not_leave_cleanly_shows_in_the_status(
    workers: Callable[..., Workers], notes: Path, end: str
) -> None:
    failing = workers(f"until_signals(1)\nindex == '0' and {end}")
    running = asyncio.create_task(failing.run())
    await until_noted(notes, "0 waits", "1 waits")
    failing.stop()
    assert await asyncio.wait_for(running, SECONDS) == 1


COMMAND = (
    NOTES
    + """
if index is None:
    from pushgate.workers import run_workers
    sys.exit(run_workers(2, None, drain_seconds=0))
signal.alarm(60)  # no worker outlives a test that fails: it is in a session of its own
note(" ".join(sys.argv[2:]))
until_signals(2)
"""
)


@pytest.fixture
def command(tmp_path: Path, notes: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Give a command line that runs itself twice, at the head of a process group."""
    script = tmp_path / "command.py"
    script.write_text(COMMAND)
    root = str(Path(__file__).parents[3])
    with subprocess.Popen(
        tied_to_parent([sys.executable, str(script), str(notes), "--flag", "its value"]),
        env=os.environ | {"PYTHONPATH": root},
        start_new_session=True,
    ) as process:
        yield process
        with contextlib.suppress(ProcessLookupError):
            process.kill()


async def test_a_ctrl_c_reaches_a_worker_once_and_its_flags_are_the_parents(
    command: subprocess.Popen[bytes], notes: Path
) -> None:
    await until_noted(notes, "0 waits", "1 waits", "0 --flag its value", "1 --flag its value")
    for count in (1, 2):
        os.killpg(command.pid, signal.SIGINT)  # as a terminal does
        # To both: two SIGTERMs of which the first has not been taken yet are one (signal(7)).
        await eventually(
            lambda count=count: all(  # type: ignore[misc]
                lines(notes).count(f"{worker} SIGTERM") >= count for worker in range(2)
            ),
            "the signal has been passed on",
            timeout_seconds=SECONDS,
        )
    assert await asyncio.to_thread(command.wait, SECONDS) == 0
    assert not [line for line in lines(notes) if line.endswith("SIGINT")]
    assert lines(notes).count("0 SIGTERM") == lines(notes).count("1 SIGTERM") == 2
