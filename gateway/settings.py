"""A gateway node's settings: a class a subject, a sentence a field, the unit in the name."""

from __future__ import annotations

import secrets
import socket
from typing import Annotated, Final, Literal, Self

from jwt import InvalidKeyError
from jwt.algorithms import HMACAlgorithm
from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator
from pydantic_core import PydanticCustomError
from pydantic_core.core_schema import ValidationInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

from gateway.entry.auth import TokenRules
from gateway.entry.claims import ClaimRules
from gateway.entry.jwks import KeyRing
from gateway.entry.origin import Origins
from gateway.wires.choice import Choice
from registry.directory import Node, plain_name
from registry.networks import (
    Network,
    authority,
    host_and_port,
    is_ip_address,
    is_wildcard,
    network_list,
    networks,
    within,
)
from registry.settings import (
    InternalSecret,
    RegistrySettings,
    TracingSettings,
    long_enough,
    printable,
    reachable_address,
)

#: Signature algorithms that an operator can accept. A token's own header never chooses among the
#: algorithms that the operator did not accept (RFC 8725 §3.1).
ALGORITHMS: Final = ("HS256", "RS256", "ES256")
SlowConsumer = Literal["close", "drop-oldest"]


class AuthSettings(BaseSettings):
    """Who may connect: tokens and Origins of clients, and the secret of the internal listener."""

    model_config = SettingsConfigDict(env_prefix="PUSHGATE_", extra="ignore", defer_build=True)

    jwt_algorithms: Annotated[
        str,
        Field(description="What tokens may be signed with, a comma list of HS256, RS256, ES256."),
    ] = "HS256"
    jwt_secret: Annotated[
        SecretStr | None,
        Field(validate_default=True, description="Key of HS256 tokens, of 32 bytes at least."),
    ] = None
    jwks_url: Annotated[
        str | None,
        Field(pattern=r"^https?://[^\s]+$", description="Where the keys of RS256 and ES256 are."),
    ] = None
    jwks_file: Annotated[
        str | None, Field(description="A file with the keys of RS256 and ES256, instead of a URL.")
    ] = None
    jwks_refresh_seconds: Annotated[
        float, Field(ge=1, le=86_400, description="How often the keys are read again.")
    ] = 300.0
    jwt_audience: Annotated[
        str | None, Field(description="What `aud` has to name; unset, it is not looked at.")
    ] = None
    jwt_issuer: Annotated[
        str | None, Field(description="What `iss` has to be; unset, it is not looked at.")
    ] = None
    jwt_max_seconds: Annotated[
        int,
        Field(ge=1, description="How far ahead `exp` may lie; a token good for longer is refused."),
    ] = 366 * 86_400
    internal_secret: Annotated[
        InternalSecret,
        Field(description="Secret of the internal listener, of 32 bytes at least."),
    ]
    internal_secret_previous: Annotated[
        SecretStr | None,
        Field(description="A second one that is good too, while it is rotated."),
    ] = None
    origins: Annotated[
        str,
        Field(
            description="Origins of pages that may connect, beside the gateway's own: a comma list "
            "of scheme://host[:port], https://*.host (any labels), http://localhost:* (any port of "
            "a loopback host), or * (any page, without its cookie)."
        ),
    ] = ""

    @property
    def token_rules(self) -> TokenRules:
        """The rules by which clients' tokens are checked."""
        secret = self.jwt_secret
        return TokenRules(
            algorithms=self.algorithms,
            secret=None if secret is None else secret.get_secret_value(),
            claims=ClaimRules(
                audience=self.jwt_audience,
                issuer=self.jwt_issuer,
                max_seconds=self.jwt_max_seconds,
            ),
        )

    def allowed_origins(self) -> Origins:
        """Make the allow-list of the origins of web pages."""
        return Origins(self.origins)

    def key_ring(self) -> KeyRing | None:
        """Make the ring of keys for RS256 and ES256; None where neither algorithm is accepted."""
        return KeyRing.of(
            self.algorithms,
            url=self.jwks_url,
            file=self.jwks_file,
            refresh_seconds=self.jwks_refresh_seconds,
        )

    @field_validator("jwt_algorithms")
    @classmethod
    def _of_algorithms(cls, value: str) -> str:
        names = [name.strip() for name in value.split(",")]
        if unknown := sorted(set(names) - set(ALGORITHMS)):
            raise ValueError(f"{unknown[0]!r} is none of {', '.join(ALGORITHMS)}")
        return ",".join(names)

    @field_validator("jwt_secret")
    @classmethod
    def _there_for_hs256(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if value is None and "HS256" in info.data.get("jwt_algorithms", ""):
            raise PydanticCustomError("missing", "a key is needed for HS256")
        if value is None:
            return None
        try:
            HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(value.get_secret_value())
        except InvalidKeyError as error:
            raise ValueError(f"no secret for HS256: {error}") from None
        return long_enough(value)

    @field_validator("internal_secret_previous")
    @classmethod
    def _in_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        return None if value is None else long_enough(printable(value))

    @field_validator("origins")
    @classmethod
    def _of_origins(cls, value: str) -> str:
        Origins(value)
        return value

    @model_validator(mode="after")
    def _keys_for_the_others(self) -> Self:
        if self.jwks_url is not None and self.jwks_file is not None:
            raise ValueError("set one of PUSHGATE_JWKS_URL and PUSHGATE_JWKS_FILE")
        asymmetric = self.algorithms - {"HS256"}
        if asymmetric and self.jwks_url is None and self.jwks_file is None:
            raise ValueError(
                f"{', '.join(sorted(asymmetric))} needs keys: set PUSHGATE_JWKS_URL or "
                "PUSHGATE_JWKS_FILE"
            )
        return self

    @property
    def internal_secrets(self) -> list[str]:
        """The secrets that the internal listener accepts: a second secret during a rotation."""
        configured = (self.internal_secret, self.internal_secret_previous)
        return [secret.get_secret_value() for secret in configured if secret is not None]

    @property
    def algorithms(self) -> frozenset[str]:
        """The algorithms that tokens may be signed with."""
        return frozenset(self.jwt_algorithms.split(","))


class AdmissionSettings(BaseSettings):
    """How many connections a node admits, and how large requests may be."""

    model_config = SettingsConfigDict(env_prefix="PUSHGATE_", extra="ignore", defer_build=True)

    max_connections: Annotated[
        int | None,
        Field(ge=1, description="Connections of a node; RLIMIT_NOFILE less a margin if unset."),
    ] = None
    max_connections_per_address: Annotated[
        int, Field(ge=0, description="Connections of one client address; 0 for no limit.")
    ] = 0
    max_connections_per_user: Annotated[
        int, Field(ge=0, description="Connections of one user on a node; 0 for no limit.")
    ] = 64
    handshakes_per_second: Annotated[
        int, Field(ge=0, description="New connections a second on a node; 0 for no limit.")
    ] = 0
    max_memory_bytes: Annotated[
        int | None,
        Field(
            ge=0,
            description="Memory above which no client, and nothing for clients that don't read, is "
            "taken; 0 for no mark; if unset, nine tenths of the control groups' limit.",
        ),
    ] = None
    head_seconds: Annotated[
        float, Field(gt=0, le=240, description="How long a request's head may take to arrive.")
    ] = 10.0
    max_head_bytes: Annotated[
        int, Field(ge=1_024, le=1024 * 1024, description="Largest head of a request: 431 above.")
    ] = 32_768
    inbound_bytes: Annotated[
        int, Field(ge=125, description="Largest message accepted from a WebSocket client.")
    ] = 65_536
    inbound_frames_per_second: Annotated[
        float,
        Field(gt=0, description="Frames a WebSocket client may send, over a heartbeat's interval."),
    ] = 10.0


class HoldingSettings(BaseSettings):
    """How connections are held, and for how long."""

    model_config = SettingsConfigDict(env_prefix="PUSHGATE_", extra="ignore", defer_build=True)

    wire: Annotated[
        Choice,
        Field(description="How sockets are held: epoll (Linux, plaintext), transport, or auto."),
    ] = "auto"
    send_buffer_bytes: Annotated[
        int,
        Field(ge=4_096, description="What may wait in memory for one client that does not read."),
    ] = 256 * 1024
    kernel_buffer_bytes: Annotated[
        int,
        Field(
            ge=0,
            description="SO_SNDBUF of each client's socket (Linux doubles it); 0 for the kernel's.",
        ),
    ] = 32 * 1024
    slow_consumer: Annotated[
        SlowConsumer,
        Field(
            description="When a client's buffer is full: close (messages are refused as overloaded "
            "until there is room; who does not read is closed) or drop-oldest (messages that count "
            "as delivered are dropped; the client is told of the gap)."
        ),
    ] = "close"
    heartbeat_seconds: Annotated[
        float,
        Field(gt=0, le=240, description="Interval of heartbeats to WebSocket and SSE clients."),
    ] = 25.0
    heartbeat_timeout_seconds: Annotated[
        float,
        Field(
            gt=0,
            le=240,
            description="How long a ping may go unanswered, or waiting bytes untaken, by a client.",
        ),
    ] = 10.0
    max_age_seconds: Annotated[
        float,
        Field(ge=0, description="Age at which a client is told to reconnect; 0 for never."),
    ] = 1_800.0
    max_age_jitter_seconds: Annotated[
        float, Field(ge=0, description="The age is up to this much less, drawn for each client.")
    ] = 180.0
    reconnect_delay_seconds: Annotated[
        float,
        Field(
            ge=0, le=240,
            description="A client that is told to reconnect does so within this, drawn for each.",
        ),
    ] = 5.0  # fmt: skip
    poll_grace_seconds: Annotated[
        float, Field(gt=0, le=240, description="How long a long-poll session lives between polls.")
    ] = 30.0
    poll_buffer_bytes: Annotated[
        int, Field(ge=4_096, description="What a long-poll session may hold between polls.")
    ] = 1024 * 1024
    max_payload_bytes: Annotated[
        int, Field(ge=1, le=3 * 1024 * 1024, description="Largest payload that is delivered.")
    ] = 65_536
    repeat_window_messages: Annotated[
        int,
        Field(
            ge=0, le=16_777_216,
            description="How many of the latest messages a node knows again by user and id, and "
            "delivers once; 0 for none.",
        ),
    ] = 131_072  # fmt: skip


class DrainSettings(BaseSettings):
    """How a node drains: over how long, and how many clients are told to leave a second."""

    model_config = SettingsConfigDict(env_prefix="PUSHGATE_", extra="ignore", defer_build=True)

    drain_seconds: Annotated[
        float,
        Field(ge=0, le=86_400, description="Window over which clients are told to leave; 0: now."),
    ] = 60.0
    drain_settle_seconds: Annotated[
        float,
        Field(
            ge=0, le=3_600,
            description="The window's first part, in which readyz is 503 and new clients are "
            "still taken, so that the balancer notices; a quarter of the window at most.",
        ),
    ] = 5.0  # fmt: skip
    drain_rate: Annotated[
        float,
        Field(ge=0, description="Clients told to leave a second at most; 0 for no limit."),
    ] = 0.0


class GatewaySettings(
    AuthSettings,
    AdmissionSettings,
    HoldingSettings,
    DrainSettings,
    RegistrySettings,
    TracingSettings,
):
    """Flags and PUSHGATE_… variables of `pushgate gateway`."""

    host: Annotated[str, Field(description="Public listener's address.")] = "0.0.0.0"  # noqa: S104
    port: Annotated[int, Field(ge=0, le=65535, description="Public listener's port.")] = 8080
    internal_host: Annotated[
        str, Field(description="Internal listener's address; never make it public.")
    ] = "127.0.0.1"
    internal_port: Annotated[
        int,
        Field(ge=0, le=65535, description="Internal listener's port; worker i has port + i."),
    ] = 8081
    advertise_address: Annotated[
        str | None,
        AfterValidator(reachable_address),
        Field(
            description="host:port under which processors reach this node; the internal "
            "listener's, if that is a real address. Worker i adds i to the port.",
        ),
    ] = None
    node_name: Annotated[
        str | None,
        Field(
            pattern=r"^[A-Za-z0-9._-]{1,64}$",
            description="This node's name, unique in the system; host name and internal port.",
        ),
    ] = None
    workers: Annotated[
        int, Field(ge=1, le=256, description="Processes on the public port, each its own node.")
    ] = 1
    takeover_socket: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=90,
            description="Path of a socket at which the next gateway process takes over from this "
            "one, with all connections; a gateway that starts takes over from the one there. "
            "Worker i has the path with .i behind. Unset: none.",
        ),
    ] = None
    tls_cert: Annotated[
        str | None, Field(description="File with the certificate chain (PEM) of the public port.")
    ] = None
    tls_key: Annotated[
        str | None, Field(description="File with the private key (PEM) of the public port.")
    ] = None
    internal_tls_cert: Annotated[
        str | None, Field(description="File with the certificate chain (PEM) of the internal port.")
    ] = None
    internal_tls_key: Annotated[
        str | None, Field(description="File with the private key (PEM) of the internal port.")
    ] = None
    proxy_protocol_from: Annotated[
        str,
        AfterValidator(network_list),
        Field(
            description="Networks of balancers that send a PROXY header (v1 or v2), a comma list; "
            "from these it is required, from others it is never read. Empty: none."
        ),
    ] = ""

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.advertise_address is None and is_wildcard(self.internal_host):
            raise ValueError(
                f"internal_host {self.internal_host!r} is no address that processors could reach: "
                "set PUSHGATE_ADVERTISE_ADDRESS to host:port"
            )
        return self

    @model_validator(mode="after")
    def _in_the_networks(self) -> Self:
        advertised = self.advertise_address
        host = self.internal_host if advertised is None else host_and_port(advertised)[0]
        allowed = networks(self.gateway_networks)
        # A host name is judged by those who call: they may resolve the name otherwise.
        if allowed and is_ip_address(host) and not within(allowed)(host):
            raise ValueError(
                f"the node's address {host} is in none of PUSHGATE_GATEWAY_NETWORKS "
                f"{self.gateway_networks!r}: processors would send nothing there"
            )
        return self

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("set both PUSHGATE_TLS_CERT and PUSHGATE_TLS_KEY, or neither")
        if (self.internal_tls_cert is None) != (self.internal_tls_key is None):
            raise ValueError(
                "set both PUSHGATE_INTERNAL_TLS_CERT and PUSHGATE_INTERNAL_TLS_KEY, or neither"
            )
        if self.tls_cert is not None and self.trusted_networks:
            raise ValueError(
                "PUSHGATE_PROXY_PROTOCOL_FROM is for plaintext: behind a balancer TLS ends there"
            )
        return self

    @model_validator(mode="after")
    def _ports_for_all(self) -> Self:
        if self.workers == 1:
            return self
        if 0 in (self.port, self.internal_port):
            raise ValueError("PUSHGATE_WORKERS above 1 needs a port and an internal port, not 0")
        if self.internal_port + self.workers - 1 > 65_535:
            raise ValueError(
                f"PUSHGATE_INTERNAL_PORT {self.internal_port} leaves no room for {self.workers}"
            )
        if self.internal_port <= self.port < self.internal_port + self.workers:
            raise ValueError(
                f"PUSHGATE_PORT {self.port} is one of the workers' internal ports: "
                f"{self.internal_port} to {self.internal_port + self.workers - 1}"
            )
        return self

    @property
    def trusted_networks(self) -> tuple[Network, ...]:
        """The networks whose connections start with a PROXY header."""
        return networks(self.proxy_protocol_from)

    def for_worker(self, index: int) -> Self:
        """Return the settings of worker `index`; internal port, name and address are its own."""
        update: dict[str, object] = {"internal_port": self.internal_port + index}
        if self.takeover_socket is not None:
            update["takeover_socket"] = f"{self.takeover_socket}.{index}"
        if self.node_name is not None:
            update["node_name"] = f"{self.node_name}-{index}"
        if self.advertise_address is not None:
            host, port = host_and_port(self.advertise_address)
            update["advertise_address"] = authority(host, int(port) + index)
        return self.model_copy(update=update)

    def node(self, internal_port: int) -> Node:
        """Return this process's node, listening on `internal_port`; each call draws a new epoch."""
        name = self.node_name or f"{socket.gethostname()[:50]}-{internal_port}"
        address = self.advertise_address or authority(self.internal_host, internal_port)
        return Node(plain_name(name), secrets.token_hex(8), address)
