"""How much a node takes: who is refused for load, before anything is allocated for them."""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

log = structlog.get_logger("gateway.admission")

_PAGE_BYTES: Final = resource.getpagesize()
_STATM: Final = Path("/proc/self/statm")
_CGROUP_LIMIT: Final = Path("/sys/fs/cgroup/memory.max")
#: Under a memory mark, new connections come back when this share of it is in use.
_CALM: Final = 0.95
_LOG_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What a node takes; 0 for no limit, but for `connections`."""

    connections: int
    per_address: int
    per_user: int
    handshakes_per_second: int
    memory_bytes: int


class Admission:
    """Counts what is held and says what is too much. Time is passed in, in seconds."""

    def __init__(self, limits: Limits, *, memory: Callable[[], int]) -> None:
        """`memory` measures the process, in bytes."""
        self.limits = limits
        self.held = 0
        self.out_of_sockets = False  # told by who counts them: also those that are still in HTTP
        self._memory = memory
        self._short_of_memory = False
        self._addresses: dict[str, int] = {}
        self._tokens = float(limits.handshakes_per_second)
        self._refilled_at = 0.0
        self._shed = 0
        self._looked_at = 0.0

    @property
    def overloaded(self) -> bool:
        """Whether the node as a whole takes nothing new."""
        full = self.out_of_sockets or self.held >= self.limits.connections
        return full or self._short_of_memory

    def refusal(self, address: str, now: float) -> str | None:
        """Say why a new connection from `address` is refused, None where it is not.

        One that is not refused has used up its share of handshakes.
        """
        reason = self._refusal(address, now)
        if reason is not None:
            self._shed += 1
        return reason

    def user_refusal(self, connections: int) -> str | None:
        """Say why a user with so many connections on this node is refused another one."""
        if self.limits.per_user and connections >= self.limits.per_user:
            self._shed += 1
            return "too many connections of this user"
        return None

    def count_in(self, address: str) -> str | None:
        """Count a connection that is held; return what `count_out` needs to know of its address."""
        self.held += 1
        if not self.limits.per_address:
            return None
        self._addresses[address] = self._addresses.get(address, 0) + 1
        return address

    def count_out(self, address: str | None) -> None:
        """Count a connection out."""
        self.held -= 1
        if address is not None:
            left = self._addresses.pop(address) - 1
            if left:
                self._addresses[address] = left

    def advance(self, now: float) -> None:
        """Look at the memory, and log what was shed, both once a second at most."""
        if now - self._looked_at < _LOG_SECONDS:
            return
        self._looked_at = now
        mark = self.limits.memory_bytes
        if mark:
            self._short_of_memory = self._memory() > mark * (_CALM if self._short_of_memory else 1)
        if self._shed:
            log.warning(
                "refused for load", refused=self._shed, held=self.held, memory=self._short_of_memory
            )
            self._shed = 0

    def _refusal(self, address: str, now: float) -> str | None:
        limits = self.limits
        if self._short_of_memory:
            return "short of memory"
        if self.out_of_sockets or self.held >= limits.connections:
            return "full"
        if limits.per_address and self._addresses.get(address, 0) >= limits.per_address:
            return "too many connections from this address"
        if limits.handshakes_per_second and not self._handshake(now):
            return "too many new connections"
        return None

    def _handshake(self, now: float) -> bool:
        rate = self.limits.handshakes_per_second
        self._tokens = min(rate, self._tokens + (now - self._refilled_at) * rate)
        self._refilled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def most_sockets() -> int:
    """Return how many public sockets the descriptors of this process allow.

    What is left is for listeners, Redis, processors and logs.
    """
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if descriptors == resource.RLIM_INFINITY:
        return 1 << 31
    return max(1, descriptors - 32 - descriptors // 128)


def most_connections() -> int:
    """Return how many connections a node holds by default.

    What is left of its sockets is for those still in HTTP: probes, and whoever is refused.
    """
    sockets = most_sockets()
    return max(1, sockets - 32 - sockets // 128)


def memory_mark() -> int:
    """Return nine tenths of the control group's memory limit; 0 where there is none."""
    try:
        return int(_CGROUP_LIMIT.read_text()) * 9 // 10
    except (OSError, ValueError):  # no such file, or "max"
        return 0


def resident_bytes() -> int:
    """Return the process's resident memory; 0 where the system does not tell."""
    try:
        return int(_STATM.read_text().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0
