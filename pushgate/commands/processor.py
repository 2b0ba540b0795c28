"""`pushgate processor`."""

from __future__ import annotations

import gc
from typing import Any

import click

from processor.server import Processor
from pushgate.commands.running import load_settings, serve
from pushgate.options import settings_options
from pushgate.settings import ProcessorCommandSettings


@click.command()
@settings_options(ProcessorCommandSettings)
def processor(**flags: Any) -> None:
    """Run one processor worker."""
    settings = load_settings(ProcessorCommandSettings, flags)
    # A batch makes thousands of objects that live for milliseconds. With Python's own threshold of
    # 700 the collector goes through the objects every few hundred messages: a sixth of the CPU
    # (measured).
    gc.set_threshold(50_000, 20, 100)
    serve(lambda: Processor(settings))
