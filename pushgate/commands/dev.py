"""`pushgate dev`."""

from __future__ import annotations

from typing import Any

import click

from processor.reading.kafka import KafkaError
from pushgate.commands.running import load_settings, run
from pushgate.descriptors import raise_limit
from pushgate.errors import PushgateError
from pushgate.options import settings_options
from pushgate.settings import DevSettings


@click.command()
@settings_options(DevSettings)
def dev(**flags: Any) -> None:
    """Run the whole system on embedded parts, on loopback."""
    # Imported here, since only this command needs the packages of the extra `dev`, and the list of
    # all commands imports this file.
    from pushgate.dev import run as run_dev  # noqa: PLC0415

    settings = load_settings(DevSettings, flags)
    raise_limit()
    try:
        run(run_dev(settings))
    except (PushgateError, OSError) as error:
        raise click.ClickException(str(error)) from error
    except KafkaError as error:
        raise click.ClickException(f"Kafka: {error}") from error
