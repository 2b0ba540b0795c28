"""The command line: `pushgate dev | gateway | processor | send | listen | token | audit`."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import click
import httpx
import structlog
import uvloop
from pydantic_settings import BaseSettings
from websockets.exceptions import InvalidStatus, WebSocketException

from gateway.server import Gateway
from processor.reading.kafka import KafkaError
from processor.server import Processor
from pushgate import logs
from pushgate.audit import Audit, AuditError, write_metrics
from pushgate.audit import audit as run_audit
from pushgate.client import TRANSPORTS
from pushgate.descriptors import raise_limit
from pushgate.environment import remarks
from pushgate.options import load, settings_options
from pushgate.publish import publisher
from pushgate.settings import (
    DEV_FILE,
    AuditSettings,
    DevSettings,
    GatewayCommandSettings,
    ListenSettings,
    LogSettings,
    ProcessorCommandSettings,
    SendSettings,
    TokenSettings,
)
from pushgate.token import mint
from pushgate.workers import CANNOT_START, WorkerSettings, run_workers, when_parent_ends
from registry.calls import GatewayCalls
from registry.directory import RegistryUnavailable
from registry.message import URGENCIES
from registry.redis_store import RedisRegistry

_RECONNECT_SECONDS: Final = 1.0
#: How many findings of a kind `pushgate audit` prints.
_SHOWN: Final = 20
#: The exit status of `pushgate audit` with findings; 1 is the status of an error.
_DIFFERENT: Final = 3

log = structlog.get_logger("pushgate")

_Settings = TypeVar("_Settings", bound=BaseSettings)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pushgate")
def cli() -> None:
    """A push gateway: Kafka in, WebSocket, SSE and long-poll out."""


@cli.command()
@settings_options(DevSettings)
def dev(**flags: Any) -> None:
    """Run the whole system on embedded parts, on loopback."""
    # Imported here, because only this command needs the packages of the extra `dev`.
    from pushgate.dev import DiedError  # noqa: PLC0415
    from pushgate.dev import run as run_dev  # noqa: PLC0415
    from pushgate.embedded import EmbeddedError  # noqa: PLC0415

    settings = _load(DevSettings, flags)
    raise_limit()
    try:
        _run(run_dev(settings))
    except (EmbeddedError, OSError, DiedError) as error:
        raise click.ClickException(str(error)) from error
    except KafkaError as error:
        raise click.ClickException(f"Kafka: {error}") from error


@cli.command()
@settings_options(GatewayCommandSettings)
def gateway(**flags: Any) -> None:
    """Run one gateway node, or with --workers several on one port."""
    settings = _load(GatewayCommandSettings, flags)
    index = load(WorkerSettings, {}).worker_index
    if settings.workers == 1:
        _serve(lambda: Gateway(settings))
    elif index is None:
        sys.exit(run_workers(settings.workers))
    else:
        _serve_as_worker(settings.for_worker(index))


@cli.command()
@settings_options(ProcessorCommandSettings)
def processor(**flags: Any) -> None:
    """Run one processor worker."""
    settings = _load(ProcessorCommandSettings, flags)
    # A batch makes thousands of objects that live for milliseconds. With Python's own threshold of
    # 700 the collector goes through the objects every few hundred messages: a sixth of the CPU
    # (measured).
    gc.set_threshold(50_000, 20, 100)
    _serve(lambda: Processor(settings))


@cli.command()
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
    settings = _load(SendSettings, flags, files=(DEV_FILE,))
    payloads = (line.rstrip("\n") for line in sys.stdin) if payload == "-" else iter([payload])

    async def publish() -> None:
        async with publisher(settings) as kafka:
            for text in payloads:
                # Bytes that Python could not decode from the command line are sent unchanged.
                data = text.encode(errors="surrogateescape")
                click.echo(await kafka.publish(user, data, headers))

    try:
        _run(publish())
    except KafkaError as error:
        raise click.ClickException(f"Kafka at {settings.kafka_bootstrap}: {error}") from error


@cli.command()
@click.argument("user")
@click.option(
    "--transport", type=click.Choice(list(TRANSPORTS)), default="ws", show_default=True,
    help="How to connect.",
)  # fmt: skip
@click.option("--device", help="The device the token speaks for.")
@settings_options(ListenSettings)
def listen(user: str, transport: str, device: str | None, **flags: Any) -> None:
    """Connect as USER and print what arrives, a message a line."""
    settings = _load(ListenSettings, flags, files=(DEV_FILE,))
    secret = settings.jwt_secret.get_secret_value()

    async def receive() -> None:
        while True:
            token = mint(user, secret, ttl_seconds=3_600, device=device)
            try:
                async for message in TRANSPORTS[transport](settings.url.rstrip("/"), token):
                    sys.stdout.buffer.write(message.payload + b"\n")
                    sys.stdout.buffer.flush()
                reason = "the connection ended"
            except (httpx.HTTPStatusError, InvalidStatus) as error:
                if error.response.status_code in (401, 403):
                    raise click.ClickException(f"refused: {error}") from error
                reason = str(error)
            except (httpx.HTTPError, WebSocketException, OSError) as error:
                reason = str(error) or type(error).__name__
            click.echo(f"{settings.url}: {reason}; connecting again", err=True)
            await asyncio.sleep(_RECONNECT_SECONDS)

    _run(receive())


@cli.command()
@click.argument("user")
@click.option("--ttl", type=click.IntRange(min=1), default=3_600, show_default=True,
              help="How long it is good for, seconds.")  # fmt: skip
@click.option("--device", help="The device it speaks for.")
@settings_options(TokenSettings)
def token(user: str, ttl: int, device: str | None, **flags: Any) -> None:
    """Mint a token for USER with the configured secret."""
    settings = _load(TokenSettings, flags, files=(DEV_FILE,))
    click.echo(mint(user, settings.jwt_secret.get_secret_value(), ttl_seconds=ttl, device=device))


@cli.command()
@click.option("--pause", type=click.FloatRange(min=0), default=3.0, show_default=True,
              help="Seconds between two looks at what seems wrong.")  # fmt: skip
@click.option("--textfile", type=click.Path(dir_okay=False, path_type=Path),
              help="Write the counts there as metrics, for the node exporter.")  # fmt: skip
@settings_options(AuditSettings)
def audit(pause: float, textfile: Path | None, **flags: Any) -> None:
    """Compare the registry with every node's connections; exit with 3 where they differ."""
    settings = _load(AuditSettings, flags, files=(DEV_FILE,))

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
    click.echo(
        f"{comparison.users} users on {comparison.nodes} nodes: {len(comparison.phantoms)} "
        f"registered without a connection, {len(comparison.missing)} connected and not registered"
    )
    for kind, places in (("phantom", comparison.phantoms), ("missing", comparison.missing)):
        for user, node in sorted(places, key=lambda place: place[0])[:_SHOWN]:
            click.echo(f"{kind}: {user!r} at {node.name}")
    sys.exit(0 if comparison.clean else _DIFFERENT)


def _load(
    settings: type[_Settings], flags: dict[str, Any], *, files: tuple[str, ...] = ()
) -> _Settings:
    """Build a command's settings, and warn of variables that are no settings.

    Servers warn in their log, which is configured here; tools on standard error. Where a setting
    stops the start, its message has the warnings: a misspelt name may be the cause.

    Raises:
        click.UsageError: a value is bad, or a setting is missing.
    """
    # A worker says nothing: its parent has warned already.
    warnings = remarks(os.environ) if "PUSHGATE_WORKER_INDEX" not in os.environ else []
    try:
        loaded = load(settings, flags, files=files)
    except click.UsageError as error:
        raise click.UsageError("\n".join((error.message, *warnings))) from None
    if isinstance(loaded, LogSettings):
        logs.configure(as_json=loaded.log_json)
        for warning in warnings:
            log.warning(warning)
    else:
        for warning in warnings:
            click.echo(f"Warning: {warning}", err=True)
    return loaded


class _Server(Protocol):
    def stop(self) -> None: ...

    async def run(self) -> None: ...


def _serve(make: Callable[[], _Server]) -> None:
    raise_limit()  # before a gateway derives its own limits

    async def serve() -> None:
        try:
            server = make()
        except OSError as error:
            raise click.ClickException(str(error)) from error
        # Objects that exist by now stay until the exit. Frozen, they are left out of full
        # collections, which then look only at objects that connections and messages bring.
        gc.collect()
        gc.freeze()
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, server.stop)
        await server.run()

    uvloop.run(serve())


class _CannotStart(click.ClickException):
    exit_code = CANNOT_START


def _serve_as_worker(settings: GatewayCommandSettings) -> None:
    def make() -> Gateway:
        gateway = Gateway(settings)
        when_parent_ends(gateway.stop)
        return gateway

    try:
        _serve(make)
    except click.ClickException as error:
        raise _CannotStart(error.message) from error


def _run(work: Coroutine[Any, Any, None]) -> None:
    try:
        uvloop.run(work)
    except KeyboardInterrupt:
        sys.exit(130)


def main() -> None:
    """Run the command line."""
    cli(prog_name="pushgate")
