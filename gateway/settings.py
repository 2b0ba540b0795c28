"""A gateway node's settings: one class, one sentence a field, the unit in the name."""

from __future__ import annotations

import secrets
import socket
from typing import Annotated, Self

from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator

from gateway.origin import Origins
from gateway.wires.choice import Choice
from registry.directory import Node, is_address
from registry.settings import RegistrySettings, printable


class GatewaySettings(RegistrySettings):
    """Flags and PUSHGATE_… variables of `pushgate gateway`."""

    host: Annotated[str, Field(description="Public listener's address.")] = "0.0.0.0"  # noqa: S104
    port: Annotated[int, Field(ge=0, le=65535, description="Public listener's port.")] = 8080
    internal_host: Annotated[
        str, Field(description="Internal listener's address; never make it public.")
    ] = "127.0.0.1"
    internal_port: Annotated[
        int, Field(ge=0, le=65535, description="Internal listener's port.")
    ] = 8081
    advertise_address: Annotated[
        str | None,
        Field(
            description="host:port under which processors reach this node; the internal "
            "listener's, if that is a real address.",
        ),
    ] = None
    node_name: Annotated[
        str | None,
        Field(
            pattern=r"^[A-Za-z0-9._-]{1,64}$",
            description="This node's name, unique in the system; host name and internal port.",
        ),
    ] = None
    jwt_secret: Annotated[SecretStr, Field(min_length=1, description="Key of HS256 tokens.")]
    internal_secret: Annotated[
        SecretStr,
        AfterValidator(printable),
        Field(min_length=1, description="Bearer secret of the internal listener."),
    ]
    origins: Annotated[
        str,
        Field(
            description="Allowed Origins, a comma list of scheme://host[:port]; a host may start "
            "with *. for any labels. Empty: the same host only."
        ),
    ] = ""
    max_payload_bytes: Annotated[
        int, Field(ge=1, le=3 * 1024 * 1024, description="Largest payload that is delivered.")
    ] = 65_536
    wire: Annotated[
        Choice,
        Field(description="How sockets are held: epoll (Linux, plaintext), transport, or auto."),
    ] = "auto"
    send_buffer_bytes: Annotated[
        int,
        Field(
            ge=4_096,
            description="What may wait for one client that does not read; then it is closed.",
        ),
    ] = 1024 * 1024
    heartbeat_seconds: Annotated[
        float, Field(gt=0, le=240, description="Interval of WebSocket pings and SSE comments.")
    ] = 25.0
    heartbeat_timeout_seconds: Annotated[
        float, Field(gt=0, le=240, description="How long a WebSocket ping may go unanswered.")
    ] = 10.0
    poll_grace_seconds: Annotated[
        float, Field(gt=0, le=240, description="How long a long-poll session lives between polls.")
    ] = 30.0
    poll_buffer_bytes: Annotated[
        int, Field(ge=4_096, description="What a long-poll session may hold between polls.")
    ] = 1024 * 1024
    inbound_bytes: Annotated[
        int, Field(ge=125, description="Largest message accepted from a WebSocket client.")
    ] = 65_536

    @field_validator("origins")
    @classmethod
    def _of_origins(cls, value: str) -> str:
        Origins(value)
        return value

    @field_validator("advertise_address")
    @classmethod
    def _somebodys(cls, value: str | None) -> str | None:
        if value is not None and not is_address(value):
            raise ValueError("that is no host:port")
        if value is not None and _is_wildcard(value.rpartition(":")[0]):
            raise ValueError("that is nobody's address: processors could not reach it")
        return value

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.advertise_address is None and _is_wildcard(self.internal_host):
            raise ValueError(
                f"internal_host {self.internal_host!r} is no address that processors could reach: "
                "set PUSHGATE_ADVERTISE_ADDRESS to host:port"
            )
        return self

    def node(self, internal_port: int) -> Node:
        """Return this process's node, listening on `internal_port`; each call a new epoch."""
        name = self.node_name or f"{socket.gethostname()[:50]}-{internal_port}"
        address = self.advertise_address
        if address is None:
            host = f"[{self.internal_host}]" if ":" in self.internal_host else self.internal_host
            address = f"{host}:{internal_port}"
        return Node(_clean(name), secrets.token_hex(8), address)


def _clean(name: str) -> str:
    return "".join(
        char if char.isascii() and (char.isalnum() or char in "._-") else "-" for char in name
    )


def _is_wildcard(host: str) -> bool:
    host = host.strip("[]")
    try:
        # inet_aton() knows that "0" is 0.0.0.0 too.
        packed = socket.inet_pton(socket.AF_INET6, host) if ":" in host else socket.inet_aton(host)
    except OSError:
        return not host
    return not any(packed)
