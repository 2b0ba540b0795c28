"""How a gateway without workers is renewed: the gateway starts a successor, which takes over."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

from pushgate.launch import READY_SECONDS, NotReady, Orphan
from pushgate.reloads import Renewal


class Predecessor(Protocol):
    """A gateway, as seen from here."""

    #: The process that has taken over; None where none has.
    successor: int | None
    #: Whether `stop` was called.
    was_stopped: bool

    @property
    def leave_seconds(self) -> float:
        """How long a drain takes at most."""

    async def until_stopped(self) -> None:
        """Return once the gateway leaves, taken over or not."""


class Succession:
    """Starts the successors of one gateway: a second successor where the first has failed.

    No third process stands between the two: the successor is an orphan from its start, and the
    gateway leaves by itself after the take-over.
    """

    def __init__(
        self,
        gateway: Predecessor,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        ready_seconds: float = READY_SECONDS,
    ) -> None:
        """`command` and `environment` are the gateway's.

        A successor may take `ready_seconds`, and as long as the gateway's drain beside.
        """
        self._gateway = gateway
        self._command = command
        self._environment = environment
        self._ready_seconds = ready_seconds + gateway.leave_seconds

    async def renew(self, environment: Mapping[str, str] | None) -> AsyncIterator[Renewal]:
        """Start a successor with `environment`, None for the gateway's; yield what became of it."""
        try:
            successor = await Orphan.start(
                self._command, self._environment if environment is None else environment
            )
            with contextlib.closing(successor):
                await self._until_ready(successor)
        except NotReady as error:
            yield Renewal(None, error=f"the successor {error}")
        else:
            yield Renewal(None, pid=successor.pid)

    async def _until_ready(self, successor: Orphan) -> None:
        leaving = asyncio.create_task(self._leave_with_gateway(successor))
        try:
            await successor.until_ready(self._ready_seconds)
        finally:
            leaving.cancel()
        if self._gateway.was_stopped:
            successor.leave()  # the stop came in the middle of the take-over

    async def _leave_with_gateway(self, successor: Orphan) -> None:
        """Have a successor leave that has not taken over when the gateway leaves."""
        await self._gateway.until_stopped()
        if self._gateway.successor is None:
            successor.leave()
