"""Workers that are renewed: what becomes of a worker whatever its two processes do, and when."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from pushgate.embedded import tied_to_parent
from pushgate.reloads import Renewal
from pushgate.workers import Workers
from tests.support.clients import eventually
from tests.support.worker_scripts import SECONDS, in_order, lines, scripted, until_noted

pytestmark = pytest.mark.anyio

#: A gateway that takes over from the one before, if there is one.
GATEWAY = "take_over(); serve()"
#: A gateway whose first successor does something else.
FIRST = "lives() == 1 and (serve(), sys.exit())\n"


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


Run = Callable[..., Workers]


@pytest.fixture
async def run(notes: Path) -> AsyncIterator[Run]:
    """Give a function that starts workers, which have left in good order after the test."""
    running: list[tuple[Workers, asyncio.Task[int]]] = []

    def start(body: str, count: int = 1, *, ready_seconds: float = SECONDS) -> Workers:
        workers = Workers(
            tied_to_parent(scripted(body, notes)),
            count,
            environment=os.environ,
            ready_seconds=ready_seconds,
        )
        running.append((workers, asyncio.create_task(workers.run())))
        return workers

    yield start
    for workers, task in running:
        workers.stop()
        assert await asyncio.wait_for(task, SECONDS) == 0


def with_origins(origins: str) -> dict[str, str]:
    return {**os.environ, "PUSHGATE_ORIGINS": origins}


async def renewed(workers: Workers, environment: dict[str, str] | None = None) -> list[Renewal]:
    async with asyncio.timeout(SECONDS):
        await workers.started()
        return [renewal async for renewal in workers.renew(environment)]


async def test_workers_are_renewed_one_after_the_other_with_the_new_settings(
    run: Run, notes: Path
) -> None:
    first, second = await renewed(run(GATEWAY, 2), with_origins("https://new"))
    assert (first.worker, second.worker) == (0, 1)
    assert first.error is second.error is None
    assert len({first.pid, second.pid} - {0}) == 2
    order = in_order(notes)
    assert order.index("0 SIGUSR1") < len(order) - 1 - order[::-1].index("1 lives")
    for worker in ("0", "1"):
        assert lines(notes).count(f"{worker} lives") == 2
        assert f"{worker} serves https://new" in order


async def test_a_renewed_worker_that_dies_is_started_again_with_its_new_settings(
    run: Run, notes: Path
) -> None:
    workers = run("take_over()\nserve()\nlives() == 2 and sys.exit(1)")
    (renewal,) = await renewed(workers, with_origins("https://new"))
    os.kill(renewal.pid, signal.SIGTERM)
    await eventually(
        lambda: lines(notes).count("0 serves https://new") == 2, "back", timeout_seconds=SECONDS
    )
    (again,) = await renewed(workers)
    assert again.error is None
    assert lines(notes).count("0 serves https://new") == 3


async def test_a_successor_that_can_not_start_changes_nothing_and_ends_the_reload(
    run: Run, notes: Path
) -> None:
    (failed,) = await renewed(run(FIRST + "sys.exit(2)", 2), with_origins("https://new"))
    assert (failed.worker, failed.pid) == (0, 0)
    assert failed.error is not None
    assert "ended before it was ready" in failed.error
    assert lines(notes).count("0 lives") == 2
    assert lines(notes).count("1 lives") == 1
    assert not [line for line in lines(notes) if "SIG" in line]


async def test_a_successor_that_hangs_is_killed_and_the_worker_serves_on(
    run: Run, notes: Path
) -> None:
    workers = run(FIRST + "note(f'pid {os.getpid()}'); signal.pause()", ready_seconds=1.5)
    (failed,) = await renewed(workers)
    assert failed.error is not None
    assert "was not ready in 1.5 s and was killed" in failed.error
    (pid,) = (int(line.split()[2]) for line in lines(notes) if "pid" in line)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not [line for line in lines(notes) if "SIG" in line]


async def test_a_worker_is_the_successor_where_the_other_is_killed_in_the_middle(
    run: Run, notes: Path
) -> None:
    workers = run(
        "if serving.exists():\n    os.kill(int(serving.read_text()), signal.SIGKILL)\nserve()"
    )
    (renewal,) = await renewed(workers)
    assert renewal.error is None
    os.kill(renewal.pid, 0)
    assert lines(notes).count("0 lives") == 2


async def test_a_worker_whose_successor_took_over_and_died_is_started_again(
    run: Run, notes: Path
) -> None:
    workers = run("lives() == 2 and (take_over(), os._exit(1))\nserve()")
    (failed,) = await renewed(workers)
    assert failed.error is not None
    await eventually(
        lambda: lines(notes).count("0 lives") == 3 and lines(notes).count("0 serves None") == 2,
        "it is back",
        timeout_seconds=SECONDS,
    )


async def test_a_worker_between_two_lives_takes_the_settings_with_the_next(
    run: Run, notes: Path
) -> None:
    workers = run("index == '1' and lives() == 1 and sys.exit(1)\ntake_over()\nserve()", 2)
    first, second = await renewed(workers, with_origins("https://new"))
    assert first.pid
    assert (second.worker, second.pid, second.error) == (1, 0, None)
    await until_noted(notes, "1 serves https://new")


async def test_a_stop_in_the_middle_reaches_both_processes(run: Run, notes: Path) -> None:
    workers = run(FIRST + "until_signals(1)")
    renewing = asyncio.create_task(renewed(workers))
    await until_noted(notes, "0 waits")
    workers.stop()
    (failed,) = await renewing
    assert failed.error is not None
    await until_noted(notes, "0 SIGTERM")
    assert lines(notes).count("0 SIGTERM") == 2


async def test_a_predecessor_that_leaves_slowly_is_waited_for_and_hastened_by_the_second_stop(
    run: Run, notes: Path
) -> None:
    workers = run("lives() == 1 and (serve(leaving=2), sys.exit())\ntake_over(); serve(leaving=2)")
    with capture_logs() as logs:
        renewing = asyncio.create_task(renewed(workers))
        await until_noted(notes, "0 SIGUSR1")
        await eventually(
            lambda: "worker's successor is ready" in [entry["event"] for entry in logs],
            "the successor is the worker",
            timeout_seconds=SECONDS,
        )
    workers.stop()
    await until_noted(notes, "0 SIGTERM")
    assert not renewing.done()
    assert lines(notes).count("0 SIGTERM") == 1
    workers.stop()
    (renewal,) = await renewing
    assert renewal.error is None
    await eventually(lambda: lines(notes).count("0 SIGTERM") == 3, "both are hastened")


async def test_a_predecessor_that_does_not_end_is_killed(run: Run, notes: Path) -> None:
    workers = run("lives() == 1 and serve(leaving=9)\ntake_over(); serve()", ready_seconds=1.5)
    (renewal,) = await renewed(workers)
    assert renewal.error is None
    assert "0 SIGUSR1" in lines(notes)


async def test_workers_have_started_once_one_is_ready_and_the_other_has_ended(
    run: Run, notes: Path
) -> None:
    workers = run(
        "while index == '1' and 'go' not in place.read_text():\n"
        "    signal.sigtimedwait((), 0.01)\n"
        "index == '1' and sys.exit(2)\n"
        "serve()",
        2,
    )
    started = asyncio.create_task(workers.started())
    await until_noted(notes, "0 serves None", "1 lives")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(started), 0.3)
    await asyncio.to_thread(notes.write_text, "go\n")
    await asyncio.wait_for(started, SECONDS)


async def test_workers_that_have_all_ended_once_have_not_started(run: Run, notes: Path) -> None:
    with capture_logs() as logs:
        workers = run("lives() == 1 and sys.exit(1)\nserve()")
        started = asyncio.create_task(workers.started())
        await eventually(
            lambda: "worker has died" in [entry["event"] for entry in logs],
            "it has died",
            timeout_seconds=SECONDS,
        )
        assert not started.done()
        await asyncio.wait_for(started, SECONDS)
    assert "0 serves None" in lines(notes)
