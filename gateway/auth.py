"""Credentials → Identity: which credential decides, and whom it speaks for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import jwt

from gateway.connection import Identity
from gateway.transports.websocket import BEARER_PREFIX
from registry.message import valid_device, valid_user

#: What fits the head of a request with common proxies; more is work for nothing.
MAX_TOKEN_BYTES: Final = 8_192
COOKIE: Final = "pushgate_token"
_BEARER: Final = "bearer "
#: The end of the year 9999: an `exp` beyond it is a mistake, or a way to ask for ever.
_LAST_DATE: Final = 253_402_300_799


class Unauthenticated(Exception):
    """No credential, or not a good one. Says why, never with the token."""


class Authenticator:
    """Verifies JWTs (RFC 7519): HS256, `sub` is the user, `exp` is required, `device` optional."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def identify(self, token: str) -> Identity:
        """Return whom `token` speaks for.

        Raises:
            Unauthenticated: the token is not valid, or no longer.
        """
        if len(token) > MAX_TOKEN_BYTES:
            raise Unauthenticated(f"token refused: over {MAX_TOKEN_BYTES} bytes")
        try:
            claims = jwt.decode(
                token,
                self._secret,
                algorithms=["HS256"],
                # PyJWT takes a token without `exp` unless told otherwise.
                options={"require": ["exp", "sub"], "verify_aud": False},
            )
        except (jwt.InvalidTokenError, ValueError, OverflowError) as error:
            raise Unauthenticated(f"token refused: {type(error).__name__}") from None
        user, device, expires_at = claims["sub"], claims.get("device"), int(claims["exp"])
        if expires_at > _LAST_DATE:
            raise Unauthenticated("token refused: exp is no date")
        if not (isinstance(user, str) and valid_user(user)):
            raise Unauthenticated("token refused: sub is no user id")
        if device is not None and not (isinstance(device, str) and valid_device(device)):
            raise Unauthenticated("token refused: device is no device name")
        return Identity(user, device, expires_at)


def credential(
    *,
    authorization: str | None,
    subprotocols: Iterable[str],
    query_token: str | None,
    cookies: Mapping[str, str],
    origin_allowed: bool,
) -> str:
    """Return the first credential present: it decides, good or bad.

    A cookie counts only with an allowed Origin: browsers add it to requests of any page.

    Raises:
        Unauthenticated: there is none.
    """
    if authorization is not None and authorization[: len(_BEARER)].lower() == _BEARER:
        return authorization[len(_BEARER) :].strip()
    for name in subprotocols:
        if name.startswith(BEARER_PREFIX):
            return name[len(BEARER_PREFIX) :]
    if query_token is not None:
        return query_token
    if origin_allowed and COOKIE in cookies:
        return cookies[COOKIE]
    raise Unauthenticated(
        "no token: send Authorization: Bearer, subprotocol bearer.<token>, ?token= or the cookie"
    )
