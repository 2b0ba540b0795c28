"""From credentials to an Identity: which credential of a request decides, and its signature."""

from __future__ import annotations

import time
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import jwt
from jwt.algorithms import HMACAlgorithm
from jwt.types import Options

from gateway.connections.identity import Identity
from gateway.entry.claims import BadClaims, ClaimRules, identity_of
from gateway.entry.hs256 import Verifier
from gateway.entry.jwks import KeyRing
from gateway.errors import GatewayError

#: The longest token. Common proxies let no longer token through in the head of a request, so to
#: verify a longer token would be work for nothing.
MAX_TOKEN_BYTES: Final = 8_192
#: The name of the cookie for a token.
COOKIE: Final = "pushgate_token"
#: A WebSocket subprotocol with this prefix carries a token.
BEARER_PREFIX: Final = "bearer."
_BEARER: Final = "bearer "
#: A token's fault by PyJWT's error; subclasses come first. An error that is not listed, and any
#: ValueError, comes from bytes that are no JWT.
_FAULTS: Final[tuple[tuple[type[Exception], str], ...]] = (
    (jwt.InvalidSignatureError, "signed with another key"),
    (jwt.InvalidAlgorithmError, "its algorithm is not accepted here"),
    (jwt.DecodeError, "not a JWT"),
    (jwt.InvalidTokenError, "its header has a bad kid, or crit or b64, which are not taken"),
)
#: PyJWT verifies signatures alone; claims.py has the rules for claims.
_SIGNATURE_ALONE: Final[Options] = {
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
    "verify_aud": False,
    "verify_iss": False,
    "verify_sub": False,
    "verify_jti": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """The operator's rules for tokens.

    `algorithms` are names of RFC 7518 §3.1, `secret` is the key of HS256.
    """

    algorithms: frozenset[str]
    secret: str | None = field(repr=False)
    claims: ClaimRules


class Unauthenticated(GatewayError):
    """A request has no credential, or its token is not valid.

    The text says in plain words what is wrong, and never repeats bytes of the token.
    """


class _CheckedHMAC(HMACAlgorithm):
    """HS256 with a secret that was checked before.

    PyJWT checks the secret again for every token: 10 of the 23 µs that a token takes.
    """

    def prepare_key(self, key: str | bytes) -> bytes:
        """Take the secret without a check."""
        return key.encode() if isinstance(key, str) else key


class UnknownKey(Unauthenticated):
    """The token names a key that is not in the key set, or not yet."""


class Authenticator:
    """Verifies JWTs (RFC 7519): `sub` is the user, `exp` is required, `device` optional.

    The settings say which algorithms are accepted, and every algorithm has keys of its own
    (RFC 8725 §3.1): HS256 has the secret, regardless of `kid`; RS256 and ES256 have the keys that
    the key ring holds for the same algorithm. A token can choose among the algorithms and keys, and
    can't bring a key: the header parameters `jku`, `jwk`, `x5u` and `x5c` are ignored.
    """

    def __init__(self, rules: TokenRules, keys: KeyRing | None) -> None:
        """`keys` is the key ring for RS256 and ES256; None where HS256 alone is accepted.

        Raises:
            ValueError: there is no key ring, though an accepted algorithm needs a key ring.
        """
        if keys is None and rules.algorithms != {"HS256"}:
            raise ValueError("RS256 and ES256 need a key ring")
        self._secret = None if rules.secret is None else _checked_key(rules.secret)
        self._usual: Verifier | None = None
        if rules.secret is not None and "HS256" in rules.algorithms:
            self._usual = Verifier(rules.secret.encode())
        self._algorithms = rules.algorithms
        self._keys = keys
        self._rules = rules.claims
        self._jwt = jwt.PyJWT(_SIGNATURE_ALONE)

    async def authenticate(self, token: str) -> Identity:
        """Verify `token` and return its user, device and expiry.

        Where the token names an unknown key, the key set is read again first: the key may be new.

        Raises:
            Unauthenticated: the token is not valid, or has expired.
        """
        try:
            return self.identify(token)
        except UnknownKey:
            if self._keys is None or not await self._keys.renew():
                raise
        return self.identify(token)

    def identify(self, token: str) -> Identity:
        """Verify `token` with the keys known now, and return its user, device and expiry.

        Raises:
            UnknownKey: the token's key is unknown, and may be known after a reading of the key set.
            Unauthenticated: the token is not valid, or has expired.
        """
        if len(token) > MAX_TOKEN_BYTES:
            raise Unauthenticated(f"token refused: over {MAX_TOKEN_BYTES} bytes")
        try:
            return identity_of(self._claims(token), self._rules, now=time.time())
        except BadClaims as error:
            fault = str(error)
        except (jwt.PyJWTError, ValueError) as error:
            fault = _fault(error)
        # Raised outside of the handler, so that PyJWT's error is not chained: the text of the error
        # and the attributes of a decoder's error repeat the token.
        raise Unauthenticated(f"token refused: {fault}")

    def _claims(self, token: str) -> dict[str, Any]:
        """Verify the signature of `token`, and return its claims."""
        if self._usual is not None:
            usual_claims = self._usual.claims_of(token)
            if usual_claims is not None:
                return usual_claims
        key, algorithm = self._key(token)
        decoded = self._jwt.decode_complete(token, key, algorithms=[algorithm])
        if "crit" in decoded["header"]:
            # PyJWT accepts the critical parameter `b64`, which no JWT may use (RFC 7797 §7).
            raise jwt.InvalidTokenError
        claims: dict[str, Any] = decoded["payload"]
        return claims

    def _key(self, token: str) -> tuple[jwt.PyJWK, str]:
        """Return the key that has to verify `token`, and the only algorithm for the key."""
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


def _fault(error: Exception) -> str:
    """Return the fault of a token, in plain words."""
    return next((fault for kind, fault in _FAULTS if isinstance(error, kind)), "not a JWT")


def _checked_key(secret: str) -> jwt.PyJWK:
    """Return the HS256 secret as a key that is checked once, here.

    The settings have already refused a string that is not fit to be a secret.
    """
    raw = HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)
    encoded = urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")
    key = jwt.PyJWK({"kty": "oct", "k": encoded}, "HS256")
    key.Algorithm = _CheckedHMAC(HMACAlgorithm.SHA256)
    return key


def credential(
    *,
    authorization: str | None,
    subprotocols: Iterable[str],
    query_token: str | None,
    cookies: Mapping[str, str],
    cookie_counts: bool,
) -> str:
    """Return the token of the first credential that is present.

    The order is Authorization, subprotocol, query, cookie. The first credential decides, good or
    bad: later credentials are not tried. Whether a cookie counts depends on the page
    (`Trust.COOKIE` in origin.py), because browsers add cookies to requests of any web page.

    Raises:
        Unauthenticated: the request has no credential, or only a cookie that does not count.
    """
    if authorization is not None and authorization[: len(_BEARER)].lower() == _BEARER:
        return authorization[len(_BEARER) :].strip()
    for name in subprotocols:
        if name.startswith(BEARER_PREFIX):
            return name[len(BEARER_PREFIX) :]
    if query_token is not None:
        return query_token
    if COOKIE in cookies:
        if cookie_counts:
            return cookies[COOKIE]
        raise Unauthenticated(
            "the cookie does not count here: it needs an Origin of PUSHGATE_ORIGINS (not by *), or "
            "Sec-Fetch-Site: same-origin, which browsers send to https and loopback"
        )
    raise Unauthenticated(
        "no token: send Authorization: Bearer, subprotocol bearer.<token>, ?token= or the cookie"
    )
