"""Settings of the commands: of the tools, and of the servers with their log settings."""

from __future__ import annotations

import secrets
from typing import Annotated, Final, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from gateway.entry.origin import Origins
from gateway.settings import GatewaySettings
from processor.settings import KafkaSettings, ProcessorSettings
from registry.settings import CallSettings, InternalSecret, long_enough

#: The file of the secrets and addresses of `pushgate dev`, for `token`, `listen` and `send`.
DEV_FILE: Final = ".pushgate/dev.env"


class TokenSettings(BaseSettings):
    """Settings of `pushgate token`."""

    model_config = SettingsConfigDict(env_prefix="PUSHGATE_", extra="ignore", defer_build=True)

    jwt_secret: Annotated[
        SecretStr,
        AfterValidator(long_enough),
        Field(description="Key of HS256 tokens, of 32 bytes at least."),
    ]


class ListenSettings(TokenSettings):
    """Settings of `pushgate listen`."""

    url: Annotated[
        str,
        Field(pattern=r"^https?://[^/]+/?$", description="The gateway's public address."),
    ] = "http://127.0.0.1:8080"


class SendSettings(KafkaSettings):
    """Settings of `pushgate send`."""


class AuditSettings(CallSettings):
    """Settings of `pushgate audit`."""


class LogSettings(BaseSettings):
    """Settings of every server command."""

    model_config = SettingsConfigDict(env_prefix="PUSHGATE_", extra="ignore", defer_build=True)

    log_json: Annotated[
        bool, Field(description="Log lines as JSON, for machines; otherwise for people.")
    ] = False


class GatewayCommandSettings(GatewaySettings, LogSettings):
    """All settings of `pushgate gateway`."""


class ProcessorCommandSettings(ProcessorSettings, LogSettings):
    """All settings of `pushgate processor`."""


def _secret() -> SecretStr:
    return SecretStr(secrets.token_urlsafe(32))


class DevSettings(GatewayCommandSettings, ProcessorCommandSettings):
    """All settings of `pushgate dev`: gateway and processor, on loopback, with random secrets."""

    host: Annotated[str, Field(description="Public listener's address.")] = "127.0.0.1"
    drain_seconds: Annotated[
        float, Field(ge=0, le=86_400, description="Window over which clients are told to leave.")
    ] = 0.0
    workers: Annotated[
        int, Field(ge=1, le=1, description="One: the whole system is one process.")
    ] = 1
    jwt_secret: Annotated[
        SecretStr,
        Field(description="Key of HS256 tokens, of 32 bytes at least; made if not set."),
    ] = Field(default_factory=_secret)
    internal_secret: Annotated[
        InternalSecret, Field(description="The gateways' internal secret; made if not set.")
    ] = Field(default_factory=_secret)

    @model_validator(mode="after")
    def _internal_tls_at_both_ends(self) -> Self:
        if (self.internal_tls_cert is None) != (self.internal_tls_ca is None):
            raise ValueError(
                "set both PUSHGATE_INTERNAL_TLS_CERT and PUSHGATE_INTERNAL_TLS_CA, or neither: "
                "gateway and processor are one command here"
            )
        return self

    def allowed_origins(self) -> Origins:
        """Allow pages of this machine too: of any loopback origin, and opened from a file."""
        return Origins(self.origins, local_pages=True)
