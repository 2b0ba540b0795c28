"""Latency of 2,950 clients while 50 further clients never read.

Timed: from the moment at which a message was due to be posted until its client reads the message,
by one clock, for the 2,950 clients that read. Messages of 200 bytes go to all 3,000 users in turn
through `POST /push`, a batch of twenty every hundredth of a second. Where the pusher falls behind
this schedule, the delay counts as latency. In one run of a pair 50 clients never read; in the other
run the same 50 clients read, and all clients get the same messages. The figure is the median over
seven pairs of p99 with stalled readers / p99 without. Every run has a fresh gateway, and the order
of the two runs changes from pair to pair. The gateway has a core alone; the pusher, the clients and
Valkey are on the other core.

The 50 clients are stalled for the whole timed period. Their receive buffers are small, and before
the period every stalled client is sent 180 kB, which fits neither the kernel's send buffer nor the
client's receive buffer. Before and after the period the kernel's table of sockets must show unsent
bytes for every stalled client. During the period stalled clients are sent messages like all other
clients. No client is cut off meanwhile: the heartbeat interval and the time-out for an answer are
60 s here, and up to 256 KiB wait for a client. (The cost of cutting a client off is not measured.)

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
#: epoll waits for whole milliseconds; the last fraction before a batch is due is spent polling.
_GRAIN_SECONDS: Final = 0.001


@dataclass(frozen=True, slots=True)
class Plan:
    """The load of one run: clients, stalled ones among them, messages a second, seconds."""

    clients: int
    stalled: int
    rate: float
    seconds: float


def run(redis_url: str, plan: Plan, *, stall: bool) -> list[float]:
    """Return the latencies, in seconds, of the clients that read in both runs of a pair.

    Raises:
        LoadtestError: a client was cut off, or a client that was to stall did not.
    """
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

    def record(data: bytes) -> None:
        latencies.append(time.monotonic() - float(data[:_DIGITS]))

    with (
        gateway,
        closing(Crowd(gateway.port, "ws")) as crowd,
        closing(Crowd(gateway.port, "ws", receive_bytes=_RECEIVE_BYTES)) as silent,
        target.pusher() as pusher,
    ):
        (silent if stall else crowd).connect(tokens[: plan.stalled])
        timed_tokens = tokens[plan.stalled :]
        crowd.connect(timed_tokens, on_message=[record] * len(timed_tokens))
        _fill(pusher, crowd, users[: plan.stalled])
        load = Load(pusher, crowd, users, plan)
        load.run(_WARM_UP_SECONDS, latencies)
        _check_stuck(gateway.port, silent.ports())
        latencies.clear()
        load.run(plan.seconds, latencies)
        _check_stuck(gateway.port, silent.ports())
    return latencies


def _fill(pusher: Pusher, crowd: Crowd, users: Sequence[str]) -> None:
    """Send the clients that will stall more bytes than the socket buffers can hold."""
    for user in users:
        for _ in range(_FILLERS):
            if pusher.push([{"user": user, "data": _FILLER}]) != [1]:
                raise LoadtestError("a client to be stalled was cut")
            crowd.turn(0)
    crowd.rest(_SETTLE_SECONDS)


class Load:
    """Messages to all users in turn, at a steady rate."""

    def __init__(self, pusher: Pusher, crowd: Crowd, users: Sequence[str], plan: Plan) -> None:
        self._pusher = pusher
        self._crowd = crowd
        self._turns = cycle(enumerate(users))
        self._plan = plan

    def run(self, seconds: float, latencies: Sequence[float]) -> None:
        """Push for `seconds`; wait until `latencies` has every message of the timed clients."""
        interval = _BATCH / self._plan.rate
        begin = time.monotonic() + interval
        expected = 0
        for number in range(int(seconds / interval)):
            due = begin + number * interval
            self._read_until(due)
            recipients = list(islice(self._turns, _BATCH))
            expected += sum(1 for index, _ in recipients if index >= self._plan.stalled)
            self._post([user for _, user in recipients], due)
        self._crowd.until(lambda: len(latencies) == expected, seconds=_ARRIVAL_SECONDS)

    def _read_until(self, due: float) -> None:
        while (seconds := due - time.monotonic()) > 0:
            self._crowd.turn(seconds - _GRAIN_SECONDS if seconds > _GRAIN_SECONDS else 0)

    def _post(self, users: Sequence[str], due: float) -> None:
        text = f"{due:<{_DIGITS}.9f}".ljust(_MESSAGE_BYTES, "x")
        batch = [{"user": user, "data": text} for user in users]
        self._pusher.send(self._pusher.request(batch))
        while not self._pusher.answered():
            self._crowd.turn(0)
        if self._pusher.results() != [1] * len(users):
            raise LoadtestError("a push did not reach its one connection: a client was cut")


def _check_stuck(port: int, client_ports: Sequence[int]) -> None:
    """Check that the server's socket for every client port has bytes that the kernel can't send."""
    unsent_bytes = {}  # by the client's port
    with open("/proc/net/tcp") as table:  # noqa: PTH123
        for line in islice(table, 1, None):
            _, local, remote, _, queues, *_ = line.split()
            if int(local.rpartition(":")[2], 16) == port:
                send_queue = queues.partition(":")[0]
                unsent_bytes[int(remote.rpartition(":")[2], 16)] = int(send_queue, 16)
    if flowing := [number for number in client_ports if not unsent_bytes.get(number)]:
        raise LoadtestError(f"{len(flowing)} of {len(client_ports)} clients are not stalled")


def _compare(plan: Plan, pairs: int, redis_url: str, report: Report) -> None:
    results: dict[str, list[list[float]]] = {"with": [], "without": []}  # p50, p99 of each run
    for number in range(pairs):
        for name in results if number % 2 else reversed(results):
            latencies = run(redis_url, plan, stall=name == "with")
            percentiles = quantiles(latencies, n=100, method="inclusive")
            p50, p99 = percentiles[49] * 1e3, percentiles[98] * 1e3
            results[name].append([p50, p99])
            print(f"  {name}: p50 {p50:.2f} ms, p99 {p99:.2f} ms", flush=True)
    medians = {
        name: [median(p50 for p50, _ in runs), median(p99 for _, p99 in runs)]
        for name, runs in results.items()
    }
    pairs_of_p99 = [
        (stalled, free)
        for (_, stalled), (_, free) in zip(results["with"], results["without"], strict=True)
    ]
    ratio = median(stalled / free for stalled, free in pairs_of_p99)
    report.figures = {**asdict(plan), "ms_p50_p99": medians, "ratio": ratio, "pairs": results}
    text = "; ".join(
        f"{name} p50 {p50:.2f} ms, p99 {p99:.2f} ms" for name, (p50, p99) in medians.items()
    )
    report.line(f"{plan.stalled} stalled readers among {plan.clients:,}: {text}; ratio {ratio:.2f}")
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
