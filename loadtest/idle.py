"""What an idle connection costs a server process, beside what stock servers take for the same.

Measured: the growth of the process's anonymous memory and PSS (/proc/PID/smaps_rollup) from no
connection to N, divided by N. Each connection has got one message of 200 bytes and, but for
long-polls, one heartbeat (a WebSocket has answered it): buffers and parsers that only traffic makes
are there to be counted. Long-polls are parked again after their message. Gateway and stock server
take turns, round by round, with the same crowd of raw clients; figures are medians of rounds.
Long-polls get their message fifty at a time, as others would: where all are answered at once, all
come back at once, and what so many HTTP requests under way take then stays with the process. That
is shown as a second figure, measured in the same process right after the first.

What could fool it: the kernel's share (some 4.5 KB of slab a socket) is in no figure. PSS divides
the pages of libraries among the processes that map them, so it moves by megabytes when another
Python starts or ends on the machine. Anonymous memory is nobody else's, and connections are made of
nothing else: the bounds are held against it, and on a quiet machine both are the same. A hundred
connections come and go before the first reading, so that imports and pools are not taken for
connections; what they leave free is then used first, which hides one connection in fifty. The stock
servers have no authentication, registry or metrics.

    python -m loadtest.idle [--kinds ws,sse,poll] [--connections 5000] [--save]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Final, Protocol

import httpx

from loadtest.clients import Crowd
from loadtest.processes import BEARER, Gateway, LoadtestError, Memory, Server, free_port, tokens
from loadtest.report import Report
from tests.support.valkey import RedisServer

#: Bytes a connection: what is promised. Long-polls have no bound yet.
BOUNDS: Final = {"ws": 3_072, "sse": 4_096}
HEARTBEAT_SECONDS: Final = 10.0
_HEARTBEAT_TIMEOUT_SECONDS: Final = 8.0
_POLL_GRACE_SECONDS: Final = 4.0
_PAYLOAD: Final = "x" * 200
_WARM_UP: Final = 100
_BATCH: Final = 1_000
_POLL_BATCH: Final = 50
_QUIET_SECONDS: Final = 2.0
#: After this nothing is left of those who came and went, long-poll sessions neither.
_GONE_SECONDS: Final = _POLL_GRACE_SECONDS + 2.0
_PATIENCE: Final = 90.0  # seconds


class Target(Protocol):
    """A server that holds connections."""

    @property
    def server(self) -> Server:
        """Return its process."""

    @property
    def port(self) -> int:
        """Return where clients connect."""

    def message_to_each(self, users: Sequence[str]) -> None:
        """Send one message to everyone; `users` are all who are connected."""


class GatewayTarget:
    """The gateway, pushed into by batches."""

    def __init__(self, gateway: Gateway) -> None:
        self.server = gateway
        self.port = gateway.port

    def message_to_each(self, users: Sequence[str]) -> None:
        """Push a message to every user."""
        for start in range(0, len(users), _BATCH):
            batch = [{"user": user, "data": _PAYLOAD} for user in users[start : start + _BATCH]]
            url = f"{self.server.internal}/push"
            answer = httpx.post(url, json=batch, headers=BEARER, trust_env=False, timeout=30.0)
            if answer.json()["results"] != [1] * len(batch):
                raise LoadtestError("a push did not reach its one connection")


class StockTarget:
    """A stock server."""

    def __init__(self, kind: str) -> None:
        self.port = free_port()
        self._url = f"http://127.0.0.1:{self.port}"
        self.server = Server(
            ["-m", "loadtest.stock", kind, str(self.port), str(HEARTBEAT_SECONDS)],
            {},
            f"{self._url}/healthz",
        )

    def message_to_each(self, users: Sequence[str]) -> None:
        """Have it send to all."""
        url = f"{self._url}/broadcast"
        answer = httpx.post(url, content=_PAYLOAD, trust_env=False, timeout=60.0)
        if int(answer.text) != len(users):
            raise LoadtestError(f"{answer.text} connections were sent to, of {len(users)}")


@dataclass(frozen=True, slots=True)
class Growth:
    """Bytes a connection: at rest, and after everyone had a message at once."""

    idle: Memory
    after_burst: Memory


def measure(target: Target, kind: str, connections: int) -> Growth:
    """Return the growth for each of so many connections."""
    with target.server as server:
        with _visit(target, kind, _WARM_UP):
            pass
        time.sleep(_GONE_SECONDS)
        before = server.memory()
        with _visit(target, kind, connections) as crowd:
            if kind != "poll":
                crowd.until(lambda: all(c.heartbeats for c in crowd.clients), seconds=_PATIENCE)
            crowd.rest(_QUIET_SECONDS)
            idle = _growth(before, server.memory(), connections)
            _send(target, crowd, connections, at_once=connections)
            crowd.rest(_QUIET_SECONDS)
            return Growth(idle, _growth(before, server.memory(), connections))


@contextmanager
def _visit(target: Target, kind: str, connections: int) -> Iterator[Crowd]:
    """Connect a crowd and send a message to each of it."""
    crowd = Crowd(target.port, kind)
    try:
        crowd.connect(tokens(_users(0, connections)))
        at_once = _POLL_BATCH if kind == "poll" else connections
        _send(target, crowd, connections, at_once=at_once)
        yield crowd
    finally:
        crowd.close()


def _send(target: Target, crowd: Crowd, connections: int, *, at_once: int) -> None:
    for start in range(0, connections, at_once):
        clients = crowd.clients[start : start + at_once]
        expected = clients[0].messages + 1
        target.message_to_each(_users(start, start + len(clients)))
        crowd.until(
            lambda clients=clients, expected=expected: all(c.messages == expected for c in clients),  # type: ignore[misc]
            seconds=_PATIENCE,
        )


def _users(start: int, end: int) -> list[str]:
    return [f"user-{number}" for number in range(start, end)]


def _growth(before: Memory, after: Memory, connections: int) -> Memory:
    pss, anonymous = after.pss - before.pss, after.anonymous - before.anonymous
    return Memory(pss // connections, anonymous // connections)


def _targets(kind: str, redis_url: str) -> dict[str, Target]:
    gateway = Gateway(
        redis_url,
        heartbeat_seconds=HEARTBEAT_SECONDS,
        heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT_SECONDS,
        poll_grace_seconds=_POLL_GRACE_SECONDS,
    )
    targets: dict[str, Target] = {"gateway": GatewayTarget(gateway)}
    if kind != "poll":
        targets["stock"] = StockTarget(kind)
    return targets


def _kind(kind: str, connections: int, rounds: int, report: Report, redis_url: str) -> None:
    found: dict[str, list[Growth]] = {}
    for _ in range(rounds):
        for name, target in _targets(kind, redis_url).items():
            found.setdefault(name, []).append(measure(target, kind, connections))
    medians = {name: _medians(growths) for name, growths in found.items()}
    figures: dict[str, object] = {"connections": connections, "rounds": rounds, **medians}
    text = f"{kind}: {_told(medians['gateway'])}"
    if "stock" in found:
        pairs = zip(found["stock"], found["gateway"], strict=True)
        ratio = median(stock.idle.anonymous / ours.idle.anonymous for stock, ours in pairs)
        figures["ratio"] = ratio
        text += f"; stock {_told(medians['stock'])}; ratio {ratio:.1f}"
    report.figures[kind] = figures
    report.line(text)
    if kind in BOUNDS:
        holds = medians["gateway"]["anonymous"] <= BOUNDS[kind]
        report.bound(f"{kind} ≤ {BOUNDS[kind]:,} B", holds=holds)


def _medians(growths: Sequence[Growth]) -> dict[str, float]:
    return {
        "anonymous": median(each.idle.anonymous for each in growths),
        "pss": median(each.idle.pss for each in growths),
        "anonymous_after_burst": median(each.after_burst.anonymous for each in growths),
    }


def _told(medians: dict[str, float]) -> str:
    return (
        f"{medians['anonymous']:,.0f} B a connection (PSS {medians['pss']:,.0f}; "
        f"after a message to all at once {medians['anonymous_after_burst']:,.0f})"
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.idle")
    parser.add_argument("--kinds", default="ws,sse,poll", help="a comma list")
    parser.add_argument("--connections", type=int, default=5_000, help="idle connections")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of gateway and stock server")
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    arguments = parser.parse_args()
    report = Report("idle")
    with RedisServer("valkey") as redis:
        for kind in arguments.kinds.split(","):
            _kind(kind, arguments.connections, arguments.rounds, report, redis.url)
    report.finish(save=arguments.save)


if __name__ == "__main__":
    main()
