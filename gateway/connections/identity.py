"""The user and the device that a credential was issued for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Identity:
    """A user, the device in the token (None: no device), and the token's expiry (Unix seconds)."""

    user: str
    device: str | None
    expires_at: int
