"""A reading: what every gateway and every processor says of itself at one time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pushgate.ports import NoAnswer, Ports
from registry.directory import Node
from registry.redis_store import RedisRegistry
from registry.status import Status

#: What a process answered, by the process; an error where the process did not.
Answers = dict[Node, Status | NoAnswer]


@dataclass(frozen=True, slots=True)
class Reading:
    """The answers of all processes.

    `at` is the time of the reading, in seconds of a monotonic clock. `without_port` is the number
    of live processors that have not registered where tools reach them.
    """

    at: float
    gateways: Answers
    processors: Answers
    without_port: int


class Reader:
    """Takes readings."""

    def __init__(
        self,
        registry: RedisRegistry,
        *,
        gateways: Ports,
        processors: Ports,
        clock: Callable[[], float],
    ) -> None:
        """`gateways` and `processors` are the ways to call either."""
        self._registry = registry
        self._gateways = gateways
        self._processors = processors
        self._clock = clock

    async def read(self) -> Reading:
        """Ask all processes at once.

        Raises:
            RegistryUnavailable: the registry does not answer, so no process is known.
        """
        live = await self._registry.nodes()
        ports = await self._registry.processor_ports()
        leases = await self._registry.processors()
        at = self._clock()
        gateways, processors = await asyncio.gather(
            _statuses(self._gateways, live), _statuses(self._processors, ports)
        )
        return Reading(at, gateways, processors, max(0, len(leases.names) - len(ports)))


async def _statuses(ports: Ports, nodes: Sequence[Node]) -> Answers:
    ordered = sorted(nodes, key=lambda node: (node.name, node.epoch))
    answers = await asyncio.gather(*(_status(ports, node) for node in ordered))
    return dict(zip(ordered, answers, strict=True))


async def _status(ports: Ports, node: Node) -> Status | NoAnswer:
    try:
        return await ports.ask("GET", node, "/status", Status)
    except NoAnswer as error:
        return error
