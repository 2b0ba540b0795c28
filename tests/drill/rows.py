"""The rows of the drill: which fault, over which load, and what must hold.

No row excuses anything: no message is lost, told wrongly, out of order or twice on a connection, no
gap is told, and every client is back in the end. (Where docs/protocol.md promises less, the row
says so: `tells_gaps`, `tells_twice`. A gap that is told excuses no message that is missing.) Some
rows bound more.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

from tests.drill import faults
from tests.drill.accounts import Findings, last_arrival, latencies
from tests.drill.crowd import MIX, percentile
from tests.drill.faults import LEASE_SECONDS, MOVERS, Fault, Lengths, Pair, Period
from tests.drill.stage import Hop, Plan, Stage, staged

#: After a fault, and the time that a lost node has: how long everything may take to arrive and to
#: be told.
_SETTLE_SECONDS: Final = 30.0
#: How long processors grow under load on purpose: until their windows are full, 15 s behind
#: PUSHGATE_RESUME_SECONDS.
_FILL_SECONDS: Final = 140.0
#: How long processes may grow under a fault: the clients of the first seven gateways that are
#: killed take 2–10 MB for good, as they come back all at once (20 kills at 5,000 messages a second:
#: 160, 163, 166, 171, 171, 172, 171, 171, 171 MB in steps of 20 s from the first kill on).
_WARM_SECONDS: Final = 80.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What some rows bound beside lost, wrong, repeated and disordered messages."""

    p99_ratio: float | None = None  # in the fault / before it, of users whom it does not concern
    away_seconds: float | None = None  # between two connections of a client
    recovered_seconds: float | None = None  # from the fault's end to the last late message
    registered_seconds: float | None = None  # from the fault's end until the registry has everybody
    growth_mb_a_minute: float | None = None  # of each processor; of the largest gateway


Strike = Callable[[Stage, Lengths], Awaitable[Fault]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row: `name` is its number in the list of faults, `title` what fails."""

    name: str
    title: str
    strike: Strike
    bounds: Bounds = field(default_factory=Bounds)
    hops: frozenset[Hop] = frozenset()
    heartbeat_seconds: float = 25.0
    drain_seconds: int = 0
    latecomers: int = 0
    tells_gaps: bool = False  # a lease was away for longer than the node counts
    tells_twice: bool = False  # processors crash: a report may come twice

    def plan(self, clients: int, rate: float, *, mix: Sequence[str] = MIX, **others: Any) -> Plan:
        """Return the plan of the row with so many clients, of `mix`, and messages a second."""
        return Plan(
            clients=clients,
            rate=rate,
            hops=self.hops,
            heartbeat_seconds=self.heartbeat_seconds,
            drain_seconds=self.drain_seconds,
            latecomers=self.latecomers,
            mix=mix,
            **others,
        )


ROWS: Final = (
    Row(
        name="1",
        title="a gateway is killed",
        strike=faults.kill,
        bounds=Bounds(p99_ratio=2.0, away_seconds=6.0),
    ),
    Row(
        name="2",
        title="a random gateway is killed every 10 s, 20 times",
        strike=faults.kill_often,
        bounds=Bounds(p99_ratio=2.0, away_seconds=6.0, growth_mb_a_minute=1.0),
    ),
    Row(
        name="3",
        title="all gateways drain, one after the other",
        strike=faults.drain_all,
        drain_seconds=20,
    ),
    Row(name="4", title="a gateway is frozen for 15 s", strike=faults.freeze),
    Row(
        name="5",
        title="Redis is frozen for 10 s",
        strike=faults.freeze_redis,
        bounds=Bounds(recovered_seconds=2.0),
    ),
    Row(
        name="5-moving",
        title="Redis is frozen for 10 s, and users move",
        strike=faults.freeze_redis_under_movers,
    ),
    Row(
        name="8",
        title="a random processor is killed every 10 s, 20 times, and users move",
        strike=faults.kill_processors,
        tells_twice=True,
    ),
    Row(
        name="10-processor",
        title="one-way partitions between processors and two gateways, 10 s",
        strike=faults.part_from_processors,
        bounds=Bounds(recovered_seconds=5.0),
        hops=frozenset({Hop.INTERNAL}),
        latecomers=MOVERS,
    ),
    Row(
        name="10-redis",
        title="one-way partitions between two gateways and Redis, 10 s",
        strike=faults.part_from_redis,
        bounds=Bounds(recovered_seconds=5.0, registered_seconds=5.0),
        hops=frozenset({Hop.REDIS}),
        latecomers=MOVERS,
    ),
    Row(
        name="13",
        title="one user never reads",
        strike=faults.never_read,
        bounds=Bounds(p99_ratio=1.3),
    ),
    Row(
        name="26",
        title="a gateway without Redis for 60 s",
        strike=faults.cut_from_redis,
        tells_gaps=True,
        bounds=Bounds(registered_seconds=5.0),
        hops=frozenset({Hop.REDIS}),
        latecomers=MOVERS,
    ),
    Row(
        name="27-frozen",
        title="a gateway is frozen for 40 s",
        strike=faults.freeze_long,
        tells_gaps=True,
    ),
    Row(
        name="27-vanished",
        title="a gateway's host vanishes",
        strike=faults.vanish,
        hops=frozenset(Hop),
        heartbeat_seconds=5.0,
    ),
)


@dataclass(slots=True)
class Result:
    """A row's figures. `broken` has a phrase for everything that does not hold."""

    row: Row
    plan: Plan
    findings: Findings
    calm_p99: float  # seconds of all users, before the fault
    p99s: list[tuple[float, float]]  # seconds without and with the fault, a pair after the other
    recovered_seconds: float
    registered_seconds: float
    growth_mb_a_minute: float
    gateway_growth_mb_a_minute: float
    peak_mb: float  # of the largest process
    broken: list[str] = field(default_factory=list)

    @property
    def p99_ratio(self) -> float:
        """p99 of users whom the fault does not concern, with it / without it: the pairs' median.

        NaN where the fault concerns everybody.
        """
        ratios = [during / without for without, during in self.p99s]
        return median(ratios) if ratios else math.nan


async def run(
    row: Row, plan: Plan, lengths: Lengths, bootstrap: str, *, timed: bool = True
) -> Result:
    """Strike while messages flow, and judge what became of them.

    Without `timed`, bounds of a row that depend on the machine's speed are not looked at.
    """
    async with staged(plan, bootstrap) as stage:
        began = time.monotonic()
        fills = timed and row.bounds.growth_mb_a_minute is not None
        async with stage.publishing(stage.crowd.users, plan.rate):
            await asyncio.sleep(max(lengths.baseline, _FILL_SECONDS if fills else 0.0))
            fault = await row.strike(stage, lengths)
        warm = fault.began + _WARM_SECONDS
        grown = stage.processor_growth(warm), stage.gateway_growth(warm)
        findings = await stage.settle(LEASE_SECONDS + plan.lost_node_seconds + _SETTLE_SECONDS)
        findings.told_wrongly.update(fault.wrong)
        if row.tells_twice:
            del findings.told_wrongly["told twice"]
        result = Result(
            row,
            plan,
            findings,
            _p99([Period(stage.crowd.users, began + lengths.baseline / 4, fault.began)]),
            [
                (_p99(pair.without), _p99(pair.during))
                for pair in _pairs(fault, since=began + lengths.baseline / 4)
            ],
            max(0.0, last_arrival(stage.crowd.users, published_before=fault.ended) - fault.ended),
            fault.registered_seconds,
            *grown,
            max(size for samples in stage.memory.values() for _, size in samples) / 1e6,
        )
    result.broken = [*broken(result), *(_timed(result) if timed else ())]
    return result


def _pairs(fault: Fault, *, since: float) -> list[Pair]:
    """Return what is to be compared; `since` is when the load was warm."""
    if not fault.others:
        return fault.pairs
    users = {user for period in fault.others for user in period.users}
    return [Pair([Period(users, since, fault.began)], fault.others), *fault.pairs]


def _p99(periods: Collection[Period]) -> float:
    seconds = [
        took
        for period in periods
        for took in latencies(period.users, since=period.since, until=period.until)
    ]
    return percentile(seconds, 0.99)


def broken(result: Result) -> Iterator[str]:
    """Give in words what does not hold, and has to in every row."""
    findings = result.findings
    wrong = {
        "lost": findings.lost,
        "missing behind a gap": findings.behind_gaps,
        "gaps told": 0 if result.row.tells_gaps else findings.gaps,
        **findings.told_wrongly,
        "out of order": findings.disordered,
        "twice on a connection": findings.repeated,
        "clients never back": findings.never_back,
        "connections that ended": findings.strays,
    }
    for what, count in wrong.items():
        if count:
            examples = findings.examples.get(what)
            yield f"{count} {what}" + (f", as {', '.join(examples)}" if examples else "")
    if not findings.owed:
        yield "nothing was published that a client should get"


def _timed(result: Result) -> Iterator[str]:
    bounds = result.row.bounds
    measured = {
        "p99 of the others × ": (result.p99_ratio, bounds.p99_ratio),
        f"seconds until the last client was back ({result.findings.last_back}): ": (
            result.findings.away_seconds,
            bounds.away_seconds,
        ),
        "seconds until all was made up for: ": (result.recovered_seconds, bounds.recovered_seconds),
        "seconds until the registry had everybody: ": (
            result.registered_seconds,
            bounds.registered_seconds,
        ),
        "MB a minute of a processor: ": (result.growth_mb_a_minute, bounds.growth_mb_a_minute),
        "MB a minute of the largest gateway: ": (
            result.gateway_growth_mb_a_minute,
            bounds.growth_mb_a_minute,
        ),
    }
    for what, (figure, bound) in measured.items():
        if bound is not None and not figure <= bound:  # NaN breaks a bound, too
            yield f"{what}{figure:.2f} > {bound:g}"
