"""Planted faults, and the alerts of deploy/prometheus that fire for them, and no others.

Three gateways and two processors under some load, with a real Kafka and a Valkey, scraped every
second by a Prometheus with the shipped files. Its rules are hastened: waits (`for`) take three
seconds, and windows of minutes twenty seconds. First nothing is wrong for half a minute, and
nothing may fire. Then one fault after the other is planted and mended: each has alerts that must
fire, and alerts that may fire beside them (a killed gateway is silent for processors too). After
the mending all must end.

What could fool the drill: hastened rules fire where the shipped ones would wait; that these do not
fire too early is tested by promtool alone (alerts_test.yml).

    python -m loadtest.alerts [--picture OUT.svg]
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from aiokafka import AIOKafkaProducer

from loadtest.dashboard import DASHBOARD, Asked, drawn
from tests.support.clients import connect
from tests.support.kafka import KafkaServer, start_kafka
from tests.support.processes import GatewayProcess, ProcessorProcess
from tests.support.prometheus import Prometheus, prometheus
from tests.support.valkey import RedisServer

TOPIC: Final = "alerts"
CALM_SECONDS: Final = 30.0
FIRE_SECONDS: Final = 60.0
#: The windows of rates, a lost node's time and a lease have to pass.
END_SECONDS: Final = 180.0
#: More messages for one frozen gateway than PushgateLag takes, and more bad records than
#: PushgateDeadLettersGrow.
MANY, BAD = 12_000, 40


def hastened(rules: str) -> str:
    """Return the rules with short waits and windows."""
    rules = re.sub(r"for: \w+", "for: 3s", rules)
    return re.sub(r"\[\d+m\]", "[20s]", re.sub(r"offset \d+m", "offset 20s", rules))


@dataclass
class Stage:
    """What runs, for faults to act on."""

    stack: ExitStack
    valkey: RedisServer
    kafka: KafkaServer
    producer: AIOKafkaProducer
    gateways: list[GatewayProcess] = field(default_factory=list)
    processors: list[ProcessorProcess] = field(default_factory=list)

    def gateway(self, name: str, **settings: object) -> GatewayProcess:
        """Give a gateway that is not started yet."""
        gateway = GatewayProcess(name, redis_url=self.valkey.url, **settings)
        self.stack.callback(gateway.close)
        return gateway

    def processor(self, name: str, **settings: object) -> ProcessorProcess:
        """Give a processor that is not started yet."""
        processor = ProcessorProcess(
            name,
            redis_url=self.valkey.url,
            bootstrap=self.kafka.bootstrap,
            topic=TOPIC,
            group="alerts",
            **settings,
        )
        self.stack.callback(processor.close)
        return processor

    def targets(self) -> dict[str, list[int]]:
        """Give the ports to scrape, by job."""
        return {
            "pushgate-gateway": [gateway.internal_port for gateway in self.gateways],
            "pushgate-processor": [processor.port for processor in self.processors],
        }


@dataclass(frozen=True)
class Fault:
    """What is planted, the alerts that must fire, and those that may."""

    name: str
    planted: Callable[[Stage], object]
    must: frozenset[str]
    may: frozenset[str]


@asynccontextmanager
async def kill(stage: Stage) -> AsyncIterator[None]:
    """Kill a gateway, and start it again."""
    await asyncio.to_thread(stage.gateways[0].kill)
    yield
    await asyncio.to_thread(stage.gateways[0].start)


@asynccontextmanager
async def lag(stage: Stage) -> AsyncIterator[None]:
    """Freeze a gateway, and publish more messages for its user than may be behind."""
    frozen = stage.gateways[1]
    async with connect("ws-v1", frozen.port, "waited-for"):
        frozen.freeze()
        sent = [
            await stage.producer.send(TOPIC, b"x", key=b"waited-for", headers=[])
            for _ in range(MANY)
        ]
        await asyncio.gather(*sent)
        yield
        frozen.thaw()


@asynccontextmanager
async def eviction(stage: Stage) -> AsyncIterator[None]:
    """Empty Redis, as an eviction of everything would."""
    await asyncio.to_thread(stage.valkey.flush)
    yield


@asynccontextmanager
async def wrong_secret(stage: Stage) -> AsyncIterator[None]:
    """Restart a processor with another internal secret, and then with the right one."""
    processor = stage.processors[1]
    right = processor.env["PUSHGATE_INTERNAL_SECRET"]
    await asyncio.to_thread(processor.terminate)
    processor.env["PUSHGATE_INTERNAL_SECRET"] = "another secret, of thirty-two bytes"
    await asyncio.to_thread(lambda: processor.start(until_ready=False))
    yield
    await asyncio.to_thread(processor.kill)
    processor.env["PUSHGATE_INTERNAL_SECRET"] = right
    await asyncio.to_thread(processor.start)


@asynccontextmanager
async def dead_letters(stage: Stage) -> AsyncIterator[None]:
    """Publish records without a key."""
    await asyncio.gather(*[await stage.producer.send(TOPIC, b"x") for _ in range(BAD)])
    yield


@asynccontextmanager
async def full_node(stage: Stage) -> AsyncIterator[None]:
    """Fill the third gateway, which holds 20 connections at most."""
    async with AsyncExitStack() as clients:
        for number in range(20):
            way = connect("sse", stage.gateways[2].port, f"guest-{number}")
            with suppress(AssertionError):  # full
                await clients.enter_async_context(way)
        yield


def _fault(planted: Callable[[Stage], object], must: str, may: str = "") -> Fault:
    named = [frozenset(f"Pushgate{name}" for name in names.split()) for names in (must, may)]
    return Fault(planted.__name__.replace("_", " "), planted, *named)


#: What a frozen or killed gateway has beside: it is down, silent, and messages wait and fail.
_AWAY: Final = (
    "GatewayDown GatewaySilent MessagesFail MessagesStuck DeliveryLate Lag ConnectionsFall"
)
FAULTS: Final = (
    _fault(kill, "GatewayDown", f"{_AWAY} GatewayNotReady"),
    _fault(lag, "Lag GatewaySilent", f"{_AWAY} RegistryLostKeys RegistryInDoubt"),
    _fault(eviction, "RegistryLostKeys", "RegistryInDoubt MessagesStuck DeliveryLate"),
    _fault(
        wrong_secret,
        "SecretRefused",
        "ProcessorDown ProcessorNotReady MessagesStuck DeliveryLate NobodyReads CommitsFail",
    ),
    _fault(dead_letters, "DeadLettersGrow"),
    _fault(full_node, "GatewayFull", "GatewayNearlyFull ClientsRefusedForLoad"),
)


@asynccontextmanager
async def load(stage: Stage) -> AsyncIterator[None]:
    """Hold clients at two gateways, and publish for them until the end."""
    users = [f"client-{number}" for number in range(30)]

    async def publish_on() -> None:
        while True:
            for user in users:
                await stage.producer.send(TOPIC, b"x", key=user.encode())
            await asyncio.sleep(0.1)

    async def hold_on(user: str, port: int) -> None:
        while True:
            with suppress(Exception):  # the gateway has failed, as it was to
                async with connect("ws-v1", port, user) as client:
                    while True:
                        await client.message(timeout=3_600)
            await asyncio.sleep(0.5)

    tasks = [asyncio.create_task(publish_on())]
    for number, user in enumerate(users):
        tasks.append(asyncio.create_task(hold_on(user, stage.gateways[number % 2].port)))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def until(
    condition: Callable[[], set[str]], done: Callable[[set[str]], bool], seconds: float
) -> tuple[bool, set[str]]:
    """Ask until what is firing is `done`; return whether it is, and all that has fired."""
    seen: set[str] = set()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        firing = await asyncio.to_thread(condition)
        seen |= firing
        if done(firing):
            return True, seen
        await asyncio.sleep(1.0)
    return False, seen


class Calm:
    """Whether nothing has fired for a while: what a mending shakes up may fire again."""

    def __init__(self) -> None:
        self._fired_at = time.monotonic()

    def __call__(self, firing: set[str]) -> bool:
        """Take note of what is firing."""
        now = time.monotonic()
        if firing:
            self._fired_at = now
        return now - self._fired_at >= CALM_SECONDS


async def tried(fault: Fault, stage: Stage, monitor: Prometheus) -> list[str]:
    """Plant a fault and mend it; return what is wrong with the alerts."""
    wrong: list[str] = []
    async with fault.planted(stage):  # type: ignore[attr-defined]
        fired, seen = await until(monitor.firing, fault.must.issubset, FIRE_SECONDS)
    if not fired:
        wrong.append(f"{fault.name}: {sorted(fault.must - seen)} did not fire, {sorted(seen)} did")
    ended, later = await until(monitor.firing, Calm(), END_SECONDS)
    if not ended:
        wrong.append(f"{fault.name}: {sorted(await asyncio.to_thread(monitor.firing))} goes on")
    if strangers := (seen | later) - fault.must - fault.may:
        wrong.append(f"{fault.name}: {sorted(strangers)} fired too")
    print(f"{fault.name}: {', '.join(sorted(seen | later))}", flush=True)
    return wrong


async def drill(stage: Stage, picture: Path | None) -> list[str]:
    """Run everything; return what went wrong."""
    began = time.time()
    async with load(stage):
        with prometheus(stage.targets(), rules=hastened) as monitor:
            _, early = await until(monitor.firing, bool, CALM_SECONDS)
            wrong = [f"{sorted(early)} fired while nothing was wrong"] if early else []
            for fault in FAULTS:
                wrong += await tried(fault, stage, monitor)
            if picture is not None:
                asked = Asked(monitor.url, seconds=time.time() - began, rate_seconds=10)
                await asyncio.to_thread(lambda: picture.write_text(drawn(DASHBOARD, asked)))
    return wrong


async def main(picture: Path | None) -> Sequence[str]:
    """Start everything, and run the drill."""
    kafka = start_kafka()
    try:
        with RedisServer() as valkey, ExitStack() as stack:
            producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap)
            await producer.start()
            try:
                stage = Stage(stack, valkey, kafka, producer)
                limits: list[dict[str, object]] = [{}, {}, {"max_connections": 20}]
                stage.gateways = [
                    stage.gateway(f"gateway-{number}", **limit)
                    for number, limit in enumerate(limits)
                ]
                stage.processors = [stage.processor(f"processor-{number}") for number in range(2)]
                for process in (*stage.gateways, *stage.processors):
                    await asyncio.to_thread(process.start)
                return await drill(stage, picture)
            finally:
                await producer.stop()
    finally:
        kafka.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picture", type=Path, help="an SVG of the dashboard's panels to write")
    failures = asyncio.run(main(parser.parse_args().picture))
    print("\n".join(failures) or "every fault had its alerts, and no other")
    sys.exit(bool(failures))
