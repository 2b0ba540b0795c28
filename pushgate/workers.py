"""Several gateway processes on one public port, and their parent, which holds no connection."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final

import structlog

from pushgate.attendance import attend
from pushgate.launch import READY_SECONDS, NotReady, own_command, with_hash_seed
from pushgate.reloads import Renewal, reloads_at
from pushgate.supervisor import Supervisor
from pushgate.worker import Worker

#: Exit status of a worker that can't start with its settings; also click's status of usage errors.
CANNOT_START: Final = 2
#: A dead worker is started again after the first delay. The delay doubles with every further death,
#: up to the longest delay. After a life of the steady seconds the delay is the first again.
FIRST_DELAY_SECONDS: Final = 1.0
MOST_DELAY_SECONDS: Final = 30.0
STEADY_SECONDS: Final = 60.0

log = structlog.get_logger("pushgate")


class Workers:
    """The workers of one `pushgate gateway`, from start to exit."""

    def __init__(
        self,
        command: Sequence[str],
        count: int,
        *,
        environment: Mapping[str, str],
        ready_seconds: float = READY_SECONDS,
    ) -> None:
        """`command` is run `count` times, with a PUSHGATE_WORKER_INDEX from 0 to `count` - 1."""
        self._any_ready = asyncio.Event()
        self._workers = [
            Worker(
                index,
                command,
                environment,
                on_ready=self._any_ready.set,
                ready_seconds=ready_seconds,
            )
            for index in range(count)
        ]
        self._unable: set[int] = set()  # the workers that ended with CANNOT_START
        self._any_started = False
        self._stopping = asyncio.Event()
        self._status = 0

    def stop(self) -> None:
        """Have all workers leave, then `run` returns. A second call hastens the workers' drains."""
        self._stopping.set()
        for worker in self._workers:
            worker.stop()

    async def until_stopped(self) -> None:
        """Return once `stop` has been called, or the last worker has left."""
        await self._stopping.wait()

    async def started(self) -> None:
        """Return once a worker has been ready, and each of the others too, or has ended once."""
        for worker in self._workers:
            await worker.was_tried.wait()
        await self._any_ready.wait()

    async def run(self) -> int:
        """Keep the workers until all have left by themselves or by `stop`; give an exit status.

        The status is 0 when all started workers have left cleanly, 1 when a worker did not, and
        CANNOT_START when no worker has ever started and none can.
        """
        log.info("workers start", workers=len(self._workers))
        async with asyncio.TaskGroup() as tasks:
            for worker in self._workers:
                tasks.create_task(self._keep(worker))
        for worker in self._workers:
            await worker.until_left()
        self._stopping.set()  # also where the workers have left by themselves
        log.info("workers have left", status=self._status)
        return self._status

    async def renew(self, environment: Mapping[str, str] | None) -> AsyncIterator[Renewal]:
        """Renew the workers one after the other, and yield what became of each, up to a failure.

        What one worker's successor can't do, the next is not asked to do. Workers that are renewed
        already stay so.
        """
        for worker in self._workers:
            try:
                pid = await worker.renew(environment)
            except NotReady as error:
                yield Renewal(worker.index, error=f"its successor {error}")
                return
            yield Renewal(worker.index, pid=pid)

    async def _keep(self, worker: Worker) -> None:
        """Run a worker, and again after every death, until the worker leaves or `stop`."""
        clock, delay = asyncio.get_running_loop().time, 0.0
        while not self._stopping.is_set():
            born_at = clock()
            status = await self._live(worker)
            self._any_started |= status != CANNOT_START
            if status == 0:
                log.info("worker has left", worker=worker.index)
                return
            if self._stopping.is_set():
                self._left_with(worker, status)
                return
            if status == CANNOT_START:
                log.error("worker can't start", worker=worker.index, **_cause(status))
            else:
                log.error("worker has died", worker=worker.index, **_cause(status))
            if self._none_can_start(worker):
                log.error("no worker can start: giving up")
                self._status = CANNOT_START
                self.stop()
                return
            delay = next_delay(delay, lived_seconds=clock() - born_at)
            await self._pause(worker, delay)

    async def _live(self, worker: Worker) -> int:
        try:
            return await worker.live()
        except OSError as error:
            log.error("no process for a worker", worker=worker.index, error=str(error))
            return CANNOT_START

    def _left_with(self, worker: Worker, status: int) -> None:
        # A worker that dies of SIGTERM had no signal handler yet: the worker was still starting,
        # and held no connection.
        if status != -signal.SIGTERM:
            log.error("worker has not left cleanly", worker=worker.index, **_cause(status))
            self._status = self._status or 1

    def _none_can_start(self, worker: Worker) -> bool:
        """Note that a worker can't start; say whether no worker ever did, nor is starting."""
        self._unable.add(worker.index)
        some_start = self._any_started or any(worker.runs for worker in self._workers)
        return not some_start and len(self._unable) == len(self._workers)

    async def _pause(self, worker: Worker, seconds: float) -> None:
        log.info("worker will be started again", worker=worker.index, in_seconds=seconds)
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


def run_workers(count: int, takeover_socket: str | None, *, drain_seconds: float) -> int:
    """Run this process's own command line `count` times, until SIGTERM or SIGINT.

    `drain_seconds` is the window of the workers' drains. Returns the exit status that `Workers.run`
    gives.
    """

    async def run() -> int:
        supervisor = Supervisor.of_process(os.environ)
        environment = with_hash_seed(os.environ)
        workers = Workers(
            own_command(),
            count,
            environment=environment,
            ready_seconds=READY_SECONDS + drain_seconds,
        )
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, workers.stop)
        reloads = reloads_at(takeover_socket, workers.renew, supervisor, environment)
        attending = loop.create_task(attend(workers, supervisor, reloads=reloads))
        status = await workers.run()
        await attending
        return status

    return asyncio.run(run())


def _cause(status: int) -> Mapping[str, object]:
    return {"signal": signal.Signals(-status).name} if status < 0 else {"status": status}
