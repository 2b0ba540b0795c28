"""Checks of certificates: those in files of the settings, and those that servers show."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from cryptography import x509

from pushgate.doctor.finding import Finding, Subject
from pushgate.doctor.ports import certificate_at
from pushgate.settings import DoctorSettings
from registry.networks import authority
from registry.redis_link import addresses

CERTIFICATES: Final = Subject("certificates")

_SOON: Final = timedelta(days=21)
#: The settings that are files of certificates.
_FILES: Final = (
    "tls_cert",
    "internal_tls_cert",
    "internal_tls_ca",
    "redis_ca_file",
    "kafka_ca_file",
)


def check_files(settings: DoctorSettings, *, now: datetime) -> list[Finding]:
    """Judge the certificates in files; `now` has a time zone."""
    found: list[Finding] = []
    for name in _FILES:
        path: str | None = getattr(settings, name)
        if path is None:
            continue
        setting = f"PUSHGATE_{name.upper()}"
        try:
            chain = x509.load_pem_x509_certificates(Path(path).read_bytes())
        except (OSError, ValueError) as error:
            found.append(
                CERTIFICATES.fault(
                    f"{setting}: {path} can't be read as certificates: {error}",
                    why="the process that needs the file does not start",
                    cure=f"let {setting} name a PEM file of certificates that this user can read",
                )
            )
            continue
        found.append(judge(f"{setting} ({path})", chain, now=now))
    return found


def judge(place: str, chain: Sequence[x509.Certificate], *, now: datetime) -> Finding:
    """Judge a chain by the certificate that expires first."""
    first = min(chain, key=lambda each: each.not_valid_after_utc)
    end, left = first.not_valid_after_utc, first.not_valid_after_utc - now
    begins = max(each.not_valid_before_utc for each in chain)
    why = "TLS with this certificate is refused, and what it carries stops"
    if now < begins:
        return CERTIFICATES.fault(
            f"{place}: not valid before {begins:%Y-%m-%d %H:%M} UTC",
            why=why,
            cure="see that the clocks are right, or replace the certificate",
        )
    cure = "replace the certificate, and restart: files are read at the start"
    if left <= timedelta():
        return CERTIFICATES.fault(f"{place}: expired on {end:%Y-%m-%d}", why=why, cure=cure)
    if left < _SOON:
        return CERTIFICATES.warning(
            f"{place}: expires on {end:%Y-%m-%d}, in {left.days} days", why=why, cure=cure
        )
    return CERTIFICATES.ok(f"{place}: good until {end:%Y-%m-%d}")


async def check_servers(
    settings: DoctorSettings, *, through: str | None, now: datetime
) -> list[Finding]:
    """Judge the certificates that servers of the settings show; `through` is a gateway's URL."""
    places = list(dict.fromkeys(_servers(settings, through)))
    shown = await asyncio.gather(
        *(certificate_at(host, port) for _, host, port in places), return_exceptions=True
    )
    found: list[Finding] = []
    for (setting, host, port), certificate in zip(places, shown, strict=True):
        place = f"{setting}, {authority(host, port)}"
        if isinstance(certificate, BaseException):
            found.append(_unshown(place, certificate))
        else:
            found.append(judge(place, [x509.load_der_x509_certificate(certificate)], now=now))
    return found


def _unshown(place: str, error: BaseException) -> Finding:
    return CERTIFICATES.note(
        f"{place}: no certificate is shown ({str(error) or type(error).__name__})",
        why="when the server's certificate expires is unknown",
        cure="see what is said of the server",
    )


def _servers(settings: DoctorSettings, through: str | None) -> Iterator[tuple[str, str, int]]:
    """Yield setting, host and port of the servers with TLS."""
    if settings.redis_url.startswith("rediss"):
        for host, port in addresses(settings.redis_url):
            yield "PUSHGATE_REDIS_URL", host, port
    if "SSL" in settings.kafka_security_protocol:
        for host, port in settings.bootstrap_addresses:
            yield "PUSHGATE_KAFKA_BOOTSTRAP", host, port
    if through is not None and through.startswith("https://"):
        gateway = urlsplit(through)
        yield "--through", gateway.hostname or "", gateway.port or 443
