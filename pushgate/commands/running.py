"""What the commands share: their settings, the run of a server, and the run of a tool."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

import click
import msgspec
import structlog
import uvloop
from pydantic_settings import BaseSettings

from pushgate import logs
from pushgate.attendance import Attended, attend
from pushgate.descriptors import raise_limit
from pushgate.environment import remarks
from pushgate.leaving import Leaves, bound_leaving
from pushgate.options import load
from pushgate.settings import LogSettings
from pushgate.supervisor import Supervisor

log = structlog.get_logger("pushgate")

_F = TypeVar("_F", bound=Callable[..., Any])
_Settings = TypeVar("_Settings", bound=BaseSettings)
_Result = TypeVar("_Result")
_Server = TypeVar("_Server", bound="Server")


def load_settings(
    settings: type[_Settings], flags: dict[str, Any], *, files: tuple[str, ...] = ()
) -> _Settings:
    """Build a command's settings, and warn of variables that are no settings.

    Servers warn in their log, and their log is configured here; tools warn on standard error. The
    message of a setting that stops the start has the warnings: a misspelt name may be the cause.

    Raises:
        click.UsageError: a value is bad, or a setting is missing.
    """
    # A worker says nothing: its parent has warned already.
    warnings = remarks(os.environ) if "PUSHGATE_WORKER_INDEX" not in os.environ else []
    try:
        loaded = load(settings, flags, files=files)
    except click.UsageError as error:
        raise click.UsageError("\n".join((error.message, *warnings))) from None
    if isinstance(loaded, LogSettings):
        logs.configure(as_json=loaded.log_json, level=loaded.log_level)
        for warning in warnings:
            log.warning("variables that are no settings", which=warning)
    else:
        for warning in warnings:
            click.echo(f"Warning: {warning}", err=True)
    return loaded


def json_option(command: _F) -> _F:
    """Decorate a command with `--json`, its argument `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")(command)


def print_json(value: object) -> None:
    """Print a value as a line of JSON on standard output."""
    click.echo(msgspec.json.encode(value).decode())


class Server(Leaves, Attended, Protocol):
    """A gateway, or a processor."""

    def stop(self) -> None:
        """Begin to leave."""

    async def run(self) -> None:
        """Serve until the server has left."""


async def _attend(server: Server) -> None:
    await attend(server, Supervisor.of_process(os.environ))


def serve(
    make: Callable[[], _Server],
    attend: Callable[[_Server], Coroutine[Any, Any, None]] = _attend,
) -> None:
    """Run the server from `make` until a signal; `make` is called inside the event loop.

    `attend` runs beside the server, from its start to its end. The server's `leave_seconds` bound
    the time from its stop to the end of the process.
    """
    raise_limit()  # before a gateway derives its own limits

    async def until_stopped() -> None:
        try:
            server = make()
        except OSError as error:
            raise click.ClickException(str(error)) from error
        # Objects of the start stay until the exit. Frozen objects are left out of full collections,
        # so that a collection looks only at objects of connections and messages.
        gc.collect()
        gc.freeze()
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, server.stop)
        bound = loop.create_task(bound_leaving(server))
        attending = loop.create_task(attend(server))
        await server.run()
        await attending
        bound.cancel()

    uvloop.run(until_stopped())


def run(work: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a tool's work, and return its result; Ctrl-C exits with status 130, as shells expect."""
    try:
        return uvloop.run(work)
    except KeyboardInterrupt:
        sys.exit(130)
