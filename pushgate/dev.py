"""`pushgate dev`: the whole system in one terminal, with embedded servers, on loopback."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Final

import click
from dotenv import dotenv_values
from pydantic import SecretStr
from starlette.routing import BaseRoute

from gateway.server import Gateway
from processor.server import Processor
from pushgate.console import Console
from pushgate.demo import demo_routes
from pushgate.embedded import LOOPBACK as EMBEDDED_HOST
from pushgate.embedded import choose_port
from pushgate.embedded.kafka import FETCH_WAIT_MS, EmbeddedKafka
from pushgate.embedded.valkey import EmbeddedValkey
from pushgate.errors import PushgateError
from pushgate.options import PREFIX
from pushgate.publish import publisher as publishing
from pushgate.settings import DEV_FILE, DevSettings
from registry.redis_store import RedisRegistry
from registry.settings import MIN_SECRET_BYTES

_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


#: How often the console is looked at for what it holds back.
_TICK_SECONDS: Final = 0.25
#: kcat puts a key into the partition where Java's clients put it (docs/publishing.md).
_PARTITIONER: Final = "-X partitioner=murmur2_random"


class DiedError(PushgateError):
    """An embedded server ended by itself."""


class RunsAlready(PushgateError):
    """Another `pushgate dev` runs in this folder."""


class TakenPort(PushgateError):
    """A port is taken by another process; the text names the setting."""


Embedded = EmbeddedKafka | EmbeddedValkey


async def run(settings: DevSettings, *, kept: Path = Path(DEV_FILE)) -> None:
    """Start all parts, print their addresses, and run until Ctrl-C.

    The secrets and addresses are written to `kept`, a file that stays after the end.

    Raises:
        EmbeddedError: an embedded server can't be started.
        OSError: a port can't be bound.
        KafkaError: the configured Kafka does not answer.
        DiedError: an embedded server ended by itself.
        RunsAlready: another `pushgate dev` runs in this folder.
        TakenPort: a port is taken.
    """
    stopping = asyncio.Event()
    for told_by_console in ("gateway.origin", "gateway.admission"):
        logging.getLogger(told_by_console).setLevel(logging.ERROR)
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stopping.set)
    async with AsyncExitStack() as stack:
        stack.enter_context(_alone(kept.parent))
        for setting, host in _ports(settings):
            if host in _LOOPBACK:
                _require_free(settings, setting)
        asked = settings
        settings, embedded = await _with_servers(_with_secrets(settings, kept), stack)
        publisher = await stack.enter_async_context(publishing(settings))
        registry = RedisRegistry(settings.redis_url, access=settings.redis_access)
        stack.push_async_callback(registry.close)
        demo: list[BaseRoute] = []
        if settings.host in _LOOPBACK:  # the demo page mints tokens for anyone who reaches it
            demo = await stack.enter_async_context(
                demo_routes(settings, publisher=publisher, registry=registry)
            )
        console = Console(settings, click.echo, clock=time.monotonic)
        gateway = Gateway(settings, extra_routes=demo, refused=console.refused)
        processor = Processor(settings, observer=console)
        _keep(kept, settings, gateway)
        await _serve(
            gateway,
            processor,
            stopping,
            embedded=embedded,
            console=console,
            announce=lambda: _announce(
                settings, gateway, taken_kafka_port=_taken_port(asked, embedded)
            ),
        )


def _ports(settings: DevSettings) -> list[tuple[str, str]]:
    """Return the settings of the ports of gateway and processor, with their hosts."""
    return [
        ("port", settings.host),
        ("internal_port", settings.internal_host),
        ("processor_port", settings.processor_host),
    ]


async def _serve(
    gateway: Gateway,
    processor: Processor,
    stopping: asyncio.Event,
    *,
    embedded: Sequence[Embedded],
    console: Console,
    announce: Callable[[], None],
) -> None:
    """Run gateway and processor until `stopping` is set, or until an embedded server has ended."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(gateway.run())
        processing = tasks.create_task(processor.run())
        stop_requested = asyncio.create_task(stopping.wait())
        deaths = [asyncio.create_task(server.wait()) for server in embedded]
        ready = asyncio.create_task(_ready(gateway, processor))
        watching = tasks.create_task(_watch(console))
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
            for task in (stop_requested, ready, watching, *deaths):
                task.cancel()
        if not stop_requested.done():
            raise DiedError("an embedded server has ended by itself; start again")


async def _ready(gateway: Gateway, processor: Processor) -> None:
    await gateway.started()
    await processor.started()


async def _watch(console: Console) -> None:
    while True:
        await asyncio.sleep(_TICK_SECONDS)
        console.advance()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system releases however this process ends.

    Raises:
        RunsAlready: another process holds the lock.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    with (folder / "dev.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise RunsAlready(
                f"pushgate dev runs in this folder already (process {lock.read()}; its addresses "
                f"are in {DEV_FILE}): use or stop that one, or start in another folder"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _require_free(settings: DevSettings, name: str) -> None:
    """Check that a port of 127.0.0.1 is free; `name` is the port's setting.

    Raises:
        TakenPort: it is not; the text names the setting.
    """
    port: int = getattr(settings, name)
    if port and choose_port(port) != port:
        raise TakenPort(
            f"can't listen on {EMBEDDED_HOST} port {port}, which is taken: set "
            f"{PREFIX}{name.upper()} to another port"
        )


def _chosen_port(settings: DevSettings, name: str) -> int:
    """Return the port of an embedded server, which has to be free where it was asked for."""
    if name in settings.model_fields_set:
        _require_free(settings, name)
    port: int = getattr(settings, name)
    return port


def _taken_port(asked: DevSettings, embedded: Sequence[Embedded]) -> int | None:
    """Return the default port of Kafka where another process has it; None where all is well."""
    port = asked.embedded_kafka_port
    for server in embedded:
        if isinstance(server, EmbeddedKafka) and port:
            return port if server.port != port else None
    return None


async def _with_servers(
    settings: DevSettings, stack: AsyncExitStack
) -> tuple[DevSettings, list[Embedded]]:
    """Start a Valkey, unless a Redis is configured, and a Kafka, unless a Kafka is configured.

    Returns the settings with the addresses of the started servers, and the servers.

    Raises:
        EmbeddedError: a server can't be started.
        TakenPort: a server's port was asked for, and is taken.
    """
    embedded: list[Embedded] = []
    update: dict[str, object] = {}
    if "redis_url" not in settings.model_fields_set:
        port = _chosen_port(settings, "embedded_redis_port")
        valkey = await stack.enter_async_context(EmbeddedValkey(port=port))
        update["redis_url"] = valkey.url
        embedded.append(valkey)
    if "kafka_bootstrap" not in settings.model_fields_set:
        port = _chosen_port(settings, "embedded_kafka_port")
        kafka = await stack.enter_async_context(EmbeddedKafka(port=port))
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
        "JWT_ALGORITHMS": settings.jwt_algorithms,
        "JWT_AUDIENCE": settings.jwt_audience,
        "JWT_ISSUER": settings.jwt_issuer,
        "JWT_MAX_SECONDS": settings.jwt_max_seconds,
        "INTERNAL_SECRET": settings.internal_secret.get_secret_value(),
        "KAFKA_BOOTSTRAP": settings.kafka_bootstrap,
        "KAFKA_TOPICS": settings.kafka_topics,
        "KAFKA_FETCH_WAIT_MS": settings.kafka_fetch_wait_ms,
        "MAX_PAYLOAD_BYTES": settings.max_payload_bytes,
        "OUTCOMES_TOPIC": settings.outcomes_topic,
        "REDIS_URL": settings.redis_url,
        "URL": f"http://{settings.host}:{gateway.port}",
    }
    (kept.parent / ".gitignore").write_text("*\n")
    descriptor = os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, 0o600)
        file.writelines(
            f"{PREFIX}{name}='{value}'\n" for name, value in values.items() if value is not None
        )


def _announce(settings: DevSettings, gateway: Gateway, *, taken_kafka_port: int | None) -> None:
    """Print where all parts are; say it where Kafka's own port was taken."""
    taken = (
        f"\n  (port {taken_kafka_port} is another process's: this Kafka is not there)"
        if taken_kafka_port
        else ""
    )
    public = f"{settings.host}:{gateway.port}"
    topic = settings.topics[0]
    kcat = f"kcat -P -b {settings.kafka_bootstrap} {_PARTITIONER} -t {topic}"
    click.echo(
        f"""
pushgate is up; Ctrl-C stops all of it

  demo page   http://{public}/
  clients     ws://{public}/ws   http://{public}/sse   http://{public}/poll
  Kafka       {settings.kafka_bootstrap}   topic {topic}
  outcomes    topic {settings.outcomes_topic}   rejected records in {settings.dead_letter_topic}
  Redis       {settings.redis_url}
  internal    {gateway.node.identity.address}   processor {settings.processor_port}
  secrets     {DEV_FILE}

  pushgate listen alice
  echo '{{"hello": "alice"}}' | {kcat} -k alice{taken}
"""
    )
