"""Kafka to 5,000 WebSocket clients through one processor and one gateway or more, on two cores.

Timed: from the first to the last message at the clients. The gateway runs and its clients are
connected, the consumer group has its starting offsets, and all messages lie in a topic of four
partitions when the processor starts. Every message is accounted for: every user must get all
messages, in order, once; any difference is an error. CPU time is the difference of /proc/PID/stat
between the first and the last message. The figure is the median of rounds.

With `--latency` messages are published at a fixed rate while all processes run. Timed: from Kafka's
acknowledgement, as seen in the publisher's process, to the client's read, by one clock.

What could fool the benchmark: Kafka, Valkey and the clients share the two cores, so the rate is
the rate of a whole machine, and a gateway and a processor on two cores alone would do more; compare
the CPU time per message. The clients sleep a little between reads, so that one read takes many
frames: a real crowd of clients would pay more for its reads. The rate includes waits at the start,
while batches are small. A latency below zero is no fault: a message may overtake its own
acknowledgement.

Kafka is the broker at PUSHGATE_TEST_KAFKA or `--kafka`, or an Apache Kafka that
tests/support/kafka.py starts, with a JVM set for a quick start. Every round makes a topic and a
consumer group; the topic is removed at the end, the group's offsets lapse by themselves.

    python -m loadtest.throughput [--messages 300000] [--latency --rate 2000] [--save]
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
import uuid
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Final

from loadtest.clients import Crowd
from loadtest.kafka import create_topics, delete_topics, real_kafka
from loadtest.ledger import Ledger
from loadtest.processes import Gateway, LoadtestError, Processor, tokens
from loadtest.produce import produce_command
from loadtest.report import Report
from tests.support.valkey import RedisServer

#: The required messages per second.
BOUND: Final = 25_000
#: Milliseconds from acknowledgement to client, at 2,000 messages/s.
P50_MS: Final = 10.0
P99_MS: Final = 50.0
_PARTITIONS: Final = 4
#: The clients' sleep between reads when throughput is measured.
_PAUSE_SECONDS: Final = 0.02
_PATIENCE_SECONDS: Final = 240.0
#: From the start of a processor until it is idle.
_SETTLE_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU time of the processor and of all gateways together, in seconds."""

    processor: float
    gateway: float


@dataclass(frozen=True, slots=True)
class Round:
    """The figures of one round of throughput; `…_us` is CPU time a message in microseconds."""

    messages_per_second: float
    processor_us: float
    gateway_us: float
    processor_cpu_seconds: float
    gateway_cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Pace:
    """The figures of messages at a fixed rate.

    `delays` are the sorted seconds from acknowledgement to client, without those of the first
    second; `…_us` is CPU time a message in microseconds.
    """

    delays: list[float]
    processor_us: float
    gateway_us: float

    def percentile_ms(self, percent: int) -> float:
        """Return a percentile of the delays, in milliseconds."""
        return quantiles(self.delays, n=100, method="inclusive")[percent - 1] * 1e3


@dataclass(frozen=True, slots=True)
class Plan:
    """The messages of one round, and where Kafka and Redis are.

    `rate` is in messages a second, and counts only for latency.
    """

    kafka: str
    redis_url: str
    users: int
    per_user: int
    rate: float
    checkout: Path | None = None  # another one, whose gateways and processor are measured
    gateways: int = 1
    outcomes: bool = False  # whether the processor tells every message's outcome in a topic

    @property
    def messages(self) -> int:
        """Return the number of messages to all users together."""
        return self.users * self.per_user


class Stage:
    """Gateways, their clients, a topic, and a processor that is not started yet."""

    def __init__(self, plan: Plan, gateways: Sequence[Gateway], topic: str, *, timed: bool) -> None:
        self._plan = plan
        self.topic = topic
        self.gateways = gateways
        settings = {"outcomes_topic": _outcomes_topic(topic)} if plan.outcomes else {}
        self.processor = Processor(
            plan.redis_url,
            plan.kafka,
            topic=topic,
            group=topic,
            checkout=plan.checkout,
            **settings,
        )
        self.ledger = Ledger(plan.users, per_user=plan.per_user, timed=timed)
        self.crowd = Crowd([gateway.port for gateway in gateways], "ws")

    def connect(self) -> None:
        """Connect the clients."""
        users = range(self._plan.users)
        callbacks = [self.ledger.taker(user) for user in users]
        self.crowd.connect(tokens([f"user-{user}" for user in users]), on_message=callbacks)

    @contextmanager
    def publishing(self, *, rate: float = 0.0, times: Path | None = None) -> Iterator[None]:
        """Start to publish all messages; on exit, wait until Kafka has acknowledged all of them.

        `rate` is in messages a second, 0 for as fast as possible. The times of acknowledgements go
        to the file `times`.

        Raises:
            LoadtestError: the publisher failed.
        """
        plan = self._plan
        arguments = {
            "kafka": plan.kafka,
            "topic": self.topic,
            "messages": plan.messages,
            "users": plan.users,
            "rate": rate,
            **({"acknowledged": times} if times else {}),
        }
        publisher = subprocess.Popen(produce_command(**arguments), stdout=subprocess.DEVNULL)
        try:
            yield
            if publisher.wait(_PATIENCE_SECONDS):
                raise LoadtestError("could not publish")
        finally:
            publisher.kill()
            publisher.wait()

    def cpu(self) -> Cpu:
        """Read the processes' CPU time."""
        of_gateways = sum(gateway.cpu_seconds() for gateway in self.gateways)
        return Cpu(self.processor.cpu_seconds(), of_gateways)

    def run_seconds(self) -> Cpu:
        """Read for how long the processes have run."""
        of_gateways = sum(gateway.run_seconds() for gateway in self.gateways)
        return Cpu(self.processor.run_seconds(), of_gateways)

    def check(self) -> None:
        """Check that all messages arrived in order and once, and that the processor agrees.

        Raises:
            LoadtestError: messages are missing, repeated or out of order, or counted differently.
        """
        ledger = self.ledger
        if ledger.missing or ledger.repeated or ledger.out_of_order:
            raise LoadtestError(
                f"of {ledger.expected} messages {ledger.missing} are missing, "
                f"{ledger.repeated} repeated, {ledger.out_of_order} out of order"
            )
        deadline = time.monotonic() + 5.0
        while (outcomes := self.processor.outcomes()) != {"delivered": ledger.expected}:
            if time.monotonic() > deadline:
                raise LoadtestError(f"the processor counted {outcomes}")
            time.sleep(0.1)


@contextmanager
def _stage(plan: Plan, *, timed: bool = False) -> Iterator[Stage]:
    topic = f"loadtest-{uuid.uuid4().hex[:12]}"
    with ExitStack() as stack:
        topics = [topic, *([_outcomes_topic(topic)] if plan.outcomes else ())]
        create_topics(plan.kafka, topics, partitions=_PARTITIONS)
        stack.callback(delete_topics, plan.kafka, topics)
        gateways = [
            stack.enter_context(Gateway(plan.redis_url, checkout=plan.checkout))
            for _ in range(plan.gateways)
        ]
        stage = Stage(plan, gateways, topic, timed=timed)
        stack.callback(stage.processor.stop)
        stack.callback(stage.crowd.close)
        stage.connect()
        yield stage


def move(plan: Plan) -> Round:
    """Run one round of throughput."""
    with _stage(plan) as stage:
        # A new group starts at the end of its topic: a first start, while the topic is empty,
        # commits the offsets from which the second start reads.
        stage.processor.start()
        stage.processor.stop()
        with stage.publishing():
            pass
        stage.processor.start()
        took, cpu = _time(stage)
        stage.check()
    us_a_message = 1e6 / plan.messages
    return Round(
        plan.messages / took,
        cpu.processor * us_a_message,
        cpu.gateway * us_a_message,
        cpu.processor,
        cpu.gateway,
    )


def _time(stage: Stage) -> tuple[float, Cpu]:
    """Return the seconds, and the CPU time used, from the first to the last message."""
    ledger, crowd = stage.ledger, stage.crowd
    crowd.until(lambda: ledger.count > 0, seconds=_PATIENCE_SECONDS)
    began, before = time.monotonic(), stage.cpu()
    deadline = began + _PATIENCE_SECONDS
    while ledger.count < ledger.expected and time.monotonic() < deadline:
        time.sleep(_PAUSE_SECONDS)
        crowd.turn(1.0)
    took, after = time.monotonic() - began, stage.cpu()
    return took, Cpu(after.processor - before.processor, after.gateway - before.gateway)


def pace(plan: Plan) -> Pace:
    """Publish at the plan's rate while both processes run."""
    with _stage(plan, timed=True) as stage, tempfile.TemporaryDirectory() as directory:
        stage.processor.start()
        times = Path(directory, "acknowledged")
        before = stage.cpu()
        with stage.publishing(rate=plan.rate, times=times):
            seconds = plan.messages / plan.rate + _PATIENCE_SECONDS
            stage.crowd.until(lambda: stage.ledger.count >= plan.messages, seconds=seconds)
            after = stage.cpu()
        stage.check()
        acknowledged = array("d", times.read_bytes())
        pairs = zip(acknowledged, stage.ledger.arrived, strict=True)
        us_a_message = 1e6 / plan.messages
        return Pace(
            # Connections and caches warm up in the first second.
            sorted(arrived - sent for sent, arrived in list(pairs)[int(plan.rate) :]),
            (after.processor - before.processor) * us_a_message,
            (after.gateway - before.gateway) * us_a_message,
        )


def rest(plan: Plan, *, seconds: float) -> Cpu:
    """Let the processor and the gateways idle, with the users connected and no message.

    Returns the seconds for which they run, of `seconds`.
    """
    with _stage(plan) as stage:
        stage.processor.start()
        stage.crowd.rest(_SETTLE_SECONDS)
        before = stage.run_seconds()
        stage.crowd.rest(seconds)
        after = stage.run_seconds()
    return Cpu(after.processor - before.processor, after.gateway - before.gateway)


def _outcomes_topic(topic: str) -> str:
    return f"{topic}.outcomes"


def _report_throughput(plan: Plan, rounds: int, report: Report) -> None:
    results = [move(plan) for _ in range(rounds)]
    for result in results:
        print(
            f"  {result.messages_per_second:,.0f} messages/s; "
            f"processor {result.processor_us:.1f} µs, "
            f"gateway {result.gateway_us:.1f} µs of CPU a message"
        )
    rate = median(result.messages_per_second for result in results)
    processor = median(result.processor_us for result in results)
    gateway = median(result.gateway_us for result in results)
    report.figures["throughput"] = {
        "messages": plan.messages,
        "users": plan.users,
        "messages_per_second": rate,
        "processor_us": processor,
        "gateway_us": gateway,
        "rounds": [asdict(result) for result in results],
    }
    report.line(
        f"{rate:,.0f} messages/s; CPU a message: processor {processor:.1f} µs, "
        f"gateway {gateway:.1f} µs"
    )
    report.bound(f"≥ {BOUND:,} messages/s", holds=rate >= BOUND)


def _report_latency(plan: Plan, report: Report) -> None:
    paced = pace(plan)
    p50, p99, most = paced.percentile_ms(50), paced.percentile_ms(99), paced.delays[-1] * 1e3
    report.figures["latency"] = {
        "messages": plan.messages,
        "rate": plan.rate,
        "p50_ms": p50,
        "p99_ms": p99,
        "max_ms": most,
        "processor_us": paced.processor_us,
        "gateway_us": paced.gateway_us,
    }
    report.line(
        f"at {plan.rate:,.0f} messages/s, acknowledged → client: p50 {p50:.1f} ms, "
        f"p99 {p99:.1f} ms, most {most:.1f} ms; CPU a message: "
        f"processor {paced.processor_us:.1f} µs, gateway {paced.gateway_us:.1f} µs"
    )
    report.bound(f"p50 ≤ {P50_MS:g} ms", holds=p50 <= P50_MS)
    report.bound(f"p99 ≤ {P99_MS:g} ms", holds=p99 <= P99_MS)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.throughput")
    parser.add_argument("--kafka", help="bootstrap servers; a Kafka of your own")
    parser.add_argument("--messages", type=int, help="300,000; with --latency 15 s of the rate")
    parser.add_argument("--users", type=int, default=5_000, help="connected users")
    parser.add_argument("--gateways", type=int, default=1)
    parser.add_argument("--outcomes", action="store_true", help="tell outcomes in a topic")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of throughput")
    parser.add_argument("--latency", action="store_true", help="latency instead of throughput")
    parser.add_argument("--rate", type=float, default=2_000.0, help="messages/s with --latency")
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    arguments = parser.parse_args()
    messages = arguments.messages or (15 * arguments.rate if arguments.latency else 300_000)
    report = Report("latency" if arguments.latency else "throughput")
    with ExitStack() as stack:
        kafka = stack.enter_context(real_kafka(arguments.kafka))
        redis = stack.enter_context(RedisServer("valkey"))
        per_user = max(1, int(messages / arguments.users))
        plan = Plan(
            kafka,
            redis.url,
            arguments.users,
            per_user,
            arguments.rate,
            gateways=arguments.gateways,
            outcomes=arguments.outcomes,
        )
        if arguments.latency:
            _report_latency(plan, report)
        else:
            _report_throughput(plan, arguments.rounds, report)
    report.finish(save=arguments.save)


if __name__ == "__main__":
    main()
