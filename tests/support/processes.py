"""Real `pushgate gateway` and `pushgate processor` processes: start, watch, freeze, kill, stop."""

import contextlib
import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Final, Self

from pushgate.embedded import LOOPBACK, tied_to_parent

JWT_SECRET: Final = "a secret of thirty-two bytes or more, for tests"
INTERNAL_SECRET: Final = "internal secret of tests of thirty-two bytes or more"
START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 20.0
_POLL_SECONDS: Final = 0.02
_LOG_CHARACTERS: Final = 6_000

RUNNING: Final[list["PushgateProcess"]] = []
"""What has been started and not ended, for the report of a failed test."""


class ProcessFailed(Exception):
    """A process did not do what it was started for; the message ends with its log."""


#: This worker of pytest-xdist and how many there are; one where pytest runs without workers.
_WORKER: Final = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_WORKERS: Final = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
#: This worker's share of the ports below those of outgoing connections (ip_local_port_range).
_PORTS: Final = range(20_000 + _WORKER, 32_000, _WORKERS)
#: Ports that `free_port` has given: a port that nobody listens on yet is not free for another.
_GIVEN: Final[set[int]] = set()


def free_port() -> int:
    """Give a port that is free now and that the kernel gives to no outgoing connection.

    Each port once; 12,000 for all workers.
    """
    while True:
        port = random.choice(_PORTS)
        if port in _GIVEN:
            continue
        _GIVEN.add(port)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((LOOPBACK, port))
                return port


def inherited() -> dict[str, str]:
    """Give this process's environment without PUSHGATE_… variables, such as those of CI."""
    return {name: v for name, v in os.environ.items() if not name.startswith("PUSHGATE_")}


def wait_until(
    condition: Callable[[], object], what: str, *, timeout_seconds: float = START_SECONDS
) -> None:
    """Return once `condition` is true; for fixtures, which have no event loop."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise ProcessFailed(f"not within {timeout_seconds:g} s: {what}")
        time.sleep(_POLL_SECONDS)


def http_status(port: int, path: str) -> int:
    """GET `path` from 127.0.0.1; 0 where nobody answers."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=2.0)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


class PushgateProcess:
    """One process of the command line. A context manager that is ready inside and gone after."""

    command: ClassVar[str]
    through: Sequence[str] = ()
    """A command that runs the command line as its last arguments, as `prlimit` does."""

    def __init__(self, name: str, env: Mapping[str, str], *, operators_port: int) -> None:
        """`env` has the PUSHGATE_… settings: none of those of whoever runs the tests count."""
        self.name = name
        self.env = dict(env)
        self.operators_port = operators_port
        self._directory = tempfile.TemporaryDirectory(prefix=f"pushgate-{name}-")
        self._log = Path(self._directory.name, "log")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, until_ready: bool = True) -> Self:
        """Start it; after an end, start it again as it was."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                tied_to_parent([*self.through, sys.executable, "-m", "pushgate", self.command]),
                env=inherited() | {"PYTHONUNBUFFERED": "1"} | self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._directory.name,
                start_new_session=True,
            )
        RUNNING.append(self)
        if until_ready:
            self.wait_until_ready()
        return self

    def wait_until_ready(self) -> None:
        """Return once `/readyz` says so; ProcessFailed, with the log, where it does not."""
        try:
            wait_until(lambda: self.readyz() == 200 or self.returncode is not None, "ready")
        except ProcessFailed as failed:
            raise ProcessFailed(f"{self.name}: {failed}\n{self.log}") from None
        if self.returncode is not None:
            raise ProcessFailed(f"{self.name} ended with {self.returncode}\n{self.log}")

    def readyz(self) -> int:
        """Give the status of `/readyz`; 0 where nobody answers."""
        return http_status(self.operators_port, "/readyz")

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None, f"{self.name} has not been started"
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, None while it runs."""
        return None if self._process is None else self._process.poll()

    @property
    def log(self) -> str:
        """The end of what it has logged."""
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        return text[-_LOG_CHARACTERS:]

    @property
    def log_lines(self) -> int:
        """How many lines it has logged."""
        return self._log.read_bytes().count(b"\n")

    @property
    def descriptors(self) -> int:
        """How many descriptors it has open (Linux)."""
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())

    @property
    def resident_bytes(self) -> int:
        """Its resident memory (Linux)."""
        return self._memory("VmRSS")

    @property
    def peak_bytes(self) -> int:
        """The most resident memory it has had since `forget_peak`."""
        return self._memory("VmHWM")

    @property
    def cpu_seconds(self) -> float:
        """The CPU time it has used, in steps of 10 ms."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def forget_peak(self) -> None:
        """Let `peak_bytes` start from what is resident now."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def _memory(self, field: str) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition(f"{field}:")[2].split()[0]) * 1024

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; harmless when it has ended."""
        if self._process is not None:
            self._process.send_signal(number)

    def freeze(self) -> None:
        """Stop its clock (SIGSTOP): its sockets stay, and it answers nobody."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it with no goodbye (SIGKILL); harmless when it has ended."""
        self.signal(signal.SIGKILL)
        self.wait(STOP_SECONDS)

    def terminate(self, timeout_seconds: float = STOP_SECONDS) -> int:
        """Ask it to leave (SIGTERM) and give its exit status; ProcessFailed where it stays."""
        self.thaw()
        self.signal(signal.SIGTERM)
        return self.wait(timeout_seconds)

    def wait(self, timeout_seconds: float) -> int:
        """Give its exit status once it has ended; ProcessFailed where it does not."""
        assert self._process is not None, f"{self.name} has not been started"
        try:
            status = self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            message = f"{self.name} has not ended in {timeout_seconds:g} s\n{self.log}"
            raise ProcessFailed(message) from None
        with contextlib.suppress(ValueError):
            RUNNING.remove(self)
        return status

    def close(self) -> None:
        """End it, however it stands, and remove its files. Harmless when repeated."""
        if self._process is not None and self.returncode is None:
            try:
                self.terminate()
            except ProcessFailed:
                self.kill()
        with contextlib.suppress(ValueError):
            RUNNING.remove(self)
        self._directory.cleanup()

    def __enter__(self) -> Self:
        try:
            return self.start() if self._process is None else self
        except BaseException:
            self.close()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class GatewayProcess(PushgateProcess):
    """A gateway node on two free ports; its name stays the same over restarts."""

    command = "gateway"

    def __init__(self, name: str, *, redis_url: str, **settings: object) -> None:
        """`settings` are PUSHGATE_… settings by their lower-case names."""
        self.port = free_port()
        self.internal_port = free_port()
        env = {
            "PUSHGATE_HOST": LOOPBACK,
            "PUSHGATE_PORT": str(self.port),
            "PUSHGATE_INTERNAL_PORT": str(self.internal_port),
            "PUSHGATE_NODE_NAME": name,
            "PUSHGATE_REDIS_URL": redis_url,
            "PUSHGATE_JWT_SECRET": JWT_SECRET,
            "PUSHGATE_INTERNAL_SECRET": INTERNAL_SECRET,
            "PUSHGATE_DRAIN_SECONDS": "0",  # tests of the drain give a window
        }
        # Both ports have /readyz; what asks here speaks no TLS.
        operators_port = self.port if "internal_tls_cert" in settings else self.internal_port
        super().__init__(name, env | _as_env(settings), operators_port=operators_port)


class ProcessorProcess(PushgateProcess):
    """A processor worker; `/readyz` and `/metrics` are on a free port."""

    command = "processor"

    def __init__(
        self,
        name: str,
        *,
        redis_url: str,
        bootstrap: str,
        topic: str,
        group: str,
        **settings: object,
    ) -> None:
        """`settings` are PUSHGATE_… settings by their lower-case names."""
        self.port = free_port()
        env = {
            "PUSHGATE_PROCESSOR_PORT": str(self.port),
            "PUSHGATE_REDIS_URL": redis_url,
            "PUSHGATE_KAFKA_BOOTSTRAP": bootstrap,
            "PUSHGATE_KAFKA_TOPICS": topic,
            "PUSHGATE_KAFKA_GROUP": group,
            "PUSHGATE_DEAD_LETTER_TOPIC": f"{topic}.dead",
            "PUSHGATE_INTERNAL_SECRET": INTERNAL_SECRET,
        }
        super().__init__(name, env | _as_env(settings), operators_port=self.port)


def _as_env(settings: Mapping[str, object]) -> dict[str, str]:
    return {f"PUSHGATE_{name.upper()}": str(value) for name, value in settings.items()}


def logs_of_running() -> Iterator[tuple[str, str]]:
    """Give a title and the log's end of each process that runs, for a failed test's report."""
    for process in RUNNING:
        yield f"log of {process.name} (pid {process.pid})", process.log
