"""`pushgate reload`."""

from __future__ import annotations

import os
import sys
from typing import Any

import click
import msgspec

from pushgate.commands.running import json_option, load_settings, print_json, run
from pushgate.options import settings_options
from pushgate.reloads import NoReload, Renewal, Request, ask
from pushgate.settings import ReloadSettings


@click.command(
    epilog="Exit status: 0 all processes are renewed; 1 an error: a process is not renewed and "
    "serves on, another reload runs, or no gateway listens; 2 wrong usage."
)
@click.option(
    "--environment",
    "takes_environment",
    is_flag=True,
    help="Let the PUSHGATE_… variables of this command replace those of the gateway.",
)
@json_option
@settings_options(ReloadSettings)
def reload(takes_environment: bool, as_json: bool, **flags: Any) -> None:
    """Replace the processes of a running gateway, which keeps its connections.

    A process of each worker takes over from the one before, one worker after the other: a new
    version, new certificates and keys, and with --environment new settings.
    """
    settings = load_settings(ReloadSettings, flags)
    request = Request(dict(os.environ) if takes_environment else None)

    async def reloading() -> int:
        status = 0
        async for renewal in ask(settings.takeover_socket, request):
            print_json(msgspec.structs.asdict(renewal)) if as_json else click.echo(_line(renewal))
            status |= renewal.error is not None
        return status

    try:
        sys.exit(run(reloading()))
    except NoReload as error:
        raise click.ClickException(str(error)) from error


def _line(renewal: Renewal) -> str:
    name = "gateway" if renewal.worker is None else f"worker {renewal.worker}"
    if renewal.error is not None:
        return f"{name}: not renewed: {renewal.error}"
    if not renewal.pid:
        return f"{name}: does not run; its next start is a new process"
    return f"{name}: renewed, process {renewal.pid}"
