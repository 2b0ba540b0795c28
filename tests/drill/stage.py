"""The drill's system: gateways behind a balancer, processors, Kafka and Redis, load and faults.

All processes are real. Between a gateway and Redis, the processors or HAProxy a row may put a proxy
that goes silent in one way or in both, as a network does that loses packets. Clients, publisher and
proxies run in this process, so that all times are of one clock.
"""

from __future__ import annotations

import asyncio
import enum
import itertools
import math
import os
import random
import re
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar

import httpx
import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from pushgate.embedded import LOOPBACK
from registry.directory import TIMINGS, RegistryUnavailable
from registry.redis_store import RedisRegistry
from tests.drill.accounts import Findings, Session, Told, User, judge
from tests.drill.crowd import MIX, Crowd, payload
from tests.support.balancer import Balancer
from tests.support.haproxy import haproxy
from tests.support.processes import (
    INTERNAL_SECRET,
    GatewayProcess,
    ProcessorProcess,
    PushgateProcess,
)
from tests.support.proxy import Direction, Proxy
from tests.support.valkey import RedisServer

_PARTITIONS: Final = 4
_PUBLISH_SECONDS: Final = 0.005
_CONNECT_SECONDS: Final = 120.0
_SAMPLE_SECONDS: Final = 1.0
#: After the last outcome: how long a second outcome of a message may take.
_QUIET_SECONDS: Final = 2.0
#: After the last outcome: how long copies that are still missing may take.
_ARRIVAL_SECONDS: Final = 10.0
_LOOK_SECONDS: Final = 0.1
#: What a gateway remembers of each message that it delivered (gateway/connections/repeats.py).
_REMEMBERED_BYTES: Final = 75

T = TypeVar("T")


class Hop(enum.Enum):
    """A way to or from a gateway that a row can make silent."""

    REDIS = enum.auto()  # from the gateway to Redis
    INTERNAL = enum.auto()  # from processors, and HAProxy's checks
    PUBLIC = enum.auto()  # from HAProxy, for clients


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The load of a row, and what its faults need."""

    clients: int = 1_500
    rate: float = 400.0  # messages a second, over all users
    gateways: int = 3
    processors: int = 2
    heartbeat_seconds: float = 25.0
    lost_node_seconds: int = 30
    drain_seconds: int = 0  # the window of a drain
    latecomers: int = 0  # users more, who connect while the fault lasts
    hops: frozenset[Hop] = frozenset()
    mix: Sequence[str] = MIX  # the clients' kinds, in turn
    balancer: Callable[..., AbstractContextManager[Balancer]] = haproxy  # called with the nodes

    @property
    def back_seconds(self) -> float:
        """How long after a cut a client may come back and is owed all that came meanwhile.

        A node without a goodbye counts for its lease and PUSHGATE_LOST_NODE_SECONDS; the lease may
        have been renewed a heartbeat before the cut.
        """
        return TIMINGS.lease_seconds - TIMINGS.heartbeat_seconds + self.lost_node_seconds


@dataclass(slots=True)
class Node:
    """A gateway, and the proxies before it and behind it."""

    process: GatewayProcess
    proxies: dict[Hop, Proxy]
    vanished: bool = False  # for good: it may hold connections whose ends it never sees

    @property
    def serves(self) -> bool:
        """Whether its process runs, and clients may reach it."""
        return self.process.returncode is None and not self.vanished

    @property
    def port(self) -> int:
        """Where HAProxy sends clients."""
        proxy = self.proxies.get(Hop.PUBLIC)
        return proxy.port if proxy else self.process.port

    @property
    def internal_port(self) -> int:
        """Where HAProxy asks whether the gateway is ready."""
        proxy = self.proxies.get(Hop.INTERNAL)
        return proxy.port if proxy else self.process.internal_port


class _Report(msgspec.Struct):
    """What the drill reads of a record of the outcomes topic."""

    id: str
    outcome: str
    settled_ms: int
    reason: str | None = None  # of what failed
    replayed: bool = False  # told a second time, since a client came back for it


@dataclass(slots=True)
class Stage:
    """The running system. Fields that begin with an underscore are the stage's own."""

    plan: Plan
    bootstrap: str
    topic: str
    crowd: Crowd
    valkey: RedisServer
    #: One thread starts all processes: a child process ends with the thread that started it.
    _thread: ThreadPoolExecutor
    _producer: AIOKafkaProducer
    balancer: Balancer | None = None
    nodes: list[Node] = field(default_factory=list)
    processors: list[ProcessorProcess] = field(default_factory=list)
    #: Users beside the crowd's, without a client of the crowd.
    more_users: list[User] = field(default_factory=list)
    partitions: dict[str, int] = field(default_factory=dict)  # of users who were published to
    #: Resident bytes of every process that runs, by its pid, with their times.
    memory: dict[int, list[tuple[float, int]]] = field(default_factory=dict)
    #: The same of all gateways, the killed ones too.
    gateway_memory: list[tuple[float, int]] = field(default_factory=list)

    @property
    def processes(self) -> list[PushgateProcess]:
        """All gateways and processors."""
        return [*(node.process for node in self.nodes), *self.processors]

    @property
    def users(self) -> list[User]:
        """All users that are published to."""
        return [*self.crowd.users, *self.more_users]

    async def aside(self, work: Callable[[], T]) -> T:
        """Do what blocks in the stage's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def users_at(self, node: Node) -> dict[User, int]:
        """Return the crowd's users with connections to a node, and the numbers of those."""
        here = await self._connections(node)
        return {user: here[user.name] for user in self.crowd.users if user.name in here}

    async def is_at(self, node: Node, user: User) -> bool:
        """Whether a node has a connection of a user."""
        async with self._http() as http:
            return (await http.get(f"{_url(node)}/push/{user.name}")).status_code == 200

    async def kick(self, user: User) -> None:
        """End a user's connections at all nodes, as an operator does."""
        async with self._http() as http:
            for node in self.nodes:
                await http.delete(f"{_url(node)}/connections/{user.name}")

    async def listens(self, node: Node) -> bool:
        """Whether a node's process takes connections from processors."""
        try:
            _, writer = await asyncio.open_connection(LOOPBACK, node.process.internal_port)
        except OSError:
            return False
        writer.transport.abort()
        return True

    async def note_nodes(self) -> None:
        """Note the nodes of the users' sessions, where all of a user are at one node."""
        places: dict[User, list[tuple[Node, int]]] = {}
        for node in self.nodes:
            if node.serves:
                for user, count in (await self.users_at(node)).items():
                    places.setdefault(user, []).append((node, count))
        for user, ((node, count), *elsewhere) in places.items():
            sessions = [one for each in user.clients for one in each.open_sessions]
            for session in sessions if len(sessions) == count and not elsewhere else ():
                session.node = node.process.name

    async def note_registered(self, users: Collection[User]) -> None:
        """Note from when the registry has the sessions of these users, until cancelled.

        Each of the users has one client. A session that is seen first when the registry has it
        already was in the registry before the client was answered.
        """
        seen: set[Session] = set()
        store = RedisRegistry(self.valkey.url, lost_seconds=self.plan.lost_node_seconds)
        try:
            while True:
                sessions = {
                    session: user for user in users for session in user.clients[0].open_sessions
                }
                await self._look_up(store, sessions, seen)
                seen.update(sessions)
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            await store.close()

    def silence(self, node: Node, hop: Hop, *directions: Direction) -> None:
        """Lose everything on a hop, in these directions or else in both."""
        node.proxies[hop].silence(*(directions or Direction))

    def release(self) -> None:
        """Let everything through again."""
        for node in self.nodes:
            for proxy in node.proxies.values():
                proxy.release()

    async def send(
        self, user: User, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """Publish a message; with `body`, no payload that the crowd knows; `headers` are more."""
        number = user.publish(time.monotonic())
        fields = {"push-id": f"{user.name}.{number}", **(headers or {})}
        acknowledged = await self._producer.send(
            self.topic,
            payload(user.name, number) if body is None else body,
            key=user.name.encode(),
            headers=[(name, value.encode()) for name, value in fields.items()],
        )
        acknowledged.add_done_callback(partial(self._acknowledge, user, number))

    @asynccontextmanager
    async def publishing(
        self, to: Sequence[User], rate: float, *, body: bytes | None = None
    ) -> AsyncIterator[None]:
        """Publish to each user in turn, `rate` a second, until left; `body` as in `send`."""
        async with asyncio.TaskGroup() as tasks:
            publishing = tasks.create_task(self._publish(to, rate, body))
            try:
                yield
            finally:
                publishing.cancel()
        await self._producer.flush()

    async def settle(self, timeout_seconds: float) -> Findings:
        """Return the findings once all is told and has arrived, or when the time is up."""
        deadline = time.monotonic() + timeout_seconds
        await self.note_nodes()
        await self._read_outcomes(deadline)
        deadline = min(deadline, time.monotonic() + _ARRIVAL_SECONDS)
        while True:
            findings = self._judge()
            if not findings.lost or time.monotonic() > deadline:
                return findings
            await asyncio.sleep(_QUIET_SECONDS)

    async def audit(self) -> Counter[str]:
        """Return what `pushgate audit` finds: phantoms, and users who are not registered."""
        environment = {
            "PUSHGATE_REDIS_URL": self.valkey.url,
            "PUSHGATE_INTERNAL_SECRET": INTERNAL_SECRET,
        }
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "pushgate", "audit"],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=60.0,
        )
        found = re.search(r"(\d+) registered without .*, (\d+) connected and not", done.stdout)
        if found is None:
            return Counter({f"audit failed: {done.stderr.strip()}": 1})
        return Counter({"phantoms": int(found[1]), "not registered": int(found[2])})

    async def sample_memory(self) -> None:
        """Note every process's memory once a second, until cancelled."""
        while True:
            now = time.monotonic()
            sizes = {process: resident_bytes(process) for process in self.processes}
            for process, size in sizes.items():
                if size is not None:
                    self.memory.setdefault(process.pid, []).append((now, size))
            for node in self.nodes:
                if (size := sizes[node.process]) is not None:
                    self.gateway_memory.append((now, size))
            await asyncio.sleep(_SAMPLE_SECONDS)

    def processor_growth(self, since: float) -> float:
        """Return the growth of the faster growing processor since then, in MB a minute.

        Between the medians of the first and the last quarter of the time.
        """
        return max(_growth(self.memory[each.pid], since) for each in self.processors)

    def gateway_growth(self, since: float) -> float:
        """Return how fast the size of the largest gateway has grown since then, in MB a minute.

        No gateway's own growth, since few live long where they are killed. Without what a gateway
        remembers of messages on purpose, up to a window.
        """
        remembered = _REMEMBERED_BYTES * self.plan.rate / self.plan.gateways * 60 / 1e6
        return max(0.0, peak_growth(self.gateway_memory, since) - remembered)

    async def _look_up(
        self, store: RedisRegistry, sessions: Mapping[Session, User], seen: Collection[Session]
    ) -> None:
        """Note which sessions the registry has; none while it does not answer."""
        for session in sessions.keys() - seen:
            session.registered = math.inf
        waiting = [session for session in sessions if session.registered == math.inf]
        for session in waiting:
            for node in self.nodes:
                if session.node is None and await self.is_at(node, sessions[session]):
                    session.node = node.process.name
        try:
            found = await store.lookup([sessions[session].name for session in waiting])
        except RegistryUnavailable:
            return
        now = time.monotonic()
        for session, nodes in zip(waiting, found, strict=True):
            if session.node in [node.name for node in nodes or ()]:
                session.registered = now if session in seen else -math.inf

    async def _connections(self, node: Node) -> dict[str, int]:
        """Ask a node for its users, with their numbers of connections."""
        async with self._http() as http:
            answer = await http.get(f"{_url(node)}/connections")
        connections: dict[str, int] = answer.raise_for_status().json()["users"]
        return connections

    def _http(self) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {INTERNAL_SECRET}"}
        # Without verify=False a TLS context is made first, for 20 ms of the loop.
        return httpx.AsyncClient(headers=headers, trust_env=False, verify=False, timeout=10.0)

    def _judge(self) -> Findings:
        findings = judge(self.users, back_seconds=self.plan.back_seconds)
        if strange := self.crowd.strange():
            findings.told_wrongly["to another user, or altered"] = strange
        return findings

    def _acknowledge(self, user: User, number: int, record: asyncio.Future[object]) -> None:
        if record.cancelled() or record.exception() is not None:
            return  # not acknowledged, so nothing is promised
        user.acknowledged[number] = True
        self.partitions[user.name] = record.result().partition  # type: ignore[attr-defined]

    async def _publish(self, to: Sequence[User], rate: float, body: bytes | None) -> None:
        turns = itertools.cycle(random.sample(to, len(to)))
        began = time.monotonic()
        for sent in itertools.count():
            early = began + sent / rate - time.monotonic()
            if early > 0:
                await asyncio.sleep(max(early, _PUBLISH_SECONDS))
            await self.send(next(turns), body)

    async def _read_outcomes(self, deadline: float) -> None:
        """Read the outcomes topic from its beginning until all is told, and a little longer."""
        wall = time.time() - time.monotonic()
        by_name = {user.name: user for user in self.users}
        decode = msgspec.json.Decoder(_Report).decode
        waiting = {
            (user.name, number)
            for user in self.users
            for number, acknowledged in enumerate(user.acknowledged)
            if acknowledged
        }
        async with AIOKafkaConsumer(
            f"{self.topic}.outcomes",
            bootstrap_servers=self.bootstrap,
            auto_offset_reset="earliest",
        ) as consumer:
            end = deadline
            while (now := time.monotonic()) < end:
                if not waiting:
                    end = min(end, now + _QUIET_SECONDS)
                batches = await consumer.getmany(timeout_ms=200, max_records=5_000)
                for record in itertools.chain.from_iterable(batches.values()):
                    report = decode(record.value)
                    name, _, number = report.id.rpartition(".")
                    if name in by_name and not report.replayed:
                        at = report.settled_ms / 1000 - wall
                        kind = " ".join(filter(None, (report.outcome, report.reason)))
                        by_name[name].told[int(number)].append(Told(kind, at))
                        waiting.discard((name, int(number)))


@asynccontextmanager
async def staged(plan: Plan, bootstrap: str) -> AsyncIterator[Stage]:
    """Start everything, connect the crowd, and publish to the crowd until left.

    What is to be judged has to be judged inside: when left, clients end too.
    """
    topic = f"drill-{uuid.uuid4().hex[:12]}"
    crowd = Crowd(
        topic,
        plan.clients,
        heartbeat_seconds=plan.heartbeat_seconds,
        latecomers=plan.latecomers,
        mix=plan.mix,
    )
    async with AsyncExitStack() as stack:
        await _create_topics(bootstrap, topic, f"{topic}.outcomes", f"{topic}.dead")
        thread = stack.enter_context(ThreadPoolExecutor(1))
        valkey = stack.enter_context(RedisServer())
        producer = await stack.enter_async_context(
            AIOKafkaProducer(
                bootstrap_servers=bootstrap, enable_idempotence=True, max_batch_size=65_536
            )
        )
        stage = Stage(plan, bootstrap, topic, crowd, valkey, thread, producer)
        await _start_processes(stage, stack)
        before_nodes = plan.balancer(*stage.nodes)
        stage.balancer = await stage.aside(partial(stack.enter_context, before_nodes))
        connected = crowd.connected(stage.balancer.port, timeout_seconds=_CONNECT_SECONDS)
        await stack.enter_async_context(connected)
        # A group: without one, a sampler that fails would leave a row with little memory to judge.
        async with asyncio.TaskGroup() as tasks:
            sampling = tasks.create_task(stage.sample_memory())
            try:
                yield stage
            finally:
                sampling.cancel()


def _url(node: Node) -> str:
    """Return the address of a node's internal port itself, whatever is before the port."""
    return f"http://127.0.0.1:{node.process.internal_port}"


async def _start_processes(stage: Stage, stack: AsyncExitStack) -> None:
    plan, url = stage.plan, stage.valkey.url
    for number in range(plan.gateways):
        proxies = {
            hop: await stack.enter_async_context(Proxy()) for hop in sorted(plan.hops, key=str)
        }
        settings: dict[str, object] = {}
        if Hop.INTERNAL in proxies:
            settings["advertise_address"] = proxies[Hop.INTERNAL].address
        redis_url = f"redis://{proxies[Hop.REDIS].address}/0" if Hop.REDIS in proxies else url
        gateway = GatewayProcess(
            f"drill-{number}",
            redis_url=redis_url,
            heartbeat_seconds=plan.heartbeat_seconds,
            lost_node_seconds=plan.lost_node_seconds,
            drain_seconds=plan.drain_seconds,
            **settings,
        )
        targets = {
            Hop.REDIS: stage.valkey.port,
            Hop.INTERNAL: gateway.internal_port,
            Hop.PUBLIC: gateway.port,
        }
        for hop, proxy in proxies.items():
            proxy.target_port = targets[hop]
        stage.nodes.append(Node(gateway, proxies))
    stage.processors += [
        ProcessorProcess(
            f"drill-processor-{number}",
            redis_url=url,
            bootstrap=stage.bootstrap,
            topic=stage.topic,
            group=stage.topic,
            outcomes_topic=f"{stage.topic}.outcomes",
            lost_node_seconds=plan.lost_node_seconds,
        )
        for number in range(plan.processors)
    ]
    for process in stage.processes:
        stack.push_async_callback(stage.aside, process.close)
        await stage.aside(partial(process.start, until_ready=False))
    for process in stage.processes:
        await stage.aside(process.wait_until_ready)


async def _create_topics(bootstrap: str, *topics: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, _PARTITIONS, 1) for topic in topics])
    finally:
        await admin.close()


def resident_bytes(process: PushgateProcess) -> int | None:
    """Return a process's memory, or None where it does not run: it may end at any time."""
    if process.returncode is not None:
        return None
    try:
        return process.resident_bytes
    except (FileNotFoundError, ProcessLookupError, IndexError):  # gone, or a zombie without memory
        return None


def peak_growth(samples: Collection[tuple[float, int]], since: float) -> float:
    """Return how fast the largest size has grown since then, in MB a minute."""
    before = max((size for at, size in samples if at < since), default=0)
    later = [(at, size) for at, size in samples if at >= since]
    if not later or not before:
        return 0.0
    minutes = (max(at for at, _ in later) - since) / 60
    return (max(size for _, size in later) - before) / 1e6 / minutes


def _growth(samples: list[tuple[float, int]], since: float) -> float:
    later = [(at, size) for at, size in samples if at >= since]
    quarter = len(later) // 4
    if not quarter:
        return 0.0
    first, last = later[:quarter], later[-quarter:]
    minutes = (_middle(last)[0] - _middle(first)[0]) / 60
    return (_median_size(last) - _median_size(first)) / 1e6 / minutes


def _middle(samples: list[tuple[float, int]]) -> tuple[float, int]:
    return samples[len(samples) // 2]


def _median_size(samples: list[tuple[float, int]]) -> int:
    return sorted(size for _, size in samples)[len(samples) // 2]
