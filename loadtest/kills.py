"""Processors killed and added while messages flow: none lost, none twice, none out of order.

2,000 messages/s for 1,000 WebSocket clients on two gateways go through three processors. Twenty
times a processor is killed (SIGKILL) and started anew, so that messages which were forwarded and
not committed come again; ten times a fourth processor joins the group and leaves. Every message is
accounted for: every user gets all messages, in order, once. The number of messages that the
gateways recognised as repeats is shown: where the number is 0, no kill fell between forward and
commit, and the run proves nothing about repeats.

With `--control` the gateways recognise no repeats (PUSHGATE_REPEAT_WINDOW_MESSAGES=0): messages
must then arrive twice. If no message does, this benchmark is unable to see repeats.

    python -m loadtest.kills [--kills 20] [--rebalances 10] [--control] [--save]
"""

from __future__ import annotations

import argparse
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from loadtest.clients import Crowd
from loadtest.kafka import create_topics, real_kafka
from loadtest.ledger import Ledger
from loadtest.processes import Gateway, LoadtestError, Processor, tokens
from loadtest.produce import produce_command
from loadtest.report import Report
from tests.support.valkey import RedisServer

_PARTITIONS: Final = 12
_PROCESSORS: Final = 3
_PATIENCE_SECONDS: Final = 120.0
#: Messages that must have arrived between one fault and the next.
_FLOWING: Final = 2_000


@dataclass(frozen=True, slots=True)
class Plan:
    """The load and the faults of one run."""

    kafka: str
    redis_url: str
    users: int
    rate: float
    kills: int
    rebalances: int
    repeat_window: int


class Stage:
    """Two gateways, their clients, and processors that are killed, started and stopped."""

    def __init__(self, plan: Plan, stack: ExitStack, topic: str) -> None:
        self._plan = plan
        self._topic = topic
        # One thread starts all processors: a child process ends with the thread that started the
        # child (see tied_to_parent).
        self._pool = stack.enter_context(ThreadPoolExecutor(1))
        self.gateways = [
            stack.enter_context(Gateway(plan.redis_url, repeat_window_messages=plan.repeat_window))
            for _ in range(2)
        ]
        self.processors = [self._processor(stack) for _ in range(_PROCESSORS + 1)]
        self.ledger = Ledger(plan.users, per_user=1 << 30)
        self.crowds = [Crowd(gateway.port, "ws") for gateway in self.gateways]
        for half, crowd in enumerate(self.crowds):
            stack.callback(crowd.close)
            users = range(half, plan.users, 2)
            callbacks = [self.ledger.taker(user) for user in users]
            crowd.connect(tokens([f"user-{user}" for user in users]), on_message=callbacks)

    def until(self, done: Callable[[], bool], what: str) -> float:
        """Take inbound messages until `done`; return the longest silence, in seconds.

        Raises:
            LoadtestError: `done` was still false after two minutes; `what` says what was awaited.
        """
        began = last = time.monotonic()
        longest = 0.0
        while not done():
            now = time.monotonic()
            if now - began > _PATIENCE_SECONDS:
                raise LoadtestError(f"not within {_PATIENCE_SECONDS:g} s: {what}")
            arrived = sum([crowd.turn(0.005) for crowd in self.crowds])
            if arrived:
                longest, last = max(longest, now - last), now
        return max(longest, time.monotonic() - last)

    def aside(self, work: Callable[[], None]) -> float:
        """Do slow work in a thread and take inbound messages meanwhile; return the silence."""
        future = self._pool.submit(work)
        longest = self.until(future.done, "a processor starts or stops")
        future.result()
        return longest

    def flowing(self) -> float:
        """Wait until 2,000 more messages have arrived; return the longest silence, in seconds."""
        mark = self.ledger.count + _FLOWING
        return self.until(lambda: self.ledger.count >= mark, "messages flow")

    def repeats(self) -> int:
        """Return how many messages the gateways recognised as repeats."""
        return sum(int(gateway.metric("repeats_total")) for gateway in self.gateways)

    def _processor(self, stack: ExitStack) -> Processor:
        plan = self._plan
        processor = Processor(plan.redis_url, plan.kafka, topic=self._topic, group=self._topic)
        stack.callback(processor.stop)
        return processor


def run(plan: Plan, report: Report) -> None:
    """Kill processors and rebalance, then account for every message."""
    topic = f"loadtest-{uuid.uuid4().hex[:12]}"
    create_topics(plan.kafka, [topic], partitions=_PARTITIONS)
    with ExitStack() as stack:
        stage = Stage(plan, stack, topic)
        for processor in stage.processors[:_PROCESSORS]:
            processor.start()
        with _publishing(plan, topic) as publisher:
            stage.flowing()
            silences = _disturb(plan, stage)
            publisher.terminate()  # the publisher prints how many messages Kafka has acknowledged
            published = int(publisher.communicate(timeout=_PATIENCE_SECONDS)[0])
        ledger = stage.ledger
        ledger.expected = published
        stage.until(lambda: not ledger.missing, f"{ledger.missing} of {published} are missing")
        stage.until(_after(1.0), "nothing more comes")
        _summarise(plan, stage, silences, report)


def _disturb(plan: Plan, stage: Stage) -> list[float]:
    silences = []
    for number in range(max(plan.kills, plan.rebalances)):
        if number < plan.kills:
            victim = stage.processors[number % _PROCESSORS]
            victim.kill()
            silences += [stage.aside(victim.start), stage.flowing()]
        if number < plan.rebalances:
            silences += [stage.aside(stage.processors[-1].start), stage.flowing()]
            silences += [stage.aside(stage.processors[-1].stop), stage.flowing()]
        print(
            f"  {number + 1}: {stage.repeats()} repeats, longest {max(silences):.1f} s", flush=True
        )
    return silences


def _summarise(plan: Plan, stage: Stage, silences: Sequence[float], report: Report) -> None:
    ledger, repeats = stage.ledger, stage.repeats()
    report.figures = {
        "messages": ledger.expected,
        "kills": plan.kills,
        "rebalances": plan.rebalances,
        "missing": ledger.missing,
        "twice": ledger.repeated,
        "out_of_order": ledger.out_of_order,
        "recognised_as_repeats": repeats,
        "longest_silence_seconds": max(silences),
    }
    report.line(
        f"{plan.kills} kills and {plan.rebalances} rebalances under {plan.rate:,.0f} messages/s: "
        f"of {ledger.expected:,} messages {ledger.missing} lost, {ledger.repeated} twice, "
        f"{ledger.out_of_order} out of order; {repeats:,} repeats recognised; the longest silence "
        f"was {max(silences):.1f} s"
    )
    report.bound("none lost", holds=not ledger.missing)
    if plan.repeat_window:
        report.bound("none twice", holds=not ledger.repeated)
        report.bound("none out of order", holds=not ledger.out_of_order)
        report.bound("kills fell between forward and commit", holds=repeats > 0)
    else:
        report.bound("the control sees repeats", holds=ledger.repeated > 0)


def _after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


@contextmanager
def _publishing(plan: Plan, topic: str) -> Iterator[subprocess.Popen[str]]:
    command = produce_command(
        kafka=plan.kafka, topic=topic, messages=10**7, users=plan.users, rate=plan.rate
    )
    publisher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield publisher
    finally:
        publisher.kill()
        publisher.wait()


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.kills")
    parser.add_argument("--kafka", help="bootstrap servers; a Kafka of your own")
    parser.add_argument("--users", type=int, default=1_000, help="connected, on two gateways")
    parser.add_argument("--rate", type=float, default=2_000.0, help="messages a second")
    parser.add_argument("--kills", type=int, default=20, help="of processors")
    parser.add_argument("--rebalances", type=int, default=10, help="of one more processor")
    parser.add_argument("--control", action="store_true", help="gateways recognise no repeats")
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    arguments = parser.parse_args()
    report = Report("kills-control" if arguments.control else "kills")
    with ExitStack() as stack:
        kafka = stack.enter_context(real_kafka(arguments.kafka))
        redis = stack.enter_context(RedisServer("valkey"))
        plan = Plan(
            kafka,
            redis.url,
            arguments.users,
            arguments.rate,
            arguments.kills,
            arguments.rebalances,
            0 if arguments.control else 65_536,
        )
        run(plan, report)
    report.finish(save=arguments.save)


if __name__ == "__main__":
    main()
