"""The whole system of `pushgate dev`, for tests in a browser."""

from pathlib import Path
from typing import ClassVar

from pushgate.embedded import LOOPBACK
from tests.support.processes import PushgateProcess, free_port, wait_until


class DevProcess(PushgateProcess):
    """The whole system; what it keeps is in a temporary directory."""

    command: ClassVar[str] = "dev"

    def __init__(self) -> None:
        self.port = free_port()
        internal_port = free_port()
        env = {
            "PUSHGATE_PORT": str(self.port),
            "PUSHGATE_INTERNAL_PORT": str(internal_port),
            "PUSHGATE_PROCESSOR_PORT": str(free_port()),
            "PUSHGATE_OUTCOMES_TOPIC": "push.outcomes",
        }
        super().__init__("dev", env, operators_port=internal_port)

    def wait_until_ready(self) -> None:
        """Return once it has said where the demo page is."""
        super().wait_until_ready()
        wait_until(lambda: f"{self.url}/" in self.log, "the demo page's address is announced")

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def directory(self) -> Path:
        """Where it runs, and keeps its secrets."""
        return Path(self._directory.name)
