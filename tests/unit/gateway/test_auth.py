"""Whom a token speaks for, what is no token, and which credential decides."""

import json
import time
import warnings
from base64 import urlsafe_b64encode
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from gateway.auth import Authenticator, Unauthenticated, credential
from gateway.connection import Identity

SECRET = "a secret of thirty-two bytes or more, for tests"
FUTURE = int(time.time()) + 600
CLAIMS: dict[str, Any] = {"sub": "alice", "exp": FUTURE}


@pytest.fixture
def auth() -> Authenticator:
    return Authenticator(SECRET)


def part(value: object) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def signed(claims: object, *, header: dict[str, Any] | None = None, secret: str = SECRET) -> str:
    """A rightly signed token of any claims, also of those that PyJWT would not make."""
    signing_input = f"{part({'alg': 'HS256', 'typ': 'JWT'} | (header or {}))}.{part(claims)}"
    key = secret.encode()
    signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    return f"{signing_input}.{part(signature.sign(signing_input.encode(), key))}"


def refusal(auth: Authenticator, token: str) -> str:
    with pytest.raises(Unauthenticated) as caught:
        auth.identify(token)
    return str(caught.value)


def test_a_good_token_speaks_for_its_sub(auth: Authenticator) -> None:
    assert auth.identify(signed(CLAIMS)) == Identity("alice", None, FUTURE)


def test_a_token_may_name_a_device(auth: Authenticator) -> None:
    token = signed(CLAIMS | {"device": "phone"})
    assert auth.identify(token) == Identity("alice", "phone", FUTURE)


def test_claims_that_mean_nothing_here_do_no_harm(auth: Authenticator) -> None:
    token = signed(CLAIMS | {"aud": "others", "iss": "x", "name": {"a": [1]}, "device": None})
    assert auth.identify(token) == Identity("alice", None, FUTURE)


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": "alice"},
        {"exp": FUTURE},
        {},
        [],
        "alice",
        None,
        CLAIMS | {"exp": None},
        CLAIMS | {"exp": "soon"},
        CLAIMS | {"exp": []},
        CLAIMS | {"exp": int(time.time()) - 1},
        CLAIMS | {"exp": 0},
        CLAIMS | {"exp": -1},
        CLAIMS | {"nbf": FUTURE},
        CLAIMS | {"sub": None},
        CLAIMS | {"sub": 7},
        CLAIMS | {"sub": ["alice"]},
        CLAIMS | {"sub": {"a": 1}},
        CLAIMS | {"sub": ""},
        CLAIMS | {"sub": "a" * 257},
        CLAIMS | {"sub": "a\r\nset-cookie: x"},
        CLAIMS | {"sub": "a\x00"},
        CLAIMS | {"sub": "a\x85"},
        CLAIMS | {"sub": "\ud800"},
        CLAIMS | {"device": ""},
        CLAIMS | {"device": 7},
        CLAIMS | {"device": "a\n"},
        CLAIMS | {"device": "a" * 129},
        b'{"sub": "alice", "exp": 1e400}',
        b'{"sub": "alice", "exp": NaN}',
        b'{"sub": "alice", "exp": Infinity}',
        b'{"sub": "alice", "exp": ' + b"9" * 5_000 + b"}",
        b"[" * 10_000,
        b"\xff",
        b"",
    ],
    ids=lambda claims: repr(claims)[:50],
)
def test_claims_that_break_the_rules_are_refused(auth: Authenticator, claims: object) -> None:
    assert refusal(auth, signed(claims)).startswith("token refused: ")


@pytest.mark.parametrize("exp", [10**18, 1e18, 10**30, 2**63])
def test_a_token_for_ever_is_refused(auth: Authenticator, exp: float) -> None:
    refusal(auth, signed(CLAIMS | {"exp": exp}))


def test_a_token_of_a_megabyte_is_refused_though_signed(auth: Authenticator) -> None:
    refusal(auth, signed(CLAIMS | {"padding": "x" * 1_048_576}))


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", "", None, "HS256\x00"])
def test_an_unsigned_token_is_refused(auth: Authenticator, alg: str | None) -> None:
    for signature in ("", part(b"x" * 32)):
        refusal(auth, f"{part({'alg': alg, 'typ': 'JWT'})}.{part(CLAIMS)}.{signature}")


def test_another_secret_is_refused(auth: Authenticator) -> None:
    refusal(auth, signed(CLAIMS, secret=SECRET + "x"))
    refusal(auth, signed(CLAIMS, secret="x" * 32))


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
def test_another_algorithm_of_the_right_secret_is_refused(
    auth: Authenticator, algorithm: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the key's length
        refusal(auth, jwt.encode(CLAIMS, SECRET, algorithm=algorithm))


def test_an_rsa_signature_is_refused_also_where_it_says_hs256(auth: Authenticator) -> None:
    key = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
    token = jwt.encode(CLAIMS, key, algorithm="RS256")
    refusal(auth, token)
    refusal(auth, ".".join([part({"alg": "HS256"}), *token.split(".")[1:]]))


@pytest.mark.parametrize(
    "kid", ["../../../dev/null", "' OR 1=1 --", "http://evil/key", "a\r\nb", "", 7, None, ["x"]]
)
def test_a_kid_chooses_no_key(auth: Authenticator, kid: object) -> None:
    for secret in ("", "x" * 32, str(kid)):
        refusal(auth, signed(CLAIMS, header={"kid": kid}, secret=secret))


@pytest.mark.parametrize(
    "header",
    [{"jwk": {"kty": "oct", "k": "eA"}}, {"jku": "http://evil/"}, {"x5u": "http://evil/"}],
)
def test_a_token_brings_no_key_of_its_own(auth: Authenticator, header: dict[str, Any]) -> None:
    refusal(auth, signed(CLAIMS, header=header, secret="x"))


@pytest.mark.parametrize("header", [{"crit": ["exp"]}, {"crit": "x"}, {"b64": False}])
def test_an_extension_that_must_be_understood_is_not_ignored(
    auth: Authenticator, header: dict[str, Any]
) -> None:
    refusal(auth, signed(CLAIMS, header=header))


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "...",
        "a.b.c",
        "alice",
        "\x00",
        "é.é.é",
        "\ud800",
        "x" * 1_048_576,
        "." * 1_048_576,
        "a.b." + "x" * 1_048_576,
        f"{part(b'[' * 100_000)}.{part(CLAIMS)}.x",
        f"{part([])}.{part(CLAIMS)}.x",
        f"{part({'alg': ['HS256']})}.{part(CLAIMS)}.x",
        f"{part({'alg': {}})}.{part(CLAIMS)}.x",
        f" {signed(CLAIMS)}",
        f"{signed(CLAIMS)}.x",
        signed(CLAIMS)[:-2],
    ],
    ids=lambda token: repr(token[:24]),
)
def test_what_is_no_token_is_refused_and_no_error(auth: Authenticator, token: str) -> None:
    refusal(auth, token)


def test_a_refusal_never_repeats_the_token(auth: Authenticator) -> None:
    marked = {"sub": "marker\r\n", "exp": FUTURE, "device": "marker\n"}
    for token in ("marker.marker.marker", signed(marked), signed(marked | {"exp": "marker"})):
        with pytest.raises(Unauthenticated) as caught:
            auth.identify(token)
        shown = f"{caught.value!r} {caught.value}"
        assert "marker" not in shown
        assert not any(piece and piece in shown for piece in token.split("."))
        assert caught.value.__suppress_context__ or caught.value.__context__ is None


# Which credential decides

EVERY: dict[str, Any] = {
    "authorization": "Bearer of-header",
    "subprotocols": ["pushgate.v1", "bearer.of-subprotocol"],
    "query_token": "of-query",
    "cookies": {"pushgate_token": "of-cookie"},
    "origin_allowed": True,
}
NONE: dict[str, Any] = {
    "authorization": None,
    "subprotocols": [],
    "query_token": None,
    "cookies": {},
    "origin_allowed": True,
}


def test_the_first_credential_present_decides() -> None:
    assert credential(**EVERY) == "of-header"
    without_header = EVERY | {"authorization": None}
    assert credential(**without_header) == "of-subprotocol"
    without_subprotocol = without_header | {"subprotocols": ["pushgate.v1"]}
    assert credential(**without_subprotocol) == "of-query"
    assert credential(**without_subprotocol | {"query_token": None}) == "of-cookie"


def test_without_any_there_is_none() -> None:
    with pytest.raises(Unauthenticated, match="no token"):
        credential(**NONE)


def test_the_first_decides_though_it_is_empty() -> None:
    assert credential(**EVERY | {"authorization": "Bearer "}) == ""
    assert credential(**NONE | {"subprotocols": ["bearer."], "query_token": "good"}) == ""
    assert credential(**NONE | {"query_token": "", "cookies": EVERY["cookies"]}) == ""


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_name_of_the_scheme_has_no_case(scheme: str) -> None:
    assert credential(**NONE | {"authorization": f"{scheme}  abc"}) == "abc"


@pytest.mark.parametrize("header", ["Basic abc", "Bearerabc", "", "Digest x, Bearer abc"])
def test_another_scheme_is_no_credential_of_ours(header: str) -> None:
    assert credential(**EVERY | {"authorization": header}) == "of-subprotocol"


def test_a_cookie_counts_only_with_an_allowed_origin() -> None:
    cookie = NONE | {"cookies": {"pushgate_token": "of-cookie"}}
    assert credential(**cookie) == "of-cookie"
    with pytest.raises(Unauthenticated):
        credential(**cookie | {"origin_allowed": False})


def test_other_cookies_do_not_count() -> None:
    with pytest.raises(Unauthenticated):
        credential(**NONE | {"cookies": {"session": "x", "PUSHGATE_TOKEN": "y"}})
