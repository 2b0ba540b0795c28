"""Clients that come back: how soon they have what they missed, at what cost, and to whose delay.

Real Kafka and Valkey, two processors and gateways, all on two cores with the clients, over
pushgate.v1. Every message is accounted for: each client gets what it missed, in order and once, and
no gap is told; any difference is an error.

- `delay`: 500 clients have missed ten messages each, of 200 bytes, all of them settled as offline.
  They come back one at a time. Timed: from the read of the 101 to the read of the last missed
  message, in the client.
- `cost`: 5,000 clients connect, 500 a second, and leave. When they have missed ten messages each
  they come back, 500 a second. Figures: CPU time of all gateways and processors, of which in
  gateways, for each client that comes back, from the first request to the last message; and the
  same for the clients that connect without a cursor, which is the share that is no resume's.
- `storm`: 12,000 clients get 2,000 messages a second together. A gateway with 10,000 of them is
  killed. They come back within five seconds, as pushgate.js does, to two others, which have the
  2,000 bystanders. Counted: resumes that the two gateways have finished twelve seconds after the
  kill. Timed: from Kafka's acknowledgement to the bystander's read, p99 over the twelve seconds
  behind the kill against p99 over the twelve seconds before.

What could fool the benchmark: the clients' own work is on the two cores too. In `storm` the
clients that come back are in a process apart, so that bystanders are not read late for their sake;
but both processes, Kafka and Valkey compete for the cores with gateways and processors, in the
storm more than before. In `delay` the first byte of the 101 is taken for the 101: they are read
together. In `cost` idle work counts too: heartbeats of leases and stamps, for as long as it takes.

    python -m loadtest.resumes [--only delay,cost,storm] [--save]
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any, Final, TypeVar

from loadtest.clients import Crowd, V1Client
from loadtest.kafka import create_topics, delete_topics, real_kafka
from loadtest.ledger import Ledger
from loadtest.processes import Gateway, LoadtestError, Processor, tokens
from loadtest.produce import produce_command
from loadtest.report import Report
from loadtest.returning import BYSTANDERS, returns
from tests.support.valkey import RedisServer

#: From the 101 to the last missed message, in milliseconds.
P50_MS: Final = 20.0
#: CPU time of a resume, gateways and processors together, in milliseconds.
CPU_MS: Final = 0.4
#: Seconds after a kill in which all clients have resumed, and p99 of the others against before.
STORM_SECONDS: Final = 12.0
STORM_RATIO: Final = 2.0
_MISSED: Final = 10
_PARTITIONS: Final = 4
_PROCESSORS: Final = 2
_PATIENCE_SECONDS: Final = 120.0
_POLL_SECONDS: Final = 0.05
_READ_BYTES: Final = 65_536
#: Before the storm: connections and caches warm up, and are not timed.
_WARM_UP_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU time of all gateways and of all processors, in milliseconds."""

    gateways: float
    processors: float

    @property
    def total(self) -> float:
        """Return the CPU time of both."""
        return self.gateways + self.processors

    def since(self, before: Cpu, *, clients: int) -> Cpu:
        """Return the CPU time since `before`, for each of the clients."""
        return Cpu(
            (self.gateways - before.gateways) / clients,
            (self.processors - before.processors) / clients,
        )


class Stage:
    """Gateways, two processors, and a topic that the stage removes."""

    def __init__(self, kafka: str, redis_url: str, stack: ExitStack, *, gateways: int) -> None:
        self.kafka = kafka
        self.topic = f"loadtest-{uuid.uuid4().hex[:12]}"
        create_topics(kafka, [self.topic], partitions=_PARTITIONS)
        stack.callback(delete_topics, kafka, [self.topic])
        self.gateways = [stack.enter_context(Gateway(redis_url)) for _ in range(gateways)]
        self.processors = [
            stack.enter_context(Processor(redis_url, kafka, topic=self.topic, group=self.topic))
            for _ in range(_PROCESSORS)
        ]

    @property
    def ports(self) -> list[int]:
        """Return the ports of the gateways."""
        return [gateway.port for gateway in self.gateways]

    def cpu(self) -> Cpu:
        """Read for how long gateways and processors have run, in milliseconds."""
        return Cpu(
            sum(gateway.run_seconds() for gateway in self.gateways) * 1e3,
            sum(processor.run_seconds() for processor in self.processors) * 1e3,
        )

    def publish_missed(self, users: int) -> None:
        """Publish ten messages to each user; return when all of them are settled as offline."""
        messages = users * _MISSED
        command = produce_command(
            kafka=self.kafka, topic=self.topic, messages=messages, users=users
        )
        self._until(lambda: not self._connections(), "the clients have left")
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=_PATIENCE_SECONDS)
        self._until(lambda: self._outcomes("offline") == messages, "all are offline")

    def _connections(self) -> float:
        return sum(gateway.metric("connections{") for gateway in self.gateways)

    def _outcomes(self, outcome: str) -> int:
        return sum(processor.outcomes().get(outcome, 0) for processor in self.processors)

    def _until(self, done: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not done():
            if time.monotonic() > deadline:
                raise LoadtestError(f"not within {_PATIENCE_SECONDS:g} s: {what}")
            time.sleep(_POLL_SECONDS)


def cursors_of(crowd: Crowd) -> list[str]:
    """Return the cursors of a crowd's clients, once each has one."""
    clients = [client for client in crowd.clients if isinstance(client, V1Client)]
    crowd.until(lambda: all(client.cursor for client in clients), seconds=_PATIENCE_SECONDS)
    return [str(client.cursor) for client in clients]


def resume(port: int, token: str, cursor: str) -> float:
    """Come back; return the seconds from the 101 to the last missed message.

    Raises:
        LoadtestError: the messages are not the missed ones in order, or a gap was told.
    """
    numbers: list[int] = []
    client = V1Client(lambda payload: numbers.append(int(payload[:10])))
    opened_at = 0.0
    with socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_SECONDS) as plug:
        plug.sendall(V1Client.request(V1Client.path(cursor), token))
        while len(numbers) < _MISSED:
            data = plug.recv(_READ_BYTES)
            read_at = time.monotonic()
            opened_at = opened_at or read_at
            if not data:
                raise LoadtestError("the gateway ended a connection")
            client.feed(data)
    if numbers != list(range(_MISSED)) or client.gaps:
        raise LoadtestError(f"a client got {numbers} and {client.gaps} gaps")
    return read_at - opened_at


def measure_delay(stage: Stage, users: int, report: Report) -> None:
    """Let clients come back one at a time."""
    of_users = tokens([f"user-{user}" for user in range(users)])
    with closing(Crowd(stage.ports, "v1")) as crowd:
        crowd.connect(of_users)
        cursors = cursors_of(crowd)
    stage.publish_missed(users)
    delays = sorted(
        resume(stage.ports[number % len(stage.ports)], token, cursor) * 1e3
        for number, (token, cursor) in enumerate(zip(of_users, cursors, strict=True))
    )
    p50, p99 = _percentile(delays, 50), _percentile(delays, 99)
    report.figures["delay"] = {"clients": users, "p50_ms": p50, "p99_ms": p99, "max_ms": delays[-1]}
    report.line(
        f"one client at a time, {_MISSED} messages missed: from the 101 to the last of them p50 "
        f"{p50:.1f} ms, p99 {p99:.1f} ms, most {delays[-1]:.1f} ms"
    )
    report.bound(f"p50 ≤ {P50_MS:g} ms", holds=p50 <= P50_MS)


def measure_cost(stage: Stage, users: int, rate: float, report: Report) -> None:
    """Let clients connect at a fixed rate, and then come back at the same rate."""
    of_users = tokens([f"user-{user}" for user in range(users)])
    ledger = Ledger(users, per_user=_MISSED)
    with closing(Crowd(stage.ports, "v1")) as crowd:
        before = stage.cpu()
        for token in _steadily(of_users, rate, crowd):
            crowd.open(token)
        cursors = cursors_of(crowd)
        plain = stage.cpu().since(before, clients=users)
    stage.publish_missed(users)
    clients = list(zip(of_users, cursors, map(ledger.taker, range(users)), strict=True))
    with closing(Crowd(stage.ports, "v1")) as crowd:
        before = stage.cpu()
        for token, cursor, taker in _steadily(clients, rate, crowd):
            crowd.open(token, taker, path=V1Client.path(cursor))
        crowd.until(lambda: ledger.count >= ledger.expected, seconds=_PATIENCE_SECONDS)
        cost = stage.cpu().since(before, clients=users)
        gaps = sum(client.gaps for client in crowd.clients if isinstance(client, V1Client))
    _check(ledger, gaps=gaps)
    report.figures["cost"] = {
        "clients": users,
        "clients_per_second": rate,
        "ms_with_cursor": asdict(cost),
        "ms_without_cursor": asdict(plain),
    }
    report.line(
        f"at {rate:g} resumes a second, {_MISSED} messages missed: {cost.total:.3f} ms of CPU "
        f"each, {cost.gateways:.3f} in gateways; a connection without a cursor "
        f"{plain.total:.3f} ms, {plain.gateways:.3f} in gateways"
    )
    report.bound(f"≤ {CPU_MS:g} ms of CPU a resume", holds=cost.total <= CPU_MS)


_Item = TypeVar("_Item")


def _steadily(items: Sequence[_Item], rate: float, crowd: Crowd) -> Iterator[_Item]:
    """Yield items at a rate a second; the crowd takes inbound bytes meanwhile."""
    began = time.monotonic()
    for number, item in enumerate(items):
        crowd.rest_until(began + number / rate)
        yield item


@dataclass(frozen=True, slots=True)
class Storm:
    """The load of a storm: all users, messages a second, and messages for each user."""

    users: int
    rate: float
    per_user: int

    @property
    def bystanders(self) -> list[int]:
        """Return the users whose clients stay connected."""
        return [user for user in range(self.users) if not returns(user)]


def measure_storm(stage: Stage, storm: Storm, report: Report) -> None:
    """Kill the first gateway, with all clients but the bystanders'."""
    doomed, *others = stage.gateways
    bystanders = storm.bystanders
    ledger = Ledger(len(bystanders), per_user=storm.per_user, timed=True)
    with (
        tempfile.TemporaryDirectory() as directory,
        closing(Crowd([gateway.port for gateway in others], "ws", first_address=20)) as crowd,
        _returning(doomed, others, storm) as returning,
    ):
        _read_line(returning)  # the clients are connected
        crowd.connect(
            tokens([f"user-{user}" for user in bystanders]),
            on_message=[ledger.taker(number) for number in range(len(bystanders))],
        )
        times = Path(directory, "acknowledged")
        with _publishing(stage, storm, times):
            crowd.until(lambda: ledger.count, seconds=_PATIENCE_SECONDS)
            crowd.rest(_WARM_UP_SECONDS + STORM_SECONDS)
            killed_at = time.monotonic()
            doomed.kill()
            crowd.rest_until(killed_at + STORM_SECONDS)
            resumed = sum(
                int(gateway.metric('resumes_total{result="whole"}')) for gateway in others
            )
            crowd.until(lambda: ledger.count >= ledger.expected, seconds=_PATIENCE_SECONDS)
        account = json.loads(_read_line(returning))
        acknowledged = array("d", times.read_bytes())
    before, after = _p99s_ms(storm, ledger, acknowledged, killed_at)
    clients, ratio = storm.users - len(bystanders), after / before
    report.figures["storm"] = {
        "clients": clients,
        "messages_per_second": storm.rate,
        "resumed_in_time": resumed,
        "last_answer_seconds": account["open_seconds"],
        "p99_ms_before": before,
        "p99_ms_after": after,
        "ratio": ratio,
    }
    report.line(
        f"{resumed:,} of {clients:,} clients of a killed node had resumed {STORM_SECONDS:g} s "
        f"after the kill, the last was answered after {account['open_seconds']:.1f} s; p99 of "
        f"{len(bystanders):,} others {before:.1f} ms before and {after:.1f} ms behind the kill, "
        f"ratio {ratio:.2f}"
    )
    report.bound(f"all resumed after {STORM_SECONDS:g} s", holds=resumed == clients)
    report.bound(f"p99 of the others ≤ {STORM_RATIO:g} ×", holds=ratio <= STORM_RATIO)
    _check(ledger, **account["wrong"])


def _p99s_ms(
    storm: Storm, ledger: Ledger, acknowledged: Sequence[float], killed_at: float
) -> tuple[float, float]:
    """Return the bystanders' p99 in milliseconds, before and behind the kill."""
    before, after = [], []
    bystanders = storm.bystanders
    for turn in range(storm.per_user):
        for number, user in enumerate(bystanders):
            sent = acknowledged[turn * storm.users + user]
            delay = (ledger.arrived[turn * len(bystanders) + number] - sent) * 1e3
            if killed_at - STORM_SECONDS <= sent < killed_at:
                before.append(delay)
            elif killed_at <= sent < killed_at + STORM_SECONDS:
                after.append(delay)
    return _percentile(before, 99), _percentile(after, 99)


@contextmanager
def _returning(
    doomed: Gateway, others: Sequence[Gateway], storm: Storm
) -> Iterator[subprocess.Popen[str]]:
    """Run the clients that lose their node."""
    ports = ",".join(str(gateway.port) for gateway in others)
    arguments = [str(doomed.port), ports, str(storm.users), str(storm.per_user)]
    command = [sys.executable, "-m", "loadtest.returning", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise LoadtestError("the clients that come back have failed")
    return line


@contextmanager
def _publishing(stage: Stage, storm: Storm, times: Path) -> Iterator[None]:
    """Publish at the storm's rate; on exit, wait until the times are in the file."""
    command = produce_command(
        kafka=stage.kafka,
        topic=stage.topic,
        messages=storm.users * storm.per_user,
        users=storm.users,
        rate=storm.rate,
        acknowledged=times,
    )
    publisher = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield
        if publisher.wait(_PATIENCE_SECONDS):
            raise LoadtestError("could not publish")
    finally:
        publisher.kill()
        publisher.wait()


def _check(ledger: Ledger, **wrong: int) -> None:
    """Check that each message has arrived once and in order, and that nothing else is wrong.

    Raises:
        LoadtestError: the text has the counts.
    """
    account = {
        "missing": ledger.missing,
        "repeated": ledger.repeated,
        "out of order": ledger.out_of_order,
    }
    if any(account.values()) or any(wrong.values()):
        raise LoadtestError(f"not each message once and in order: {account}, {wrong}")


def _percentile(values: Sequence[float], percent: int) -> float:
    return quantiles(values, n=100, method="inclusive")[percent - 1]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.resumes")
    parser.add_argument("--kafka", help="bootstrap servers; a Kafka of your own")
    parser.add_argument("--only", default="delay,cost,storm", help="a comma list of the parts")
    parser.add_argument("--clients", type=int, default=500, help="that come back one at a time")
    parser.add_argument("--rate", type=float, default=500.0, help="resumes a second")
    parser.add_argument("--lost", type=int, default=10_000, help="clients of the killed node")
    parser.add_argument("--messages", type=float, default=2_000.0, help="a second, in the storm")
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    arguments = parser.parse_args()
    users = arguments.lost * BYSTANDERS // (BYSTANDERS - 1)
    seconds = _WARM_UP_SECONDS + 3 * STORM_SECONDS
    storm = Storm(users, arguments.messages, max(1, round(arguments.messages * seconds / users)))
    parts: dict[str, tuple[int, Callable[[Stage, Report], Any]]] = {
        "delay": (2, lambda stage, report: measure_delay(stage, arguments.clients, report)),
        "cost": (
            2,
            lambda stage, report: measure_cost(
                stage, int(10 * arguments.rate), arguments.rate, report
            ),
        ),
        "storm": (3, lambda stage, report: measure_storm(stage, storm, report)),
    }
    report = Report("resumes")
    with ExitStack() as servers:
        kafka = servers.enter_context(real_kafka(arguments.kafka))
        redis = servers.enter_context(RedisServer("valkey"))
        for name in arguments.only.split(","):
            gateways, measure = parts[name]
            with ExitStack() as stack:
                measure(Stage(kafka, redis.url, stack, gateways=gateways), report)
    report.finish(save=arguments.save)


if __name__ == "__main__":
    main()
