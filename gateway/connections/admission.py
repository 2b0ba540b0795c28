"""How much a node takes: new connections are refused for load before anything is allocated."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from typing import Final

import structlog

from gateway.connections.memory import MemoryMark

log = structlog.get_logger("gateway.admission")

_LOG_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that a node takes: connections and handshakes.

    0 means no limit, except for `connections`. `per_address` and `per_user` are connections of one
    client address and of one user.
    """

    connections: int
    per_address: int
    per_user: int
    handshakes_per_second: int


class Admission:
    """Counts connections and refuses new connections above the limits.

    Times are passed in, in seconds of a monotonic clock.
    """

    def __init__(self, limits: Limits, memory: MemoryMark) -> None:
        self.limits = limits
        self.memory = memory
        self.held = 0
        # Set by the server on every tick: the public listener alone knows the sockets in HTTP too.
        self.out_of_sockets = False
        self._addresses: dict[str, int] = {}
        #: A token bucket of handshakes: full after one second without a new connection.
        self._handshakes = float(limits.handshakes_per_second)
        self._refilled_at = 0.0
        self._refused = 0  # new connections, since the last log line
        self._checked_at = 0.0

    @property
    def overloaded(self) -> bool:
        """Whether the node as a whole has no place for another client."""
        return self.exhausted or self.full

    @property
    def exhausted(self) -> bool:
        """Whether the node is short of what no limit brings back: descriptors or memory."""
        return self.out_of_sockets or self.memory.reached

    @property
    def full(self) -> bool:
        """Whether the node holds as many connections as its limit allows."""
        return self.held >= self.limits.connections

    def refusal(self, address: str, now: float, *, replaces: bool = False) -> str | None:
        """Return the reason to refuse a new connection from `address`; None to admit it.

        With None the new connection has also taken its handshake from `handshakes_per_second`. The
        limits of the node and of an address do not refuse a new connection that `replaces` a
        connection, which is about to end.
        """
        reason = self._refusal(address, now, replaces=replaces)
        if reason is not None:
            self._refused += 1
        return reason

    def user_refusal(self, connections: int) -> str | None:
        """Return the reason to refuse another connection to a user who has `connections` here.

        None to admit the connection.
        """
        if self.limits.per_user and connections >= self.limits.per_user:
            self._refused += 1
            return "too many connections of this user"
        return None

    def count_in(self, address: str) -> str | None:
        """Count a connection that the node now holds; return the argument of `count_out`.

        The argument is `address`, or None where there is no limit by address.
        """
        self.held += 1
        if not self.limits.per_address:
            return None
        self._addresses[address] = self._addresses.get(address, 0) + 1
        return address

    def adopt(self, address: str | None) -> str | None:
        """Count a connection of the earlier process; return the argument of `count_out`.

        `address` is None where the earlier process did not count by address.
        """
        if address is None:
            self.held += 1
            return None
        return self.count_in(address)

    def go_on(self, handshakes: float, now: float) -> None:
        """Have as many handshakes left as the earlier process."""
        self._handshakes = min(handshakes, float(self.limits.handshakes_per_second))
        self._refilled_at = now

    def handshakes_left(self, now: float) -> float:
        """Return how many handshakes are left, for the next process."""
        self._refill(now)
        return self._handshakes

    def count_out(self, address: str | None) -> None:
        """Count a connection that has ended; `address` is the result of its `count_in`."""
        self.held -= 1
        if address is not None:
            remaining = self._addresses.pop(address) - 1
            if remaining:
                self._addresses[address] = remaining

    def advance(self, now: float) -> None:
        """Measure the memory, and log the number of refusals, both once a second at most."""
        self.memory.advance(now)
        if now - self._checked_at < _LOG_SECONDS:
            return
        self._checked_at = now
        if self._refused:
            log.warning(
                "refused for load",
                refused=self._refused,
                held=self.held,
                memory=self.memory.reached,
            )
            self._refused = 0

    def _refusal(self, address: str, now: float, *, replaces: bool) -> str | None:
        limits = self.limits
        if self.memory.reached:
            return "short of memory"
        if self.out_of_sockets or (self.full and not replaces):
            return "full"
        counts = limits.per_address and not replaces
        if counts and self._addresses.get(address, 0) >= limits.per_address:
            return "too many connections from this address"
        if limits.handshakes_per_second and not self._take_handshake(now):
            return "too many new connections"
        return None

    def _take_handshake(self, now: float) -> bool:
        self._refill(now)
        if self._handshakes < 1:
            return False
        self._handshakes -= 1
        return True

    def _refill(self, now: float) -> None:
        rate = self.limits.handshakes_per_second
        self._handshakes = min(rate, self._handshakes + (now - self._refilled_at) * rate)
        self._refilled_at = now


def most_sockets() -> int:
    """Return how many public sockets the descriptor limit of this process (RLIMIT_NOFILE) allows.

    32 descriptors and 1/128 of the limit are kept for listeners, Redis, processors and logs.
    """
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if descriptors == resource.RLIM_INFINITY:
        return 1 << 31
    return max(1, descriptors - 32 - descriptors // 128)


def most_connections() -> int:
    """Return how many connections a node holds by default.

    32 public sockets and 1/128 of them all are kept for sockets that are still in HTTP: probes, and
    clients that are being refused.
    """
    sockets = most_sockets()
    return max(1, sockets - 32 - sockets // 128)
