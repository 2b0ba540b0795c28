"""`pushgate audit`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import click
import uvloop

from pushgate.audit import Audit, AuditError, Place, write_metrics
from pushgate.audit import audit as run_audit
from pushgate.commands.running import json_option, load_settings, print_json
from pushgate.options import settings_options
from pushgate.settings import DEV_FILE, AuditSettings
from registry.calls import GatewayCalls
from registry.directory import RegistryUnavailable
from registry.redis_store import RedisRegistry

#: How many findings of a kind `pushgate audit` prints.
_SHOWN: Final = 20
#: The exit status of `pushgate audit` with findings; 1 is the status of an error.
_DIFFERENT: Final = 3


@click.command()
@click.option("--pause", type=click.FloatRange(min=0), default=3.0, show_default=True,
              help="Seconds between two looks at what seems wrong.")  # fmt: skip
@click.option("--textfile", type=click.Path(dir_okay=False, path_type=Path),
              help="Write the counts there as metrics, for the node exporter.")  # fmt: skip
@json_option
@settings_options(AuditSettings)
def audit(pause: float, textfile: Path | None, as_json: bool, **flags: Any) -> None:
    """Compare the registry with every node's connections; exit with 3 where they differ."""
    settings = load_settings(AuditSettings, flags, files=(DEV_FILE,))

    async def compare() -> Audit:
        registry = RedisRegistry(
            settings.redis_url,
            timeout_seconds=settings.redis_timeout_seconds,
            access=settings.redis_access,
        )
        try:
            return await run_audit(registry, GatewayCalls.of(settings), pause_seconds=pause)
        finally:
            await registry.close()

    try:
        comparison = uvloop.run(compare())
    except (AuditError, RegistryUnavailable) as error:
        raise click.ClickException(str(error)) from error
    if textfile is not None:
        write_metrics(comparison, textfile)
    if as_json:
        print_json(_as_json(comparison))
    else:
        _print(comparison)
    sys.exit(0 if comparison.clean else _DIFFERENT)


def _print(comparison: Audit) -> None:
    click.echo(
        f"{comparison.users} users on {comparison.nodes} nodes: {len(comparison.phantoms)} "
        f"registered without a connection, {len(comparison.missing)} connected and not registered"
    )
    for kind, places in (("phantom", comparison.phantoms), ("missing", comparison.missing)):
        for user, node in _sorted(places)[:_SHOWN]:
            click.echo(f"{kind}: {user!r} at {node.name}")


def _as_json(comparison: Audit) -> dict[str, object]:
    """Return all findings, however many."""
    findings = {
        kind: [{"user": user, "node": node.name} for user, node in _sorted(places)]
        for kind, places in (("phantoms", comparison.phantoms), ("missing", comparison.missing))
    }
    return {"users": comparison.users, "nodes": comparison.nodes, **findings}


def _sorted(places: Iterable[Place]) -> list[Place]:
    return sorted(places, key=lambda place: place[0])
