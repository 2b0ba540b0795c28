"""An upgrade from an earlier release, and the wrong order of one: nothing is lost, under load.

Two mixes of this checkout and another one, with 1,000 plain WebSocket clients and 500 messages/s:

- old processors, new gateways, as in an upgrade between its two steps: every message arrives once
  and in order, first on gateways of both versions, then on new ones alone;
- new processors, old gateways, the wrong order: from its first message on the processor is not
  ready and says why, nothing is delivered and nothing called offline; once there are new gateways
  and the clients are there, everything arrives, also what was published meanwhile. Then the way
  back: old processors take over from the new one.

Every message is accounted for: each user gets each at least once, and on one connection once and
in order. What could fool the benchmark: plain WebSockets have no cursor, so clients connect to the
next gateway before they leave the last, and no message falls in between.

    python -m loadtest.upgrade CHECKOUT [--save]

CHECKOUT is a checkout of the earlier release with a `.venv` of its own (`make dev` makes one).
"""

from __future__ import annotations

import argparse
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import httpx

from loadtest.clients import Crowd
from loadtest.kafka import create_topics, real_kafka
from loadtest.ledger import NUMBER_DIGITS
from loadtest.processes import Gateway, LoadtestError, Processor, tokens
from loadtest.produce import produce_command
from loadtest.report import Report
from tests.support.valkey import RedisServer

_PARTITIONS: Final = 4
_USERS: Final = 1_000
_RATE: Final = 500.0
#: For how long messages flow in each phase.
_PHASE_SECONDS: Final = 15.0
_SETTLE_SECONDS: Final = 2.0
_PATIENCE_SECONDS: Final = 60.0
#: How long a processor gets to become ready, where it may not.
_UNREADY_SECONDS: Final = 10.0

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Place:
    """Where Kafka and Redis are, and the earlier release."""

    kafka: str
    redis_url: str
    earlier: Path


class Account:
    """Which messages have arrived, by user; repeats and disorder on one connection are faults."""

    def __init__(self) -> None:
        self.expected = 0
        self.faults = 0
        self._seen: list[set[int]] = [set() for _ in range(_USERS)]

    @property
    def count(self) -> int:
        """Return how many messages have arrived."""
        return sum(map(len, self._seen))

    @property
    def missing(self) -> int:
        """Return how many of the expected messages have not arrived."""
        return self.expected - self.count

    def taker(self, user: int) -> Callable[[bytes], None]:
        """Return the callback that takes the messages of one connection of a user."""
        last, seen = -1, self._seen[user]

        def take(data: bytes) -> None:
            nonlocal last
            number = int(data[:NUMBER_DIGITS])
            self.faults += number <= last
            last = number
            seen.add(number)

        return take


class Stage:
    """A topic, its publisher and account, and the clients' crowds, one for each gateway."""

    def __init__(self, place: Place, stack: ExitStack) -> None:
        self.topic = f"upgrade-{uuid.uuid4().hex[:12]}"
        create_topics(place.kafka, [self.topic], partitions=_PARTITIONS)
        self.account = Account()
        self._place, self._stack = place, stack
        self._crowds: list[Crowd] = []
        # One thread for all: a child process ends with the thread that started it.
        self._pool = stack.enter_context(ThreadPoolExecutor(1))

    def gateway(self, *, earlier: bool) -> Gateway:
        """Start a gateway, of the earlier release or of this checkout."""
        checkout = self._place.earlier if earlier else None
        return self._stack.enter_context(Gateway(self._place.redis_url, checkout=checkout))

    def processor(self, *, earlier: bool) -> Processor:
        """Make a processor, of the earlier release or of this checkout; it is not started."""
        processor = Processor(
            self._place.redis_url,
            self._place.kafka,
            topic=self.topic,
            group=self.topic,
            checkout=self._place.earlier if earlier else None,
        )
        self._stack.callback(processor.stop)
        return processor

    def connect(self, gateway: Gateway, users: range = range(_USERS)) -> None:
        """Connect users to a gateway; they stay where they are connected already."""
        crowd = Crowd(gateway.port, "ws")
        self._stack.callback(crowd.close)
        names = tokens([f"user-{user}" for user in users])
        crowd.connect(names, on_message=[self.account.taker(user) for user in users])
        self._crowds.append(crowd)

    def leave(self, gateway: Gateway) -> None:
        """End the clients of the gateway that was connected to first, and the gateway.

        Before that they read what they were sent while they were alone.
        """
        self.flow(_SETTLE_SECONDS)
        self._crowds.pop(0).close()
        self.aside(gateway.stop)

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """Publish until the end of the block; the account then expects what was published."""
        command = produce_command(
            kafka=self._place.kafka, topic=self.topic, messages=10**7, users=_USERS, rate=_RATE
        )
        publisher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            yield
            publisher.terminate()  # the publisher prints how many messages Kafka has acknowledged
            self.account.expected = int(publisher.communicate(timeout=_PATIENCE_SECONDS)[0])
        finally:
            publisher.kill()
            publisher.wait()

    def flow(self, seconds: float = _PHASE_SECONDS) -> None:
        """Take inbound messages for a while."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for crowd in self._crowds:
                crowd.turn(0.005)

    def aside(self, work: Callable[[], _T]) -> _T:
        """Do slow work in a thread, and take inbound messages meanwhile; return its result."""
        future = self._pool.submit(work)
        while not future.done():
            self.flow(0.1)
        return future.result()

    def until(self, done: Callable[[], bool]) -> None:
        """Take inbound messages until `done`, or for a minute."""
        end = time.monotonic() + _PATIENCE_SECONDS
        while not done() and time.monotonic() < end:
            self.flow(0.1)


def old_processors(place: Place, report: Report) -> None:
    """An upgrade between its two steps, in the right order."""
    with ExitStack() as stack:
        stage = Stage(place, stack)
        old, new = stage.gateway(earlier=True), stage.gateway(earlier=False)
        stage.connect(old, range(0, _USERS, 2))
        stage.connect(new, range(1, _USERS, 2))
        processor = stage.processor(earlier=True)
        stage.aside(processor.start)
        with stage.publishing():
            stage.flow()
            mixed = stage.account.count
            stage.connect(stage.gateway(earlier=False), range(0, _USERS, 2))
            stage.leave(old)
            stage.flow()
        account = stage.account
        stage.until(lambda: not account.missing)
        outcomes = processor.outcomes()
    report.figures["old processors"] = {
        "messages": account.expected,
        "on_both": mixed,
        "missing": account.missing,
        "faults": account.faults,
        "outcomes": outcomes,
    }
    report.line(
        f"old processors, new gateways: of {account.expected:,} messages {account.missing} lost, "
        f"{mixed:,} while gateways of both versions were there"
    )
    report.bound("old processors: none lost", holds=not account.missing and mixed > 0)
    report.bound("old processors: once and in order", holds=not account.faults)
    report.bound("old processors: all delivered", holds=set(outcomes) == {"delivered"})


def new_processors(place: Place, report: Report) -> None:
    """The wrong order: the processors are upgraded first."""
    with ExitStack() as stack:
        stage = Stage(place, stack)
        old = stage.gateway(earlier=True)
        stage.connect(old)
        before = stage.processor(earlier=True)
        stage.aside(before.start)
        with stage.publishing():
            stage.flow()
            stage.aside(before.stop)
            early = stage.processor(earlier=False)
            stage.aside(partial(_start, early))
            stage.flow()
            status = _status(early)
            kept = early.outcomes()
            stage.connect(stage.gateway(earlier=False))
            stage.leave(old)
            stage.flow()
            outcomes = early.outcomes()
            stage.aside(early.stop)
            stage.aside(before.start)
            stage.flow()
        account = stage.account
        stage.until(lambda: not account.missing)
        back = before.outcomes()
    report.figures["new processors"] = {
        "messages": account.expected,
        "missing": account.missing,
        "faults": account.faults,
        "status": status,
        "outcomes_at_old_gateways": kept,
        "outcomes": outcomes,
        "outcomes_after_the_way_back": back,
    }
    report.line(
        f"new processors, old gateways: {status!r}, {sum(kept.values())} outcomes; "
        f"once a new gateway is there, and when the old processors are back, of "
        f"{account.expected:,} messages {account.missing} lost"
    )
    report.bound("new processors: not ready", holds=status.startswith("no live gateway"))
    report.bound("new processors: nothing is called anything", holds=not sum(kept.values()))
    report.bound("new processors: none lost", holds=not account.missing)
    report.bound("new processors: once and in order", holds=not account.faults)
    for when, counted in (("new", outcomes), ("the way back", back)):
        report.bound(f"{when}: all delivered", holds=set(counted) == {"delivered"})


def _start(processor: Processor) -> None:
    """Start a processor, which need not become ready."""
    with suppress(LoadtestError):
        processor.start(seconds=_UNREADY_SECONDS)


def _status(processor: Processor) -> str:
    """Return what a processor's `/readyz` says."""
    answer = httpx.get(f"{processor.operators}/readyz", trust_env=False)
    return str(answer.json()["status"])


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.upgrade")
    parser.add_argument("checkout", type=Path, help="of the earlier release")
    parser.add_argument("--kafka", help="bootstrap servers; a Kafka of your own")
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    arguments = parser.parse_args()
    report = Report("upgrade")
    with ExitStack() as stack:
        kafka = stack.enter_context(real_kafka(arguments.kafka))
        for mix in (old_processors, new_processors):
            with RedisServer("valkey") as redis:
                mix(Place(kafka, redis.url, arguments.checkout.resolve()), report)
    report.finish(save=arguments.save)


if __name__ == "__main__":
    main()
