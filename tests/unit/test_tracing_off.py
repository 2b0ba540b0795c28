"""Where traces are off, nothing is imported for them, and nothing is around the parts.

redis-py imports OpenTelemetry's metrics by itself where the packages are installed.
"""

from __future__ import annotations

import subprocess
import sys

#: A gateway and a processor, made as the commands make them: every import is made by then.
_MADE = """
import asyncio, sys
from pydantic import SecretStr
import pushgate.commands.gateway, pushgate.commands.processor
from gateway.push import Pusher
from gateway.server import Gateway
from processor.server import Processor
from pushgate.settings import GatewayCommandSettings, ProcessorCommandSettings

SECRETS = {"internal_secret": SecretStr("i" * 32)}

async def make():
    gateway = Gateway(GatewayCommandSettings(jwt_secret=SecretStr("j" * 32), **SECRETS))
    processor = Processor(ProcessorCommandSettings(**SECRETS))
    assert type(gateway._links.pusher) is Pusher
    assert processor._dispatcher is processor._consumer._intake

asyncio.run(make())
ours = {"registry.tracing", "gateway.tracing", "processor.tracing"}
theirs = {"opentelemetry.exporter", "opentelemetry.sdk.trace.export", "requests"}
print(*sorted((ours | theirs) & sys.modules.keys()))
"""


def test_a_gateway_and_a_processor_without_a_collector_import_nothing_for_traces() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _MADE], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
