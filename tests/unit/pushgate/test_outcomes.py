"""Waiting for an outcome: the user's own reports, kept within a bound."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from pushgate import outcomes as module
from pushgate.outcomes import Watch

pytestmark = pytest.mark.anyio


class Topic:
    """A consumer of an outcomes topic that has these records, and no further."""

    def __init__(self, *records: tuple[bytes, bytes]) -> None:
        self._left = list(records)

    async def getone(self) -> Any:
        key, value = self._left.pop(0)
        return SimpleNamespace(key=key, value=value)

    def watch(self) -> Watch:
        return Watch(cast("Any", self), b"alice")


def report(offset: int, outcome: str = "delivered", **fields: object) -> bytes:
    coordinates = {"topic": "push", "partition": 0, "offset": offset}
    return msgspec.json.encode({"outcome": outcome, **coordinates, **fields})


async def test_others_reports_replayed_ones_and_what_is_none_are_passed_over() -> None:
    watch = Topic(
        (b"bob", report(1, "offline")),
        (b"alice", report(1, replayed=True)),
        (b"alice", b"not JSON"),
        (b"alice", b"[]"),
        (b"alice", b"{}"),
        (b"alice", report(1, "expired")),
    ).watch()
    assert (await watch.outcome_of("push-0-1"))["outcome"] == "expired"


async def test_outcomes_come_in_any_order() -> None:
    watch = Topic((b"alice", report(2, "offline")), (b"alice", report(1))).watch()
    assert (await watch.outcome_of("push-0-1"))["outcome"] == "delivered"
    assert (await watch.outcome_of("push-0-2"))["outcome"] == "offline"


async def test_the_oldest_report_is_dropped_beyond_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_MOST_KEPT", 2)
    watch = Topic(*((b"alice", report(offset)) for offset in range(4))).watch()
    assert (await watch.outcome_of("push-0-3"))["offset"] == 3
    assert (await watch.outcome_of("push-0-2"))["offset"] == 2
    with pytest.raises(IndexError):  # the topic has no more
        await watch.outcome_of("push-0-0")
