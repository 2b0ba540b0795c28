"""Checks of Redis: version, memory, replication, Cluster, latency, writes."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from pushgate.doctor.clocks import Reading, judge
from pushgate.doctor.deadlines import Check, findings_of
from pushgate.doctor.finding import Finding, Severity, Subject
from pushgate.doctor.ports import Listener, listener_at
from registry.directory import RegistryRefuses, RegistryUnavailable
from registry.networks import authority
from registry.redis_link import RedisLink, addresses
from registry.redis_store import RedisRegistry
from registry.refusals import CURES, NO_PERMISSION
from registry.settings import RegistrySettings

REDIS: Final = Subject("redis")

#: The version to whose commands the registry is limited.
_OLDEST: Final = (6, 2)
#: How long a question may take here, even if PUSHGATE_REDIS_TIMEOUT_SECONDS allows more.
_MOST_SECONDS: Final = 3.0
_ROUND_TRIPS: Final = 9
#: The pause between round trips: the doctor's other checks, at once with these, keep the CPU busy
#: for some 0.1 s here and there, which is to spoil few of them.
_PAUSE_SECONDS: Final = 0.1
#: A look-up is on the way of every message: above this, latency is felt.
_SLOW_SECONDS: Final = 0.02
_FULL: Final = 0.8
#: Any key of the registry: on a Cluster the master with the key is asked for the time.
_KEY: Final = b"{pg-nodes}names"
#: Words of errors about a wrong or missing login (Redis's, and redis-py's own words).
_LOGIN_ERRORS: Final = (
    "WRONGPASS",
    "NOAUTH",
    "uthentication",
    "invalid username-password",
    "invalid password",
    "client already authenticated",
)

_Info = Mapping[str, Any]


async def check_redis(
    settings: RegistrySettings, *, clock: Callable[[], float], wall: Callable[[], float]
) -> Sequence[Finding]:
    """Look at Redis; `clock` gives monotonic seconds, `wall` Unix time in seconds."""
    timeout_seconds = min(settings.redis_timeout_seconds, _MOST_SECONDS)
    link = RedisLink(
        settings.redis_url, timeout_seconds=timeout_seconds, access=settings.redis_access
    )
    try:
        infos = await link.ask(lambda: link.info("default"))
    except RegistryRefuses as refusal:
        if refusal.code != NO_PERMISSION:
            return [_refused(refusal)]
        hidden = REDIS.note(
            "this account may not ask INFO: version, eviction and replication are unknown",
            why="an old version, an eviction policy, or a replica at the URL loses entries",
            cure="allow INFO to the account in PUSHGATE_REDIS_URL",
        )
        return [hidden, *await _checked_live(link, settings, clock, wall)]
    except RegistryUnavailable as error:
        return await _absence(settings, error)
    else:
        return [
            *judge_servers(settings.redis_url, infos),
            *await _checked_live(link, settings, clock, wall),
        ]
    finally:
        await link.close()


async def _checked_live(
    link: RedisLink,
    settings: RegistrySettings,
    clock: Callable[[], float],
    wall: Callable[[], float],
) -> list[Finding]:
    """Look at the behaviour of Redis, beside the words of INFO."""
    seconds = 2 * _MOST_SECONDS
    checks = [
        Check(REDIS, lambda: _check_answers(link, clock, wall), seconds),
        Check(REDIS, lambda: _check_writes(settings), seconds),
        Check(REDIS, lambda: _check_addresses(settings.redis_url), seconds),
    ]
    if link.is_cluster:
        checks.append(Check(REDIS, lambda: _check_cluster(link), seconds))
    return await findings_of(checks)


def judge_servers(url: str, infos: Sequence[_Info]) -> list[Finding]:
    """Judge the INFO of a server, or of the masters of a Cluster."""
    found = list(_of_the_system(url, infos))
    for info in infos:
        found += [*_of_memory(info), *_of_replication(info), *_of_disk(info)]
    return list(dict.fromkeys(found))  # masters of one Cluster mostly say the same


def _of_the_system(url: str, infos: Sequence[_Info]) -> Iterator[Finding]:
    names = sorted({_name(info) for info in infos})
    masters = "one server" if "+cluster" not in url else f"a Cluster, {len(infos)} masters answer"
    yield REDIS.ok(f"{', '.join(names)}: {masters}")
    for info in infos:
        version = str(info.get("redis_version", "0"))
        if tuple(map(int, version.split(".")[:2])) < _OLDEST:
            yield REDIS.fault(
                f"version {version}",
                why="scripts of the registry use commands of Redis 6.2",
                cure="upgrade to Redis 6.2 or later, or Valkey",
            )
        if info.get("cluster_enabled") and "+cluster" not in url:
            yield REDIS.fault(
                "the server is part of a Cluster, and PUSHGATE_REDIS_URL names a single server",
                why="keys of other masters are refused, so most users are never found",
                cure="write redis+cluster:// in PUSHGATE_REDIS_URL",
            )


def _name(info: _Info) -> str:
    """Return name and version of a server; Valkey gives a version of Redis beside its own."""
    valkey = info.get("valkey_version")
    return f"Redis {info.get('redis_version', '?')}" if valkey is None else f"Valkey {valkey}"


def _of_memory(info: _Info) -> Iterator[Finding]:
    policy, most = info.get("maxmemory_policy", "noeviction"), int(info.get("maxmemory", 0))
    evicted = int(info.get("evicted_keys", 0))
    if policy != "noeviction":
        yield REDIS.warning(
            f"maxmemory-policy is {policy}; {evicted} keys were evicted so far",
            why="an evicted user is not found until every gateway has registered all users again",
            cure="set Redis's maxmemory-policy to noeviction",
        )
    if most and int(info.get("used_memory", 0)) > _FULL * most:
        yield REDIS.warning(
            f"{int(info['used_memory']) / most:.0%} of maxmemory are in use",
            why="a full Redis refuses writes: users who connect then are not found",
            cure="raise Redis's maxmemory, or remove keys that are not pushgate's ({pg-*)",
        )


def _of_replication(info: _Info) -> Iterator[Finding]:
    if info.get("role") == "slave":
        yield REDIS.fault(
            "the server is a replica",
            why="a replica takes no writes, so nobody can be registered",
            cure="let PUSHGATE_REDIS_URL name the master, or the Sentinels (redis+sentinel://)",
        )
        return
    replicas = [value for key, value in info.items() if key[:5] == "slave" and key[5:].isdigit()]
    behind = [each for each in replicas if each.get("state") != "online"]
    if behind:
        yield REDIS.warning(
            f"{len(behind)} of {len(replicas)} replicas are not in step",
            why="a failover to such a replica loses the newest entries",
            cure="look at the log of the replica (link to the master, masterauth, disk)",
        )
    elif not replicas:
        yield REDIS.note(
            "a master has no replica",
            why="when its host is lost no message finds a user, until another Redis is at the URL",
            cure="run a replica behind Sentinels (redis+sentinel://) or a Cluster; entries need no "
            "backup",
        )


def _of_disk(info: _Info) -> Iterator[Finding]:
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        yield REDIS.warning(
            "the last snapshot to disk failed",
            why="with stop-writes-on-bgsave-error (the default) Redis refuses writes meanwhile",
            cure=CURES["MISCONF"],
        )


def judge_latency(seconds: Sequence[float], timeout_seconds: float) -> Finding:
    """Judge the round trips of short commands, in seconds."""
    median, slowest = statistics.median(seconds), max(seconds)
    slow = f"the slowest of {len(seconds)}: {slowest * 1e3:.1f}"
    figures = f"{median * 1e3:.1f} ms for a short command ({slow})"
    if median <= _SLOW_SECONDS and slowest < timeout_seconds / 2:
        return REDIS.ok(figures)
    return REDIS.warning(
        figures,
        why="every batch of messages waits for a look-up, and after "
        f"PUSHGATE_REDIS_TIMEOUT_SECONDS ({timeout_seconds:g}) Redis counts as silent",
        cure="run Redis in the same zone; look at its SLOWLOG, swap, and the CPU of its host",
    )


async def _check_answers(
    link: RedisLink, clock: Callable[[], float], wall: Callable[[], float]
) -> Sequence[Finding]:
    """Measure round trips, and compare clocks by the fastest."""
    seconds: list[float] = []
    readings: list[tuple[float, Reading]] = []
    try:
        for _ in range(_ROUND_TRIPS):
            began = clock()
            reply = await link.ask(lambda: link.each([(_KEY, ("TIME",))]))
            seconds.append(clock() - began)
            at, here = reply[0][0] + reply[0][1] / 1e6, wall() - seconds[-1] / 2
            readings.append((seconds[-1], Reading("Redis", at - here, seconds[-1] / 2)))
            await asyncio.sleep(_PAUSE_SECONDS)
    except RegistryUnavailable as error:
        return [_silent(error)]
    return [judge_latency(seconds, link.timeout_seconds), *judge([min(readings)[1]])]


async def _check_writes(settings: RegistrySettings) -> Sequence[Finding]:
    """Write as a gateway does, to keys without readers, with a short life."""
    registry = RedisRegistry(
        settings.redis_url,
        timeout_seconds=min(settings.redis_timeout_seconds, _MOST_SECONDS),
        access=settings.redis_access,
    )
    try:
        await registry.probe()
    except RegistryRefuses as refusal:
        return [_refused(refusal)]
    except RegistryUnavailable as error:
        return [_silent(error)]
    finally:
        await registry.close()
    return [REDIS.ok("takes the writes of gateways")]


async def _check_cluster(link: RedisLink) -> Sequence[Finding]:
    state: _Info = await link.ask(lambda: link.client.execute_command("CLUSTER INFO"))
    return judge_cluster(state)


def judge_cluster(state: _Info) -> list[Finding]:
    """Judge the answer to CLUSTER INFO."""
    slots, failed = (
        int(state.get("cluster_slots_assigned", 0)),
        int(state.get("cluster_slots_fail", 0)),
    )
    in_doubt = int(state.get("cluster_slots_pfail", 0))
    if state.get("cluster_state") == "ok" and not in_doubt:
        return [REDIS.ok(f"the Cluster is whole: {slots} slots")]
    return [
        REDIS.fault(
            f"cluster_state is {state.get('cluster_state')}: {slots} of 16384 slots are assigned, "
            f"{failed} have failed, {in_doubt} are in doubt",
            why="users in these slots are neither found nor registered; their messages wait",
            cure="CLUSTER NODES names the master that is gone: start it, or fail over to its "
            "replica",
        )
    ]


async def _check_addresses(url: str) -> Sequence[Finding]:
    """Find servers of the URL that are away while another answers."""
    listed = addresses(url)
    listeners = await asyncio.gather(*(listener_at(*address) for address in listed))
    return [
        REDIS.warning(
            f"{authority(host, port)} of PUSHGATE_REDIS_URL: {listener.value}",
            why="when the others are away too, nothing finds Redis",
            cure="start the server, or correct PUSHGATE_REDIS_URL",
        )
        for (host, port), listener in zip(listed, listeners, strict=True)
        if listener is not _expected(url)
    ]


async def _absence(settings: RegistrySettings, error: RegistryUnavailable) -> list[Finding]:
    """Explain why Redis gives no answer, by the listeners at the addresses."""
    if any(words in error.reason for words in _LOGIN_ERRORS):
        return [
            REDIS.fault(
                f"Redis at {error.where} refuses the login: {error.reason}",
                why="no user can be registered, and none is found",
                cure="let PUSHGATE_REDIS_URL have the account: redis://user:password@host; for "
                "Sentinels see PUSHGATE_REDIS_SENTINEL_PASSWORD",
            )
        ]
    listed = addresses(settings.redis_url)
    listeners = await asyncio.gather(*(listener_at(*address) for address in listed))
    troubles = list(zip(listed, listeners, strict=True))
    of_cluster = await _part_of_cluster(settings, troubles)
    if of_cluster:
        troubles = [each for each in troubles if each[1] is not _expected(settings.redis_url)]
    return [*of_cluster, *(_unusable(settings.redis_url, *each, error) for each in troubles)]


def _unusable(
    url: str, address: tuple[str, int], listener: Listener, error: RegistryUnavailable
) -> Finding:
    place = authority(*address)
    is_redis = listener in (Listener.REDIS, _expected(url))
    name = f"Redis at {place} can't be used" if is_redis else f"no Redis at {place}"
    return REDIS.fault(
        f"{name}: {listener.value} ({error.reason})",
        why="no user can be registered, and messages wait",
        cure=_cure(url, listener),
    )


async def _part_of_cluster(
    settings: RegistrySettings, listeners: Sequence[tuple[tuple[str, int], Listener]]
) -> list[Finding]:
    """Ask a server of a Cluster by itself: a client needs more of them than one.

    Nothing is found where no server answers, or the Cluster is whole.
    """
    parts, expected = urlsplit(settings.redis_url), _expected(settings.redis_url)
    working = [address for address, listener in listeners if listener is expected]
    if not parts.scheme.endswith("+cluster") or not working:
        return []
    login, at, _ = parts.netloc.rpartition("@")
    link = RedisLink(
        f"{parts.scheme.removesuffix('+cluster')}://{login}{at}{authority(*working[0])}",
        timeout_seconds=min(settings.redis_timeout_seconds, _MOST_SECONDS),
        access=settings.redis_access,
    )
    try:
        found = await _check_cluster(link)
    except RegistryUnavailable:
        return []
    finally:
        await link.close()
    return [finding for finding in found if finding.severity is Severity.FAULT]


def _expected(url: str) -> Listener:
    return Listener.TLS if url.startswith("rediss") else Listener.REDIS


def _cure(url: str, listener: Listener) -> str:
    if listener is Listener.TLS and not url.startswith("rediss"):
        return "write rediss in PUSHGATE_REDIS_URL: the server wants TLS"
    if listener is Listener.TLS:
        return (
            "set PUSHGATE_REDIS_CA_FILE to the CA of the server's certificate, which names the host"
        )
    if listener is Listener.REDIS and url.startswith("rediss"):
        return "write redis in PUSHGATE_REDIS_URL: the server has no TLS on this port"
    if listener is Listener.REDIS:
        return (
            "see that the scheme of PUSHGATE_REDIS_URL is that of the server: redis://, "
            "redis+sentinel://, redis+cluster://"
        )
    return "start Redis, or correct PUSHGATE_REDIS_URL"


def _refused(refusal: RegistryRefuses) -> Finding:
    return REDIS.fault(
        str(refusal),
        why="users who connect now are not found; messages for them wait",
        cure=CURES[refusal.code],
    )


def _silent(error: RegistryUnavailable) -> Finding:
    return REDIS.fault(
        str(error),
        why="it answers in part, or too slowly: look-ups fail, and messages wait",
        cure="look at Redis's log; PUSHGATE_REDIS_TIMEOUT_SECONDS is how long a command may take",
    )
