"""Steady traffic while something fails: who reads, who publishes, and what became of each message.

A message's payload is its id as well, so that it has one name in the ledger, in the outcomes topic
and on every transport.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import httpx
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from tests.support.clients import TRANSPORTS, Client, connect, eventually
from tests.support.kafka import KafkaServer
from tests.support.ledger import Ledger
from tests.support.processes import GatewayProcess, PushgateProcess

#: How often everybody gets a message.
ROUND_SECONDS: Final = 0.1
_WAIT_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class Seat:
    """A user, and how and where they are connected."""

    user: str
    transport: str
    gateway: GatewayProcess


def seats(prefix: str, gateways: Sequence[GatewayProcess], count: int) -> list[Seat]:
    """Seat so many users at the gateways in turn, at each over all transports in turn."""
    transports = (transport for transport in itertools.cycle(TRANSPORTS) for _ in gateways)
    places = zip(range(count), transports, itertools.cycle(gateways), strict=False)
    return [Seat(f"{prefix}-{n}", transport, gateway) for n, transport, gateway in places]


def users(seated: Iterable[Seat]) -> list[str]:
    """Give who sits there."""
    return [seat.user for seat in seated]


@asynccontextmanager
async def reading(ledger: Ledger, seated: Iterable[Seat]) -> AsyncIterator[None]:
    """Connect all and read into the ledger; whoever is dropped fails the test at once."""
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        readers = []
        for seat in seated:
            connected = connect(seat.transport, seat.gateway.port, seat.user)
            client = await stack.enter_async_context(connected)
            readers.append(tasks.create_task(_read(ledger, seat.user, client)))
        yield
        for reader in readers:
            reader.cancel()


async def _read(ledger: Ledger, user: str, client: Client) -> None:
    while True:
        try:
            message = await client.message(_WAIT_SECONDS)
        except TimeoutError:
            continue  # nothing came; who is dropped raises Ended
        ledger.arrive(user, message.payload.decode())


class Publisher:
    """Publishes to users, each message under a name of its own, and into the ledger."""

    def __init__(self, backend: AIOKafkaProducer, topic: str, ledger: Ledger) -> None:
        self._backend = backend
        self._topic = topic
        self._ledger = ledger
        self._numbers = itertools.count()
        self._turn = asyncio.Lock()  # the ledger's order is Kafka's, whoever publishes meanwhile

    async def send(self, user: str) -> tuple[str, asyncio.Future[object]]:
        """Publish one message; give its name, and what is done once Kafka has acknowledged it."""
        name = f"{user}.{next(self._numbers)}"
        payload = name.encode()
        async with self._turn:
            self._ledger.publish(user, name)
            acknowledged: asyncio.Future[object] = await self._backend.send(
                self._topic, payload, key=user.encode(), headers=[("push-id", payload)]
            )
        return name, acknowledged

    async def to_each(self, to: Iterable[str]) -> list[str]:
        """Publish a message to each of them; give the names once Kafka has acknowledged all."""
        sent = [await self.send(user) for user in to]
        await asyncio.gather(*(acknowledged for _, acknowledged in sent))
        return [name for name, _ in sent]

    @asynccontextmanager
    async def steadily(self, to: Sequence[str]) -> AsyncIterator[None]:
        """Publish to each of them, over and over, until left; on leaving all is acknowledged.

        A round does not wait until the one before is acknowledged.
        """
        stop = asyncio.Event()

        async def publish() -> None:
            pending: list[asyncio.Future[object]] = []
            while not stop.is_set():
                pending += [(await self.send(user))[1] for user in to]
                await asyncio.sleep(ROUND_SECONDS)
            await asyncio.gather(*pending)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(publish())
            yield
            stop.set()


async def until_all_arrived(
    ledger: Ledger, *, timeout_seconds: float, excused: Collection[str] = ()
) -> None:
    """Return when nothing that was published is missing, but for what is `excused`."""
    missing: list[str] = []

    def arrived() -> bool:
        missing[:] = set(ledger.missing()) - set(excused)
        return not missing

    try:
        await eventually(arrived, "all has arrived", timeout_seconds=timeout_seconds)
    except AssertionError as late:
        raise AssertionError(f"{late}; still missing {sorted(missing)}") from None


async def measure(process: PushgateProcess, name: str) -> float:
    """Give a metric of a process; the sum of all that begin with `name`."""
    async with httpx.AsyncClient(trust_env=False) as http:
        url = f"http://127.0.0.1:{process.operators_port}/metrics"
        lines = (await http.get(url)).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


async def told(kafka: KafkaServer, outcomes_topic: str, ledger: Ledger) -> dict[str, set[str]]:
    """Give the outcomes of all that was published, by name, once the topic has them all."""
    consumer = AIOKafkaConsumer(
        outcomes_topic, bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest"
    )
    await consumer.start()
    found: dict[str, set[str]] = {name: set() for name in ledger.names()}
    try:
        async with asyncio.timeout(_WAIT_SECONDS):
            while not all(found.values()):
                record = await consumer.getone()
                assert record.value is not None
                report = json.loads(record.value)
                if report["id"] in found:  # a test may publish beside its ledger
                    found[report["id"]].add(report["outcome"])
    finally:
        await consumer.stop()
    return found
