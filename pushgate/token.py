"""Minting tokens for development and tests; in production your own backend mints tokens."""

from __future__ import annotations

import time

import jwt


def mint(user: str, secret: str, *, ttl_seconds: int, device: str | None = None) -> str:
    """Return an HS256 JWT (RFC 7519) for `user`, and for one `device` if set.

    The token expires `ttl_seconds` from now.
    """
    claims: dict[str, object] = {"sub": user, "exp": int(time.time()) + ttl_seconds}
    if device is not None:
        claims["device"] = device
    return jwt.encode(claims, secret, algorithm="HS256")
