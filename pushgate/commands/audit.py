"""`pushgate audit`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click

from pushgate.audit import Audit, AuditError, Place, write_metrics
from pushgate.audit import audit as run_audit
from pushgate.commands.running import json_option, load_settings, print_json, run
from pushgate.options import settings_options
from pushgate.ports import registry_of
from pushgate.printable import printable
from pushgate.seconds import Seconds
from pushgate.settings import DEV_FILE, AuditSettings
from pushgate.standard_output import run_while_read
from registry.calls import GatewayCalls
from registry.directory import RegistryUnavailable

#: How many findings of a kind `pushgate audit` prints.
_SHOWN: Final = 20
#: The exit status of `pushgate audit` with findings; 1 is the status of an error.
_DIFFERENT: Final = 3


@click.command()
@click.option("--pause", type=Seconds(min=0), default=3.0, show_default=True,
              help="Seconds between two looks at what seems wrong.")  # fmt: skip
@click.option("--textfile", type=click.Path(dir_okay=False, path_type=Path),
              help="Write the counts there as metrics, for the node exporter.")  # fmt: skip
@click.option("--watch", is_flag=True, help="Compare again and again, until Ctrl-C.")
@click.option("--every", type=Seconds(min=1), default=60.0, show_default=True,
              help="Seconds between two comparisons of --watch.")  # fmt: skip
@json_option
@settings_options(AuditSettings)
def audit(
    pause: float, textfile: Path | None, watch: bool, every: float, as_json: bool, **flags: Any
) -> None:
    """Compare the registry with every node's connections; exit with 3 where they differ."""
    settings = load_settings(AuditSettings, flags, files=(DEV_FILE,))

    async def compare() -> Audit:
        async with registry_of(settings) as registry:
            comparison = await run_audit(registry, GatewayCalls.of(settings), pause_seconds=pause)
        if textfile is not None:
            write_metrics(comparison, textfile)
        return comparison

    if watch:
        run_while_read(_watch(compare, every_seconds=every, as_json=as_json))
        return
    try:
        comparison = run(compare())
    except (AuditError, RegistryUnavailable) as error:
        raise click.ClickException(str(error)) from error
    _tell(comparison, as_json=as_json)
    sys.exit(0 if comparison.clean else _DIFFERENT)


async def _watch(
    compare: Callable[[], Awaitable[Audit]], *, every_seconds: float, as_json: bool
) -> None:
    """Compare for ever; a comparison that can't be made is told, and the next is tried."""
    while True:
        try:
            comparison = await compare()
        except (AuditError, RegistryUnavailable) as error:
            click.echo(f"{_now()} Error: {error}", err=True)
        else:
            if not as_json:
                click.echo(f"{_now()} ", nl=False)
            _tell(comparison, as_json=as_json)
            sys.stdout.flush()
        await asyncio.sleep(every_seconds)


def _now() -> str:
    return datetime.now().astimezone().strftime("%H:%M:%S")


def _tell(comparison: Audit, *, as_json: bool) -> None:
    if as_json:
        print_json(_as_json(comparison))
    else:
        _print(comparison)


def _print(comparison: Audit) -> None:
    click.echo(
        f"{comparison.users} users on {comparison.nodes} nodes: {len(comparison.phantoms)} "
        f"registered without a connection, {len(comparison.missing)} connected and not registered"
    )
    for kind, places in (("phantom", comparison.phantoms), ("missing", comparison.missing)):
        for user, node in _sorted(places)[:_SHOWN]:
            click.echo(f"{kind}: {user!r} at {printable(node.name)}")


def _as_json(comparison: Audit) -> dict[str, object]:
    """Return all findings, however many."""
    findings = {
        kind: [{"user": user, "node": node.name} for user, node in _sorted(places)]
        for kind, places in (("phantoms", comparison.phantoms), ("missing", comparison.missing))
    }
    return {"users": comparison.users, "nodes": comparison.nodes, **findings}


def _sorted(places: Iterable[Place]) -> list[Place]:
    return sorted(places, key=lambda place: place[0])
