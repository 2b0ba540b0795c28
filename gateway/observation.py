"""What metrics read of a node at each scrape: its limits and how near they are, its drain."""

from __future__ import annotations

from collections.abc import Callable

from gateway import metrics
from gateway.connections.admission import most_sockets
from gateway.connections.node import GatewayNode


def observe(node: GatewayNode, *, sockets: Callable[[], int], memory_mark: int) -> None:
    """Have metrics read a node from now on; a process has one node.

    `sockets` returns how many sockets the public port has, `memory_mark` is in bytes, 0 for none.
    """
    admission = node.admission
    metrics.CONNECTIONS_LIMIT.set(admission.limits.connections)
    metrics.SOCKETS.set_function(sockets)
    metrics.SOCKETS_LIMIT.set(most_sockets())
    metrics.MEMORY_LIMIT.set(memory_mark)
    metrics.SHORT_OF_MEMORY.set_function(lambda: admission.memory.reached)
    metrics.READY.set_function(lambda: node.status == "ready")
    metrics.DRAINING.set_function(lambda: node.drain is not None)
    metrics.DRAIN_LEFT.set_function(lambda: node.drain_left_seconds or 0.0)
    metrics.DRAIN_TOLD.set_function(lambda: node.drain.told_clients if node.drain else 0)
    metrics.STATES.read = node.hub.states
