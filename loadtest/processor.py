"""One processor alone: Kafka → look-up → forward, to gateways that only count.

Messages of 200 bytes for 10,000 users on three nodes lie in a topic of twelve partitions when the
processor starts. Timed: from the first to the last message that a gateway counts. No look-up is
cached. Rounds with and without an outcomes topic take turns, and so does a plain aiokafka consumer
of the same topic, which discards all records. Figures are medians; the ratio is the median of the
pairs' ratios.

What could fool the benchmark: Kafka, Valkey and the counting gateways share the other core, and
writes to the outcomes topic are work for Kafka as well; so compare the CPU time per message too. At
the end of every round the clock runs on for a last batch, which is half full.

    python -m loadtest.processor [--messages 400000] [--rounds 3] [--save]
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Final

import httpx
from aiokafka import AIOKafkaConsumer

from loadtest.kafka import create_topics, real_kafka
from loadtest.processes import LoadtestError, Processor
from loadtest.produce import produce_command
from loadtest.report import Report
from tests.support.valkey import RedisServer

#: Messages per second, and the share of this rate that must remain with an outcomes topic.
BOUND: Final = 50_000
WITH_OUTCOMES: Final = 0.75
_PARTITIONS: Final = 12
_NODES: Final = 3
_POLL_SECONDS: Final = 0.05
_PATIENCE_SECONDS: Final = 240.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The messages of one round, and where Kafka and Redis are."""

    kafka: str
    redis_url: str
    topic: str
    users: int
    messages: int


@dataclass(frozen=True, slots=True)
class Round:
    """The figures of one round; `cpu_us` is the processor's CPU time a message."""

    messages_per_second: float
    cpu_us: float


def move(plan: Plan, count_url: str, *, outcomes: bool) -> Round:
    """Start a processor of a new group, and time how long all messages take.

    Raises:
        LoadtestError: not all messages reached the counting gateways within four minutes.
    """
    settings: dict[str, Any] = {"outcomes_topic": f"{plan.topic}.outcomes"} if outcomes else {}
    group = f"g-{uuid.uuid4().hex[:8]}"
    processor = Processor(
        plan.redis_url,
        plan.kafka,
        topic=plan.topic,
        group=group,
        kafka_start="earliest",
        **settings,
    )
    start = _count(count_url)
    with processor:
        began, before = time.monotonic(), processor.cpu_seconds()
        first = _count(count_url) - start
        deadline = began + _PATIENCE_SECONDS
        while (moved := _count(count_url) - start) < plan.messages:
            if time.monotonic() > deadline:
                raise LoadtestError(f"{moved} of {plan.messages} were moved")
            time.sleep(_POLL_SECONDS)
        took, cpu = time.monotonic() - began, processor.cpu_seconds() - before
    moved -= first
    return Round(moved / took, cpu * 1e6 / moved)


async def consume(plan: Plan) -> float:
    """Return the messages a second that a plain consumer reads."""
    consumer = AIOKafkaConsumer(
        plan.topic, bootstrap_servers=plan.kafka, auto_offset_reset="earliest"
    )
    await consumer.start()
    records, began = 0, time.monotonic()
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while records < plan.messages:
                batch = await consumer.getmany(timeout_ms=1_000, max_records=2_000)
                records += sum(map(len, batch.values()))
    finally:
        await consumer.stop()
    return records / (time.monotonic() - began)


def _count(url: str) -> int:
    return int(httpx.get(url, trust_env=False).text)


@contextmanager
def _counting(plan: Plan) -> Iterator[str]:
    arguments = ["--redis", plan.redis_url, "--nodes", str(_NODES), "--users", str(plan.users)]
    command = [sys.executable, "-m", "loadtest.counting", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://{process.stdout.readline().strip()}/count"
    finally:
        process.kill()
        process.wait()


def _publish(plan: Plan) -> None:
    command = produce_command(
        kafka=plan.kafka, topic=plan.topic, messages=plan.messages, users=plan.users
    )
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=_PATIENCE_SECONDS)


def _compare(plan: Plan, rounds: int, report: Report) -> None:
    plain_rates: list[float] = []
    results: dict[bool, list[Round]] = {False: [], True: []}  # by whether there was a topic
    with _counting(plan) as url:
        move(plan, url, outcomes=False)  # a warm-up for Kafka, which is not counted
        for number in range(rounds):
            plain_rates.append(asyncio.run(consume(plan)))
            for outcomes in (False, True) if number % 2 else (True, False):
                result = move(plan, url, outcomes=outcomes)
                results[outcomes].append(result)
                name = "with outcomes topic" if outcomes else "without"
                rate, cpu_us = result.messages_per_second, result.cpu_us
                print(f"  {name}: {rate:,.0f}/s, {cpu_us:.1f} µs of CPU")
    rate = median(result.messages_per_second for result in results[False])
    cpu = [median(result.cpu_us for result in results[outcomes]) for outcomes in (False, True)]
    pairs = zip(results[True], results[False], strict=True)
    ratio = median(
        topic.messages_per_second / no_topic.messages_per_second for topic, no_topic in pairs
    )
    report.figures = {
        "messages": plan.messages,
        "users": plan.users,
        "nodes": _NODES,
        "messages_per_second": rate,
        "plain_consumer_per_second": median(plain_rates),
        "with_outcomes_topic": ratio,
        "rounds": {
            str(outcomes): [asdict(result) for result in of_kind]
            for outcomes, of_kind in results.items()
        },
    }
    report.line(
        f"{rate:,.0f} messages/s with {cpu[0]:.1f} µs of CPU each; a plain aiokafka consumer gets "
        f"{median(plain_rates):,.0f}/s; with an outcomes topic {ratio:.2f} × ({cpu[1]:.1f} µs)"
    )
    report.bound(f"≥ {BOUND:,} messages/s", holds=rate >= BOUND)
    report.bound(f"with outcomes ≥ {WITH_OUTCOMES:g} ×", holds=ratio >= WITH_OUTCOMES)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.processor")
    parser.add_argument("--kafka", help="bootstrap servers; a Kafka of your own")
    parser.add_argument("--messages", type=int, default=400_000, help="of each round")
    parser.add_argument("--users", type=int, default=10_000, help="on three nodes")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each kind")
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    arguments = parser.parse_args()
    report = Report("processor")
    with ExitStack() as stack:
        kafka = stack.enter_context(real_kafka(arguments.kafka))
        redis = stack.enter_context(RedisServer("valkey"))
        topic = f"loadtest-{uuid.uuid4().hex[:12]}"
        plan = Plan(kafka, redis.url, topic, arguments.users, arguments.messages)
        topics = (topic, f"{topic}.outcomes")
        create_topics(kafka, topics, partitions=_PARTITIONS)
        _publish(plan)
        _compare(plan, arguments.rounds, report)
    report.finish(save=arguments.save)


if __name__ == "__main__":
    main()
