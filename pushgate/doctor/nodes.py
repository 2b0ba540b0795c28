"""Checks of nodes: each internal address reachable, the right node there, with the right secret."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlsplit

import httpx
import msgspec
from cryptography import x509

from processor.settings import ProcessorSettings
from pushgate.doctor.certificates import judge as judge_certificates
from pushgate.doctor.clocks import Reading, judge
from pushgate.doctor.finding import Finding, Severity, Subject
from pushgate.doctor.ports import certificate_at, listener_at
from pushgate.ports import http_client
from registry.calls import NO_TLS, REFUSED, GatewayCalls, OutsideNetworks, tls_fault
from registry.directory import Node, RegistryUnavailable
from registry.networks import host_and_port
from registry.redis_store import RedisRegistry

NODES: Final = Subject("nodes")

#: A user of no connection: the answer has the node's name and clock alone.
_USER: Final = "pushgate-doctor"
#: How long a node may take to answer, and how many are asked at once.
_ANSWER_SECONDS: Final = 2.0
_AT_ONCE: Final = 200
_LIST_SECONDS: Final = 3.0
#: Nodes of one fault, or in good health, that are named.
_NAMED: Final = 5
_LOST: Final = "processors can't send messages to the users of this node; they wait, and then fail"


class _Listing(msgspec.Struct):
    """What an answer to `GET /connections/{user}` has of interest here."""

    node: str
    epoch: str
    now_ms: int | None = None  # None: of version 0.1


class _Readiness(msgspec.Struct):
    status: str
    warnings: Sequence[str] = ()


async def check_nodes(
    settings: ProcessorSettings, *, clock: Callable[[], float], wall: Callable[[], float]
) -> Sequence[Finding]:
    """Ask each live node; `clock` gives monotonic seconds, `wall` Unix time in seconds."""
    if not settings.internal_secret.get_secret_value():
        return [
            NODES.fault(
                "PUSHGATE_INTERNAL_SECRET is not set",
                why="gateways and processors don't start without, and nodes can't be asked",
                cure="set PUSHGATE_INTERNAL_SECRET to the same secret everywhere, of 32 bytes at "
                "least",
            )
        ]
    try:
        nodes = await _live_nodes(settings)
    except RegistryUnavailable as error:
        return [
            NODES.note(
                f"the nodes are not known: {error}",
                why="whether processors reach gateways is unknown",
                cure="mend what is said of redis, and look again",
            )
        ]
    if not nodes:
        return [
            NODES.warning(
                "no gateway is registered as live",
                why="nobody can be connected",
                cure="start gateways; PUSHGATE_REDIS_URL has to be the same for them and here",
            )
        ]
    calls, turn = GatewayCalls.of(settings), asyncio.Semaphore(_AT_ONCE)
    async with http_client(calls, timeout_seconds=_ANSWER_SECONDS) as http:
        visits = [_Visit(calls, http, node, clock=clock, wall=wall) for node in nodes]

        async def visited(visit: _Visit) -> None:
            async with turn:
                await visit.run()

        await asyncio.gather(*map(visited, visits))
    return [*_summary(visits), *(finding for visit in visits for finding in visit.findings)]


async def _live_nodes(settings: ProcessorSettings) -> list[Node]:
    registry = RedisRegistry(
        settings.redis_url,
        timeout_seconds=min(settings.redis_timeout_seconds, _LIST_SECONDS),
        access=settings.redis_access,
    )
    try:
        return sorted(await registry.nodes(), key=lambda node: node.name)
    finally:
        await registry.close()


def _summary(visits: Sequence[_Visit]) -> list[Finding]:
    names = [visit.node.name for visit in visits if not visit.findings]
    found = judge([visit.clock_reading for visit in visits if visit.clock_reading is not None])
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        nodes = ", ".join(names[:_NAMED]) + more
        found.insert(
            0, NODES.ok(f"{len(names)} of {len(visits)} answer, with the right secret: {nodes}")
        )
    return found


class _Visit:
    """The questions to one node; `findings` and `clock_reading` have what came of them."""

    def __init__(
        self,
        calls: GatewayCalls,
        http: httpx.AsyncClient,
        node: Node,
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self.node = node
        self.findings: list[Finding] = []
        self.clock_reading: Reading | None = None
        self._calls = calls
        self._http = http
        self._clock = clock
        self._wall = wall

    async def run(self) -> None:
        """Ask; within some seconds."""
        try:
            url = await self._calls.url(self.node)
            await self._ask_identity(url)
            await self._ask_readiness(url)
            if url.startswith("https:"):
                await self._judge_certificate(url)
        except OutsideNetworks as error:
            self._fault(
                str(error), "correct PUSHGATE_GATEWAY_NETWORKS, or find who writes to Redis"
            )
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            await self._be_unreachable(error)

    async def _ask_identity(self, url: str) -> None:
        headers, began = self._calls.headers(self.node), self._clock()
        answer = await self._http.get(f"{url}/connections/{_USER}", headers=headers)
        seconds = self._clock() - began
        if answer.status_code in (401, 403):
            self._fault(
                f"answers {answer.status_code}: {REFUSED}", "set the same secret everywhere"
            )
            return
        listing = _decoded(answer)
        if answer.status_code == 421 or (
            listing and (listing.node, listing.epoch) != (self.node.name, self.node.epoch)
        ):
            self._fault(
                "another gateway answers at this address",
                "see that PUSHGATE_ADVERTISE_ADDRESS is each gateway's own; after a restart try "
                "again",
            )
        elif listing is None:
            self._fault(
                f"no gateway answers at this address (status {answer.status_code})",
                "correct PUSHGATE_ADVERTISE_ADDRESS of this gateway: host:port of its internal "
                "port",
            )
        elif listing.now_ms is not None:
            ahead = listing.now_ms / 1_000 - (self._wall() - seconds / 2)
            self.clock_reading = Reading(f"node {self.node.name}", ahead, seconds / 2)

    async def _ask_readiness(self, url: str) -> None:
        if self.findings:
            return
        answer = await self._http.get(f"{url}/readyz")
        try:
            readiness = msgspec.json.decode(answer.content, type=_Readiness)
        except msgspec.DecodeError as error:
            self._fault(
                f"/readyz answers {answer.status_code}, and nothing that a gateway says: {error}",
                "find what answers there: PUSHGATE_ADVERTISE_ADDRESS has to be the gateway's own "
                "internal port, without a proxy before it",
            )
            return
        if readiness.status != "ready":
            self.findings.append(
                NODES.warning(
                    f"node {self.node.name} is not ready: {readiness.status}",
                    why="balancers send no new clients there",
                    cure="draining ends by itself; overloaded: PUSHGATE_MAX_CONNECTIONS, "
                    "PUSHGATE_MAX_MEMORY_BYTES and the limit of open files, or another gateway",
                )
            )
        for warning in readiness.warnings:
            self.findings.append(
                NODES.warning(
                    f"node {self.node.name} warns: {warning}",
                    why="its users may not be found",
                    cure="do what the warning says",
                )
            )

    async def _judge_certificate(self, url: str) -> None:
        address = urlsplit(url)
        shown = await certificate_at(address.hostname or "", address.port or 443)
        place = f"the internal port of node {self.node.name}"
        now = datetime.fromtimestamp(self._wall(), UTC)
        finding = judge_certificates(place, [x509.load_der_x509_certificate(shown)], now=now)
        if finding.severity is not Severity.OK:
            self.findings.append(finding)

    async def _be_unreachable(self, error: Exception) -> None:
        if tls_fault(error) is not None:
            self._fault(
                f"{error}: {NO_TLS}",
                "set PUSHGATE_INTERNAL_TLS_CERT there and _CA here, or neither",
            )
            return
        host, port = host_and_port(self.node.address)
        listener = await listener_at(host, int(port))
        reason = str(error) or type(error).__name__
        self._fault(
            f"no answer: {listener.value} ({reason})",
            "start the gateway; if it runs, let PUSHGATE_ADVERTISE_ADDRESS be an address that "
            "processors reach (a loopback address is for one host), and the firewall let its "
            "internal port through; PUSHGATE_INTERNAL_TLS_CA is for gateways with TLS there",
        )

    def _fault(self, what: str, cure: str) -> None:
        place = f"node {self.node.name} at {self.node.address}"
        self.findings.append(NODES.fault(f"{place}: {what}", why=_LOST, cure=cure))


def _decoded(answer: httpx.Response) -> _Listing | None:
    """Return a node's answer; None for an answer of something else."""
    if answer.status_code != httpx.codes.OK:
        return None
    try:
        return msgspec.json.decode(answer.content, type=_Listing)
    except msgspec.DecodeError:
        return None
