"""What a connected user costs Redis: memory of the entry, CPU time of its writes and look-ups.

Measured: the growth of Valkey's `used_memory` while users are registered on one node each, as a
gateway does it, 500 in a call; and the server's CPU time, by `INFO cpu`, a user written, a user
written again (gateways assert every entry each ten minutes), and a user looked up, 1,000 in a call.

What could fool the benchmark: users have ids of 36 characters, as UUIDs have, and the node a name
of 20; longer ones take their length more. The keys' table of Valkey grows in steps of two: memory
is read just above a step, where an entry's share of the table is largest. CPU time is counted in
ticks.

    python -m loadtest.entries [--save]
"""

from __future__ import annotations

import argparse
import random
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import uvloop
from redis.asyncio import Redis

from loadtest.report import Report
from registry.directory import Node
from registry.redis_store import RedisRegistry
from tests.support.valkey import RedisServer

#: Just above a step of the keys' table, where an entry's share of it is largest.
_USERS: Final = 150_000
_LOOKED_UP: Final = 1_000
_NODE: Final = Node("gateway-7c9d6f8b5-x2", "91f3c9d2e7b60a4c", "10.0.0.7:8081")
_TIMEOUT_SECONDS: Final = 5.0


class Bench:
    """A registry, the users that are written into it, and a client that asks for Redis's costs."""

    def __init__(self, url: str) -> None:
        self._registry = RedisRegistry(url, timeout_seconds=_TIMEOUT_SECONDS)
        self._redis: Redis = Redis.from_url(url)
        self.users = [str(uuid.UUID(int=random.getrandbits(128))) for _ in range(_USERS)]

    async def start(self) -> None:
        """Register the node."""
        await self._registry.heartbeat(_NODE, claim=True)
        await self._registry.refresh()

    async def write(self) -> None:
        """Write every user's entry."""
        await self._registry.write(_NODE, self.users, [])

    async def look_up(self) -> None:
        """Look every user up once."""
        for start in range(0, _USERS, _LOOKED_UP):
            await self._registry.lookup(self.users[start : start + _LOOKED_UP])

    async def memory(self) -> int:
        """Return the bytes that Redis has allocated."""
        return int((await self._info("memory"))["used_memory"])

    async def cpu_of(self, work: Callable[[], Awaitable[None]]) -> float:
        """Return the CPU time that Redis takes a user while `work` is done, in microseconds."""
        before = await self._cpu_seconds()
        await work()
        return (await self._cpu_seconds() - before) / _USERS * 1e6

    async def close(self) -> None:
        """Close all connections."""
        await self._registry.close()
        await self._redis.aclose()

    async def _cpu_seconds(self) -> float:
        spent = await self._info("cpu")
        return float(spent["used_cpu_user"]) + float(spent["used_cpu_sys"])

    async def _info(self, section: str) -> dict[str, Any]:
        found: dict[str, Any] = await self._redis.info(section)
        return found


async def _run(url: str, report: Report) -> None:
    bench = Bench(url)
    try:
        await bench.start()
        before = await bench.memory()
        written = await bench.cpu_of(bench.write)
        bytes_a_user = (await bench.memory() - before) / _USERS
        again = await bench.cpu_of(bench.write)
        looked_up = await bench.cpu_of(bench.look_up)
    finally:
        await bench.close()
    report.figures = {
        "users": _USERS,
        "bytes_a_user": round(bytes_a_user),
        "written_us": written,
        "asserted_us": again,
        "looked_up_us": looked_up,
    }
    report.line(
        f"{bytes_a_user:.0f} B of Redis a user; CPU of Redis: {written:.1f} µs a user written, "
        f"{again:.1f} µs written again, {looked_up:.2f} µs looked up"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.entries")
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    options = parser.parse_args(arguments)
    report = Report("entries")
    with RedisServer("valkey") as redis:
        uvloop.run(_run(redis.url, report))
    report.finish(save=options.save)


if __name__ == "__main__":
    main()
