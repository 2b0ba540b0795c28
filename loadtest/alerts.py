"""Planted faults, and the alerts of deploy/prometheus that fire for them, and no others.

Three gateways and two processors under some load, with a real Kafka and a Valkey, scraped by a
Prometheus with the shipped files as they are, each 15 seconds. First nothing is wrong for a while,
and nothing may fire. Then one fault after the other is planted, stays for half a minute after its
alert has fired, and is mended. No other alert may fire, then or in the minute after; an alert of an
earlier fault may go on, since increases are watched over minutes. At last all must end.

What could fool the drill: a fault that stays for longer has more consequences. So an alert for a
symptom leaves out what another alert has as its cause: alerts_test.yml has these pairs.

    python -m loadtest.alerts [--faults kill lag …] [--picture OUT.svg] [--save]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    suppress,
)
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from aiokafka import AIOKafkaProducer

from loadtest.dashboard import DASHBOARD, Asked, drawn
from loadtest.processes import LoadtestError
from loadtest.report import Report
from tests.support.clients import connect
from tests.support.kafka import KafkaServer, start_kafka
from tests.support.processes import GatewayProcess, ProcessorProcess
from tests.support.prometheus import Prometheus, prometheus
from tests.support.valkey import RedisServer

TOPIC: Final = "alerts"
SCRAPE_SECONDS: Final = 15.0
CALM_SECONDS: Final = 60.0
FIRE_SECONDS: Final = 300.0
STAY_SECONDS: Final = 30.0
#: Increases are watched over ten minutes.
END_SECONDS: Final = 900.0
#: Above what PushgateLag and PushgateDeadLettersGrow take.
MANY, BAD = 20_000, 40
#: A second, for all processors: some tens of messages.
SLOW_BYTES: Final = 2_000
FULL: Final = 20


@dataclass
class Stage:
    """What runs, for faults to act on."""

    stack: ExitStack
    valkey: RedisServer
    kafka: KafkaServer
    producer: AIOKafkaProducer
    gateways: list[GatewayProcess] = field(default_factory=list)
    processors: list[ProcessorProcess] = field(default_factory=list)

    def start(self) -> None:
        """Start three gateways, of which the third holds 20 connections, and two processors."""
        limits: tuple[dict[str, object], ...] = ({}, {}, {"max_connections": FULL})
        for number, limit in enumerate(limits):
            name = f"gateway-{number}"
            self.gateways.append(GatewayProcess(name, redis_url=self.valkey.url, **limit))
        for number in range(2):
            processor = ProcessorProcess(
                f"processor-{number}",
                redis_url=self.valkey.url,
                bootstrap=self.kafka.bootstrap,
                topic=TOPIC,
                group="alerts",
            )
            self.processors.append(processor)
        for process in (*self.gateways, *self.processors):
            self.stack.callback(process.close)
            process.start()

    def targets(self) -> dict[str, list[int]]:
        """Give the ports to scrape, by job."""
        return {
            "pushgate-gateway": [gateway.internal_port for gateway in self.gateways],
            "pushgate-processor": [processor.port for processor in self.processors],
        }


@asynccontextmanager
async def kill(stage: Stage) -> AsyncIterator[None]:
    """Kill a gateway, and start it again."""
    await asyncio.to_thread(stage.gateways[0].kill)
    yield
    await asyncio.to_thread(stage.gateways[0].start)


@asynccontextmanager
async def lag(stage: Stage) -> AsyncIterator[None]:
    """Have Kafka give consumers few bytes a second, and publish many records for nobody."""
    quota = f"consumer_byte_rate={SLOW_BYTES}"
    await asyncio.to_thread(configure, stage.kafka, "--add-config", quota)
    sent = [await stage.producer.send(TOPIC, b"x", key=b"nobody-%d" % n) for n in range(MANY)]
    await asyncio.gather(*sent)
    yield
    await asyncio.to_thread(configure, stage.kafka, "--delete-config", "consumer_byte_rate")


def configure(kafka: KafkaServer, *change: str) -> None:
    """Change the quotas of all clients with Kafka's own tool."""
    quiet = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
    tool = ["java", quiet, "-cp", f"{kafka.jars}/*", "kafka.admin.ConfigCommand"]
    server = ["--bootstrap-server", kafka.bootstrap]
    clients = ["--alter", "--entity-type", "clients", "--entity-default"]
    subprocess.run([*tool, *server, *clients, *change], check=True, stdout=subprocess.DEVNULL)


@asynccontextmanager
async def eviction(stage: Stage) -> AsyncIterator[None]:
    """Empty Redis, as an eviction of everything would."""
    await asyncio.to_thread(stage.valkey.flush)
    yield


@asynccontextmanager
async def redis_away(stage: Stage) -> AsyncIterator[None]:
    """Freeze Redis."""
    stage.valkey.freeze()
    yield
    stage.valkey.thaw()


@asynccontextmanager
async def wrong_secret(stage: Stage) -> AsyncIterator[None]:
    """Restart a processor with another internal secret, and then with the right one."""
    processor = stage.processors[1]
    right = processor.env["PUSHGATE_INTERNAL_SECRET"]
    await asyncio.to_thread(processor.terminate)
    processor.env["PUSHGATE_INTERNAL_SECRET"] = "another secret, of thirty-two bytes"
    await asyncio.to_thread(lambda: processor.start(until_ready=False))
    yield
    await asyncio.to_thread(processor.terminate)
    processor.env["PUSHGATE_INTERNAL_SECRET"] = right
    await asyncio.to_thread(processor.start)


@asynccontextmanager
async def dead_letters(stage: Stage) -> AsyncIterator[None]:
    """Publish records without a key."""
    await asyncio.gather(*[await stage.producer.send(TOPIC, b"x") for _ in range(BAD)])
    yield


@asynccontextmanager
async def full_node(stage: Stage) -> AsyncIterator[None]:
    """Fill the third gateway, and go on knocking."""
    port = stage.gateways[2].port

    async def knock_on() -> None:
        while True:
            with suppress(AssertionError, OSError):  # 503, or cut off
                async with connect("sse", port, "refused"):
                    pass
            await asyncio.sleep(0.2)

    async with AsyncExitStack() as clients:
        for number in range(FULL):
            await clients.enter_async_context(connect("sse", port, f"guest-{number}"))
        await clients.enter_async_context(working(knock_on()))
        yield


@dataclass(frozen=True)
class Fault:
    """A way to plant a fault, and the alert for it."""

    planted: Callable[[Stage], AbstractAsyncContextManager[None]]
    alert: str


FAULTS: Final = {
    fault.planted.__name__.replace("_", "-"): fault
    for fault in (
        Fault(kill, "PushgateGatewayDown"),
        # Goes on for ten minutes, in which Redis has to stay: its end brings re-assertions too.
        Fault(eviction, "PushgateRegistryLostKeys"),
        Fault(dead_letters, "PushgateDeadLettersGrow"),
        Fault(lag, "PushgateLag"),
        Fault(wrong_secret, "PushgateSecretRefused"),
        Fault(full_node, "PushgateGatewayFull"),
        Fault(redis_away, "PushgateRegistryOutOfOrder"),
    )
}


@asynccontextmanager
async def working(*coroutines: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Run coroutines beside what is inside; end them after it.

    Raises:
        ExceptionGroup: a coroutine has failed, by which what is inside is cancelled.
    """
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each) for each in coroutines]
        yield
        for task in tasks:
            task.cancel()


@asynccontextmanager
async def load(stage: Stage) -> AsyncIterator[None]:
    """Hold clients at two gateways, between which they move, and publish for them."""
    users = [f"client-{number}" for number in range(30)]

    async def publish_on() -> None:
        while True:
            for user in users:
                await stage.producer.send(TOPIC, b"x", key=user.encode())
            await asyncio.sleep(0.1)

    async def hold_on(user: str, turn: int) -> None:
        for number in itertools.count(turn):
            with suppress(Exception):  # the gateway has failed, as it was to
                async with connect("ws-v1", stage.gateways[number % 2].port, user) as client:
                    while True:
                        await client.message(timeout=3_600)
            await asyncio.sleep(0.5)

    holding = (hold_on(user, turn) for turn, user in enumerate(users))
    async with working(publish_on(), *holding):
        yield


class Watch:
    """What fires, and which alerts may: that of the fault, and those that go on from before."""

    def __init__(self, monitor: Prometheus) -> None:
        self._monitor = monitor
        self._expected: set[str] = set()
        self._strangers: set[str] = set()

    async def expect(self, alert: str) -> None:
        """Let an alert fire from now on, beside those that fire already."""
        self._expected = {alert, *await asyncio.to_thread(self._monitor.firing)}

    async def firing(self) -> set[str]:
        """Return what fires now."""
        firing = await asyncio.to_thread(self._monitor.firing)
        self._strangers |= firing - self._expected
        return firing

    async def until(self, done: Callable[[set[str]], bool], seconds: float) -> bool:
        """Watch until what fires is `done`; return whether it was, in time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if done(await self.firing()):
                return True
            await asyncio.sleep(1.0)
        return False

    async def watch(self, seconds: float) -> None:
        """Watch for a time."""
        await self.until(lambda _: False, seconds)

    def take_strangers(self) -> list[str]:
        """Return the alerts that should not have fired since this was asked last."""
        strangers, self._strangers = sorted(self._strangers), set()
        return strangers


async def tried(name: str, stage: Stage, watch: Watch, report: Report) -> None:
    """Plant a fault and mend it; report which alerts fired."""
    fault = FAULTS[name]
    began = time.monotonic()
    await watch.expect(fault.alert)
    async with fault.planted(stage):
        fired = await watch.until(lambda firing: fault.alert in firing, FIRE_SECONDS)
        seconds = round(time.monotonic() - began)
        await watch.watch(STAY_SECONDS)
    await watch.watch(CALM_SECONDS)
    strangers = watch.take_strangers()
    report.figures[name] = {"alert": fault.alert, "seconds": seconds, "others": strangers}
    report.line(f"{name}: {fault.alert} after {seconds} s")
    report.bound(f"{name}: {fault.alert} fires", holds=fired)
    report.bound(
        f"{name}: nothing else fires ({', '.join(strangers) or 'none'})", holds=not strangers
    )


async def drill(names: Sequence[str], stage: Stage, report: Report, picture: Path | None) -> None:
    """Try all faults."""
    began = time.time()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(load(stage))
        watching = prometheus(stage.targets(), seconds=SCRAPE_SECONDS)
        monitor = await asyncio.to_thread(stack.enter_context, watching)
        watch = Watch(monitor)
        await watch.watch(CALM_SECONDS)
        early = watch.take_strangers()
        report.bound(
            f"nothing fires while nothing is wrong ({', '.join(early) or 'none'})", holds=not early
        )
        for name in names:
            await tried(name, stage, watch, report)
        if picture is not None:
            asked = Asked(monitor.url, seconds=time.time() - began, rate_seconds=60)
            await asyncio.to_thread(lambda: picture.write_text(drawn(DASHBOARD, asked)))
        ended = await watch.until(lambda firing: not firing, END_SECONDS)
        report.bound("all alerts end", holds=ended)
        late = watch.take_strangers()
        report.bound(f"nothing fires at the end ({', '.join(late) or 'none'})", holds=not late)


async def run(names: Sequence[str], report: Report, picture: Path | None) -> None:
    """Start everything, and try the faults."""
    kafka = await asyncio.to_thread(start_kafka)
    if kafka.jars is None:
        raise LoadtestError(f"an Apache Kafka of the drill's own is needed: {kafka.missing}")
    try:
        with RedisServer() as valkey, ExitStack() as stack:
            producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap)
            await producer.start()
            try:
                stage = Stage(stack, valkey, kafka, producer)
                await asyncio.to_thread(stage.start)
                await drill(names, stage, report, picture)
            finally:
                await producer.stop()
    finally:
        kafka.stop()


def main() -> None:
    """Try the faults, and exit with 0 where each had its alert alone."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.alerts")
    parser.add_argument(
        "--faults", nargs="+", choices=FAULTS, default=list(FAULTS), help="default: all"
    )
    parser.add_argument("--picture", type=Path, help="an SVG of the dashboard's panels to write")
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    arguments = parser.parse_args()
    report = Report("alerts")
    asyncio.run(run(arguments.faults, report, arguments.picture))
    report.finish(save=arguments.save)


if __name__ == "__main__":
    main()
