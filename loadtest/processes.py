"""The processes under load; their memory and CPU time, read from /proc."""

from __future__ import annotations

import os
import random
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
import jwt

from pushgate.embedded import tied_to_parent

SECRET: Final = "loadtest-secret-of-at-least-32-bytes"
BEARER: Final = {"authorization": f"Bearer {SECRET}"}
START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 20.0
#: The two cores that the whole system shares, including clients, Redis and Kafka.
CORES: Final = frozenset(sorted(os.sched_getaffinity(0))[:2])
#: For benchmarks in which the server has a core alone: the server's core, and the core of all
#: other processes.
SERVER_CORE: Final = frozenset((min(CORES),))
OTHER_CORE: Final = frozenset((max(CORES),))
#: Settings that switch on every limit that is off by default. The limits are so generous that
#: their checks cost CPU time and no client is refused.
EVERYTHING_ON: Final[dict[str, Any]] = {
    "max_connections_per_address": 20_000,
    "max_connections_per_user": 100,
    "handshakes_per_second": 100_000,
    "max_memory_bytes": 16 * 2**30,
}
_TICKS: Final = os.sysconf("SC_CLK_TCK")


class LoadtestError(Exception):
    """The benchmark could not be carried out; the text is the reason."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of one or more processes, in bytes.

    `pss` counts a page that n processes share as 1/n of a page, so PSS moves when another process
    with the same libraries starts or ends. `anonymous` is memory that is not shared.
    """

    pss: int
    anonymous: int


class Server:
    """A child process that listens; a context manager that starts and ends the process."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *ready: str,
        cores: frozenset[int] = CORES,
        tls: ssl.SSLContext | None = None,
        checkout: Path | None = None,
    ) -> None:
        """`command` are the arguments of Python, `environment` variables beside this process's.

        The server is ready once all URLs in `ready` answer 200. `tls` trusts the server's
        certificate. PUSHGATE_… variables of this process are not passed on. `checkout` is another
        checkout of pushgate, whose `.venv` and files the process uses.
        """
        python = sys.executable if checkout is None else str(checkout / ".venv/bin/python")
        self._command = tied_to_parent([python, *command])
        self._checkout = checkout
        self._environment = {
            **{name: value for name, value in os.environ.items() if "PUSHGATE_" not in name},
            **environment,
        }
        self._ready = ready
        self._cores = cores
        self._tls = tls
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in stop()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, seconds: float = START_SECONDS) -> None:
        """Start the process and wait until the server is ready.

        Raises:
            LoadtestError: the process ended, or was not ready within `seconds`; it goes on then.
        """
        self.launch()
        deadline = time.monotonic() + seconds
        while not self._is_ready():
            if self.returncode is not None or time.monotonic() > deadline:
                raise LoadtestError(f"{self._command} did not start: {self.log()}")
            time.sleep(0.05)

    def launch(self) -> subprocess.Popen[bytes] | None:
        """Start a process, ready or not; return the process from before, which goes on.

        To be called in a thread that lasts: the end of the thread is the process's end too
        (prctl(2), PR_SET_PDEATHSIG).
        """
        earlier, self._process = (
            self._process,
            subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                cwd=self._checkout,
            ),
        )
        os.sched_setaffinity(self._process.pid, self._cores)
        return earlier

    @property
    def returncode(self) -> int | None:
        """Return the exit status of the process, None while the process runs."""
        assert self._process is not None, "not started"
        return self._process.poll()

    @property
    def pid(self) -> int:
        """Return the process id."""
        assert self._process is not None, "not started"
        return self._process.pid

    def log(self) -> str:
        """Return the end of the process's output, 3,000 characters at most."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-3_000:]

    def memory(self) -> Memory:
        """Read the memory of the process and of its descendants."""
        memories = [_memory(pid) for pid in self._family()]
        return Memory(
            sum(memory.pss for memory in memories), sum(memory.anonymous for memory in memories)
        )

    def cpu_seconds(self) -> float:
        """Return the CPU time of the process and its descendants in user and kernel mode."""
        return sum(_cpu_seconds(pid) for pid in self._family())

    def run_seconds(self) -> float:
        """Return for how long threads of the process and its descendants have run.

        To the nanosecond, for processes that are idle: CPU time is counted in ticks of 10 ms.
        """
        threads = [
            thread for pid in self._family() for thread in Path(f"/proc/{pid}/task").iterdir()
        ]
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9

    def descriptors(self) -> int:
        """Return how many descriptors the process has open."""
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())

    def stop(self) -> None:
        """End the process: SIGTERM, and SIGKILL after 20 s. Harmless when repeated."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def kill(self) -> None:
        """End the process at once (SIGKILL), so that no clean-up runs."""
        process, self._process = self._process, None
        assert process is not None, "not started"
        process.kill()
        process.wait()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        self._log.close()

    def _is_ready(self) -> bool:
        verify = self._tls or True
        try:
            return all(
                httpx.get(url, trust_env=False, timeout=2.0, verify=verify).status_code == 200
                for url in self._ready
            )
        except httpx.HTTPError:
            return False

    def _family(self) -> list[int]:
        family = [self.pid]
        for pid in family:  # the loop appends children, and goes on to their children
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                family += map(int, children.read_text().split())
        return family


class Gateway(Server):
    """`pushgate gateway` on free ports."""

    def __init__(
        self,
        redis_url: str,
        *,
        workers: int = 1,
        cores: frozenset[int] = CORES,
        runner: Sequence[str] = ("-m", "pushgate"),
        checkout: Path | None = None,
        **settings: object,
    ) -> None:
        """`settings` are named as in gateway/settings.py; `runner` runs pushgate's command line.

        `runner` are the arguments of Python that stand before the command `gateway`.
        """
        self.port = free_port()
        self.internal_ports = free_ports(workers)
        environment = _environment(
            redis_url=redis_url,
            host="127.0.0.1",
            port=self.port,
            internal_port=self.internal_ports[0],
            workers=workers,
            jwt_secret=SECRET,
            internal_secret=SECRET,
            **{"drain_seconds": 0, **settings},
        )
        ready = [f"http://127.0.0.1:{port}/readyz" for port in self.internal_ports]
        super().__init__([*runner, "gateway"], environment, *ready, cores=cores, checkout=checkout)

    def metric(self, name: str) -> float:
        """Return a metric of the node, the sum of all samples that begin with `name`.

        `name` is without the prefix of all metrics, and may go on into the labels.

        Raises:
            LoadtestError: there is no such metric.
        """
        url = f"http://127.0.0.1:{self.internal_ports[0]}/metrics"
        lines = httpx.get(url, trust_env=False).text.splitlines()
        start = f"pushgate_gateway_{name}"
        values = [float(line.rpartition(" ")[2]) for line in lines if line.startswith(start)]
        if not values:
            raise LoadtestError(f"the gateway has no metric {name}")
        return sum(values)


class Processor(Server):
    """`pushgate processor`, which may be started again after `stop` or `kill`."""

    def __init__(
        self,
        redis_url: str,
        kafka: str,
        *,
        topic: str,
        group: str,
        checkout: Path | None = None,
        **settings: object,
    ) -> None:
        """`settings` are named as in processor/settings.py."""
        port = free_port()
        self.operators = f"http://127.0.0.1:{port}"
        environment = _environment(
            redis_url=redis_url,
            kafka_bootstrap=kafka,
            kafka_topics=topic,
            kafka_group=group,
            dead_letter_topic=f"{topic}.dead",
            internal_secret=SECRET,
            processor_port=port,
            **settings,
        )
        super().__init__(
            ["-m", "pushgate", "processor"],
            environment,
            f"{self.operators}/readyz",
            checkout=checkout,
        )

    def outcomes(self) -> dict[str, int]:
        """Return the number of messages by outcome since the processor's start; none of 0."""
        text = httpx.get(f"{self.operators}/metrics", trust_env=False).text
        outcomes: dict[str, int] = {}
        for line in text.splitlines():
            if line.startswith("pushgate_processor_outcomes_total{"):
                labels, value = line.rsplit(" ", 1)
                outcome = labels.partition('outcome="')[2].partition('"')[0]
                outcomes[outcome] = outcomes.get(outcome, 0) + int(float(value))
        return {outcome: count for outcome, count in outcomes.items() if count}


def tokens(users: Sequence[str]) -> list[str]:
    """Mint an HS256 token for each user, valid for an hour."""
    expires_at = int(time.time()) + 3_600
    return [
        jwt.encode({"sub": user, "exp": expires_at}, SECRET, algorithm="HS256") for user in users
    ]


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def free_ports(count: int) -> range:
    """Return consecutive ports that are free now, outside of the kernel's ephemeral range.

    Raises:
        LoadtestError: no free range was found in 100 attempts.
    """
    for _ in range(100):
        ports = range(start := random.randrange(20_000, 30_000), start + count)
        if all(map(_is_free, ports)):
            return ports
    raise LoadtestError(f"no {count} ports in a row are free")


def leave_the_server_alone() -> None:
    """Move this process, and processes started from now on, to the other core."""
    os.sched_setaffinity(0, OTHER_CORE)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _memory(pid: int) -> Memory:
    fields: dict[str, int] = {}
    with open(f"/proc/{pid}/smaps_rollup") as rollup:  # noqa: PTH123
        for line in rollup:
            name, _, value = line.partition(":")
            if value.endswith("kB\n"):
                fields[name] = int(value.split()[0]) * 1024
    return Memory(fields["Pss"], fields["Pss_Anon"])


def _cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
        after_name = stat.read().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / _TICKS


def _environment(**settings: object) -> dict[str, str]:
    return {f"PUSHGATE_{name.upper()}": str(value) for name, value in settings.items()}
