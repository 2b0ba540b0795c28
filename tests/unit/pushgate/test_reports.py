"""The newest reports of the outcomes topic: numbered, bounded, and read while a page asks."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import msgspec
import pytest
from pydantic import SecretStr

from processor.reading.kafka import Record
from pushgate.demo.reports import IDLE_SECONDS, MOST_KEPT, Reports
from pushgate.settings import DevSettings
from tests.support.clients import eventually

pytestmark = pytest.mark.anyio


class Told:
    """A record of the outcomes topic, as far as it is looked at."""

    def __init__(self, value: bytes | None, key: bytes | None = b"alice") -> None:
        self.key, self.value = key, value


def reports() -> Reports:
    """Give reports whose Kafka does not answer: they get what a test gives them."""
    settings = DevSettings(
        kafka_bootstrap="127.0.0.1:1",
        jwt_secret=SecretStr("s" * 32),
        internal_secret=SecretStr("s" * 32),
    )
    return Reports(settings, "push.outcomes")


def take(kept: Reports, *records: Told) -> None:
    kept.take(cast("list[Record]", list(records)))


def numbers(kept: Reports, after: int) -> list[int]:
    found: list[dict[str, Any]] = [
        msgspec.json.decode(told.report) for told in kept.since(after).reports
    ]
    return [report["n"] for report in found]


async def test_each_page_gets_what_came_since_it_asked() -> None:
    kept = reports()
    take(kept, *(Told(b'{"n":%d}' % number) for number in range(3)))
    assert numbers(kept, 0) == [0, 1, 2]
    assert kept.since(0).last == 3
    assert numbers(kept, 2) == [2]
    assert numbers(kept, 3) == []
    take(kept, Told(b'{"n":3}', key=b"b\xff"))
    [told] = kept.since(3).reports
    assert told.user == "b\ufffd"
    await kept.close()


async def test_a_page_of_an_earlier_start_gets_all_anew() -> None:
    kept = reports()
    take(kept, Told(b'{"n":0}'))
    assert numbers(kept, 700) == [0]
    await kept.close()


async def test_the_oldest_make_room_and_are_counted() -> None:
    kept = reports()
    take(kept, *(Told(b'{"n":%d}' % number) for number in range(MOST_KEPT + 5)))
    news = kept.since(3)
    assert (len(news.reports), news.forgotten, news.last) == (MOST_KEPT, 2, MOST_KEPT + 5)
    assert numbers(kept, MOST_KEPT + 3) == [MOST_KEPT + 3, MOST_KEPT + 4]
    await kept.close()


@pytest.mark.parametrize("value", [None, b"", b"{", b'{"n":0'])
async def test_a_record_that_is_no_report_is_left_out(value: bytes | None) -> None:
    kept = reports()
    take(kept, Told(value), Told(b'{"n":1}'))
    assert numbers(kept, 0) == [1]
    await kept.close()


async def test_nothing_is_read_while_no_page_asks() -> None:
    now = [0.0]
    settings = DevSettings(
        kafka_bootstrap="127.0.0.1:1",
        jwt_secret=SecretStr("s" * 32),
        internal_secret=SecretStr("s" * 32),
    )
    kept = Reports(settings, "push.outcomes", clock=lambda: now[0])
    tasks = len(asyncio.all_tasks())
    kept.since(0)
    await eventually(lambda: len(asyncio.all_tasks()) > tasks, "it tries to read")
    now[0] += IDLE_SECONDS + 1
    await eventually(lambda: len(asyncio.all_tasks()) == tasks, "it has stopped")
    await kept.close()
