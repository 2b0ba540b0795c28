"""A layer-4 balancer of other people in front of gateways, with a configuration that we ship."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from tests.support.processes import STOP_SECONDS, http_status, wait_until


class Balanced(Protocol):
    """A gateway as a balancer sees it."""

    @property
    def port(self) -> int:
        """The port on 127.0.0.1 that clients are sent to."""

    @property
    def internal_port(self) -> int:
        """The port on 127.0.0.1 whose `/readyz` is asked."""


@dataclass(frozen=True, slots=True)
class Balancer:
    """A balancer that runs: a master, which reloads its file on a signal, and workers."""

    port: int
    process: subprocess.Popen[bytes]
    file: Path
    reload_signal: signal.Signals
    render: Callable[[Sequence[Balanced]], str]

    def reload(self, *gateways: Balanced) -> None:
        """Put the balancer before other gateways, as many as before; return once it is.

        Then new workers alone accept clients.
        """
        before = self.workers
        self.file.write_text(self.render(gateways))
        self.process.send_signal(self.reload_signal)
        wait_until(lambda: self.workers - before, "a new worker")
        wait_until(
            lambda: not any(_listens(pid, self.port) for pid in before), "old workers' last client"
        )

    @property
    def workers(self) -> set[int]:
        """The process ids of the workers, old ones with their last clients too."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return {int(pid) for pid in children.read_text().split()}


def _listens(pid: int, port: int) -> bool:
    """Whether a process has the socket that listens on a port; False once the process has ended."""
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = {
        f"socket:[{s[9]}]" for s in sockets if s[3] == "0A" and s[1].endswith(f":{port:04X}")
    }
    with contextlib.suppress(FileNotFoundError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            if str(descriptor.readlink()) in listening:
                return True
    return False


def executable(name: str) -> str:
    """Return the path of a balancer's program.

    Skips the test where the program is not installed, unless PUSHGATE_REQUIRE_<NAME> is 1.
    """
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        required = os.environ.get(f"PUSHGATE_REQUIRE_{name.upper()}") == "1"
        assert not required, f"{name} is required and missing"
        pytest.skip(f"needs {name}, which is not installed")
    return path


@contextmanager
def balancing(
    command: Sequence[str],
    *,
    port: int,
    gateways: Sequence[Balanced],
    render: Callable[[Sequence[Balanced]], str],
    reload_signal: signal.Signals,
    env: Mapping[str, str],
) -> Iterator[Balancer]:
    """Run a balancer, with the path of its file behind `command`; gives it once it answers."""
    with tempfile.TemporaryFile() as log, tempfile.NamedTemporaryFile("w", suffix=".cfg") as file:
        file.write(render(gateways))
        file.flush()
        process = subprocess.Popen(
            [*command, file.name],
            env=os.environ | env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_until(
                lambda: process.poll() is not None or _answers(port), f"{command[0]} answers"
            )
            assert process.poll() is None, f"{command[0]} ended at its start"
            yield Balancer(port, process, Path(file.name), reload_signal, render)
        except BaseException:
            log.seek(0)
            print(log.read().decode(errors="replace"))  # noqa: T201 - pytest shows it
            raise
        finally:
            # The master ends its workers; killed, it would leave them.
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            finally:
                process.kill()


def _answers(port: int) -> bool:
    return http_status(port, "/readyz") == 200
