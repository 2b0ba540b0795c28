"""Credentials → Identity: which credential decides, and whom it speaks for."""

from __future__ import annotations

import time
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import jwt
from jwt.algorithms import HMACAlgorithm

from gateway.connections.identity import Identity
from gateway.entry.jwks import KeyRing
from gateway.errors import GatewayError
from registry.message import valid_device, valid_user

#: What fits the head of a request with common proxies; more is work for nothing.
MAX_TOKEN_BYTES: Final = 8_192
COOKIE: Final = "pushgate_token"
#: A WebSocket subprotocol with this prefix carries a token.
BEARER_PREFIX: Final = "bearer."
_BEARER: Final = "bearer "


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """What a token has to be; None in `audience` or `issuer` accepts any.

    `algorithms` are names of RFC 7518 §3.1, `secret` is the key of HS256, and `max_seconds` bounds
    how far ahead `exp` may lie.
    """

    algorithms: frozenset[str]
    secret: str | None = field(repr=False)
    audience: str | None
    issuer: str | None
    max_seconds: int


class Unauthenticated(GatewayError):
    """No credential, or not a good one. Says why, never with the token."""


class _LookedOver(HMACAlgorithm):
    """HS256 with a secret that was looked over: PyJWT does it on each token, 10 of its 23 µs."""

    def prepare_key(self, key: str | bytes) -> bytes:
        """Take the secret as it is."""
        return key.encode() if isinstance(key, str) else key


class UnknownKey(Unauthenticated):
    """The token names a key that is not there, or not yet."""


class Authenticator:
    """Verifies JWTs (RFC 7519): `sub` is the user, `exp` is required, `device` optional.

    Which algorithms count is the settings' word, and each has keys of its own: HS256 the secret,
    whatever `kid` says, RS256 and ES256 the key ring's for that very algorithm. A token chooses
    among these and brings none: `jku`, `jwk`, `x5u` and `x5c` mean nothing here.
    """

    def __init__(self, rules: TokenRules, keys: KeyRing | None) -> None:
        """`keys` verify RS256 and ES256.

        Raises:
            ValueError: there are no keys, though an algorithm needs them.
        """
        if keys is None and rules.algorithms != {"HS256"}:
            raise ValueError("RS256 and ES256 need a key ring")
        self._secret = None if rules.secret is None else _looked_over(rules.secret)
        self._algorithms = rules.algorithms
        self._keys = keys
        self._audience = rules.audience
        self._issuer = rules.issuer
        self._max_seconds = rules.max_seconds
        self._jwt = jwt.PyJWT(
            {
                # PyJWT takes a token without `exp` unless told otherwise.
                "require": ["exp", "sub"],
                # It refuses any `aud` where none is asked for.
                "verify_aud": self._audience is not None,
            }
        )

    async def authenticate(self, token: str) -> Identity:
        """Return whom `token` speaks for; for a new key's sake the key set may be read first.

        Raises:
            Unauthenticated: the token is not valid, or no longer.
        """
        try:
            return self.identify(token)
        except UnknownKey:
            if self._keys is None or not await self._keys.renew():
                raise
        return self.identify(token)

    def identify(self, token: str) -> Identity:
        """Return whom `token` speaks for, by the keys there are.

        Raises:
            UnknownKey: its key is not there; it may be once the key set is read again.
            Unauthenticated: the token is not valid, or no longer.
        """
        if len(token) > MAX_TOKEN_BYTES:
            raise Unauthenticated(f"token refused: over {MAX_TOKEN_BYTES} bytes")
        try:
            claims = self._claims(token)
        except (jwt.PyJWTError, ValueError, OverflowError) as error:
            reason = type(error).__name__
        else:
            return self._identity(claims)
        # Not within the handler: the error's text, and a decoder's attributes, repeat the token.
        raise Unauthenticated(f"token refused: {reason}")

    def _claims(self, token: str) -> dict[str, Any]:
        """Verify and return the claims."""
        key, algorithm = self._key(token)
        decoded = self._jwt.decode_complete(
            token, key, algorithms=[algorithm], audience=self._audience, issuer=self._issuer
        )
        if "crit" in decoded["header"]:
            # PyJWT knows `b64`, which no JWT may use (RFC 7797 §7).
            raise Unauthenticated("token refused: crit")
        claims: dict[str, Any] = decoded["payload"]
        return claims

    def _key(self, token: str) -> tuple[jwt.PyJWK, str]:
        """Return the key that has to verify `token`, and the one algorithm it is for."""
        if self._keys is None and self._secret is not None:
            return self._secret, "HS256"
        header = jwt.get_unverified_header(token)
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in self._algorithms:
            raise jwt.InvalidAlgorithmError
        if algorithm == "HS256":
            key = self._secret
        else:
            key = self._keys.find(algorithm, header.get("kid")) if self._keys else None
        if key is None:
            raise UnknownKey("token refused: its key is not known")
        return key, algorithm

    def _identity(self, claims: dict[str, Any]) -> Identity:
        user, device, expires = claims["sub"], claims.get("device"), claims["exp"]
        # PyJWT takes what int() takes, "1790000000" too.
        if not isinstance(expires, int | float):
            raise Unauthenticated("token refused: exp is no number")
        expires_at = int(expires)
        if expires_at > time.time() + self._max_seconds:
            raise Unauthenticated("token refused: exp is too far ahead")
        if not (isinstance(user, str) and valid_user(user)):
            raise Unauthenticated("token refused: sub is no user id")
        if device is not None and not (isinstance(device, str) and valid_device(device)):
            raise Unauthenticated("token refused: device is no device name")
        return Identity(user, device, expires_at)


def _looked_over(secret: str) -> jwt.PyJWK:
    """Return a secret as a key, looked over once (the settings have refused what is no secret)."""
    raw = HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)
    encoded = urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")
    key = jwt.PyJWK({"kty": "oct", "k": encoded}, "HS256")
    key.Algorithm = _LookedOver(HMACAlgorithm.SHA256)
    return key


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
