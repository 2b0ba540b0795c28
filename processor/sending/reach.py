"""Where forwards go, and what the log says of gateways that may not be reached, or refuse.

A gateway's URL is made once and kept, so that a batch costs one dict look-up. With allowed
networks (PUSHGATE_GATEWAY_NETWORKS) the URL has the IP address of a host name, which is resolved
anew after a failure.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import structlog

from processor import metrics
from registry.calls import NO_TLS, REFUSED, GatewayCalls, OutsideNetworks, tls_fault
from registry.directory import Node

#: Shortest time between two log lines of one kind, whichever the gateways: a rogue can write any
#: number of leases.
_LOG_SECONDS: Final = 60.0
#: What an operator should know of a gateway that answers an upgrade as if it did not know it.
_NO_LINKS: Final = (
    "the gateway is older than this processor, or something else is at its address; upgrade "
    "gateways before processors. Messages for its users wait"
)

log = structlog.get_logger("processor.gateways")


class Reach:
    """The URLs of gateways. A gateway outside the allowed networks has none."""

    def __init__(self, calls: GatewayCalls, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` is in seconds, and says when a line may be logged again."""
        self.calls = calls
        self._clock = clock
        self._urls: dict[Node, str] = {}
        self._log_after: dict[str, float] = {}  # by the line

    async def url(self, node: Node) -> str:
        """Return scheme, host and port of a gateway.

        Raises:
            OutsideNetworks: nothing may be sent to the gateway; counted and logged.
            OSError, ValueError: the host name can't be resolved, or is none.
        """
        url = self._urls.get(node)
        if url is None:
            try:
                url = self._urls[node] = await self.calls.url(node)
            except OutsideNetworks as error:
                metrics.OUTSIDE_NETWORKS.inc()
                self._log_error("a gateway may not be reached", node, str(error))
                raise
        return url

    def refused(self, node: Node, status: int) -> None:
        """Take note that a gateway refuses the secret; the log has the cure."""
        self._log_error("a gateway refuses forwards", node, f"status {status}: {REFUSED}")

    def takes_no_links(self, node: Node, status: int) -> None:
        """Take note that a gateway knows no links; the log has the cure."""
        self._log_error("a gateway takes no links", node, f"status {status}: {_NO_LINKS}")

    def failed(self, node: Node, error: Exception) -> None:
        """Take note that a gateway gave no answer; a fault of TLS is logged with the cure."""
        self._urls.pop(node, None)
        if (fault := tls_fault(error)) is not None:
            self._log_error("a gateway can't be trusted", node, f"{NO_TLS}: {fault}")

    def retain(self, present: Callable[[Node], bool]) -> None:
        """Forget the URLs of gateways that are not present."""
        self._urls = {node: url for node, url in self._urls.items() if present(node)}

    def _log_error(self, event: str, node: Node, reason: str) -> None:
        now = self._clock()
        if now >= self._log_after.get(event, now):
            self._log_after[event] = now + _LOG_SECONDS
            log.error(event, node=node.name, address=node.address, reason=reason)
