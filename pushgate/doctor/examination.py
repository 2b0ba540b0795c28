"""All checks, run at once: the report of `pushgate doctor`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from gateway.connections.admission import most_connections
from gateway.connections.cgroup import memory_limit
from pushgate.doctor.certificates import CERTIFICATES, check_files, check_servers
from pushgate.doctor.clients import (
    ORIGINS,
    TOKENS,
    check_token,
    judge_origins,
    judge_secrets,
)
from pushgate.doctor.deadlines import Check, findings_of
from pushgate.doctor.finding import Finding
from pushgate.doctor.host import HOST, judge_descriptors, judge_memory
from pushgate.doctor.kafka import KAFKA, check_kafka
from pushgate.doctor.nodes import NODES, check_nodes
from pushgate.doctor.redis import REDIS, check_redis
from pushgate.doctor.through import BALANCER, check_through
from pushgate.settings import DoctorSettings

#: What opening and ending the connections through a balancer may take beside their time.
_MORE_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True)
class Path:
    """A way to the gateways' public port: its URL, a token, and for how many seconds to look."""

    url: str
    token: str
    seconds: float


async def examine(
    settings: DoctorSettings,
    *,
    token: str | None = None,
    path: Path | None = None,
    clock: Callable[[], float] = time.monotonic,
    wall: Callable[[], float] = time.time,
) -> list[Finding]:
    """Return the findings of all checks, in 15 s, and with a `path` its seconds and 16 more.

    `token` is a client's to be verified. `clock` gives monotonic seconds, `wall` Unix time.
    """

    async def of_host() -> Sequence[Finding]:
        return [
            judge_descriptors(settings, most=most_connections()),
            judge_memory(settings, limit=memory_limit()),
        ]

    async def of_certificates() -> Sequence[Finding]:
        now = datetime.fromtimestamp(wall(), UTC)
        url = None if path is None else path.url
        return [
            *check_files(settings, now=now),
            *await check_servers(settings, through=url, now=now),
        ]

    async def of_origins() -> Sequence[Finding]:
        return list(judge_origins(settings))

    async def of_tokens() -> Sequence[Finding]:
        return [*judge_secrets(settings), *await check_token(settings, token, now=wall())]

    checks = [
        Check(REDIS, lambda: check_redis(settings, clock=clock, wall=wall)),
        Check(KAFKA, lambda: check_kafka(settings, wall=wall)),
        Check(NODES, lambda: check_nodes(settings, clock=clock, wall=wall)),
        Check(HOST, of_host),
        Check(CERTIFICATES, of_certificates),
        Check(TOKENS, of_tokens),
        Check(ORIGINS, of_origins),
    ]
    if path is not None:
        checks.append(_through(path, settings.heartbeat_seconds, clock))
    return await findings_of(checks)


def _through(path: Path, heartbeat_seconds: float, clock: Callable[[], float]) -> Check:
    return Check(
        BALANCER,
        lambda: check_through(
            path.url,
            path.token,
            seconds=path.seconds,
            heartbeat_seconds=heartbeat_seconds,
            clock=clock,
        ),
        path.seconds + _MORE_SECONDS,
    )
