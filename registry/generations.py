"""Generations of keys: whether the registry lost keys since a gateway's last heartbeat.

Each marker (lua/generation.lua; on a Cluster one a bucket) names the server that made the marker. A
marker of another server tells a loss, or a slot that has moved with its keys. A move is no loss:
the server that made the marker is a master still, and the server that has the slot now has run all
the time since the last heartbeat, as a master. After a failover the one is no master any more, and
the other has been promoted; a server that was restarted has another run id.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from registry.directory import RegistryUnavailable
from registry.redis_link import RedisLink, Script, ScriptCall

_GENERATION: Final = Script.named("generation")
#: How the script leaves a marker of another server alone.
_ASK: Final = b"ask"
#: The longest time that any gateway's heartbeat, which would have seen an earlier loss, is taken to
#: be ago at this process's own first heartbeat.
_FIRST_HEARTBEAT_SECONDS: Final = 60.0


#: INFO of masters by run id, as redis-py reads it.
Masters = Mapping[bytes, Mapping[str, Any]]


class Look(NamedTuple):
    """A marker, the run id of the server that has the marker's slot, and its evicted keys."""

    marker: bytes
    server: bytes
    evicted: bytes

    @property
    def made(self) -> bytes:
        """When the marker was made: stays as it is when the slot moves."""
        return self.marker.rpartition(b" ")[2]

    @property
    def maker(self) -> bytes:
        """The run id of the server that made the marker."""
        return self.marker.partition(b" ")[0]


class Markers(NamedTuple):
    """What a heartbeat has seen of the markers, for the next process of the same node.

    When each was made, and by the run id of each server the number of evicted keys. Empty before
    the first heartbeat.
    """

    made: list[bytes]
    evicted: dict[bytes, bytes]


class Generations:
    """The markers as they were at the last heartbeat."""

    def __init__(
        self, link: RedisLink, markers: Sequence[bytes], *, clock: Callable[[], float]
    ) -> None:
        """`markers` are the keys of the markers; `clock` gives seconds."""
        self._link = link
        self._markers = markers
        self._clock = clock
        self._made: list[bytes] = []
        #: By the run id of each server that had a marker's slot, the number of evicted keys.
        self._evicted: dict[bytes, bytes] = {}
        self._looked_at = clock() - _FIRST_HEARTBEAT_SECONDS

    @property
    def markers(self) -> Markers:
        """The markers as the last heartbeat has seen them."""
        return Markers(self._made, self._evicted)

    def go_on(self, markers: Markers) -> None:
        """Compare the first heartbeat with the last one of an earlier process of the node."""
        self._made, self._evicted = markers

    def calls(self) -> list[ScriptCall]:
        """Return the calls of a heartbeat; their results are for `have_changed`."""
        on_other_server = _ASK if self._link.is_cluster else b""
        return [_call(marker, on_other_server) for marker in self._markers]

    async def have_changed(self, results: Sequence[Sequence[bytes]]) -> bool:
        """Whether keys may have been lost since the last heartbeat, or it is the first.

        Raises:
            RegistryUnavailable: a marker could not be written.
        """
        now = self._clock()
        looks = [Look(*result) for result in results]
        elsewhere = [n for n, look in enumerate(looks) if look.maker != look.server]
        if elsewhere:
            mended = await self._mended({self._markers[n]: looks[n] for n in elsewhere}, now)
            for n, look in zip(elsewhere, mended, strict=True):
                looks[n] = look
        before, self._made = self._made, [look.made for look in looks]
        self._evicted = {look.server: look.evicted for look in looks}
        self._looked_at = now
        return before != self._made

    async def _mended(self, looks: Mapping[bytes, Look], now: float) -> list[Look]:
        """Have markers of other servers taken over, or made anew where keys may be lost."""
        masters = await self._masters()
        calls: list[ScriptCall] = []
        for marker, look in looks.items():
            is_move = has_moved(
                look, masters, evicted=self._evicted, running_seconds=now - self._looked_at
            )
            calls.append(_call(marker, look.marker if is_move else b""))
        results = await self._link.ask(lambda: self._link.evaluate(calls))
        return [Look(*result) for result in results]

    async def _masters(self) -> Masters:
        """Return INFO of every master that answers, by run id; none where no master answers."""
        try:
            infos = await self._link.ask(lambda: self._link.info("default"))
        except RegistryUnavailable:
            return {}
        return {str(info.get("run_id")).encode(): info for info in infos}


def has_moved(
    look: Look, masters: Masters, *, evicted: Mapping[bytes, bytes], running_seconds: float
) -> bool:
    """Whether the slot of another server's marker has moved here with all its keys, for certain.

    `evicted` has the numbers of evicted keys at the last heartbeat, `running_seconds` ago, by the
    run id of each server that had a marker's slot then.
    """
    maker, here = masters.get(look.maker), masters.get(look.server)
    if maker is None or here is None or {maker.get("role"), here.get("role")} != {"master"}:
        return False
    if _evicted(maker) != evicted.get(look.maker, b"0"):
        return False
    if _evicted(here) != evicted.get(look.server, b"0"):
        return False
    return look.server in evicted or _is_unspoilt(here, running_seconds)


def _evicted(info: Mapping[str, Any]) -> bytes:
    return str(info.get("evicted_keys")).encode()


def _is_unspoilt(info: Mapping[str, Any], running_seconds: float) -> bool:
    """Whether a master without a slot of ours before has run all the time, as a master.

    A replica that was promoted has a second replication id for good.
    """
    was_promoted = str(info.get("master_replid2", "?")).strip("0") != ""
    return not was_promoted and float(info.get("uptime_in_seconds", 0)) > running_seconds


def _call(marker: bytes, on_other_server: bytes) -> ScriptCall:
    evicted = marker.replace(b"generation", b"evicted")
    return _GENERATION.call(
        [marker, evicted],
        on_other_server,
        split=lambda: [_GENERATION.call([marker], on_other_server)],
    )
