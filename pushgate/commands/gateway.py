"""`pushgate gateway`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import click
import structlog

from gateway.server import Gateway
from gateway.takeover.adopt import NotTakenOver
from pushgate.attendance import attend
from pushgate.commands.running import load_settings, serve
from pushgate.launch import (
    LaunchSettings,
    own_command,
    start_again_with_hash_seed,
    when_starter_ends,
)
from pushgate.options import load, settings_options
from pushgate.reloads import reloads_at
from pushgate.settings import GatewayCommandSettings
from pushgate.succession import Succession
from pushgate.supervisor import Supervisor
from pushgate.workers import CANNOT_START, run_workers


@click.command()
@settings_options(GatewayCommandSettings)
def gateway(**flags: Any) -> None:
    """Run one gateway node, or with --workers several on one port."""
    settings = load_settings(GatewayCommandSettings, flags)
    launch = load(LaunchSettings, {})
    if settings.workers == 1:
        _serve_alone(settings, launched=launch.launched)
    elif launch.worker_index is None:
        sys.exit(_run_workers(settings))
    else:
        _serve_as_worker(settings.for_worker(launch.worker_index), launch.worker_index)


def _run_workers(settings: GatewayCommandSettings) -> int:
    return run_workers(
        settings.workers, settings.takeover_socket, drain_seconds=settings.drain_seconds
    )


def _serve_alone(settings: GatewayCommandSettings, *, launched: bool) -> None:
    if settings.takeover_socket is not None:
        start_again_with_hash_seed()

    async def attend_to(gateway: Gateway) -> None:
        supervisor = Supervisor.of_process(os.environ, launched=launched)
        succession = Succession(gateway, own_command(), os.environ)
        await attend(
            gateway,
            supervisor,
            reloads=reloads_at(settings.takeover_socket, succession.renew, supervisor, os.environ),
            successor=lambda: gateway.successor,
        )

    _serve(lambda: Gateway(settings), attend_to)


def _serve(
    make: Callable[[], Gateway], attend_to: Callable[[Gateway], Coroutine[Any, Any, None]]
) -> None:
    try:
        serve(make, attend_to)
    except NotTakenOver as error:  # in the middle of the take-over; the running gateway goes on
        raise click.ClickException(str(error)) from error


def _serve_as_worker(settings: GatewayCommandSettings, index: int) -> None:
    structlog.contextvars.bind_contextvars(worker=index)  # in each line: workers share a log

    def make() -> Gateway:
        gateway = Gateway(settings)
        when_starter_ends(gateway.stop)
        return gateway

    async def attend_to(gateway: Gateway) -> None:
        supervisor = Supervisor.of_process(os.environ, launched=True)
        await attend(gateway, supervisor, successor=lambda: gateway.successor)

    try:
        _serve(make, attend_to)
    except click.ClickException as error:
        raise _CannotStart(error.message) from error


class _CannotStart(click.ClickException):
    exit_code = CANNOT_START
