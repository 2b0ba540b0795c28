"""Certificates in files, judged at times before, within and after their validity."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pushgate.doctor.certificates import check_files, check_servers
from pushgate.doctor.finding import Severity
from pushgate.settings import DoctorSettings
from tests.support.certificate import write_certificate
from tests.support.findings import bad, only
from tests.support.processes import free_port

pytestmark = pytest.mark.anyio


@pytest.fixture
def settings(tmp_path: Path) -> DoctorSettings:
    """Settings with a certificate that is good for an hour, and began five minutes ago."""
    cert_file, key_file = map(str, write_certificate(tmp_path))
    return DoctorSettings(internal_tls_cert=cert_file, internal_tls_key=key_file)


@pytest.mark.parametrize(
    ("later", "severity", "words"),
    [
        (timedelta(), Severity.WARNING, "in 0 days"),
        (timedelta(hours=2), Severity.FAULT, "expired on"),
        (timedelta(minutes=-10), Severity.FAULT, "not valid before"),
    ],
)
def test_a_certificate_is_judged_by_its_dates(
    settings: DoctorSettings, later: timedelta, severity: Severity, words: str
) -> None:
    finding = only(check_files(settings, now=datetime.now(UTC) + later))
    assert finding.severity is severity
    assert "PUSHGATE_INTERNAL_TLS_CERT" in finding.what
    assert words in finding.what


@pytest.mark.parametrize(("days", "severity"), [(20, Severity.WARNING), (22, Severity.OK)])
def test_a_certificate_is_to_be_replaced_three_weeks_before_its_end(
    tmp_path: Path, days: int, severity: Severity
) -> None:
    cert_file, key_file = map(str, write_certificate(tmp_path, valid=timedelta(days=days)))
    settings = DoctorSettings(tls_cert=cert_file, tls_key=key_file)
    (finding,) = check_files(settings, now=datetime.now(UTC))
    assert finding.severity is severity


@pytest.mark.parametrize("content", [None, b"no certificate"])
def test_a_file_that_is_none_is_a_fault(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "cert.pem"
    if content is not None:
        file.write_bytes(content)
    settings = DoctorSettings(tls_cert=str(file), tls_key=str(file))
    finding = only(check_files(settings, now=datetime.now(UTC)))
    assert finding.severity is Severity.FAULT
    assert "PUSHGATE_TLS_CERT" in finding.what


async def test_a_server_that_shows_no_certificate_is_noted_by_its_setting() -> None:
    redis, kafka, gateway = (f"127.0.0.1:{free_port()}" for _ in range(3))
    settings = DoctorSettings(
        redis_url=f"rediss://{redis}/0", kafka_bootstrap=kafka, kafka_security_protocol="SSL"
    )
    now = datetime.now(UTC)
    found = await check_servers(settings, through=f"https://{gateway}", now=now)
    assert bad(found) == []
    assert [each.what.partition(": no certificate is shown (")[0] for each in found] == [
        f"PUSHGATE_REDIS_URL, {redis}",
        f"PUSHGATE_KAFKA_BOOTSTRAP, {kafka}",
        f"--through, {gateway}",
    ]
    assert await check_servers(DoctorSettings(), through=f"http://{gateway}", now=now) == []
