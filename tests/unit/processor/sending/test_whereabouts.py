"""Where users are: what is remembered of it, and what is not, since a user has come elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from processor.sending.whereabouts import Whereabouts
from registry.directory import Node, RegistryUnavailable
from tests.support.clients import eventually
from tests.support.clock import Clock
from tests.support.dispatching import A, B, FakeRegistry, turns

pytestmark = pytest.mark.anyio


class SlowRegistry(FakeRegistry):
    """Answers what was true when it was asked, once a test lets it."""

    def __init__(self, where: dict[str, tuple[Node, ...] | None]) -> None:
        super().__init__(where)
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.fails_late = False

    async def lookup(self, users: Sequence[str]) -> list[tuple[Node, ...] | None]:
        found = await super().lookup(users)
        await self.go_on.wait()
        if self.fails_late:
            raise RegistryUnavailable("as the test wants it")
        return found


def remembering(registry: FakeRegistry) -> Whereabouts:
    return Whereabouts(registry, cache_seconds=60.0, clock=Clock(100.0))


async def test_a_user_who_was_looked_up_lately_is_not_looked_up_again() -> None:
    registry = SlowRegistry({"alice": (A,)})
    whereabouts = remembering(registry)
    for _ in range(2):
        assert await whereabouts.look_up(["alice"]) == [(A,)]
    assert registry.lookups == [["alice"]]


async def test_a_user_who_is_forgotten_is_looked_up_again() -> None:
    registry = SlowRegistry({"alice": (A,), "bob": (A,)})
    whereabouts = remembering(registry)
    await whereabouts.look_up(["alice", "bob"])
    registry.answer({"alice": (B,), "bob": (B,)})
    whereabouts.forget("alice")
    assert await whereabouts.look_up(["alice", "bob"]) == [(B,), (A,)]


async def test_what_a_look_up_finds_that_began_before_is_not_remembered() -> None:
    registry = SlowRegistry({"alice": (A,), "bob": (A,)})
    whereabouts = remembering(registry)
    registry.go_on.clear()
    looking = asyncio.create_task(whereabouts.look_up(["alice", "bob"]))
    await turns(5)
    whereabouts.forget("alice")
    registry.answer({"alice": (A, B), "bob": (A, B)})
    registry.go_on.set()
    assert await looking == [(A,), (A,)]
    assert await whereabouts.look_up(["alice", "bob"]) == [(A, B), (A,)]


async def test_nor_for_when_the_registry_is_away() -> None:
    registry = SlowRegistry({"alice": (A,), "bob": (A,)})
    whereabouts = Whereabouts(registry, clock=Clock(100.0))
    registry.go_on.clear()
    looking = asyncio.create_task(whereabouts.look_up(["alice", "bob"]))
    await turns(5)
    whereabouts.forget("alice")
    registry.go_on.set()
    await looking
    registry.failures = 100
    assert await whereabouts.look_up(["alice", "bob"]) == [None, (A,)]
    await whereabouts.close()


async def test_a_user_who_was_forgotten_once_is_remembered_from_the_next_look_up_on() -> None:
    registry = SlowRegistry({"alice": (A,)})
    whereabouts = remembering(registry)
    registry.go_on.clear()
    looking = asyncio.create_task(whereabouts.look_up(["alice"]))
    await turns(5)
    whereabouts.forget("alice")
    registry.go_on.set()
    await looking
    await whereabouts.look_up(["alice"])
    await whereabouts.look_up(["alice"])
    assert registry.lookups == [["alice"]] * 2


async def test_after_a_look_up_that_failed_a_forgotten_user_is_remembered_again() -> None:
    registry = SlowRegistry({"alice": (A,)})
    registry.fails_late = True
    whereabouts = remembering(registry)
    registry.go_on.clear()
    looking = asyncio.create_task(whereabouts.look_up(["alice"]))
    await turns(5)
    whereabouts.forget("alice")
    registry.go_on.set()
    assert await looking == [None]
    registry.fails_late = False
    await eventually(lambda: whereabouts.reachable, "the registry is back")
    for _ in range(2):
        assert await whereabouts.look_up(["alice"]) == [(A,)]
    assert registry.lookups == [["alice"]] * 2
