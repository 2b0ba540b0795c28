"""How to reach the registry, and how long things in it live."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


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
        Field(gt=0, le=60, description="How long one registry command may take, retries included."),
    ] = 1.0
