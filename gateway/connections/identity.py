"""The user and device that a credential was issued for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Identity:
    """A user, the device where the token names one, and the token's expiry (Unix time, seconds)."""

    user: str
    device: str | None
    expires_at: int
