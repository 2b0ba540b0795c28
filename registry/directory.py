"""Who is where: the registry's protocol, and the nodes it speaks of."""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final, Protocol

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ADDRESS = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}")


_MAX_PORT: Final = 65_535


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
        # Nodes are keys for every message; an epoch is random, and a str keeps its hash.
        return hash(self.epoch)

    @property
    def tag(self) -> bytes:
        """What stands for this node in a user's entry."""
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


class Lease(enum.Enum):
    """What a heartbeat found."""

    HELD = "the lease was still this node's: its entries count and go on counting"
    LAPSED = "no lease (a start, a long pause), or entries may be lost: assert every entry again"
    TAKEN = "another process holds a live lease under this name: this node's entries do not count"


class RegistryUnavailable(Exception):
    """The registry did not answer. Nobody may be called offline on the strength of this."""


class Registry(Protocol):
    """The push registry. Every method raises RegistryUnavailable when it cannot be asked."""

    async def heartbeat(self, node: Node, *, claim: bool = False) -> Lease:
        """Renew the node's lease; `claim` takes it over from an earlier process of that name.

        It sees to the registry's markers as well: a registry that was emptied or replaced, whole
        or in part, since this process's last heartbeat is LAPSED, though the lease be alive.
        """

    async def retire(self, node: Node) -> None:
        """Give up the node's lease, if it is still this node's: nothing of it counts any more."""

    async def write(self, node: Node, here: Sequence[str], gone: Sequence[str]) -> None:
        """Assert the node's own elements of users that are `here`, remove those that are `gone`.

        Each user's change is one atomic step that touches only this node's element and drops
        expired ones. Any number of users.
        """

    async def refresh(self) -> None:
        """Read the node table afresh; `lookup` filters by it."""

    async def lookup(self, users: Sequence[str]) -> list[tuple[Node, ...] | None]:
        """Return, for each user, the live nodes that hold a connection of theirs; one call.

        `()` is offline. None is unknown: the registry was emptied or replaced, or did not answer,
        so short a time ago that the user may be connected and not yet registered again. Nobody is
        None for longer than that takes: a registry heartbeat and five seconds, once a gateway has
        found it out.
        """

    async def close(self) -> None:
        """Let go of the connections to the registry."""
