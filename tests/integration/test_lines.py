"""A user's line at a gateway's hub: every device gets everything, in order and once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

import msgspec
import pytest

from gateway.connections.as_of import AsOf
from gateway.connections.hub import CROWD, Hub
from gateway.connections.repeats import Repeats
from gateway.push import Pusher
from processor.outcomes.outcome import DELIVERED
from processor.sending import lines as lines_module
from processor.sending.forward import Answer, Failure, Partly, Result
from registry.directory import Node
from registry.message import BATCH_MEDIA_TYPE, Envelope, Push
from tests.support.dispatching import NOW_MS, A, FakeForward, FakeRegistry, Rig, running, turns
from tests.unit.gateway.fakes import FakeConnection, identity

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let attempts follow each other at once: order is tested, not pace."""
    monkeypatch.setattr(lines_module, "_FIRST_PAUSE_SECONDS", 0.0005)
    monkeypatch.setattr(lines_module, "_LONGEST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(lines_module, "_PAUSE_SECONDS_A_MESSAGE", 0.0)


class Device(FakeConnection):
    """A connection with room for so many messages."""

    def __init__(self, room: int, device: str | None = None) -> None:
        super().__init__(identity("u", device))
        self.room = room

    def write(self, data: bytes) -> bool:
        self.takes = self.room > 0
        self.room -= self.takes
        return super().write(data)

    @property
    def numbers(self) -> list[int]:
        return list(map(int, self.got))


class Gateway(FakeForward):
    """The part of a gateway behind HTTP: its batches, repeats and hub."""

    def __init__(self, *devices: Device, repeat_window: int = 100_000) -> None:
        super().__init__()
        self.hub = Hub()
        self._pusher = Pusher(
            self.hub, Repeats(repeat_window), AsOf(), epoch="e", max_payload_bytes=65_536
        )
        for device in devices:
            self.hub.add(device)

    async def forward(self, node: Node, pushes: Sequence[Push]) -> Answer:
        await asyncio.sleep(0)
        body = msgspec.msgpack.encode(pushes)
        _, answer = await self._pusher.batch(BATCH_MEDIA_TYPE.encode(), body)
        return [_result(result) for result in msgspec.msgpack.decode(answer)["results"]]


def _result(result: int | dict[str, object]) -> Result:
    if isinstance(result, int):
        return result
    if "taken" in result:
        return Partly(int(str(result["taken"])))
    return Failure(str(result["error"]))


def messages(count: int, *, start: int = 0, device: str | None = None) -> list[Envelope]:
    return [
        Envelope(Push("u", str(number).encode(), str(number), device=device), NOW_MS)
        for number in range(start, start + count)
    ]


async def until(condition: Callable[[], bool]) -> None:
    """Return once `condition` is true."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what the conditions read has no event
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("window", [0, 100_000], ids=["no repeats", "repeats"])
@pytest.mark.parametrize("others", [0, CROWD], ids=["two devices", "a crowd"])
async def test_a_line_longer_than_a_batch_reaches_the_device_with_room_before_any_patience_ends(
    window: int, others: int
) -> None:
    stalled, readers = Device(0), [Device(10_000) for _ in range(1 + others)]
    gateway = Gateway(stalled, *readers, repeat_window=window)
    registry = FakeRegistry({"u": (A,)})
    async with running(Rig(registry, gateway, patience_seconds=1e9)) as rig:
        rig.take(*messages(2_500))
        await until(lambda: all(len(reader.got) == 2_500 for reader in readers))
        rig.take(*messages(1, start=2_500))
        await until(lambda: all(len(reader.got) == 2_501 for reader in readers))
        assert rig.settled == []
        stalled.room = 10_000
        await rig.all_settled()
    for device in (stalled, *readers):
        assert device.numbers == list(range(2_501)), "in order, and once"
    assert set(rig.outcomes().values()) == {DELIVERED}
    assert {message.missed for message in rig.settled} == {0}


async def test_no_device_gets_more_than_so_far_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "MOST_AHEAD", 1_500)
    stalled, reader = Device(0), Device(10_000)
    async with running(Rig(FakeRegistry({"u": (A,)}), Gateway(stalled, reader))) as rig:
        rig.take(*messages(5_000))
        await until(lambda: len(reader.got) >= 1_500)
        await asyncio.sleep(0.05)
        await turns()
        assert len(reader.got) <= 1_500 + 1_000, "and a batch"
        stalled.room = 10_000
        await rig.all_settled()
    assert stalled.numbers == reader.numbers == list(range(5_000))


@pytest.mark.parametrize("seed", range(20))
async def test_devices_of_any_pace_get_everything_in_order_and_once(seed: int) -> None:
    draw = random.Random(seed)
    names = [None, "d", "e"]
    devices = [Device(draw.randrange(400), name) for name in names]
    gateway = Gateway(*devices)
    async with running(Rig(FakeRegistry({"u": (A,)}), gateway)) as rig:
        expected: dict[str | None, list[int]] = {name: [] for name in names}
        number = 0
        for _ in range(12):
            name = draw.choice([None, None, None, "d", "e"])
            some = messages(draw.randrange(1, 400), start=number, device=name)
            rig.take(*some)
            number += len(some)
            for of, ids in expected.items():
                if name in (None, of):
                    ids += [int(each.push.id) for each in some]
            for device in devices:
                device.room = max(0, device.room) + draw.choice([0, 0, 50, 500])
            await turns(draw.randrange(200))
        newcomer = Device(10_000)
        gateway.hub.add(newcomer)
        devices[draw.randrange(3)].room = 10_000
        await asyncio.sleep(0.05)
        for device in devices:
            device.room = 10_000
        await rig.all_settled()
    for device in devices:
        assert device.numbers == expected[device.device]
    assert newcomer.numbers == sorted(set(newcomer.numbers)), "in order, and once"
