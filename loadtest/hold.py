"""A hundred thousand WebSockets on one machine: CPU time and memory of the gateway's workers.

`pushgate gateway --workers 6` runs on one port, with heartbeats every 30 s and every limit switched
on; client processes answer Ping frames at once. Every client gets a message and a Ping. Measured
after that:
- memory: growth of the anonymous memory and PSS of all workers and their parent, divided by the
  number of connections;
- CPU: user and system time of the same processes over five minutes of holding, as a share of one
  core; ten rounds of Pings and Pongs fall into these minutes;
- connections lost from the first handshake to the end: none may be lost;
- a message to each of a thousand users picked at random, on all workers: users are looked up in the
  registry as a processor does, messages are posted to the nodes of their users, and arrivals are
  counted at the clients. A client knows its own messages by the user in the payload.
The maximum age is the default (27 to 30 minutes): no connection reaches the maximum age.

A lost connection ends the benchmark with an error, and so does a message that does not arrive.

What could fool the benchmark: while CPU is measured no client connects, leaves or gets a message,
and the registry's elements are not yet due to be written again (due at a third of their thirty
minutes). Workers and clients share the machine's cores. The kernel's memory is in no figure.

    python -m loadtest.hold [--workers 6] [--connections 100000] [--seconds 300] [--save]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final

from loadtest.processes import EVERYTHING_ON, Gateway, LoadtestError, Memory
from loadtest.pusher import Pusher
from loadtest.report import Report
from loadtest.targets import names
from pushgate.embedded import tied_to_parent
from registry.directory import Node
from registry.redis_store import RedisRegistry
from tests.support.valkey import RedisServer

#: CPU time of all workers together, as a share of one core.
CPU_BOUND: Final = 0.12
HEARTBEAT_SECONDS: Final = 30.0
#: Clients of one process: the machine of the saved results allows a process 20,000 descriptors.
_PER_HOLDER: Final = 14_500
_BATCH: Final = 1_000
_MESSAGE_BYTES: Final = 200
_SAMPLE: Final = 1_000
_WARM_UP: Final = 100
_GONE_SECONDS: Final = 5.0
_CONNECT_SECONDS: Final = 900.0
_ANSWER_SECONDS: Final = 60.0
_ARRIVAL_SECONDS: Final = 60.0
_PAUSE_SECONDS: Final = 1.0


class Holder:
    """A child process of clients (holder.py), seen from the benchmark."""

    def __init__(self, port: int, first: int, count: int, address: int) -> None:
        """Start the process; `count` clients, from user number `first` on, connect at once.

        Source addresses are 127.0.0.`address` and the next one.
        """
        arguments = map(str, (port, first, count, address))
        self._process = subprocess.Popen(
            tied_to_parent([sys.executable, "-m", "loadtest.holder", *arguments]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def ask(self) -> None:
        """Ask the process for its state."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")

    def state(self, *, seconds: float) -> dict[str, Any]:
        """Read the state that was asked for, or the first one, which says that all have connected.

        Raises:
            LoadtestError: the process has ended, or printed nothing within `seconds`.
        """
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            raise LoadtestError(f"no word from a process of clients within {seconds:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise LoadtestError("a process of clients has ended")
        state: dict[str, Any] = json.loads(line)
        return state

    def stop(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.communicate()


@dataclass(frozen=True, slots=True)
class Seen:
    """The states of all client processes, summed up."""

    pings: int
    never_pinged: int
    strays: int
    clients_by_messages: Counter[int]


@contextmanager
def _holding(port: int, connections: int) -> Iterator[list[Holder]]:
    """Connect `connections` clients, in as many processes as descriptors demand."""
    with ExitStack() as stack:
        holders: list[Holder] = []
        for start in range(0, connections, _PER_HOLDER):
            count = min(_PER_HOLDER, connections - start)
            # Two source addresses a process: between two addresses there are some 28,000 ports.
            holder = Holder(port, start, count, 2 + 2 * len(holders))
            stack.callback(holder.stop)
            holders.append(holder)
        for holder in holders:
            holder.state(seconds=_CONNECT_SECONDS)
        yield holders


def _look(holders: Sequence[Holder]) -> Seen:
    for holder in holders:
        holder.ask()
    states = [holder.state(seconds=_ANSWER_SECONDS) for holder in holders]
    if lost := sum(state["lost"] for state in states):
        reasons = {reason for state in states for reason in state["why"]}
        raise LoadtestError(f"{lost} connections were lost: {reasons}")
    by_messages: Counter[int] = Counter()
    for state in states:
        counts = state["clients_by_messages"]
        by_messages.update({int(messages): clients for messages, clients in counts.items()})
    pings, never_pinged, strays = (
        sum(state[name] for state in states) for name in ("pings", "never_pinged", "strays")
    )
    return Seen(pings, never_pinged, strays, by_messages)


def _until(
    holders: Sequence[Holder], what: str, done: Callable[[Seen], bool], *, seconds: float
) -> Seen:
    """Read the clients' states until `done` accepts them; return the accepted ones."""
    deadline = time.monotonic() + seconds
    while not done(seen := _look(holders)):
        if time.monotonic() > deadline:
            raise LoadtestError(f"not {what} within {seconds:g} s: {seen}")
        time.sleep(_PAUSE_SECONDS)
    return seen


def _message_to_each(ports: Sequence[int], connections: int) -> None:
    """Post every user's message to every worker: only the worker with the user delivers."""
    with ExitStack() as stack:
        pushers = [stack.enter_context(Pusher(port, codec="msgpack")) for port in ports]
        for start in range(0, connections, _BATCH):
            batch = _batch(names(start, min(start + _BATCH, connections)))
            answers = [pusher.push(batch) for pusher in pushers]
            if [sum(results) for results in zip(*answers, strict=True)] != [1] * len(batch):
                raise LoadtestError("a message did not reach its one connection")


def _batch(users: Sequence[str]) -> list[dict[str, str]]:
    return [{"user": user, "data": f"{user} ".ljust(_MESSAGE_BYTES, "x")} for user in users]


async def _whereabouts(redis_url: str, connections: int) -> dict[Node, list[str]]:
    """Look every user up; return the users of each node."""
    registry = RedisRegistry(redis_url, timeout_seconds=_ANSWER_SECONDS)
    users_by_node: dict[Node, list[str]] = {}
    try:
        await registry.refresh()
        for start in range(0, connections, _BATCH):
            users = names(start, min(start + _BATCH, connections))
            for user, nodes in zip(users, await registry.lookup(users), strict=True):
                if nodes is None or len(nodes) != 1:
                    raise LoadtestError(f"{user} is registered on {len(nodes or ())} nodes")
                users_by_node.setdefault(nodes[0], []).append(user)
    finally:
        await registry.close()
    return users_by_node


def _sample(users_by_node: Mapping[Node, Sequence[str]], size: int) -> dict[Node, list[str]]:
    """Pick `size` users at random, at least one on every node."""
    chosen = {node: [random.choice(users)] for node, users in users_by_node.items()}
    candidates = [(node, user) for node, users in users_by_node.items() for user in users]
    random.shuffle(candidates)
    missing = size - len(chosen)
    for node, user in candidates:
        if missing > 0 and user != chosen[node][0]:
            chosen[node].append(user)
            missing -= 1
    return chosen


def _push_sample(chosen: Mapping[Node, Sequence[str]]) -> None:
    for node, users in chosen.items():
        with Pusher(int(node.address.rpartition(":")[2]), codec="msgpack") as pusher:
            if pusher.push(_batch(users)) != [1] * len(users):
                raise LoadtestError(f"{node.name} did not take a message of a user it registered")


@dataclass(frozen=True, slots=True)
class Found:
    """The figures of one run: memory in bytes a connection, CPU time as a share of one core."""

    anonymous: int
    pss: int
    cpu_share: float
    pings: int
    sampled: int
    connect_seconds: float
    connections_by_node: list[int]


def hold(redis_url: str, *, workers: int, connections: int, seconds: float) -> Found:
    """Hold `connections` on `workers` for `seconds`, and measure.

    Raises:
        LoadtestError: a connection was lost, or a message did not arrive.
    """
    gateway = Gateway(
        redis_url, workers=workers, heartbeat_seconds=HEARTBEAT_SECONDS, **EVERYTHING_ON
    )
    with gateway:
        with _holding(gateway.port, _WARM_UP * workers):
            _message_to_each(gateway.internal_ports, _WARM_UP * workers)
        time.sleep(_GONE_SECONDS)
        empty, began = gateway.memory(), time.monotonic()
        with _holding(gateway.port, connections) as holders:
            connect_seconds = time.monotonic() - began
            print(f"  {connections:,} connected in {connect_seconds:.0f} s", flush=True)
            _message_to_each(gateway.internal_ports, connections)
            limit = 3 * HEARTBEAT_SECONDS + _ARRIVAL_SECONDS
            before = _until(
                holders, "messaged and pinged", lambda seen: not seen.never_pinged, seconds=limit
            )
            growth = _growth(empty, gateway.memory(), connections)
            used = gateway.cpu_seconds()
            time.sleep(seconds)
            used = gateway.cpu_seconds() - used
            pings = _look(holders).pings - before.pings
            by_node = asyncio.run(_whereabouts(redis_url, connections))
            chosen = _sample(by_node, min(_SAMPLE, connections))
            if len(chosen) != workers:
                raise LoadtestError(f"connections are on {len(chosen)} of {workers} workers")
            _push_sample(chosen)
            sampled = sum(map(len, chosen.values()))
            arrived = Counter({1: connections - sampled, 2: sampled})
            _until(
                holders,
                "arrived",
                lambda seen: seen.clients_by_messages == arrived and not seen.strays,
                seconds=_ARRIVAL_SECONDS,
            )
    return Found(
        growth.anonymous,
        growth.pss,
        used / seconds,
        pings,
        sampled,
        connect_seconds,
        sorted(map(len, by_node.values())),
    )


def _growth(before: Memory, after: Memory, connections: int) -> Memory:
    pss, anonymous = after.pss - before.pss, after.anonymous - before.anonymous
    return Memory(pss // connections, anonymous // connections)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.hold")
    parser.add_argument("--workers", type=int, default=6, help="gateway workers")
    parser.add_argument("--connections", type=int, default=100_000, help="held in all")
    parser.add_argument("--seconds", type=float, default=300.0, help="of holding")
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    arguments = parser.parse_args()
    report = Report("hold")
    with RedisServer("valkey") as redis:
        figures = hold(
            redis.url,
            workers=arguments.workers,
            connections=arguments.connections,
            seconds=arguments.seconds,
        )
    report.figures = {
        "workers": arguments.workers,
        "connections": arguments.connections,
        "seconds": arguments.seconds,
        **asdict(figures),
    }
    report.line(
        f"{arguments.connections:,} WebSockets on {arguments.workers} workers for "
        f"{arguments.seconds:g} s: {figures.cpu_share:.1%} of one core with {figures.pings:,} "
        f"pings, {figures.anonymous:,} B a connection (PSS {figures.pss:,}), none lost; "
        f"messages to {figures.sampled:,} of them arrived"
    )
    report.bound(f"≤ {CPU_BOUND:.0%} of one core", holds=figures.cpu_share <= CPU_BOUND)
    report.finish(save=arguments.save)


if __name__ == "__main__":
    main()
