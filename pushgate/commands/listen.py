"""`pushgate listen`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, Final

import click
import httpx
from websockets.exceptions import WebSocketException

from pushgate.client import TRANSPORTS, Message, Place, Refused
from pushgate.commands.running import json_option, load_settings, print_json
from pushgate.options import settings_options
from pushgate.printable import payload_json, printable, printable_payload
from pushgate.settings import DEV_FILE, ListenSettings
from pushgate.standard_output import run_while_read
from pushgate.token import RefusedClaims, mint

_RECONNECT_SECONDS: Final = 1.0
_TOKEN_SECONDS: Final = 3_600
#: Refusals that another attempt does not change.
_FINAL_REFUSALS: Final = frozenset({400, 401, 403, 404, 405, 426})


@click.command(epilog="Exit status: 0 after --count messages, or when the pipe is closed that is "
               "written to; 1 refused; 2 wrong usage; 130 Ctrl-C.")  # fmt: skip
@click.argument("user")
@click.option(
    "--transport", type=click.Choice(list(TRANSPORTS)), default="ws", show_default=True,
    help="How to connect.",
)  # fmt: skip
@click.option("--device", help="The device the token speaks for.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many messages.")
@json_option
@settings_options(ListenSettings)
def listen(
    user: str, transport: str, device: str | None, count: int | None, as_json: bool, **flags: Any
) -> None:
    """Connect as USER and print what arrives, a message a line.

    On a terminal a line has the time, the id and the type too; in a pipe it is the payload alone.
    After a lost connection it connects again, and what came meanwhile comes first.
    """
    settings = load_settings(ListenSettings, flags, files=(DEV_FILE,))
    listener = _Listener(user, transport, device, settings, as_json=as_json)

    async def until_over() -> None:
        remaining = count
        async for message in listener.messages():
            listener.show(message)
            if remaining is not None:
                remaining -= 1
                if remaining == 0:
                    return

    try:
        run_while_read(until_over())
    except RefusedClaims as error:
        raise click.ClickException(str(error)) from error


class _Listener:
    """One client that connects again and again."""

    def __init__(
        self,
        user: str,
        transport: str,
        device: str | None,
        settings: ListenSettings,
        *,
        as_json: bool,
    ) -> None:
        self._user = user
        self._device = device
        self._settings = settings
        self._url = settings.url.rstrip("/")
        self._transport = transport
        self._as_json = as_json
        self._place = Place(
            lambda: self._say("messages were missed here"),
            told_open=lambda: self._say(f"connected as {user} by {transport}"),
        )

    async def messages(self) -> AsyncIterator[Message]:
        """Yield what arrives, over all connections.

        Raises:
            click.ClickException: the gateway refuses the client for good.
            RefusedClaims: the gateway would refuse the token.
        """
        while True:
            try:
                async for message in TRANSPORTS[self._transport](
                    self._url, self._token(), self._place
                ):
                    yield message
                reason = "the connection ended"
            except Refused as error:
                if error.status in _FINAL_REFUSALS:
                    text = printable(f"{self._url} refused with {error}")
                    raise click.ClickException(text) from error
                reason = f"refused with {error}"
            except (httpx.HTTPError, WebSocketException, OSError) as error:
                reason = str(error) or type(error).__name__
            then = "connecting again" + (" to resume" if self._place.resumes else "")
            self._say(f"{reason}; {then}")
            await asyncio.sleep(_RECONNECT_SECONDS)

    def show(self, message: Message) -> None:
        """Print a message."""
        if self._as_json:
            print_json(_as_json(message))
        elif sys.stdout.isatty():
            now = datetime.now().astimezone().strftime("%H:%M:%S.%f")[:-3]
            names = (printable(message.id), printable(message.type or "-"))
            fields = (now, *names, printable_payload(message.payload))
            click.echo("  ".join(fields))
        else:
            sys.stdout.buffer.write(message.payload + b"\n")
            sys.stdout.buffer.flush()

    def _token(self) -> str:
        settings = self._settings
        secret, rules = settings.jwt_secret.get_secret_value(), settings.claim_rules
        return mint(
            self._user, secret, ttl_seconds=_TOKEN_SECONDS, device=self._device, rules=rules
        )

    def _say(self, text: str) -> None:
        click.echo(f"{self._url}: {printable(text)}", err=True)


def _as_json(message: Message) -> dict[str, object]:
    """Return a message in the JSON form of the protocol."""
    return {"id": message.id, "type": message.type, **payload_json(message.payload)}
