"""What 50 clients that never read cost the others in latency.

Timed: from the moment a message was due to be posted to its client's read, by one clock, for the
2,950 clients that read. Messages of 200 bytes go to all 3,000 users in turn through `POST /push`, a
batch of twenty at each hundredth of a second; who falls behind his own schedule counts it in. In
one run of a pair 50 of the clients never read; in the other the same 50 read, and get all the same.
The figure is the median over seven pairs of p99 with / p99 without, each run on a fresh gateway,
the first of a pair changing. The gateway has a core for itself; whoever posts, the clients and
Valkey are on the other.

The 50 are stalled for the whole of what is timed: their receive buffers are small, before it begins
each is sent 180 kB, which neither the kernel's buffers nor their own hold, and before and after it
the kernel is asked whether bytes for each of them are stuck. Then they are sent messages like
anybody. Nobody is cut meanwhile: heartbeats, and with them the patience for those that don't
answer, are 60 s here, and 256 KiB wait for a client at most. (What a cut costs is not in it.)

    python -m loadtest.stalled [--pairs 7] [--save]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from statistics import median, quantiles
from typing import Final

from loadtest.clients import Crowd
from loadtest.processes import (
    EVERYTHING_ON,
    SERVER_CORE,
    Gateway,
    LoadtestError,
    leave_the_server_alone,
)
from loadtest.pusher import Pusher
from loadtest.report import Report
from loadtest.targets import GatewayTarget, names
from tests.support.valkey import RedisServer

#: p99 with stalled readers / p99 without.
BOUND: Final = 1.3
_MESSAGE_BYTES: Final = 200
_DIGITS: Final = 20
_BATCH: Final = 20
_RECEIVE_BYTES: Final = 4_096
_FILLERS: Final = 3
_FILLER: Final = "x" * 60_000
_HEARTBEAT_SECONDS: Final = 60.0
_SETTLE_SECONDS: Final = 0.5
_WARM_UP_SECONDS: Final = 1.0
_ARRIVAL_SECONDS: Final = 10.0
#: epoll waits whole milliseconds: what is left is spent asking again.
_GRAIN_SECONDS: Final = 0.001


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is."""

    clients: int
    stalled: int
    rate: float
    seconds: float


def run(redis_url: str, plan: Plan, *, stall: bool) -> list[float]:
    """Return the latencies of those that read in either run, in seconds."""
    gateway = Gateway(
        redis_url,
        cores=SERVER_CORE,
        heartbeat_seconds=_HEARTBEAT_SECONDS,
        heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        **EVERYTHING_ON,
    )
    target = GatewayTarget(gateway)
    users = names(0, plan.clients)
    tokens = target.credentials(users)
    latencies: list[float] = []

    def take(data: bytes) -> None:
        latencies.append(time.monotonic() - float(data[:_DIGITS]))

    with (
        gateway,
        closing(Crowd(gateway.port, "ws")) as crowd,
        closing(Crowd(gateway.port, "ws", receive_bytes=_RECEIVE_BYTES)) as silent,
        target.pusher() as pusher,
    ):
        (silent if stall else crowd).connect(tokens[: plan.stalled])
        timed = tokens[plan.stalled :]
        crowd.connect(timed, on_message=[take] * len(timed))
        _fill(pusher, crowd, users[: plan.stalled])
        load = Load(pusher, crowd, users, plan)
        load.run(_WARM_UP_SECONDS, latencies)
        _check_stuck(gateway.port, silent.ports())
        latencies.clear()
        load.run(plan.seconds, latencies)
        _check_stuck(gateway.port, silent.ports())
    return latencies


def _fill(pusher: Pusher, crowd: Crowd, users: Sequence[str]) -> None:
    """Send those that will stall more than can be on its way to them."""
    for user in users:
        for _ in range(_FILLERS):
            if pusher.push([{"user": user, "data": _FILLER}]) != [1]:
                raise LoadtestError("a client to be stalled was cut")
            crowd.turn(0)
    crowd.rest(_SETTLE_SECONDS)


class Load:
    """Messages to everyone in turn, at a steady rate."""

    def __init__(self, pusher: Pusher, crowd: Crowd, users: Sequence[str], plan: Plan) -> None:
        self._pusher = pusher
        self._crowd = crowd
        self._turns = cycle(enumerate(users))
        self._plan = plan

    def run(self, seconds: float, latencies: Sequence[float]) -> None:
        """Push for `seconds`, and wait until those that are timed have `latencies` of all."""
        interval = _BATCH / self._plan.rate
        begin = time.monotonic() + interval
        expected = 0
        for number in range(int(seconds / interval)):
            due = begin + number * interval
            self._read_until(due)
            chosen = list(islice(self._turns, _BATCH))
            expected += sum(1 for index, _ in chosen if index >= self._plan.stalled)
            self._post([user for _, user in chosen], due)
        self._crowd.until(lambda: len(latencies) == expected, seconds=_ARRIVAL_SECONDS)

    def _read_until(self, due: float) -> None:
        while (left := due - time.monotonic()) > 0:
            self._crowd.turn(left - _GRAIN_SECONDS if left > _GRAIN_SECONDS else 0)

    def _post(self, users: Sequence[str], due: float) -> None:
        text = f"{due:<{_DIGITS}.9f}".ljust(_MESSAGE_BYTES, "x")
        batch = [{"user": user, "data": text} for user in users]
        self._pusher.send(self._pusher.request(batch))
        while not self._pusher.answered():
            self._crowd.turn(0)
        if self._pusher.results() != [1] * len(users):
            raise LoadtestError("a push did not reach its one connection: a client was cut")


def _check_stuck(port: int, clients: Sequence[int]) -> None:
    """Look whether bytes for each of these clients' ports are stuck in the kernel."""
    unsent = {}
    with open("/proc/net/tcp") as table:  # noqa: PTH123
        for line in islice(table, 1, None):
            _, local, remote, _, queues, *_ = line.split()
            if int(local.rpartition(":")[2], 16) == port:
                unsent[int(remote.rpartition(":")[2], 16)] = int(queues.partition(":")[0], 16)
    if flowing := [client for client in clients if not unsent.get(client)]:
        raise LoadtestError(f"{len(flowing)} of {len(clients)} clients are not stalled")


def _compare(plan: Plan, pairs: int, redis_url: str, report: Report) -> None:
    found: dict[str, list[list[float]]] = {"with": [], "without": []}
    for number in range(pairs):
        for name in found if number % 2 else reversed(found):
            latencies = run(redis_url, plan, stall=name == "with")
            cuts = quantiles(latencies, n=100, method="inclusive")
            found[name].append([cuts[49] * 1e3, cuts[98] * 1e3])
            p50, p99 = found[name][-1]
            print(f"  {name}: p50 {p50:.2f} ms, p99 {p99:.2f} ms", flush=True)
    medians = {
        name: [median(each[cut] for each in runs) for cut in (0, 1)] for name, runs in found.items()
    }
    ratio = median(
        stalled[1] / free[1] for stalled, free in zip(found["with"], found["without"], strict=True)
    )
    report.figures = {**asdict(plan), "ms_p50_p99": medians, "ratio": ratio, "pairs": found}
    told = "; ".join(
        f"{name} p50 {p50:.2f} ms, p99 {p99:.2f} ms" for name, (p50, p99) in medians.items()
    )
    report.line(f"{plan.stalled} stalled readers among {plan.clients:,}: {told}; ratio {ratio:.2f}")
    report.bound(f"p99 ≤ {BOUND:g} × without", holds=ratio <= BOUND)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.stalled")
    parser.add_argument("--clients", type=int, default=3_000, help="connected, the stalled too")
    parser.add_argument("--stalled", type=int, default=50, help="of these never read")
    parser.add_argument("--rate", type=float, default=2_000.0, help="messages a second")
    parser.add_argument("--seconds", type=float, default=10.0, help="timed in each run")
    parser.add_argument("--pairs", type=int, default=7, help="pairs of runs")
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    arguments = parser.parse_args()
    plan = Plan(arguments.clients, arguments.stalled, arguments.rate, arguments.seconds)
    report = Report("stalled")
    leave_the_server_alone()
    with RedisServer("valkey") as redis:
        _compare(plan, arguments.pairs, redis.url, report)
    report.finish(save=arguments.save)


if __name__ == "__main__":
    main()
