"""One processor process: the wings connected, the node table refreshed, a port for operators."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from processor import metrics
from processor.outcomes.accessory import Accessory
from processor.outcomes.dead_letters import DeadLetters
from processor.outcomes.outcomes import Outcomes
from processor.reading.commits import Commits
from processor.reading.consumer import Consumer
from processor.reading.membership import Membership
from processor.reading.message import Message, Rejection, envelope_of
from processor.replay.read_back import Reader
from processor.replay.resume import Resume
from processor.sending.dispatch import Dispatcher
from processor.sending.forward import Forwarder
from processor.sending.reach import Reach
from processor.sending.whereabouts import Whereabouts
from processor.settings import ProcessorSettings
from processor.tasks import Tasks
from registry.calls import REFUSED, GatewayCalls
from registry.credentials import Credentials
from registry.directory import TIMINGS, Node, RegistryRefuses, RegistryUnavailable
from registry.process import VERSION
from registry.proof import SCHEME
from registry.redis_store import RedisRegistry
from registry.status import Status

if TYPE_CHECKING:
    from processor.tracing import Traces

_REFRESH_SECONDS: Final = 1.0
#: How long settling the messages in hand and leaving the group may take after `stop`.
_LEAVE_SECONDS: Final = 10.0
#: How long all of a stop may take, with the time-outs of Kafka clients that do not end (7 s), of
#: the accessories' last rows (2 s), of Redis (a second for each of four goodbyes) and of a
#: collector of traces (1 s). Below the 30 s after which Kubernetes kills.
_STOP_SECONDS: Final = 25.0

log = structlog.get_logger("processor")


class Observer(Protocol):
    """Is told what became of messages, in this process: `pushgate dev` says so on its console."""

    def settled(self, messages: Sequence[Message]) -> None:
        """Take messages that have their outcome."""

    def rejected(self, rejections: Sequence[Rejection]) -> None:
        """Take records that broke the publishing rules."""


class Processor:
    """A processor worker, from start to exit. Made inside the running loop."""

    def __init__(self, settings: ProcessorSettings, *, observer: Observer | None = None) -> None:
        """`observer` is told what became of each message, before the outcomes topic is."""
        self._settings = settings
        self._observer = observer
        self._registry = RedisRegistry(
            settings.redis_url,
            timeout_seconds=settings.redis_timeout_seconds,
            timings=TIMINGS,
            access=settings.redis_access,
            lost_seconds=settings.lost_node_seconds,
        )
        reach = Reach(GatewayCalls.of(settings))
        self._forwarder = Forwarder(reach, timeout_seconds=settings.forward_timeout_seconds)
        self._whereabouts = Whereabouts(self._registry, cache_seconds=settings.lookup_cache_seconds)
        self._tasks = Tasks()
        #: None where clients don't resume (PUSHGATE_RESUME_SECONDS=0).
        self._resume = self._make_resume(reach) if settings.resume_seconds else None
        commits = Commits()
        membership = Membership()
        self._outcomes = Outcomes(
            settings, commits.advanced, membership=membership, spawn=self._tasks.spawn
        )
        self._dead_letters = DeadLetters(settings, self._rejected, spawn=self._tasks.spawn)
        #: None where no message is traced (PUSHGATE_OTLP_ENDPOINT).
        self._traces = _traces(settings)
        traces = self._traces
        self._dispatcher = Dispatcher(
            self._whereabouts,
            traces.around_forwarder(self._forwarder) if traces else self._forwarder,
            self._settled,
            self._registry,
            spawn=self._tasks.spawn,
            weights=settings.weights,
            batch_messages=settings.batch_messages,
            patience_seconds=settings.overloaded_seconds,
        )
        self._consumer = Consumer(
            settings,
            commits,
            traces.around_intake(self._dispatcher) if traces else self._dispatcher,
            self._dead_letters,
            membership=membership,
            records=self._resume,
            read=traces.read if traces else envelope_of,
        )
        if self._resume is not None:
            reports = self._outcomes.accessory is not None
            self._resume.attend(
                self._consumer,
                self._dispatcher.users_waiting,
                self._outcomes.replayed if reports else None,
            )
        metrics.WINDOW_LIMIT.set(settings.resume_bytes if settings.resume_seconds else 0)
        metrics.READY.set_function(lambda: self.ready)
        self._registry_seen = asyncio.Event()
        self._registry_refusal: RegistryRefuses | None = None  # while writes are refused
        #: How tools reach this process; None where no address is advertised.
        self._port = settings.port_for_tools()
        self._credentials = Credentials(
            [settings.internal_secret.get_secret_value()], self._port, kind="processor"
        )
        self._started_ms = _now_ms()
        self._stopping = asyncio.Event()
        self._operators = _Server(
            uvicorn.Config(
                self._app(),
                host=settings.processor_host,
                port=settings.processor_port,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=1,
            )
        )

    def _make_resume(self, reach: Reach) -> Resume:
        settings = self._settings
        return Resume(
            self._registry,
            reach,
            self._whereabouts.forget,
            Reader(settings),
            seconds=settings.resume_seconds,
            most_bytes=settings.resume_bytes,
            spawn=self._tasks.spawn,
        )

    def _settled(self, messages: Sequence[Message]) -> None:
        """Take messages that have their outcome to the windows, then to the outcomes."""
        if self._resume is not None:
            self._resume.settled(messages)
        if self._traces is not None:
            self._traces.settled(messages)
        if self._observer is not None:
            self._observer.settled(messages)
        self._outcomes.settled(messages)

    def _rejected(self, rejections: Sequence[Rejection]) -> None:
        if self._traces is not None:
            self._traces.rejected(rejections)
        if self._observer is not None:
            self._observer.rejected(rejections)
        self._outcomes.rejected(rejections)

    @property
    def ready(self) -> bool:
        """Whether messages published from now on are handled."""
        return (
            self._registry_seen.is_set()
            and self._consumer.assigned.is_set()
            and self._dispatcher.accepted
        )

    async def started(self) -> None:
        """Return once ready."""
        await self._registry_seen.wait()
        await self._consumer.assigned.wait()

    def stop(self) -> None:
        """Finish the messages in hand, commit, leave the group, then return from `run`."""
        self._stopping.set()

    @property
    def leave_seconds(self) -> float:
        """How long leaving takes at most, from `stop` to the end of `run`."""
        return _STOP_SECONDS

    async def until_stopped(self) -> None:
        """Return once `stop` has been called."""
        await self._stopping.wait()

    async def run(self) -> None:
        """Work until `stop`, or until a task that messages depend on fails (an ExceptionGroup)."""
        settings = self._settings
        if settings.internal_auth == "bearer":
            log.warning(
                "PUSHGATE_INTERNAL_AUTH=bearer shows the internal secret to every address in Redis",
                cure="set proof as soon as all gateways take proofs",
            )
        if self._port is None:
            log.warning(
                "pushgate top does not find this processor",
                cure="set PUSHGATE_PROCESSOR_ADVERTISE_ADDRESS, or a PUSHGATE_PROCESSOR_HOST that "
                "other hosts reach",
            )
        log.info("processor starts", topics=settings.topics, group=settings.kafka_group)
        async with asyncio.TaskGroup() as tasks:
            self._tasks.group = tasks
            tasks.create_task(self._operators.serve())
            refresh = tasks.create_task(self._refresh())
            dispatch = tasks.create_task(self._dispatcher.run())
            work = tasks.create_task(self._work())
            stopping = asyncio.create_task(self._stopping.wait())
            await asyncio.wait((work, stopping), return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            self._consumer.stop()
            if self._consumer.assigned.is_set():  # before an assignment nothing can be in hand
                await asyncio.wait((work,), timeout=_LEAVE_SECONDS)
            work.cancel()
            for task in (dispatch, refresh):
                task.cancel()
            self._operators.should_exit = True
        if self._resume is not None:
            await self._resume.close()
        if self._port is not None:
            with contextlib.suppress(RegistryUnavailable):
                await self._registry.retire_processor_port(self._port)
        await self._whereabouts.close()
        await self._forwarder.close()
        await self._registry.close()
        if self._traces is not None:
            await self._traces.end()
        log.info("processor has left")

    async def _work(self) -> None:
        for accessory in self._accessories:
            accessory.start()
        try:
            if self._resume is not None:
                # Ahead of the group: gateways wait for the answers of every processor with a lease,
                # and so of every processor that can be given a partition.
                await self._resume.keep_lease()
            await self._consumer.run()
        finally:
            await self._outcomes.stop()
            await asyncio.gather(*(accessory.stop() for accessory in self._accessories))

    @property
    def _accessories(self) -> list[Accessory]:
        accessories = (self._dead_letters.accessory, self._outcomes.accessory)
        return [accessory for accessory in accessories if accessory is not None]

    def _warnings(self) -> list[str]:
        """Return what an operator of a ready processor should see to; empty where all is well."""
        warnings = [
            f"topic {topic} does not exist; its messages will be read from its beginning"
            for topic in self._consumer.missing_topics
        ]
        if self._registry_refusal is not None:
            warnings.append(self._registry_refusal.summary)
        warnings += filter(None, (accessory.warning for accessory in self._accessories))
        return warnings

    def _waits_for(self) -> str:
        if not self._dispatcher.accepted:
            return f"no live gateway takes messages: {REFUSED}"
        return f"waiting for {'Kafka' if self._registry_seen.is_set() else 'the registry'}"

    async def _refresh(self) -> None:
        failing = False
        live_nodes: list[Node] = []
        while True:
            try:
                live_nodes = await self._registry.nodes()
            except RegistryUnavailable as error:
                if not failing:
                    log.error("can't reach the registry; trying on", error=str(error))
                failing = True
            else:
                failing = False
                self._registry_seen.set()
                await self._forwarder.retain(self._registry.present)
                await self._probe_registry()
                await self._keep_port()
            metrics.GATEWAYS.set(len(live_nodes))
            metrics.REGISTRY_IN_DOUBT.set(self._registry.in_doubt)
            if self._resume is not None:
                await self._resume.observe(live_nodes)
            self._dispatcher.observe(live_nodes)
            self._consumer.observe(_now_ms())
            await asyncio.sleep(_REFRESH_SECONDS)

    async def _probe_registry(self) -> None:
        """See whether the registry takes writes: if not, users who are not found are unknown."""
        refusal, before = None, self._registry_refusal
        try:
            await self._registry.probe()
        except RegistryRefuses as error:
            refusal = error
        except RegistryUnavailable:
            return  # the next reading says so
        self._registry_refusal = refusal
        if refusal is not None and (before is None or before.code != refusal.code):
            log.error(
                "the registry refuses writes; messages for users who are not found wait",
                error=str(refusal),
            )
        elif refusal is None and before is not None:
            log.info("the registry takes writes again")

    async def _keep_port(self) -> None:
        if self._port is not None:
            with contextlib.suppress(RegistryUnavailable):  # tools alone miss this process
                await self._registry.keep_processor_port(self._port)

    def _app(self) -> Starlette:
        async def healthz(request: Request) -> Response:  # noqa: ARG001
            return JSONResponse({"status": "alive"})

        async def readyz(request: Request) -> Response:  # noqa: ARG001
            if self.ready:
                warnings = self._warnings()
                answer = {"warnings": warnings} if warnings else {}
                return JSONResponse({"status": "ready", **answer})
            return JSONResponse({"status": self._waits_for()}, 503)

        async def exposition(request: Request) -> Response:  # noqa: ARG001
            return Response(metrics.exposition(), media_type=metrics.CONTENT_TYPE_LATEST)

        return Starlette(
            routes=[
                Route("/healthz", healthz),
                Route("/readyz", readyz),
                Route("/metrics", exposition),
                Route("/status", self._status),
            ]
        )

    async def _status(self, request: Request) -> Response:
        """`GET /status`: what the processor says of itself, with its metrics, as JSON."""
        credential = request.headers.get("authorization")
        if credential is None:
            challenges = {"www-authenticate": f"Bearer, {SCHEME}"}
            text = "send the internal secret, or a proof of it\n"
            return PlainTextResponse(text, 401, challenges)
        if not self._credentials.accept(credential.encode("latin-1")):
            text = "neither the internal secret nor a proof of it for this processor\n"
            return PlainTextResponse(text, 403)
        port = self._port
        status = Status(
            kind="processor",
            name=self._settings.processor_name,
            epoch=None if port is None else port.epoch,
            address=None if port is None else port.address,
            version=VERSION,
            status="ready" if self.ready else self._waits_for(),
            warnings=self._warnings(),
            started_ms=self._started_ms,
            now_ms=_now_ms(),
            drain_seconds=None,
            metrics=metrics.samples(),
        )
        return Response(msgspec.json.encode(status), media_type="application/json")


def _now_ms() -> int:
    return int(time.time() * 1000)


def _traces(settings: ProcessorSettings) -> Traces | None:
    if settings.otlp_endpoint is None:
        return None
    # Imported here, since only traces need the packages of the extra `tracing`.
    from processor.tracing import traces_of  # noqa: PLC0415

    return traces_of(settings, settings.otlp_endpoint)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the process, which stops the consumer as well as this port."""
        yield
