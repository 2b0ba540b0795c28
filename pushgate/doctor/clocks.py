"""Clocks, compared with this host's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pushgate.doctor.finding import Finding, Subject

CLOCKS: Final = Subject("clocks")

#: A gateway compares its clock with Redis's to so much, and a record may be so young.
_NOTABLE_SECONDS: Final = 5.0
#: The leeway of a token's `iat` and `nbf`.
_LEEWAY_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True, order=True)
class Reading:
    """How far a clock is ahead of this host's, in seconds, and how far off the reading may be."""

    whose: str
    ahead_seconds: float
    off_seconds: float


def judge(readings: Sequence[Reading]) -> list[Finding]:
    """Judge clocks; those that agree with this host's make one line."""
    agreeing = [each for each in readings if _distance(each) <= _NOTABLE_SECONDS]
    found = [_differing(each) for each in readings if each not in agreeing]
    if agreeing:
        farthest = max(agreeing, key=lambda each: abs(each.ahead_seconds))
        names = ", ".join(each.whose for each in agreeing)
        found.insert(0, CLOCKS.ok(f"{names}: {_shown(farthest)} at most"))
    return found


def _differing(reading: Reading) -> Finding:
    what = f"the clock of {reading.whose} is {_shown(reading)}"
    why = (
        "a token's times are judged by gateways' clocks, push-ttl by processors' and producers', "
        "resuming by Redis's"
    )
    cure = "let NTP (chrony, systemd-timesyncd) keep the clocks of all hosts, this one too"
    if _distance(reading) > _LEEWAY_SECONDS:
        return CLOCKS.fault(what, why=why, cure=cure)
    return CLOCKS.warning(what, why=why, cure=cure)


def _distance(reading: Reading) -> float:
    return max(0.0, abs(reading.ahead_seconds) - reading.off_seconds)


def _shown(reading: Reading) -> str:
    side = "ahead of" if reading.ahead_seconds >= 0 else "behind"
    return f"{abs(reading.ahead_seconds):.3f} s {side} this host's clock"
