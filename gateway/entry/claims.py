"""The rules for a token's claims (RFC 7519 §4), and in plain words how a token breaks a rule.

The signature is verified before, by `auth`. The time is passed in, in seconds of the wall clock.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from gateway.connections.identity import Identity
from gateway.errors import GatewayError
from registry.message import valid_device, valid_user

#: How far the issuer's clock may be ahead of this node's clock. Only `nbf` and `iat` get this
#: leeway: a node with a late clock would else refuse tokens that were issued a moment ago. `exp`
#: gets none: an expired token stays expired.
CLOCK_LEEWAY_SECONDS: Final = 30
#: Longer spans are not spelled out: a claim may be a number of hundreds of digits.
_DECADES_SECONDS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRules:
    """The operator's rules for claims.

    `audience` and `issuer` are required values of `aud` and `iss`; None accepts any value.
    `max_seconds` bounds how far ahead `exp` may lie.
    """

    audience: str | None
    issuer: str | None
    max_seconds: int


class BadClaims(GatewayError):
    """A claim is missing or breaks a rule. The text names the claim, and never repeats a value."""


def identity_of(claims: Mapping[str, Any], rules: ClaimRules, *, now: float) -> Identity:
    """Return the user, device and expiry of a token with these claims.

    Raises:
        BadClaims: the claims break a rule; the text says which rule, and by how much.
    """
    expires_at = _expiry(claims, rules.max_seconds, now)
    for name in ("nbf", "iat"):
        if name in claims and (at := _seconds(claims, name)) > now + CLOCK_LEEWAY_SECONDS:
            raise BadClaims(f"not valid yet, {name} is {_span(at - int(now))} ahead")
    _check_audience(claims.get("aud"), rules.audience)
    _check_issuer(claims.get("iss"), rules.issuer)
    if not isinstance(claims.get("jti", ""), str):
        raise BadClaims("jti is no string")
    user, device = _required(claims, "sub"), claims.get("device")
    if not (isinstance(user, str) and valid_user(user)):
        raise BadClaims("sub is no user id")
    if device is not None and not (isinstance(device, str) and valid_device(device)):
        raise BadClaims("device is no device name")
    return Identity(user, device, expires_at)


def _expiry(claims: Mapping[str, Any], max_seconds: int, now: float) -> int:
    _required(claims, "exp")
    expires_at = _seconds(claims, "exp")
    if expires_at <= now:
        raise BadClaims(f"expired {_span(int(now) - expires_at)} ago")
    if expires_at > now + max_seconds:
        raise BadClaims("exp is too far ahead")
    return expires_at


def _required(claims: Mapping[str, Any], name: str) -> Any:
    value = claims.get(name)
    if value is None:
        raise BadClaims(f"{name} is missing")
    return value


def _seconds(claims: Mapping[str, Any], name: str) -> int:
    """Return a claim that is a time, without its fraction of a second (NumericDate, §2)."""
    value = claims[name]
    is_number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    if not is_number or isinstance(value, bool):
        raise BadClaims(f"{name} is no number")
    return int(value)


def _span(seconds: int) -> str:
    return f"{seconds} s" if seconds < _DECADES_SECONDS else "decades"


def _check_audience(named: object, audience: str | None) -> None:
    if audience is None:
        return
    if not named:
        raise BadClaims("aud is missing")
    names = [named] if isinstance(named, str) else named
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadClaims("aud is neither a name nor a list of names")
    if audience not in names:
        raise BadClaims("aud does not have the value of PUSHGATE_JWT_AUDIENCE")


def _check_issuer(named: object, issuer: str | None) -> None:
    if issuer is None:
        return
    if named is None:
        raise BadClaims("iss is missing")
    if named != issuer:
        raise BadClaims("iss is not the value of PUSHGATE_JWT_ISSUER")
