"""Prometheus, with the configuration and the alerts that deploy/prometheus ships."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from pushgate.embedded import tied_to_parent
from tests.support.markdown import ROOT
from tests.support.processes import free_port, http_status, wait_until

SHIPPED: Final = ROOT / "deploy" / "prometheus"
#: The targets of the shipped configuration, by job.
_TARGETS: Final = {
    "pushgate-gateway": "[localhost:8081]",
    "pushgate-processor": "[localhost:8082]",
}


def binary(name: str) -> str:
    """Give the path of prometheus or promtool.

    Skips the test where it is not installed, unless PUSHGATE_REQUIRE_PROMETHEUS is 1.
    """
    path = shutil.which(name)
    if path is None:
        required = os.environ.get("PUSHGATE_REQUIRE_PROMETHEUS") == "1"
        assert not required, f"{name} is required and missing"
        pytest.skip(f"needs {name}, which is not installed")
    return path


@dataclass(frozen=True)
class Series:
    """A series of an answer: its labels, and values by time."""

    labels: dict[str, str]
    values: list[tuple[float, float]]


class Prometheus:
    """A running Prometheus."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        # One client: each loads the system's CAs.
        self._http = httpx.Client(base_url=f"{self.url}/api/v1/", trust_env=False)

    def query(self, text: str) -> list[Series]:
        """Give what a query says now."""
        found = self._ask("query", query=text)
        return [Series(each["metric"], _numbers([each["value"]])) for each in found]

    def range(self, text: str, *, start: float, end: float, step: float) -> list[Series]:
        """Give what a query says over a time, in Unix time and seconds."""
        times = {"start": str(start), "end": str(end), "step": str(step)}
        found = self._ask("query_range", query=text, **times)
        return [Series(each["metric"], _numbers(each["values"])) for each in found]

    def firing(self) -> set[str]:
        """Give the names of the alerts that fire."""
        return {each.labels["alertname"] for each in self.query('ALERTS{alertstate="firing"}')}

    def close(self) -> None:
        """Ask no more."""
        self._http.close()

    def _ask(self, path: str, **parameters: str) -> list[dict[str, Any]]:
        said = self._http.get(path, params=parameters).json()
        assert said["status"] == "success", f"{parameters}: {said}"
        result: list[dict[str, Any]] = said["data"]["result"]
        return result


def _numbers(values: Sequence[Sequence[str]]) -> list[tuple[float, float]]:
    return [(float(at), float(value)) for at, value in values]


@contextmanager
def prometheus(
    targets: Mapping[str, Sequence[int]],
    *,
    seconds: float = 1.0,
    rules: Callable[[str], str] = str,
) -> Iterator[Prometheus]:
    """Run Prometheus with the shipped files; gives it once every target answers its scrapes.

    `targets` are ports on 127.0.0.1 by job. It scrapes every `seconds`; `rules` changes the alerts.
    """
    program, port = binary("prometheus"), free_port()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "alerts.yml").write_text(rules((SHIPPED / "alerts.yml").read_text()))
        configuration = Path(folder) / "prometheus.yml"
        configuration.write_text(_configuration(targets, seconds))
        with (Path(folder) / "log").open("wb+") as log:
            process = subprocess.Popen(
                tied_to_parent(
                    [
                        program,
                        f"--config.file={configuration}",
                        f"--storage.tsdb.path={folder}/data",
                        f"--web.listen-address=127.0.0.1:{port}",
                    ]
                ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            try:
                running = Prometheus(port)
                wait_until(lambda: http_status(port, "/-/ready") == 200, "prometheus is ready")
                number = sum(map(len, targets.values()))
                wait_until(lambda: len(running.query("up == 1")) == number, "targets are scraped")
                yield running
                running.close()
            except BaseException:
                log.seek(0)
                print(log.read().decode(errors="replace"))  # noqa: T201 - pytest shows it
                raise
            finally:
                process.kill()
                process.wait()


def _configuration(targets: Mapping[str, Sequence[int]], seconds: float) -> str:
    """Give the shipped configuration with other targets and intervals."""
    text = (SHIPPED / "prometheus.yml").read_text()
    changes = {"interval: 15s": f"interval: {int(seconds * 1_000)}ms"}
    for job, shipped in _TARGETS.items():
        changes[shipped] = f"[{', '.join(f'127.0.0.1:{port}' for port in targets.get(job, ()))}]"
    for old, new in changes.items():
        assert old in text, f"prometheus.yml has no {old!r} any more"
        text = text.replace(old, new)
    return text
