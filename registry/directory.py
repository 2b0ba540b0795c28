"""The registry's interface: nodes, leases, users' entries, and how long leases and entries live."""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final, NamedTuple, Protocol

from registry.errors import RegistryError
from registry.refusals import CURES

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ADDRESS = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}")

_MAX_PORT: Final = 65_535
#: Heartbeats that fit into one lease: the lease must survive an outage of Redis of 10 s.
_LEASE_HEARTBEATS: Final = 5
#: How long a gateway may take to write the entries of all of its users, after the heartbeat by
#: which the gateway noticed that entries were lost.
_WRITE_ALL_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Node:
    """One start of one gateway process; among processors' ports, one start of one processor.

    `epoch` is drawn at random at every start, so that nothing written by an earlier process of the
    same name counts. `address` is the internal listener as `host:port`: no scheme, no path.

    Raises:
        ValueError: a part breaks its rule; the text says which rule.
    """

    name: str
    epoch: str
    address: str

    def __post_init__(self) -> None:
        if not (_NAME.fullmatch(self.name) and _NAME.fullmatch(self.epoch)):
            shown = f"{self.name[:80]!r}, {self.epoch[:80]!r}"
            raise ValueError(f"name and epoch of a node are 1–64 of A–Z a–z 0–9 . _ -: {shown}")
        if not is_address(self.address):
            raise ValueError(f"the address of a node is host:port: {self.address[:80]!r}")

    def __hash__(self) -> int:
        # Nodes are dictionary keys for every message. The epoch alone tells nodes apart, since an
        # epoch is random, and a str caches its hash.
        return hash(self.epoch)

    @property
    def tag(self) -> bytes:
        """`name:epoch`: how this node is named in a user's entry."""
        return f"{self.name}:{self.epoch}".encode()


def plain_name(text: str) -> str:
    """Return `text` with a dash for each character that the name of a node can't have."""
    return "".join(
        char if char.isascii() and (char.isalnum() or char in "._-") else "-" for char in text
    )


def is_address(text: str) -> bool:
    """Whether `text` is host:port: an IP address or a host name, and a port from 1 to 65,535."""
    if not _ADDRESS.fullmatch(text):
        return False
    host, _, port = text.rpartition(":")
    try:
        if host.startswith("["):
            IPv6Address(host[1:-1])
        elif not host.strip("0123456789."):
            IPv4Address(host)
    except AddressValueError:
        return False
    return 0 < int(port) <= _MAX_PORT


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """How long leases and entries live, and how often gateways renew both; all in seconds.

    Gateways and processors of one cluster use the same values.

    Raises:
        ValueError: two values contradict each other; the text names both.
    """

    #: The interval of heartbeats: how often a gateway renews its lease.
    heartbeat_seconds: float = 2.0
    #: The life of a lease after a heartbeat. A node without a lease is dead, and none of the
    #: node's elements count.
    lease_seconds: float = 15.0
    #: The period in which a gateway asserts the elements of all of its users once.
    reassertion_seconds: float = 600.0
    #: The life of a node's element in a user's entry, from the last assertion.
    entry_seconds: int = 1_800
    #: The time in which every gateway notices that entries were lost and writes the entries of all
    #: of its users again. For so long after a loss or an outage, a user without an entry is
    #: unknown, not offline.
    registration_seconds: float = 7.0

    def __post_init__(self) -> None:
        if self.lease_seconds < _LEASE_HEARTBEATS * self.heartbeat_seconds:
            raise ValueError(
                f"a lease of {self.lease_seconds:g} s is shorter than {_LEASE_HEARTBEATS} "
                f"heartbeats of {self.heartbeat_seconds:g} s: a short outage would lapse it"
            )
        if self.entry_seconds <= 2 * self.reassertion_seconds:
            raise ValueError(
                f"an entry of {self.entry_seconds} s does not outlive two re-assertions of "
                f"{self.reassertion_seconds:g} s: one that is late would lose live users"
            )
        if self.registration_seconds < self.heartbeat_seconds + _WRITE_ALL_SECONDS:
            raise ValueError(
                f"a registration of {self.registration_seconds:g} s is shorter than a heartbeat of "
                f"{self.heartbeat_seconds:g} s and {_WRITE_ALL_SECONDS:g} s: connected users would "
                "be called offline after a loss"
            )


#: The timings of a cluster; gateways and processors take them from here.
TIMINGS: Final = Timings()


class Processors(NamedTuple):
    """The live processors at one time of the registry's clock, Unix time in milliseconds."""

    now_ms: int
    names: frozenset[str]


class Lease(enum.Enum):
    """The state of a node's lease, as a heartbeat found it."""

    HELD = "the lease was still this node's: its entries count and go on counting"
    LAPSED = "no lease (a start, a long pause), or entries may be lost: assert every entry again"
    TAKEN = "another process holds a live lease under this name: this node's entries do not count"


class RegistryUnavailable(RegistryError):
    """The registry did not answer. A failed look-up is no reason to call a user offline.

    `reason` says what went wrong; `where` is the registry's address, without credentials.
    """

    def __init__(self, reason: str, *, where: str = "") -> None:
        super().__init__(f"Redis at {where}: {reason}" if where else reason)
        self.reason = reason
        self.where = where

    @property
    def summary(self) -> str:
        """What is wrong, for readers who may not see the registry's address."""
        return "the registry does not answer"


class RegistryRefuses(RegistryUnavailable):
    """The registry answers, and refuses a command: `code` is the key of `CURES` (refusals.py)."""

    def __init__(self, code: str, reason: str, *, where: str) -> None:
        super().__init__(f"{code}: {CURES[code]} (Redis says: {reason})", where=where)
        self.code = code

    @property
    def summary(self) -> str:
        """What is wrong and what to do, for readers who may not see the registry's address."""
        return f"the registry refuses writes ({self.code}): {CURES[self.code]}"


class Registry(Protocol):
    """The push registry. Every method raises RegistryUnavailable when Redis does not answer."""

    async def heartbeat(self, node: Node, *, claim: bool = False) -> Lease:
        """Renew the node's lease; `claim` takes the lease over from an earlier process's epoch.

        A heartbeat also checks the generation markers, and makes lost or invalid markers anew.
        Where the registry was emptied or replaced, in whole or in part, since this process's last
        heartbeat, the answer is LAPSED although the lease is alive: entries may be lost.
        """

    async def retire(self, node: Node) -> None:
        """Give up the node's lease, unless another epoch has taken the lease over.

        From then on none of the node's elements count. A node whose lease has lapsed is no longer
        lost.
        """

    async def write(self, node: Node, here: Sequence[str], gone: Sequence[str]) -> None:
        """Assert the node's element of every user in `here`, remove the element of those in `gone`.

        A user's change is one atomic step: the step touches only this node's element, and drops
        expired elements of all nodes. Both lists may have any length.
        """

    async def processors(self) -> Processors:
        """Read the live processors, and the registry's clock."""

    async def keep_processor(self, name: str) -> Processors:
        """Renew a processor's lease, and read what `processors` reads.

        A processor holds its lease before it joins the group: gateways wait for the answers of all
        live processors when they ask what a client has missed.
        """

    async def retire_processor(self, name: str) -> None:
        """Give up a processor's lease: no gateway waits for its answers any more."""

    async def probe(self) -> None:
        """Write as a gateway does, to keys that no look-up reads, so that a refusal is noticed.

        While writes are refused, and until every gateway has had the time to write its users again,
        users who are not found are unknown, and lost nodes stay lost.

        Raises:
            RegistryRefuses: the registry refuses writes; the text names the cure.
        """

    async def refresh(self) -> None:
        """Read live and lost nodes afresh; `lookup` ignores elements of all other nodes."""

    async def nodes(self) -> list[Node]:
        """Read the nodes afresh, as `refresh` does, and return the live nodes."""

    def present(self, node: Node) -> bool:
        """Whether a node was live or lost at the latest reading of the leases. No I/O."""

    def vouch(self, node: Node) -> None:
        """Note that a node has just answered a forward with 200, so it lives. No I/O.

        For PUSHGATE_LOST_NODE_SECONDS the node counts, lost at least, even if the registry has lost
        every sign of it: until it says goodbye, or a process with another epoch has its name.
        """

    def lost(self, node: Node) -> bool:
        """Whether a node was lost at the latest reading of the leases. No I/O.

        A node is lost when its lease has lapsed without a goodbye (`retire`), for as long as
        PUSHGATE_LOST_NODE_SECONDS says, or until a process with another epoch has the name. A lost
        node may hold its connections still: frozen, or cut off from the registry.
        """

    async def lookup(self, users: Sequence[str]) -> list[tuple[Node, ...] | None]:
        """Return, for every user in turn, the nodes with a connection of the user; one call.

        Nodes are live or lost (`lost` tells), in the order of the user's entry. `()` means offline.
        None means unknown: the registry was emptied or replaced, or did not answer, so short a time
        ago that the user may be connected and not yet registered again. Once a gateway has noticed
        the loss, no user stays unknown for longer than registration takes
        (`Timings.registration_seconds`).
        """

    async def close(self) -> None:
        """Close the connections to the registry."""
