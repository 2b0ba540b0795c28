"""What the commands for operators share: the registry, the nodes' ports, and their errors."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import click

from pushgate.commands.running import load_settings, run
from pushgate.ports import NoAnswer, Ports, calling, registry_of
from pushgate.settings import DEV_FILE, OperatorSettings
from registry.calls import GatewayCalls
from registry.directory import RegistryUnavailable
from registry.message import valid_user
from registry.redis_store import RedisRegistry

#: The exit status where the user has no connection.
NOT_CONNECTED: Final = 3


def require_user(user: str) -> None:
    """Refuse what is no user id.

    Raises:
        click.UsageError: it is none.
    """
    if not valid_user(user):
        raise click.UsageError("a user id is 1–256 bytes without control characters")


def operate(flags: dict[str, Any], work: Callable[[RedisRegistry, Ports], Awaitable[int]]) -> None:
    """Run a command on the registry and the nodes, and exit with the status that `work` returns.

    Raises:
        click.ClickException: the registry does not answer, or the node that counts.
    """
    settings = load_settings(OperatorSettings, flags, files=(DEV_FILE,))

    async def working() -> int:
        async with _reached(settings) as (registry, ports):
            return await work(registry, ports)

    try:
        status = run(working())
    except (RegistryUnavailable, NoAnswer) as error:
        raise click.ClickException(str(error)) from error
    sys.exit(status)


@asynccontextmanager
async def _reached(settings: OperatorSettings) -> AsyncIterator[tuple[RedisRegistry, Ports]]:
    async with registry_of(settings) as registry, calling(GatewayCalls.of(settings)) as ports:
        yield registry, ports
