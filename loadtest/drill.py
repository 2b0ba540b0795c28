"""Faults under load, with a ledger that excuses nothing: what `make drill` runs.

Three gateways behind HAProxy, two processors, a real Kafka and a Valkey carry 400 messages a second
to 1,500 clients (60 % WebSocket of both subprotocols, 30 % SSE, 10 % long-poll; every tenth user
has two) that come back by themselves when they lose their connection, with their cursor where they
have one. Row by row something fails: a gateway is killed, frozen or drained, a processor is killed,
Redis is frozen, a network is silent in one way or in both while users come and others move, a host
vanishes, one user never reads. Afterwards every message
that Kafka acknowledged is compared with what each client got and with what the outcomes topic says.
Every row starts everything anew.

What is counted is defined in tests/drill/accounts.py. In short: a message is lost if a client that
was connected when the message was published, or came back while its node counted (its lease and
PUSHGATE_LOST_NODE_SECONDS), has not got it. A client that resumes is owed everything from its first
connection on, once and in order, and no gap is told. No connection may end that the fault does not
concern. Two things are counted apart. "Between": what only a resume can bring, missing at a client
without one whose connection the fault did end. "Unregistered": what was published for a client
that a gateway without Redis had let in, and could not register yet.

What could fool the drill: clients and publisher are in one process, and share two cores with the
servers, so that p99 is of the machine as much as of the gateways; it is compared within one row
only. In that process Python's garbage collector is off: it would hold up all clients for 0.1 s,
to look at what they have got. Growth is that of the faster growing processor, between the first and
the last quarter of the fault's time, and that of the largest gateway over the largest before. It
counts from a minute of load on, and is 0 in rows that end before.

    python -m loadtest.drill [--rows 1 4 …] [--clients 1500] [--rate 400] [--kinds sse …] [--save]
"""

from __future__ import annotations

import argparse
import gc
import os
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Final

import uvloop

from loadtest.processes import LoadtestError
from loadtest.report import Report
from tests.drill.accounts import Findings
from tests.drill.crowd import MIX
from tests.drill.faults import Lengths
from tests.drill.kinds import KINDS
from tests.drill.rows import ROWS, Result, run
from tests.support.kafka import start_kafka

_COLUMNS: Final = (
    "row",
    "published",
    "copies owed",
    "lost",
    "gaps",
    "between",
    "unregistered",
    "told wrongly",
    "out of order",
    "repeats",
    "ends",
    "away s",
    "p99 ms",
    "made up s",
    "MB/min",
    "gateways MB/min",
    "peak MB",
)


def cells(result: Result) -> list[str]:
    """Return a row of the table, a text for each column."""
    findings = result.findings
    p99s = [f"{1000 * without:.1f} → {1000 * during:.1f}" for without, during in result.p99s]
    return [
        result.row.name,
        f"{findings.published:,}",
        f"{findings.owed:,}",
        str(findings.lost),
        _gaps(findings),
        _in_words(findings.between),
        str(findings.unregistered),
        _in_words(findings.told_wrongly),
        str(findings.disordered),
        str(findings.repeated),
        str(findings.ended_sessions),
        f"{findings.away_seconds:.1f}",
        f"{1000 * result.calm_p99:.1f} calm"
        + (f"; {', '.join(p99s)} ({result.p99_ratio:.2f} ×)" if p99s else ""),
        f"{result.recovered_seconds:.1f}",
        f"{result.growth_mb_a_minute:.2f}",
        f"{result.gateway_growth_mb_a_minute:.2f}",
        f"{result.peak_mb:.0f}",
    ]


def _gaps(findings: Findings) -> str:
    missing = f" ({findings.behind_gaps} copies)" if findings.behind_gaps else ""
    return f"{findings.gaps}{missing}"


def _in_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in counts.items() if count) or "0"


def figures(result: Result) -> dict[str, object]:
    """Return a row's figures for the JSON file."""
    findings = result.findings
    return {
        "title": result.row.title,
        **dict(zip(_COLUMNS[1:], cells(result)[1:], strict=True)),
        "outcomes": dict(findings.told),
        "broken": result.broken,
    }


def main() -> None:
    """Run the rows one after the other, and print a table of them."""
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(prog="python -m loadtest.drill")
    parser.add_argument("--rows", nargs="+", choices=names, default=names, help="default: all")
    parser.add_argument("--clients", type=int, default=1_500)
    parser.add_argument("--rate", type=float, default=400.0, help="messages a second")
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, help="the clients' kinds, in turn; default: as above"
    )
    parser.add_argument("--kafka", help="bootstrap servers; a Kafka of your own")
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    arguments = parser.parse_args()
    report = Report("-".join(("drill", f"{arguments.rate:g}", *(arguments.kinds or ()))))
    gc.disable()
    table = [_COLUMNS, ("---",) * len(_COLUMNS)]
    with ExitStack() as stack:
        override = {"PUSHGATE_TEST_KAFKA": arguments.kafka} if arguments.kafka else {}
        kafka = start_kafka({**os.environ, **override})
        stack.callback(kafka.stop)
        if kafka.kind == "embedded":
            raise LoadtestError(f"a real Kafka is needed: {kafka.missing}")
        for row in (row for row in ROWS if row.name in arguments.rows):
            print(f"row {row.name}: {row.title}", flush=True)
            plan = row.plan(arguments.clients, arguments.rate, mix=arguments.kinds or MIX)
            result = uvloop.run(run(row, plan, Lengths(), kafka.bootstrap))
            report.figures[row.name] = figures(result)
            table.append(tuple(cells(result)))
            for phrase in result.broken or ["nothing lost, nothing told wrongly"]:
                report.bound(f"row {row.name}: {phrase}", holds=not result.broken)
    print("\n".join(f"| {' | '.join(line)} |" for line in table), flush=True)
    held = len(arguments.rows) - sum(bool(r["broken"]) for r in report.figures.values())  # type: ignore[index]
    report.line(f"{held} of {len(arguments.rows)} rows hold at {arguments.rate:g} messages/s")
    report.finish(save=arguments.save)


if __name__ == "__main__":
    main()
