"""How much a number of connections and messages needs: the tables of docs/sizing.md.

The measured figures come from results/; the planned ones, with which the tables are calculated,
are rounded up from them, since real machines do other work too. `--write` puts the tables into the
page.

    python -m loadtest.sizing [--write]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gateway.settings import GatewaySettings
from processor.settings import ProcessorSettings
from registry.directory import TIMINGS

RESULTS: Final = Path(__file__).with_name("results")
PAGE: Final = Path(__file__).parents[1] / "docs" / "sizing.md"
#: Connections of one worker: a kill or a drain of it then costs the others little.
CONNECTIONS_A_WORKER: Final = 50_000
#: A processor's messages in a second, at which half of a core is left.
MESSAGES_A_PROCESSOR: Final = 25_000
#: Memory of a process before its connections and messages.
PROCESS_BYTES: Final = 110_000_000
#: The kernel's part of an idle connection, in slab (10,000 connections, Linux 6.18).
KERNEL_BYTES: Final = 4_500
#: What waits in a processor at most, beside its window: 128 MiB for silent gateways, and 16 MiB for
#: each of the dead-letter and outcomes topics.
WAITING_BYTES: Final = 160 * 1024 * 1024
#: The window's index, a message.
INDEX_BYTES: Final = 16
#: A record beside its payload, in Kafka.
RECORD_BYTES: Final = 100
#: A Redis does all of its work on one core; half of it is left for what else comes.
REDIS_CORES: Final = 0.5
_GB: Final = 1e9


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured figure: what it is, where its run is kept, and the value that is planned with."""

    name: str
    result: str
    read: Callable[[dict[str, Any]], float]
    planned: float
    unit: str

    @property
    def measured(self) -> float:
        """Return the figure of the last saved run."""
        kept = json.loads((RESULTS / f"{self.result}.json").read_text("utf-8"))
        return self.read(kept["figures"])


IDLE: Final = Figure(
    "memory of an idle WebSocket in the gateway", "idle",
    lambda f: f["ws"]["epoll"]["anonymous"], 1_024, "B",
)  # fmt: skip
TLS: Final = Figure(
    "the same, over TLS that ends in the gateway", "idle",
    lambda f: f["ws over TLS"]["tls"]["anonymous"], 50_000, "B",
)  # fmt: skip
PARKED: Final = Figure(
    "a long-poll client that has had messages", "idle",
    lambda f: f["poll"]["epoll"]["anonymous_after_burst"], 13_000, "B",
)  # fmt: skip
HANDSHAKE: Final = Figure(
    "CPU of a gateway a handshake, with token and registration", "handshakes",
    lambda f: f["ws"]["gateway_us"], 300, "µs",
)  # fmt: skip
HEARTBEAT: Final = Figure(
    "CPU of a gateway a heartbeat", "hold",
    lambda f: f["cpu_share"] * f["seconds"] / f["pings"] * 1e6, 30, "µs",
)  # fmt: skip
DELIVERED: Final = Figure(
    "CPU of a gateway a message, in large batches", "throughput",
    lambda f: f["throughput"]["gateway_us"], 20, "µs",
)  # fmt: skip
FORWARDED: Final = Figure(
    "CPU of a processor a message, in large batches", "throughput",
    lambda f: f["throughput"]["processor_us"], 20, "µs",
)  # fmt: skip
ENTRY: Final = Figure(
    "memory of Redis a connected user", "entries", lambda f: f["bytes_a_user"], 250, "B"
)
WRITTEN: Final = Figure(
    "CPU of Redis a user written", "entries",
    lambda f: max(f["written_us"], f["asserted_us"]), 15, "µs",
)  # fmt: skip
LOOKED_UP: Final = Figure(
    "CPU of Redis a user looked up", "entries", lambda f: f["looked_up_us"], 2, "µs"
)
FIGURES: Final = (
    IDLE, TLS, PARKED, HANDSHAKE, HEARTBEAT, DELIVERED, FORWARDED, ENTRY, WRITTEN, LOOKED_UP,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Load:
    """Users with one connection each, and messages of one size to single users."""

    connections: int
    messages_a_second: float
    payload_bytes: int = 200


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a load needs, in numbers of processes, cores and bytes."""

    workers: int
    gateway_cores: float
    gateway_bytes: float
    processors: int
    processor_bytes: float  # of each
    redis_bytes: float
    redis_cores: float
    kafka_bytes_a_second: float
    partitions: int

    @property
    def redis_masters(self) -> int:
        """Return how many masters share the work of Redis."""
        return math.ceil(self.redis_cores / REDIS_CORES)


def sizes(load: Load) -> Sizes:
    """Calculate what a load needs, with the planned figures and the default settings."""
    gateway, processor = GatewaySettings.model_fields, ProcessorSettings.model_fields
    age = gateway["max_age_seconds"].default - gateway["max_age_jitter_seconds"].default / 2
    connects = load.connections / age
    heartbeats = load.connections / gateway["heartbeat_seconds"].default
    workers = _with_spare(load.connections / CONNECTIONS_A_WORKER)
    processors = _with_spare(load.messages_a_second / MESSAGES_A_PROCESSOR)
    # A user who reconnects is written by two nodes; each entry is asserted now and then.
    writes = 2 * connects + load.connections / TIMINGS.reassertion_seconds
    window = INDEX_BYTES * load.messages_a_second * processor["resume_seconds"].default
    return Sizes(
        workers=workers,
        gateway_cores=(
            connects * HANDSHAKE.planned
            + heartbeats * HEARTBEAT.planned
            + load.messages_a_second * DELIVERED.planned
        )
        / 1e6,
        gateway_bytes=load.connections * (IDLE.planned + KERNEL_BYTES) + workers * PROCESS_BYTES,
        processors=processors,
        processor_bytes=PROCESS_BYTES
        + processor["resume_bytes"].default
        + WAITING_BYTES
        + window / (processors - 1),
        redis_bytes=load.connections * ENTRY.planned,
        redis_cores=(writes * WRITTEN.planned + load.messages_a_second * LOOKED_UP.planned) / 1e6,
        kafka_bytes_a_second=load.messages_a_second * (load.payload_bytes + RECORD_BYTES),
        partitions=3 * processors,
    )


def _with_spare(needed: float) -> int:
    """Return a number of processes of which a tenth, or one, may be missing."""
    return max(1, math.ceil(needed)) + max(1, math.ceil(needed / 10))


def figures_table() -> str:
    """Return the table of measured and planned figures."""
    rows = (
        (figure.name, _number(figure.measured, figure.unit), _number(figure.planned, figure.unit),
         f"[{figure.result}](../loadtest/results/{figure.result}.json)")
        for figure in FIGURES
    )  # fmt: skip
    return _table(("figure", "measured", "planned with", "run"), rows)


def sizes_table(loads: Sequence[Load]) -> str:
    """Return the table of what loads need, a column each."""
    found = [sizes(load) for load in loads]
    lines: list[tuple[str, Callable[[Sizes], str]]] = [
        ("gateway workers (one a core)", lambda s: f"{s.workers:,}"),
        ("… cores in use", lambda s: _rounded(s.gateway_cores)),
        ("… memory of all, with the kernel's", lambda s: f"{_rounded(s.gateway_bytes / _GB)} GB"),
        ("processors", lambda s: f"{s.processors:,}"),
        ("… memory of each", lambda s: f"{_rounded(s.processor_bytes / _GB)} GB"),
        ("Redis, memory", lambda s: f"{_rounded(s.redis_bytes / _GB)} GB"),
        ("… masters", lambda s: f"{s.redis_masters:,}"),
        ("Kafka, in, and as much out", lambda s: f"{_rounded(s.kafka_bytes_a_second / 1e6)} MB/s"),
        ("… partitions", lambda s: f"{s.partitions:,}"),
    ]
    head = ("", *(f"{load.connections:,}" for load in loads))
    rates = ("messages a second", *(f"{load.messages_a_second:,.0f}" for load in loads))
    return _table(head, [rates, *((name, *map(say, found)) for name, say in lines)])


def _number(value: float, unit: str) -> str:
    return f"{_rounded(value)} {unit}"


def _rounded(value: float) -> str:
    """Return a number with two digits, or with all digits before the point."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _table(head: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


#: One message a minute for every user.
LOADS: Final = tuple(Load(n, n / 60) for n in (10_000, 1_000_000, 100_000_000))


def page(text: str) -> str:
    """Return the page with its tables as they are calculated now."""
    for name, table in (("figures", figures_table()), ("sizes", sizes_table(LOADS))):
        before, start, rest = text.partition(f"<!-- {name} -->\n")
        text = before + start + table + rest[rest.index("<!-- end -->") :]
    return text


def main() -> None:
    """Print the tables, or write them into the page."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.sizing")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/sizing.md")
    if parser.parse_args().write:
        PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
    else:
        print(figures_table(), sizes_table(LOADS), sep="\n")


if __name__ == "__main__":
    main()
