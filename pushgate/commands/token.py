"""`pushgate token`."""

from __future__ import annotations

from typing import Any

import click

from pushgate.commands.running import load_settings
from pushgate.options import settings_options
from pushgate.settings import DEV_FILE, TokenSettings
from pushgate.token import mint


@click.command()
@click.argument("user")
@click.option("--ttl", type=click.IntRange(min=1), default=3_600, show_default=True,
              help="How long it is good for, seconds.")  # fmt: skip
@click.option("--device", help="The device it speaks for.")
@settings_options(TokenSettings)
def token(user: str, ttl: int, device: str | None, **flags: Any) -> None:
    """Mint a token for USER with the configured secret."""
    settings = load_settings(TokenSettings, flags, files=(DEV_FILE,))
    click.echo(mint(user, settings.jwt_secret.get_secret_value(), ttl_seconds=ttl, device=device))
