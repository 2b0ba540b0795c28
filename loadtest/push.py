"""`POST /push` in batches to WebSockets: messages per CPU second, beside a stock server.

Measured: user and system time of the server's process (/proc/PID/stat) from the first of
`--messages` messages until the last message has reached its client. Every message is accounted for,
by the results and at the clients. The server has a core alone; the pusher, the clients and Valkey
are on the other core. A batch is posted when the batch before has been answered; the clients read
messages as they arrive, and sleep when none arrives. Both servers take the same requests: JSON of
200-byte JSON texts, a hundred deliveries a request. `unicast` is a hundred messages for a hundred
users; `broadcast` is one message for a list of a hundred users. Gateway and stock server take
turns, every round runs on a fresh process after a warm-up, and the server that comes first changes
from pair to pair; a ratio is the median of the pairs' ratios. The gateway also takes the unicast
batches as MessagePack, the format that processors send.

What could fool the benchmark: the sender pays for the kernel's work on a message, including the
receiver's half of TCP and waking the receiver, and this work is the same for both servers. A bare
loop of `write()` to these sockets takes 3.7 µs a message here, and 4.7 µs when the receiver reads
at the same time; so the ratio has an upper bound, however fast a server is. With `--apart` the
clients' core does the receiver's half (see loadtest/apart.py). Where the kernel accounts for soft
interrupts separately, they are in no figure. The stock server has no limits, no metrics and no
message ids.

    python -m loadtest.push [--users 5000] [--apart] [--save]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from statistics import median
from typing import Final

import msgspec

from loadtest.apart import go_apart
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
from loadtest.targets import GatewayTarget, StockTarget, Target, names
from tests.support.valkey import RedisServer

#: Required ratios of messages per CPU second, gateway to stock server.
BOUNDS: Final = {"unicast": 1.5, "broadcast": 2.5}
_MESSAGE_BYTES: Final = 200
_HEARTBEAT_SECONDS: Final = 120.0
_PATIENCE_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The messages of one round: users, deliveries a request, deliveries in all."""

    users: int
    per_request: int
    messages: int

    def batches(self, mode: str) -> list[list[dict[str, object]]]:
        """Return batches that together send one message to every user."""
        groups = [
            names(start, start + self.per_request)
            for start in range(0, self.users, self.per_request)
        ]
        if mode == "broadcast":
            return [[{"user": group, "data": _text(n)}] for n, group in enumerate(groups)]
        return [
            [{"user": user, "data": _text(n)} for n, user in enumerate(group)] for group in groups
        ]

    def results(self, mode: str) -> list[object]:
        """Return the expected results of one batch: one connection for every delivery."""
        return [[1] * self.per_request] if mode == "broadcast" else [1] * self.per_request


def _text(number: int) -> str:
    start = msgspec.json.encode({"number": number, "text": ""})[:-2].decode()
    return f'{start}{"x" * (_MESSAGE_BYTES - len(start) - 2)}"}}'


def move(target: Target, plan: Plan) -> dict[str, float]:
    """Start the target's server, run every mode, and return messages per CPU second by mode.

    Raises:
        LoadtestError: a message did not reach its one connection.
    """
    rates = {}
    with target.server:
        crowd = Crowd(target.port, "ws")
        try:
            crowd.connect(target.credentials(names(0, plan.users)))
            for mode in BOUNDS:
                with target.pusher() as pusher:
                    rates[mode] = _rate(target, crowd, pusher, plan, mode)
            if isinstance(target, GatewayTarget):
                with target.pusher("msgpack") as pusher:
                    rates["unicast as MessagePack"] = _rate(target, crowd, pusher, plan, "unicast")
        finally:
            crowd.close()
    return rates


def _rate(target: Target, crowd: Crowd, pusher: Pusher, plan: Plan, mode: str) -> float:
    requests = [pusher.request(batch) for batch in plan.batches(mode)]
    _post(requests, crowd, pusher, plan, mode)  # the warm-up
    timed_requests = list(islice(cycle(requests), plan.messages // plan.per_request))
    before = target.server.cpu_seconds()
    _post(timed_requests, crowd, pusher, plan, mode)
    used = target.server.cpu_seconds() - before
    return len(timed_requests) * plan.per_request / used


def _post(requests: Sequence[bytes], crowd: Crowd, pusher: Pusher, plan: Plan, mode: str) -> None:
    """Post requests one after the other, and wait until all messages have reached the clients."""
    expected = _arrived(crowd) + len(requests) * plan.per_request
    results = plan.results(mode)
    with crowd.woken_by(pusher.fileno()):
        for request in requests:
            pusher.send(request)
            while not pusher.answered():
                crowd.turn(_PATIENCE_SECONDS)
            if pusher.results() != results:
                raise LoadtestError("a push did not reach its one connection")
    crowd.until(lambda: _arrived(crowd) == expected, seconds=_PATIENCE_SECONDS)


def _arrived(crowd: Crowd) -> int:
    return sum(client.messages for client in crowd.clients)


def _compare(plan: Plan, rounds: int, redis_url: str, report: Report) -> None:
    results: dict[str, list[dict[str, float]]] = {"gateway": [], "stock": []}
    for number in range(rounds):
        for name in results if number % 2 else reversed(results):
            rates = move(_target(name, redis_url), plan)
            results[name].append(rates)
            text = ", ".join(f"{mode} {rate:,.0f}" for mode, rate in rates.items())
            print(f"  {name}: {text}", flush=True)
    report.figures = {"users": plan.users, "messages": plan.messages, "rounds": results}
    for mode, bound in BOUNDS.items():
        gateway = [rates[mode] for rates in results["gateway"]]
        stock = [rates[mode] for rates in results["stock"]]
        pairs = zip(gateway, stock, strict=True)
        ratio = median(of_gateway / of_stock for of_gateway, of_stock in pairs)
        report.figures[mode] = {
            "gateway": median(gateway), "stock": median(stock), "ratio": ratio
        }  # fmt: skip
        report.line(
            f"{mode}: {median(gateway):,.0f} messages a CPU second, stock {median(stock):,.0f}; "
            f"ratio {ratio:.2f}"
        )
        report.bound(f"{mode} ≥ {bound:g} ×", holds=ratio >= bound)
    packed = median(rates["unicast as MessagePack"] for rates in results["gateway"])
    report.figures["unicast as MessagePack"] = packed
    report.line(f"unicast as MessagePack: {packed:,.0f} messages a CPU second")


def _target(name: str, redis_url: str) -> Target:
    if name == "stock":
        return StockTarget("ws", heartbeat_seconds=_HEARTBEAT_SECONDS, cores=SERVER_CORE)
    gateway = Gateway(
        redis_url, cores=SERVER_CORE, heartbeat_seconds=_HEARTBEAT_SECONDS, **EVERYTHING_ON
    )
    return GatewayTarget(gateway)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.push")
    parser.add_argument("--users", type=int, default=5_000, help="connected, one WebSocket each")
    parser.add_argument("--per-request", type=int, default=100, help="deliveries of a request")
    parser.add_argument("--messages", type=int, default=100_000, help="of each mode, in a round")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of gateway and stock server")
    parser.add_argument(
        "--apart", action="store_true", help="the clients' half of TCP on their core; needs root"
    )
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    arguments = parser.parse_args()
    if arguments.users % arguments.per_request:
        parser.error("--users is no multiple of --per-request")
    plan = Plan(arguments.users, arguments.per_request, arguments.messages)
    if arguments.apart:
        go_apart()
    report = Report("push-apart" if arguments.apart else "push")
    leave_the_server_alone()
    with RedisServer("valkey") as redis:
        _compare(plan, arguments.rounds, redis.url, report)
    report.finish(save=arguments.save)


if __name__ == "__main__":
    main()
