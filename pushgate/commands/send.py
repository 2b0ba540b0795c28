"""`pushgate send`."""

from __future__ import annotations

import sys
from typing import Any

import click

from processor.reading.kafka import KafkaError
from pushgate.commands.running import load_settings, run
from pushgate.options import settings_options
from pushgate.publish import publisher
from pushgate.settings import DEV_FILE, SendSettings
from registry.message import URGENCIES


@click.command()
@click.argument("user")
@click.argument("payload")
@click.option("--id", "push_id", help="Message id; Kafka's coordinates where none is given.")
@click.option("--type", "push_type", help="The client's event name.")
@click.option("--ttl", "push_ttl", type=click.IntRange(min=0), help="Seconds it is worth sending.")
@click.option("--urgency", "push_urgency", type=click.Choice(sorted(URGENCIES)), help="Urgency.")
@click.option("--collapse-key", "push_collapse_key", help="A newer one replaces an older one.")
@click.option("--device", "push_device", help="One device of the user only.")
@settings_options(SendSettings)
def send(user: str, payload: str, **flags: Any) -> None:
    """Publish PAYLOAD for USER through Kafka; - reads standard input, a line a message."""
    headers = {
        name.replace("_", "-"): str(value)
        for name in [name for name in flags if name.startswith("push_")]
        if (value := flags.pop(name)) is not None
    }
    settings = load_settings(SendSettings, flags, files=(DEV_FILE,))
    payloads = (line.rstrip("\n") for line in sys.stdin) if payload == "-" else iter([payload])

    async def publish() -> None:
        async with publisher(settings) as kafka:
            for text in payloads:
                # Bytes that Python could not decode from the command line are sent unchanged.
                data = text.encode(errors="surrogateescape")
                click.echo(await kafka.publish(user, data, headers))

    try:
        run(publish())
    except KafkaError as error:
        raise click.ClickException(f"Kafka at {settings.kafka_bootstrap}: {error}") from error
