"""Gateways and processors as pods and units run them: another user, and nothing to write to."""

import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest
from aiokafka import AIOKafkaProducer

from tests.support.clients import connect
from tests.support.kafka import KafkaServer
from tests.support.processes import GatewayProcess, ProcessorProcess
from tests.support.valkey import RedisServer
from tests.system.steps import publish_all, take

pytestmark = pytest.mark.anyio

#: The user of the image and of the pods. To the files it is root by a name of its own, since the
#: interpreter of the tests may be root's alone; root without capabilities, on read-only mounts.
CONFINED: Final[Sequence[str]] = (
    "unshare", "--mount", "--", "sh", "-c",
    "mount -o remount,bind,ro / && mount -o remount,bind,ro /dev/shm && "
    "exec unshare --user --map-user=10001 --map-group=10001 "
    'setpriv --no-new-privs -- "$@"',
    "confined",
    # As MemoryDenyWriteExecute of the units: no memory is writable and executable (PR_SET_MDWE).
    sys.executable, "-c",
    "import ctypes, os, sys; refused = ctypes.CDLL(None).prctl(65, 1, 0, 0, 0); "
    "sys.exit('needs Linux 6.3') if refused else os.execvp(sys.argv[1], sys.argv[1:])",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def needs_namespaces() -> None:
    """Skip where processes may not be confined."""
    tried = subprocess.run([*CONFINED, "true"], check=False, capture_output=True, text=True)
    if tried.returncode != 0:
        pytest.skip(f"needs root and user namespaces: {tried.stderr.strip()}")


class ConfinedGateway(GatewayProcess):
    through = CONFINED


class ConfinedProcessor(ProcessorProcess):
    through = CONFINED


async def test_messages_flow_and_nothing_is_written(
    processes: ExitStack,
    valkey: RedisServer,
    kafka: KafkaServer,
    backend: AIOKafkaProducer,
    topic: str,
    user: str,
) -> None:
    gateway = processes.enter_context(ConfinedGateway("confined", redis_url=valkey.url))
    processor = processes.enter_context(
        ConfinedProcessor(
            "confined-processor",
            redis_url=valkey.url,
            bootstrap=kafka.bootstrap,
            topic=topic,
            group=f"group-{topic}",
        )
    )
    for process in (gateway, processor):
        status = status_of(process.pid)
        assert status["NoNewPrivs"] == "1"
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
        assert read_only(process.pid)
    async with connect("ws-v1", gateway.port, user) as client:
        await publish_all(backend, topic, user, ["1", "2"])
        assert [message.payload for message in await take(client, 2)] == [b"1", b"2"]
    assert gateway.terminate() == 0
    assert processor.terminate() == 0
    assert "Read-only file system" not in gateway.log + processor.log
    assert "Traceback" not in gateway.log + processor.log


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def read_only(pid: int) -> bool:
    """Whether the root of a process's file systems is mounted read-only."""
    mounts = [line.split() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    return all("ro" in mount[5].split(",") for mount in mounts if mount[4] == "/")
