"""A rolling restart as operators do it, with everything that is shipped: what is lost, what shows.

Three gateways behind HAProxy or nginx, two processors, a real Kafka and a Valkey, and Prometheus;
the balancers' and Prometheus's files are those of deploy/, with other ports, and scrapes every five
seconds. 2,000 clients of all transports come back by themselves, with their cursors. Under 500
messages a second each gateway is drained and started again, as docs/rolling.md has it: with nginx,
which does not ask `/readyz`, the file is without the gateway meanwhile, and reloaded.

Every message is accounted for as in `make drill` (tests/drill/accounts.py): none is lost, repeated
or out of order, no gap is told. The dashboard's queries show each drain, and all clients on nodes
at the end; no alert fires. Faults and their alerts are those of loadtest/alerts.py.

What could fool the drill: clients, publisher and servers share two cores, so nothing is timed.

    python -m loadtest.topology [--balancers haproxy nginx] [--clients 2000] [--rate 500] [--save]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Final

import uvloop

from loadtest.dashboard import DASHBOARD, Asked
from loadtest.kafka import real_kafka
from loadtest.report import Report
from tests.drill import faults
from tests.drill.faults import Fault, Lengths
from tests.drill.rows import Row, run
from tests.drill.stage import Node, Stage
from tests.support.balancer import Balancer
from tests.support.haproxy import haproxy
from tests.support.nginx import nginx
from tests.support.prometheus import Prometheus, prometheus

_SCRAPE_SECONDS: Final = 5.0
_DRAIN_SECONDS: Final = 20
#: Before the first restart, and behind the last: alerts wait for a minute or more.
_CALM_SECONDS: Final = 90.0
_LOOK_SECONDS: Final = 1.0
BALANCERS: Final[dict[str, Callable[..., AbstractContextManager[Balancer]]]] = {
    "haproxy": haproxy,
    "nginx": nginx,
}


async def restart_all(stage: Stage, lengths: Lengths) -> Fault:
    """Drain each gateway, and start it again, while Prometheus watches."""
    targets = {
        "pushgate-gateway": [node.process.internal_port for node in stage.nodes],
        "pushgate-processor": [processor.port for processor in stage.processors],
    }
    fired: set[str] = set()
    began = time.time()
    with ExitStack() as stack:
        watching = prometheus(targets, seconds=_SCRAPE_SECONDS)
        monitor = await stage.aside(partial(stack.enter_context, watching))
        async with asyncio.TaskGroup() as tasks:
            looking = tasks.create_task(_look(stage, monitor, fired))
            await asyncio.sleep(_CALM_SECONDS)
            fault = await _restart_each(stage, lengths)
            await asyncio.sleep(_CALM_SECONDS)
            looking.cancel()
        asked = Asked(monitor.url, seconds=time.time() - began, rate_seconds=60)
        for what in await stage.aside(lambda: list(_not_shown(asked, stage))):
            fault.wrong[what] = 1
    for alert in fired:
        fault.wrong[f"alert {alert}"] = 1
    return fault


async def _restart_each(stage: Stage, lengths: Lengths) -> Fault:
    """Drain all gateways, one after the other; nginx sends a draining gateway no clients."""
    if stage.plan.balancer is haproxy:
        return await faults.drain_all(stage, lengths)
    fault = Fault()
    for node in stage.nodes:
        await stage.aside(partial(_take_out, stage, node))
        await faults.drain(stage, fault, node)
        await stage.aside(node.process.start)
    await stage.aside(partial(_balance, stage, stage.nodes))
    fault.ended = time.monotonic()
    return fault


def _take_out(stage: Stage, node: Node) -> None:
    others = [each for each in stage.nodes if each is not node]
    _balance(stage, [*others, others[0]])  # as many lines as before


def _balance(stage: Stage, nodes: list[Node]) -> None:
    assert stage.balancer is not None
    stage.balancer.reload(*nodes)


async def _look(stage: Stage, monitor: Prometheus, fired: set[str]) -> None:
    """Note the alerts that fire, until cancelled."""
    while True:
        fired |= await stage.aside(monitor.firing)
        await asyncio.sleep(_LOOK_SECONDS)


def _not_shown(asked: Asked, stage: Stage) -> Iterator[str]:
    """Yield what the dashboard should show of the restarts, and does not."""
    panels = {panel.title: panel for row in DASHBOARD for panel in row.panels}

    def series(title: str) -> list[list[float]]:
        queries = panels[title].queries
        found = itertools.chain.from_iterable(asked.series(q.text, q.legend) for q in queries)
        return [[value for _, value in values] for _, values in found]

    told = [values for values in series("Clients told to reconnect") if max(values) > 0]
    if len(told) != len(stage.nodes):
        yield f"drains shown: {len(told)} of {len(stage.nodes)}"
    draining = series("Nodes that drain")
    if not draining or max(draining[0]) != 1 or draining[0][-1] != 0:
        yield f"nodes that drain, as shown: {draining}"
    connections = series("Connections")
    held = sum(len(user.clients) for user in stage.crowd.users)
    if not connections or connections[0][-1] < held:
        yield f"connections shown at the end: {connections and connections[0][-1]:g} of {held}"


ROW: Final = Row(
    name="rolling restart",
    title="all gateways are restarted, one after the other, under Prometheus",
    strike=restart_all,
    drain_seconds=_DRAIN_SECONDS,
)


def main() -> None:
    """Restart everything behind each balancer."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.topology")
    parser.add_argument("--balancers", nargs="+", choices=BALANCERS, default=list(BALANCERS))
    parser.add_argument("--clients", type=int, default=2_000)
    parser.add_argument("--rate", type=float, default=500.0, help="messages a second")
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    arguments = parser.parse_args()
    report = Report("topology")
    gc.disable()  # as in `make drill`: a collection would hold up all clients
    with real_kafka(None) as bootstrap:
        for name in arguments.balancers:
            plan = ROW.plan(arguments.clients, arguments.rate, balancer=BALANCERS[name])
            result = uvloop.run(run(ROW, plan, Lengths(), bootstrap, timed=False))
            findings = result.findings
            report.figures[name] = {
                "published": findings.published,
                "owed": findings.owed,
                "lost": findings.lost,
                "gaps": findings.gaps,
                "repeats": findings.repeated,
                "out_of_order": findings.disordered,
                "away_seconds": findings.away_seconds,
                "broken": result.broken,
            }
            report.line(
                f"{name}: {findings.published:,} messages, {findings.owed:,} copies owed, "
                f"{findings.lost} lost, {findings.gaps} gaps, {findings.repeated} repeats, "
                f"{findings.disordered} out of order; away {findings.away_seconds:.1f} s at most"
            )
            for phrase in result.broken or ["nothing lost, each drain shown, no alert"]:
                report.bound(f"{name}: {phrase}", holds=not result.broken)
    report.finish(save=arguments.save)


if __name__ == "__main__":
    main()
