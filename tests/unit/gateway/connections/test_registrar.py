"""The registrar keeps the registry in step with the hub, whatever the registry does meanwhile."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from gateway import metrics
from gateway.connections.hub import Hub
from gateway.connections.registrar import Registrar
from registry.directory import Lease, Node, Processors, Registry, RegistryUnavailable, Timings
from tests.unit.gateway.fakes import NODE, FakeConnection, FakeRegistry, identity

pytestmark = pytest.mark.anyio

HEARTBEAT_SECONDS = 0.02


class Rig:
    def __init__(self, *, reassertion_seconds: float = 600.0) -> None:
        self.registry = FakeRegistry()
        protocol: Registry = self.registry
        self.hub = Hub()
        self.registrar = Registrar(
            protocol,
            NODE,
            self.hub,
            timings=Timings(
                heartbeat_seconds=HEARTBEAT_SECONDS, reassertion_seconds=reassertion_seconds
            ),
        )

    def connect(self, *users: str) -> list[FakeConnection]:
        connections = [FakeConnection(identity(user)) for user in users]
        for connection in connections:
            if self.hub.add(connection):
                self.registrar.changed(connection.user)
        return connections

    def disconnect(self, *connections: FakeConnection) -> None:
        for connection in connections:
            if self.hub.remove(connection):
                self.registrar.changed(connection.user)

    async def written(self, user: str) -> bool:
        return await self.registrar.written(user, timeout_seconds=5.0)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.registrar.run())
        try:
            async with asyncio.timeout(5):
                await self.registrar.ready.wait()
            yield
            assert not task.done(), "the registrar gave up"
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 5.0
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.002)


@pytest.fixture
def rig() -> Rig:
    return Rig()


async def test_it_claims_its_name_before_it_is_ready(rig: Rig) -> None:
    assert not rig.registrar.ready.is_set()
    async with rig.running():
        assert rig.registry.claims == 1
        assert rig.registry.leased_by == NODE


async def test_it_claims_until_the_registry_answers(rig: Rig) -> None:
    rig.registry.available = False
    task = asyncio.create_task(rig.running().__aenter__())
    await asyncio.sleep(0)
    assert not rig.registrar.ready.is_set()
    rig.registry.available = True
    await task
    assert rig.registrar.ready.is_set()


async def test_a_user_who_connects_is_registered(rig: Rig) -> None:
    async with rig.running():
        rig.connect("alice")
        assert await rig.written("alice")
        assert rig.registry.users == {"alice"}


async def test_a_user_whose_last_connection_ends_is_unregistered(rig: Rig) -> None:
    async with rig.running():
        first, second = rig.connect("alice", "alice")
        await rig.written("alice")
        rig.disconnect(first)
        await rig.written("alice")
        assert rig.registry.users == {"alice"}
        rig.disconnect(second)
        await rig.written("alice")
        assert rig.registry.users == set()


async def test_what_changes_during_a_write_goes_together_with_the_next(rig: Rig) -> None:
    async with rig.running():
        rig.registry.open.clear()
        rig.connect("first")
        await until(lambda: rig.registry.writing)
        rig.connect("a", "b", "c")
        rig.registry.open.set()
        await rig.written("c")
        assert rig.registry.writes == [(["first"], []), (["a", "b", "c"], [])]


async def test_users_who_follow_a_write_closely_share_the_next(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.connections.registrar._BETWEEN_WRITES_SECONDS", 1.0)
    async with rig.running():
        rig.connect("alone")
        assert await rig.written("alone"), "at once: the write before is not close"
        for user in ("a", "b", "c"):
            rig.connect(user)
            for _ in range(20):
                await asyncio.sleep(0)
        assert await rig.written("c")
    assert rig.registry.writes == [(["alone"], []), (["a", "b", "c"], [])]


async def test_a_user_who_comes_and_goes_meanwhile_is_written_once_as_they_are(rig: Rig) -> None:
    async with rig.running():
        rig.registry.open.clear()
        rig.connect("first")
        await until(lambda: rig.registry.writing)
        for _ in range(3):
            rig.disconnect(*rig.connect("flip"))
            rig.disconnect(*rig.connect("flap"))
        rig.connect("flip")
        rig.registry.open.set()
        await rig.written("flip")
        assert rig.registry.writes[1:] == [(["flip"], ["flap"])]


async def test_a_user_who_leaves_while_being_written_is_unregistered_after(rig: Rig) -> None:
    async with rig.running():
        rig.registry.open.clear()
        (alice,) = rig.connect("alice")
        await until(lambda: rig.registry.writing)
        rig.disconnect(alice)
        rig.registry.open.set()
        await rig.written("alice")
        assert rig.registry.users == set()
        assert rig.registry.writes == [(["alice"], []), ([], ["alice"])]


async def test_a_storm_is_written_in_bounded_batches_and_whole(rig: Rig) -> None:
    users = [f"u{number}" for number in range(3_500)]
    async with rig.running():
        rig.connect(*users)
        await rig.written(users[-1])
        assert rig.registry.users == set(users)
        assert max(len(here) for here, _ in rig.registry.writes) <= 1_000


async def test_written_waits_for_the_write(rig: Rig) -> None:
    async with rig.running():
        rig.registry.open.clear()
        rig.connect("alice")
        waiting = asyncio.create_task(rig.written("alice"))
        await until(lambda: rig.registry.writing)
        assert not waiting.done()
        rig.registry.open.set()
        assert await waiting


async def test_written_waits_for_the_change_that_came_during_a_write(rig: Rig) -> None:
    async with rig.running():
        rig.registry.permits = asyncio.Semaphore(0)
        (alice,) = rig.connect("alice")
        await until(lambda: rig.registry.writing)
        rig.disconnect(alice)
        waiting = asyncio.create_task(rig.written("alice"))
        rig.registry.permits.release()
        await until(lambda: len(rig.registry.writes) == 1 and rig.registry.writing)
        assert not (await asyncio.wait((waiting,), timeout=0.02))[0]
        rig.registry.permits.release()
        assert await waiting
        assert rig.registry.writes[-1] == ([], ["alice"])


async def test_written_gives_up_in_time_and_the_write_goes_on(rig: Rig) -> None:
    async with rig.running():
        rig.registry.open.clear()
        rig.connect("alice")
        assert not await rig.registrar.written("alice", timeout_seconds=0.01)
        rig.registry.open.set()
        assert await rig.written("alice")
        assert rig.registry.users == {"alice"}


async def test_any_number_may_wait_for_one_user_and_one_who_leaves_disturbs_nobody(
    rig: Rig,
) -> None:
    async with rig.running():
        rig.registry.open.clear()
        rig.connect("alice")
        waiting = [asyncio.create_task(rig.written("alice")) for _ in range(3)]
        await until(lambda: rig.registry.writing)
        waiting[0].cancel()
        await asyncio.sleep(0)
        rig.registry.open.set()
        assert await asyncio.gather(*waiting[1:]) == [True, True]


async def test_written_is_at_once_for_a_user_who_did_not_change(rig: Rig) -> None:
    async with rig.running():
        assert await rig.registrar.written("nobody", timeout_seconds=0)


async def test_a_write_that_fails_is_put_back_and_tried_again(rig: Rig) -> None:
    async with rig.running():
        rig.registry.available = False
        (alice, _) = rig.connect("alice", "bob")
        assert not await rig.registrar.written("alice", timeout_seconds=0.05)
        rig.disconnect(alice)
        rig.connect("carol")
        rig.registry.available = True
        await rig.written("alice")
        await rig.written("carol")
        assert rig.registry.users == {"bob", "carol"}


#: More than are asserted again as a matter of course while a test runs.
MANY = [f"u{number}" for number in range(200)]


async def test_a_lapsed_lease_asserts_every_user_again(rig: Rig) -> None:
    async with rig.running():
        rig.connect(*MANY)
        await rig.written(MANY[-1])
        times = reasserted()
        rig.registry.users.clear()
        rig.registry.leased_by = None
        await until(lambda: rig.registry.users == set(MANY))
        assert reasserted() == times + 1


def reasserted() -> float:
    lines = metrics.exposition().decode().splitlines()
    (line,) = (
        line for line in lines if line.startswith("pushgate_gateway_registry_reasserted_total ")
    )
    return float(line.split()[1])


async def test_a_registry_that_is_back_hears_of_every_user_again(rig: Rig) -> None:
    async with rig.running():
        rig.connect(*MANY)
        await rig.written(MANY[-1])
        rig.registry.available = False
        rig.connect("carol")
        assert not await rig.registrar.written("carol", timeout_seconds=0.05)
        rig.registry.users.clear()  # what was carried out late went over what is true
        rig.registry.available = True
        await until(lambda: rig.registry.users == {*MANY, "carol"})


#: More than one write has.
CROWD = [f"u{number}" for number in range(5_000)]


@asynccontextmanager
async def after_an_outage(rig: Rig) -> AsyncIterator[asyncio.Semaphore]:
    """Have CROWD connected, and to be asserted again; each write now takes a permit."""
    async with rig.running():
        rig.connect(*CROWD)
        await rig.written(CROWD[-1])
        rig.registry.available = False
        rig.connect("carol")
        assert not await rig.registrar.written("carol", timeout_seconds=0.05)
        times = reasserted()
        rig.registry.permits = asyncio.Semaphore(0)
        rig.registry.available = True
        await until(lambda: reasserted() > times and rig.registry.writing)
        rig.registry.writes.clear()
        yield rig.registry.permits


@pytest.mark.parametrize("newcomer", ["dave", CROWD[-1]], ids=["new", "another-device"])
async def test_after_an_outage_a_newcomer_is_written_before_all_are_asserted_again(
    rig: Rig, newcomer: str
) -> None:
    async with after_an_outage(rig) as permits:
        rig.connect(newcomer)
        waiting = asyncio.create_task(rig.written(newcomer))
        for _ in range(2):  # the write that is in flight, and the next
            await asyncio.sleep(0)
            permits.release()
        assert await waiting
        assert len(rig.registry.writes) == 2
        assert newcomer in rig.registry.writes[1][0]
        assert sum(len(here) for here, _ in rig.registry.writes) < len(CROWD)
        rig.registry.permits = None
        permits.release()
        rig.registry.users.discard(CROWD[4_000])  # its turn is still to come
        await until(lambda: rig.registry.users >= {*CROWD, "carol"})


async def test_a_storm_of_newcomers_does_not_put_the_re_assertion_off(rig: Rig) -> None:
    async with after_an_outage(rig) as permits:
        storm = [f"new-{number}" for number in range(3_000)]
        rig.connect(*storm)
        for _ in range(3):
            permits.release()
        await until(lambda: len(rig.registry.writes) == 3)
        for here, _ in rig.registry.writes[1:]:
            assert len(here) == 1_000
            assert 0 < len(set(here) - set(storm)) < 500


async def test_a_name_that_another_has_taken_is_not_fought_for(rig: Rig) -> None:
    async with rig.running():
        rig.connect("alice")
        await rig.written("alice")
        writes = len(rig.registry.writes)
        rig.registry.taken_by = Node("gw-a", "e2", "127.0.0.1:9")
        beats = rig.registry.heartbeats
        await until(lambda: rig.registry.heartbeats > beats + 3)
        assert rig.registry.claims == 1
        assert len(rig.registry.writes) == writes


async def test_a_name_that_is_taken_is_told_once_and_had_again_with_every_user(rig: Rig) -> None:
    async with rig.running():
        rig.connect(*MANY)
        await rig.written(MANY[-1])
        with capture_logs() as logs:
            rig.registry.taken_by = Node("gw-a", "e2", "127.0.0.1:9")
            await until(name_is_taken)
            beats = rig.registry.heartbeats
            await until(lambda: rig.registry.heartbeats > beats + 3)
            assert [entry["log_level"] for entry in logs] == ["error"]
        rig.registry.users.clear()
        rig.registry.leased_by, rig.registry.taken_by = rig.registry.taken_by, None
        await until(lambda: rig.registry.users == set(MANY))
        assert not name_is_taken()


def name_is_taken() -> bool:
    return b"pushgate_gateway_registry_name_taken 1.0" in metrics.exposition()


async def test_every_user_is_asserted_again_as_time_passes() -> None:
    rig = Rig(reassertion_seconds=1.0)
    async with rig.running():
        rig.connect(*(f"u{number}" for number in range(10)))
        await rig.written("u9")
        # Paced by the second, from the users there are when a round begins.
        rig.registry.users.clear()
        await until(lambda: len(rig.registry.users) == 10)


async def test_leaving_writes_what_is_left_and_gives_up_the_lease(rig: Rig) -> None:
    async with rig.running():
        connections = rig.connect("alice", "bob")
        await rig.written("bob")
    rig.disconnect(*connections)
    await rig.registrar.retire(timeout_seconds=1.0)
    assert rig.registry.users == set()
    assert rig.registry.leased_by is None


async def test_leaving_without_a_registry_is_bounded_and_no_error(rig: Rig) -> None:
    rig.connect("alice")
    rig.registry.available = False
    await rig.registrar.retire(timeout_seconds=1.0)
    rig.registry.available = True
    rig.registry.open.clear()
    began = time.monotonic()
    await rig.registrar.retire(timeout_seconds=0.05)
    assert time.monotonic() - began < 1.0


async def test_leaving_in_the_middle_of_a_write_loses_no_change(rig: Rig) -> None:
    async with rig.running():
        rig.registry.open.clear()
        rig.connect("alice")
        await until(lambda: rig.registry.writing)
    rig.registry.open.set()
    await rig.registrar.retire(timeout_seconds=1.0)
    assert rig.registry.users == {"alice"}
    assert rig.registry.leased_by is None


# Clients that resume


class ResumeRig(Rig):
    """A registrar that tells of leases; and what it told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[Processors, float]] = []
        self.registrar = Registrar(
            self.registry,
            NODE,
            self.hub,
            timings=Timings(heartbeat_seconds=HEARTBEAT_SECONDS),
            held=lambda processors, away_seconds: self.told.append((processors, away_seconds)),
        )


async def test_each_heartbeat_with_the_lease_tells_a_time_in_front_of_it_and_the_processors() -> (
    None
):
    rig = ResumeRig()
    rig.registry.live_processors = frozenset({"p1", "p2"})
    async with rig.running():
        await until(lambda: len(rig.told) > 3)
    times = [processors.now_ms for processors, _ in rig.told]
    assert times == sorted(set(times))
    assert times[-1] <= rig.registry.now_ms
    assert {processors.names for processors, _ in rig.told} == {frozenset({"p1", "p2"})}
    assert rig.told[0][1] == 0.0, "at the start nothing was away"
    assert all(HEARTBEAT_SECONDS / 2 < away < 5.0 for _, away in rig.told[1:])


async def test_while_another_has_the_name_no_time_is_told_and_afterwards_how_long_that_was() -> (
    None
):
    rig = ResumeRig()
    async with rig.running():
        await until(lambda: len(rig.told) > 1)
        rig.registry.taken_by = Node("gw-a", "e2", "127.0.0.1:9")
        beats = rig.registry.heartbeats
        await until(lambda: rig.registry.heartbeats > beats + 1)
        told = len(rig.told)
        await until(lambda: rig.registry.heartbeats > beats + 6)
        assert len(rig.told) == told
        rig.registry.taken_by = None
        await until(lambda: len(rig.told) > told)
        assert rig.told[told][1] > 4 * HEARTBEAT_SECONDS


async def test_a_slow_heartbeat_may_have_come_when_it_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = ResumeRig()
    beat = rig.registry.heartbeat

    async def slowly(node: Node, *, claim: bool = False) -> Lease:
        await asyncio.sleep(0.2)
        monkeypatch.setattr(rig.registry, "heartbeat", beat)
        return await beat(node, claim=claim)

    async with rig.running():
        await until(lambda: len(rig.told) > 1)
        monkeypatch.setattr(rig.registry, "heartbeat", slowly)
        before = len(rig.told)
        await until(lambda: len(rig.told) > before)
    assert rig.told[before][1] >= 0.2


async def test_how_long_the_lease_was_away_is_told_though_the_processors_cannot_be_read_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A registry that comes back may refuse the first command, and take the second."""
    rig = ResumeRig()
    read = rig.registry.processors

    async def refused() -> Processors:
        raise RegistryUnavailable("as the test wants it")

    async with rig.running():
        await until(lambda: len(rig.told) > 1)
        monkeypatch.setattr(rig.registry, "processors", refused)
        rig.registrar._held_at -= 100.0
        beats, told = rig.registry.heartbeats, len(rig.told)
        await until(lambda: rig.registry.heartbeats > beats + 3)
        assert len(rig.told) == told
        monkeypatch.setattr(rig.registry, "processors", read)
        await until(lambda: len(rig.told) > told + 1)
    assert [seconds > 99.0 for _, seconds in rig.told[told : told + 2]] == [True, False]


async def test_a_lease_is_kept_though_the_processors_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An account of a gateway may not be allowed to."""
    rig = ResumeRig()

    async def refused() -> Processors:
        raise RegistryUnavailable("as the test wants it")

    monkeypatch.setattr(rig.registry, "processors", refused)
    async with rig.running():
        await until(lambda: rig.registry.heartbeats > 3)
        rig.connect("alice")
        assert await rig.registrar.findable("alice", timeout_seconds=5.0)
    assert rig.told == []


async def test_a_user_is_found_once_written_and_for_as_long_as_the_lease_is_held(
    rig: Rig,
) -> None:
    rig.connect("alice")
    async with rig.running():
        rig.registry.open.clear()
        rig.connect("bob")
        assert not await rig.registrar.findable("bob", timeout_seconds=0.02)
        rig.registry.open.set()
        assert await rig.registrar.findable("bob", timeout_seconds=5.0)
        rig.registry.taken_by = Node("gw-a", "e2", "127.0.0.1:9")
        await until(name_is_taken)
        assert not await rig.registrar.findable("bob", timeout_seconds=5.0)
        rig.registry.taken_by = None
        await until(lambda: not name_is_taken())
        assert await rig.registrar.findable("bob", timeout_seconds=5.0)


async def test_a_user_is_not_found_where_the_lease_may_have_lapsed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not await rig.registrar.findable("alice", timeout_seconds=1.0), "before the first lease"
    async with rig.running():
        rig.connect("alice")
        assert await rig.registrar.findable("alice", timeout_seconds=5.0)
        rig.registrar._held_at -= rig.registrar._timings.lease_seconds
        rig.registry.available = False  # no heartbeat brings it back
        assert not await rig.registrar.findable("alice", timeout_seconds=5.0)


async def test_a_node_that_is_taken_over_is_ready_and_claims_and_writes_nothing(rig: Rig) -> None:
    rig.registry.leased_by = NODE
    rig.registrar.go_on(1.0)
    rig.hub.add(FakeConnection(identity("alice")))
    assert rig.registrar.ready.is_set()
    async with rig.running():
        await until(lambda: rig.registry.heartbeats >= 2)
        assert rig.registrar.is_findable("alice")
        age_seconds = rig.registrar.lease_age_seconds
        assert age_seconds is not None
        assert 0 <= age_seconds < 1.0
    assert rig.registry.claims == 0
    assert rig.registry.writes == []


async def test_a_node_that_is_taken_over_without_a_registry_is_ready_all_the_same(
    rig: Rig,
) -> None:
    rig.registry.available = False
    rig.registrar.go_on(None)
    assert rig.registrar.lease_age_seconds is None
    async with rig.running():
        assert not rig.registrar.is_findable("alice")
        rig.registry.available = True
        await until(lambda: rig.registry.heartbeats)


async def test_a_user_of_the_next_process_is_not_written_as_gone(rig: Rig) -> None:
    async with rig.running():
        alice, bob = rig.connect("alice", "bob")
        assert await rig.written("bob")
        rig.registrar.elsewhere = {"alice"}
        rig.disconnect(alice, bob)
        assert await rig.written("bob")
        assert rig.registry.users == {"alice"}
        rig.connect("alice")  # comes back here, to be passed later
        assert await rig.written("alice")
        assert rig.registry.users == {"alice"}


async def test_a_change_that_is_left_to_the_next_process_is_told_and_not_written(rig: Rig) -> None:
    async with rig.running():
        rig.registry.open.clear()
        rig.connect("alice")
        await until(lambda: rig.registrar.is_writing("alice"))
        assert rig.registrar.is_writing_any
        rig.connect("bob", "carol")
        assert rig.registrar.unwritten() == ["bob", "carol", "alice"]
        assert rig.registrar.leave_to_next("bob")
        assert not rig.registrar.leave_to_next("dora")
        rig.registry.open.set()
        assert await rig.written("carol")
        assert rig.registry.users == {"alice", "carol"}
        assert rig.registrar.unwritten() == []
