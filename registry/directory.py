"""The registry's protocol: nodes, their leases, where users are, and how long all of it lives."""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final, Protocol

from registry.errors import RegistryError

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ADDRESS = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}")

_MAX_PORT: Final = 65_535
#: Heartbeats that fit into one lease: a lease must survive an outage of 10 s.
_LEASE_HEARTBEATS: Final = 5
#: How long a gateway may take, after a heartbeat, to write the entries of all of its users.
_WRITE_ALL_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Node:
    """One start of one gateway process.

    `epoch` is random for each start, so that nothing written by an earlier process of the same
    name counts. `address` is the internal listener as `host:port`: no scheme, no path.
    """

    name: str
    epoch: str
    address: str

    def __post_init__(self) -> None:
        if not (_NAME.fullmatch(self.name) and _NAME.fullmatch(self.epoch)):
            given = f"{self.name[:80]!r}, {self.epoch[:80]!r}"
            raise ValueError(f"name and epoch of a node are 1–64 of A–Z a–z 0–9 . _ -: {given}")
        if not is_address(self.address):
            raise ValueError(f"the address of a node is host:port: {self.address[:80]!r}")

    def __hash__(self) -> int:
        # Nodes are dictionary keys for every message; an epoch is random, and a str keeps its hash.
        return hash(self.epoch)

    @property
    def tag(self) -> bytes:
        """The node's name in a user's entry."""
        return f"{self.name}:{self.epoch}".encode()


def is_address(text: str) -> bool:
    """Whether `text` is a host:port that could be connected to."""
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
    """How long leases and entries live and how often gateways renew them, in seconds.

    Gateways and processors of one cluster use the same values.

    Raises:
        ValueError: two values contradict each other; the text names both.
    """

    #: A gateway renews its lease this often.
    heartbeat_seconds: float = 2.0
    #: A node whose lease was not renewed for this long is dead, and none of its entries count.
    lease_seconds: float = 15.0
    #: A gateway writes each user's entry again within this.
    reassertion_seconds: float = 600.0
    #: A node's element in an entry lives this long.
    entry_seconds: int = 1_800
    #: After a loss or an outage users who are not found are unknown, not offline, for this long:
    #: what every gateway needs to notice, and to write the entries of all of its users.
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


class Lease(enum.Enum):
    """What a heartbeat found."""

    HELD = "the lease was still this node's: its entries count and go on counting"
    LAPSED = "no lease (a start, a long pause), or entries may be lost: assert every entry again"
    TAKEN = "another process holds a live lease under this name: this node's entries do not count"


class RegistryUnavailable(RegistryError):
    """The registry did not answer. No user may be called offline on the strength of this.

    `where` is the registry's address, without credentials.
    """

    def __init__(self, reason: str, *, where: str = "") -> None:
        super().__init__(f"Redis at {where}: {reason}" if where else reason)
        self.reason = reason
        self.where = where


class Registry(Protocol):
    """The push registry. Every method raises RegistryUnavailable when there is no answer."""

    async def heartbeat(self, node: Node, *, claim: bool = False) -> Lease:
        """Renew the node's lease; `claim` takes it over from an earlier process of that name.

        The registry's markers are seen to as well: where the registry was emptied or replaced, in
        whole or in part, since this process's last heartbeat, the answer is LAPSED, though the
        lease be alive.
        """

    async def retire(self, node: Node) -> None:
        """Give up the node's lease, if it is still this node's: no entry of it counts any more."""

    async def write(self, node: Node, here: Sequence[str], gone: Sequence[str]) -> None:
        """Assert the node's own elements of users that are `here`, remove those that are `gone`.

        Each user's change is one atomic step that touches only this node's element and drops
        expired elements. Any number of users.
        """

    async def refresh(self) -> None:
        """Read the node table afresh; `lookup` filters by it."""

    async def lookup(self, users: Sequence[str]) -> list[tuple[Node, ...] | None]:
        """Return, for each user, the live nodes with a connection of the user; one call.

        `()` is offline. None is unknown: the registry was emptied or replaced, or did not answer,
        so short a time ago that the user may be connected and not yet registered again. No user is
        None for longer than registration takes (`Timings.registration_seconds`), once a gateway
        has noticed the loss.
        """

    async def close(self) -> None:
        """Close the connections to the registry."""
