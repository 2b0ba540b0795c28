"""Checks of this host, for a gateway that would run here: open files, and the limit of memory."""

from __future__ import annotations

from typing import Final

from gateway.settings import GatewaySettings
from pushgate.doctor.finding import Finding, Subject

HOST: Final = Subject("host")

#: A gateway for a few thousand clients; most distributions' soft limit is 1,024.
_FEW: Final = 10_000
#: What the process itself needs, before any connection.
_LEAST_BYTES: Final = 128 * 1024 * 1024


def judge_descriptors(settings: GatewaySettings, *, most: int) -> Finding:
    """Judge how many connections a process may hold here: `most`, by the limit of open files."""
    wanted = settings.max_connections
    cure = "raise the hard limit of open files (ulimit -Hn; LimitNOFILE, a container's ulimits)"
    if wanted is not None and wanted > most:
        return HOST.fault(
            f"PUSHGATE_MAX_CONNECTIONS is {wanted:,}, and the limit of open files here allows "
            f"{most:,}",
            why="clients beyond that are cut off without an answer",
            cure=f"{cure}; or lower PUSHGATE_MAX_CONNECTIONS",
        )
    if most < _FEW:
        return HOST.warning(
            f"the limit of open files here allows {most:,} connections a process",
            why="clients beyond that get 503",
            cure=f"{cure}; or run more (PUSHGATE_WORKERS)",
        )
    return HOST.ok(f"the limit of open files here allows {most:,} connections a process")


def judge_memory(settings: GatewaySettings, *, limit: int | None) -> Finding:
    """Judge the mark of memory above which a gateway here takes no client; `limit` is in bytes."""
    mark = settings.max_memory_bytes
    if limit is None:
        if mark:
            return HOST.ok(
                f"no limit of memory is found here; PUSHGATE_MAX_MEMORY_BYTES is {mark:,}"
            )
        return HOST.note(
            "no limit of memory is found here (control groups, v1 and v2)",
            why="a gateway takes clients until the kernel kills it",
            cure="set MemoryMax (systemd), the container's limit, or PUSHGATE_MAX_MEMORY_BYTES",
        )
    if mark == 0 or (mark is not None and mark * settings.workers > limit):
        return HOST.warning(
            f"PUSHGATE_MAX_MEMORY_BYTES is {mark:,} for each of {settings.workers} workers, the "
            f"limit of memory here {limit:,}",
            why="the kernel kills the gateway before it refuses clients",
            cure="leave PUSHGATE_MAX_MEMORY_BYTES unset: nine tenths of the limit, shared by the "
            "workers",
        )
    if limit < _LEAST_BYTES * settings.workers:
        return HOST.warning(
            f"the limit of memory here is {limit:,} bytes for {settings.workers} workers",
            why="a gateway has hardly room for clients, and refuses them",
            cure="raise the limit: 128 MiB a worker, and some kilobytes a client",
        )
    return HOST.ok(f"a limit of memory is found: {limit:,} bytes")
