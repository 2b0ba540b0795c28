"""`pushgate who`."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import click
import msgspec

from pushgate.commands.operating import NOT_CONNECTED, operate, require_user
from pushgate.commands.running import json_option, print_json
from pushgate.options import settings_options
from pushgate.ports import Ports
from pushgate.printable import printable
from pushgate.settings import OperatorSettings
from pushgate.table import Column, counted, duration, table, terminal_cells
from pushgate.users import Connection, Connections, Users
from registry.redis_store import RedisRegistry

_COLUMNS: Final = (
    Column("node"),
    Column("device", 1),
    Column("transport", 2),
    Column("for", 3, is_number=True),
    Column("state", 4),
    Column("since", 5),
    Column("id", 6),
)


@click.command(
    epilog="Exit status: 0 connected; 1 an error, or a node did not answer; 2 wrong usage; 3 not "
    "connected."
)
@click.argument("user")
@json_option
@settings_options(OperatorSettings)
def who(user: str, as_json: bool, **flags: Any) -> None:
    """Say where USER is: the registry's entries, and the connections as the nodes have them."""
    require_user(user)

    async def ask(registry: RedisRegistry, ports: Ports) -> int:
        found = await Users(registry, ports).connections_of(user)
        if as_json:
            print_json({"user": user, **_as_json(found)})
        else:
            _print(user, found)
        if found.errors:
            return 1
        return 0 if found.listings else NOT_CONNECTED

    operate(flags, ask)


def _as_json(found: Connections) -> dict[str, object]:
    return {
        "registered": None if found.unknown else found.nodes,
        "lost": found.lost,
        "connections": [
            {"node": listing.node, "epoch": listing.epoch, **msgspec.structs.asdict(connection)}
            for listing in found.listings
            for connection in listing.connections
        ],
        "total": sum(listing.total for listing in found.listings),
        "errors": found.errors,
    }


def _print(user: str, found: Connections) -> None:
    total, nodes = sum(each.total for each in found.listings), len(found.listings)
    click.echo(f"{printable(user)}: {counted(total, 'connection')} on {counted(nodes, 'node')}")
    if found.listings:
        rows = [
            _row(listing.node, connection)
            for listing in found.listings
            for connection in listing.connections
        ]
        for line in table(_COLUMNS, rows, cells=terminal_cells()):
            click.echo(line)
        if total > len(rows):
            click.echo(f"and {total - len(rows)} more")
    for remark in _remarks(found):
        click.echo(printable(remark))
    for error in found.errors:
        click.echo(f"Error: {printable(error)}", err=True)


def _row(node: str, connection: Connection) -> list[str]:
    since = datetime.fromtimestamp(connection.since_ms / 1_000).astimezone()
    return [
        node,
        connection.device or "-",
        connection.transport,
        duration(connection.age_ms / 1_000),
        connection.state,
        since.strftime("%Y-%m-%d %H:%M:%S"),
        connection.id,
    ]


def _remarks(found: Connections) -> list[str]:
    """Say where registry and nodes differ."""
    connected = {listing.node for listing in found.listings}
    registered = set(found.nodes)
    remarks = []
    if found.unknown:
        remarks.append(
            "the registry was emptied or did not answer a moment ago: the user's messages wait "
            "until all nodes have registered their users again"
        )
    if found.lost:
        remarks.append(
            f"on a lost node, without a sign of life: {', '.join(found.lost)}; messages wait for "
            "it, PUSHGATE_LOST_NODE_SECONDS at most"
        )
    if phantoms := sorted(registered - connected - set(found.lost)):
        remarks.append(f"registered without a connection: {', '.join(phantoms)}")
    if not found.unknown and (missing := sorted(connected - registered)):
        remarks.append(
            f"connected and not registered: {', '.join(missing)}; pushgate audit tells whether "
            "that stays so"
        )
    return remarks
