"""`pushgate gateway`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click
import structlog

from gateway.server import Gateway
from gateway.takeover.adopt import NotTakenOver
from pushgate.commands.running import load_settings, serve
from pushgate.options import load, settings_options
from pushgate.settings import GatewayCommandSettings
from pushgate.workers import CANNOT_START, WorkerSettings, run_workers, when_parent_ends


@click.command()
@settings_options(GatewayCommandSettings)
def gateway(**flags: Any) -> None:
    """Run one gateway node, or with --workers several on one port."""
    settings = load_settings(GatewayCommandSettings, flags)
    index = load(WorkerSettings, {}).worker_index
    if settings.workers == 1:
        _serve(lambda: Gateway(settings))
    elif index is None:
        sys.exit(run_workers(settings.workers))
    else:
        _serve_as_worker(settings.for_worker(index), index)


def _serve(make: Callable[[], Gateway]) -> None:
    try:
        serve(make)
    except NotTakenOver as error:  # in the middle of the take-over; the running gateway goes on
        raise click.ClickException(str(error)) from error


class _CannotStart(click.ClickException):
    exit_code = CANNOT_START


def _serve_as_worker(settings: GatewayCommandSettings, index: int) -> None:
    structlog.contextvars.bind_contextvars(worker=index)  # in each line: workers share a log

    def make() -> Gateway:
        gateway = Gateway(settings)
        when_parent_ends(gateway.stop)
        return gateway

    try:
        _serve(make)
    except click.ClickException as error:
        raise _CannotStart(error.message) from error
