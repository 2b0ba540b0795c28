"""`pushgate top`."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from pushgate.commands.running import json_option, load_settings, print_json
from pushgate.options import settings_options
from pushgate.ports import calling, registry_of
from pushgate.seconds import Seconds
from pushgate.settings import DEV_FILE, TopSettings
from pushgate.standard_output import run_while_read
from pushgate.top.figures import Figures, figures
from pushgate.top.reading import Reader, Reading
from pushgate.top.screen import lines
from registry.calls import GatewayCalls
from registry.directory import RegistryUnavailable


@click.command(
    epilog="Exit status: 0 after --count, or when the pipe is closed that is written to; 1 an "
    "error; 2 wrong usage; 130 Ctrl-C."
)
@click.option("--every", type=Seconds(min=0.2), default=2.0, show_default=True,
              help="Seconds between two readings.")  # fmt: skip
@click.option("--count", type=click.IntRange(min=1), help="End after so many pictures.")
@json_option
@settings_options(TopSettings)
def top(every: float, count: int | None, as_json: bool, **flags: Any) -> None:
    """Show what the gateways and the processors are doing, live.

    In a pipe, and with --json, a picture follows the other; the first comes with the second
    reading, since rates need two.
    """
    settings = load_settings(TopSettings, flags, files=(DEV_FILE,))
    console = Console(force_terminal=True, highlight=False)
    # On a dumb terminal, which can't be drawn on, pictures follow each other too.
    is_live = sys.stdout.isatty() and not as_json and not console.is_dumb_terminal

    async def show() -> None:
        async with _reader(settings) as reader:
            pictures = _pictures(reader, every_seconds=every, needs_rates=not is_live)
            if is_live:
                await _show_live(console, pictures, count)
            else:
                await _print(pictures, count, as_json=as_json)

    try:
        run_while_read(show())
    except RegistryUnavailable as error:
        raise click.ClickException(str(error)) from error


@asynccontextmanager
async def _reader(settings: TopSettings) -> AsyncIterator[Reader]:
    async with (
        registry_of(settings) as registry,
        calling(GatewayCalls.of(settings)) as gateways,
        calling(settings.processor_calls()) as processors,
    ):
        yield Reader(registry, gateways=gateways, processors=processors, clock=time.monotonic)


async def _pictures(
    reader: Reader, *, every_seconds: float, needs_rates: bool
) -> AsyncIterator[Figures | RegistryUnavailable]:
    """Yield figures, or why there are none; once there were some, a registry that falls silent.

    Raises:
        RegistryUnavailable: the registry has not answered yet: its URL may be wrong.
    """
    before: Reading | None = None
    while True:
        try:
            now = await reader.read()
        except RegistryUnavailable as error:
            if before is None:
                raise
            yield error
        else:
            if before is not None or not needs_rates:
                yield figures(now, before)
            before = now
        await asyncio.sleep(every_seconds)


async def _show_live(
    console: Console, pictures: AsyncIterator[Figures | RegistryUnavailable], count: int | None
) -> None:
    shown = 0
    with Live(console=console, screen=True, auto_refresh=False) as live:
        async for picture in pictures:
            live.update(_picture(picture, console), refresh=True)
            shown += 1
            if shown == count:
                return


def _picture(picture: Figures | RegistryUnavailable, console: Console) -> Text:
    width, height = console.size
    if isinstance(picture, RegistryUnavailable):
        text = Text(f"{_title()}\nthe last reading failed: {picture}")
    else:
        text = Text("\n".join(lines(picture, title=_title(), cells=width, height=height)))
    text.no_wrap = not isinstance(picture, RegistryUnavailable)
    return text


async def _print(
    pictures: AsyncIterator[Figures | RegistryUnavailable], count: int | None, *, as_json: bool
) -> None:
    printed = 0
    async for picture in pictures:
        if isinstance(picture, RegistryUnavailable):
            click.echo(f"Error: {picture}", err=True)
            continue
        if as_json:
            print_json(picture)
        else:
            click.echo("\n".join([*lines(picture, title=_title()), ""]))
        sys.stdout.flush()
        printed += 1
        if printed == count:
            return


def _title() -> str:
    return f"pushgate top  {datetime.now().astimezone():%Y-%m-%d %H:%M:%S}"
