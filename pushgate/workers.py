"""Several gateway processes on one public port, and their parent, which holds no connection."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Final

import structlog
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

#: Exit status of a worker that can't start with its settings; also click's status of usage errors.
CANNOT_START: Final = 2
#: A dead worker is started again after the first delay. The delay doubles with every further death,
#: up to the longest delay. After a life of the steady seconds the delay is the first again.
FIRST_DELAY_SECONDS: Final = 1.0
MOST_DELAY_SECONDS: Final = 30.0
STEADY_SECONDS: Final = 60.0

log = structlog.get_logger("pushgate")


class WorkerSettings(BaseSettings):
    """The setting that the parent passes to a worker; operators don't use this setting."""

    model_config = SettingsConfigDict(env_prefix="PUSHGATE_", extra="ignore", defer_build=True)

    worker_index: Annotated[
        int | None, Field(ge=0, description="Which of the workers this process is, from 0.")
    ] = None


class Workers:
    """The worker processes of one `pushgate gateway`, from start to exit."""

    def __init__(self, command: Sequence[str], count: int) -> None:
        """`command` is run `count` times, with a PUSHGATE_WORKER_INDEX from 0 to `count` - 1."""
        self._command = tuple(command)
        self._count = count
        self._running: dict[int, Process] = {}
        self._unable: set[int] = set()  # the workers that ended with CANNOT_START
        self._any_started = False
        self._stopping = asyncio.Event()
        self._status = 0

    def stop(self) -> None:
        """Have all workers leave, then `run` returns. A second call hastens the workers' drains."""
        self._stopping.set()
        for process in self._running.values():
            _tell_to_leave(process)

    async def run(self) -> int:
        """Keep the workers until all have left by themselves or by `stop`; give an exit status.

        The status is 0 when all started workers have left cleanly, 1 when a worker did not, and
        CANNOT_START when no worker has ever started and none can.
        """
        log.info("workers start", workers=self._count)
        async with asyncio.TaskGroup() as tasks:
            for index in range(self._count):
                tasks.create_task(self._keep(index))
        log.info("workers have left", status=self._status)
        return self._status

    async def _keep(self, index: int) -> None:
        """Run worker `index`, and again after every death, until the worker leaves or `stop`."""
        clock, delay = asyncio.get_running_loop().time, 0.0
        while not self._stopping.is_set():
            born_at = clock()
            status = await self._live(index)
            self._any_started |= status != CANNOT_START
            if status == 0:
                log.info("worker has left", worker=index)
                return
            if self._stopping.is_set():
                self._left_with(index, status)
                return
            if status == CANNOT_START:
                log.error("worker can't start", worker=index, **_cause(status))
            else:
                log.error("worker has died", worker=index, **_cause(status))
            if self._none_can_start(index):
                log.error("no worker can start: giving up")
                self._status = CANNOT_START
                self.stop()
                return
            delay = next_delay(delay, lived_seconds=clock() - born_at)
            await self._pause(index, delay)

    async def _live(self, index: int) -> int:
        """Run worker `index` once; give the exit status of the process, negative for a signal."""
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                env=os.environ | {"PUSHGATE_WORKER_INDEX": str(index)},
                # A worker learns from its closed standard input that the parent is gone.
                stdin=PIPE,
                # A terminal's Ctrl-C goes to the whole process group. Workers leave that group:
                # a Ctrl-C must reach a worker through `stop` alone, since a second signal hastens.
                start_new_session=True,
            )
        except OSError as error:
            log.error("no process for a worker", worker=index, error=str(error))
            return CANNOT_START
        self._running[index] = process
        if self._stopping.is_set():  # `stop` came before the process was in `_running`
            _tell_to_leave(process)
        log.info("worker starts", worker=index, pid=process.pid)
        try:
            return await process.wait()
        finally:
            del self._running[index]

    def _left_with(self, index: int, status: int) -> None:
        # A worker that dies of SIGTERM had no signal handler yet: the worker was still starting,
        # and held no connection.
        if status != -signal.SIGTERM:
            log.error("worker has not left cleanly", worker=index, **_cause(status))
            self._status = self._status or 1

    def _none_can_start(self, index: int) -> bool:
        """Note that worker `index` can't start; say whether no worker ever did, nor is starting."""
        self._unable.add(index)
        return not (self._any_started or self._running) and len(self._unable) == self._count

    async def _pause(self, index: int, seconds: float) -> None:
        log.info("worker will be started again", worker=index, in_seconds=seconds)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()


def next_delay(previous: float, *, lived_seconds: float) -> float:
    """Give the seconds to wait before a dead worker is started again.

    `previous` is the delay before the life that has ended, 0 for the first life.
    """
    if lived_seconds >= STEADY_SECONDS or not previous:
        return FIRST_DELAY_SECONDS
    return min(2 * previous, MOST_DELAY_SECONDS)


def run_workers(count: int) -> int:
    """Run this process's own command line `count` times, until SIGTERM or SIGINT.

    Returns the exit status that `Workers.run` gives.
    """

    async def run() -> int:
        workers = Workers([sys.executable, *sys.orig_argv[1:]], count)
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, workers.stop)
        return await workers.run()

    return asyncio.run(run())


def when_parent_ends(then: Callable[[], None]) -> None:
    """In a worker's running loop: call `then` once the parent is gone, however the parent ended."""
    loop, stdin = asyncio.get_running_loop(), sys.stdin.fileno()

    def read() -> None:
        if not os.read(stdin, 1):
            loop.remove_reader(stdin)
            then()

    loop.add_reader(stdin, read)


def _tell_to_leave(process: Process) -> None:
    # SIGTERM, also where the parent got SIGINT: a SIGINT while Python starts ends in a traceback.
    # Not Process.send_signal(), which on CPython 3.11 may take the exit status from the watcher.
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGTERM)


def _cause(status: int) -> Mapping[str, object]:
    return {"signal": signal.Signals(-status).name} if status < 0 else {"status": status}
