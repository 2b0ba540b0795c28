"""Running checks at once, each within a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from pushgate.doctor.finding import Finding, Subject

#: How long a check may take. The command has 20 s in all: this, what ending takes, and the start.
DEADLINE_SECONDS: Final = 14.0
#: How long a cancelled check may take to end.
_END_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Check:
    """A check and its deadline; `subject` is named where the check does not end."""

    subject: Subject
    find: Callable[[], Awaitable[Sequence[Finding]]]
    deadline_seconds: float = DEADLINE_SECONDS


async def findings_of(checks: Sequence[Check]) -> list[Finding]:
    """Run all checks at once; return their findings in the order of the checks.

    A check that is late, or fails, is a finding itself. Takes the longest deadline and a second at
    most.
    """
    found = await asyncio.gather(*map(_findings, checks))
    return [finding for findings in found for finding in findings]


async def _findings(check: Check) -> Sequence[Finding]:
    task = asyncio.ensure_future(check.find())
    await asyncio.wait((task,), timeout=check.deadline_seconds)
    if not task.done():
        task.cancel()
        await asyncio.wait((task,), timeout=_END_SECONDS)
        return [_late(check)]
    # A library may cancel its caller, as aiokafka's stop() does; other checks count all the same.
    error = asyncio.CancelledError() if task.cancelled() else task.exception()
    return task.result() if error is None else [_failed(check, error)]


def _late(check: Check) -> Finding:
    return check.subject.fault(
        f"no end of this check within {check.deadline_seconds:g} s",
        why="a server answers slowly, or in part",
        cure="look at the other findings, and try again",
    )


def _failed(check: Check, error: BaseException) -> Finding:
    return check.subject.fault(
        f"this check failed by itself: {error!r}",
        why="the doctor does not know the answer that it got",
        cure="see that the address is the right server's; then please report this line",
    )
