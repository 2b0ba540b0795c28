"""CPU time of a handshake at the gateway, beside a stock server's.

Measured: user and system time of the server's process (/proc/PID/stat), divided by N, from before
the first of N clients connects until half a second after the last client has its answer. Deferred
work is included by that half second. At the gateway a handshake is TCP's accept, HTTP, an HS256
token seen for the first time, limits, and registration in a real Valkey. The stock server accepts
every client and registers no user. Both servers run at the same time and share a core; the clients
and Valkey are on the other core. Rounds of the two servers alternate, the server that comes first
changes from pair to pair, and all clients leave between rounds. The figures are medians of rounds.

What could fool the benchmark: as many handshakes as `--window` says are under way at once and
share work that the gateway does for many users at a time, like a write to the registry; a lone
handshake costs more. Network work in soft interrupts is in no figure where the kernel accounts for
soft interrupts separately; neither is Valkey's own CPU time.

    python -m loadtest.handshakes [--kinds ws,sse] [--save]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

import redis

from loadtest.clients import Crowd
from loadtest.processes import (
    EVERYTHING_ON,
    SERVER_CORE,
    Gateway,
    LoadtestError,
    leave_the_server_alone,
)
from loadtest.report import Report
from loadtest.targets import GatewayTarget, StockTarget, Target, names
from tests.support.valkey import RedisServer

#: Microseconds.
BOUND: Final = 250.0
_WARM_UP: Final = 300
_SETTLE_SECONDS: Final = 0.5
_GONE_SECONDS: Final = 30.0
#: Descriptors that a server may have opened for its own use since the start.
_OWN_DESCRIPTORS: Final = 20


@dataclass(frozen=True, slots=True)
class Plan:
    """What a round measures: transport, number of handshakes, handshakes at once; the registry."""

    kind: str
    handshakes: int
    window: int
    registry: redis.Redis


def shake(target: Target, plan: Plan, users: Sequence[str]) -> float:
    """Return the server's CPU time of one handshake, in microseconds; `users` connect once each.

    Raises:
        LoadtestError: a user was not registered, or the server kept sockets of closed connections.
    """
    server, credentials = target.server, target.credentials(users)
    open_before, before = server.descriptors(), server.cpu_seconds()
    crowd = Crowd(target.port, plan.kind)
    try:
        crowd.connect(credentials, window=plan.window)
        crowd.rest(_SETTLE_SECONDS)
        used = server.cpu_seconds() - before
        if isinstance(target, GatewayTarget):
            _check(plan.registry, users)
    finally:
        crowd.close()
    _wait_until_gone(target, open_before)
    return used * 1e6 / len(users)


def _check(registry: redis.Redis, users: Sequence[str]) -> None:
    """Check that every user was registered."""
    registered: object = registry.eval("return #redis.call('KEYS', '*user:*')", 0)
    if registered != len(users):
        raise LoadtestError(f"{registered} users are registered, of {len(users)}")


def _wait_until_gone(target: Target, descriptors: int) -> None:
    deadline = time.monotonic() + _GONE_SECONDS
    while target.server.descriptors() > descriptors + _OWN_DESCRIPTORS:
        if time.monotonic() > deadline:
            raise LoadtestError("the server keeps the sockets of clients that have left")
        time.sleep(0.1)
    time.sleep(_SETTLE_SECONDS)  # until the users' entries are removed from the registry


def _compare(plan: Plan, rounds: int, redis_url: str, report: Report) -> None:
    gateway = Gateway(redis_url, cores=SERVER_CORE, **EVERYTHING_ON)
    targets: dict[str, Target] = {
        "gateway": GatewayTarget(gateway),
        "stock": StockTarget(plan.kind, heartbeat_seconds=25.0, cores=SERVER_CORE),
    }
    microseconds: dict[str, list[float]] = {name: [] for name in targets}
    with targets["gateway"].server, targets["stock"].server:
        for target in targets.values():
            shake(target, plan, names(0, _WARM_UP))
        for number in range(1, rounds + 1):
            users = names(number * plan.handshakes, (number + 1) * plan.handshakes)
            for name in targets if number % 2 else reversed(targets):
                microseconds[name].append(shake(targets[name], plan, users))
    gateway_us, stock_us = median(microseconds["gateway"]), median(microseconds["stock"])
    pairs = zip(microseconds["stock"], microseconds["gateway"], strict=True)
    ratio = median(of_stock / of_gateway for of_stock, of_gateway in pairs)
    report.figures[plan.kind] = {
        "handshakes": plan.handshakes,
        "window": plan.window,
        "gateway_us": gateway_us,
        "stock_us": stock_us,
        "ratio": ratio,
        "rounds": microseconds,
    }
    report.line(
        f"{plan.kind}: {gateway_us:.0f} µs of CPU a handshake; stock, without authentication and "
        f"registration, {stock_us:.0f} µs; ratio {ratio:.2f}"
    )
    report.bound(f"{plan.kind} ≤ {BOUND:g} µs", holds=gateway_us <= BOUND)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.handshakes")
    parser.add_argument("--kinds", default="ws,sse", help="a comma list")
    parser.add_argument("--handshakes", type=int, default=4_000, help="of each round")
    parser.add_argument("--window", type=int, default=100, help="handshakes under way at once")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each server")
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    arguments = parser.parse_args()
    report = Report("handshakes")
    leave_the_server_alone()
    with RedisServer("valkey") as server, redis.Redis.from_url(server.url) as registry:
        for kind in arguments.kinds.split(","):
            plan = Plan(kind, arguments.handshakes, arguments.window, registry)
            _compare(plan, arguments.rounds, server.url, report)
    report.finish(save=arguments.save)


if __name__ == "__main__":
    main()
