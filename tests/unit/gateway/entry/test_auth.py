"""Whom a token speaks for, what is no token, and which credential decides."""

import asyncio
import json
import re
import time
import warnings
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Final

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import SecretStr

from gateway.connections.identity import Identity
from gateway.entry.auth import (
    MAX_TOKEN_BYTES,
    Authenticator,
    Unauthenticated,
    UnknownKey,
    credential,
)
from gateway.entry.jwks import RENEW_SECONDS, KeyRing, UrlSource
from gateway.settings import AuthSettings
from tests.support.clients import eventually
from tests.support.issuer import KeyServer, SigningKey, response

pytestmark = pytest.mark.anyio

SECRET = "a secret of thirty-two bytes or more, for tests"
FUTURE = int(time.time()) + 86_400  # this is read long before the last test runs
CLAIMS: dict[str, Any] = {"sub": "alice", "exp": FUTURE}
RSA, OTHER_RSA, EC = SigningKey.rsa("r"), SigningKey.rsa("r"), SigningKey.ec("e")
MAX_SECONDS: Final = 366 * 86_400
Ask = Callable[[Authenticator, str], Awaitable[Identity]]


def named(claims: object) -> str:
    """Give a test's name by its claims, without times: each worker has to give the same."""
    return re.sub(r"\d{10}", "time", repr(claims))[:50]


def settings(**given: Any) -> AuthSettings:
    values = {"jwt_secret": SecretStr(SECRET), "internal_secret": SecretStr("i" * 32), **given}
    if values.get("jwt_algorithms", "HS256") != "HS256":
        values["jwks_url"] = "http://127.0.0.1/"  # the ring is made by hand
    return AuthSettings(**values)


@pytest.fixture(scope="module")
def server() -> Iterator[KeyServer]:
    with KeyServer(RSA, EC) as serving:
        yield serving


@pytest.fixture(scope="module")
def ring(server: KeyServer) -> Iterator[KeyRing]:
    """Give a ring that has the keys of RSA and EC."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        ring = KeyRing(UrlSource(server.url), refresh_seconds=3_600)
        assert runner.run(ring.renew())
        yield ring
        runner.run(ring.close())


@pytest.fixture(params=["HS256", "HS256,RS256,ES256"])
def auth(request: pytest.FixtureRequest, ring: KeyRing) -> Authenticator:
    """Give what takes HS256, alone and beside the others: the ways to the secret differ."""
    if request.param == "HS256":
        return Authenticator(settings().token_rules, None)
    return Authenticator(settings(jwt_algorithms=request.param).token_rules, ring)


@pytest.fixture(params=["RS256", "ES256", "RS256,ES256", "HS256,RS256,ES256"])
def asymmetric(request: pytest.FixtureRequest, ring: KeyRing) -> Authenticator:
    """Give what takes RS256, ES256 or both. It has a secret, which may not count."""
    return Authenticator(settings(jwt_algorithms=request.param).token_rules, ring)


@pytest.fixture
def every(ring: KeyRing) -> Authenticator:
    """Give what takes all algorithms."""
    return Authenticator(settings(jwt_algorithms="HS256,RS256,ES256").token_rules, ring)


def part(value: object) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def signed(
    claims: object, *, header: Mapping[str, Any] | None = None, secret: str | bytes = SECRET
) -> str:
    """A rightly signed token of any claims, also of those that PyJWT would not make."""
    signing_input = f"{part({'alg': 'HS256', 'typ': 'JWT', **(header or {})})}.{part(claims)}"
    key = secret if isinstance(secret, bytes) else secret.encode()
    signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    return f"{signing_input}.{part(signature.sign(signing_input.encode(), key))}"


def signed_by_key(
    key: SigningKey, claims: object = CLAIMS, header: Mapping[str, Any] | None = None
) -> str:
    """As `signed`, with a private key; `header` has other or more members."""
    members = {"alg": key.algorithm, "kid": key.kid, **(header or {})}
    signing_input = f"{part(members)}.{part(claims)}"
    algorithm = jwt.get_algorithm_by_name(key.algorithm)
    return f"{signing_input}.{part(algorithm.sign(signing_input.encode(), key.private))}"


def refusal(auth: Authenticator, token: str) -> str:
    with pytest.raises(Unauthenticated) as caught:
        auth.identify(token)
    return str(caught.value)


KIDS: Final[list[object]] = [
    "../../../dev/null",
    "/etc/passwd",
    "' OR 1=1 --",
    "http://evil/key",
    "a\r\nb",
    "r\x00",
    "R",
    "",
    "r" * 5_000,
    "\ud800",
    7,
    0,
    1e400,
    True,
    ["r"],
    {"r": 1},
]


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
        CLAIMS | {"exp": str(FUTURE)},
        CLAIMS | {"exp": True},
        CLAIMS | {"exp": False},
        CLAIMS | {"exp": {"a": FUTURE}},
        CLAIMS | {"exp": 0},
        CLAIMS | {"exp": -1},
        CLAIMS | {"exp": -1e308},
        CLAIMS | {"nbf": FUTURE},
        CLAIMS | {"nbf": "later"},
        CLAIMS | {"iat": FUTURE},
        CLAIMS | {"iat": []},
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
        b'{"sub": "alice", "exp": -Infinity}',
        b'{"sub": "alice", "exp": 1e18}',
        b'{"sub": "alice", "exp": 1' + b"0" * 400 + b"}",
        b'{"sub": "alice", "exp": ' + b"9" * 5_000 + b"}",
        b"[" * 10_000,
        b"\xff",
        b"",
    ],
    ids=named,
)
def test_claims_that_break_the_rules_are_refused(auth: Authenticator, claims: object) -> None:
    assert refusal(auth, signed(claims)).startswith("token refused: ")


@pytest.mark.parametrize("exp", [10**18, 1e18, 10**30, 10**400, 2**63, 1e308])
def test_a_token_for_ever_is_refused(auth: Authenticator, exp: float) -> None:
    assert refusal(auth, signed(CLAIMS | {"exp": exp})) == "token refused: exp is too far ahead"


def test_a_token_is_good_for_as_long_as_the_settings_say(ring: KeyRing) -> None:
    now = int(time.time())
    usual, short = (
        Authenticator(settings().token_rules, None),
        Authenticator(settings(jwt_max_seconds=60).token_rules, None),
    )
    assert usual.identify(signed(CLAIMS | {"exp": now + MAX_SECONDS})).user == "alice"
    refusal(usual, signed(CLAIMS | {"exp": now + MAX_SECONDS + 60}))
    assert short.identify(signed(CLAIMS | {"exp": now + 59})).user == "alice"
    refusal(short, signed(CLAIMS | {"exp": now + 120}))


def test_a_fraction_of_a_second_is_nothing(auth: Authenticator) -> None:
    assert auth.identify(signed(CLAIMS | {"exp": FUTURE + 0.9})).expires_at == FUTURE


@pytest.mark.parametrize(
    ("aud", "good"),
    [("push", True), (["a", "push"], True), ("Push", False), ("pus", False), ("pushed", False),
     ([], False), (["a"], False), ({"push": 1}, False), ([["push"]], False), (7, False),
     (None, False), ("", False)],
)  # fmt: skip
def test_an_audience_that_is_configured_has_to_be_named(aud: object, good: bool) -> None:
    auth = Authenticator(settings(jwt_audience="push").token_rules, None)
    refusal(auth, signed(CLAIMS))
    if good:
        assert auth.identify(signed(CLAIMS | {"aud": aud})).user == "alice"
    else:
        refusal(auth, signed(CLAIMS | {"aud": aud}))


@pytest.mark.parametrize(
    ("iss", "good"),
    [("https://id.example", True), ("https://id.example/", False), ("https://id.exampl", False),
     (["https://id.example"], False), ({"https://id.example": 1}, False), (7, False),
     (None, False), ("", False)],
)  # fmt: skip
def test_an_issuer_that_is_configured_has_to_be_it(iss: object, good: bool) -> None:
    auth = Authenticator(settings(jwt_issuer="https://id.example").token_rules, None)
    refusal(auth, signed(CLAIMS))
    if good:
        assert auth.identify(signed(CLAIMS | {"iss": iss})).user == "alice"
    else:
        refusal(auth, signed(CLAIMS | {"iss": iss}))


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
    token = OTHER_RSA.sign(CLAIMS)
    refusal(auth, token)
    refusal(auth, ".".join([part({"alg": "HS256"}), *token.split(".")[1:]]))


@pytest.mark.parametrize("kid", KIDS, ids=lambda kid: repr(kid)[:30])
def test_a_kid_chooses_no_secret(auth: Authenticator, kid: object) -> None:
    for secret in (b"", b"x" * 32, str(kid).encode(errors="surrogatepass")):
        refusal(auth, signed(CLAIMS, header={"kid": kid}, secret=secret))


def test_the_secret_is_the_secret_whatever_the_kid(auth: Authenticator) -> None:
    for kid in ("", "r", "../x"):
        assert auth.identify(signed(CLAIMS, header={"kid": kid})).user == "alice"


@pytest.mark.parametrize(
    "header",
    [{"jwk": {"kty": "oct", "k": "eA"}}, {"jku": "http://evil/"}, {"x5u": "http://evil/"}],
)
def test_a_token_brings_no_key_of_its_own(auth: Authenticator, header: dict[str, Any]) -> None:
    refusal(auth, signed(CLAIMS, header=header, secret="x"))


@pytest.mark.parametrize(
    "header",
    [
        {"crit": ["exp"]},
        {"crit": "x"},
        {"crit": []},
        {"crit": None},
        {"crit": ["b64"], "b64": True},
        {"crit": ["b64"], "b64": False},
        {"b64": False},
    ],
)
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


# RS256 and ES256


def test_a_token_of_a_published_key_speaks_for_its_sub(every: Authenticator) -> None:
    for token in (RSA.sign(CLAIMS), EC.sign(CLAIMS), signed(CLAIMS)):
        assert every.identify(token) == Identity("alice", None, FUTURE)


def test_a_token_need_not_name_the_only_key(every: Authenticator) -> None:
    for key in (RSA, EC):
        unnamed = SigningKey(key.algorithm, None, key.private)
        assert every.identify(unnamed.sign(CLAIMS)).user == "alice"


def test_only_what_is_configured_counts(ring: KeyRing) -> None:
    tokens = {"HS256": signed(CLAIMS), "RS256": RSA.sign(CLAIMS), "ES256": EC.sign(CLAIMS)}
    for configured in ("HS256", "RS256", "ES256", "HS256,RS256", "RS256,ES256"):
        needed = None if configured == "HS256" else ring
        auth = Authenticator(settings(jwt_algorithms=configured).token_rules, needed)
        for algorithm, token in tokens.items():
            if algorithm in configured:
                assert auth.identify(token).user == "alice"
            else:
                refusal(auth, token)


def test_without_a_ring_nothing_counts_in_its_place() -> None:
    with pytest.raises(ValueError, match="key ring"):
        Authenticator(settings(jwt_algorithms="RS256").token_rules, None)


@pytest.mark.parametrize("key", [RSA, EC], ids=["RSA", "EC"])
@pytest.mark.parametrize(
    "claims",
    [
        {"sub": "alice"},
        {"exp": FUTURE},
        CLAIMS | {"exp": int(time.time()) - 1},
        CLAIMS | {"exp": 1e18},
        CLAIMS | {"exp": str(FUTURE)},
        CLAIMS | {"sub": "a\r\nb"},
        [],
        b'{"sub": "alice", "exp": NaN}',
        b"[" * 5_000,
    ],
    ids=named,
)
def test_the_claims_have_the_same_rules(
    every: Authenticator, key: SigningKey, claims: object
) -> None:
    refusal(every, signed_by_key(key, claims))


def test_another_private_key_is_refused_under_a_published_name(
    asymmetric: Authenticator,
) -> None:
    for key in (OTHER_RSA, SigningKey.ec("e")):
        refusal(asymmetric, key.sign(CLAIMS))


def test_a_published_key_is_no_secret(asymmetric: Authenticator) -> None:
    for key in (RSA, EC):
        public = key.private.public_key()
        pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        spelled = json.dumps(key.jwk()).encode()
        for secret in (pem, pem.strip(), pem.replace(b"\n", b"\r\n"), der, spelled, b"", b"r"):
            for header in ({}, {"kid": key.kid}, {"alg": "HS256", "kid": key.kid}):
                refusal(asymmetric, signed(CLAIMS, header=header, secret=secret))
            claimed = {"alg": key.algorithm, "kid": key.kid}
            refusal(asymmetric, signed(CLAIMS, header=claimed, secret=secret))


def test_a_key_verifies_its_own_algorithm_alone(every: Authenticator) -> None:
    for key, others in ((RSA, ("ES256", "HS256")), (EC, ("RS256", "HS256"))):
        for algorithm in (*others, "RS384", "RS512", "PS256", "ES384", "ES256K", "EdDSA", "none"):
            refusal(every, signed_by_key(key, header={"alg": algorithm}))
    for algorithm in ("RS384", "RS512", "PS256", "PS512"):
        token = jwt.encode(CLAIMS, RSA.private, algorithm, headers={"kid": "r"})
        refusal(every, token)


def test_a_key_is_not_found_by_the_other_ones_name(asymmetric: Authenticator) -> None:
    refusal(asymmetric, signed_by_key(RSA, header={"kid": "e"}))
    refusal(asymmetric, signed_by_key(EC, header={"kid": "r"}))


@pytest.mark.parametrize("alg", ["none", "None", "", None, 7, True, ["RS256"], {"RS256": 1}])
def test_an_algorithm_that_is_none_is_refused(asymmetric: Authenticator, alg: object) -> None:
    for key in (RSA, EC):
        refusal(asymmetric, signed_by_key(key, header={"alg": alg}))
        unsigned = f"{part({'alg': alg, 'kid': key.kid})}.{part(CLAIMS)}."
        refusal(asymmetric, unsigned)


def test_a_header_without_an_algorithm_is_refused(asymmetric: Authenticator) -> None:
    for header in ({}, {"kid": "r"}, {"ALG": "RS256", "kid": "r"}):
        refusal(asymmetric, f"{part(header)}.{part(CLAIMS)}.{part(b'x' * 256)}")


@pytest.mark.parametrize("kid", KIDS, ids=lambda kid: repr(kid)[:30])
def test_a_kid_is_a_name_and_nothing_else(every: Authenticator, kid: object) -> None:
    for key in (RSA, EC):
        with pytest.raises(Unauthenticated) as caught:
            every.identify(signed_by_key(key, header={"kid": kid}))
        assert isinstance(caught.value, UnknownKey) is isinstance(kid, str)


@pytest.mark.parametrize("member", ["jwk", "jku", "x5u", "x5c", "x5t"])
def test_a_token_of_a_stranger_brings_no_key(asymmetric: Authenticator, member: str) -> None:
    with KeyServer(OTHER_RSA) as evil:
        for brought in (OTHER_RSA.jwk(), evil.url, [evil.url]):
            refusal(asymmetric, signed_by_key(OTHER_RSA, header={member: brought}))
        assert not evil.requests


@pytest.mark.parametrize("member", ["jwk", "jku", "x5u", "x5c", "x5t"])
def test_what_a_good_token_brings_is_not_looked_at(every: Authenticator, member: str) -> None:
    for key in (RSA, EC):
        for brought in ("http://127.0.0.1:1/", 7, None, {"kty": "oct"}):
            token = signed_by_key(key, header={member: brought})
            assert every.identify(token).user == "alice"


@pytest.mark.parametrize("crit", [["exp"], [], "x", None, ["b64"]])
def test_crit_is_refused_of_every_algorithm(every: Authenticator, crit: object) -> None:
    for key in (RSA, EC):
        refusal(every, signed_by_key(key, header={"crit": crit, "b64": True}))


def test_a_signature_of_zeros_or_of_another_form_is_refused(every: Authenticator) -> None:
    start = signed_by_key(EC).rpartition(".")[0]
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    for raw in (
        bytes(64),
        b"",
        bytes(63),
        bytes(65),
        order.to_bytes(32) * 2,
        b"\xff" * 64,
        encode_dss_signature(1, 1),
    ):
        refusal(every, f"{start}.{part(raw)}")
    start = signed_by_key(RSA).rpartition(".")[0]
    for raw in (bytes(256), b"", b"\xff" * 256, bytes(4_000)):
        refusal(every, f"{start}.{part(raw)}")


# Keys that come later


async def test_a_new_key_is_asked_for_but_not_more_often_than_allowed() -> None:
    new, newest = SigningKey.rsa("new"), SigningKey.ec("newest")
    now = 1_000.0
    with KeyServer(RSA) as issuer:
        ring = KeyRing(UrlSource(issuer.url), refresh_seconds=3_600, clock=lambda: now)
        auth = Authenticator(settings(jwt_algorithms="RS256,ES256").token_rules, ring)
        assert (await auth.authenticate(RSA.sign(CLAIMS))).user == "alice"
        issuer.publish(new, newest)
        with pytest.raises(UnknownKey):
            await auth.authenticate(new.sign(CLAIMS))
        assert (await auth.authenticate(RSA.sign(CLAIMS))).user == "alice"
        assert len(issuer.requests) == 1
        now += RENEW_SECONDS
        for key in (new, newest):
            assert (await auth.authenticate(key.sign(CLAIMS))).user == "alice"
        assert len(issuer.requests) == 2
        with pytest.raises(UnknownKey):
            auth.identify(RSA.sign(CLAIMS))
        await ring.close()


async def test_many_who_have_a_new_key_wait_for_one_request() -> None:
    with KeyServer(RSA) as issuer:
        issuer.gate.clear()
        ring = KeyRing(UrlSource(issuer.url), refresh_seconds=3_600)
        auth = Authenticator(settings(jwt_algorithms="RS256").token_rules, ring)
        token = RSA.sign(CLAIMS)
        asking = [asyncio.create_task(auth.authenticate(token)) for _ in range(50)]
        await eventually(lambda: issuer.requests, "a request")
        issuer.gate.set()
        assert {(await one).user for one in asking} == {"alice"}
        await ring.close()
    assert len(issuer.requests) == 1


async def test_made_up_kids_cost_one_request() -> None:
    with KeyServer(RSA) as issuer:
        ring = KeyRing(UrlSource(issuer.url), refresh_seconds=3_600)
        auth = Authenticator(settings(jwt_algorithms="RS256").token_rules, ring)
        for number in range(20):
            with pytest.raises(UnknownKey):
                await auth.authenticate(signed_by_key(RSA, header={"kid": f"made-up-{number}"}))
        await ring.close()
    assert len(issuer.requests) == 1


async def test_other_bad_tokens_cost_no_request() -> None:
    with KeyServer(RSA, EC) as issuer:
        ring = KeyRing(UrlSource(issuer.url), refresh_seconds=3_600)
        auth = Authenticator(settings(jwt_algorithms="HS256,RS256").token_rules, ring)
        bad = [
            "",
            "a.b.c",
            "x" * (MAX_TOKEN_BYTES + 1),
            signed(CLAIMS, secret="x" * 32),
            signed(CLAIMS | {"exp": 1}, header={"kid": "new"}),
            EC.sign(CLAIMS),
            signed_by_key(RSA, header={"alg": "none"}),
            signed_by_key(RSA, header={"kid": 7}),
            signed_by_key(RSA, header={"crit": ["x"]}),
        ]
        for token in bad:
            with pytest.raises(Unauthenticated):
                await auth.authenticate(token)
        await ring.close()
    assert not issuer.requests


async def test_an_issuer_that_is_down_is_no_error_of_ours() -> None:
    with KeyServer() as issuer:
        issuer.answer = response(b"", "500 Internal Server Error")
        ring = KeyRing(UrlSource(issuer.url), refresh_seconds=3_600)
        auth = Authenticator(settings(jwt_algorithms="HS256,RS256").token_rules, ring)
        with pytest.raises(UnknownKey):
            await auth.authenticate(RSA.sign(CLAIMS))
        assert (await auth.authenticate(signed(CLAIMS))).user == "alice"
        await ring.close()


# What a refusal says


async def identified(auth: Authenticator, token: str) -> Identity:
    return auth.identify(token)


SIGNED = signed(CLAIMS)
HEADER_FAULT = "its header has a bad kid, or crit or b64, which are not taken"


@pytest.mark.parametrize(
    ("token", "fault"),
    [
        ("", "not a JWT"),
        ("a.b.c", "not a JWT"),
        ("\ud800", "not a JWT"),
        (signed([]), "not a JWT"),
        (signed(b"{"), "not a JWT"),
        (f"{SIGNED[:-2]}", "not a JWT"),
        (signed(CLAIMS, secret="x" * 32), "signed with another key"),
        (f"{SIGNED.rpartition('.')[0]}.{part(bytes(32))}", "signed with another key"),
        (f"{part({'alg': 'none'})}.{part(CLAIMS)}.", "its algorithm is not accepted here"),
        (RSA.sign(CLAIMS), "its algorithm is not accepted here"),
        (signed(CLAIMS, header={"kid": 7}), HEADER_FAULT),
        (signed(CLAIMS, header={"crit": ["x"]}), HEADER_FAULT),
        (signed(CLAIMS, header={"crit": ["b64"], "b64": True}), HEADER_FAULT),
        (signed({"sub": "alice"}), "exp is missing"),
        (signed({"exp": FUTURE}), "sub is missing"),
        (signed(CLAIMS | {"exp": "soon"}), "exp is no number"),
        (signed(CLAIMS | {"sub": 7}), "sub is no user id"),
        ("x" * 9_000, "over 8192 bytes"),
    ],
    ids=lambda value: repr(value)[:30],  # the same in each worker, as a signature is not
)
def test_a_refusal_says_in_plain_words_what_is_wrong(token: str, fault: str) -> None:
    auth = Authenticator(settings().token_rules, None)
    assert refusal(auth, token) == f"token refused: {fault}"


def test_how_long_ago_a_token_has_expired_is_said() -> None:
    auth = Authenticator(settings().token_rules, None)
    told = refusal(auth, signed(CLAIMS | {"exp": int(time.time()) - 12}))
    match = re.fullmatch(r"token refused: expired (\d+) s ago", told)
    assert match is not None
    assert 12 <= int(match[1]) < 60


def test_another_key_under_a_published_name_is_said_to_be_another(
    asymmetric: Authenticator,
) -> None:
    fault = "signed with another key|its algorithm is not accepted here"
    assert re.fullmatch(f"token refused: ({fault})", refusal(asymmetric, OTHER_RSA.sign(CLAIMS)))


def test_a_clock_that_is_ahead_by_seconds_refuses_no_token(auth: Authenticator) -> None:
    ahead = int(time.time()) + 5
    assert auth.identify(signed(CLAIMS | {"iat": ahead, "nbf": ahead})).user == "alice"


@pytest.mark.parametrize("asked", [identified, Authenticator.authenticate])
async def test_a_refusal_never_repeats_the_token(auth: Authenticator, asked: Ask) -> None:
    marked = {"sub": "marker\r\n", "exp": FUTURE, "device": "marker\n"}
    for token in (
        "marker.marker.marker",
        "marker\ud800",
        f"{part(b'marker')}.{part(CLAIMS)}.x",
        f"{part({'alg': 'marker'})}.{part(CLAIMS)}.x",
        signed(marked),
        signed(marked | {"exp": "marker"}),
        signed(CLAIMS, header={"crit": ["marker"]}),
        signed(b'{"marker": '),
        signed_by_key(RSA, header={"kid": "marker"}),
        signed_by_key(OTHER_RSA, marked),
    ):
        with pytest.raises(Unauthenticated) as caught:
            await asked(auth, token)
        shown = f"{caught.value!r} {caught.value} {vars(caught.value)}"
        assert "marker" not in shown
        assert not any(piece and piece in shown for piece in token.split("."))
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None


# Which credential decides

EVERY: dict[str, Any] = {
    "authorization": "Bearer of-header",
    "subprotocols": ["pushgate.v1", "bearer.of-subprotocol"],
    "query_token": "of-query",
    "cookies": {"pushgate_token": "of-cookie"},
    "cookie_counts": True,
}
NONE: dict[str, Any] = {
    "authorization": None,
    "subprotocols": [],
    "query_token": None,
    "cookies": {},
    "cookie_counts": True,
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


def test_a_cookie_counts_only_where_its_page_is_trusted() -> None:
    cookie = NONE | {"cookies": {"pushgate_token": "of-cookie"}}
    assert credential(**cookie) == "of-cookie"
    with pytest.raises(Unauthenticated, match="PUSHGATE_ORIGINS"):
        credential(**cookie | {"cookie_counts": False})


def test_other_cookies_do_not_count() -> None:
    with pytest.raises(Unauthenticated):
        credential(**NONE | {"cookies": {"session": "x", "PUSHGATE_TOKEN": "y"}})
