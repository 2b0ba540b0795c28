"""How long a full garbage collection stops a server that holds 10,000 connections.

Timed: `gc.collect()` in the server's process, by perf_counter, on a signal that
timed_collection.py answers there: the one thing here that is not seen over the wire. Each
connection has got one message and one heartbeat. The figure is the median of several; the first,
which may find something to free, is shown beside. A stock server holds as many in the same run.

What could fool it: between collections nothing happens, so the processor's caches hold what they
can. What the interpreter was told to leave out (gc.freeze) is not walked through, here as in
service.

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


def _collect(target: Target, crowd: Crowd, lines: Path, times: int) -> list[dict[str, float]]:
    for number in range(1, times + 1):
        os.kill(target.server.pid, signal.SIGUSR1)
        crowd.until(lambda number=number: len(_found(lines)) == number, seconds=_PATIENCE_SECONDS)  # type: ignore[misc]
        crowd.rest(_QUIET_SECONDS)
    return _found(lines)


def _found(lines: Path) -> list[dict[str, float]]:
    text = lines.read_text() if lines.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _timed(lines: Path, module: str) -> Sequence[str]:
    return ["-m", "loadtest.timed_collection", str(lines), module]


def _compare(kind: str, connections: int, times: int, redis_url: str, report: Report) -> None:
    figures: dict[str, object] = {"connections": connections}
    with tempfile.TemporaryDirectory() as directory:
        ours, stock = Path(directory, "gateway"), Path(directory, "stock")
        gateway = Gateway(
            redis_url,
            runner=_timed(ours, "pushgate"),
            heartbeat_seconds=_HEARTBEAT_SECONDS,
            **EVERYTHING_ON,
        )
        targets: dict[Path, Target] = {
            ours: GatewayTarget(gateway),
            stock: StockTarget(
                kind,
                heartbeat_seconds=_HEARTBEAT_SECONDS,
                runner=_timed(stock, "loadtest.stock"),
            ),
        }
        for lines, target in targets.items():
            with target.server, visit(target, kind, connections) as crowd:
                heartbeat_of_each(crowd)
                found = _collect(target, crowd, lines, times)
            middle = median(each["ms"] for each in found)
            figures[lines.name] = {"ms": middle, "first_ms": found[0]["ms"], "rounds": found}
            report.line(
                f"{kind}, {lines.name}: {middle:.1f} ms, first {found[0]['ms']:.1f} ms, "
                f"{found[-1]['tracked']:,.0f} objects"
            )
            if lines is ours:
                report.bound(f"{kind} ≤ {BOUND:g} ms", holds=middle <= BOUND)
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
