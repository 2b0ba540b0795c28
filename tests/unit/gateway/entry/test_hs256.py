"""HS256 without PyJWT: the same verdict and identity as with PyJWT, on tokens of any kind."""

from __future__ import annotations

import hmac
import json
import random
from base64 import urlsafe_b64encode
from collections.abc import Callable
from typing import Any, Final

import jwt
import pytest
from pydantic import SecretStr

from gateway.connections.identity import Identity
from gateway.entry.auth import Authenticator, Unauthenticated
from gateway.entry.hs256 import Verifier
from gateway.settings import AuthSettings

SECRET: Final = "a secret of thirty-two bytes or more, for tests"
USUAL: Final = Verifier(SECRET.encode())
NOW: Final = 1_800_000_000
CLAIMS: Final[dict[str, Any]] = {"sub": "alice", "exp": NOW + 3_600}
HEADER: Final = b'{"alg":"HS256","typ":"JWT"}'
MUTATIONS: Final = 100_000


@pytest.fixture(autouse=True)
def standing_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no second pass between the two verdicts on a token."""
    monkeypatch.setattr("gateway.entry.auth.time.time", lambda: float(NOW))


def authenticator() -> Authenticator:
    settings = AuthSettings(jwt_secret=SecretStr(SECRET), internal_secret=SecretStr("i" * 32))
    return Authenticator(settings.token_rules, None)


def by_pyjwt() -> Authenticator:
    """Give an authenticator that has PyJWT verify every token."""
    alone = authenticator()
    alone._usual = None
    return alone


def verdict(auth: Authenticator, token: str) -> Identity | str:
    try:
        return auth.identify(token)
    except Unauthenticated as error:
        return str(error)


def encoded(raw: bytes) -> bytes:
    return urlsafe_b64encode(raw).rstrip(b"=")


def signed(signing_input: bytes, secret: bytes = SECRET.encode()) -> bytes:
    return signing_input + b"." + encoded(hmac.digest(secret, signing_input, "sha256"))


def token_of(payload: bytes, header: bytes = HEADER) -> str:
    return signed(encoded(header) + b"." + encoded(payload)).decode()


def claims(**others: Any) -> bytes:
    return json.dumps({**CLAIMS, **others}).encode()


GOOD: Final = {
    "of PyJWT": jwt.encode(CLAIMS, SECRET, algorithm="HS256"),
    "with a device": jwt.encode({**CLAIMS, "device": "phone"}, SECRET, algorithm="HS256"),
    "with a fraction": token_of(claims(exp=NOW + 60.5)),
    "not in ASCII": token_of(claims(sub="ünï 漢")),
    "raw UTF-8": token_of(json.dumps({**CLAIMS, "sub": "漢"}, ensure_ascii=False).encode()),
    "with spaces around": token_of(b" \n" + claims() + b"\t "),
    "of any length": token_of(claims(scopes=["read"] * 200)),
}
ODD: Final = {
    "the last of two": token_of(b'{"sub":"eve","exp":%d,"sub":"alice"}' % (NOW + 60)),
    "not a number": token_of(b'{"sub":"alice","exp":NaN}'),
    "infinite": token_of(b'{"sub":"alice","exp":1e400}'),
    "huge": token_of(b'{"sub":"alice","exp":%d,"n":1%s}' % (NOW + 60, b"0" * 400)),
    "too many digits": token_of(b'{"sub":"alice","exp":%d,"n":1%s}' % (NOW + 60, b"0" * 4_400)),
    "a surrogate": token_of(b'{"sub":"a\\ud800","exp":%d}' % (NOW + 60)),
    "an encoded surrogate": token_of(b'{"sub":"a\xed\xa0\x80","exp":%d}' % (NOW + 60)),
    "no UTF-8": token_of(b'{"sub":"a\xff","exp":%d}' % (NOW + 60)),
    "UTF-16": token_of(claims().decode().encode("utf-16")),
    "a BOM": token_of(b"\xef\xbb\xbf" + claims()),
    "a control character": token_of(b'{"sub":"al\nice","exp":%d}' % (NOW + 60)),
    "nested deeply": token_of(b'{"sub":"alice","exp":%d,"n":%s' % (NOW + 60, b"[" * 3_000)),
    "nested, and closed": token_of(
        b'{"sub":"alice","exp":%d,"n":%s%s}' % (NOW + 60, b"[" * 990, b"]" * 990)
    ),
    **{
        f"nested {depth} times": token_of(
            b'{"sub":"alice","exp":%d,"n":%s%s}' % (NOW + 60, b"[" * depth, b"]" * depth)
        )
        for depth in range(880, 960)
    },
    "a list": token_of(b"[1]"),
    "no JSON": token_of(b"{"),
    "nothing": token_of(b""),
    "expired": token_of(claims(exp=NOW)),
    "no exp": token_of(b'{"sub":"alice"}'),
    "no user": token_of(claims(sub="")),
    "padded": signed(encoded(HEADER) + b"." + urlsafe_b64encode(claims(a="xx"))).decode(),
    "a padded signature": token_of(claims()) + "=",
    "another header": token_of(claims(), b'{"typ":"JWT","alg":"HS256"}'),
    "another algorithm": token_of(claims(), b'{"alg":"none","typ":"JWT"}'),
    "critical": token_of(claims(), b'{"alg":"HS256","crit":["b64"],"b64":true}'),
    "another key": signed(encoded(HEADER) + b"." + encoded(claims()), b"another").decode(),
    "no signature": token_of(claims()).rpartition(".")[0] + ".",
    "one part": "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.",
    "two parts": token_of(claims()).rpartition(".")[0],
    "four parts": signed(b".".join((encoded(HEADER), encoded(claims()), b"x"))).decode(),
    "not in ASCII": token_of(claims()) + "ü",
    "a lone surrogate": token_of(claims()) + "\ud800",
    "empty": "",
}


@pytest.mark.parametrize("token", GOOD.values(), ids=GOOD)
def test_a_usual_token_needs_no_pyjwt(token: str) -> None:
    assert USUAL.claims_of(token) is not None
    auth = authenticator()
    auth._jwt = None  # type: ignore[assignment]
    identity = verdict(auth, token)
    assert isinstance(identity, Identity)
    assert identity == verdict(by_pyjwt(), token)


@pytest.mark.parametrize("token", ODD.values(), ids=ODD)
def test_an_odd_token_has_the_verdict_of_pyjwt(token: str) -> None:
    assert verdict(authenticator(), token) == verdict(by_pyjwt(), token)


@pytest.mark.parametrize("at", range(43))
def test_a_signature_counts_whole(at: int) -> None:
    head, _, signature = token_of(claims()).rpartition(".")
    changed = "A" if signature[at] != "A" else "B"
    token = f"{head}.{signature[:at]}{changed}{signature[at + 1 :]}"
    assert USUAL.claims_of(token) is None
    assert verdict(authenticator(), token) == "token refused: signed with another key" or at == 42


# Mutations

_LITERALS: Final = [
    *(b"NaN -Infinity 1e400 -1e400 -0 0 01 1. .5 1E5 null true [] {} [[]]".split()),
    b"1" + b"0" * 30,
    b"-1" + b"0" * 400,
    b"%d" % (NOW + 60),
    b"%d.75" % (NOW + 60),
    b"%de-1" % ((NOW + 60) * 10),
    b"%d" % (NOW - 1),
    b"18446744073709551616",
    *(b'"" "alice" "\\ud83d\\ude00" "\\ud800" "\\u0000" "a\\/b" "\\x"'.split()),
    b'"\xff"',
    b'"\xed\xa0\x80"',
    b'"\x01"',
    b'"' + b"x" * 257 + b'"',
    b'"\xe6\xbc\xa2"',
]
_NAMES: Final = [
    b"sub",
    b"exp",
    b"nbf",
    b"iat",
    b"device",
    b"aud",
    b"iss",
    b"jti",
    b"s\\u0075b",
    b"",
]
_HEADERS: Final = [
    HEADER,
    HEADER,
    HEADER,
    HEADER,
    HEADER + b" ",
    b'{"typ":"JWT","alg":"HS256"}',
    b'{"alg":"HS256"}',
    b'{"alg":"HS256","typ":"JWT","alg":"none"}',
    b'{"alg":"none","typ":"JWT","alg":"HS256"}',
    b'{"alg":"RS256","typ":"JWT"}',
    b'{"alg":"HS256","typ":"JWT","kid":1}',
    b'{"alg":"HS256","typ":"JWT","crit":["exp"]}',
    b'{"alg":"HS256","typ":"JWT","b64":false}',
    b"[]",
]


def any_payload(draw: random.Random) -> bytes:
    members = [(b"sub", b'"alice"'), (b"exp", b"%d" % (NOW + 60))]
    for _ in range(draw.choice([0, 0, 1, 1, 2, 4])):
        members.insert(draw.randrange(4), (draw.choice(_NAMES), draw.choice(_LITERALS)))
    if draw.random() < 0.1:
        members.pop(draw.randrange(len(members)))
    space = draw.choice([b"", b"", b" ", b"\n"])
    joined = (b"," + space).join(b'"%b":%b%b' % (name, space, value) for name, value in members)
    payload = b"{%b}" % joined
    return draw.choice(_SPOILERS)(draw, payload) if draw.random() < 0.2 else payload


def _replace_byte(draw: random.Random, raw: bytes) -> bytes:
    at = draw.randrange(len(raw) + 1)
    return raw[:at] + bytes([draw.randrange(256)]) + raw[at + draw.randrange(2) :]


_SPOILERS: Final[list[Callable[[random.Random, bytes], bytes]]] = [
    _replace_byte,
    lambda draw, raw: raw[: draw.randrange(len(raw) + 1)],
    lambda draw, raw: raw + draw.choice([b" ", b"x", b"\x00", b"{}"]),
    lambda draw, raw: draw.choice([b" ", b"\xef\xbb\xbf", b"\x00"]) + raw,
    lambda draw, raw: raw.decode("utf-8", "replace").encode(draw.choice(["utf-16", "utf-32"])),
]


def _encode(draw: random.Random, raw: bytes) -> bytes:
    """Encode a part, in base64url or nearly so."""
    text = encoded(raw)
    if draw.random() < 0.8:
        return text
    return draw.choice(
        [
            text + b"=" * draw.randrange(1, 4),
            text + b"=" * (-len(text) % 4),
            text.translate(bytes.maketrans(b"-_", b"+/")),
            text[:-1] + draw.choice([b"A", b"B", b"_", b"+", b"\n", b"."]),
            _replace_byte(draw, text),
        ]
    )


def any_token(draw: random.Random) -> str:
    signing_input = b".".join(
        (_encode(draw, draw.choice(_HEADERS)), _encode(draw, any_payload(draw)))
    )
    head, _, signature = signed(signing_input).rpartition(b".")
    if draw.random() < 0.1:
        signature = draw.choice(
            [b"", signature + b"=", signature[:-1] + b"B", _replace_byte(draw, signature)]
        )
    token = (head + b"." + signature).decode("latin-1")
    if draw.random() < 0.05:
        at = draw.randrange(len(token) + 1)
        token = (
            token[:at] + draw.choice(["", ".", "=", "ü", "\ud800", "\x00", " "]) + token[at + 1 :]
        )
    return token


def test_mutated_tokens_have_the_verdict_of_pyjwt() -> None:
    draw = random.Random(1)
    auth, pyjwt = authenticator(), by_pyjwt()
    usual = identities = 0
    for _ in range(MUTATIONS):
        token = any_token(draw)
        expected = verdict(pyjwt, token)
        assert verdict(auth, token) == expected, token
        usual += USUAL.claims_of(token) is not None
        identities += isinstance(expected, Identity)
    assert MUTATIONS / 20 < usual < MUTATIONS, "many need no PyJWT, and many do"
    assert MUTATIONS / 20 < identities < MUTATIONS
