"""Memory of an idle connection in a server process, beside the memory in stock servers.

Measured: the growth of the process's anonymous memory and PSS (/proc/PID/smaps_rollup) from no
connection to N, divided by N. Every connection has received one message of 200 bytes and, but for
long-polls, one heartbeat (a WebSocket client has answered the Ping): so buffers and parsers that
exist only after traffic are counted. Long-polls are parked again after their message. The gateway
on each wire and the stock server take turns, round by round, with the same crowd of raw clients;
the figures are medians of rounds. Fifty long-polls at a time get their message, as in service.
Where all long-polls are answered at once, all clients poll again at once, and the memory of so many
concurrent HTTP requests then stays with the process. This peak is shown as a second figure,
measured in the same process right after the first figure. The gateway runs with all limits, maximum
age and heartbeats switched on.

The wires: `epoll` and `transport` in plaintext; `tls` is the transport wire under TLS, with fewer
connections. The figure of `tls` is shown and has no bound.

What could fool the benchmark: the kernel's share (some 4.5 KB of slab a socket) is in no figure.
PSS divides the pages of libraries among the processes that map them, so PSS moves by megabytes when
another Python starts or ends on the machine. Anonymous memory is not shared with any process, and
connections consist of anonymous memory alone: so the bounds apply to anonymous memory, and on a
quiet machine both figures are the same. A hundred connections come and go before the first reading,
so that imports and pools are not taken for connections. Memory that these hundred leave free is
used first, which hides one connection in a hundred. The stock servers have no authentication,
registry, limits or metrics.

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

#: The promised bytes a connection, by kind and wire.
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
#: Time after which closed connections have left nothing behind, no long-poll session either.
_GONE_SECONDS: Final = _POLL_GRACE_SECONDS + 2.0


@dataclass(frozen=True, slots=True)
class Growth:
    """Bytes a connection: at rest, and after all connections got a message at once."""

    idle: Memory
    after_burst: Memory


def measure(target: Target, kind: str, connections: int) -> Growth:
    """Return the growth of the target's memory with `connections` of a kind, in bytes for each."""
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
    """What all comparisons share: registry, certificate, number of rounds."""

    redis_url: str
    certificate: Certificate
    rounds: int
    checkout: Path | None = None  # another one, whose gateway is measured

    def targets(self, kind: str, wires: Sequence[str]) -> dict[str, Callable[[], Target]]:
        """Return factories of the servers to compare: a gateway a wire, and the stock server.

        There is no stock server for long-polls.
        """
        factories: dict[str, Callable[[], Target]] = {
            wire: lambda wire=wire: self._gateway(wire)  # type: ignore[misc]
            for wire in wires
        }
        if kind != "poll":
            certificate = self.certificate if "tls" in wires else None
            factories["stock"] = lambda: StockTarget(
                kind, heartbeat_seconds=HEARTBEAT_SECONDS, certificate=certificate
            )
        return factories

    def _gateway(self, wire: str) -> Target:
        encrypted = wire == "tls"
        settings: dict[str, Any] = {**EVERYTHING_ON}
        if encrypted:
            settings |= {"tls_cert": self.certificate.cert, "tls_key": self.certificate.key}
        gateway = Gateway(
            self.redis_url,
            checkout=self.checkout,
            wire="transport" if encrypted else wire,
            heartbeat_seconds=HEARTBEAT_SECONDS,
            heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT_SECONDS,
            poll_grace_seconds=_POLL_GRACE_SECONDS,
            **settings,
        )
        return GatewayTarget(gateway, tls=self.certificate.trust if encrypted else None)


def _compare(plan: Plan, kind: str, wires: Sequence[str], connections: int, report: Report) -> None:
    rounds: dict[str, list[Growth]] = {}  # by target
    for _ in range(plan.rounds):
        for name, make in plan.targets(kind, wires).items():
            growth = measure(make(), kind, connections)
            rounds.setdefault(name, []).append(growth)
            print(f"  {kind}, {name}: {growth.idle.anonymous:,} B", flush=True)
    medians = {name: _medians(growths) for name, growths in rounds.items()}
    for wire in wires:
        _report(kind, wire, medians, rounds, report)
    subject = f"{kind} over TLS" if "tls" in wires else kind
    ratios = {f"ratio_{wire}": _ratio(rounds, wire) for wire in wires if "stock" in rounds}
    report.figures[subject] = {
        "connections": connections, "rounds": plan.rounds, **medians, **ratios
    }  # fmt: skip


def _report(
    kind: str,
    wire: str,
    medians: Mapping[str, Mapping[str, float]],
    rounds: Mapping[str, Sequence[Growth]],
    report: Report,
) -> None:
    text = f"{kind}, {wire}: {_text(medians[wire])}"
    if "stock" in rounds:
        text += f"; stock {_text(medians['stock'])}; ratio {_ratio(rounds, wire):.1f}"
    report.line(text)
    if (bound := BOUNDS.get((kind, wire))) is not None:
        report.bound(f"{kind}, {wire} ≤ {bound:,} B", holds=medians[wire]["anonymous"] <= bound)


def _ratio(rounds: Mapping[str, Sequence[Growth]], wire: str) -> float:
    pairs = zip(rounds["stock"], rounds[wire], strict=True)
    return median(stock.idle.anonymous / gateway.idle.anonymous for stock, gateway in pairs)


def _medians(growths: Sequence[Growth]) -> dict[str, float]:
    return {
        "anonymous": median(growth.idle.anonymous for growth in growths),
        "pss": median(growth.idle.pss for growth in growths),
        "anonymous_after_burst": median(growth.after_burst.anonymous for growth in growths),
    }


def _text(medians: Mapping[str, float]) -> str:
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
