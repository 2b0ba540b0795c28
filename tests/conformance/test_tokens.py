"""Tokens of an issuer with public keys: who is let in, over rotations and outages of the keys."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import HMACAlgorithm

from tests.support.clients import (
    Client,
    Ended,
    eventually,
    head,
    open_sse,
    open_websocket,
    pusher_to,
    token,
    upgrade_headers,
    wire_to,
)
from tests.support.issuer import KeyServer, SigningKey, key_set, response
from tests.support.processes import GatewayProcess
from tests.support.valkey import RedisServer

pytestmark = pytest.mark.anyio

RSA, EC = SigningKey.rsa("r"), SigningKey.ec("e")
NEW_RSA, NEW_EC = SigningKey.rsa("new-r"), SigningKey.ec("new-e")
KEYS = pytest.mark.parametrize(
    ("key", "new"), [(RSA, NEW_RSA), (EC, NEW_EC)], ids=["RS256", "ES256"]
)
STRANGER = SigningKey.rsa("r")
PATHS = ("/ws", "/sse")
NEVER = 86_400
Start = Callable[..., GatewayProcess]


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture(scope="module")
def shared_issuer() -> Iterator[KeyServer]:
    with KeyServer(RSA, EC) as serving:
        yield serving


@pytest.fixture(scope="module")
def gateway(start_gateway: Start, shared_issuer: KeyServer) -> GatewayProcess:
    """Give a gateway that takes both algorithms; it has a secret, which may not count."""
    gateway = start_gateway(
        jwt_algorithms="RS256,ES256", jwks_url=shared_issuer.url, jwks_refresh_seconds=NEVER
    )
    wait_for_requests(shared_issuer, 1)
    return gateway


@pytest.fixture
def issuer() -> Iterator[KeyServer]:
    with KeyServer(RSA, EC) as serving:
        yield serving


def wait_for_requests(server: KeyServer, count: int) -> None:
    """Return once a gateway has asked for the keys."""
    deadline = time.monotonic() + 10.0
    while len(server.requests) < count:
        assert time.monotonic() < deadline, "the gateway asks for the keys"
        time.sleep(0.01)


def claims(user: str, **more: object) -> dict[str, Any]:
    return {"sub": user, "exp": int(time.time()) + 600, **more}


def credential(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


async def status(gateway: GatewayProcess, path: str, text: str) -> int:
    """Ask for a connection with a token; give the answer's status."""
    fields = upgrade_headers() if path == "/ws" else {}
    async with wire_to(gateway.port) as wire:
        await wire.send(head("GET", path, {**fields, **credential(text)}))
        return (await wire.answer(bodiless=path == "/sse")).status


async def is_in(gateway: GatewayProcess, path: str, text: str) -> bool:
    answered = await status(gateway, path, text)
    assert answered in (101, 200, 401)
    return answered != 401


@asynccontextmanager
async def connected(gateway: GatewayProcess, path: str, text: str) -> AsyncIterator[Client]:
    """Connect with a token."""
    async with wire_to(gateway.port) as wire:
        opened = open_websocket if path == "/ws" else open_sse
        yield await opened(wire, credential(text))


async def delivered(client: Client, gateway: GatewayProcess, user: str) -> None:
    """Push to `user`, and see it arrive at this client alone."""
    async with pusher_to(gateway.internal_port) as pushing:
        assert await pushing.push([{"user": user, "data": "hello"}]) == [1]
    assert (await client.message()).payload == b"hello"


# Who is let in


@KEYS
async def test_a_token_of_a_published_key_lets_in(
    gateway: GatewayProcess, path: str, user: str, key: SigningKey, new: SigningKey
) -> None:
    async with connected(gateway, path, key.sign(claims(user))) as client:
        await delivered(client, gateway, user)


def encoded(value: Mapping[str, object]) -> str:
    raw = json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def by_hmac(header: Mapping[str, object], secret: bytes) -> str:
    """Sign with any bytes as the secret, also with those that libraries refuse."""
    signed = f"{encoded({'alg': 'HS256', **header})}.{encoded(claims('u'))}"
    signature = HMACAlgorithm(HMACAlgorithm.SHA256).sign(signed.encode(), secret)
    return f"{signed}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def hostile_tokens() -> dict[str, str]:
    public = RSA.private.public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    start = RSA.sign(claims("u")).rpartition(".")[0]
    good = claims("u")
    return {
        "none": f"{encoded({'alg': 'none', 'kid': 'r'})}.{encoded(good)}.",
        "rs512": jwt.encode(good, RSA.private, "RS512", headers={"kid": "r"}),
        "unsigned": f"{start}.",
        "of-the-secret": token("u"),
        "public-key-as-secret": by_hmac({"kid": "r"}, pem),
        "public-key-as-secret-rs256": by_hmac({"kid": "r", "alg": "RS256"}, pem),
        "key-set-as-secret": by_hmac({"kid": "r"}, json.dumps(RSA.jwk()).encode()),
        "empty-secret": by_hmac({"kid": "r"}, b""),
        "stranger": STRANGER.sign(good),
        "stranger-with-jwk": STRANGER.sign(good, {"jwk": STRANGER.jwk()}),
        "stranger-with-jku": STRANGER.sign(good, {"jku": "http://127.0.0.1:1/"}),
        "kid-path": RSA.sign(good, {"kid": "../../../dev/null"}),
        "kid-crlf": RSA.sign(good, {"kid": "r\r\nx: y"}),
        "kid-huge": RSA.sign(good, {"kid": "r" * 4_000}),
        "kid-of-the-other": RSA.sign(good, {"kid": "e"}),
        "crit": RSA.sign(good, {"crit": ["b64"], "b64": True}),
        "ps256": jwt.encode(good, RSA.private, "PS256", headers={"kid": "r"}),
        "no-exp": RSA.sign({"sub": "u"}),
        "exp-for-ever": RSA.sign(claims("u", exp=1e18)),
        "exp-infinite": RSA.sign(claims("u", exp=float("inf"))),
        "exp-nan": RSA.sign(claims("u", exp=float("nan"))),
        "exp-text": RSA.sign(claims("u", exp=str(int(time.time()) + 600))),
        "exp-past": RSA.sign(claims("u", exp=1)),
        "sub-crlf": RSA.sign(claims("a\r\nset-cookie: x")),
        "no-sub": RSA.sign({"exp": int(time.time()) + 600}),
        "9000-bytes": RSA.sign(claims("u", padding="x" * 9_000)),
        "zero-signature": f"{EC.sign(good).rpartition('.')[0]}.{'A' * 86}",
    }


@pytest.mark.parametrize("name", hostile_tokens())
async def test_a_hostile_token_is_401_and_never_logged(
    gateway: GatewayProcess, path: str, name: str
) -> None:
    text = hostile_tokens()[name]
    assert await status(gateway, path, text) == 401
    assert not any(piece in gateway.log for piece in text.split(".") if len(piece) > 8)


async def test_a_megabyte_of_a_token_is_refused_and_hurts_nobody(
    gateway: GatewayProcess, path: str, user: str
) -> None:
    async with connected(gateway, path, RSA.sign(claims(user))) as beside:
        huge = RSA.sign(claims("u", padding="x" * 1_048_576))
        # It may also hang up in the middle of the head.
        with suppress(Ended, ConnectionError):
            assert 400 <= await status(gateway, path, huge) < 500
        await delivered(beside, gateway, user)


async def test_made_up_kids_cost_the_issuer_little_and_good_clients_nothing(
    gateway: GatewayProcess, shared_issuer: KeyServer, path: str, user: str
) -> None:
    before, began = len(shared_issuer.requests), time.monotonic()
    made_up = [RSA.sign(claims("u"), {"kid": f"made-up-{number}"}) for number in range(50)]
    refused = asyncio.gather(*(status(gateway, path, text) for text in made_up))
    async with connected(gateway, path, EC.sign(claims(user))) as client:
        await delivered(client, gateway, user)
    assert set(await refused) == {401}
    allowed = 1 + (time.monotonic() - began) / 5.0
    assert len(shared_issuer.requests) - before <= allowed


async def test_audience_and_issuer_are_looked_at_where_they_are_set(
    start_gateway: Start, issuer: KeyServer
) -> None:
    gateway = start_gateway(
        jwt_algorithms="ES256", jwks_url=issuer.url, jwt_audience="push", jwt_issuer="https://id"
    )
    wait_for_requests(issuer, 1)
    good = {"aud": ["web", "push"], "iss": "https://id"}
    assert await is_in(gateway, "/sse", EC.sign(claims("u", **good)))
    for wrong in ({"aud": "web"}, {"aud": None}, {"iss": "https://id.evil"}, {"iss": ""}):
        assert not await is_in(gateway, "/sse", EC.sign(claims("u", **{**good, **wrong})))
    assert not await is_in(gateway, "/sse", EC.sign(claims("u")))
    assert not await is_in(gateway, "/sse", RSA.sign(claims("u", **good)))


# Keys come and go


@KEYS
async def test_a_new_key_lets_in_at_once_and_what_is_connected_stays(
    start_gateway: Start,
    issuer: KeyServer,
    path: str,
    user: str,
    key: SigningKey,
    new: SigningKey,
) -> None:
    gateway = start_gateway(
        jwt_algorithms=key.algorithm, jwks_url=issuer.url, jwks_refresh_seconds=NEVER
    )
    wait_for_requests(issuer, 1)
    async with connected(gateway, path, key.sign(claims(user))) as client:
        issuer.publish(new)
        assert await is_in(gateway, path, new.sign(claims("u")))
        assert not await is_in(gateway, path, key.sign(claims("u")))
        await delivered(client, gateway, user)
    assert len(issuer.requests) == 2


async def test_a_key_that_is_taken_out_lets_nobody_in_after_the_next_refresh(
    start_gateway: Start, issuer: KeyServer, path: str
) -> None:
    gateway = start_gateway(jwt_algorithms="RS256", jwks_url=issuer.url, jwks_refresh_seconds=1)
    wait_for_requests(issuer, 1)
    assert await is_in(gateway, path, RSA.sign(claims("u")))
    issuer.publish(EC)

    async def is_out() -> bool:
        return not await is_in(gateway, path, RSA.sign(claims("u")))

    await eventually(is_out, "the key is gone")


async def test_known_keys_let_in_while_the_issuer_is_down(
    start_gateway: Start, issuer: KeyServer, path: str
) -> None:
    gateway = start_gateway(jwt_algorithms="RS256", jwks_url=issuer.url, jwks_refresh_seconds=1)
    wait_for_requests(issuer, 1)
    issuer.answer = response(b"", "503 Service Unavailable")
    seen = len(issuer.requests)
    await eventually(lambda: len(issuer.requests) >= seen + 2, "two refreshes", timeout_seconds=10)
    assert await is_in(gateway, path, RSA.sign(claims("u")))
    assert not await is_in(gateway, path, NEW_RSA.sign(claims("u")))
    assert gateway.log.count("can't read the key set") == 1


async def test_a_gateway_that_starts_in_an_outage_lets_in_once_there_are_keys(
    valkey: RedisServer, wire: str, issuer: KeyServer
) -> None:
    issuer.answer = b""
    gateway = GatewayProcess(
        "tokens-outage",
        redis_url=valkey.url,
        wire=wire,
        jwt_algorithms="ES256",
        jwks_url=issuer.url,
        jwks_refresh_seconds=1,
    )
    with gateway.start(until_ready=False):
        await asyncio.to_thread(wait_for_requests, issuer, 3)
        issuer.publish(EC)
        await asyncio.to_thread(gateway.wait_until_ready)

        async def lets_in() -> bool:
            return await is_in(gateway, "/ws", EC.sign(claims("u")))

        await eventually(lets_in, "the key is there")


async def test_a_file_that_is_replaced_gives_its_new_keys(
    start_gateway: Start, tmp_path: Path, path: str
) -> None:
    keys = tmp_path / "keys.json"
    keys.write_bytes(key_set(EC))
    gateway = start_gateway(
        jwt_algorithms="ES256,HS256", jwks_file=str(keys), jwks_refresh_seconds=NEVER
    )

    async def lets_in() -> bool:
        return await is_in(gateway, path, EC.sign(claims("u")))

    await eventually(lets_in, "the first key")
    assert await is_in(gateway, path, token("u"))
    keys.with_suffix(".new").write_bytes(key_set(NEW_EC))
    keys.with_suffix(".new").replace(keys)
    assert await is_in(gateway, path, NEW_EC.sign(claims("u")))
    assert not await is_in(gateway, path, EC.sign(claims("u")))
    assert await is_in(gateway, path, token("u"))
