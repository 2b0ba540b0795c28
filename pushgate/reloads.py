"""Reloads of a running gateway: one at a time, by SIGHUP or asked for on the reload socket.

The reload socket is at PATH.reload of PUSHGATE_TAKEOVER_SOCKET=PATH. `pushgate reload` writes a
Request there, and reads a Renewal for each process that is renewed, then an Ended: lines of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
import time
from asyncio import IncompleteReadError, LimitOverrunError, StreamReader, StreamWriter
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec
import structlog

from pushgate.environment import remarks
from pushgate.errors import PushgateError
from pushgate.options import PREFIX
from pushgate.supervisor import Supervisor

#: An environment has two MiB at most on Linux (execve(2), without a larger stack).
_REQUEST_BYTES: Final = 4 << 20
_REQUEST_SECONDS: Final = 5.0
#: What the processes of before and after a reload have to agree on.
_FIXED: Final = ("PUSHGATE_TAKEOVER_SOCKET", "PUSHGATE_WORKERS")

log = structlog.get_logger("pushgate")


class Request(msgspec.Struct, frozen=True):
    """What `pushgate reload` asks for.

    The variables are PUSHGATE_… settings in place of those of now; None: those of now.
    """

    variables: dict[str, str] | None = None


class Renewal(msgspec.Struct, frozen=True, tag="renewal"):
    """What became of one process: the worker's number, None without workers.

    `pid` is the process that has taken over, 0 where none ran. With an error the process from
    before serves on.
    """

    worker: int | None
    pid: int = 0
    error: str | None = None


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """The end of a reload; `error` says why there was none."""

    error: str | None = None


#: Renews the processes one after the other, with an environment or, for None, that of now.
Renew = Callable[[Mapping[str, str] | None], AsyncIterator[Renewal]]


class NoReload(PushgateError):
    """No reload begins; the text says why."""


class Reloads:
    """The reloads of this process.

    A reload that is asked for while another runs is refused. Joined to the other, it would seem to
    bring settings and a version that came too late for the workers renewed already.
    """

    def __init__(
        self,
        path: str,
        renew: Renew,
        supervisor: Supervisor,
        *,
        environment: Mapping[str, str],
    ) -> None:
        """`path` is the take-over socket's, `environment` that of this process."""
        self._path = path
        self._renew = renew
        self._supervisor = supervisor
        self._environment = environment
        self._server: asyncio.Server | None = None
        self._running: asyncio.Task[None] | None = None

    async def listen(self) -> None:
        """Take requests at the reload socket, from now on in place of a predecessor.

        Where there can be no socket, the log says so, and no reload begins.
        """
        place = reload_socket(self._path)
        # Bound under another name first: the mode is set before anybody finds the socket, and the
        # socket of a predecessor, or of a process that was killed, is replaced in one step.
        bound = f"{place}.{os.getpid()}"
        try:
            server = await asyncio.start_unix_server(self._answer, bound, limit=_REQUEST_BYTES)
            _put_in_place(Path(bound), place)
        except OSError as error:
            log.error("no reload socket: pushgate reload finds no gateway", error=str(error))
        else:
            self._server = server

    def begin_by_signal(self) -> None:
        """Begin a reload, whose end is in the log alone."""
        try:
            self.begin(None, lambda _: None)
        except NoReload as refused:
            log.warning("a reload is refused", reason=str(refused))

    def begin(
        self, variables: Mapping[str, str] | None, report: Callable[[Renewal], None]
    ) -> asyncio.Task[None]:
        """Begin a reload, and return its task. `report` is called for each process.

        Raises:
            NoReload: the process is not ready yet, another reload runs, or a variable is fixed.
        """
        if self._server is None:
            raise NoReload("the gateway is not ready, or has no reload socket")
        if self._running is not None and not self._running.done():
            raise NoReload("another reload runs")
        environment = None if variables is None else self._with(variables)
        self._running = asyncio.create_task(self._run(environment, report))
        return self._running

    async def end(self) -> None:
        """Return once the running reload has ended, and whoever asked for it has been told."""
        if self._server is not None:
            self._server.close()
        if self._running is not None:
            await asyncio.wait((self._running,))

    async def _run(
        self, environment: Mapping[str, str] | None, report: Callable[[Renewal], None]
    ) -> None:
        log.info("reload begins", new_settings=environment is not None)
        self._supervisor.reloading(time.monotonic())
        try:
            async for renewal in self._renew(environment):
                if renewal.error is None:
                    log.info("renewed", **_of(renewal), pid=renewal.pid)
                else:
                    log.error("not renewed", **_of(renewal), error=renewal.error)
                report(renewal)
        finally:
            self._supervisor.ready()
        log.info("reload has ended")

    def _with(self, variables: Mapping[str, str]) -> dict[str, str]:
        """Return this process's environment with other PUSHGATE_… variables."""
        kept = {name: v for name, v in self._environment.items() if not name.startswith(PREFIX)}
        given = {name: v for name, v in variables.items() if name.startswith(PREFIX)}
        for warning in remarks(given):
            log.warning("variables that are no settings", which=warning)
        for name in _FIXED:
            if given.get(name) != self._environment.get(name):
                raise NoReload(f"a reload can't change {name}: restart the gateway")
        return kept | given

    async def _answer(self, reader: StreamReader, writer: StreamWriter) -> None:
        def say(what: Renewal | Ended) -> None:
            writer.write(msgspec.json.encode(what) + b"\n")

        unreadable = (TimeoutError, IncompleteReadError, LimitOverrunError, msgspec.DecodeError)
        with contextlib.closing(writer), contextlib.suppress(*unreadable):
            async with asyncio.timeout(_REQUEST_SECONDS):
                asked = await reader.readuntil()
            request = msgspec.json.decode(asked, type=Request)
            try:
                await self.begin(request.variables, say)
                say(Ended())
            except NoReload as refused:
                say(Ended(error=str(refused)))


def reloads_at(
    path: str | None, renew: Renew, supervisor: Supervisor, environment: Mapping[str, str]
) -> Reloads | None:
    """Make the reloads of this process, SIGHUP among them; None without a take-over socket."""
    if path is None:
        return None
    reloads = Reloads(path, renew, supervisor, environment=environment)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloads.begin_by_signal)
    return reloads


def reload_socket(path: str) -> str:
    """Return the path of the reload socket beside a take-over socket."""
    return f"{path}.reload"


async def ask(path: str, request: Request) -> AsyncIterator[Renewal]:
    """Ask the gateway of a take-over socket for a reload, and yield what it reports.

    Raises:
        NoReload: the gateway refuses, ends meanwhile, or there is none.
    """
    place = reload_socket(path)
    try:
        # Variables may be secrets: they are for the user's own gateway, whoever made the path.
        if request.variables is not None and not _is_own(place):
            raise NoReload(f"{place} is another user's: no settings are sent there")
        reader, writer = await asyncio.open_unix_connection(place, limit=_REQUEST_BYTES)
    except OSError as error:
        raise NoReload(f"no gateway that is ready listens at {place}: {error}") from error
    with contextlib.closing(writer):
        writer.write(msgspec.json.encode(request) + b"\n")
        with contextlib.suppress(ConnectionError):
            async for line in reader:
                said = msgspec.json.decode(line, type=Renewal | Ended)
                if isinstance(said, Ended):
                    if said.error is not None:
                        raise NoReload(f"no reload: {said.error}")
                    return
                yield said
    raise NoReload("the gateway has ended meanwhile; its log says why")


def _put_in_place(bound: Path, place: str) -> None:
    bound.chmod(stat.S_IRUSR | stat.S_IWUSR)
    bound.rename(place)


def _of(renewal: Renewal) -> Mapping[str, object]:
    return {} if renewal.worker is None else {"worker": renewal.worker}


def _is_own(path: str) -> bool:
    return Path(path).stat().st_uid == os.geteuid()
