"""Minting tokens for development and tests; in production your own backend mints tokens."""

from __future__ import annotations

import time
from collections.abc import Mapping

import jwt

from gateway.entry.claims import BadClaims, ClaimRules, identity_of
from pushgate.errors import PushgateError


class RefusedClaims(PushgateError):
    """Gateways would refuse the token; the text says why."""


def mint(
    user: str,
    secret: str,
    *,
    ttl_seconds: int,
    device: str | None = None,
    rules: ClaimRules | None = None,
) -> str:
    """Return an HS256 JWT (RFC 7519) for `user`, and for one `device` if set.

    The token expires `ttl_seconds` from now. With the `rules` of the gateways the token has the
    audience and the issuer that the rules want.

    Raises:
        RefusedClaims: gateways with these rules would refuse the token.
    """
    now = time.time()
    claims: dict[str, object] = {"sub": user, "exp": int(now) + ttl_seconds}
    if device is not None:
        claims["device"] = device
    if rules is not None:
        claims |= _wanted(rules)
        _check(claims, rules, now)
    return jwt.encode(claims, secret, algorithm="HS256")


def _wanted(rules: ClaimRules) -> dict[str, object]:
    wanted = {"aud": rules.audience, "iss": rules.issuer}
    return {name: value for name, value in wanted.items() if value is not None}


def _check(claims: Mapping[str, object], rules: ClaimRules, now: float) -> None:
    try:
        identity_of(claims, rules, now=now)
    except BadClaims as error:
        raise RefusedClaims(f"gateways would refuse this token: {error}") from error
