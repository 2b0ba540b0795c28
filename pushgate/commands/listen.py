"""`pushgate listen`."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Final

import click
import httpx
from websockets.exceptions import InvalidStatus, WebSocketException

from pushgate.client import TRANSPORTS, Place
from pushgate.commands.running import load_settings, run
from pushgate.options import settings_options
from pushgate.settings import DEV_FILE, ListenSettings
from pushgate.token import mint

_RECONNECT_SECONDS: Final = 1.0


@click.command()
@click.argument("user")
@click.option(
    "--transport", type=click.Choice(list(TRANSPORTS)), default="ws", show_default=True,
    help="How to connect.",
)  # fmt: skip
@click.option("--device", help="The device the token speaks for.")
@settings_options(ListenSettings)
def listen(user: str, transport: str, device: str | None, **flags: Any) -> None:
    """Connect as USER and print what arrives, a message a line.

    After a lost connection it connects again, and what came meanwhile comes first.
    """
    settings = load_settings(ListenSettings, flags, files=(DEV_FILE,))
    secret = settings.jwt_secret.get_secret_value()
    place = Place(lambda: click.echo(f"{settings.url}: messages were missed here", err=True))

    async def receive() -> None:
        while True:
            token = mint(user, secret, ttl_seconds=3_600, device=device)
            try:
                messages = TRANSPORTS[transport](settings.url.rstrip("/"), token, place)
                async for message in messages:
                    sys.stdout.buffer.write(message.payload + b"\n")
                    sys.stdout.buffer.flush()
                reason = "the connection ended"
            except (httpx.HTTPStatusError, InvalidStatus) as error:
                if error.response.status_code in (401, 403):
                    raise click.ClickException(f"refused: {error}") from error
                reason = str(error)
            except (httpx.HTTPError, WebSocketException, OSError) as error:
                reason = str(error) or type(error).__name__
            then = "connecting again" + (" to resume" if place.resumes else "")
            click.echo(f"{settings.url}: {reason}; {then}", err=True)
            await asyncio.sleep(_RECONNECT_SECONDS)

    run(receive())
