"""`pushgate kick`."""

from __future__ import annotations

from typing import Any, Final

import click

from pushgate.commands.operating import NOT_CONNECTED, operate, require_user
from pushgate.commands.running import json_option, print_json
from pushgate.options import settings_options
from pushgate.ports import Ports
from pushgate.printable import printable
from pushgate.settings import OperatorSettings
from pushgate.table import counted
from pushgate.users import Disconnected, Users
from registry.redis_store import RedisRegistry

_AGAIN: Final = (
    "clients are told to stay away (4003), but a token that is still valid may connect again: "
    "have your backend make no new one, and let tokens expire soon"
)


@click.command(
    epilog="Exit status: 0 ended; 1 an error, or a node may have connections still; 2 wrong usage; "
    "3 not connected."
)
@click.argument("user")
@click.option("--device", help="The connections of this device alone.")
@json_option
@settings_options(OperatorSettings)
def kick(user: str, device: str | None, as_json: bool, **flags: Any) -> None:
    """End the connections of USER on every node. A valid token may connect again."""
    require_user(user)

    async def end(registry: RedisRegistry, ports: Ports) -> int:
        selection = {} if device is None else {"device": device}
        ended = await Users(registry, ports).disconnect(user, selection)
        if as_json:
            print_json(
                {"user": user, "device": device, "closed": ended.closed, "errors": ended.errors}
            )
        else:
            _print(user, device, ended)
        if ended.errors:
            return 1
        return 0 if ended.closed else NOT_CONNECTED

    operate(flags, end)


def _print(user: str, device: str | None, ended: Disconnected) -> None:
    whose = printable(user) if device is None else f"{printable(user)}, device {printable(device)}"
    click.echo(f"{whose}: {counted(ended.closed, 'connection')} ended")
    if ended.closed:
        click.echo(_AGAIN)
    for error in ended.errors:
        click.echo(f"Error: {printable(error)}", err=True)
