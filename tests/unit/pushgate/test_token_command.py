"""`pushgate token` makes tokens that gateways take, and no others."""

from __future__ import annotations

import json
from pathlib import Path

import jwt
import pytest
from click.testing import CliRunner, Result

from gateway.settings import GatewaySettings
from pushgate.cli import cli

SECRET = "a secret of thirty-two bytes or more"


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads the secrets of a `pushgate dev` that runs in this folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("AUDIENCE", "ISSUER", "ALGORITHMS", "MAX_SECONDS"):
        monkeypatch.delenv(f"PUSHGATE_JWT_{name}", raising=False)


def made(*words: str) -> Result:
    return CliRunner().invoke(cli, ["token", *words, "--jwt-secret", SECRET])


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("a\tb",), "sub is no user id"),
        (("",), "sub is no user id"),
        (("u" * 257,), "sub is no user id"),
        (("u", "--device", ""), "device is no device name"),
        (("u", "--ttl", str(367 * 86_400)), "exp is too far ahead"),
        (("u", "--ttl", "61", "--jwt-max-seconds", "60"), "exp is too far ahead"),
    ],
)
def test_what_gateways_would_refuse_is_refused_in_their_words(
    words: tuple[str, ...], fault: str
) -> None:
    result = made(*words)
    assert result.exit_code == 1
    assert f"gateways would refuse this token: {fault}" in result.stderr
    assert result.stdout == ""


def test_gateways_that_take_no_hs256_are_named() -> None:
    result = made("u", "--jwt-algorithms", "RS256,ES256")
    assert result.exit_code == 2
    assert "PUSHGATE_JWT_ALGORITHMS" in result.stderr


def test_audience_and_issuer_are_those_of_the_gateways() -> None:
    result = made("u", "--jwt-audience", "push", "--jwt-issuer", "me")
    claims = jwt.decode(result.stdout.strip(), SECRET, ["HS256"], audience="push")
    assert (claims["sub"], claims["iss"]) == ("u", "me")


def test_json_has_the_token_and_what_it_is_for() -> None:
    result = made("u", "--device", "phone", "--ttl", "60", "--json")
    answer = json.loads(result.stdout)
    assert jwt.decode(answer.pop("token"), SECRET, ["HS256"])["device"] == "phone"
    assert answer == {"user": "u", "device": "phone", "expires_in_seconds": 60}


def test_the_longest_time_is_the_gateways_own_default() -> None:
    default = GatewaySettings.model_fields["jwt_max_seconds"].default
    assert made("u", "--ttl", str(default)).exit_code == 0
    assert made("u", "--ttl", str(default + 2)).exit_code == 1
