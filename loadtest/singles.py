"""`POST /push/{user}`: CPU time of a single push at the gateway.

Measured: user and system time of the gateway's process (/proc/PID/stat), divided by the number of
pushes, from the first push until the last message has reached its client. Each push is one request
with one message of 200 bytes, for one user with one WebSocket. A request is sent when the request
before has been answered, on one keep-alive connection, so no work is shared among pushes. Every
message is accounted for, by its answer and at its client. The gateway has a core alone; the pusher,
the clients and Valkey are on the other core.

What could fool the benchmark: the gateway pays for the kernel's work on a request, an answer and a
message, the clients' halves of TCP included.

    python -m loadtest.singles [--pushes 20000] [--save]
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import cycle, islice
from statistics import median
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

_PAYLOAD: Final = b"x" * 200
_HEARTBEAT_SECONDS: Final = 120.0
_PATIENCE_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a round measures: users with a WebSocket each, and pushes in all."""

    users: int
    pushes: int


def push_each(target: GatewayTarget, plan: Plan) -> float:
    """Start the gateway; return its CPU time of one single push, in microseconds.

    Raises:
        LoadtestError: a message did not reach its one connection.
    """
    users = names(0, plan.users)
    with target.server:
        crowd = Crowd(target.port, "ws")
        try:
            crowd.connect(target.credentials(users))
            with target.pusher() as pusher:
                requests = [pusher.single(user, _PAYLOAD) for user in users]
                _push(crowd, pusher, requests)  # the warm-up
                timed_requests = list(islice(cycle(requests), plan.pushes))
                before = target.server.cpu_seconds()
                _push(crowd, pusher, timed_requests)
                return (target.server.cpu_seconds() - before) * 1e6 / plan.pushes
        finally:
            crowd.close()


def _push(crowd: Crowd, pusher: Pusher, requests: list[bytes]) -> None:
    """Send requests one after the other, and wait until all messages have reached the clients."""
    expected = _arrived(crowd) + len(requests)
    with crowd.woken_by(pusher.fileno()):
        for request in requests:
            pusher.send(request)
            while not pusher.answered():
                crowd.turn(_PATIENCE_SECONDS)
            if pusher.body() != b"delivered to 1\n":
                raise LoadtestError("a push did not reach its one connection")
    crowd.until(lambda: _arrived(crowd) == expected, seconds=_PATIENCE_SECONDS)


def _arrived(crowd: Crowd) -> int:
    return sum(client.messages for client in crowd.clients)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.singles")
    parser.add_argument("--users", type=int, default=1_000, help="connected, one WebSocket each")
    parser.add_argument("--pushes", type=int, default=20_000, help="of each round")
    parser.add_argument("--rounds", type=int, default=5, help="each on a fresh gateway")
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    arguments = parser.parse_args()
    plan = Plan(arguments.users, arguments.pushes)
    report = Report("singles")
    leave_the_server_alone()
    rounds = []
    with RedisServer("valkey") as redis:
        for _ in range(arguments.rounds):
            gateway = Gateway(
                redis.url, cores=SERVER_CORE, heartbeat_seconds=_HEARTBEAT_SECONDS, **EVERYTHING_ON
            )
            rounds.append(push_each(GatewayTarget(gateway), plan))
    report.figures = {"users": plan.users, "pushes": plan.pushes, "µs": rounds}
    report.line(f"{median(rounds):.0f} µs of CPU a single push")
    report.finish(save=arguments.save)


if __name__ == "__main__":
    main()
