"""A real `pushgate gateway --workers`, with its workers."""

import contextlib
import itertools
import json
import os
import random
import signal
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Final

from tests.support.processes import GatewayProcess, http_status

COUNT: Final = 2

_numbers = itertools.count(1)


class WorkersProcess(GatewayProcess):
    """A parent and its workers, who leave at once when told. Ready when every worker is."""

    def __init__(self, *, redis_url: str, **settings: object) -> None:
        given = {"workers": COUNT, "log_json": True, "drain_seconds": 0} | settings
        super().__init__(f"workers-{next(_numbers)}", redis_url=redis_url, **given)
        first = _free_ports(COUNT, but=self.port)
        self.internal_ports = list(range(first, first + COUNT))
        self.env["PUSHGATE_INTERNAL_PORT"] = str(first)

    def readyz(self) -> int:
        """Give 200 once every worker does, and until then what another one says."""
        return next((status for status in self.statuses("/readyz") if status != 200), 200)

    def statuses(self, path: str) -> list[int]:
        """Give each worker's status of `path`, 0 where it does not answer."""
        return [http_status(port, path) for port in self.internal_ports]

    def events(self, name: str) -> list[Mapping[str, Any]]:
        """Give the log's events of this name, the parent's and the workers'."""
        found = []
        for line in self._log.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                found.append(json.loads(line))
        return [event for event in found if event["event"] == name]

    def pid_of(self, index: int) -> int:
        """Give the process id of worker `index`, of its latest life."""
        starts = [event for event in self.events("worker starts") if event["worker"] == index]
        pid: int = starts[-1]["pid"]
        return pid

    def gone(self) -> bool:
        """Whether no worker answers."""
        return self.statuses("/healthz") == [0] * COUNT

    def close(self) -> None:
        """End all; a worker that outlives its parent is a test's finding, and killed."""
        pids = {event["worker"]: event["pid"] for event in self.events("worker starts")}
        super().close()
        for index, status in enumerate(self.statuses("/healthz")):
            if status:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pids[index], signal.SIGKILL)


def _free_ports(count: int, *, but: int) -> int:
    """Give the first of `count` ports in a row that are free now, and none of them `but`."""
    while True:
        first = random.randint(20_000, 31_999 - count)
        with ExitStack() as probes, contextlib.suppress(OSError):
            for port in range(first, first + count):
                probes.enter_context(socket.create_server(("127.0.0.1", port)))
            if not first <= but < first + count:
                return first
