"""Clients that come back while things fail as Hypothesis draws it: what `make drill-resumes` runs.

Two gateways, two processors, a real Kafka and a Valkey; tests/drill/resumes.py has the steps, and
tests/drill/owed.py what clients are owed. Each seed is a round of a few runs, of 25 steps each.
Every seed is printed before its round, and kept with `--save`; `--seed` runs one again.

What could fool the drill: a fault that clients get through without a reconnect shows nothing, so
the counts of steps are printed too, and what is owed is checked by tests/unit/drill/test_owed.py
with each kind of wrong.

    python -m loadtest.random_faults [--minutes 30] [--seed N] [--examples 12] [--save]
"""

from __future__ import annotations

import argparse
import secrets
import time
import traceback
from collections import Counter

from loadtest.processes import LoadtestError
from loadtest.report import Report
from tests.drill.cluster import Cluster, cluster_on
from tests.drill.resumes import run_from
from tests.support.kafka import start_kafka


def main() -> None:
    """Run rounds of new seeds until the time is over, or the round of one seed."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.random_faults")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, help="run the round of this seed alone")
    parser.add_argument("--examples", type=int, default=12, help="runs of a round")
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    arguments = parser.parse_args()
    report = Report("random-faults")
    kafka = start_kafka()
    try:
        if kafka.kind == "embedded":
            raise LoadtestError(f"a real Kafka is needed: {kafka.missing}")
        with cluster_on(kafka) as cluster:
            counts, seeds = _rounds(cluster, arguments, report)
    finally:
        kafka.stop()
    report.figures = {"steps": dict(counts), "seeds": seeds}
    report.line(
        f"{len(seeds)} seeds, {counts['settles']} runs, {counts.total()} steps: "
        f"{counts['publishes']} messages, {counts['kills']} kills, {counts['stops']} stops, "
        f"{counts['freezes']} times without Redis, {counts['client']} connections"
    )
    report.finish(save=arguments.save)


def _rounds(
    cluster: Cluster, arguments: argparse.Namespace, report: Report
) -> tuple[Counter[str], dict[int, str]]:
    """Return the counts of steps, and for each seed what came of it."""
    counts: Counter[str] = Counter()
    seeds: dict[int, str] = {}
    ends_at = time.monotonic() + 60.0 * arguments.minutes
    while not seeds or (arguments.seed is None and time.monotonic() < ends_at):
        number = secrets.randbelow(2**32) if arguments.seed is None else arguments.seed
        print(f"seed {number}", flush=True)
        try:
            run_from(number, cluster, counts, examples=arguments.examples)
            seeds[number] = "held"
        except Exception:
            seeds[number] = traceback.format_exc()
            print(seeds[number], flush=True)
        report.bound(
            f"seed {number}: nothing lost, repeated, out of order, no gap told",
            holds=seeds[number] == "held",
        )
    return counts, seeds


if __name__ == "__main__":
    main()
