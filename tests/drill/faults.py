"""What fails: the faults of the rows, each struck at a stage under load.

A fault ends where everything is as it was, or where nothing of what failed counts any more. Bounds,
and how a row is judged, are in rows.py.
"""

from __future__ import annotations

import asyncio
import math
import random
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from loadtest.clients import WebSocketClient
from pushgate.embedded import LOOPBACK
from tests.drill.accounts import Session, User
from tests.drill.stage import Hop, Node, Stage
from tests.support.clients import eventually, token
from tests.support.proxy import Direction

#: A node's lease lives for so long after the node's last heartbeat (registry/directory.py).
LEASE_SECONDS: Final = 15.0
#: The share of a frozen node's users that move elsewhere meanwhile.
_MOVERS: Final = 20
#: What the user who never reads gets: 800 kB a second, which fill the kernel's buffers (some MB on
#: loopback) and the gateway's within seconds.
_SILENT_RATE: Final = 50.0
_SILENT_BODY: Final = b"x" * 16_000
_SILENT_BUFFER_BYTES: Final = 4_096
_SILENT_WATCH_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """How long the parts of a row take, in seconds."""

    baseline: float = 20.0  # the load alone, whose p99 is compared with
    killed: float = LEASE_SECONDS + 5.0
    between_kills: float = 10.0
    kills: int = 12
    frozen: float = 15.0
    long_frozen: float = 40.0
    partition: float = 10.0
    without_redis: float = 60.0
    never_reading: float = LEASE_SECONDS + 30.0
    aftermath: float = 5.0  # messages flow on when a fault has ended


@dataclass(slots=True)
class Fault:
    """What happened: when, the users whom it did not concern, and what was wrong at its end."""

    others: Collection[User] = ()
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    wrong: Counter[str] = field(default_factory=Counter)


async def kill(stage: Stage, lengths: Lengths) -> Fault:
    """Row 1: SIGKILL a gateway; its clients come back elsewhere, its entries count no more."""
    node = random.choice(stage.nodes)
    fault = Fault(await _others(stage, node))
    await _kill(stage, node)
    await _lasts(lengths.killed)
    fault.ended = time.monotonic()
    fault.wrong.update(await stage.audit())
    return fault


async def kill_often(stage: Stage, lengths: Lengths) -> Fault:
    """Row 2: SIGKILL a random gateway, and start it again, over and over."""
    fault = Fault()
    for _ in range(lengths.kills):
        next_kill = time.monotonic() + lengths.between_kills
        node = random.choice(stage.nodes)
        for session in await _kill(stage, node):
            session.gone = time.monotonic()  # the next process is there a moment later
        await stage.aside(node.process.start)
        await _lasts(next_kill - time.monotonic())
    fault.ended = time.monotonic()
    return fault


async def freeze(stage: Stage, lengths: Lengths) -> Fault:
    """Row 4: SIGSTOP a gateway, move some of its users elsewhere, and let it go on."""
    return await _freeze(stage, lengths, lengths.frozen, movers=_MOVERS)


async def freeze_long(stage: Stage, lengths: Lengths) -> Fault:
    """Row 27: SIGSTOP a gateway for longer than its lease, and let it go on."""
    return await _freeze(stage, lengths, lengths.long_frozen, movers=0)


async def freeze_redis(stage: Stage, lengths: Lengths) -> Fault:
    """Row 5: SIGSTOP Redis."""
    fault = Fault()
    stage.valkey.freeze()
    try:
        await _lasts(lengths.partition)
    finally:
        stage.valkey.thaw()
    return await _healed(fault, lengths)


async def part_from_processors(stage: Stage, lengths: Lengths) -> Fault:
    """Row 10: of two gateways one gets nothing from the processors, one's answers are lost."""
    return await _part(stage, lengths, Hop.INTERNAL)


async def part_from_redis(stage: Stage, lengths: Lengths) -> Fault:
    """Row 10: of two gateways one's words to Redis are lost, one gets no answers."""
    return await _part(stage, lengths, Hop.REDIS)


async def cut_from_redis(stage: Stage, lengths: Lengths) -> Fault:
    """Row 26: one gateway has no Redis, its clients and the processors are fine."""
    node = random.choice(stage.nodes)
    fault = Fault(await _others(stage, node))
    stage.silence(node, Hop.REDIS)
    await _lasts(lengths.without_redis)
    stage.release()
    return await _healed(fault, lengths)


async def vanish(stage: Stage, lengths: Lengths) -> Fault:
    """Row 27: a gateway's host vanishes, without FIN or RST, and never comes back."""
    node = random.choice(stage.nodes)
    here = await stage.users_at(node)
    fault = Fault([user for user in stage.crowd.users if user not in here])
    for hop in Hop:
        stage.silence(node, hop)
    _cut(here, node_lives=False)
    await _lasts(LEASE_SECONDS + stage.plan.lost_node_seconds)
    fault.ended = time.monotonic()
    return fault


async def never_read(stage: Stage, lengths: Lengths) -> Fault:
    """Row 13, with one user: who never reads delays nobody, least of all in its own partition."""
    user = User(f"{stage.topic}-never-reads", [])
    stage.more_users.append(user)
    await stage.send(user, _SILENT_BODY)  # so that Kafka says which partition is the user's
    cuts: list[float] = []
    async with _never_reading(stage, user, cuts):
        fault = Fault()
        async with stage.publishing([user], _SILENT_RATE, body=_SILENT_BODY):
            await _lasts(lengths.never_reading)
        fault.ended = time.monotonic()
    if not cuts:
        fault.wrong["user who never reads and was not cut"] = 1
    of_user = stage.partitions.get(user.name)
    fault.others = [
        other for other in stage.crowd.users if stage.partitions.get(other.name) == of_user
    ]
    return fault


async def _lasts(seconds: float) -> None:
    """Return after so long: it is the fault's own length, and nothing else is awaited."""
    await asyncio.sleep(seconds)


async def _others(stage: Stage, *nodes: Node) -> list[User]:
    """Return the users without a connection to these nodes."""
    here = {user.name for node in nodes for user in await stage.users_at(node)}
    return [user for user in stage.crowd.users if user.name not in here]


async def _kill(stage: Stage, node: Node) -> list[Session]:
    await stage.note_neighbours()
    here = await stage.users_at(node)
    sessions = _cut(here, node_lives=False)
    await stage.aside(node.process.kill)
    return sessions


async def _freeze(stage: Stage, lengths: Lengths, seconds: float, *, movers: int) -> Fault:
    node = random.choice(stage.nodes)
    here = await stage.users_at(node)
    fault = Fault(await _others(stage, node))
    sessions = _cut(here, node_lives=True)
    node.process.freeze()
    try:
        stage.crowd.move([user.name for user in here[:movers]])
        await _lasts(seconds)
    finally:
        for session in sessions:
            session.gone = time.monotonic()
        node.process.thaw()
    return await _healed(fault, lengths)


async def _part(stage: Stage, lengths: Lengths, hop: Hop) -> Fault:
    unheard, unanswered = random.sample(stage.nodes, 2)
    fault = Fault(await _others(stage, unheard, unanswered))
    stage.silence(unheard, hop, Direction.TO_SERVER)
    stage.silence(unanswered, hop, Direction.TO_CLIENT)
    await _lasts(lengths.partition)
    stage.release()
    return await _healed(fault, lengths)


async def _healed(fault: Fault, lengths: Lengths) -> Fault:
    """Note the end of a fault, under load for a few seconds more."""
    fault.ended = time.monotonic()
    await _lasts(lengths.aftermath)
    return fault


def _cut(users: Collection[User], *, node_lives: bool) -> list[Session]:
    now = time.monotonic()
    return [session for user in users for session in user.cut(now, node_lives=node_lives)]


@asynccontextmanager
async def _never_reading(stage: Stage, user: User, cuts: list[float]) -> AsyncIterator[None]:
    """Keep the user connected to a gateway, without a balancer whose buffers would read for it.

    Whenever the gateway has cut the user off, the time is added to `cuts`, and the user comes back.
    The gateway is asked: the client's window is closed, so that no FIN reaches the client.
    """
    node = stage.nodes[0]

    async def is_cut() -> bool:
        await asyncio.sleep(_SILENT_WATCH_SECONDS)
        return not await stage.is_at(node, user)

    async def stay() -> None:
        while True:
            async with _unread_socket(node.port, user):
                connected.set()
                await eventually(is_cut, "the user is cut off", timeout_seconds=math.inf)
                cuts.append(time.monotonic())

    connected = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        staying = tasks.create_task(stay())
        try:
            await connected.wait()
            yield
        finally:
            staying.cancel()


@asynccontextmanager
async def _unread_socket(port: int, user: User) -> AsyncIterator[socket.socket]:
    """Open a WebSocket with a small window, and read no more than the answer's first bytes."""
    loop = asyncio.get_running_loop()
    with socket.socket() as unread:
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SILENT_BUFFER_BYTES)
        unread.setblocking(False)
        await loop.sock_connect(unread, (LOOPBACK, port))
        credential = token(user.name)
        await loop.sock_sendall(unread, WebSocketClient.request("/ws", credential))
        assert await loop.sock_recv(unread, 12) == b"HTTP/1.1 101", "the client is held, and unread"
        yield unread
