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
from bisect import bisect_right
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from loadtest.clients import WebSocketClient
from pushgate.embedded import LOOPBACK
from tests.drill.accounts import Ending, User, spare
from tests.drill.stage import Hop, Node, Stage
from tests.support.clients import eventually, token
from tests.support.proxy import Direction

#: A node's lease lives for so long after the node's last heartbeat (registry/directory.py).
LEASE_SECONDS: Final = 15.0
#: How many users move to another connection while something fails.
MOVERS: Final = 20
#: How long after the kill of its node a client may see the end of its connection: RST and FIN come
#: from the kernels at once, and the drill's loop may be late.
_END_SECONDS: Final = 2.0
#: How long HAProxy sends clients to a node that is not ready any more: two checks of half a second.
_NOTICE_SECONDS: Final = 2.0
_MOST_RECONNECTS_A_SECOND: Final = 150
_DRAIN_GRACE_SECONDS: Final = 5.0
_START_LOOK_SECONDS: Final = 0.02
#: How long users may take to move, beside the fault's own time: the balancer sends some of them to
#: the frozen node first, where the handshake's time passes.
_MOVE_SECONDS: Final = 15.0
#: The share of a partition's time after which users come and move.
_PARTED_SHARE: Final = 0.2
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
    kills: int = 20
    frozen: float = 15.0
    long_frozen: float = 40.0
    partition: float = 10.0
    without_redis: float = 60.0
    never_reading: float = LEASE_SECONDS + 30.0
    pairs: int = 7  # of times with and without the user who never reads
    calm: float = 20.0  # without, of each pair
    aftermath: float = 5.0  # messages flow on when a fault has ended


@dataclass(frozen=True, slots=True)
class Period:
    """Messages of these users, published from `since` on and before `until`."""

    users: Collection[User]
    since: float
    until: float


@dataclass(frozen=True, slots=True)
class Pair:
    """What is compared: times without and with the fault, of users whom it does not concern."""

    without: Collection[Period]
    during: Collection[Period]


@dataclass(slots=True)
class Fault:
    """What happened, and what was wrong at its end.

    `others` are periods of users whom the fault does not concern, to be compared with the time
    before; `pairs` are a fault's own comparisons.
    """

    others: list[Period] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    registered_seconds: float = 0.0  # from the end until the registry had everybody
    wrong: Counter[str] = field(default_factory=Counter)


async def kill(stage: Stage, lengths: Lengths) -> Fault:
    """Row 1: SIGKILL a gateway; its clients come back elsewhere, its entries count no more."""
    node = random.choice(stage.nodes)
    fault = Fault()
    others = await _others(stage, node)
    killed = await _kill(stage, fault, node)
    await _lasts(lengths.killed - _END_SECONDS)
    fault.ended = time.monotonic()
    fault.others.append(Period(others, killed, fault.ended))
    fault.wrong.update(await stage.audit())
    return fault


async def kill_often(stage: Stage, lengths: Lengths) -> Fault:
    """Row 2: SIGKILL a random gateway, and start it again, over and over."""
    fault = Fault()
    for _ in range(lengths.kills):
        node = random.choice(stage.nodes)
        others = [user for user in await _others(stage, node) if _is_whole(user)]
        killed = await _kill(stage, fault, node, and_then=partial(_restart, stage, node))
        await _lasts(killed + lengths.between_kills - time.monotonic())
        fault.others.append(Period(others, killed, time.monotonic()))
    await _lasts(lengths.killed)
    fault.ended = time.monotonic()
    fault.wrong.update(await stage.audit())
    return fault


async def kill_processors(stage: Stage, lengths: Lengths) -> Fault:
    """Row 8: SIGKILL a random processor, and start it again, over and over, while users move."""
    fault = Fault()
    for _ in range(lengths.kills):
        processor = random.choice(stage.processors)
        killed = time.monotonic()
        await stage.aside(processor.kill)
        stage.crowd.move(await _single(stage, random.choice(stage.nodes), MOVERS))
        await stage.aside(partial(processor.start, until_ready=False))
        await _lasts(killed + lengths.between_kills - time.monotonic())
    await _lasts(lengths.killed)
    fault.ended = time.monotonic()
    fault.wrong.update(await stage.audit())
    return fault


async def drain_all(stage: Stage, lengths: Lengths) -> Fault:
    """Row 3: drain all gateways, one after the other, each with a client that refuses to go."""
    fault = Fault()
    for node in stage.nodes:
        await drain(stage, fault, node)
        await stage.aside(node.process.start)
    fault.ended = time.monotonic()
    return fault


async def freeze(stage: Stage, lengths: Lengths) -> Fault:
    """Row 4: SIGSTOP a gateway, move some of its users elsewhere, and let it go on."""
    return await _freeze(stage, lengths, lengths.frozen, movers=MOVERS)


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


async def freeze_redis_under_movers(stage: Stage, lengths: Lengths) -> Fault:
    """Row 5: SIGSTOP Redis, and let users move meanwhile."""
    moving = await _single(stage, random.choice(stage.nodes), MOVERS)
    fault = Fault()
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(stage.note_registered(moving))
        stage.valkey.freeze()
        try:
            await _lasts(lengths.partition * _PARTED_SHARE)
            stage.crowd.move(moving)
            await _lasts(lengths.partition * (1 - _PARTED_SHARE))
        finally:
            stage.valkey.thaw()
        await _healed(fault, lengths)
        watching.cancel()
    return fault


async def part_from_processors(stage: Stage, lengths: Lengths) -> Fault:
    """Row 10: of two gateways one gets nothing from the processors, one's answers are lost."""
    return await _part(stage, lengths, Hop.INTERNAL)


async def part_from_redis(stage: Stage, lengths: Lengths) -> Fault:
    """Row 10: of two gateways one's words to Redis are lost, one gets no answers."""
    return await _part(stage, lengths, Hop.REDIS)


async def cut_from_redis(stage: Stage, lengths: Lengths) -> Fault:
    """Row 26: one gateway has no Redis, its clients and the processors are fine."""
    node = random.choice(stage.nodes)
    return await _parted(
        stage, lengths, lambda: stage.silence(node, Hop.REDIS), lengths.without_redis
    )


async def vanish(stage: Stage, lengths: Lengths) -> Fault:
    """Row 27: a gateway's host vanishes, without FIN or RST, and never comes back."""
    node = random.choice(stage.nodes)
    fault = Fault()

    async def silence() -> None:
        node.vanished = True
        for hop in Hop:
            stage.silence(node, hop)

    lost_seconds = LEASE_SECONDS + stage.plan.lost_node_seconds
    await _cut(stage, fault, node, silence, within_seconds=lost_seconds)
    fault.ended = time.monotonic()
    return fault


async def never_read(stage: Stage, lengths: Lengths) -> Fault:
    """Row 13, with one user: who never reads delays nobody, least of all in its own partition.

    In several pairs of times without and with the user: one p99 says little on a busy machine.
    """
    user = User(f"{stage.topic}-never-reads", [])
    stage.more_users.append(user)
    await stage.send(user, _SILENT_BODY)  # so that Kafka says which partition is the user's
    fault = Fault()
    times = []
    for _ in range(lengths.pairs):
        cuts: list[float] = []
        calm = time.monotonic()
        await _lasts(lengths.calm)
        began = time.monotonic()
        async with (
            _never_reading(stage, user, cuts),
            stage.publishing([user], _SILENT_RATE, body=_SILENT_BODY),
        ):
            await _lasts(lengths.never_reading)
        times.append((calm, began, time.monotonic()))
        if not cuts:
            fault.wrong["times in which who never reads was not cut"] += 1
    fault.ended = time.monotonic()
    of_user = stage.partitions.get(user.name)
    others = [other for other in stage.crowd.users if stage.partitions.get(other.name) == of_user]
    fault.pairs = [
        Pair([Period(others, calm + lengths.calm / 4, began)], [Period(others, began, ended)])
        for calm, began, ended in times
    ]
    return fault


async def _lasts(seconds: float) -> None:
    """Return after so long: it is the fault's own length, and nothing else is awaited."""
    await asyncio.sleep(seconds)


async def _others(stage: Stage, *nodes: Node) -> list[User]:
    """Return the users without a connection to these nodes."""
    here = {user.name for node in nodes for user in await stage.users_at(node)}
    return [user for user in stage.crowd.users if user.name not in here]


def _is_whole(user: User) -> bool:
    """Whether all clients of a user are connected."""
    return all(client.is_connected for client in user.clients)


async def _kill(
    stage: Stage,
    fault: Fault,
    node: Node,
    *,
    and_then: Callable[[], Awaitable[float]] | None = None,
) -> float:
    """SIGKILL a gateway; return when that was.

    The drill's own questions to the nodes, which hold up all clients, come before that time.
    `and_then` starts the gateway again, and returns when the new process was there.
    """
    killed = 0.0

    async def kill() -> None:
        nonlocal killed
        killed = time.monotonic()
        await stage.aside(node.process.kill)

    await _cut(stage, fault, node, kill, within_seconds=_END_SECONDS, and_then=and_then)
    return killed


async def _cut(
    stage: Stage,
    fault: Fault,
    node: Node,
    strike: Callable[[], Awaitable[None]],
    *,
    within_seconds: float,
    and_then: Callable[[], Awaitable[float]] | None = None,
) -> None:
    """Cut a node off from its clients, who see the ends of their connections within the time.

    Only connections that the node had may end, and those of clients who connected meanwhile.
    """
    await stage.note_nodes()
    asked = time.monotonic()
    here = await stage.users_at(node)
    marked = {user: user.mark(Ending.CUT) for user in here}
    await strike()
    cut = time.monotonic()
    gone = await and_then() if and_then else math.inf
    await _lasts(cut + within_seconds - time.monotonic())
    late = [
        session
        for user in stage.crowd.users
        for client in user.clients
        for session in client.sessions
        if asked <= session.opened <= cut + _END_SECONDS and session.ending is Ending.NONE
    ]
    for session in late:
        session.ending = Ending.CUT
    for session in [*late, *(session for sessions in marked.values() for session in sessions)]:
        session.cut, session.gone = cut, gone
    spare(late)
    for user, sessions in marked.items():
        fault.wrong["connections that ended at another node"] += max(
            0, spare(sessions) - here[user]
        )


async def _restart(stage: Stage, node: Node) -> float:
    """Start a killed gateway again; return the latest time at which nobody listened yet.

    From then on the new process may say that it does not have the earlier one's users.
    """
    starting = asyncio.create_task(stage.aside(node.process.start))
    absent = time.monotonic()
    while not await stage.listens(node):
        absent = time.monotonic()
        await asyncio.sleep(_START_LOOK_SECONDS)
    await starting
    return absent


async def drain(stage: Stage, fault: Fault, node: Node) -> None:
    """Let a gateway drain until its process ends, and judge how its clients left."""
    refusing = User(f"{stage.topic}-refuses", [])
    async with _unread_socket(node.port, refusing):
        began = time.monotonic()
        patience = partial(
            node.process.terminate, 2 * stage.plan.drain_seconds + _DRAIN_GRACE_SECONDS
        )
        leaving = asyncio.create_task(stage.aside(patience))
        marked = [user.mark(Ending.DRAINED) for user in await stage.users_at(node)]
        await _lasts(_NOTICE_SECONDS)
        marked += [user.mark(Ending.DRAINED) for user in await stage.users_at(node)]
        await leaving
    ended = time.monotonic()
    for user in stage.crowd.users:
        for client in user.clients:
            client.drains.append((began, ended))
    await _lasts(_END_SECONDS)
    for sessions in marked:
        spare(sessions)
    opened = [
        [session.opened for session in client.sessions if session.opened >= began]
        for user in stage.crowd.users
        for client in user.clients
    ]
    fault.wrong["reconnects of a client in one drain, beside its first"] += sum(
        max(0, len(times) - 1) for times in opened
    )
    peak = most_in_a_second(time for times in opened for time in times)
    if peak > _MOST_RECONNECTS_A_SECOND:
        fault.wrong["reconnects in a second of a drain"] = peak
    if ended - began > stage.plan.drain_seconds + _DRAIN_GRACE_SECONDS:
        fault.wrong[f"drain that took {ended - began:.1f} s"] = 1


def most_in_a_second(times: Iterable[float]) -> int:
    """Return how many of these times are in the fullest second."""
    ordered = sorted(times)
    return max(
        (bisect_right(ordered, time + 1.0) - index for index, time in enumerate(ordered)),
        default=0,
    )


async def _freeze(stage: Stage, lengths: Lengths, seconds: float, *, movers: int) -> Fault:
    node = random.choice(stage.nodes)
    moving = await _single(stage, node, movers)
    fault = Fault()
    node.process.freeze()
    try:
        for user in moving:
            user.mark(Ending.LEFT, cut=time.monotonic())
        stage.crowd.move(moving, node_sees=False)
        await _lasts(seconds)
        await eventually(
            lambda: all(_is_whole(user) for user in moving),
            "who moved is connected elsewhere",
            timeout_seconds=_MOVE_SECONDS,
        )
    finally:
        node.process.thaw()
    return await _healed(fault, lengths)


async def _part(stage: Stage, lengths: Lengths, hop: Hop) -> Fault:
    unheard, unanswered = random.sample(stage.nodes, 2)

    def silence() -> None:
        stage.silence(unheard, hop, Direction.TO_SERVER)
        stage.silence(unanswered, hop, Direction.TO_CLIENT)

    return await _parted(stage, lengths, silence, lengths.partition)


async def _parted(
    stage: Stage, lengths: Lengths, silence: Callable[[], None], seconds: float
) -> Fault:
    """Part nodes from others for some time, in which users come, and others move."""
    moving = await _single(stage, random.choice(stage.nodes), MOVERS)
    watched = [*moving, *stage.crowd.latecomers]
    fault = Fault()
    silence()
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(stage.note_registered(watched))
        await _lasts(seconds * _PARTED_SHARE)
        stage.crowd.let_in()
        stage.crowd.move(moving)
        await _lasts(seconds * (1 - _PARTED_SHARE))
        stage.release()
        fault = await _healed(fault, lengths)
        watching.cancel()
    sessions = [session for user in watched for session in user.clients[0].sessions]
    last = max(session.registered for session in sessions)
    fault.registered_seconds = max(0.0, last - fault.ended)
    return fault


async def _single(stage: Stage, node: Node, count: int) -> list[User]:
    """Return some of a node's users who have one client."""
    here = await stage.users_at(node)
    return [user for user in here if len(user.clients) == 1][:count]


async def _healed(fault: Fault, lengths: Lengths) -> Fault:
    """Note the end of a fault, under load for a few seconds more."""
    fault.ended = time.monotonic()
    await _lasts(lengths.aftermath)
    return fault


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
