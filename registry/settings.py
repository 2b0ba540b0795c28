"""How to reach the registry: where Redis is, and how long a command may take."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


def printable(secret: SecretStr) -> SecretStr:
    """Return a secret that can stand in an HTTP field value (RFC 9110 §5.5).

    Raises:
        ValueError: the secret has other characters, or is empty.
    """
    if not re.fullmatch(r"[!-~]([ -~]*[!-~])?", secret.get_secret_value()):
        raise ValueError("printable ASCII only, without spaces at the ends")
    return secret


class RegistrySettings(BaseSettings):
    """Settings that gateways and processors share."""

    model_config = SettingsConfigDict(env_prefix="PUSHGATE_", extra="ignore")

    redis_url: Annotated[
        str,
        Field(
            pattern=r"^(rediss?|redis\+sentinel|redis\+cluster)://",
            description="The push registry: redis://, rediss://, redis+sentinel://h1,h2/name/db "
            "or redis+cluster://h1,h2.",
        ),
    ] = "redis://localhost:6379/0"
    redis_timeout_seconds: Annotated[
        float,
        Field(gt=0, le=60, description="How long one registry command may take."),
    ] = 1.0

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
