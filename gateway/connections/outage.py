"""An outage of the registry, as this node sees the outage: why, for the log and for `/readyz`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

import structlog

from registry.directory import RegistryRefuses, RegistryUnavailable

#: Time between two log lines of the same trouble.
_LOG_SECONDS: Final = 60.0

log = structlog.get_logger("gateway.registrar")


class Outage:
    """Whether the registry is out of order: silent, or refusing writes.

    An outage begins with a failed call (`failed`), and ends (`ended`) when the registry has
    accepted a write on every master. The end of one call is not enough: Redis accepts a write that
    has nothing to change, and one master of a Cluster may refuse while the others accept.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds."""
        self._clock = clock
        #: The latest error of the outage; None outside outages.
        self._error: RegistryUnavailable | None = None
        #: When a line was logged last, by the code of the trouble; empty outside outages.
        self._logged_at: dict[str | None, float] = {}

    @property
    def lasts(self) -> bool:
        """Whether there is an outage."""
        return self._error is not None

    @property
    def warning(self) -> str:
        """The trouble and its cure, without the registry's address; empty outside outages."""
        return self._error.summary if self._error is not None else ""

    def failed(self, error: RegistryUnavailable) -> None:
        """Note a failed call; log another trouble at once, and the same once a minute."""
        self._error = error
        code = error.code if isinstance(error, RegistryRefuses) else None
        now = self._clock()
        if now - self._logged_at.get(code, -math.inf) < _LOG_SECONDS:
            return
        self._logged_at[code] = now
        if code is None:
            log.error("can't reach the registry; clients stay, trying on", error=str(error))
        else:
            log.error("the registry refuses writes; clients stay, trying on", error=str(error))

    def ended(self) -> None:
        """Note the end of the outage."""
        self._error = None
        self._logged_at.clear()
        log.info("registry is back; every entry is asserted again")
