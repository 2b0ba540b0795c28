"""`pushgate dev` as a process of its own, and the other commands in its folder."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from pushgate.embedded import tied_to_parent
from tests.support.processes import free_port, wait_until

STOP_SECONDS = 15.0


class Dev:
    """One `pushgate dev` in a directory of its own."""

    def __init__(self, directory: Path, **settings: str) -> None:
        self.directory = directory
        self.port = free_port()
        ports = {
            "PORT": str(self.port),
            "INTERNAL_PORT": str(free_port()),
            "PROCESSOR_PORT": str(free_port()),
        }
        inherited = {name: v for name, v in os.environ.items() if not name.startswith("PUSHGATE_")}
        self.inherited = inherited
        with (directory / "out").open("ab") as out:
            self.process = subprocess.Popen(
                tied_to_parent([sys.executable, "-m", "pushgate", "dev"]),
                env=inherited | {f"PUSHGATE_{name}": v for name, v in (ports | settings).items()},
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def out(self) -> str:
        return (self.directory / "out").read_text()

    def until_up(self) -> None:
        def up_or_gone() -> bool:
            return "pushgate is up" in self.out or self.process.poll() is not None

        wait_until(up_or_gone, "pushgate is up")
        assert self.process.poll() is None, self.out

    def command(self, *words: str) -> str:
        """Run another command in the same directory, with nothing in its environment."""
        done = self.run(*words)
        done.check_returncode()
        return done.stdout.decode()

    def run(self, *words: str, line: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run another command likewise, with `line` as its standard input; it may fail."""
        return subprocess.run(
            [sys.executable, "-m", "pushgate", *words],
            env=self.inherited,
            cwd=self.directory,
            input=line,
            capture_output=True,
            timeout=20,
            check=False,
        )

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(STOP_SECONDS)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(STOP_SECONDS)

    @property
    def bootstrap(self) -> str:
        """Where its Kafka is, by its own words."""
        found = re.search(r"Kafka +(\S+)", self.out)
        assert found is not None, self.out
        return found[1]
