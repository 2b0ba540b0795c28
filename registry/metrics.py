"""Metrics of every process: which pushgate runs, and what the process uses."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import Final

from prometheus_client import Metric
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from registry import process

_VERSIONS: Final = (process.VERSION, platform.python_version())


class ProcessCollector(Collector):
    """Reads what a process uses at each scrape, under the names that all Prometheus clients have.

    prometheus_client's own collector lists all file descriptors for their number (process.py).
    """

    def collect(self) -> Iterator[Metric]:
        """Yield the build, CPU time, memory, descriptors with their limit, and the start."""
        build = GaugeMetricFamily(
            "pushgate_build_info",
            "1, with the versions of pushgate and of Python as labels.",
            labels=["version", "python"],
        )
        build.add_metric(_VERSIONS, 1)
        yield build
        yield CounterMetricFamily(
            "process_cpu_seconds_total", "CPU time, user and system.", process.cpu_seconds()
        )
        yield GaugeMetricFamily(
            "process_resident_memory_bytes", "Resident memory.", process.resident_bytes()
        )
        yield GaugeMetricFamily(
            "process_open_fds", "Open file descriptors.", process.open_descriptors()
        )
        yield GaugeMetricFamily(
            "process_max_fds",
            "The limit of open file descriptors (ulimit -n); 0 for none.",
            process.most_descriptors(),
        )
        yield GaugeMetricFamily(
            "process_start_time_seconds", "When the process began, Unix time.", process.STARTED_AT
        )
