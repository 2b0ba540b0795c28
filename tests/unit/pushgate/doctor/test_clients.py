"""Who may connect: origins, secrets, and a token that is verified as gateways do."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from pushgate.doctor.clients import check_token, judge_origins, judge_secrets
from pushgate.doctor.finding import Severity
from pushgate.settings import DoctorSettings
from pushgate.token import mint
from tests.support.findings import bad, only
from tests.support.processes import INTERNAL_SECRET, JWT_SECRET

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("origins", "severity", "words"),
    [
        ("", Severity.NOTE, "own origin alone"),
        ("*", Severity.WARNING, "every origin"),
        ("http://app.example.com", Severity.WARNING, "without TLS"),
        ("http://localhost:*", Severity.NOTE, "own machine"),
        ("http://app.localhost:3000", Severity.NOTE, "own machine"),
        ("https://app.example.com,https://*.example.org", Severity.OK, "2 besides"),
    ],
)
def test_origins(origins: str, severity: Severity, words: str) -> None:
    found = list(judge_origins(DoctorSettings(origins=origins)))
    assert found[0].severity is severity
    assert words in found[0].what
    assert (Severity.OK in {each.severity for each in found}) is (not bad(found) and bool(origins))


@pytest.mark.parametrize(
    ("secrets", "severity", "words"),
    [
        ({}, Severity.FAULT, "PUSHGATE_JWT_SECRET is not set"),
        (
            {"jwt_secret": JWT_SECRET, "internal_secret": JWT_SECRET},
            Severity.WARNING,
            "are the same",
        ),
    ],
)
def test_secrets(secrets: dict[str, Any], severity: Severity, words: str) -> None:
    finding = only(judge_secrets(DoctorSettings(**secrets)))
    assert finding.severity is severity
    assert words in finding.what


def test_two_secrets_are_well() -> None:
    settings = DoctorSettings(
        jwt_secret=SecretStr(JWT_SECRET), internal_secret=SecretStr(INTERNAL_SECRET)
    )
    assert list(judge_secrets(settings)) == []


@pytest.mark.parametrize(
    ("secret", "severity", "words"),
    [
        (JWT_SECRET, Severity.OK, "good for user 'alice', device 'phone', for 60 s"),
        (INTERNAL_SECRET, Severity.FAULT, "signed with another key"),
    ],
)
async def test_a_token(secret: str, severity: Severity, words: str) -> None:
    token, now = mint("alice", secret, ttl_seconds=60, device="phone"), int(time.time())
    (finding,) = await check_token(DoctorSettings(jwt_secret=SecretStr(JWT_SECRET)), token, now=now)
    assert finding.severity is severity
    assert words in finding.what
    assert token not in str(finding)


@pytest.mark.parametrize("document", [None, {"keys": []}])
async def test_a_key_set_that_cannot_be_used_is_a_fault(tmp_path: Path, document: object) -> None:
    file = tmp_path / "keys.json"
    if document is not None:
        file.write_text(json.dumps(document))
    settings = DoctorSettings(jwt_algorithms="RS256", jwks_file=str(file))
    assert bad(judge_secrets(settings)) == []
    finding = only(await check_token(settings, None, now=0.0))
    assert finding.severity is Severity.FAULT
    assert "PUSHGATE_JWKS_FILE" in finding.cure


async def test_without_a_token_the_keys_are_looked_at() -> None:
    settings = DoctorSettings(jwt_secret=SecretStr(JWT_SECRET))
    (finding,) = await check_token(settings, None, now=0.0)
    assert finding.severity is Severity.OK
    assert "keys for HS256 are there" in finding.what
    assert await check_token(DoctorSettings(), "token", now=0.0) == []  # the secret is missing


async def test_a_token_without_a_device_is_for_any() -> None:
    token = mint("alice", JWT_SECRET, ttl_seconds=60)
    settings = DoctorSettings(jwt_secret=SecretStr(JWT_SECRET))
    (finding,) = await check_token(settings, token, now=time.time())
    assert "user 'alice', any device" in finding.what
