"""Whatever fails in whatever order: clients that come back get each message once and in order.

Hypothesis draws what happens: clients come, stall, are cut off and come back on any node; messages
are published to users and devices, with TTLs and collapse keys, in two lanes; gateways are killed
and drained, processors are killed and stopped, Redis is frozen. In the end everything is at work,
every client is back, and owed.py says what each has got wrongly.

A run is drawn from a seed. Real processes have a will of their own, so a seed that has failed may
hold when it is run again; what happened is in the failure's text, with times.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, Final, NamedTuple

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.drill.cluster import LANES, Cluster
from tests.drill.owed import Published, Session, wrongs
from tests.drill.returning import KINDS, OPEN_SECONDS, ReturningClient
from tests.support.clients import eventually
from tests.support.processes import GatewayProcess, PushgateProcess

_USERS: Final = 2
_MOST_CLIENTS: Final = 6
_DEVICES: Final = (None, "phone", "tablet")
_STEPS: Final = 25
_FROZEN_SECONDS: Final = 1.0
#: A gateway tells a gap after 60 s without an answer: sooner than this.
_SETTLE_SECONDS: Final = 80.0
_REACH_SECONDS: Final = 3.0


class Wishes(NamedTuple):
    """What a publisher asks for."""

    device: str | None = None
    ttl_seconds: int | None = None
    collapse_key: str | None = None


_WISHES: Final = st.sampled_from(
    [
        Wishes(),
        Wishes(),
        Wishes(device="phone"),
        Wishes(ttl_seconds=0),
        Wishes(ttl_seconds=1),
        Wishes(ttl_seconds=600),
        Wishes(collapse_key="k"),
        Wishes(device="phone", collapse_key="k"),
    ]
)
#: Which of those there are: the number is taken by the remainder.
_ANY: Final = st.integers(min_value=0, max_value=11)
_USER: Final = st.integers(min_value=0, max_value=_USERS - 1)


class Newcomer(NamedTuple):
    """A client that is new: whose, and the node that it comes to."""

    user: int
    device: str | None
    kind: str
    node: int


_NEWCOMER: Final = st.builds(
    Newcomer, _USER, st.sampled_from(_DEVICES), st.sampled_from(KINDS), _ANY
)


class Resumes(RuleBasedStateMachine):
    """One run. Its users are its own, so that runs don't meet.

    Hypothesis wants equal draws for equal steps. So preconditions look at what steps have done, not
    at connections and processes, which end by themselves; a step that finds none does nothing. And
    each run begins with everything at work, whatever an earlier run has left behind.
    """

    cluster: ClassVar[Cluster]
    counts: ClassVar[Counter[str]]  # of steps by kind, over all runs

    def __init__(self) -> None:
        super().__init__()
        self._users = [f"user-{uuid.uuid4().hex[:12]}" for _ in range(_USERS)]
        self._clients: list[ReturningClient] = []
        self._published: list[Published] = []
        self._began = time.monotonic()
        self._story: list[str] = []
        #: Without Redis a processor goes by where users were lately, and a newcomer misses messages
        #: (docs/design.md, "Known limits").
        self._has_newcomers = False

    # Clients

    @initialize(newcomers=st.lists(_NEWCOMER, min_size=2, max_size=4))
    def begin(self, newcomers: Sequence[Newcomer]) -> None:
        self.cluster.repair()
        for newcomer in newcomers:
            self._take_in(newcomer)

    @precondition(lambda self: self._up and len(self._clients) < _MOST_CLIENTS)
    @rule(newcomer=_NEWCOMER)
    def come(self, newcomer: Newcomer) -> None:
        self._take_in(newcomer)

    def _take_in(self, newcomer: Newcomer) -> None:
        user, device, kind, node = newcomer
        name = f"client {len(self._clients)} ({kind}, user {user}, device {device})"
        client = ReturningClient(name, self._users[user], device, kind)
        self._clients.append(client)
        self._connect([client], node)

    @precondition(lambda self: self._up and self._clients)
    @rule(which=_ANY, node=_ANY)
    def come_back(self, which: int, node: int) -> None:
        self._connect(_one_of(self._away, which), node)

    @precondition(lambda self: self._up and len(self._clients) > 1)
    @rule(node=_ANY)
    def all_come_back(self, node: int) -> None:
        self._connect(self._away, node)

    @precondition(lambda self: self._clients)
    @rule(which=_ANY, with_reset=st.booleans())
    def drop(self, which: int, with_reset: bool) -> None:
        for client in _one_of(self._connected, which):
            self._tell(f"drops {client.received.name}")
            self.cluster.run(client.drop, with_reset=with_reset)

    @precondition(lambda self: self._clients)
    @rule(which=_ANY)
    def stall(self, which: int) -> None:
        for client in _one_of(self._connected, which):
            self._tell(f"stalls {client.received.name}")
            client.stall()

    # Messages

    @rule(user=_USER, lane=st.sampled_from(LANES), wishes=st.lists(_WISHES, min_size=1, max_size=5))
    def publish(self, user: int, lane: str, wishes: Sequence[Wishes]) -> None:
        self._publish(user, lane, wishes)

    @rule(wishes=_WISHES)
    def publish_to_all(self, wishes: Wishes) -> None:
        for user in range(_USERS):
            for lane in LANES:
                self._publish(user, lane, [wishes])

    # Faults

    @precondition(lambda self: self._up)
    @rule(which=_ANY)
    def kill_gateway(self, which: int) -> None:
        self._kill(self._up[which % len(self._up)])

    @precondition(lambda self: len(self._up) > 1)
    @rule(which=_ANY)
    def drain_gateway(self, which: int) -> None:
        self._stop(self._up[which % len(self._up)])

    @precondition(lambda self: self._processors_up)
    @rule(which=_ANY)
    def kill_processor(self, which: int) -> None:
        self._kill(self._processors_up[which % len(self._processors_up)])

    @precondition(lambda self: len(self._processors_up) > 1)
    @rule(which=_ANY)
    def stop_processor(self, which: int) -> None:
        """Rebalance: the other member gets all partitions."""
        self._stop(self._processors_up[which % len(self._processors_up)])

    @precondition(lambda self: self._down)
    @rule(which=_ANY)
    def start(self, which: int) -> None:
        """Start a process; a processor's start is a rebalance."""
        process = self._down[which % len(self._down)]
        self.cluster.start(process)
        self._tell(f"started {process.name}")

    @rule(user=_USER, lane=st.sampled_from(LANES), which=_ANY, node=_ANY)
    def freeze_redis(self, user: int, lane: str, which: int, node: int) -> None:
        """Freeze Redis for a second; meanwhile a message is published, and a client comes back."""
        if self._has_newcomers and not self._reach_all():
            return
        self._tell("freezes Redis")
        returning = _one_of(self._away, which) if self._up else []
        self.cluster.valkey.freeze()
        try:
            self._begin(returning, node)
            self._publish(user, lane, [Wishes()])
            self.cluster.run(self.cluster.pause, _FROZEN_SECONDS)
        finally:
            self.cluster.valkey.thaw()
        self._await_open(returning)

    @rule(seconds=st.sampled_from([0.1, 1.0, 2.5]))
    def pass_time(self, seconds: float) -> None:
        self._tell(f"{seconds} s pass")
        self.cluster.run(self.cluster.pause, seconds)

    def teardown(self) -> None:
        """Have everything at work and every client back; then look at what they got."""
        try:
            self._tell("settles")
            self.cluster.repair()
            for client in self._clients:
                if client.is_stalled:
                    self.cluster.run(client.drop, with_reset=True)
            for attempt in range(5):
                self._connect(self._away, attempt)
            for user in range(_USERS):
                for lane in LANES:
                    self._publish(user, lane, [Wishes()])
            late = self.cluster.run(self._await_last, self._clients, _SETTLE_SECONDS)
        finally:
            self.cluster.run(self._drop_all)
        faults = [fault for client in self._clients for fault in client.faults]
        faults += self.cluster.take_faults()
        wrong = late + faults + wrongs(self._published, [c.received for c in self._clients])
        if wrong:
            raise AssertionError("\n".join([*wrong, "", *self._story]))

    async def _await_last(self, clients: Sequence[ReturningClient], seconds: float) -> list[str]:
        """Wait until clients that resume have the last messages; say that they have not."""
        last = self._published[-_USERS * len(LANES) :]
        owed = [c.received for c in clients if c.received.owed_from is not None]
        due = [
            (client, message)
            for client in owed
            for message in last
            if client.resumes and message.is_for(client)
        ]

        def all_there() -> bool:
            return all(message.payload in client.payloads for client, message in due)

        try:
            await eventually(all_there, "the last messages", timeout_seconds=seconds)
        except AssertionError as error:
            return [str(error)]
        return []

    # Steps

    def _connect(self, clients: Sequence[ReturningClient], node: int) -> None:
        self._begin(clients, node)
        self._await_open(clients)

    def _begin(self, clients: Sequence[ReturningClient], node: int) -> None:
        for number, client in enumerate(clients, node):
            gateway = self._up[number % len(self._up)]
            self._tell(f"{client.received.name} comes to {gateway.name}")
            self.cluster.run(client.begin, gateway)

    def _await_open(self, clients: Sequence[ReturningClient]) -> None:
        for client in clients:
            if not self.cluster.run(client.opened):
                self._tell(f"refused: {client.received.name}")
            elif client.received.owed_from is None:
                self.cluster.run(self._await_registration, client)

    async def _await_registration(self, client: ReturningClient) -> None:
        """Wait until look-ups find a newcomer: what is published from then on is for it."""

        async def is_found() -> bool:
            return not client.is_open or bool(await self._found([client]))

        await eventually(is_found, "it is registered", timeout_seconds=OPEN_SECONDS)
        if client.is_open:
            client.received.owed_from = self.cluster.next_number
            self._has_newcomers = True

    def _reach_all(self) -> bool:
        """Publish until every open connection has been found; False where that takes too long."""
        for user in range(_USERS):
            for lane in LANES:
                self._publish(user, lane, [Wishes()])
        held = [client for client in self._clients if client.is_held and not client.is_stalled]
        self._has_newcomers = bool(self.cluster.run(self._await_last, held, _REACH_SECONDS))
        return not self._has_newcomers

    def _publish(self, user: int, lane: str, many: Sequence[Wishes]) -> None:
        for wishes in many:
            message = self.cluster.run(self._publish_one, self._users[user], lane, wishes)
            self._published.append(message)
            self._tell(f"publishes {message.number} to user {user} in {lane}, {wishes}")

    async def _found(self, clients: Sequence[ReturningClient]) -> list[Session]:
        """Return the connections of clients of one user that look-ups find now."""
        nodes = await self.cluster.present(clients[0].received.user) if clients else set()
        return [
            session
            for client in clients
            if client.is_open and (session := client.session) and session.node in nodes
        ]

    async def _publish_one(self, user: str, lane: str, wishes: Wishes) -> Published:
        its_own = [client for client in self._clients if client.received.user == user]
        held = [client for client in its_own if client.is_held]
        present = await self._found(held) if wishes.ttl_seconds == 0 else []
        return await self.cluster.publish(
            user,
            lane,
            device=wishes.device,
            ttl_seconds=wishes.ttl_seconds,
            collapse_key=wishes.collapse_key,
            present=tuple(present),
        )

    def _kill(self, process: PushgateProcess) -> None:
        self._tell(f"kills {process.name}")
        self.cluster.kill(process)

    def _stop(self, process: PushgateProcess) -> None:
        self._tell(f"stops {process.name}")
        self.cluster.stop(process)

    async def _drop_all(self) -> None:
        for client in self._clients:
            await client.drop(with_reset=True)

    def _tell(self, what: str) -> None:
        self._story.append(f"{time.monotonic() - self._began:7.2f} s: {what}")
        self.counts[what.split(maxsplit=1)[0]] += 1

    @property
    def _up(self) -> list[GatewayProcess]:
        return [each for each in self.cluster.gateways if self.cluster.is_up(each)]

    @property
    def _processors_up(self) -> list[PushgateProcess]:
        return [each for each in self.cluster.processors if self.cluster.is_up(each)]

    @property
    def _down(self) -> list[PushgateProcess]:
        return [each for each in self.cluster.processes if not self.cluster.is_up(each)]

    @property
    def _connected(self) -> list[ReturningClient]:
        return [client for client in self._clients if client.session is not None]

    @property
    def _away(self) -> list[ReturningClient]:
        return [client for client in self._clients if client.session is None]


def _one_of(clients: Sequence[ReturningClient], which: int) -> Sequence[ReturningClient]:
    return [clients[which % len(clients)]] if clients else []


def run_from(number: int, cluster: Cluster, counts: Counter[str], *, examples: int) -> None:
    """Draw some runs from a seed; count the steps by kind.

    Raises:
        AssertionError: a client got something wrongly; the text has the run's story. Hypothesis
            raises FlakyFailure, with the error in it, where the same steps then hold.
    """
    machine = seed(number)(type("Drawn", (Resumes,), {"cluster": cluster, "counts": counts}))
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=_STEPS,
                deadline=None,
                database=None,
                print_blob=True,
                # Shrinking would take hours of kills.
                phases=(Phase.generate,),
                suppress_health_check=list(HealthCheck),
            ),
        )
    except BaseException as error:
        error.add_note(f"seed {number}: python -m loadtest.random_faults --seed {number}")
        raise
