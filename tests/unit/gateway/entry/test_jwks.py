"""Which keys a key set gives, how they are kept fresh, and that no answer does any harm."""

import asyncio
import contextlib
import gzip
import json
import time
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import SecretStr
from structlog.testing import capture_logs
from structlog.typing import EventDict

from gateway.entry import jwks
from gateway.entry.jwks import (
    MAX_KEYS,
    MAX_SET_BYTES,
    RENEW_SECONDS,
    FileSource,
    KeyRing,
    UrlSource,
)
from gateway.settings import AuthSettings
from pushgate.embedded import LOOPBACK
from tests.support.clients import eventually
from tests.support.clock import Clock
from tests.support.issuer import KeyServer, SigningKey, key_set, response
from tests.support.processes import free_port

pytestmark = pytest.mark.anyio

RSA, OTHER_RSA, EC = SigningKey.rsa("r"), SigningKey.rsa("r2"), SigningKey.ec("e")
AT_ONCE = 0.02
"""A refresh interval that also bounds the back-off: tests wait for what comes of it."""
NEVER = 3_600.0


@pytest.fixture
def server() -> Iterator[KeyServer]:
    with KeyServer(RSA, EC) as serving:
        yield serving


@pytest.fixture
def logs() -> Iterator[list[EventDict]]:
    with capture_logs() as captured:
        yield captured


@contextlib.asynccontextmanager
async def ring_of(
    source: str | Path, *, refresh_seconds: float = NEVER, clock: Clock | None = None
) -> AsyncIterator[KeyRing]:
    """Give a ring that does not run yet."""
    where = FileSource(str(source)) if isinstance(source, Path) else UrlSource(source)
    ring = KeyRing(where, refresh_seconds=refresh_seconds, clock=clock or Clock(1_000.0))
    try:
        yield ring
    finally:
        await ring.close()


@contextlib.asynccontextmanager
async def running(
    source: str | Path, *, refresh_seconds: float = AT_ONCE, clock: Clock | None = None
) -> AsyncIterator[KeyRing]:
    """Give a ring that runs."""
    async with ring_of(source, refresh_seconds=refresh_seconds, clock=clock) as ring:
        task = asyncio.create_task(ring.run())
        try:
            yield ring
        finally:
            task.cancel()
            await asyncio.wait((task,))
            assert task.cancelled(), "nothing but cancelling ends it"


async def loaded(ring: KeyRing) -> None:
    async with asyncio.timeout(5):
        await ring.loaded.wait()


async def some_requests(server: KeyServer) -> None:
    seen = len(server.requests)
    await eventually(lambda: len(server.requests) > seen + 2, "some more requests")


async def ring_with(keys: bytes, directory: Path) -> KeyRing:
    """Give a ring that has read a document once."""
    path = directory / "keys.json"
    path.write_bytes(keys)
    async with ring_of(path) as ring:
        assert await ring.renew()
        return ring


# Where keys come from


async def test_keys_of_a_url_are_found_by_algorithm_and_id(server: KeyServer) -> None:
    async with running(server.url, refresh_seconds=NEVER) as ring:
        assert ring.find("RS256", "r") is None
        await loaded(ring)
        found = ring.find("RS256", "r")
        assert found is not None
        assert found.key.public_numbers() == RSA.private.public_key().public_numbers()
        assert ring.find("ES256", "e") is not None
        for algorithm, kid in (("RS256", "e"), ("ES256", "r"), ("HS256", "r"), ("RS256", "x")):
            assert ring.find(algorithm, kid) is None
    assert len(server.requests) == 1


async def test_keys_of_a_file_are_found(tmp_path: Path) -> None:
    ring = await ring_with(key_set(RSA), tmp_path)
    assert ring.find("RS256", "r") is not None


async def test_the_settings_say_where_keys_are(server: KeyServer, tmp_path: Path) -> None:
    def settings(**given: Any) -> AuthSettings:
        return AuthSettings(internal_secret=SecretStr("i" * 32), **given)

    assert settings(jwt_secret="s" * 32, jwks_url=server.url).key_ring() is None
    (tmp_path / "keys").write_bytes(key_set(RSA))
    for where in ({"jwks_url": server.url}, {"jwks_file": str(tmp_path / "keys")}):
        ring = settings(jwt_algorithms="RS256", **where).key_ring()
        assert ring is not None
        assert await ring.renew()
        assert ring.find("RS256", "r") is not None
        await ring.close()


async def test_no_proxy_of_the_environment_comes_between(
    server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://{LOOPBACK}:{free_port()}")
    async with ring_of(server.url) as ring:
        assert await ring.renew()


# Which keys count


@pytest.mark.parametrize("key", [RSA, EC], ids=["RSA", "EC"])
async def test_a_token_without_id_has_the_only_key_of_its_algorithm(
    key: SigningKey, tmp_path: Path
) -> None:
    ring = await ring_with(key_set(RSA, EC), tmp_path)
    assert ring.find(key.algorithm, None) is ring.find(key.algorithm, key.kid)


async def test_a_token_without_id_has_none_of_several_keys(tmp_path: Path) -> None:
    ring = await ring_with(key_set(RSA, OTHER_RSA), tmp_path)
    assert ring.find("RS256", None) is None
    assert ring.find("RS256", "r") is not ring.find("RS256", "r2")


def private_jwk(key: SigningKey) -> dict[str, Any]:
    """Spell a key with its private half, though it is only to verify with."""
    algorithm = jwt.get_algorithm_by_name(key.algorithm)
    private: dict[str, Any] = algorithm.to_jwk(key.private, as_dict=True)
    return {**private, "kid": "odd", "key_ops": ["verify"]}


def odd(number: int) -> str:
    """Spell an odd number of so many bits, as a modulus is."""
    raw = (1 << (number - 1) | 1).to_bytes(number // 8)
    return urlsafe_b64encode(raw).decode()


ODD_KEYS: dict[str, object] = {
    "symmetric": {"kty": "oct", "kid": "odd", "k": "c2VjcmV0", "alg": "HS256"},
    "symmetric-as-rs256": {"kty": "oct", "kid": "odd", "k": "c2VjcmV0", "alg": "RS256"},
    "okp": {"kty": "OKP", "crv": "Ed25519", "kid": "odd", "x": "A" * 43},
    "for-encryption": RSA.jwk(kid="odd", use="enc"),
    "use-null": RSA.jwk(kid="odd", use=None),
    "rs512": RSA.jwk(kid="odd", alg="RS512"),
    "ps256": RSA.jwk(kid="odd", alg="PS256"),
    "hs256": RSA.jwk(kid="odd", alg="HS256"),
    "es256-of-rsa": RSA.jwk(kid="odd", alg="ES256"),
    "alg-list": RSA.jwk(kid="odd", alg=["RS256"]),
    "only-signs": RSA.jwk(kid="odd", key_ops=["sign"]),
    "key-ops-text": RSA.jwk(kid="odd", key_ops="verify"),
    "p-384": SigningKey.ec("odd", ec.SECP384R1()).jwk(),
    "p-521": SigningKey.ec("odd", ec.SECP521R1()).jwk(),
    "secp256k1": SigningKey.ec("odd", ec.SECP256K1()).jwk(),
    "no-curve": {**EC.jwk(kid="odd"), "crv": None},
    "another-point": EC.jwk(kid="odd", x="A" * 43),
    "short-point": EC.jwk(kid="odd", x="AA"),
    "rsa-1024": SigningKey.rsa("odd", bits=1_024).jwk(),
    "rsa-16384": RSA.jwk(kid="odd", n=odd(16_384)),
    "rsa-400000": RSA.jwk(kid="odd", n=odd(400_000)),
    "rsa-of-nothing": {"kty": "RSA", "kid": "odd"},
    "rsa-e-1": RSA.jwk(kid="odd", e="AQ"),
    "rsa-e-0": RSA.jwk(kid="odd", e=""),
    "rsa-n-number": RSA.jwk(kid="odd", n=7),
    "rsa-n-list": RSA.jwk(kid="odd", n=["x"]),
    "rsa-n-not-base64": RSA.jwk(kid="odd", n="\u00fc!"),
    "private-rsa": private_jwk(RSA),
    "private-ec": private_jwk(EC),
    "private-or-not": RSA.jwk(kid="odd", d=None),
    "kty-number": {"kty": 7, "kid": "odd"},
    "kty-list": {"kty": ["RSA"], "kid": "odd"},
    "kid-number": RSA.jwk(kid=7),
    "kid-list": RSA.jwk(kid=["r"]),
    "kid-null-alg-wrong": RSA.jwk(kid=None, alg="RS384"),
    "text": "RSA",
    "null": None,
    "number": 7,
    "list": [RSA.jwk()],
}


@pytest.mark.parametrize("name", ODD_KEYS)
async def test_an_odd_key_is_skipped_and_costs_the_others_nothing(
    name: str, tmp_path: Path, logs: list[EventDict]
) -> None:
    ring = await ring_with(key_set(ODD_KEYS[name], OTHER_RSA, EC), tmp_path)
    assert ring.find("RS256", "r2") is ring.find("RS256", None)
    assert ring.find("ES256", "e") is ring.find("ES256", None)
    assert all(ring.find(algorithm, "odd") is None for algorithm in ("RS256", "ES256", "HS256"))
    (skipped,) = [line["skipped"] for line in logs if line["log_level"] == "warning"]
    assert len(skipped) == 1
    assert skipped[0].startswith("key 0: ")
    assert len(skipped[0]) < 100, "the key is not repeated"


async def test_the_first_of_two_keys_with_one_id_counts(tmp_path: Path) -> None:
    ring = await ring_with(key_set(RSA, OTHER_RSA.jwk(kid="r"), EC.jwk(kid="r")), tmp_path)
    found = ring.find("RS256", "r")
    assert found is not None
    assert found.key.public_numbers() == RSA.private.public_key().public_numbers()
    assert ring.find("ES256", "r") is not None


async def test_thousands_of_keys_take_no_longer_than_a_hundred(
    tmp_path: Path, logs: list[EventDict]
) -> None:
    keys = [EC.jwk(kid=str(number)) for number in range(5_000)]
    ring = await ring_with(key_set(*keys), tmp_path)
    assert ring.find("ES256", str(MAX_KEYS - 1)) is not None
    assert ring.find("ES256", str(MAX_KEYS)) is None
    assert logs[0]["skipped"] == [f"all behind the first {MAX_KEYS}"]


# Answers that are no key set

BAD_ANSWERS: dict[str, bytes] = {
    "nothing": b"",
    "not-http": b"\x16\x03\x01 not http\r\n\r\n",
    "empty": response(b""),
    "html": response(b"<html>Sign in</html>"),
    "not-utf-8": response(b'{"keys": ["\xff"]}'),
    "a-list": response(json.dumps([OTHER_RSA.jwk()]).encode()),
    "a-key": response(json.dumps(OTHER_RSA.jwk()).encode()),
    "keys-object": response(b'{"keys": {}}'),
    "keys-null": response(b'{"keys": null}'),
    "deep": response(b'{"keys": ' + b"[" * 500_000),
    "cut": response(key_set(OTHER_RSA)[:-1]),
    "cut-by-http": response(key_set(OTHER_RSA)[:-9], length=len(key_set(OTHER_RSA))),
    "huge": response(key_set(OTHER_RSA) + b" " * MAX_SET_BYTES),
    "huge-without-length": b"HTTP/1.1 200 OK\r\n\r\n" + key_set(OTHER_RSA) + b" " * 8_000_000,
    "huge-head": b"HTTP/1.1 200 OK\r\nx: " + b"x" * 4_000_000 + b"\r\n\r\n",
    "compressed": response(gzip.compress(key_set(OTHER_RSA)), headers="content-encoding: gzip\r\n"),
    "not-found": response(key_set(OTHER_RSA), "404 Not Found"),
    "error": response(key_set(OTHER_RSA), "500 Internal Server Error"),
    "partial": response(key_set(OTHER_RSA), "206 Partial Content"),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
async def test_a_bad_answer_changes_no_key(
    server: KeyServer, name: str, logs: list[EventDict]
) -> None:
    clock = Clock(1_000.0)
    async with ring_of(server.url, clock=clock) as ring:
        assert await ring.renew()
        server.answer = BAD_ANSWERS[name]
        clock.now += RENEW_SECONDS
        assert not await ring.renew()
        assert ring.find("RS256", "r") is not None
        assert ring.find("RS256", "r2") is None
    assert [line["log_level"] for line in logs] == ["info", "error"]
    assert len(logs[1]["error"]) < 100


async def test_a_redirect_is_not_followed(server: KeyServer) -> None:
    with KeyServer(OTHER_RSA) as elsewhere:
        server.answer = response(b"", "302 Found", headers=f"location: {elsewhere.url}\r\n")
        async with ring_of(server.url) as ring:
            assert not await ring.renew()
        assert not elsewhere.requests


@pytest.mark.parametrize("before_gate", [0, 20, 100])
async def test_a_server_that_is_silent_or_stops_midway_is_given_up(
    server: KeyServer, before_gate: int, monkeypatch: pytest.MonkeyPatch, logs: list[EventDict]
) -> None:
    monkeypatch.setattr(jwks, "READ_SECONDS", 0.2)
    server.gate.clear()
    server.before_gate = before_gate
    async with ring_of(server.url) as ring:
        began = time.monotonic()
        assert not await ring.renew()
        assert time.monotonic() - began < 2.0
    assert len(server.requests) == 1
    assert logs[0]["log_level"] == "error"


async def test_a_server_that_answers_drop_by_drop_is_given_up(
    server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "READ_SECONDS", 0.2)
    server.drip_seconds = 0.02
    async with ring_of(server.url) as ring:
        began = time.monotonic()
        assert not await ring.renew()
        assert time.monotonic() - began < 2.0


@pytest.mark.parametrize(
    "url", ["http://[::1", "http://\u00fc" + "x" * 80, "http://x:99999/", "https://localhost:1/"]
)
async def test_a_url_of_nobody_is_an_outage_and_no_end(url: str) -> None:
    async with ring_of(url) as ring:
        assert not await ring.renew()


@pytest.mark.parametrize("kind", ["missing", "directory", "huge", "unreadable-text"])
async def test_a_file_that_is_no_key_set_is_an_outage(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    if kind == "directory":
        path.mkdir()
    elif kind == "huge":
        path.write_bytes(key_set(RSA) + b" " * MAX_SET_BYTES)
    elif kind == "unreadable-text":
        path.write_bytes(b"\xff\xfe")
    async with ring_of(path) as ring:
        assert not await ring.renew()


# Keeping fresh


async def test_keys_are_read_again_and_what_is_gone_is_gone(server: KeyServer) -> None:
    async with running(server.url) as ring:
        await loaded(ring)
        server.publish(OTHER_RSA)
        await eventually(lambda: ring.find("RS256", "r2"), "the new key")
        assert ring.find("RS256", "r") is None
        assert ring.find("ES256", "e") is None


async def test_a_set_that_is_emptied_leaves_no_key(server: KeyServer) -> None:
    async with running(server.url) as ring:
        await loaded(ring)
        server.publish()
        await eventually(lambda: ring.find("RS256", "r") is None, "no key")


async def test_a_file_that_is_replaced_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    async with running(path) as ring:
        path.write_bytes(key_set(RSA))
        await loaded(ring)
        (tmp_path / "new").write_bytes(key_set(OTHER_RSA))
        (tmp_path / "new").replace(path)
        await eventually(lambda: ring.find("RS256", "r2"), "the new key")
        assert ring.find("RS256", "r") is None


async def test_the_first_reading_is_tried_until_there_is_a_key(server: KeyServer) -> None:
    server.answer = response(b"", "503 Service Unavailable")
    async with running(server.url) as ring:
        await some_requests(server)
        server.publish()
        await some_requests(server)
        assert not ring.loaded.is_set()
        server.publish(RSA)
        await loaded(ring)


async def test_an_outage_takes_no_key_and_is_logged_once_until_it_ends(
    server: KeyServer, logs: list[EventDict]
) -> None:
    good = server.answer
    async with running(server.url) as ring:
        await loaded(ring)
        for _ in range(2):
            server.answer = response(b"", "500 Internal Server Error")
            await some_requests(server)
            assert ring.find("RS256", "r") is not None
            server.answer = good
            await some_requests(server)
    assert [line["log_level"] for line in logs] == ["info", "error", "info", "error", "info"]


@pytest.mark.parametrize("answer", [b"", response(key_set())], ids=["failure", "no key"])
async def test_a_failure_is_followed_by_longer_and_longer_pauses(
    server: KeyServer, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "_RETRY_SECONDS", (0.01, 0.1, 0.2))
    server.answer = answer
    began = time.monotonic()
    async with running(server.url, refresh_seconds=NEVER):
        await eventually(lambda: len(server.requests) == 5, "five requests")
    assert time.monotonic() - began >= 0.01 + 0.1 + 0.2 + 0.2


async def test_odd_keys_are_logged_once_and_again_when_they_change(
    server: KeyServer, logs: list[EventDict]
) -> None:
    def warned() -> list[Any]:
        return [line["skipped"] for line in logs if line["log_level"] == "warning"]

    server.publish(RSA, ODD_KEYS["symmetric"])
    async with running(server.url):
        await some_requests(server)
        assert len(warned()) == 1
        server.publish(ODD_KEYS["for-encryption"], RSA)
        await eventually(lambda: len(warned()) == 2, "a second warning")


# On demand


async def test_a_new_key_is_found_on_demand(server: KeyServer) -> None:
    async with running(server.url, refresh_seconds=NEVER) as ring:
        await loaded(ring)
        server.publish(RSA, OTHER_RSA)
        assert await ring.renew()
        assert ring.find("RS256", "r2") is not None


async def test_however_many_ask_there_is_one_reading_in_five_seconds(server: KeyServer) -> None:
    clock = Clock(1_000.0)
    async with ring_of(server.url, clock=clock) as ring:
        server.gate.clear()
        askers = [asyncio.create_task(ring.renew()) for _ in range(100)]
        await eventually(lambda: server.requests, "a request")
        server.gate.set()
        assert all(await asyncio.gather(*askers))
        assert len(server.requests) == 1
        for _ in range(100):
            assert not await ring.renew()
        clock.now += RENEW_SECONDS - 0.01
        assert not await ring.renew()
        assert len(server.requests) == 1
        clock.now += 0.01
        assert await ring.renew()
        assert len(server.requests) == 2


async def test_who_asks_during_a_refresh_waits_for_it(server: KeyServer) -> None:
    server.gate.clear()
    async with running(server.url, refresh_seconds=NEVER) as ring:
        await eventually(lambda: server.requests, "the first request")
        asker = asyncio.create_task(ring.renew())
        await asyncio.sleep(0)
        server.gate.set()
        assert await asker
    assert len(server.requests) == 1


async def test_one_who_goes_away_takes_the_reading_from_nobody(server: KeyServer) -> None:
    server.gate.clear()
    async with ring_of(server.url) as ring:
        first, second = (asyncio.create_task(ring.renew()) for _ in range(2))
        await eventually(lambda: server.requests, "a request")
        first.cancel()
        server.gate.set()
        assert await second
        assert first.cancelled()


async def test_the_ring_runs_on_when_asked_in_an_outage(server: KeyServer) -> None:
    server.answer = b""
    clock = Clock(1_000.0)
    async with running(server.url, clock=clock) as ring:
        await eventually(lambda: server.requests, "a request")
        assert not await ring.renew()
        server.publish(RSA)
        await loaded(ring)


# The end


async def test_closing_ends_a_reading_and_all_who_wait(server: KeyServer) -> None:
    server.gate.clear()
    clock = Clock(1_000.0)
    async with ring_of(server.url, clock=clock) as ring:
        asker = asyncio.create_task(ring.renew())
        await eventually(lambda: server.requests, "a request")
        async with asyncio.timeout(2):
            await ring.close()
            assert not await asker
            clock.now += RENEW_SECONDS
            assert not await ring.renew()
            await ring.close()
    assert len(server.requests) == 1
