"""A look-up of 1,000 users, on two nodes each, against a plain MGET of as many keys.

Timed: `registry.lookup(users)`, from user ids to nodes, and `redis.mget(keys)` of the same keys,
which are prepared before the clock starts. Both calls run in this process, on the same kind of
client with the same settings, against the same Valkey, over the same random samples. The two calls
of a pair take turns in going first. The ratio is the median of the pairs' own ratios. Then the same
look-up runs on a Cluster of three masters, against the MGET on one Valkey.

What could fool the benchmark: the node table remembers the meaning of entries for its lifetime,
which is one second in a processor. So the table is refreshed here as often as in a processor: once
in as many look-ups as a processor makes in a second (15, at 15,000 messages/s). Look-ups right
after a refresh are shown too. Entries that were written together are few different strings; entries
written over half an hour are many different strings. Both conditions are measured. The refresh
itself is not timed: a processor refreshes beside its look-ups. The three masters share the
machine's cores with this process and with one another, while a Cluster on three machines works in
parallel.

    python -m loadtest.lookup [--save]
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Final

import uvloop
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from loadtest.processes import LoadtestError
from loadtest.report import Report
from registry.directory import Node
from registry.redis_store import RedisRegistry
from tests.support.valkey import RedisServer
from tests.support.valkey_groups import RedisCluster

BOUND: Final = 2.0
CLUSTER_BOUND: Final = 6.0
_TIMEOUT_SECONDS: Final = 5.0
_WARM_UP_PAIRS: Final = 5
_ENTRY_MINUTES: Final = 30


@dataclass(frozen=True, slots=True)
class Medians:
    """The medians of one condition: milliseconds of MGET and look-up, and their ratio."""

    mget_ms: float
    lookup_ms: float
    ratio: float


class Plain:
    """A plain client of one Valkey, and the keys of the users' entries."""

    def __init__(self, url: str) -> None:
        self.keys: dict[str, bytes] = {}
        self._redis: Redis = Redis.from_url(
            url,
            socket_timeout=_TIMEOUT_SECONDS,
            socket_connect_timeout=_TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )

    async def learn_keys(self) -> None:
        """Find the key of every user's entry."""
        async for key in self._redis.scan_iter(match="*user:*", count=1_000):
            self.keys[key.rpartition(b"user:")[2].decode()] = key

    async def spread(self, nodes: Sequence[Node]) -> None:
        """Write every entry again: two random nodes, each element with a random expiry."""
        now = int(time.time()) // 60 * 60
        entries: dict[bytes, str] = {}
        for key in self.keys.values():
            expiries = [now + 60 * random.randint(2, _ENTRY_MINUTES + 1) for _ in range(2)]
            entries[key] = " ".join(
                f"{node.tag.decode()}:{expires_at}"
                for node, expires_at in zip(random.sample(nodes, 2), expiries, strict=True)
            )
        await self._redis.mset(entries)

    async def mget(self, users: Sequence[str]) -> float:
        """Return the seconds of one MGET of the entries of `users`.

        Raises:
            LoadtestError: a user has no entry.
        """
        keys = [self.keys[user] for user in users]
        began = time.perf_counter()
        values = await self._redis.mget(keys)
        took = time.perf_counter() - began
        if None in values:
            raise LoadtestError("an entry is missing")
        return took

    async def close(self) -> None:
        """Close the client's connections."""
        await self._redis.aclose()


class Bench:
    """A registry with users in it, and a plain client beside it."""

    def __init__(self, url: str, plain: Plain, *, users: int, nodes: int, sample: int) -> None:
        self._registry = RedisRegistry(url, timeout_seconds=_TIMEOUT_SECONDS)
        self._plain = plain
        self._users = [f"user-{number:06d}" for number in range(users)]
        self.nodes = [
            Node(f"gateway-{n}", f"{n:04x}1f3c9d2e7b60", f"10.0.0.{n}:8081") for n in range(nodes)
        ]
        self._sample = sample

    async def fill(self) -> None:
        """Register every user on two random nodes, as gateways do, all users together."""
        users_by_node: dict[int, list[str]] = {number: [] for number in range(len(self.nodes))}
        for user in self._users:
            for number in random.sample(range(len(self.nodes)), 2):
                users_by_node[number].append(user)
        for number, node in enumerate(self.nodes):
            await self._registry.heartbeat(node, claim=True)
            await self._registry.write(node, users_by_node[number], [])

    async def measure(self, *, pairs: int, refresh_every: int) -> Medians:
        """Time pairs of a plain MGET and a look-up; refresh once in `refresh_every` pairs."""
        seconds: list[tuple[float, float]] = []  # of MGET and look-up
        for number in range(_WARM_UP_PAIRS + pairs):
            if number % refresh_every == 0:
                await self._registry.refresh()
            users = random.sample(self._users, self._sample)
            seconds.append(await self._pair(users, mget_first=number % 2 == 0))
        del seconds[:_WARM_UP_PAIRS]
        return Medians(
            median(mget for mget, _ in seconds) * 1e3,
            median(lookup for _, lookup in seconds) * 1e3,
            median(lookup / mget for mget, lookup in seconds),
        )

    async def close(self) -> None:
        """Close the registry's connections."""
        await self._registry.close()

    async def _pair(self, users: Sequence[str], *, mget_first: bool) -> tuple[float, float]:
        if mget_first:
            return await self._plain.mget(users), await self._lookup(users)
        lookup = await self._lookup(users)
        return await self._plain.mget(users), lookup

    async def _lookup(self, users: Sequence[str]) -> float:
        began = time.perf_counter()
        answers = await self._registry.lookup(users)
        took = time.perf_counter() - began
        if any(nodes is None or len(nodes) != 2 for nodes in answers):
            raise LoadtestError("a user is not on two nodes")
        return took


async def _run(
    arguments: argparse.Namespace, server: RedisServer, cluster: RedisCluster, report: Report
) -> None:
    size = {"users": arguments.users, "nodes": arguments.nodes, "sample": arguments.sample}
    plain = Plain(server.url)
    on_one_server = Bench(server.url, plain, **size)
    on_cluster = Bench(cluster.url, plain, **size)
    try:
        await on_one_server.fill()
        await on_cluster.fill()
        await plain.learn_keys()
        await _condition(on_one_server, "entries written together", BOUND, arguments, report)
        await _condition(on_cluster, "three masters", CLUSTER_BOUND, arguments, report)
        await plain.spread(on_one_server.nodes)
        spread = f"entries spread over {_ENTRY_MINUTES} minutes"
        await _condition(on_one_server, spread, BOUND, arguments, report)
    finally:
        await on_one_server.close()
        await on_cluster.close()
        await plain.close()


async def _condition(
    bench: Bench, name: str, bound: float, arguments: argparse.Namespace, report: Report
) -> None:
    paced = await bench.measure(pairs=arguments.pairs, refresh_every=arguments.refresh_every)
    _add(report, name, paced)
    report.bound(f"{name}: ratio ≤ {bound}", holds=paced.ratio <= bound)
    fresh = await bench.measure(pairs=arguments.pairs, refresh_every=1)
    _add(report, f"{name}, table just refreshed", fresh)


def _add(report: Report, name: str, medians: Medians) -> None:
    report.figures[name] = asdict(medians)
    report.line(
        f"{name}: MGET {medians.mget_ms:.2f} ms, look-up {medians.lookup_ms:.2f} ms, "
        f"ratio {medians.ratio:.2f}"
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.lookup")
    parser.add_argument("--users", type=int, default=10_000, help="users in the registry")
    parser.add_argument("--nodes", type=int, default=4, help="gateways they are spread over")
    parser.add_argument("--sample", type=int, default=1_000, help="users in one look-up")
    parser.add_argument("--pairs", type=int, default=150, help="pairs in each condition")
    parser.add_argument("--refresh-every", type=int, default=15, help="look-ups in a second")
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    arguments = parser.parse_args()
    report = Report("lookup")
    with RedisServer("valkey") as server, RedisCluster("valkey") as cluster:
        uvloop.run(_run(arguments, server, cluster, report))
    report.finish(save=arguments.save)


if __name__ == "__main__":
    main()
