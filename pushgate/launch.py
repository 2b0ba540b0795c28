"""The gateway processes that pushgate starts: workers, and the successors of gateways.

The standard input of a launched process is a stream socket. The process says there, in the words of
sd_notify(3), when the process is ready, and learns from the socket's end that the starter is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
from asyncio import StreamReader, StreamWriter
from asyncio.subprocess import Process
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Final, Self

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from pushgate.errors import PushgateError
from pushgate.supervisor import MAINPID, NOTIFY_SOCKET, READY

#: How long a successor may take from its start until it is ready, beside the drain of connections
#: that can't be passed.
READY_SECONDS: Final = 60.0

_HASH_SEED: Final = "PYTHONHASHSEED"
#: Runs a command as an orphan, and says the orphan's process id on standard input. Orphans are
#: systemd's children, and at a stop systemd waits for no main process but children of systemd
#: ("Supervising process … which is not our child").
_DETACHED: Final = """\
import os, sys
pid = os.fork()
if pid:
    os.write(0, b"MAINPID=%d\\n" % pid)
else:
    os.execv(sys.argv[1], sys.argv[1:])
"""


class LaunchSettings(BaseSettings):
    """The settings that pushgate passes to a launched process; operators don't use these."""

    model_config = SettingsConfigDict(env_prefix="PUSHGATE_", extra="ignore", defer_build=True)

    worker_index: Annotated[
        int | None, Field(ge=0, description="Which of the workers this process is, from 0.")
    ] = None
    launched: Annotated[
        bool, Field(description="Whether pushgate has started this process, and listens.")
    ] = False


class NotReady(PushgateError):
    """A launched process is not ready; the text says what became of the process."""


class Launched:
    """A process with words for its starter."""

    def __init__(self, pid: int, words: StreamReader) -> None:
        """`words` are what the process says."""
        self.pid = pid
        #: True once the process is ready, False where it has ended before.
        self.ready: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        #: Whether another process has taken over from this one.
        self.was_taken_over = False
        self._hearing = asyncio.create_task(self._hear(words))

    async def until_ready(self, seconds: float = READY_SECONDS) -> None:
        """Return once the process is ready. After `seconds` the process is killed.

        Raises:
            NotReady: the process has been killed, or has ended by itself.
        """
        try:
            async with asyncio.timeout(seconds):
                is_ready = await asyncio.shield(self.ready)
        except TimeoutError:
            _signal(self.pid, signal.SIGKILL)
            raise NotReady(f"was not ready in {seconds:g} s and was killed") from None
        if not is_ready:
            raise NotReady("ended before it was ready; the log has its last words")

    def leave(self) -> None:
        """Have the process leave, or hasten a drain. Harmless after the end of the process."""
        # SIGTERM, also where this process got SIGINT: a SIGINT while Python starts ends in a
        # traceback.
        _signal(self.pid, signal.SIGTERM)

    async def _hear(self, words: StreamReader) -> None:
        async for word in words:
            if word == READY and not self.ready.done():
                self.ready.set_result(True)
            elif word.startswith(MAINPID):
                self.was_taken_over = True
        if not self.ready.done():
            self.ready.set_result(False)


class Child(Launched):
    """A worker's process, from its start to its exit."""

    def __init__(self, process: Process, words: StreamReader, writer: StreamWriter) -> None:
        super().__init__(process.pid, words)
        #: The exit status, negative for a signal.
        self.ended = asyncio.create_task(_exit_status(process, writer))

    @classmethod
    async def start(cls, command: Sequence[str], environment: Mapping[str, str]) -> Self:
        """Run `command` in a session of its own, with this process as the only supervisor.

        Raises:
            OSError: the command can't be run.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    env=_launched({k: v for k, v in environment.items() if k != NOTIFY_SOCKET}),
                    stdin=theirs.fileno(),
                    # A terminal's Ctrl-C goes to the whole process group. Workers leave that
                    # group: a Ctrl-C must reach a worker through `leave` alone, since a second
                    # signal hastens.
                    start_new_session=True,
                )
            except OSError:
                ours.close()
                raise
        return cls(process, *await asyncio.open_connection(sock=ours))

    async def until_ended(self, seconds: float) -> None:
        """Return once the process has ended. After `seconds` the process is killed."""
        await asyncio.wait((self.ended,), timeout=seconds)
        if not self.ended.done():
            _signal(self.pid, signal.SIGKILL)
            await asyncio.wait((self.ended,))


class Orphan(Launched):
    """The successor of this process: no child, since a successor outlives the predecessor."""

    def __init__(self, pid: int, words: StreamReader, writer: StreamWriter) -> None:
        super().__init__(pid, words)
        self._writer = writer

    def close(self) -> None:
        """Hear no more of the process."""
        self._writer.close()

    @classmethod
    async def start(cls, command: Sequence[str], environment: Mapping[str, str]) -> Self:
        """Run `command`, with the supervisors of this process and this process as a further one.

        Raises:
            NotReady: the command can't be run.
        """
        ours, theirs = socket.socketpair()
        # In a thread: the start of Python takes some ten milliseconds.
        with theirs:
            await asyncio.to_thread(_run_detached, command, environment, theirs.fileno())
        words, writer = await asyncio.open_connection(sock=ours)
        said = await words.readline()
        if not said.startswith(MAINPID):
            writer.close()
            raise NotReady("has no process; the log says why")
        return cls(int(said.removeprefix(MAINPID)), words, writer)


def when_starter_ends(then: Callable[[], None]) -> None:
    """In the running loop of a launched process: call `then` once the starter is gone."""
    loop, stdin = asyncio.get_running_loop(), sys.stdin.fileno()

    def read() -> None:
        if not os.read(stdin, 1):
            loop.remove_reader(stdin)
            then()

    loop.add_reader(stdin, read)


def own_command() -> list[str]:
    """Return the command line of this process."""
    return [sys.executable, *sys.orig_argv[1:]]


def with_hash_seed(environment: Mapping[str, str]) -> dict[str, str]:
    """Return `environment` with a seed of Python's hashes, drawn where there is none.

    A process and its successor hash alike then: what nodes know of repeats is hashes.
    """
    return {_HASH_SEED: str(secrets.randbelow(1 << 32)), **environment}


def start_again_with_hash_seed() -> None:
    """Replace this process by one of the same id and command that has a seed, unless it has one."""
    if _HASH_SEED not in os.environ:
        command = own_command()
        os.execve(command[0], command, with_hash_seed(os.environ))  # noqa: S606 - our own command line


def _run_detached(command: Sequence[str], environment: Mapping[str, str], stdin: int) -> None:
    starter = [sys.executable, "-I", "-S", "-c", _DETACHED, *command]
    subprocess.run(starter, env=_launched(environment), stdin=stdin, check=False)  # noqa: S603 - our own command line


async def _exit_status(process: Process, writer: StreamWriter) -> int:
    status = await process.wait()
    writer.close()
    return status


def _launched(environment: Mapping[str, str]) -> dict[str, str]:
    return {**environment, "PUSHGATE_LAUNCHED": "true"}


def _signal(pid: int, number: signal.Signals) -> None:
    # Not Process.send_signal(), which on CPython 3.11 may take the exit status from the watcher.
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
