"""`pushgate token`."""

from __future__ import annotations

from typing import Any

import click

from pushgate.commands.running import json_option, load_settings, print_json
from pushgate.options import settings_options
from pushgate.settings import DEV_FILE, TokenSettings
from pushgate.token import RefusedClaims, mint


@click.command()
@click.argument("user")
@click.option("--ttl", type=click.IntRange(min=1), default=3_600, show_default=True,
              help="How long it is good for, seconds.")  # fmt: skip
@click.option("--device", help="The device it speaks for.")
@json_option
@settings_options(TokenSettings)
def token(user: str, ttl: int, device: str | None, as_json: bool, **flags: Any) -> None:
    """Mint a token for USER with the configured secret; refuse what gateways would refuse."""
    settings = load_settings(TokenSettings, flags, files=(DEV_FILE,))
    secret = settings.jwt_secret.get_secret_value()
    try:
        minted = mint(user, secret, ttl_seconds=ttl, device=device, rules=settings.claim_rules)
    except RefusedClaims as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        print_json({"token": minted, "user": user, "device": device, "expires_in_seconds": ttl})
    else:
        click.echo(minted)
