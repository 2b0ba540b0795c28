"""The push registry in Redis: its keys and their meaning.

Keys, laid out for Cluster (a hash tag first, so that a bucket is one slot):

    {pg-17}user:alice     a user's entry, a string; see lua/write.lua
    {pg-nodes}lease:gw-a  a node's lease with a TTL; see lua/heartbeat.lua
    {pg-nodes}seen:gw-a   where the node was last: the lease's text, which outlives the lease
    {pg-nodes}gone:gw-a   the epoch of the node that said goodbye last; see lua/retire.lua
    {pg-nodes}names       the names of nodes
    {pg-nodes}changed     the last change among leases
    {pg-nodes}generation  the generation marker, lost when keys are lost; see lua/generation.lua
    {pg-17}generation     the marker of one bucket: a Cluster can lose a single bucket
    {pg-nodes}evicted     how many keys the server had evicted when it made the marker
    {pg-17}evicted        the same for the marker of one bucket
    {pg-nodes}processors  the names of live processors, by when their leases lapse
    {pg-nodes}ports       the ports of processors for tools: "<name> <epoch> <address>", likewise
    {pg-nodes}probe:…     a node that is none, and
    {pg-17}probe          an entry of no user, which processors write to see whether they can

An entry is a plain string so that a look-up is a plain MGET: a single MGET for all users on one
Redis, an MGET for every bucket on a Cluster. The generation marker comes with the same MGET, so the
marker describes the entries as they were read. Commands are limited to those of Redis 6.2.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar
from zlib import crc32

import structlog

from registry.directory import (
    TIMINGS,
    Lease,
    Node,
    Processors,
    RegistryRefuses,
    RegistryUnavailable,
    Timings,
)
from registry.doubt import Doubt
from registry.generations import Generations, Markers
from registry.node_table import AsOf, NodeTable
from registry.redis_link import RedisLink, Script, ScriptCall
from registry.refusals import NO_PERMISSION
from registry.settings import RedisAccess
from registry.slot_moves import Command

BUCKETS: Final = 64
#: Keys in one script call: Lua's unpack() takes some 8,000, and a running script blocks Redis.
MAX_WRITE_KEYS: Final = 500
#: How many keys a SCAN looks at, and how many entries `entries` reads at once.
_SCANNED_KEYS: Final = 500
_NAMES_KEY: Final = b"{pg-nodes}names"
_CHANGED_KEY: Final = b"{pg-nodes}changed"
_GENERATION_KEY: Final = b"{pg-nodes}generation"
_PROCESSORS_KEY: Final = b"{pg-nodes}processors"
_PORTS_KEY: Final = b"{pg-nodes}ports"
_PREFIXES: Final = tuple(b"{pg-%d}user:" % bucket for bucket in range(BUCKETS))
_BUCKETS_GENERATION_KEYS: Final = tuple(b"{pg-%d}generation" % bucket for bucket in range(BUCKETS))
#: Written by `probe`. Scripts for nodes and entries run on these keys, as they run for gateways.
_PROBE_NODE_KEYS: Final = tuple(
    b"{pg-nodes}probe:" + part for part in (b"lease", b"names", b"changed", b"seen", b"gone")
)
_PROBE_ENTRY_KEYS: Final = tuple(b"{pg-%d}probe" % bucket for bucket in range(BUCKETS))
_PROBE_MS: Final = 10_000

_NO_EVICTION: Final = "noeviction"

_HEARTBEAT: Final = Script.named("heartbeat")
_RETIRE: Final = Script.named("retire")
_WRITE: Final = Script.named("write")
_PROCESSOR: Final = Script.named("processor")

#: Sentinels without a password, and the system's CAs.
_OPEN: Final = RedisAccess()

_T = TypeVar("_T")
#: The values of a node's lease, of its place when it was last seen, and of the epoch that is gone.
_Place = tuple[bytes | None, bytes | None, bytes | None]
#: How heartbeat.lua ends its reply when it wrote the lease alone.
_ALONE: Final = " ALONE"
#: The reply of retire.lua when it wrote alone which epoch is gone.
_GONE_ALONE: Final = 2

log = structlog.get_logger("registry")


@dataclass(frozen=True, slots=True)
class _Reading:
    """Users' entries, and the state of the leases at the time of reading.

    `doubtful` has the positions of entries in buckets that were not read, or whose marker is in
    doubt (doubt.py); only on a Cluster.
    """

    entries: Sequence[bytes | None]
    doubtful: Sequence[int]
    as_of: AsOf


class RedisRegistry:
    """The Registry protocol (registry/directory.py) over one link to Redis."""

    def __init__(
        self,
        url: str,
        *,
        timeout_seconds: float = 1.0,
        timings: Timings = TIMINGS,
        access: RedisAccess = _OPEN,
        lost_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Connect lazily to `url`; a command takes at most `timeout_seconds` in all.

        Every gateway and processor of the cluster has the same `timings` and `lost_seconds`: how
        long a node is lost after its lease has lapsed. With 0 a look-up returns live nodes alone.
        """
        self._link = RedisLink(url, timeout_seconds=timeout_seconds, access=access)
        self._lease_ms = int(timings.lease_seconds * 1000)
        self._processor_lease_seconds = math.ceil(timings.lease_seconds)
        #: How long after a heartbeat a node is live or lost, in milliseconds; 0 keeps no lost node.
        self._seen_ms = int((timings.lease_seconds + lost_seconds) * 1000) if lost_seconds else 0
        #: How long a goodbye is known: nobody vouches for a node for longer.
        self._gone_ms = self._seen_ms or self._lease_ms
        self._lost_seconds = lost_seconds
        self._clock = clock
        #: When a node answered a forward last, by `clock`. Nodes that have not for `lost_seconds`
        #: are dropped at every reading of the leases.
        self._vouched: dict[Node, float] = {}
        self._entry_seconds = timings.entry_seconds
        self._table = NodeTable()
        self._registration_seconds = timings.registration_seconds
        self._doubt = Doubt(timings.registration_seconds)
        #: Of buckets that could not be read lately, by hash tag; only on a Cluster.
        self._bucket_doubts: dict[bytes, Doubt] = {}
        bucket_markers = _BUCKETS_GENERATION_KEYS if self._link.is_cluster else ()
        self._generations = Generations(self._link, (_GENERATION_KEY, *bucket_markers), clock=clock)
        #: The latest heartbeat of any node, and the reading of it, by Redis's clock, epoch seconds.
        self._latest_heartbeat = 0.0
        self._read_at = 0
        #: When this process's account was first refused a write (`_gateways_can_write`).
        self._no_permission_since: int | None = None

    async def heartbeat(self, node: Node, *, claim: bool = False) -> Lease:
        """Renew the node's lease; `claim` takes the lease over from an earlier process."""
        keys = _node_keys(node)
        is_claim = "1" if claim else "0"
        args = (node.name, node.epoch, node.address, self._lease_ms, is_claim, self._seen_ms)
        calls = [
            _HEARTBEAT.call(keys, *args, split=lambda: [_HEARTBEAT.call(keys[:1], *args)]),
            *self._generations.calls(),
        ]
        reply, *looks = await self._ask(lambda: self._link.evaluate(calls))
        lease = Lease[reply.decode().removesuffix(_ALONE)]
        if reply.endswith(_ALONE.encode()):
            await self._ask(lambda: self._write_beside_lease(node, lease))
        if claim:
            await self._warn_of_eviction()
        keys_lost = await self._generations.have_changed(looks)
        return Lease.LAPSED if keys_lost and lease is Lease.HELD else lease

    @property
    def markers(self) -> Markers:
        """What the last heartbeat has seen of the registry's keys, for the next process."""
        return self._generations.markers

    def go_on(self, markers: Markers) -> None:
        """Take the place of an earlier process of the node: nothing counts as lost by that."""
        self._generations.go_on(markers)

    async def _write_beside_lease(self, node: Node, lease: Lease) -> None:
        """Write key by key what heartbeat.lua writes beside the lease, while their slot moves."""
        _, names, _, seen, gone = _node_keys(node)
        [(seconds, _)] = await self._link.each([(names, ("TIME",))])
        place = f"{node.epoch} {node.address}"
        keeps_lost = ("SET", seen, place, "PX", self._seen_ms) if self._seen_ms else ("DEL", seen)
        commands: list[Command] = [
            (seen, keeps_lost),
            (names, ("ZADD", names, seconds, node.name)),
        ]
        if lease is Lease.LAPSED:
            commands.append((gone, ("DEL", gone)))
        await self._link.each(commands)
        if lease is Lease.LAPSED:
            await self._write_change(node)

    async def _warn_of_eviction(self) -> None:
        """Say so where Redis may evict keys: users whose entry is evicted are not found."""
        try:
            memories = await self._ask(lambda: self._link.info("memory"))
        except RegistryUnavailable:  # INFO may be forbidden; the heartbeat itself has succeeded
            return
        policies = {memory.get("maxmemory_policy", _NO_EVICTION) for memory in memories}
        if evicting := policies - {_NO_EVICTION}:
            log.warning(
                "Redis may evict users' entries",
                maxmemory_policy=sorted(evicting),
                cure="set Redis's maxmemory-policy to noeviction",
            )

    async def retire(self, node: Node) -> None:
        """Give up the node's lease, unless another epoch has taken the lease over."""
        call = _retire_call(_node_keys(node), node.name, node.epoch, self._gone_ms)
        [goodbye] = await self._ask(lambda: self._link.evaluate([call]))
        if goodbye == _GONE_ALONE:
            # Readers would know the node as live until their next refresh.
            await self._ask(lambda: self._write_change(node))

    async def _write_change(self, node: Node) -> None:
        """Note a change among leases, while their slot moves."""
        [(seconds, micros)] = await self._link.each([(_CHANGED_KEY, ("TIME",))])
        change = f"{node.epoch} {seconds} {micros}"
        await self._link.each([(_CHANGED_KEY, ("SET", _CHANGED_KEY, change))])

    def vouch(self, node: Node) -> None:
        """Note that a node has just answered a forward; see `Registry.vouch`. No I/O."""
        if self._lost_seconds:
            self._vouched[node] = self._clock()

    async def write(self, node: Node, here: Sequence[str], gone: Sequence[str]) -> None:
        """Assert the node's element of users in `here`; remove the element of users in `gone`."""
        changes = [(_key(user), "1") for user in here] + [(_key(user), "0") for user in gone]
        for start in range(0, len(changes), MAX_WRITE_KEYS):
            part = changes[start : start + MAX_WRITE_KEYS]
            await self._ask(lambda part=part: self._write(node, part))  # type: ignore[misc]

    async def processors(self) -> Processors:
        """Read the live processors, and Redis's clock."""
        return await self._processors("", 0)

    async def keep_processor(self, name: str) -> Processors:
        """Renew a processor's lease; read the live processors, and Redis's clock."""
        return await self._processors(name, self._processor_lease_seconds)

    async def retire_processor(self, name: str) -> None:
        """Give up a processor's lease."""
        await self._processors(name, 0)

    async def _processors(self, name: str, lease_seconds: int) -> Processors:
        now_ms, names = await self._leases(_PROCESSORS_KEY, name, lease_seconds)
        return Processors(now_ms, frozenset(each.decode() for each in names))

    async def processor_ports(self) -> list[Node]:
        """Return where tools reach the processors that have registered a port.

        At an address is the start whose lease lapses last: an earlier start there was killed.
        """
        _, ports = await self._leases(_PORTS_KEY, "", 0)  # in the order in which the leases lapse
        nodes = (_node(*port.partition(b" ")[::2]) for port in ports)
        return list({node.address: node for node in nodes if node is not None}.values())

    async def keep_processor_port(self, processor: Node) -> None:
        """Register where tools reach a processor, for as long as a lease lives."""
        await self._leases(_PORTS_KEY, _port(processor), self._processor_lease_seconds)

    async def retire_processor_port(self, processor: Node) -> None:
        """Unregister where tools reach a processor."""
        await self._leases(_PORTS_KEY, _port(processor), 0)

    async def _leases(self, key: bytes, name: str, lease_seconds: int) -> tuple[int, list[bytes]]:
        """Renew a lease of processor.lua, or give it up; return Redis's time, and the live ones."""
        call = _PROCESSOR.call([key], name, lease_seconds)
        # Without a word to `Doubt`: an account that may not write this says nothing of entries.
        [reply] = await self._link.ask(lambda: self._link.evaluate([call]))
        now_ms, *names = reply
        return int(now_ms), names

    async def probe(self) -> None:
        """Write as a gateway does; raise RegistryRefuses, with the cure, where that is refused."""
        try:
            await self._link.ask(self._write_probe)
        except RegistryRefuses as refusal:
            self._doubt.answered()
            if refusal.code == NO_PERMISSION and self._gateways_can_write():
                self._doubt.accepted()
                return
            self._doubt.refused()
            raise
        except RegistryUnavailable:
            self._doubt.failed()
            raise
        self._no_permission_since = None
        self._doubt.answered()
        self._doubt.accepted()

    async def _write_probe(self) -> None:
        keys, tag = _PROBE_NODE_KEYS, b"probe:probe"
        args = ("probe", "probe", "-", _PROBE_MS, "1", _PROBE_MS)
        await self._link.evaluate(
            [
                _HEARTBEAT.call(keys, *args, split=lambda: [_HEARTBEAT.call(keys[:1], *args)]),
                _retire_call(keys, "probe", "probe", _PROBE_MS),
                *(
                    _WRITE.call([key], tag, _PROBE_MS // 1000, "1")
                    for key in self._link.one_a_master(_PROBE_ENTRY_KEYS)
                ),
            ]
        )

    def _gateways_can_write(self) -> bool:
        """Whether gateways go on writing after this process's account was refused a write.

        Processors may have an account of their own that can't write: of a registry that refuses
        writes, only heartbeats that stay out tell them. Right after a refusal nothing tells.
        """
        if self._no_permission_since is None:
            self._no_permission_since = self._read_at
        is_later = self._latest_heartbeat > self._no_permission_since + 1  # in whole seconds
        return is_later and self._read_at - self._latest_heartbeat < self._registration_seconds

    async def refresh(self) -> None:
        """Read the node table afresh."""
        self._table = await self._ask(self._read_nodes)

    async def lookup(self, users: Sequence[str]) -> list[tuple[Node, ...] | None]:
        """Return every user's nodes, live and lost; `()` means offline, None means unknown."""
        if not self._doubt.knows_the_time:
            await self.refresh()
        all_in_doubt = self._doubt.in_outage
        keys = [_key(user) for user in users]
        reading = await self._ask(lambda: self._read(keys))
        if reading.as_of != self._table.as_of:
            await self.refresh()
        table = self._table
        nodes_by_position = table.meanings(reading.entries)
        if table.strangers:
            # On a Cluster entries are not read together with the leases, and may be newer: an
            # unlisted node in an entry may have started since the leases were read.
            await self.refresh()
            strangers, table = table.strangers, self._table
            table.take_for_dead(strangers)
            nodes_by_position = table.meanings(reading.entries)
        # Also in doubt: an answer beside which another command failed, and an answer after which
        # `refresh` read a young marker.
        all_in_doubt |= self._doubt.in_outage or any(
            self._doubt.may_lack_entries(generation)
            for generation in {reading.as_of.generation, table.as_of.generation}
        )
        for position in range(len(nodes_by_position)) if all_in_doubt else reading.doubtful:
            nodes_by_position[position] = nodes_by_position[position] or None
        return nodes_by_position

    @property
    def in_doubt(self) -> bool:
        """Whether users who are not found are unknown, by the latest reading of the leases."""
        generation = self._table.as_of.generation
        return self._doubt.in_outage or self._doubt.may_lack_entries(generation)

    async def nodes(self) -> list[Node]:
        """Return the live nodes."""
        await self.refresh()
        return list(self._table.live)

    def present(self, node: Node) -> bool:
        """Whether a node was live or lost at the latest reading of the leases.

        Every node is present while the leases themselves may have been lost (doubt.py).
        """
        table = self._table
        return (
            node in table.live
            or node in table.lost
            or self._doubt.may_lack_entries(table.as_of.generation)
        )

    def lost(self, node: Node) -> bool:
        """Whether a node was lost at the latest reading of the leases."""
        return node in self._table.lost

    async def entries(self) -> AsyncIterator[tuple[str, tuple[Node, ...]]]:
        """Iterate over all users with the live nodes among those of a look-up, in no order.

        Entries that change during the iteration may be missed, as with SCAN.
        """
        await self.refresh()
        keys: list[bytes] = []
        async for key in self._link.scan(b"{pg-*}user:*", count=_SCANNED_KEYS):
            keys.append(key)
            if len(keys) == _SCANNED_KEYS:
                for entry in await self._meanings(keys):
                    yield entry
                keys.clear()
        for entry in await self._meanings(keys) if keys else ():
            yield entry

    async def close(self) -> None:
        """Close the link."""
        await self._link.close()

    async def _meanings(self, keys: Sequence[bytes]) -> list[tuple[str, tuple[Node, ...]]]:
        reading = await self._ask(lambda: self._read(keys))
        users = (key.partition(b"}user:")[2].decode(errors="replace") for key in keys)
        table = self._table
        return [
            (user, tuple(node for node in nodes or () if node in table.live))
            for user, nodes in zip(users, table.meanings(reading.entries), strict=True)
        ]

    async def _read(self, keys: Sequence[bytes]) -> _Reading:
        if self._link.is_cluster:
            return await self._read_buckets(keys)
        *entries, generation, changed = await self._link.command(
            "MGET", *keys, _GENERATION_KEY, _CHANGED_KEY
        )
        return _Reading(entries, (), AsOf(generation, changed))

    async def _read_buckets(self, keys: Sequence[bytes]) -> _Reading:
        buckets = _by_bucket(keys)
        *replies, as_of = await self._link.replies(
            [
                *(
                    (tag, ("MGET", tag + b"generation", *map(keys.__getitem__, positions)))
                    for tag, positions in buckets.items()
                ),
                (_NAMES_KEY, ("MGET", _GENERATION_KEY, _CHANGED_KEY)),
            ]
        )
        if isinstance(as_of, Exception):
            raise as_of
        entries: list[bytes | None] = [None] * len(keys)
        doubtful: list[int] = []
        for (tag, positions), reply in zip(buckets.items(), replies, strict=True):
            if isinstance(reply, Exception):
                # One bucket's: the users of the other buckets are answered all the same.
                self._bucket_doubts.setdefault(tag, Doubt(self._registration_seconds)).failed()
                doubtful += positions
                continue
            generation, *values = reply
            for position, value in zip(positions, values, strict=True):
                entries[position] = value
            if self._doubt.may_lack_entries(generation) or self._was_silent(tag):
                doubtful += positions
        return _Reading(entries, doubtful, AsOf(*as_of))

    def _was_silent(self, tag: bytes) -> bool:
        """Note that a bucket was read; whether it could not be read a moment ago (doubt.py)."""
        doubt = self._bucket_doubts.get(tag)
        if doubt is None:
            return False
        doubt.answered()
        if not doubt.in_outage:
            del self._bucket_doubts[tag]
        return doubt.in_outage

    async def _read_nodes(self) -> NodeTable:
        # The leases are read last, so the leases are as new as the marker and the change, or newer.
        # Older leases beside a newer change would pass for current.
        as_of, names_and_scores, (seconds, micros) = await self._link.each(
            [
                (_NAMES_KEY, ("MGET", _GENERATION_KEY, _CHANGED_KEY)),
                (_NAMES_KEY, ("ZRANGE", _NAMES_KEY, 0, -1, "WITHSCORES")),
                (_NAMES_KEY, ("TIME",)),
            ]
        )
        self._doubt.set_time(seconds + micros / 1e6)
        self._read_at = seconds
        self._latest_heartbeat = float(names_and_scores[-1][1]) if names_and_scores else 0.0
        live, lost = await self._read_leases([name for name, _ in names_and_scores])
        if self._doubt.in_outage:
            # A lease that could not be renewed is no proof of absence. Nodes that were live a
            # moment ago, and are not lost now, said goodbye.
            known = {node.name for node in (*live, *lost)}
            lost += [node for node in self._table.lost if node.name not in known]
        return NodeTable(live, lost, now=seconds, as_of=AsOf(*as_of))

    async def _read_leases(self, names: Sequence[bytes]) -> tuple[list[Node], list[Node]]:
        """Return the live nodes among those of `names`, and the lost nodes.

        Lost are nodes that were seen, and nodes without any key that somebody vouched for.
        """
        silent_since = self._clock() - self._lost_seconds
        self._vouched = {node: at for node, at in self._vouched.items() if at > silent_since}
        vouched = {node.name.encode(): node for node in self._vouched}
        all_names = list(dict.fromkeys([*names, *vouched]))
        live: list[Node] = []
        lost: list[Node] = []
        for name, (lease, seen, gone) in zip(
            all_names, await self._read_places(all_names), strict=True
        ):
            # A lease of any epoch, or of no gateway's bytes, ends the epoch that was seen before.
            place, nodes = (seen, lost) if lease is None else (lease, live)
            node = vouched.get(name) if place is None else _node(name, place)
            if node is not None and node.epoch.encode() != gone:
                nodes.append(node)
        for node in {*vouched.values()}.difference(live, lost):
            # It said goodbye, or another epoch has the name. Two readings at once both see that.
            self._vouched.pop(node, None)
        return live, lost

    async def _read_places(self, names: Sequence[bytes]) -> list[_Place]:
        """Return what the keys of every name have: lease, seen and gone."""
        if not names:
            return []
        # All kinds of keys in one command: between two commands a lease may lapse, or a node say
        # goodbye and come again.
        keys = [key(name) for key in (_lease_key, _seen_key, _gone_key) for name in names]
        [values] = await self._link.each([(_NAMES_KEY, ("MGET", *keys))])
        leases, seen, gone = (values[n * len(names) : (n + 1) * len(names)] for n in range(3))
        if not self._seen_ms:
            seen = [None] * len(names)
        return list(zip(leases, seen, gone, strict=True))

    async def _write(self, node: Node, changes: Sequence[tuple[bytes, str]]) -> None:
        keys = [key for key, _ in changes]
        groups = _by_bucket(keys).values() if self._link.is_cluster else [range(len(keys))]
        await self._link.evaluate(
            [self._write_call(node, [changes[n] for n in group]) for group in groups]
        )

    def _write_call(self, node: Node, changes: Sequence[tuple[bytes, str]]) -> ScriptCall:
        return _WRITE.call(
            [key for key, _ in changes],
            node.tag,
            self._entry_seconds,
            *(is_here for _, is_here in changes),
            split=lambda: [self._write_call(node, [change]) for change in changes],
        )

    async def _ask(self, commands: Callable[[], Awaitable[_T]]) -> _T:
        """Run commands over the link, and note for `Doubt` whether the registry answered."""
        try:
            answer = await self._link.ask(commands)
        except RegistryUnavailable:
            self._doubt.failed()
            raise
        self._doubt.answered()
        return answer


def _key(user: str) -> bytes:
    name = user.encode()
    return _PREFIXES[crc32(name) % BUCKETS] + name


def _lease_key(name: str | bytes) -> bytes:
    return b"{pg-nodes}lease:" + (name.encode() if isinstance(name, str) else name)


def _seen_key(name: str | bytes) -> bytes:
    return b"{pg-nodes}seen:" + (name.encode() if isinstance(name, str) else name)


def _gone_key(name: str | bytes) -> bytes:
    return b"{pg-nodes}gone:" + (name.encode() if isinstance(name, str) else name)


def _node_keys(node: Node) -> list[bytes]:
    """Return the keys of heartbeat.lua and retire.lua."""
    name = node.name
    return [_lease_key(name), _NAMES_KEY, _CHANGED_KEY, _seen_key(name), _gone_key(name)]


def _retire_call(keys: Sequence[bytes], name: str, epoch: str, gone_ms: int) -> ScriptCall:
    *_, gone_key = keys
    args = (name, epoch, gone_ms)
    return _RETIRE.call(keys, *args, split=lambda: [_RETIRE.call([gone_key], *args)])


def _by_bucket(keys: Sequence[bytes]) -> dict[bytes, list[int]]:
    """Return the positions of `keys`, grouped by hash tag."""
    buckets: dict[bytes, list[int]] = {}
    for position, key in enumerate(keys):
        buckets.setdefault(key[: key.index(b"}") + 1], []).append(position)
    return buckets


def _node(name: bytes, lease: bytes) -> Node | None:
    """Read "<epoch> <address>" of a lease; None for bytes that no gateway can have written."""
    try:
        epoch, address = lease.decode().split(" ")
        return Node(name.decode(), epoch, address)
    except ValueError:
        return None


def _port(processor: Node) -> str:
    return f"{processor.name} {processor.epoch} {processor.address}"
