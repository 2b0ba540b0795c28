"""`POST /push` in batches to WebSockets: messages per CPU second, beside a stock server.

Measured: user and system time of the server's process (/proc/PID/stat) from the first of so many
messages until the last has reached its client; every message is accounted for, by the results and
at the clients. The server has a core for itself; whoever posts, the clients and Valkey are on the
other. A batch is posted when the one before was answered; the clients read what comes as it comes,
and sleep where nothing does. Both servers take the same requests: JSON
of 200-byte JSON texts, a hundred deliveries a request. `unicast` is a hundred messages for a user
each; `broadcast` is one message for a list of a hundred users. Gateway and stock server take turns,
each round on a fresh process after a warm-up, and the first of a pair changes; a ratio is the
median of the pairs' own. The gateway also takes the unicast batches as MessagePack, as processors
send them.

What could fool it: the kernel's work for a message, the receiver's half of TCP and waking the
receiver in it, is paid for by whoever sends, and is the same for both servers. A bare loop of
`write()` to these sockets takes 3.7 µs a message here, 4.7 where somebody reads; that caps the
ratio, whatever a server does. With `--apart` the receiver's half is where the clients are (see
loadtest/apart.py). Where soft interrupts are accounted for apart, they are in no figure. The stock
server knows no limits, counts nothing, gives no message an id.

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

#: Times the stock server's messages per CPU second.
BOUNDS: Final = {"unicast": 1.5, "broadcast": 2.5}
_MESSAGE_BYTES: Final = 200
_HEARTBEAT_SECONDS: Final = 120.0
_PATIENCE_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a round moves."""

    users: int
    per_request: int
    messages: int

    def batches(self, mode: str) -> list[list[dict[str, object]]]:
        """Return batches that reach everyone once."""
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
        """Return what answers each batch when all goes well."""
        return [[1] * self.per_request] if mode == "broadcast" else [1] * self.per_request


def _text(number: int) -> str:
    start = msgspec.json.encode({"number": number, "text": ""})[:-2].decode()
    return f'{start}{"x" * (_MESSAGE_BYTES - len(start) - 2)}"}}'


def move(target: Target, plan: Plan) -> dict[str, float]:
    """Return the messages per CPU second of each mode."""
    found = {}
    with target.server:
        crowd = Crowd(target.port, "ws")
        try:
            crowd.connect(target.credentials(names(0, plan.users)))
            for mode in BOUNDS:
                with target.pusher() as pusher:
                    found[mode] = _rate(target, crowd, pusher, plan, mode)
            if isinstance(target, GatewayTarget):
                with target.pusher("msgpack") as pusher:
                    found["unicast as MessagePack"] = _rate(target, crowd, pusher, plan, "unicast")
        finally:
            crowd.close()
    return found


def _rate(target: Target, crowd: Crowd, pusher: Pusher, plan: Plan, mode: str) -> float:
    requests = [pusher.request(batch) for batch in plan.batches(mode)]
    _post(requests, crowd, pusher, plan, mode)
    again = list(islice(cycle(requests), plan.messages // plan.per_request))
    before = target.server.cpu_seconds()
    _post(again, crowd, pusher, plan, mode)
    used = target.server.cpu_seconds() - before
    return len(again) * plan.per_request / used


def _post(requests: Sequence[bytes], crowd: Crowd, pusher: Pusher, plan: Plan, mode: str) -> None:
    """Post one after the other, and wait until all has reached the clients."""
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
    found: dict[str, list[dict[str, float]]] = {"gateway": [], "stock": []}
    for number in range(rounds):
        for name in found if number % 2 else reversed(found):
            found[name].append(move(_target(name, redis_url), plan))
            told = ", ".join(f"{mode} {rate:,.0f}" for mode, rate in found[name][-1].items())
            print(f"  {name}: {told}", flush=True)
    report.figures = {"users": plan.users, "messages": plan.messages, "rounds": found}
    for mode, bound in BOUNDS.items():
        pairs = list(zip(found["gateway"], found["stock"], strict=True))
        ratio = median(ours[mode] / stock[mode] for ours, stock in pairs)
        rates = [median(each[mode] for each in pair) for pair in zip(*pairs, strict=True)]
        report.figures[mode] = {"gateway": rates[0], "stock": rates[1], "ratio": ratio}
        report.line(
            f"{mode}: {rates[0]:,.0f} messages a CPU second, stock {rates[1]:,.0f}; "
            f"ratio {ratio:.2f}"
        )
        report.bound(f"{mode} ≥ {bound:g} ×", holds=ratio >= bound)
    packed = median(each["unicast as MessagePack"] for each in found["gateway"])
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
