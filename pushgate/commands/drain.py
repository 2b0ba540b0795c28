"""`pushgate drain`."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from pushgate.commands.operating import operate
from pushgate.commands.running import json_option, print_json
from pushgate.options import settings_options
from pushgate.ports import Ports
from pushgate.printable import printable
from pushgate.settings import OperatorSettings
from registry.directory import Node
from registry.redis_store import RedisRegistry

#: The status of `/readyz` of a node that is not ready.
_NOT_READY = 503


class _Readiness(msgspec.Struct):
    status: str


@click.command(
    epilog="Exit status: 0 the node drains; 1 an error: no live node has the name, or the node "
    "does not answer; 2 wrong usage."
)
@click.argument("node")
@click.option("--now", is_flag=True, help="Close all remaining connections of a draining node now.")
@json_option
@settings_options(OperatorSettings)
def drain(node: str, now: bool, as_json: bool, **flags: Any) -> None:
    """Let NODE leave: its clients are told to reconnect, spread over the window, then it ends.

    A node that drains already is left alone, but for --now.
    """

    async def begin(registry: RedisRegistry, ports: Ports) -> int:
        found = _of_name(node, await registry.nodes())
        readiness = await ports.ask("GET", found, "/readyz", _Readiness, accept=_NOT_READY)
        is_draining = readiness.status == "draining"
        if now and not is_draining:
            raise click.ClickException(f"{node} does not drain yet: begin without --now")
        if now or not is_draining:
            await ports.start_drain(found)
        told = _told(is_draining=is_draining, now=now)
        if as_json:
            print_json({"node": found.name, "epoch": found.epoch, "drain": told})
        else:
            click.echo(f"{node}: {told}; pushgate top shows how it goes")
        return 0

    operate(flags, begin)


def _of_name(name: str, live: list[Node]) -> Node:
    for node in live:
        if node.name == name:
            return node
    names = ", ".join(sorted(node.name for node in live)) or "none"
    raise click.ClickException(
        f"no live node has the name {printable(name)!r}; live nodes: {names}"
    )


def _told(*, is_draining: bool, now: bool) -> str:
    if now:
        return "hastened"
    return "going on already" if is_draining else "begun"
