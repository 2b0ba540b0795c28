"""Requests for new connections take turns of the event loop."""

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest

from gateway import metrics
from gateway.entry import turns as turns_module
from gateway.entry.turns import HANDSHAKES_A_TURN, Turns

pytestmark = pytest.mark.anyio


class Requests:
    """Requests that take turns, and what the event loop does meanwhile."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.begun: list[int] = []
        self.begun_by_turn: list[int] = []  # how many had begun, at each turn of the loop
        self._tasks: list[asyncio.Task[None]] = []

    def come(self, count: int) -> list[asyncio.Task[None]]:
        first = len(self._tasks)
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(self._begin(first + number)) for number in range(count)]
        self._tasks += tasks
        return tasks

    async def all_begun(self) -> None:
        while not all(task.done() for task in self._tasks):
            await asyncio.sleep(0)
            self.begun_by_turn.append(len(self.begun))

    async def _begin(self, number: int) -> None:
        await self.turns.take()
        self.begun.append(number)


@pytest.fixture
async def requests() -> AsyncIterator[Requests]:
    requests = Requests()
    yield requests
    await requests.all_begun()


def waiting() -> float:
    return metrics.WAITING_HANDSHAKES._value.get()  # type: ignore[no-any-return]


async def test_a_request_that_comes_alone_does_not_wait(requests: Requests) -> None:
    for _ in range(3 * HANDSHAKES_A_TURN):
        [task] = requests.come(1)
        await asyncio.sleep(0)
        assert task.done()


async def test_of_many_requests_a_few_begin_in_a_turn_of_the_loop_in_order(
    requests: Requests,
) -> None:
    requests.come(10 * HANDSHAKES_A_TURN + 1)
    await requests.all_begun()
    assert requests.begun == [*range(10 * HANDSHAKES_A_TURN + 1)]
    steps = [0, *requests.begun_by_turn]
    assert max(b - a for a, b in pairwise(steps)) == HANDSHAKES_A_TURN
    # A turn of its own for each, and one to wake: no turn of the loop is lost.
    assert len(requests.begun_by_turn) <= 11 + 2


async def test_a_new_request_does_not_pass_waiting_ones(requests: Requests) -> None:
    requests.come(3 * HANDSHAKES_A_TURN)
    for _ in range(2):
        await asyncio.sleep(0)
        requests.come(1)
    await requests.all_begun()
    assert requests.begun == sorted(requests.begun)


async def test_a_request_that_is_given_up_takes_no_ones_turn(requests: Requests) -> None:
    tasks = requests.come(3 * HANDSHAKES_A_TURN)
    await asyncio.sleep(0)
    for task in tasks[HANDSHAKES_A_TURN : 2 * HANDSHAKES_A_TURN]:
        task.cancel()
    await requests.all_begun()
    others = {*range(HANDSHAKES_A_TURN), *range(2 * HANDSHAKES_A_TURN, 3 * HANDSHAKES_A_TURN)}
    assert set(requests.begun) == others
    assert len(requests.begun_by_turn) <= 2 + 2


async def test_where_the_queue_is_full_a_request_begins_at_once(
    requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns_module, "MOST_WAITING", 5)
    before = metrics.TURNS_OVERFLOWS._value.get()
    requests.come(HANDSHAKES_A_TURN + 5 + 3)
    await asyncio.sleep(0)
    assert len(requests.begun) == HANDSHAKES_A_TURN + 3
    assert metrics.TURNS_OVERFLOWS._value.get() - before == 3


async def test_waiting_requests_are_counted(requests: Requests) -> None:
    requests.come(2 * HANDSHAKES_A_TURN + 3)
    await asyncio.sleep(0)
    assert waiting() == HANDSHAKES_A_TURN + 3
    await requests.all_begun()
    assert waiting() == 0
