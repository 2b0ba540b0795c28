"""Settings of the commands: of the tools, and of the servers with their log settings."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from gateway.entry.claims import ClaimRules
from gateway.entry.origin import Origins
from gateway.settings import AuthSettings, GatewaySettings
from processor.settings import (
    DeadLetterSettings,
    OutcomesSettings,
    PortSettings,
    ProcessorSettings,
    RecordSettings,
)
from pushgate.logs import LogLevel
from registry.calls import GatewayCalls
from registry.networks import is_loopback, networks
from registry.settings import REDIS_URL_PATTERN, CallSettings, InternalSecret, long_enough

#: The file of the secrets and addresses of `pushgate dev`, which all tools read.
DEV_FILE: Final = ".pushgate/dev.env"


class TokenSettings(BaseSettings):
    """Settings of `pushgate token`."""

    model_config = SettingsConfigDict(env_prefix="PUSHGATE_", extra="ignore", defer_build=True)

    jwt_secret: Annotated[
        SecretStr,
        AfterValidator(long_enough),
        Field(description="Key of HS256 tokens, of 32 bytes at least."),
    ]

    jwt_algorithms: Annotated[
        str,
        Field(description="What gateways accept: HS256 has to be among it, or no token is made."),
    ] = "HS256"
    jwt_audience: Annotated[str | None, Field(description="The token's `aud`; none if unset.")] = (
        None
    )
    jwt_issuer: Annotated[str | None, Field(description="The token's `iss`; none if unset.")] = None
    jwt_max_seconds: Annotated[
        int, Field(ge=1, description="How far ahead gateways take an `exp`.")
    ] = AuthSettings.model_fields["jwt_max_seconds"].default

    @field_validator("jwt_algorithms")
    @classmethod
    def _with_hs256(cls, value: str) -> str:
        if "HS256" not in [name.strip() for name in value.split(",")]:
            raise ValueError("gateways would refuse a token that is made with a secret (HS256)")
        return value

    @property
    def claim_rules(self) -> ClaimRules:
        """The rules by which gateways check a token's claims."""
        return ClaimRules(
            audience=self.jwt_audience,
            issuer=self.jwt_issuer,
            max_seconds=self.jwt_max_seconds,
        )


class ListenSettings(TokenSettings):
    """Settings of `pushgate listen`."""

    url: Annotated[
        str,
        Field(pattern=r"^https?://[^/]+/?$", description="The gateway's public address."),
    ] = "http://127.0.0.1:8080"


class SendSettings(RecordSettings):
    """Settings of `pushgate send`."""


class AuditSettings(CallSettings):
    """Settings of `pushgate audit`."""


class OperatorSettings(CallSettings):
    """Settings of `pushgate who`, `kick` and `drain`."""


class ReloadSettings(BaseSettings):
    """Settings of `pushgate reload`."""

    model_config = SettingsConfigDict(env_prefix="PUSHGATE_", extra="ignore", defer_build=True)

    takeover_socket: Annotated[
        str, Field(min_length=1, description="The take-over socket of the gateway to be reloaded.")
    ]


class TopSettings(PortSettings):
    """Settings of `pushgate top`."""

    def processor_calls(self) -> GatewayCalls:
        """Return the calls to processors, whose ports speak no TLS.

        They show a proof at any rate: processors that ask for it have always taken proofs.
        """
        return GatewayCalls(
            secret=self.internal_secret.get_secret_value(),
            allowed=networks(self.processor_networks),
            setting="PUSHGATE_PROCESSOR_NETWORKS",
            kind="processor",
        )


class TailSettings(OutcomesSettings, DeadLetterSettings):
    """Settings of `pushgate tail`."""


class DoctorSettings(GatewaySettings, ProcessorSettings):
    """Settings of `pushgate doctor`: all of gateways and processors; secrets may be missing."""

    jwt_secret: Annotated[
        SecretStr | None,
        Field(validate_default=False, description="Key of HS256 tokens, of 32 bytes at least."),
    ] = None
    internal_secret: Annotated[
        InternalSecret,
        Field(validate_default=False, description="The gateways' internal secret."),
    ] = SecretStr("")

    @model_validator(mode="after")
    def _in_the_networks(self) -> Self:
        """Take any address as this host's: a gateway's rule, and no gateway starts here."""
        return self


class LogSettings(BaseSettings):
    """Settings of every server command."""

    model_config = SettingsConfigDict(env_prefix="PUSHGATE_", extra="ignore", defer_build=True)

    log_json: Annotated[
        bool, Field(description="Log lines as JSON, for machines; otherwise for people.")
    ] = False
    log_level: Annotated[
        LogLevel,
        Field(
            description="The least level of log lines: debug (each connection has lines), info, "
            "warning or error. Of libraries there are warnings and errors alone."
        ),
    ] = "info"


class GatewayCommandSettings(GatewaySettings, LogSettings):
    """All settings of `pushgate gateway`."""


class ProcessorCommandSettings(ProcessorSettings, LogSettings):
    """All settings of `pushgate processor`."""


def _secret() -> SecretStr:
    return SecretStr(secrets.token_urlsafe(32))


def _default_of(name: str) -> Callable[[], str]:
    """Return what gives a server's default, for a field whose help is not to show the default."""
    default: str = ProcessorSettings.model_fields[name].default
    return lambda: default


class DevSettings(GatewayCommandSettings, ProcessorCommandSettings):
    """All settings of `pushgate dev`: gateway and processor, on loopback, with random secrets."""

    host: Annotated[str, Field(description="Public listener's address.")] = "127.0.0.1"
    redis_url: Annotated[
        str,
        Field(
            pattern=REDIS_URL_PATTERN,
            description="The push registry; an embedded Valkey if not set.",
        ),
    ] = Field(default_factory=_default_of("redis_url"))
    kafka_bootstrap: Annotated[
        str,
        Field(
            min_length=1,
            description="Kafka bootstrap servers, a comma list of host:port; an embedded broker if "
            "not set.",
        ),
    ] = Field(default_factory=_default_of("kafka_bootstrap"))
    kafka_start: Annotated[
        Literal["end", "earliest"],
        Field(description="Where a new consumer group starts in what exists already."),
    ] = "earliest"
    outcomes_topic: Annotated[
        str | None,
        Field(min_length=1, description="Topic that tells what became of each message."),
    ] = "push.outcomes"
    create_topics: Annotated[
        bool,
        Field(description="Whether dead-letter and outcomes topics that do not exist are created."),
    ] = True
    embedded_kafka_port: Annotated[
        int,
        Field(
            ge=0, le=65535,
            description="The embedded broker's port; another free port where the default is taken.",
        ),
    ] = 9092  # fmt: skip
    embedded_redis_port: Annotated[
        int, Field(ge=0, le=65535, description="The embedded Valkey's port; 0 for any free port.")
    ] = 0
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

    @model_validator(mode="after")
    def _tools_on_this_machine(self) -> Self:
        is_unset = self.processor_advertise_address is None
        if is_unset and is_loopback(self.processor_host) and self.processor_port:
            self.processor_advertise_address = self.own_address()
        return self

    def allowed_origins(self) -> Origins:
        """Allow pages of this machine too: of any loopback origin, and opened from a file."""
        return Origins(self.origins, local_pages=True)


#: The settings of each command that has settings.
COMMAND_SETTINGS: Final[Mapping[str, type[BaseSettings]]] = {
    "gateway": GatewayCommandSettings,
    "processor": ProcessorCommandSettings,
    "dev": DevSettings,
    "send": SendSettings,
    "listen": ListenSettings,
    "token": TokenSettings,
    "top": TopSettings,
    "who": OperatorSettings,
    "kick": OperatorSettings,
    "drain": OperatorSettings,
    "reload": ReloadSettings,
    "tail": TailSettings,
    "audit": AuditSettings,
    "doctor": DoctorSettings,
}
