"""Settings that commands share: how to reach Redis, and how to call gateways; rules for secrets."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Annotated, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from registry.directory import is_address
from registry.networks import is_wildcard, network_list

#: The least length of a secret, in bytes: the length of HS256's hash (RFC 7518 §3.2).
MIN_SECRET_BYTES: Final = 32
REDIS_URL_PATTERN: Final = r"^rediss?(\+sentinel|\+cluster)?://"
#: The longest that a node may be lost. Elements of a lost node are not asserted any more: elements
#: of 1,800 s that were asserted up to 600 s before the node's last heartbeat must outlive a lease
#: of 15 s and this time (`Timings` in directory.py).
MAX_LOST_SECONDS: Final = 900


def printable(secret: SecretStr) -> SecretStr:
    """Return a secret that can stand in an HTTP field value (RFC 9110 §5.5).

    Raises:
        ValueError: the secret has other characters, or is empty.
    """
    if not re.fullmatch(r"[!-~]([ -~]*[!-~])?", secret.get_secret_value()):
        raise ValueError("printable ASCII only, without spaces at the ends")
    return secret


def readable_ca_file(path: str | None) -> str | None:
    """Return the path of a PEM file of certificates, or None for None.

    Raises:
        ValueError: the file can't be read, or is no such file.
    """
    if path is not None:
        try:
            ssl.create_default_context(cafile=path)
        except OSError as error:  # ssl.SSLError is an OSError too
            raise ValueError(f"that is no PEM file of certificates: {error}") from error
    return path


def reachable_address(value: str | None) -> str | None:
    """Return the host:port under which other processes reach this one, or None for None.

    Raises:
        ValueError: that is no host:port, or stands for every address of a machine.
    """
    if value is not None and not is_address(value):
        raise ValueError("that is no host:port")
    if value is not None and is_wildcard(value.rpartition(":")[0]):
        raise ValueError("that is nobody's address: other processes could not reach it")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisAccess:
    """What a link to Redis needs beside its URL.

    The user and password of the Sentinels, which have accounts of their own, and the CA that signed
    the certificates of servers and Sentinels (None: the system's CAs).
    """

    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    ca_file: str | None = None


def long_enough(secret: SecretStr) -> SecretStr:
    """Return a secret that is too long to be guessed (RFC 7518 §3.2).

    Raises:
        ValueError: the secret has under `MIN_SECRET_BYTES`.
    """
    if len(secret.get_secret_value().encode()) < MIN_SECRET_BYTES:
        raise ValueError(
            f"shorter than {MIN_SECRET_BYTES} bytes; `openssl rand -hex 32` makes a long one"
        )
    return secret


#: The secret of the gateways' internal listeners.
InternalSecret = Annotated[SecretStr, AfterValidator(printable), AfterValidator(long_enough)]
#: The credential of calls to gateways: a proof of the secret (proof.py), or the secret itself.
InternalAuth = Literal["proof", "bearer"]


class RegistrySettings(BaseSettings):
    """Settings that gateways, processors and tools share."""

    model_config = SettingsConfigDict(env_prefix="PUSHGATE_", extra="ignore", defer_build=True)

    redis_url: Annotated[
        str,
        Field(
            pattern=REDIS_URL_PATTERN,
            description="The push registry: redis://, redis+sentinel://h1,h2/name/db or "
            "redis+cluster://h1,h2; rediss://, rediss+sentinel:// and rediss+cluster:// use TLS.",
        ),
    ] = "redis://localhost:6379/0"
    redis_timeout_seconds: Annotated[
        float,
        Field(gt=0, le=60, description="How long one registry command may take."),
    ] = 1.0

    lost_node_seconds: Annotated[
        float,
        Field(
            ge=0,
            le=MAX_LOST_SECONDS,
            description="How long a node whose lease lapsed without a goodbye is tried where it "
            "was, before its users are offline; 0 is off.",
        ),
    ] = 30.0

    resume_seconds: Annotated[
        float,
        Field(
            ge=0,
            le=900,
            description="How far back a client that reconnects gets what it has missed; 0 switches "
            "that off. Gateways and processors need the same value.",
        ),
    ] = 120.0

    redis_sentinel_username: Annotated[
        str | None, Field(description="User at the Sentinels, where it is not the default user.")
    ] = None
    redis_sentinel_password: Annotated[
        SecretStr | None, Field(description="Password at the Sentinels; the URL has the servers'.")
    ] = None
    redis_ca_file: Annotated[
        str | None,
        AfterValidator(readable_ca_file),
        Field(description="PEM file of the CA that signed the certificates of Redis, for rediss."),
    ] = None
    gateway_networks: Annotated[
        str,
        AfterValidator(network_list),
        Field(
            description="Networks that a gateway's advertised address must be in, a comma list of "
            "CIDRs: nothing is sent to others. Empty: any."
        ),
    ] = ""

    @property
    def redis_access(self) -> RedisAccess:
        """What a link to Redis needs beside its URL."""
        password = self.redis_sentinel_password
        return RedisAccess(
            sentinel_username=self.redis_sentinel_username,
            sentinel_password=None if password is None else password.get_secret_value(),
            ca_file=self.redis_ca_file,
        )

    @model_validator(mode="after")
    def _redis_settings_agree(self) -> Self:
        sentinel = self.redis_sentinel_username or self.redis_sentinel_password
        if sentinel and "+sentinel:" not in self.redis_url:
            raise ValueError(
                "PUSHGATE_REDIS_SENTINEL_USERNAME and _PASSWORD are for a PUSHGATE_REDIS_URL of "
                "redis+sentinel:// or rediss+sentinel://"
            )
        if self.redis_ca_file and not self.redis_url.startswith("rediss"):
            raise ValueError(
                "PUSHGATE_REDIS_CA_FILE is for TLS: write rediss in PUSHGATE_REDIS_URL"
            )
        return self

    @field_validator("redis_url")
    @classmethod
    def _of_hosts(cls, value: str) -> str:
        for host in urlsplit(value).netloc.rpartition("@")[2].split(","):
            try:
                port = urlsplit(f"//{host}").port
            except ValueError:
                raise ValueError("the port is no number from 0 to 65535") from None
            if port == 0:
                raise ValueError("the port is 0")
        return value


def with_tracing_installed(url: str | None) -> str | None:
    """Return a collector's URL, or None for None.

    Raises:
        ValueError: the packages that send spans are not installed.
    """
    if url is not None:
        try:
            installed = find_spec("opentelemetry.exporter.otlp.proto.http") is not None
        except ModuleNotFoundError:  # of a parent package
            installed = False
        if not installed:
            raise ValueError(
                "that needs the extra `tracing`: "
                "pip install --require-hashes -r requirements/tracing.txt"
            )
    return url


class TracingSettings(BaseSettings):
    """Settings of traces, the same for gateways and processors."""

    model_config = SettingsConfigDict(env_prefix="PUSHGATE_", extra="ignore", defer_build=True)

    otlp_endpoint: Annotated[
        str | None,
        Field(
            pattern=r"^https?://[^/]",
            description="URL of a collector of OpenTelemetry, as http://collector:4318, that gets "
            "spans of traced messages; none are made if not set.",
        ),
        AfterValidator(with_tracing_installed),
    ] = None


class CallSettings(RegistrySettings):
    """Settings of callers of gateways: of processors and tools."""

    internal_secret: Annotated[
        InternalSecret, Field(description="The gateways' internal secret, of 32 bytes at least.")
    ]
    internal_auth: Annotated[
        InternalAuth,
        Field(
            description="What gateways are shown: proof, of the internal secret for one node; or "
            "bearer, the secret itself, while gateways of version 0.1 are still there."
        ),
    ] = "proof"
    internal_tls_ca: Annotated[
        str | None,
        AfterValidator(readable_ca_file),
        Field(
            description="PEM file of the CA that signed the certificates of the gateways' internal "
            "ports, and nothing else; calls then use TLS."
        ),
    ] = None
