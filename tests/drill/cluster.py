"""Two gateways, two processors, Redis and Kafka as real processes, and a loop for their clients.

The cluster stays over many runs: whatever a run has killed, the next finds at work again.
"""

from __future__ import annotations

import asyncio
import signal
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Final, ParamSpec, TypeVar

from aiokafka import AIOKafkaProducer
from anyio.from_thread import BlockingPortal, start_blocking_portal

from registry.redis_store import RedisRegistry
from tests.drill.owed import Published, Session
from tests.support.kafka import KafkaServer
from tests.support.processes import (
    GatewayProcess,
    ProcessFailed,
    ProcessorProcess,
    PushgateProcess,
)
from tests.support.valkey import RedisServer
from tests.system.steps import create

LANES: Final = ("high", "low")
#: A partition more than a processor: some have two of a lane.
_PARTITIONS: Final = 3
_COUNT: Final = 2
#: How long a process may take to leave: the bound of a processor's stop, and some more.
_LEAVE_SECONDS: Final = 30.0

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Cluster:
    """The processes, and what a test does with them; called from outside the loop."""

    def __init__(self, portal: BlockingPortal, kafka: KafkaServer, valkey: RedisServer) -> None:
        prefix = f"resumes-{uuid.uuid4().hex[:8]}"
        self._topics = {lane: f"{prefix}-{lane}" for lane in LANES}
        self.valkey = valkey
        self._portal = portal
        self._kafka = kafka
        self._numbers = 0
        self.gateways = [
            # Cursors move with heartbeats; a drain is short enough for a run.
            GatewayProcess(
                f"{prefix}-{n}", redis_url=valkey.url, heartbeat_seconds=1, drain_seconds=2
            )
            for n in range(_COUNT)
        ]
        self.processors = [
            ProcessorProcess(
                f"{prefix}-processor-{n}",
                redis_url=valkey.url,
                bootstrap=kafka.bootstrap,
                topic=",".join(self._topics.values()),
                group=prefix,
                kafka_weights="4,1",
                dead_letter_topic=f"{prefix}.dead",
            )
            for n in range(_COUNT)
        ]
        #: What steps have told processes. Hypothesis wants equal choices for equal steps: so these
        #: say which processes are up, and not the processes, which may end by themselves.
        self._leaving: set[PushgateProcess] = set()
        self._killed: set[PushgateProcess] = set()
        self._faults: list[str] = []
        # The kernel ends a process with the thread that has started it.
        self._threads = ThreadPoolExecutor(len(self.processes))

    @property
    def processes(self) -> Sequence[PushgateProcess]:
        """All that may be killed."""
        return (*self.gateways, *self.processors)

    def run(self, work: Callable[_P, Awaitable[_T]], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run something in the clients' loop, and wait for it."""

        async def call() -> _T:
            return await work(*args, **kwargs)

        return self._portal.call(call)

    def is_up(self, process: PushgateProcess) -> bool:
        """Whether a process is to be at work: no step has killed it, or told it to leave."""
        return process not in self._leaving and process not in self._killed

    def begin(self) -> None:
        """Start all processes, with their topics."""
        for topic in self._topics.values():
            self.run(create, self._kafka, topic, partitions=_PARTITIONS)
        self.run(self._open)
        self._at_once(lambda process: process.start(), self.processes)

    def end(self) -> None:
        """End all processes."""
        self.run(self._close)
        self._at_once(lambda process: process.close(), self.processes)
        self._threads.shutdown()

    def kill(self, process: PushgateProcess) -> None:
        """Kill a process."""
        process.kill()
        self._leaving.discard(process)
        self._killed.add(process)

    def stop(self, process: PushgateProcess) -> None:
        """Let a process begin to leave: a gateway drains, a processor gives its partitions up."""
        self._leaving.add(process)
        process.signal(signal.SIGTERM)

    def start(self, process: PushgateProcess) -> None:
        """Start a process that is not up. Where it has not left in time, that is a fault."""
        if process in self._leaving:
            self._await_end(process)
        self._leaving.discard(process)
        self._killed.discard(process)
        try:
            # A processor is ready once it has partitions: a rebalance later.
            process.start(until_ready=process in self.gateways)
        except ProcessFailed as failed:
            self._faults.append(str(failed))
            process.kill()

    def _await_end(self, process: PushgateProcess) -> None:
        """Wait until a process that was told to leave has ended; kill it where that takes long."""
        try:
            status = process.wait(_LEAVE_SECONDS)
        except ProcessFailed as failed:
            self._faults.append(str(failed))
            process.kill()
        else:
            # It may not have come to its signal handler yet.
            if status not in (0, -signal.SIGTERM):
                self._faults.append(f"{process.name} left with {status}\n{process.log}")

    def repair(self) -> None:
        """Have all processes at work. A process that has ended by itself is a fault."""
        for process in filter(self.is_up, self.processes):
            if process.returncode is not None:
                self._faults.append(f"{process.name} ended by itself\n{process.log}")
                self._killed.add(process)
        self._at_once(self.start, [each for each in self.processes if not self.is_up(each)])

    def take_faults(self) -> list[str]:
        """Return what processes have done wrong since the last call."""
        faults, self._faults = self._faults, []
        return faults

    def _at_once(
        self, act: Callable[[PushgateProcess], object], processes: Sequence[PushgateProcess]
    ) -> None:
        list(self._threads.map(act, processes))

    async def present(self, user: str) -> set[str]:
        """Return the names of the nodes where look-ups find a user."""
        await self._registry.refresh()
        (nodes,) = await self._registry.lookup([user])
        return {node.name for node in nodes or ()}

    async def publish(
        self,
        user: str,
        lane: str,
        *,
        device: str | None = None,
        ttl_seconds: int | None = None,
        collapse_key: str | None = None,
        present: tuple[Session, ...] = (),
    ) -> Published:
        """Publish a message; return once Kafka has acknowledged it."""
        self._numbers += 1
        message = Published(
            self._numbers,
            user,
            lane,
            time.time_ns() // 1_000_000,
            device,
            ttl_seconds,
            collapse_key,
            present,
        )
        wishes = {
            "push-device": device,
            "push-ttl": ttl_seconds,
            "push-collapse-key": collapse_key,
        }
        await self._backend.send_and_wait(
            self._topics[lane],
            message.payload,
            key=user.encode(),
            timestamp_ms=message.published_ms,
            headers=[(k, str(wish).encode()) for k, wish in wishes.items() if wish is not None],
        )
        return message

    @property
    def next_number(self) -> int:
        """The number of the next message."""
        return self._numbers + 1

    async def pause(self, seconds: float) -> None:
        """Let time pass."""
        await asyncio.sleep(seconds)

    async def _open(self) -> None:
        self._registry = RedisRegistry(self.valkey.url)
        self._backend = AIOKafkaProducer(bootstrap_servers=self._kafka.bootstrap, acks="all")
        await self._backend.start()

    async def _close(self) -> None:
        await self._backend.stop()
        await self._registry.close()


@contextmanager
def cluster_on(kafka: KafkaServer) -> Iterator[Cluster]:
    """Give a cluster at work, with a Redis of its own."""
    with ExitStack() as stack:
        valkey = stack.enter_context(RedisServer())
        portal = stack.enter_context(
            start_blocking_portal("asyncio", backend_options={"use_uvloop": True})
        )
        cluster = Cluster(portal, kafka, valkey)
        stack.callback(cluster.end)
        cluster.begin()
        yield cluster
