"""`pushgate dev`: the whole system in one terminal, with embedded servers, on loopback."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import click
from dotenv import dotenv_values
from pydantic import SecretStr
from starlette.routing import BaseRoute

from gateway.server import Gateway
from processor.server import Processor
from pushgate.demo import demo_routes
from pushgate.embedded.kafka import FETCH_WAIT_MS, EmbeddedKafka
from pushgate.embedded.valkey import EmbeddedValkey
from pushgate.errors import PushgateError
from pushgate.publish import publisher as publishing
from pushgate.settings import DEV_FILE, DevSettings
from registry.redis_store import RedisRegistry
from registry.settings import MIN_SECRET_BYTES

_KAFKA_PORT: Final = 9092
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


class DiedError(PushgateError):
    """An embedded server ended by itself."""


Embedded = EmbeddedKafka | EmbeddedValkey


async def run(settings: DevSettings, *, kept: Path = Path(DEV_FILE)) -> None:
    """Start all parts, print their addresses, and run until Ctrl-C.

    The secrets and addresses are written to `kept`, a file that stays after the end.

    Raises:
        EmbeddedError: an embedded server can't be started.
        OSError: a port can't be bound.
        KafkaError: the configured Kafka does not answer.
        DiedError: an embedded server ended by itself.
    """
    stopping = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stopping.set)
    async with AsyncExitStack() as stack:
        settings, embedded = await _with_servers(_with_secrets(settings, kept), stack)
        publisher = await stack.enter_async_context(publishing(settings))
        registry = RedisRegistry(settings.redis_url, access=settings.redis_access)
        stack.push_async_callback(registry.close)
        demo: list[BaseRoute] = []
        if settings.host in _LOOPBACK:  # the demo page mints tokens for anyone who reaches it
            demo = await stack.enter_async_context(
                demo_routes(settings, publisher=publisher, registry=registry)
            )
        gateway, processor = Gateway(settings, extra_routes=demo), Processor(settings)
        _keep(kept, settings, gateway)
        await _serve(gateway, processor, stopping, embedded, lambda: _announce(settings, gateway))


async def _serve(
    gateway: Gateway,
    processor: Processor,
    stopping: asyncio.Event,
    embedded: Sequence[Embedded],
    announce: Callable[[], None],
) -> None:
    """Run gateway and processor until `stopping` is set, or until an embedded server has ended."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(gateway.run())
        processing = tasks.create_task(processor.run())
        stop_requested = asyncio.create_task(stopping.wait())
        deaths = [asyncio.create_task(server.wait()) for server in embedded]
        ready = asyncio.create_task(_ready(gateway, processor))
        try:
            await asyncio.wait(
                (stop_requested, ready, *deaths), return_when=asyncio.FIRST_COMPLETED
            )
            if ready.done():
                announce()
                await asyncio.wait((stop_requested, *deaths), return_when=asyncio.FIRST_COMPLETED)
        finally:
            processor.stop()
            await asyncio.wait((processing,))
            gateway.stop()
            for task in (stop_requested, ready, *deaths):
                task.cancel()
        if not stop_requested.done():
            raise DiedError("an embedded server has ended by itself; start again")


async def _ready(gateway: Gateway, processor: Processor) -> None:
    await gateway.started()
    await processor.started()


async def _with_servers(
    settings: DevSettings, stack: AsyncExitStack
) -> tuple[DevSettings, list[Embedded]]:
    """Start a Valkey, unless a Redis is configured, and a Kafka, unless a Kafka is configured.

    Returns the settings with the addresses of the started servers, and the servers.
    """
    embedded: list[Embedded] = []
    update: dict[str, object] = {"kafka_start": "earliest"}
    if "redis_url" not in settings.model_fields_set:
        valkey = await stack.enter_async_context(EmbeddedValkey())
        update["redis_url"] = valkey.url
        embedded.append(valkey)
    if "kafka_bootstrap" not in settings.model_fields_set:
        kafka = await stack.enter_async_context(EmbeddedKafka(port=_KAFKA_PORT))
        update |= {"kafka_bootstrap": kafka.bootstrap, "kafka_fetch_wait_ms": FETCH_WAIT_MS}
        embedded.append(kafka)
    return settings.model_copy(update=update), embedded


def _with_secrets(settings: DevSettings, kept: Path) -> DevSettings:
    """Take the secrets of an earlier start from the file `kept`: tokens then outlive a restart.

    A kept secret that is too short by now is not taken: a new secret is made.
    """
    earlier = dotenv_values(kept) if kept.exists() else {}
    update = {
        name: SecretStr(value)
        for name in ("jwt_secret", "internal_secret")
        if name not in settings.model_fields_set
        and len((value := earlier.get(f"PUSHGATE_{name.upper()}") or "").encode())
        >= MIN_SECRET_BYTES
    }
    return settings.model_copy(update=update)


def _keep(kept: Path, settings: DevSettings, gateway: Gateway) -> None:
    """Write the settings that `token`, `listen` and `send` need, readable by the owner alone."""
    values = {
        "JWT_SECRET": settings.jwt_secret.get_secret_value(),
        "INTERNAL_SECRET": settings.internal_secret.get_secret_value(),
        "KAFKA_BOOTSTRAP": settings.kafka_bootstrap,
        "KAFKA_TOPICS": settings.kafka_topics,
        "REDIS_URL": settings.redis_url,
        "URL": f"http://{settings.host}:{gateway.port}",
    }
    kept.parent.mkdir(mode=0o700, exist_ok=True)
    (kept.parent / ".gitignore").write_text("*\n")
    descriptor = os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, 0o600)
        file.writelines(f"PUSHGATE_{name}='{value}'\n" for name, value in values.items())


def _announce(settings: DevSettings, gateway: Gateway) -> None:
    public = f"{settings.host}:{gateway.port}"
    topic = settings.topics[0]
    click.echo(
        f"""
pushgate is up; Ctrl-C stops all of it

  demo page   http://{public}/
  clients     ws://{public}/ws   http://{public}/sse   http://{public}/poll
  Kafka       {settings.kafka_bootstrap}   topic {topic}
  Redis       {settings.redis_url}
  internal    {gateway.node.identity.address}   processor {settings.processor_port}
  secrets     {DEV_FILE}

  pushgate listen alice
  echo '{{"hello": "alice"}}' | kcat -P -b {settings.kafka_bootstrap} -t {topic} -k alice
"""
    )
