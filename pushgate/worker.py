"""One worker: its process, and during a renewal the successor of the process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import structlog

from pushgate.launch import READY_SECONDS, Child, NotReady

#: The status of a life whose process was taken over, and not by a successor that became ready.
_LOST: Final = 1
#: The variable that tells a process which worker it is.
_INDEX: Final = "PUSHGATE_WORKER_INDEX"

log = structlog.get_logger("pushgate")


class Worker:
    """One worker over its lives. A life is a process, with all successors that took over.

    During a renewal two processes run: the process that serves, and its successor, which takes over
    the connections (gateway/takeover). Once the successor is ready, the successor is the worker's
    process, and the predecessor leaves by itself.
    """

    def __init__(
        self,
        index: int,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        on_ready: Callable[[], None],
        ready_seconds: float = READY_SECONDS,
    ) -> None:
        """`command` is run with `environment`.

        A successor may take `ready_seconds` to become ready, and a predecessor as long to end.

        `on_ready` is called for each process that is ready.
        """
        self.index = index
        #: Set once a process of the worker has been ready, or has ended.
        self.was_tried = asyncio.Event()
        self._command = command
        self._environment = environment
        self._on_ready = on_ready
        self._ready_seconds = ready_seconds
        self._life: asyncio.Future[int] | None = None
        self._process: Child | None = None
        self._successor: Child | None = None
        self._is_renewed = False  # from before the successor starts until it has become the process
        self._predecessors: set[Child] = set()
        self._is_stopping = False

    @property
    def runs(self) -> bool:
        """Whether the worker has a process."""
        return self._process is not None

    async def live(self) -> int:
        """Run the worker until its process ends without a successor; return the exit status.

        The status is negative for a signal.

        Raises:
            OSError: the command can't be run.
        """
        try:
            self._life = asyncio.get_running_loop().create_future()
            self._process = await self._start(self._environment)
            log.info("worker starts", worker=self.index, pid=self._process.pid)
            self._settle()
            return await self._life
        finally:
            self._process = None
            self.was_tried.set()

    async def renew(self, environment: Mapping[str, str] | None) -> int:
        """Start a successor; return its process id once the predecessor has left.

        `environment` is for the successor and every later start; None: as at the last start. The
        predecessor bounds its leaving by itself (pushgate/leaving.py), but for a frozen one. A
        worker without a process takes the new environment with its next start: the result is 0.

        Raises:
            NotReady: the successor did not become ready; the predecessor serves on.
        """
        chosen = self._environment if environment is None else environment
        predecessor = self._process
        if predecessor is None:
            self._environment = chosen
            return 0
        self._is_renewed = True
        try:
            successor = await self._ready_successor(chosen)
            self._process, self._environment = successor, chosen
            self._predecessors.add(predecessor)
            log.info("worker's successor is ready", worker=self.index, pid=successor.pid)
        finally:
            self._successor, self._is_renewed = None, False
            self._settle()
        await predecessor.until_ended(self._ready_seconds)
        self._predecessors.discard(predecessor)
        return successor.pid

    def stop(self) -> None:
        """Have the worker leave. A second call hastens the drain, a predecessor's too."""
        # A predecessor leaves already: its first signal would hasten it.
        leaving = self._predecessors if self._is_stopping else ()
        self._is_stopping = True
        for process in (self._process, self._successor, *leaving):
            if process is not None:
                process.leave()

    async def until_left(self) -> None:
        """Return once the predecessors have ended."""
        for process in tuple(self._predecessors):
            await asyncio.wait((process.ended,))

    async def _ready_successor(self, environment: Mapping[str, str]) -> Child:
        try:
            successor = self._successor = await self._start(environment)
        except OSError as error:
            raise NotReady(f"has no process: {error}") from error
        log.info("worker's successor starts", worker=self.index, pid=successor.pid)
        try:
            await successor.until_ready(self._ready_seconds)
        except NotReady:
            await asyncio.wait((successor.ended,))
            raise
        return successor

    async def _start(self, environment: Mapping[str, str]) -> Child:
        process = await Child.start(self._command, {**environment, _INDEX: str(self.index)})
        process.ready.add_done_callback(self._note_ready)
        process.ended.add_done_callback(lambda _: self._settle())
        if self._is_stopping:  # `stop` came while the process started
            process.leave()
        return process

    def _note_ready(self, ready: asyncio.Future[bool]) -> None:
        if ready.result():
            self.was_tried.set()
            self._on_ready()

    def _settle(self) -> None:
        """End the life where the worker's process has ended, and no successor may take over."""
        process, life = self._process, self._life
        if process is None or life is None or life.done() or self._is_renewed:
            return
        if process.ended.done():
            status = process.ended.result()
            life.set_result(status or (_LOST if process.was_taken_over else 0))
