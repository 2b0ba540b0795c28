"""Clients of other people, unchanged, come back through a drain and a kill: nothing is missed.

They are the judges of docs/protocol.md. All are connected to one node. It drains, and they come
back to a second node, each by its own means. The second node is killed, with messages on the way
that no client gets, and they come back to the first node, which has started again. Two processors
forward messages all the time.

A judge is a part of a program (tests/support/judges), which prints a line for every event of the
judge: `JUDGE open`, `JUDGE message PAYLOAD`, `JUDGE gap`. What a judge has to add for itself, as
the cursor on a WebSocket, is written there from docs/protocol.md alone.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest
from aiokafka import AIOKafkaProducer

from pushgate.embedded import LOOPBACK, tied_to_parent
from tests.browser.balancer import Balancer, balancer_to
from tests.support.clients import eventually, token
from tests.support.kafka import KafkaServer
from tests.support.npm import install
from tests.support.processes import GatewayProcess, ProcessorProcess, PushgateProcess
from tests.support.valkey import RedisServer
from tests.system.steps import create, publishing, until_outcomes

pytestmark = pytest.mark.anyio

SOURCES: Final = Path(__file__).parents[1] / "support/judges"
#: Judges by their program.
JUDGES: Final = {
    "node": ("eventsource", "undici-sse", "undici-ws", "ws"),
    "python": ("httpx-sse", "aiohttp"),
    "java": ("java-sse", "java-ws"),
}
#: Judges that put their cursors together, and so get messages of several topics once.
COMPOSING: Final = ("undici-ws", "ws", "aiohttp", "java-ws")
LANES: Final = ("a", "b")
ROUND_SECONDS: Final = 0.05
#: For a judge that comes back late, a JVM that starts, and partitions that change hands.
PATIENCE_SECONDS: Final = 30.0


@dataclass
class Account:
    """What one judge was sent, by lane, and what it has said."""

    sent: dict[str, list[str]]
    got: list[str] = field(default_factory=list)
    opens: int = 0
    gaps: int = 0

    @classmethod
    def of(cls, judge: str) -> Account:
        lanes = LANES if judge in COMPOSING else LANES[:1]
        return cls({lane: [] for lane in lanes})

    def hear(self, word: str, payload: str = "") -> None:
        """Take a line of the judge's program, without the judge's name."""
        if word == "message":
            self.got.append(payload)
        self.opens += word == "open"
        self.gaps += word == "gap"

    def got_on(self, lane: str) -> list[str]:
        return [payload for payload in self.got if payload.startswith(f"{lane}.")]

    @property
    def is_whole(self) -> bool:
        """Whether the last messages have come."""
        return all(self.got_on(lane)[-1:] == sent[-1:] for lane, sent in self.sent.items())


@dataclass(frozen=True)
class Program:
    """What runs some of the judges; `missing` says why it can't, and is empty where it can."""

    judges: Sequence[str]
    command: Sequence[str]
    missing: str = ""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> list[Program]:
    """Give the programs, with what they need from npm."""
    folder = tmp_path_factory.mktemp("judges")
    # The quick start of a JVM that lives for seconds.
    java = ["java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", str(SOURCES / "Judges.java")]
    jdk = "" if shutil.which("javac") else "needs a JDK of 17 or newer: there is no javac"
    node = ["node", str(folder / "judges.mjs")]
    return [
        Program(JUDGES["node"], node, install(SOURCES, folder)),
        Program(JUDGES["python"], [sys.executable, str(SOURCES / "judges.py")]),
        Program(JUDGES["java"], java, jdk),
    ]


@pytest.fixture(scope="module")
def topics() -> list[str]:
    """Give a topic's name for each lane."""
    prefix = f"judges-{uuid.uuid4().hex[:12]}"
    return [f"{prefix}-{lane}" for lane in LANES]


@pytest.fixture(scope="module")
def gateways(module_processes: ExitStack, valkey: RedisServer) -> list[GatewayProcess]:
    """Give two gateways that drain within a second."""
    gateways = [
        GatewayProcess(
            f"judges-{n}", redis_url=valkey.url, drain_seconds=1, reconnect_delay_seconds=0.5
        )
        for n in range(2)
    ]
    _start(module_processes, gateways)
    return gateways


@pytest.fixture(scope="module")
async def processors(
    module_processes: ExitStack, valkey: RedisServer, real_kafka: KafkaServer, topics: list[str]
) -> list[ProcessorProcess]:
    """Give two processors, of all lanes."""
    for topic in topics:
        await create(real_kafka, topic, partitions=4)
    processors = [
        ProcessorProcess(
            f"judges-processor-{n}",
            redis_url=valkey.url,
            bootstrap=real_kafka.bootstrap,
            topic=",".join(topics),
            group=topics[0],
            dead_letter_topic=f"{topics[0]}.dead",
        )
        for n in range(2)
    ]
    _start(module_processes, processors)
    return processors


def _start(stack: ExitStack, processes: Sequence[PushgateProcess]) -> None:
    """Start processes side by side; the stack kills them, since leaving may take its time."""
    for process in processes:
        stack.callback(process.close)
        stack.callback(process.kill)
        process.start(until_ready=False)
    for process in processes:
        process.wait_until_ready()


@pytest.fixture(scope="module")
async def accounts(
    programs: list[Program],
    gateways: list[GatewayProcess],
    processors: list[ProcessorProcess],
    real_kafka: KafkaServer,
    topics: list[str],
) -> dict[str, Account]:
    """Give what became of each judge whose program runs here."""
    runnable = [program for program in programs if not program.missing]
    accounts = {judge: Account.of(judge) for program in runnable for judge in program.judges}
    async with (
        publishing(real_kafka) as backend,
        balancer_to(gateways[0].port) as balancer,
        AsyncExitStack() as running,
    ):
        # A registry that was empty a moment ago is in doubt: messages for absent clients wait.
        await backend.send_and_wait(topics[0], b"", key=b"nobody")
        await until_outcomes(processors, {("offline", ""): 1}, timeout=PATIENCE_SECONDS)
        for program in runnable:
            await running.enter_async_context(judging(program, balancer.port, accounts))
        stage = Stage(gateways, balancer, Publisher(backend, topics, accounts), accounts)
        await stage.run()
    return accounts


@asynccontextmanager
async def judging(
    program: Program, port: int, accounts: Mapping[str, Account]
) -> AsyncIterator[None]:
    """Run a program's judges, and write what they say into the accounts."""
    arguments = [word for judge in program.judges for word in (judge, token(judge))]
    process = await asyncio.create_subprocess_exec(
        *tied_to_parent([*program.command, f"http://{LOOPBACK}:{port}", *arguments]),
        stdout=asyncio.subprocess.PIPE,
    )

    async def hear() -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            judge, *words = line.decode().split()
            accounts[judge].hear(*words)

    hearing = asyncio.create_task(hear())
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # it has ended by itself
            process.kill()
        await process.wait()
        await hearing


class Publisher:
    """Publishes to all judges, round by round."""

    def __init__(
        self, backend: AIOKafkaProducer, topics: Sequence[str], accounts: Mapping[str, Account]
    ) -> None:
        self._backend = backend
        self._topics = dict(zip(LANES, topics, strict=True))
        self._accounts = accounts
        self.rounds = 0

    @asynccontextmanager
    async def steadily(self) -> AsyncIterator[None]:
        """Publish twenty rounds a second until left; on leaving, Kafka has them all."""
        done = asyncio.Event()

        async def publish() -> None:
            while not done.is_set():
                await self._publish_round()
                await asyncio.sleep(ROUND_SECONDS)
            await self._backend.flush()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(publish())
            yield
            done.set()

    async def _publish_round(self) -> None:
        for judge, account in self._accounts.items():
            for lane, sent in account.sent.items():
                sent.append(f"{lane}.{self.rounds}")
                await self._backend.send(self._topics[lane], sent[-1].encode(), key=judge.encode())
        self.rounds += 1


class Stage:
    """What happens to the judges. One that falls behind is waited for in vain, and fails later."""

    def __init__(
        self,
        gateways: Sequence[GatewayProcess],
        balancer: Balancer,
        publisher: Publisher,
        accounts: Mapping[str, Account],
    ) -> None:
        self._first, self._second = gateways
        self._balancer = balancer
        self._publisher = publisher
        self._accounts = accounts

    async def run(self) -> None:
        """Let the judges connect; drain their node, and kill the next one."""
        await self._all(lambda account: account.opens >= 1)
        async with self._publisher.steadily():
            await self._all_get(5)
            await self._drain(self._first, then=self._second)
            self._first.start(until_ready=False)
            await eventually(
                lambda: self._first.readyz() == 200, "ready", timeout_seconds=PATIENCE_SECONDS
            )
            await self._kill(self._second, then=self._first)
        await self._all(lambda account: account.is_whole)

    async def _drain(self, leaving: GatewayProcess, *, then: GatewayProcess) -> None:
        self._balancer.target = then.port
        leaving.signal(signal.SIGTERM)
        await eventually(
            lambda: leaving.returncode is not None, "it left", timeout_seconds=PATIENCE_SECONDS
        )
        await self._all(lambda account: account.opens >= 2)
        await self._all_get(10)

    async def _kill(self, doomed: GatewayProcess, *, then: GatewayProcess) -> None:
        """Kill a node; what is in its sockets by then is lost."""
        self._balancer.discards = True
        lost_from = self._publisher.rounds
        await eventually(
            lambda: self._publisher.rounds >= lost_from + 10, "some messages are on their way"
        )
        self._balancer.target = then.port
        doomed.kill()
        await self._balancer.cut()
        self._balancer.discards = False
        await self._all(lambda account: account.opens >= 3)
        await self._all_get(10)

    async def _all_get(self, count: int) -> None:
        """Return when all judges have got so many messages more on each lane."""
        goals = {
            judge: len(account.got) + count * len(account.sent)
            for judge, account in self._accounts.items()
        }
        await patiently(
            lambda: all(len(self._accounts[judge].got) >= goal for judge, goal in goals.items())
        )

    async def _all(self, condition: Callable[[Account], bool]) -> None:
        await patiently(lambda: all(map(condition, self._accounts.values())))


async def patiently(condition: Callable[[], bool]) -> None:
    """Return when the condition is true, or when patience ends."""
    with suppress(AssertionError):
        await eventually(condition, "all judges", timeout_seconds=PATIENCE_SECONDS)


@pytest.mark.parametrize("judge", list(itertools.chain(*JUDGES.values())))
async def test_a_judge_gets_each_message_once_in_order_through_a_drain_and_a_kill(
    judge: str, programs: list[Program], accounts: dict[str, Account]
) -> None:
    (program,) = (program for program in programs if judge in program.judges)
    if program.missing:
        pytest.skip(program.missing)
    account = accounts[judge]
    assert account.opens >= 3, "it has come back twice"
    assert account.gaps == 0
    for lane, sent in account.sent.items():
        assert account.got_on(lane) == sent
