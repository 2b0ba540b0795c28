"""Checks of who may connect: origins of web pages, secrets, and a token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from gateway.entry.auth import Authenticator, Unauthenticated
from pushgate.doctor.finding import Finding, Subject
from pushgate.settings import DoctorSettings

ORIGINS: Final = Subject("origins")
TOKENS: Final = Subject("tokens")

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


def judge_origins(settings: DoctorSettings) -> Iterator[Finding]:
    """Judge PUSHGATE_ORIGINS; its form has been checked with the settings."""
    origins = [each for each in (part.strip() for part in settings.origins.split(",")) if each]
    if not origins:
        yield ORIGINS.note(
            "pages of the gateway's own origin alone may connect",
            why="pages of any other origin get 403",
            cure="name the origins of your pages in PUSHGATE_ORIGINS, as in https://app.example.com",
        )
    if "*" in origins:
        yield ORIGINS.warning(
            "pages of every origin may connect (PUSHGATE_ORIGINS has *)",
            why="any page that gets hold of a token can use it; the cookie does not count",
            cure="name the origins of your pages in PUSHGATE_ORIGINS",
        )
    plain = [each for each in origins if each.startswith("http://") and not _is_local(each)]
    if plain:
        yield ORIGINS.warning(
            f"pages without TLS may connect: {', '.join(plain)}",
            why="on its way such a page can be changed, and its tokens be taken",
            cure="write https:// in PUSHGATE_ORIGINS, and serve the pages so",
        )
    if local := [each for each in origins if _is_local(each)]:
        yield ORIGINS.note(
            f"pages of the user's own machine may connect: {', '.join(local)}",
            why="that is for development",
            cure="leave these out of PUSHGATE_ORIGINS in production",
        )
    if origins and "*" not in origins and not plain:
        yield ORIGINS.ok(f"{len(origins)} besides the gateway's own")


def _is_local(origin: str) -> bool:
    host = urlsplit(origin.removesuffix(":*")).hostname or ""
    return host in _LOOPBACK or host.endswith(".localhost")


def judge_secrets(settings: DoctorSettings) -> Iterator[Finding]:
    """Judge whether the secrets of tokens and of the internal ports are there, and two."""
    of_tokens, internal = settings.jwt_secret, settings.internal_secret.get_secret_value()
    if of_tokens is None:
        if "HS256" in settings.algorithms:
            yield TOKENS.fault(
                "PUSHGATE_JWT_SECRET is not set, and HS256 is accepted",
                why="gateways don't start",
                cure="set PUSHGATE_JWT_SECRET to a secret of 32 bytes at least, or "
                "PUSHGATE_JWT_ALGORITHMS to RS256 or ES256",
            )
    elif of_tokens.get_secret_value() == internal:
        yield TOKENS.warning(
            "PUSHGATE_JWT_SECRET and PUSHGATE_INTERNAL_SECRET are the same",
            why="a backend that signs tokens can then push to anybody, and end connections",
            cure="set two secrets",
        )


async def check_token(settings: DoctorSettings, token: str | None, *, now: float) -> list[Finding]:
    """Verify a token as gateways do; without one, see that keys can be had. `now` is Unix time."""
    if settings.jwt_secret is None and "HS256" in settings.algorithms:
        return []  # said of the secrets
    keys = settings.key_ring()
    try:
        if keys is not None and not (await keys.renew() and keys.loaded.is_set()):
            return [_keyless()]
        if token is None:
            return [
                TOKENS.ok(f"keys for {settings.jwt_algorithms} are there; --token checks a token")
            ]
        identity = await Authenticator(settings.token_rules, keys).authenticate(token)
    except Unauthenticated as error:
        return [_refused(error)]
    finally:
        if keys is not None:
            await keys.close()
    device = "any device" if identity.device is None else f"device {identity.device!r}"
    seconds = identity.expires_at - now
    return [
        TOKENS.ok(f"the token is good for user {identity.user!r}, {device}, for {seconds:,.0f} s")
    ]


def _keyless() -> Finding:
    return TOKENS.fault(
        "the key set can't be read, or has no usable key",
        why="tokens with RS256 or ES256 are refused",
        cure="correct PUSHGATE_JWKS_URL or PUSHGATE_JWKS_FILE: a JSON Web Key Set with an RSA key "
        "of 2,048 to 8,192 bits, or an EC key of P-256",
    )


def _refused(error: Unauthenticated) -> Finding:
    return TOKENS.fault(
        str(error),
        why="gateways with these settings answer 401 to this token",
        cure="see PUSHGATE_JWT_ALGORITHMS, PUSHGATE_JWT_SECRET or PUSHGATE_JWKS_URL, "
        "PUSHGATE_JWT_AUDIENCE and PUSHGATE_JWT_ISSUER; docs/troubleshooting.md has each reason",
    )
