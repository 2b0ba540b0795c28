"""Self-signed certificates of 127.0.0.1, for servers of tests."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from pushgate.embedded import LOOPBACK


def make_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def pem(key: ec.EllipticCurvePrivateKey, password: bytes | None = None) -> bytes:
    encryption = NoEncryption() if password is None else BestAvailableEncryption(password)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def certificate_of(
    key: ec.EllipticCurvePrivateKey, *, valid: timedelta = timedelta(hours=1)
) -> bytes:
    """Sign a certificate of 127.0.0.1, for an hour by default."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pushgate's tests")])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + valid)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(LOOPBACK))]), False)
    )
    return built.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def write_certificate(
    directory: Path, *, valid: timedelta = timedelta(hours=1)
) -> tuple[Path, Path]:
    """Write a new certificate and its key; give the paths of both. The certificate is its CA."""
    key = make_key()
    cert_file, key_file = directory / "cert.pem", directory / "key.pem"
    cert_file.write_bytes(certificate_of(key, valid=valid))
    key_file.write_bytes(pem(key))
    return cert_file, key_file
