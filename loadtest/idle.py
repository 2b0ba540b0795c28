"""What an idle connection costs a server process, beside what stock servers take for the same.

Measured: the growth of the process's anonymous memory and PSS (/proc/PID/smaps_rollup) from no
connection to N, divided by N. Each connection has got one message of 200 bytes and, but for
long-polls, one heartbeat (a WebSocket has answered it): buffers and parsers that only traffic makes
are there to be counted. Long-polls are parked again after their message. The gateway on each wire
and the stock server take turns, round by round, with the same crowd of raw clients; figures are
medians of rounds. Long-polls get their message fifty at a time, as others would: where all are
answered at once, all come back at once, and what so many HTTP requests under way take then stays
with the process. That is shown as a second figure, measured in the same process right after the
first. The gateway has everything switched on: limits, maximum age, heartbeats.

The wires: `epoll` and `transport` in plaintext, `tls` the transport wire under TLS, with fewer
connections: its figure is shown, and has no bound.

What could fool it: the kernel's share (some 4.5 KB of slab a socket) is in no figure. PSS divides
the pages of libraries among the processes that map them, so it moves by megabytes when another
Python starts or ends on the machine. Anonymous memory is nobody else's, and connections are made of
nothing else: the bounds are held against it, and on a quiet machine both are the same. A hundred
connections come and go before the first reading, so that imports and pools are not taken for
connections; what they leave free is then used first, which hides one connection in a hundred. The
stock servers have no authentication, registry, limits or metrics.

    python -m loadtest.idle [--kinds ws,sse,poll] [--wires epoll,transport,tls] [--save]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from loadtest.certificate import Certificate
from loadtest.processes import EVERYTHING_ON, Gateway, Memory
from loadtest.report import Report
from loadtest.targets import (
    GatewayTarget,
    StockTarget,
    Target,
    heartbeat_of_each,
    message_to_each,
    visit,
)
from tests.support.valkey import RedisServer

#: Bytes a connection, by kind and wire: what is promised.
BOUNDS: Final = {
    ("ws", "epoll"): 1_024,
    ("sse", "epoll"): 1_024,
    ("ws", "transport"): 3_072,
    ("sse", "transport"): 3_072,
    ("poll", "epoll"): 4_096,
    ("poll", "transport"): 4_096,
}
HEARTBEAT_SECONDS: Final = 10.0
_HEARTBEAT_TIMEOUT_SECONDS: Final = 8.0
_POLL_GRACE_SECONDS: Final = 4.0
_WARM_UP: Final = 100
_QUIET_SECONDS: Final = 2.0
#: After this nothing is left of those who came and went, long-poll sessions neither.
_GONE_SECONDS: Final = _POLL_GRACE_SECONDS + 2.0


@dataclass(frozen=True, slots=True)
class Growth:
    """Bytes a connection: at rest, and after everyone had a message at once."""

    idle: Memory
    after_burst: Memory


def measure(target: Target, kind: str, connections: int) -> Growth:
    """Return the growth for each of so many connections."""
    with target.server as server:
        with visit(target, kind, _WARM_UP):
            pass
        time.sleep(_GONE_SECONDS)
        before = server.memory()
        with visit(target, kind, connections) as crowd:
            if kind != "poll":
                heartbeat_of_each(crowd)
            crowd.rest(_QUIET_SECONDS)
            idle = _growth(before, server.memory(), connections)
            message_to_each(target, crowd, at_once=connections)
            crowd.rest(_QUIET_SECONDS)
            return Growth(idle, _growth(before, server.memory(), connections))


def _growth(before: Memory, after: Memory, connections: int) -> Memory:
    pss, anonymous = after.pss - before.pss, after.anonymous - before.anonymous
    return Memory(pss // connections, anonymous // connections)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured."""

    redis_url: str
    certificate: Certificate
    rounds: int

    def targets(self, kind: str, wires: Sequence[str]) -> dict[str, Callable[[], Target]]:
        """Return what makes each server of one comparison: its wires, and the stock server's."""
        made: dict[str, Callable[[], Target]] = {
            wire: lambda wire=wire: self._gateway(wire)  # type: ignore[misc]
            for wire in wires
        }
        if kind != "poll":
            certificate = self.certificate if "tls" in wires else None
            made["stock"] = lambda: StockTarget(
                kind, heartbeat_seconds=HEARTBEAT_SECONDS, certificate=certificate
            )
        return made

    def _gateway(self, wire: str) -> Target:
        encrypted = wire == "tls"
        settings: dict[str, Any] = {**EVERYTHING_ON}
        if encrypted:
            settings |= {"tls_cert": self.certificate.cert, "tls_key": self.certificate.key}
        gateway = Gateway(
            self.redis_url,
            wire="transport" if encrypted else wire,
            heartbeat_seconds=HEARTBEAT_SECONDS,
            heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT_SECONDS,
            poll_grace_seconds=_POLL_GRACE_SECONDS,
            **settings,
        )
        return GatewayTarget(gateway, tls=self.certificate.trust if encrypted else None)


def _compare(plan: Plan, kind: str, wires: Sequence[str], connections: int, report: Report) -> None:
    found: dict[str, list[Growth]] = {}
    for _ in range(plan.rounds):
        for name, make in plan.targets(kind, wires).items():
            found.setdefault(name, []).append(measure(make(), kind, connections))
            print(f"  {kind}, {name}: {found[name][-1].idle.anonymous:,} B", flush=True)
    medians = {name: _medians(growths) for name, growths in found.items()}
    for wire in wires:
        _report(kind, wire, medians, found, report)
    subject = f"{kind} over TLS" if "tls" in wires else kind
    ratios = {f"ratio_{wire}": _ratio(found, wire) for wire in wires if "stock" in found}
    report.figures[subject] = {
        "connections": connections, "rounds": plan.rounds, **medians, **ratios
    }  # fmt: skip


def _report(
    kind: str,
    wire: str,
    medians: Mapping[str, Mapping[str, float]],
    found: Mapping[str, Sequence[Growth]],
    report: Report,
) -> None:
    text = f"{kind}, {wire}: {_told(medians[wire])}"
    if "stock" in found:
        text += f"; stock {_told(medians['stock'])}; ratio {_ratio(found, wire):.1f}"
    report.line(text)
    if (bound := BOUNDS.get((kind, wire))) is not None:
        report.bound(f"{kind}, {wire} ≤ {bound:,} B", holds=medians[wire]["anonymous"] <= bound)


def _ratio(found: Mapping[str, Sequence[Growth]], wire: str) -> float:
    pairs = zip(found["stock"], found[wire], strict=True)
    return median(stock.idle.anonymous / ours.idle.anonymous for stock, ours in pairs)


def _medians(growths: Sequence[Growth]) -> dict[str, float]:
    return {
        "anonymous": median(each.idle.anonymous for each in growths),
        "pss": median(each.idle.pss for each in growths),
        "anonymous_after_burst": median(each.after_burst.anonymous for each in growths),
    }


def _told(medians: Mapping[str, float]) -> str:
    return (
        f"{medians['anonymous']:,.0f} B a connection (PSS {medians['pss']:,.0f}; "
        f"after a message to all at once {medians['anonymous_after_burst']:,.0f})"
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.idle")
    parser.add_argument("--kinds", default="ws,sse,poll", help="a comma list")
    parser.add_argument("--wires", default="epoll,transport,tls", help="a comma list")
    parser.add_argument("--connections", type=int, default=10_000, help="in plaintext")
    parser.add_argument("--tls-connections", type=int, default=2_000, help="over TLS")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all that is compared")
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    arguments = parser.parse_args()
    wires = arguments.wires.split(",")
    plaintext = [wire for wire in wires if wire != "tls"]
    report = Report("idle")
    with RedisServer("valkey") as redis, tempfile.TemporaryDirectory() as directory:
        plan = Plan(redis.url, Certificate.make(Path(directory)), arguments.rounds)
        for kind in arguments.kinds.split(","):
            if plaintext:
                _compare(plan, kind, plaintext, arguments.connections, report)
            if "tls" in wires and kind != "poll":
                _compare(plan, kind, ["tls"], arguments.tls_connections, report)
    report.finish(save=arguments.save)


if __name__ == "__main__":
    main()
