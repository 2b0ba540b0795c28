"""The node: ages, tokens that run out, disconnects, and leaving; over clocks that are passed in."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from gateway.connections.admission import Admission, Limits
from gateway.connections.as_of import AsOf
from gateway.connections.closes import CLOSE_GRACE_SECONDS, GOING_AWAY, TOKEN_EXPIRED, TOO_OLD
from gateway.connections.connection import (
    NO_CURSOR,
    TICK_SECONDS,
    State,
    StreamConnection,
    Unrefreshed,
)
from gateway.connections.cursor import Cursor, read_cursor
from gateway.connections.delivery import Delivery
from gateway.connections.drain import Drain
from gateway.connections.gate import Gate
from gateway.connections.hub import Hub
from gateway.connections.identity import Identity
from gateway.connections.memory import MemoryMark
from gateway.connections.node import GatewayNode, Lifetime
from gateway.connections.registrar import Registrar
from gateway.transports.longpoll import PollSessions
from gateway.transports.sse import SseConnection
from gateway.transports.websocket import V1, WebSocketConnection
from registry.directory import TIMINGS
from tests.unit.gateway.fakes import (
    BOUNDS,
    NODE,
    FakeMemory,
    FakeRegistry,
    FakeWire,
    give,
    identity,
    message,
)

pytestmark = pytest.mark.anyio

#: No heartbeats: these tests are about what comes due beside them.
QUIET = replace(BOUNDS, heartbeat_seconds=1e6)
WALL = 1_900_000_000.0
#: The memory mark, in bytes.
MARK = 1_000_000


class Held:
    """A connection that is open, and what its client got."""

    def __init__(self, connection: StreamConnection) -> None:
        self.connection = connection
        self.wire = FakeWire()
        connection.attach(self.wire)

    @property
    def told(self) -> int | None:
        """The milliseconds after which it was told to reconnect."""
        found = re.search(rb'"after_ms": ?(\d+)', self.wire.sent)
        return int(found[1]) if found else None

    @property
    def open(self) -> bool:
        return self.connection.state is State.OPEN


class Rig:
    """A node whose clocks go as the test wants them to."""

    def __init__(
        self,
        *,
        max_age: float = 0.0,
        jitter: float = 0.0,
        delay: float = 5.0,
        per_address: int = 0,
        per_user: int = 0,
        connections: int = 10_000,
    ) -> None:
        self.now, self.wall = 1_000.0, WALL
        self.tokens: dict[str, Identity] = {}
        self.hub, self.as_of = Hub(), AsOf()
        self.memory = FakeMemory()
        self.registry = FakeRegistry()
        limits = Limits(connections, per_address, per_user, 0)
        self.node = GatewayNode(
            NODE,
            self.hub,
            Registrar(self.registry, NODE, self.hub, timings=TIMINGS),
            Admission(limits, MemoryMark(MARK, self.memory)),
            as_of=self.as_of,
            bounds=QUIET,
            lifetime=Lifetime(max_age, jitter, delay),
            identify=self._identify,
            clock=lambda: self.now,
            wall_clock=lambda: self.wall,
        )
        self.node.registrar.ready.set()

    def _identify(self, token: str) -> Identity:
        if token not in self.tokens:
            raise Unrefreshed("no good token")
        return self.tokens[token]

    def hold(
        self,
        user: str = "alice",
        device: str | None = None,
        *,
        good_for: float = 1e6,
        make: Callable[[Identity, GatewayNode], StreamConnection] = SseConnection,
    ) -> Held:
        held = Held(make(identity(user, device), self.node))
        self.node.hold(held.connection, expires_at=int(self.wall + good_for), address="a")
        held.connection.open(b"")
        held.wire.take()
        return held

    def hold_v1(self, user: str = "alice", *, good_for: float = 1e6) -> Held:
        return self.hold(user, good_for=good_for, make=v1)

    def pass_time(self, seconds: float, *, step: float = TICK_SECONDS) -> None:
        """Let both clocks go on, and the node with them."""
        until = self.now + seconds
        while self.now < until:
            passed = min(step, until - self.now)
            self.now += passed
            self.wall += passed
            self.node.advance()

    def leave(self, window: float = 60.0, *, settle: float = 5.0, rate: float = 0.0) -> Drain:
        drain = Drain(
            began=self.now,
            window_seconds=window,
            settle_seconds=settle,
            reconnect_delay_seconds=5.0,
            rate=rate,
        )
        self.node.begin_drain(drain)
        return drain


def v1(who: Identity, node: GatewayNode) -> StreamConnection:
    return WebSocketConnection(who, node, subprotocol=V1)


def plain(who: Identity, node: GatewayNode) -> StreamConnection:
    return WebSocketConnection(who, node, subprotocol=None)


@pytest.fixture
async def rig() -> Rig:
    return Rig()


# Ages


async def test_clients_are_told_to_reconnect_within_the_jitter_before_their_age() -> None:
    rig = Rig(max_age=1_800.0, jitter=180.0)
    clients = [rig.hold(f"u{number}") for number in range(500)]
    rig.pass_time(1_620.0 - 1)
    assert all(client.open for client in clients)
    told_in_a_minute = []
    for _ in range(3):
        before = sum(client.told is not None for client in clients)
        rig.pass_time(60.0)
        told_in_a_minute.append(sum(client.told is not None for client in clients) - before)
    assert min(told_in_a_minute) > 100
    rig.pass_time(2.0)
    assert all(client.told is not None for client in clients)


async def test_the_delays_that_clients_are_told_are_drawn_for_each() -> None:
    rig = Rig(max_age=100.0, delay=5.0)
    clients = [rig.hold(f"u{number}") for number in range(200)]
    rig.pass_time(101.0)
    delays = [client.told for client in clients if client.told is not None]
    assert len(delays) == 200
    assert len(set(delays)) > 100
    assert 0 <= min(delays) < 500
    assert 4_500 < max(delays) <= 5_000


async def test_who_does_not_go_when_told_is_closed_after_its_delay_and_a_grace() -> None:
    rig = Rig(max_age=100.0)
    client = rig.hold()
    rig.pass_time(100.0)
    assert client.connection.state is State.PARTING
    assert give(client.connection, message())
    assert client.told is not None
    rig.pass_time(client.told / 1_000 + CLOSE_GRACE_SECONDS - 1)
    assert client.connection.state is State.PARTING
    rig.pass_time(2.0)
    assert b"%d" % TOO_OLD.code in client.wire.sent
    assert client.wire.closed
    assert "alice" not in rig.hub


async def test_without_a_maximum_age_nobody_is_told(rig: Rig) -> None:
    client = rig.hold()
    rig.pass_time(10 * 86_400.0, step=60.0)
    assert client.open
    assert client.told is None


@pytest.mark.parametrize(("age", "jitter"), [(100.0, 1_000.0), (10.0, 10.0), (1_800.0, 180.0)])
def test_an_age_is_never_negative_and_never_beyond_the_maximum(age: float, jitter: float) -> None:
    lifetime = Lifetime(age, jitter, 5.0)
    drawn = [lifetime.draw_age() or 0.0 for _ in range(500)]
    assert max(0.0, age - jitter) <= min(drawn)
    assert max(drawn) <= age
    assert len(set(drawn)) > 400


# Tokens


async def test_a_connection_ends_when_its_token_does_and_not_before(rig: Rig) -> None:
    client = rig.hold(good_for=300.0)
    rig.pass_time(299.0)
    assert client.open
    rig.pass_time(2.0)
    assert b"%d" % TOKEN_EXPIRED.code in client.wire.sent
    assert client.wire.closed


@pytest.mark.parametrize("jump", [7_200.0, -7_200.0])
async def test_a_jump_of_the_wall_clock_drops_nobody_but_whose_token_truly_ran_out(
    jump: float,
) -> None:
    rig = Rig(max_age=3_600.0)
    lasting = [rig.hold(f"u{number}", good_for=1_000.0 + number) for number in range(100)]
    ending = [rig.hold(f"e{number}", good_for=200.0) for number in range(10)]
    rig.pass_time(100.0)
    rig.wall += jump
    rig.pass_time(99.0)
    assert all(client.open for client in [*lasting, *ending])
    rig.pass_time(2.0)
    assert not any(client.open for client in ending)
    assert all(client.open for client in lasting)
    rig.wall -= 2 * jump
    rig.pass_time(700.0)
    assert all(client.open for client in lasting)
    rig.pass_time(200.0)
    assert not any(client.open for client in lasting)


async def test_a_token_that_ran_out_on_the_way_ends_its_connection_at_once(rig: Rig) -> None:
    client = rig.hold(good_for=-5.0)
    rig.pass_time(1.0)
    assert not client.open


async def test_a_client_is_asked_for_a_token_half_a_minute_before_it_runs_out(rig: Rig) -> None:
    client = rig.hold_v1(good_for=300.0)
    rig.pass_time(269.0)
    assert client.wire.sent == b""
    rig.pass_time(2.0)
    left = re.search(rb'"control":"expiring","in_ms":(\d+)', client.wire.sent)
    assert left is not None
    assert 29_000 <= int(left[1]) <= 30_000
    client.wire.take()
    rig.pass_time(20.0)
    assert client.wire.sent == b""


async def test_a_refresh_puts_the_end_off_and_asks_again(rig: Rig) -> None:
    client = rig.hold_v1(good_for=300.0)
    rig.pass_time(280.0)
    client.wire.take()
    rig.tokens["new"] = Identity("alice", None, int(rig.wall + 600))
    assert rig.node.refresh(client.connection, "new") == pytest.approx(600.0, abs=1)
    rig.pass_time(500.0)
    assert client.open
    assert client.wire.sent == b""
    rig.pass_time(80.0)
    assert b"expiring" in client.wire.sent
    assert client.open
    rig.pass_time(21.0)
    assert not client.open


async def test_a_refresh_may_bring_the_end_nearer(rig: Rig) -> None:
    client = rig.hold(good_for=1e6)
    rig.tokens["short"] = Identity("alice", None, int(rig.wall + 60))
    rig.node.refresh(client.connection, "short")
    rig.pass_time(62.0)
    assert not client.open


@pytest.mark.parametrize(
    "given", [Identity("mallory", None, 0), Identity("alice", "phone", 0), None], ids=str
)
async def test_a_token_of_anybody_else_refreshes_nothing(rig: Rig, given: Identity | None) -> None:
    client = rig.hold(good_for=100.0)
    if given is not None:
        rig.tokens["other"] = replace(given, expires_at=int(rig.wall + 1e6))
    with pytest.raises(Unrefreshed) as caught:
        rig.node.refresh(client.connection, "other")
    assert "other" not in str(caught.value).split()
    rig.pass_time(101.0)
    assert not client.open


# Disconnects


async def test_a_user_is_disconnected_everywhere_and_nobody_else(rig: Rig) -> None:
    hers = [rig.hold("alice", "phone"), rig.hold("alice", "tablet"), rig.hold("alice")]
    other = rig.hold("bob", "phone")
    assert rig.node.disconnect("alice") == 3
    assert all(b"4003" in client.wire.sent and client.wire.closed for client in hers)
    assert "alice" not in rig.hub
    assert other.open
    assert rig.node.disconnect("alice") == 0


async def test_one_device_is_disconnected_and_no_other(rig: Rig) -> None:
    phones = [rig.hold("alice", "phone"), rig.hold("alice", "phone")]
    others = [rig.hold("alice", "tablet"), rig.hold("alice", None), rig.hold("bob", "phone")]
    assert rig.node.disconnect("alice", device="phone") == 2
    assert not any(client.open for client in phones)
    assert all(client.open for client in others)
    assert rig.node.disconnect("alice", device="none of hers") == 0


async def test_a_client_that_is_parting_is_disconnected_too(rig: Rig) -> None:
    client = rig.hold()
    client.connection.part(TOO_OLD, 5.0)
    assert rig.node.disconnect("alice") == 1
    assert b"4003" in client.wire.sent


async def test_one_connection_is_disconnected_by_its_id_and_no_other(rig: Rig) -> None:
    first, second, third = (rig.hold("alice", "phone") for _ in range(3))
    ids = {client.connection.id for client in (first, second, third)}
    assert len(ids) == 3
    assert rig.node.disconnect("alice", connection_id=second.connection.id) == 1
    assert (first.open, second.open, third.open) == (True, False, True)
    assert rig.node.disconnect("alice", connection_id=second.connection.id) == 0
    assert rig.node.disconnect("bob", connection_id=first.connection.id) == 0
    wrong_device = rig.node.disconnect("alice", device="tablet", connection_id=first.connection.id)
    assert (wrong_device, first.open) == (0, True)


async def test_a_connection_that_is_told_to_reconnect_at_once_goes_on_until_then(rig: Rig) -> None:
    client = rig.hold_v1()
    old = rig.hold("alice", make=plain)
    assert rig.node.disconnect("alice", close=GOING_AWAY) == 2
    assert (client.told, client.connection.state) == (0, State.PARTING)
    assert give(client.connection, message())
    assert b"node is leaving" in old.wire.sent
    rig.pass_time(CLOSE_GRACE_SECONDS + 1)
    assert "alice" not in rig.hub


async def test_a_connection_knows_since_when_it_is_held(rig: Rig) -> None:
    first = rig.hold()
    rig.pass_time(90.0)
    second = rig.hold()
    since = [client.connection.held_since_ms for client in (first, second)]
    assert since == [int(WALL * 1_000), int((WALL + 90) * 1_000)]


# Hand-over at a limit


async def test_a_connection_that_parts_does_not_count_against_its_users_limit() -> None:
    rig = Rig(per_user=1)
    first = rig.hold()
    assert rig.node.user_refusal("alice") is not None
    first.connection.part(TOO_OLD, 5.0)
    assert rig.node.user_refusal("alice") is None
    second = rig.hold()
    assert rig.node.user_refusal("alice") is not None
    first.connection.lost()
    assert rig.node.user_refusal("alice") is not None
    second.connection.lost()
    assert rig.node.user_refusal("alice") is None


async def test_on_a_full_node_one_connection_that_parts_is_one_place_for_its_user() -> None:
    rig = Rig(connections=2, per_address=2)
    other, first = rig.hold("bob"), rig.hold()
    assert rig.node.refuses_everyone
    assert rig.node.refusal("a", "alice") == "full"
    first.connection.part(TOO_OLD, 5.0)
    assert not rig.node.refuses_everyone
    assert rig.node.status == "overloaded"
    assert rig.node.refusal("a") == "full"
    assert rig.node.refusal("a", "bob") == "full"
    assert rig.node.refusal("a", "alice") is None
    rig.hold()
    assert rig.node.refusal("a", "alice") == "full"
    first.connection.lost()
    assert rig.node.refusal("a", "alice") == "full"
    other.connection.lost()
    assert rig.node.refusal("a", "alice") is None
    assert rig.node._parting == {}  # who is gone costs nothing


async def test_as_many_come_as_part_however_many_places_a_full_node_has() -> None:
    rig = Rig(connections=3)
    for held in [rig.hold() for _ in range(3)]:
        held.connection.part(TOO_OLD, 5.0)
    for _ in range(3):
        assert rig.node.refusal("a", "alice") is None
        rig.hold()
    assert rig.node.refusal("a", "alice") == "full"
    assert rig.node.admission.held == 6


async def test_a_place_goes_with_the_connection_that_parts() -> None:
    rig = Rig(connections=1)
    held = rig.hold()
    held.connection.part(TOO_OLD, 5.0)
    held.connection.close(GOING_AWAY)
    assert rig.node.refuses_everyone  # the goodbye is under way
    assert rig.node.refusal("a", "alice") == "full"


async def test_a_node_that_takes_nobody_keeps_no_places() -> None:
    rig = Rig()
    clients = [rig.hold(f"u{number}") for number in range(20)]
    rig.leave(60.0)
    rig.pass_time(52.0)
    assert all(client.told is not None for client in clients)
    assert rig.node._parting == {}


# Faults


def fail() -> bool:
    raise RuntimeError("a fault of its own")


async def test_a_connection_that_fails_as_its_user_is_disconnected_ends_alone(rig: Rig) -> None:
    clients = [rig.hold("alice") for _ in range(3)]
    clients[1].wire.on_write = fail
    assert rig.node.disconnect("alice") == 3
    assert [b"4003" in client.wire.sent for client in clients] == [True, False, True]
    assert clients[1].wire.aborted
    assert "alice" not in rig.hub


async def test_connections_that_fail_while_a_drain_goes_round_end_alone(rig: Rig) -> None:
    clients = [rig.hold(f"u{number}") for number in range(20)]
    for client in clients[::2]:
        client.wire.on_write = fail
    rig.leave(60.0)
    rig.pass_time(52.0)
    assert all(client.wire.aborted for client in clients[::2])
    assert all(client.told is not None for client in clients[1::2])


async def test_connections_that_fail_at_the_end_of_a_drain_end_alone(rig: Rig) -> None:
    clients = [rig.hold(f"u{number}") for number in range(20)]
    for client in clients[::2]:
        client.wire.on_write = fail
    rig.leave(0.0)
    assert len(rig.hub) == 0
    assert all(client.wire.aborted for client in clients[::2])
    assert all(b"%d" % GOING_AWAY.code in client.wire.sent for client in clients[1::2])


# Leaving


async def test_a_drain_tells_everybody_in_paced_steps(rig: Rig) -> None:
    clients = [rig.hold(f"u{number}") for number in range(920)]
    drain = rig.leave(60.0)
    steps = []
    while not drain.has_ended(rig.now + 1):
        before = sum(client.told is not None for client in clients)
        rig.pass_time(1.0)
        steps.append(sum(client.told is not None for client in clients) - before)
    assert sum(steps) == len(clients)
    assert sum(steps[:4]) == 0
    assert max(steps) <= 920 / 46 + 1
    assert sum(steps[52:]) == 0  # the last one told has its delay and a grace


async def test_while_it_settles_new_clients_are_taken_and_readyz_says_no(rig: Rig) -> None:
    assert (rig.node.status, rig.node.takes_new) == ("ready", True)
    rig.leave(60.0)
    assert (rig.node.status, rig.node.takes_new) == ("draining", True)
    late = rig.hold("late")
    rig.pass_time(5.0)
    assert not rig.node.takes_new
    rig.pass_time(47.0)
    assert late.told is not None


async def test_each_client_is_told_once(rig: Rig) -> None:
    clients = [rig.hold(f"u{number}") for number in range(50)]
    rig.leave(60.0)
    rig.pass_time(55.0)
    assert [client.wire.sent.count(b"pushgate.reconnect") for client in clients] == [1] * 50


async def test_a_client_without_controls_is_closed_in_its_turn(rig: Rig) -> None:
    clients = [rig.hold(f"u{number}", make=plain) for number in range(20)]
    rig.leave(60.0)
    rig.pass_time(28.0)
    closed = sum(not client.open for client in clients)
    assert 5 < closed < 15
    rig.pass_time(24.0)
    assert not any(client.open for client in clients)


async def test_parked_polls_leave_in_their_turn(rig: Rig) -> None:
    sessions = PollSessions(soon=lambda call: call())
    opened = [sessions.open(identity(f"u{number}"), rig.node) for number in range(10)]
    for session in opened:
        rig.node.hold(session, expires_at=int(rig.wall + 1e6), address="a")
    rig.leave(30.0)
    rig.pass_time(30.0)
    assert {session.state for session in opened} == {State.CLOSED}
    assert rig.node.empty.is_set()


async def test_who_refuses_to_go_is_closed_at_the_end_of_the_window(rig: Rig) -> None:
    clients = [rig.hold(f"u{number}") for number in range(20)]
    rig.leave(20.0)
    rig.pass_time(18.0)
    assert len(rig.hub) > 0
    rig.pass_time(2.25)
    assert len(rig.hub) == 0
    assert all(b"%d" % GOING_AWAY.code in client.wire.sent for client in clients)


async def test_in_haste_everybody_is_closed_at_once(rig: Rig) -> None:
    clients = [rig.hold(f"u{number}") for number in range(20)]
    drain = rig.leave(600.0)
    rig.pass_time(8.0)
    assert len(rig.hub) == 20
    drain.hasten(rig.now)
    rig.node.begin_drain(drain)
    assert len(rig.hub) == 0
    assert all(client.wire.closed for client in clients)


async def test_no_delay_reaches_beyond_the_window(rig: Rig) -> None:
    clients = [rig.hold(f"u{number}") for number in range(50)]
    rig.leave(24.0)
    rig.pass_time(19.0)
    delays = [client.told for client in clients]
    assert max(delay for delay in delays if delay is not None) <= 2_000


async def test_it_is_empty_when_the_last_socket_has_ended(rig: Rig) -> None:
    assert rig.node.empty.is_set()
    first, second = rig.hold(), rig.hold("bob")
    assert not rig.node.empty.is_set()
    first.connection.close(GOING_AWAY)
    first.connection.lost()
    second.connection.close(GOING_AWAY)
    assert not rig.node.empty.is_set()  # a goodbye is under way
    second.connection.lost()
    assert rig.node.empty.is_set()


async def test_addresses_are_counted_from_the_beginning_to_the_end_of_a_socket() -> None:
    rig = Rig(per_address=1)
    assert rig.node.refusal("a") is None
    client = rig.hold()
    assert rig.node.refusal("a") is not None
    client.connection.close(GOING_AWAY)
    assert rig.node.refusal("a") is not None
    client.connection.lost()
    assert rig.node.refusal("a") is None


async def test_it_is_not_ready_before_its_registry_was_there(rig: Rig) -> None:
    rig.node.registrar.ready.clear()
    assert (rig.node.status, rig.node.takes_new) == ("waiting for the registry", False)


async def test_the_hub_knows_of_a_shortage_of_memory_at_once() -> None:
    rig = Rig()
    rig.memory.held = MARK + 1
    rig.node.pushed(2 * MARK)
    shortage = [rig.hub.is_short_of_memory, rig.node.refusal("a")]
    rig.memory.held = 0
    rig.pass_time(2.0)
    assert shortage == [True, "short of memory"]
    assert [rig.hub.is_short_of_memory, rig.node.refusal("a")] == [False, None]


# Cursors


def at_time(rig: Rig, ms: int) -> None:
    rig.as_of.held(ms, (), at=rig.now)


def placed(rig: Rig, offset: int) -> Delivery:
    position = f"push-0-{offset}"
    return Delivery(b"x", message_id=position, position=position, as_of=rig.as_of.text)


def test_before_the_first_lease_there_is_no_cursor() -> None:
    rig = Rig()
    assert rig.node.cursor(rig.hold().connection) == ""


def test_the_cursor_has_the_nodes_time_and_the_last_messages_position() -> None:
    rig = Rig()
    at_time(rig, 1_000_000)
    connection = rig.hold().connection
    assert read_cursor(rig.node.cursor(connection)) == Cursor(1_000_000)
    rig.hub.deliver([(placed(rig, 7), "alice", None)])
    at_time(rig, 1_090_000)
    assert read_cursor(rig.node.cursor(connection)) == Cursor(1_090_000, {("push", 0): 7})


def test_a_position_stays_for_as_long_as_its_message_is_in_the_window() -> None:
    rig = Rig()
    at_time(rig, 1_000_000)
    connection = rig.hold().connection
    rig.hub.deliver([(placed(rig, 7), "alice", None)])
    at_time(rig, 1_000_000 + int(BOUNDS.resume_seconds * 1_000))
    assert read_cursor(rig.node.cursor(connection)) == Cursor(rig.as_of.ms)
    assert connection.cursor is None


def test_a_message_that_is_in_no_log_leaves_the_position() -> None:
    rig = Rig()
    at_time(rig, 1_000_000)
    connection = rig.hold().connection
    pushed = Delivery(b"x", message_id="m", as_of=rig.as_of.text)
    for delivery in (placed(rig, 7), pushed):
        rig.hub.deliver([(delivery, "alice", None)])
    assert read_cursor(rig.node.cursor(connection)) == Cursor(1_000_000, {("push", 0): 7})


def test_behind_a_screen_the_screen_says_what_the_cursor_is() -> None:
    rig = Rig()
    at_time(rig, 1_000_000)
    connection = rig.hold().connection
    gate = Gate(Cursor(5, {("other", 2): 3}), most_bytes=1)
    rig.hub.put_screen(connection, gate)
    assert read_cursor(rig.node.cursor(connection)) == Cursor(5, {("other", 2): 3})
    rig.hub.put_screen(connection, gate.replayed({}))
    assert read_cursor(rig.node.cursor(connection)) == Cursor(1_000_000, {("other", 2): 3})


@pytest.mark.parametrize("has_room", [True, False])
def test_for_a_client_without_cursors_none_is_made(has_room: bool) -> None:
    rig = Rig()
    at_time(rig, 1_000_000)
    plain = rig.hold(make=lambda who, node: WebSocketConnection(who, node, subprotocol=None))
    plain.wire.full = not has_room
    delivery = placed(rig, 7)
    rig.hub.deliver([(delivery, "alice", None)])
    assert plain.connection.cursor == NO_CURSOR
    assert delivery._cursor is None
    assert read_cursor(rig.node.cursor(plain.connection)) == Cursor(1_000_000)
