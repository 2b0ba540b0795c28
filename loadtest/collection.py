"""How long a full garbage collection stops a server with 10,000 connections.

Timed: `gc.collect()` in the server's process, by perf_counter. timed_collection.py runs in the
server's process and collects on a signal: no other measurement here is made inside of a process.
Every connection has received one message and one heartbeat. The figure is the median of several
collections; the first collection, with perhaps more garbage to free, is shown beside the median. A
stock server holds the same number of connections in the same run.

What could fool the benchmark: the server does nothing between collections, so as many objects as
fit stay in the CPU's caches. A collection skips objects that the gateway has frozen (gc.freeze),
here as in service.

    python -m loadtest.collection [--kinds ws,sse] [--connections 10000] [--save]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Final

from loadtest.clients import Crowd
from loadtest.processes import EVERYTHING_ON, Gateway
from loadtest.report import Report
from loadtest.targets import GatewayTarget, StockTarget, Target, heartbeat_of_each, visit
from tests.support.valkey import RedisServer

#: Milliseconds.
BOUND: Final = 30.0
_HEARTBEAT_SECONDS: Final = 10.0
_PATIENCE_SECONDS: Final = 60.0
_QUIET_SECONDS: Final = 0.5


def _collect(target: Target, crowd: Crowd, log: Path, times: int) -> list[dict[str, float]]:
    for number in range(1, times + 1):
        os.kill(target.server.pid, signal.SIGUSR1)
        crowd.until(lambda number=number: len(_read(log)) == number, seconds=_PATIENCE_SECONDS)  # type: ignore[misc]
        crowd.rest(_QUIET_SECONDS)
    return _read(log)


def _read(log: Path) -> list[dict[str, float]]:
    text = log.read_text() if log.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _timed(log: Path, module: str) -> Sequence[str]:
    return ["-m", "loadtest.timed_collection", str(log), module]


def _compare(kind: str, connections: int, times: int, redis_url: str, report: Report) -> None:
    figures: dict[str, object] = {"connections": connections}
    with tempfile.TemporaryDirectory() as directory:
        gateway_log, stock_log = Path(directory, "gateway"), Path(directory, "stock")
        gateway = Gateway(
            redis_url,
            runner=_timed(gateway_log, "pushgate"),
            heartbeat_seconds=_HEARTBEAT_SECONDS,
            **EVERYTHING_ON,
        )
        targets: dict[Path, Target] = {
            gateway_log: GatewayTarget(gateway),
            stock_log: StockTarget(
                kind,
                heartbeat_seconds=_HEARTBEAT_SECONDS,
                runner=_timed(stock_log, "loadtest.stock"),
            ),
        }
        for log, target in targets.items():
            with target.server, visit(target, kind, connections) as crowd:
                heartbeat_of_each(crowd)
                collections = _collect(target, crowd, log, times)
            first_ms = collections[0]["ms"]
            median_ms = median(collection["ms"] for collection in collections)
            figures[log.name] = {"ms": median_ms, "first_ms": first_ms, "rounds": collections}
            report.line(
                f"{kind}, {log.name}: {median_ms:.1f} ms, first {first_ms:.1f} ms, "
                f"{collections[-1]['tracked']:,.0f} objects"
            )
            if log is gateway_log:
                report.bound(f"{kind} ≤ {BOUND:g} ms", holds=median_ms <= BOUND)
    report.figures[kind] = figures


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.collection")
    parser.add_argument("--kinds", default="ws,sse", help="a comma list")
    parser.add_argument("--connections", type=int, default=10_000, help="connections held")
    parser.add_argument("--times", type=int, default=7, help="collections of each server")
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    arguments = parser.parse_args()
    report = Report("collection")
    with RedisServer("valkey") as redis:
        for kind in arguments.kinds.split(","):
            _compare(kind, arguments.connections, arguments.times, redis.url, report)
    report.finish(save=arguments.save)


if __name__ == "__main__":
    main()
