"""Fault 12: users who flip between two nodes while their old connections close late.

The registry holds the newest session for all: real gateways, a real Valkey, 500 users.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Final

import pytest

from registry.redis_store import RedisRegistry
from tests.support.clients import (
    Pusher,
    Wire,
    bearer,
    close_frame,
    connect,
    eventually,
    open_sse,
    open_websocket,
    pusher_to,
)
from tests.support.processes import GatewayProcess
from tests.system.conftest import StartGateway

pytestmark = pytest.mark.anyio

USERS: Final = 500
FLIPS: Final = 6
#: Users whose handshakes are under way at once: who waits for a turn is no part of the fault.
AT_ONCE: Final = 100
#: For the last closes to be noticed, on a busy machine.
SETTLE_SECONDS: Final = 20.0
#: A frozen node's lease (15 s) outlives this: it stays a live one.
FROZEN_SECONDS: Final = 10.0


class Flipper:
    """A user with a newest session, and older ones whose ends the gateways have not seen."""

    def __init__(self, user: str, gateways: Sequence[GatewayProcess]) -> None:
        self.user = user
        self.at = 0  # the node of the newest session
        self._gateways = gateways
        self._wires: list[Wire] = []

    async def move(self, at: int, *, closing: str = "later") -> None:
        """Open a session on node `at`; close the others beside it, after it, or later."""
        wire = await Wire.open(self._gateways[at].port)
        self._wires.append(wire)
        if closing == "beside":
            await asyncio.gather(self._shake_hands(wire), self.close_old())
        else:
            await self._shake_hands(wire)
        self.at = at
        if closing == "after":
            await self.close_old()

    async def flip(self) -> None:
        """Go to the other node and back, a few times."""
        for _ in range(FLIPS):
            await self.move(1 - self.at, closing=random.choice(("beside", "after", "later")))

    async def close_old(self) -> None:
        """Close all but the newest session; half of them without a word."""
        old, self._wires = self._wires[:-1], self._wires[-1:]
        for wire in old:
            if random.random() < 0.5:
                with contextlib.suppress(ConnectionError):
                    await wire.send(close_frame(1000))
            await wire.close()

    async def close(self) -> None:
        """Close all sessions. Harmless when repeated."""
        wires, self._wires = self._wires, []
        for wire in wires:
            await wire.close()

    async def _shake_hands(self, wire: Wire) -> None:
        if random.random() < 0.5:
            await open_websocket(wire, bearer(self.user))
        else:
            await open_sse(wire, bearer(self.user))


class Scene:
    """Two gateways, their users, and the registry as a processor sees it."""

    def __init__(
        self, gateways: Sequence[GatewayProcess], registry: RedisRegistry, user: str
    ) -> None:
        self.gateways = gateways
        self.flippers = [Flipper(f"{user}-{number}", gateways) for number in range(USERS)]
        self.pushers: list[Pusher] = []
        self._registry = registry
        self._rounds = 0

    async def each(
        self, act: Callable[[Flipper], Awaitable[None]], *, at_once: int = AT_ONCE
    ) -> None:
        """Let every user act, in no order."""
        turns = asyncio.Semaphore(at_once)

        async def in_turn(flipper: Flipper) -> None:
            async with turns:
                await act(flipper)

        async with asyncio.TaskGroup() as tasks:
            for flipper in random.sample(self.flippers, len(self.flippers)):
                tasks.create_task(in_turn(flipper))

    async def settle(self) -> None:
        """Return once nodes hold the newest sessions alone and have written all that they know."""

        async def newest_alone() -> bool:
            return sum([await pusher.connections() for pusher in self.pushers]) == USERS

        await eventually(newest_alone, "the ends are seen", timeout_seconds=SETTLE_SECONDS)
        # What a node knows is written in its order: after whoever comes now, nothing is left.
        for gateway in self.gateways:
            self._rounds += 1
            last = f"last-{self._rounds}-of-{self.flippers[0].user}"
            async with connect("ws-plain", gateway.port, last):
                await eventually(lambda: self._is_at(last, gateway), f"{last} is written")  # noqa: B023

    async def astray(self) -> list[str]:
        """Give the users whom a look-up does not find on the node of their newest session alone."""
        found = await self._look_up([flipper.user for flipper in self.flippers])
        return [
            flipper.user
            for flipper, names in zip(self.flippers, found, strict=True)
            if names != [self.gateways[flipper.at].name]
        ]

    async def unreached(self) -> list[str]:
        """Give the users whom the node of their newest session does not reach."""
        missed = []
        for at, pusher in enumerate(self.pushers):
            here = [flipper.user for flipper in self.flippers if flipper.at == at]
            (results,) = await pusher.push([{"user": here, "data": "x"}])
            missed += [user for user, result in zip(here, results, strict=True) if result != 1]
        return missed

    async def _is_at(self, user: str, gateway: GatewayProcess) -> bool:
        return await self._look_up([user]) == [[gateway.name]]

    async def _look_up(self, users: Sequence[str]) -> list[list[str]]:
        await self._registry.refresh()
        found = await self._registry.lookup(users)
        return [[node.name for node in nodes or ()] for nodes in found]


@pytest.fixture
async def scene(
    start_gateway: StartGateway, registry: RedisRegistry, user: str
) -> AsyncIterator[Scene]:
    """Give 500 users with one session each, in equal parts on two gateways."""
    scene = Scene([start_gateway(), start_gateway()], registry, user)
    async with AsyncExitStack() as stack:
        for gateway in scene.gateways:
            scene.pushers.append(await stack.enter_async_context(pusher_to(gateway.internal_port)))
        for flipper in scene.flippers:
            stack.push_async_callback(flipper.close)
        for number, flipper in enumerate(scene.flippers):
            flipper.at = number % 2
        await scene.each(lambda flipper: flipper.move(flipper.at))
        yield scene


async def test_users_who_flip_are_found_where_their_newest_session_is(scene: Scene) -> None:
    await scene.each(Flipper.flip)
    await scene.each(Flipper.close_old)
    await scene.settle()
    assert await scene.astray() == []
    assert await scene.unreached() == []


async def test_closes_that_a_frozen_node_sees_late_evict_no_newer_session(scene: Scene) -> None:
    frozen = scene.gateways[0]
    frozen.freeze()
    async with asyncio.timeout(FROZEN_SECONDS):
        # Everyone goes to the other node; sessions on the frozen one end, and it does not see it.
        await scene.each(lambda flipper: flipper.move(1, closing="after"))
    frozen.thaw()
    await scene.settle()
    assert await scene.astray() == []
    assert await scene.unreached() == []


async def test_closes_seen_together_with_the_next_handshake_evict_no_newer_session(
    scene: Scene,
) -> None:
    frozen = scene.gateways[0]
    frozen.freeze()
    # Everyone comes (back) to the frozen node, which sees old ends and new requests at once.
    moving = asyncio.create_task(
        scene.each(lambda flipper: flipper.move(0, closing="beside"), at_once=USERS)
    )
    await asyncio.sleep(1.0)  # what piles up meanwhile is the fault, not a wait
    frozen.thaw()
    await moving
    await scene.settle()
    assert await scene.astray() == []
    assert await scene.unreached() == []


async def test_an_evicted_session_is_noticed(scene: Scene, registry: RedisRegistry) -> None:
    """The control: what a close that does not compare before it deletes would leave behind."""
    victim, stranger = scene.flippers[0], scene.flippers[1]
    await scene.settle()
    assert await scene.astray() == []
    await registry.refresh()
    found = await registry.lookup([victim.user, stranger.user])
    node, elsewhere = (nodes[0] for nodes in found if nodes)
    await registry.write(node, [], [victim.user])
    assert await scene.astray() == [victim.user]
    await registry.write(elsewhere, [victim.user], [])
    assert await scene.astray() == [victim.user]
    await registry.write(elsewhere, [], [victim.user])
    await registry.write(node, [victim.user], [])
    assert await scene.astray() == []
