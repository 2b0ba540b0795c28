"""Kafka to 5,000 WebSocket clients through one processor and one gateway, on two cores.

Timed: from the first to the last message at the clients. The gateway and its clients are there
first, the group is seeded, and all messages lie in a topic of four partitions when the processor
starts. Every message is accounted for: of each user all, in order, once; anything else is an error.
CPU is what /proc/PID/stat says between those two moments. The figure is the median of rounds.

With `--latency`: messages are published at a pace while everything runs, and timed from the
acknowledgement, as the publisher's process saw it, to the client's read: by one clock.

What could fool it: Kafka, Valkey and the clients share the two cores, so this is what a machine
does and not what two processes could do; compare the CPU per message. The clients sleep a little
between reads, so that they take many frames at once: that costs them less than it would a real
crowd. The rate over the whole includes waits at the start, where batches are small. A latency below
zero is no fault: the message may overtake its own acknowledgement.

Kafka is the one at PUSHGATE_TEST_KAFKA or `--kafka`, or an Apache Kafka that tests/support/kafka.py
starts; that one runs with a JVM set for a quick start. A topic and a group are made for each round;
the topic is removed, the group's offsets lapse by themselves.

    python -m loadtest.throughput [--messages 300000] [--latency --rate 2000] [--save]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
import uuid
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from loadtest.clients import Crowd
from loadtest.ledger import Ledger
from loadtest.processes import Gateway, LoadtestError, Processor, tokens
from loadtest.report import Report
from tests.support.kafka import start_kafka
from tests.support.valkey import RedisServer

#: Messages per second that must be moved.
BOUND: Final = 25_000
#: Milliseconds from acknowledgement to client, at 2,000 messages/s.
P50_MS: Final = 10.0
P99_MS: Final = 50.0
_PARTITIONS: Final = 4
#: What the clients sleep between reads where latency is not the question.
_PAUSE_SECONDS: Final = 0.02
_PATIENCE_SECONDS: Final = 240.0


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU seconds used so far."""

    processor: float
    gateway: float


@dataclass(frozen=True, slots=True)
class Round:
    """What one round of throughput found."""

    messages_per_second: float
    processor_us: float
    gateway_us: float
    processor_cpu_seconds: float
    gateway_cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What a round moves."""

    kafka: str
    redis_url: str
    users: int
    per_user: int
    rate: float

    @property
    def messages(self) -> int:
        """Return how many messages that are."""
        return self.users * self.per_user


class Stage:
    """A gateway, its clients, a topic and a processor that is not running yet."""

    def __init__(self, plan: Plan, gateway: Gateway, topic: str, *, timed: bool) -> None:
        self._plan = plan
        self.topic = topic
        self.gateway = gateway
        self.processor = Processor(plan.redis_url, plan.kafka, topic=topic, group=topic)
        self.ledger = Ledger(plan.users, per_user=plan.per_user, timed=timed)
        self.crowd = Crowd(gateway.port, "ws")

    def connect(self) -> None:
        """Connect the clients."""
        users = range(self._plan.users)
        takers = [self.ledger.taker(user) for user in users]
        self.crowd.connect(tokens([f"user-{user}" for user in users]), on_message=takers)

    @contextmanager
    def publishing(self, *, rate: float = 0.0, times: Path | None = None) -> Iterator[None]:
        """Start to publish every message; at the end, wait until Kafka has acknowledged all."""
        plan = self._plan
        arguments = {
            "kafka": plan.kafka,
            "topic": self.topic,
            "messages": plan.messages,
            "users": plan.users,
            "rate": rate,
            **({"acknowledged": times} if times else {}),
        }
        flags = [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "loadtest.produce", *flags]
        publisher = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            yield
            if publisher.wait(_PATIENCE_SECONDS):
                raise LoadtestError("could not publish")
        finally:
            publisher.kill()
            publisher.wait()

    def cpu(self) -> Cpu:
        """Read both processes' CPU time."""
        return Cpu(self.processor.cpu_seconds(), self.gateway.cpu_seconds())

    def check(self) -> None:
        """Look whether all came, in order and once, and whether the processor counted the same."""
        ledger = self.ledger
        if ledger.missing or ledger.repeated or ledger.out_of_order:
            raise LoadtestError(
                f"of {ledger.expected} messages {ledger.missing} are missing, "
                f"{ledger.repeated} repeated, {ledger.out_of_order} out of order"
            )
        deadline = time.monotonic() + 5.0
        while (counted := self.processor.outcomes()) != {"delivered": ledger.expected}:
            if time.monotonic() > deadline:
                raise LoadtestError(f"the processor counted {counted}")
            time.sleep(0.1)


@contextmanager
def _stage(plan: Plan, *, timed: bool = False) -> Iterator[Stage]:
    topic = f"loadtest-{uuid.uuid4().hex[:12]}"
    with ExitStack() as stack:
        asyncio.run(_administer(plan.kafka, lambda admin: _create(admin, topic)))
        stack.callback(lambda: asyncio.run(_administer(plan.kafka, lambda a: _delete(a, topic))))
        gateway = stack.enter_context(Gateway(plan.redis_url))
        stage = Stage(plan, gateway, topic, timed=timed)
        stack.callback(stage.processor.stop)
        stack.callback(stage.crowd.close)
        stage.connect()
        yield stage


def move(plan: Plan) -> Round:
    """Run one round of throughput."""
    with _stage(plan) as stage:
        stage.processor.start()  # the group is seeded at the end of nothing
        stage.processor.stop()
        with stage.publishing():
            pass
        stage.processor.start()
        took, cpu = _time(stage)
        stage.check()
    each = 1e6 / plan.messages
    return Round(
        plan.messages / took, cpu.processor * each, cpu.gateway * each, cpu.processor, cpu.gateway
    )


def _time(stage: Stage) -> tuple[float, Cpu]:
    """Return what passed, and was used, from the first to the last message."""
    ledger, crowd = stage.ledger, stage.crowd
    crowd.until(lambda: ledger.count > 0, seconds=_PATIENCE_SECONDS)
    began, before = time.monotonic(), stage.cpu()
    deadline = began + _PATIENCE_SECONDS
    while ledger.count < ledger.expected and time.monotonic() < deadline:
        time.sleep(_PAUSE_SECONDS)
        crowd.turn(1.0)
    took, after = time.monotonic() - began, stage.cpu()
    return took, Cpu(after.processor - before.processor, after.gateway - before.gateway)


def delay(plan: Plan) -> list[float]:
    """Return the seconds from acknowledgement to client, sorted, of messages at a pace."""
    with _stage(plan, timed=True) as stage, tempfile.TemporaryDirectory() as directory:
        stage.processor.start()
        times = Path(directory, "acknowledged")
        with stage.publishing(rate=plan.rate, times=times):
            seconds = plan.messages / plan.rate + _PATIENCE_SECONDS
            stage.crowd.until(lambda: stage.ledger.count >= plan.messages, seconds=seconds)
        stage.check()
        acknowledged = array("d", times.read_bytes())
        pairs = zip(acknowledged, stage.ledger.arrived, strict=True)
        # The first second warms connections and caches up.
        return sorted(arrived - sent for sent, arrived in list(pairs)[int(plan.rate) :])


async def _administer(kafka: str, work: Callable[[Any], Any]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        await work(admin)
    finally:
        await admin.close()


async def _create(admin: Any, topic: str) -> None:
    await admin.create_topics([NewTopic(topic, _PARTITIONS, 1)])


async def _delete(admin: Any, topic: str) -> None:
    await admin.delete_topics([topic])


def _report_throughput(plan: Plan, rounds: int, report: Report) -> None:
    found = [move(plan) for _ in range(rounds)]
    for each in found:
        print(
            f"  {each.messages_per_second:,.0f} messages/s; processor {each.processor_us:.1f} µs, "
            f"gateway {each.gateway_us:.1f} µs of CPU a message"
        )
    rate = median(each.messages_per_second for each in found)
    processor = median(each.processor_us for each in found)
    gateway = median(each.gateway_us for each in found)
    report.figures["throughput"] = {
        "messages": plan.messages,
        "users": plan.users,
        "messages_per_second": rate,
        "processor_us": processor,
        "gateway_us": gateway,
        "rounds": [asdict(each) for each in found],
    }
    report.line(
        f"{rate:,.0f} messages/s; CPU a message: processor {processor:.1f} µs, "
        f"gateway {gateway:.1f} µs"
    )
    report.bound(f"≥ {BOUND:,} messages/s", holds=rate >= BOUND)


def _report_latency(plan: Plan, report: Report) -> None:
    delays = delay(plan)
    cuts = quantiles(delays, n=100, method="inclusive")
    p50, p99 = cuts[49] * 1e3, cuts[98] * 1e3
    report.figures["latency"] = {
        "messages": plan.messages,
        "rate": plan.rate,
        "p50_ms": p50,
        "p99_ms": p99,
        "max_ms": delays[-1] * 1e3,
    }
    report.line(
        f"at {plan.rate:,.0f} messages/s, acknowledged → client: p50 {p50:.1f} ms, "
        f"p99 {p99:.1f} ms, most {delays[-1] * 1e3:.1f} ms"
    )
    report.bound(f"p50 ≤ {P50_MS:g} ms", holds=p50 <= P50_MS)
    report.bound(f"p99 ≤ {P99_MS:g} ms", holds=p99 <= P99_MS)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.throughput")
    parser.add_argument("--kafka", help="bootstrap servers; a Kafka of your own")
    parser.add_argument("--messages", type=int, help="300,000; with --latency 15 s of the rate")
    parser.add_argument("--users", type=int, default=5_000, help="connected users")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of throughput")
    parser.add_argument("--latency", action="store_true", help="latency instead of throughput")
    parser.add_argument("--rate", type=float, default=2_000.0, help="messages/s with --latency")
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    arguments = parser.parse_args()
    messages = arguments.messages or (15 * arguments.rate if arguments.latency else 300_000)
    report = Report("latency" if arguments.latency else "throughput")
    with ExitStack() as stack:
        given = {"PUSHGATE_TEST_KAFKA": arguments.kafka} if arguments.kafka else {}
        kafka = start_kafka({**os.environ, **given})
        stack.callback(kafka.stop)
        if kafka.kind == "embedded":
            raise LoadtestError(f"a real Kafka is needed: {kafka.missing}")
        redis = stack.enter_context(RedisServer("valkey"))
        per_user = max(1, int(messages / arguments.users))
        plan = Plan(kafka.bootstrap, redis.url, arguments.users, per_user, arguments.rate)
        if arguments.latency:
            _report_latency(plan, report)
        else:
            _report_throughput(plan, arguments.rounds, report)
    report.finish(save=arguments.save)


if __name__ == "__main__":
    main()
