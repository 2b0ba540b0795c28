"""This checkout beside another one, in pairs: memory, handshakes, pushes, throughput and latency.

Measured: the figures of `idle`, `handshakes`, `push`, `singles` and `throughput`; of `throughput`
with three gateways and with outcomes; as `paced`, of `throughput --latency` at 2,000 and 200
messages a second; as `rest`, for how long idle processors and gateways run. The clients are the
same, gateways and processors are started from this checkout and from the other one. The two
checkouts take turns, and the order changes from pair to pair. A figure is the ratio of a pair, this
checkout to the other, and the median of all pairs is held against the bound: no more than 3 %
worse. Bytes, microseconds and milliseconds are better when smaller, rates when larger.

What could fool this benchmark: a machine whose speed drifts within a pair. All pairs are shown, so
a wide spread is seen. CPU time is counted in ticks of 10 ms: with the default sizes a round uses
more than a second.

    python -m loadtest.beside OTHER_CHECKOUT [--only handshakes,push] [--save]

The other checkout needs its own `.venv` (`make dev` makes one).
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import redis

from loadtest import handshakes, idle, push, singles, throughput
from loadtest.certificate import Certificate
from loadtest.kafka import real_kafka
from loadtest.processes import (
    CORES,
    EVERYTHING_ON,
    SERVER_CORE,
    Gateway,
    leave_the_server_alone,
)
from loadtest.report import Report
from loadtest.targets import GatewayTarget, names
from tests.support.valkey import RedisServer

#: How much worse than 1 the median ratio may be.
MARGIN: Final = 0.03
_IDLE_CONNECTIONS: Final = 4_000
_HANDSHAKES: Final = 8_000
_PUSHED: Final = 200_000
_SINGLES: Final = 20_000
_MOVED: Final = 300_000
_USERS: Final = 5_000
#: The variants of throughput: the number of gateways, and whether outcomes are told.
_THROUGHPUTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "throughput": {},
    "throughput-3": {"gateways": 3},
    "throughput-outcomes": {"outcomes": True},
}
#: Messages a second, for how long and to how many users.
_RATES: Final = (2_000.0, 200.0)
_PACED_SECONDS: Final = 15
_PACED_USERS: Final = 1_000
#: Numbers of gateways that idle beside a processor, for how long and with how many users.
_RESTING: Final = (1, 20)
_REST_SECONDS: Final = 15
_RESTING_USERS: Final = 100

#: One round of a benchmark: a checkout → its figures by name.
Round = Callable[[Path], Mapping[str, float]]


def _idle(kind: str, redis_url: str, certificate: Certificate, checkout: Path) -> dict[str, float]:
    plan = idle.Plan(redis_url, certificate, rounds=1, checkout=checkout)
    target = plan.targets(kind, ["epoll"])["epoll"]()
    growth = idle.measure(target, kind, _IDLE_CONNECTIONS)
    return {"bytes": growth.idle.anonymous, "bytes after a burst": growth.after_burst.anonymous}


def _handshakes(
    kind: str, redis_url: str, registry: redis.Redis, checkout: Path
) -> dict[str, float]:
    gateway = Gateway(redis_url, cores=SERVER_CORE, checkout=checkout, **EVERYTHING_ON)
    plan = handshakes.Plan(kind, _HANDSHAKES, 100, registry)
    target = GatewayTarget(gateway)
    with gateway:
        handshakes.shake(target, plan, names(0, 300))
        return {"µs": handshakes.shake(target, plan, names(300, 300 + _HANDSHAKES))}


def _push(redis_url: str, checkout: Path) -> dict[str, float]:
    gateway = Gateway(
        redis_url, cores=SERVER_CORE, heartbeat_seconds=60.0, checkout=checkout, **EVERYTHING_ON
    )
    rates = push.move(GatewayTarget(gateway), push.Plan(_USERS, 100, _PUSHED))
    return {f"{mode} messages/s": rate for mode, rate in rates.items()}


def _singles(redis_url: str, checkout: Path) -> dict[str, float]:
    gateway = Gateway(
        redis_url, cores=SERVER_CORE, heartbeat_seconds=60.0, checkout=checkout, **EVERYTHING_ON
    )
    return {"µs": singles.push_each(GatewayTarget(gateway), singles.Plan(1_000, _SINGLES))}


def _throughput(
    redis_url: str, kafka: str, checkout: Path, *, gateways: int = 1, outcomes: bool = False
) -> dict[str, float]:
    plan = throughput.Plan(
        kafka,
        redis_url,
        _USERS,
        _MOVED // _USERS,
        rate=0.0,
        checkout=checkout,
        gateways=gateways,
        outcomes=outcomes,
    )
    moved = throughput.move(plan)
    return {
        "messages/s": moved.messages_per_second,
        "processor µs": moved.processor_us,
        "gateway µs": moved.gateway_us,
        "both µs": moved.processor_us + moved.gateway_us,
    }


def _paced(rate: float, redis_url: str, kafka: str, checkout: Path) -> dict[str, float]:
    per_user = max(1, int(rate * _PACED_SECONDS) // _PACED_USERS)
    plan = throughput.Plan(kafka, redis_url, _PACED_USERS, per_user, rate, checkout=checkout)
    paced = throughput.pace(plan)
    return {
        "p50 ms": paced.percentile_ms(50),
        "p99 ms": paced.percentile_ms(99),
        "processor µs": paced.processor_us,
        "gateway µs": paced.gateway_us,
        "both µs": paced.processor_us + paced.gateway_us,
    }


def _rest(gateways: int, redis_url: str, kafka: str, checkout: Path) -> dict[str, float]:
    plan = throughput.Plan(
        kafka, redis_url, _RESTING_USERS, 1, rate=0.0, checkout=checkout, gateways=gateways
    )
    ran = throughput.rest(plan, seconds=_REST_SECONDS)
    milliseconds = 1e3 / _REST_SECONDS
    return {
        "processor ms a second": ran.processor * milliseconds,
        "gateways ms a second": ran.gateway * milliseconds,
    }


def compare(name: str, run: Round, other: Path, pairs: int, report: Report) -> None:
    """Run pairs of one benchmark, show them, and judge the median ratio of each figure."""
    here = Path(__file__).parents[1]
    ratios: dict[str, list[float]] = {}
    rounds: list[dict[str, Mapping[str, float]]] = []
    for number in range(pairs):
        order = (here, other) if number % 2 else (other, here)
        figures = {checkout: run(checkout) for checkout in order}
        rounds.append({"this": figures[here], "other": figures[other]})
        for figure, value in figures[here].items():
            ratios.setdefault(figure, []).append(value / figures[other][figure])
        shown = ", ".join(f"{figure} {of_pairs[-1]:.3f}" for figure, of_pairs in ratios.items())
        print(f"  {name}, pair {number + 1}: {shown}", flush=True)
    report.figures[name] = {"pairs": rounds, "ratios": ratios}
    for figure, of_pairs in ratios.items():
        middle = median(of_pairs)
        listed = " ".join(f"{ratio:.3f}" for ratio in sorted(of_pairs))
        report.line(f"{name}, {figure}: {middle:.3f} × the other ({listed})")
        if figure.endswith("/s"):
            report.bound(f"{name}, {figure}: ≥ {1 - MARGIN:g} ×", holds=middle >= 1 - MARGIN)
        else:
            report.bound(f"{name}, {figure}: ≤ {1 + MARGIN:g} ×", holds=middle <= 1 + MARGIN)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.beside")
    parser.add_argument("other", type=Path, help="another checkout of pushgate, with its .venv")
    parser.add_argument(
        "--only",
        default="idle,handshakes,push,singles,throughput,paced",
        help=f"a comma list, also of rest, {', '.join(_THROUGHPUTS)}",
    )
    parser.add_argument("--pairs", type=int, default=7, help="of each benchmark")
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    arguments = parser.parse_args()
    other = arguments.other.resolve()
    report = Report("beside")
    only = arguments.only.split(",")
    with ExitStack() as stack:
        server = stack.enter_context(RedisServer("valkey"))
        registry = stack.enter_context(redis.Redis.from_url(server.url))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        certificate = Certificate.make(directory)
        # On both cores, before this process leaves one of them to the servers.
        if {"paced", "rest", *_THROUGHPUTS}.intersection(only):
            with real_kafka() as kafka:
                for name, variant in _THROUGHPUTS.items():
                    if name in only:
                        run = partial(_throughput, server.url, kafka, **variant)
                        compare(name, run, other, arguments.pairs, report)
                for rate in _RATES if "paced" in only else ():
                    run = partial(_paced, rate, server.url, kafka)
                    compare(f"paced {rate:g}/s", run, other, arguments.pairs, report)
                for gateways in _RESTING if "rest" in only else ():
                    run = partial(_rest, gateways, server.url, kafka)
                    compare(f"rest, {gateways} gateways", run, other, arguments.pairs, report)
        for kind in ("ws", "sse") if "idle" in only else ():
            run_idle = partial(_idle, kind, server.url, certificate)
            compare(f"idle {kind}", run_idle, other, arguments.pairs, report)
        assert os.sched_getaffinity(0) >= CORES
        leave_the_server_alone()
        for kind in ("ws", "sse") if "handshakes" in only else ():
            shake = partial(_handshakes, kind, server.url, registry)
            compare(f"handshakes {kind}", shake, other, arguments.pairs, report)
        if "push" in only:
            compare("push", partial(_push, server.url), other, arguments.pairs, report)
        if "singles" in only:
            compare("singles", partial(_singles, server.url), other, arguments.pairs, report)
    report.finish(save=arguments.save)


if __name__ == "__main__":
    main()
