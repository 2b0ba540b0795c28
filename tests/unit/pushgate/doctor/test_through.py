"""Connections through a balancer, judged. tests/system/test_doctor.py has real ones."""

from __future__ import annotations

import socket
import time

import pytest

from pushgate import client
from pushgate.doctor import through
from pushgate.doctor.finding import Severity
from pushgate.doctor.through import End, Life, check_through, judge
from tests.support.processes import free_port

pytestmark = pytest.mark.anyio


def life(
    transport: str = "ws",
    end: End = End.OPEN,
    *,
    opened_at: float | None = 0.0,
    beats: tuple[float, ...] = (),
    ended_at: float = 60.0,
) -> Life:
    return Life(transport, 0.0, opened_at, list(beats), end, ended_at, "a reason")


@pytest.mark.parametrize(
    ("given", "severity", "words"),
    [
        (life(beats=(0.1, 25.0, 50.0)), Severity.OK, "WebSocket: open for 60 s"),
        (life("poll"), Severity.OK, "long poll: open for 60 s"),
        (life("sse", beats=()), Severity.FAULT, "0 signs of life"),
        (life("sse", beats=(0.1,)), Severity.FAULT, "1 signs of life"),
        (life("sse", beats=(0.1, 25.0), ended_at=54.0), Severity.OK, "open for 60 s"),
        (life("sse", beats=(0.1, 25.0), ended_at=56.0), Severity.FAULT, "2 signs of life"),
        (life("sse", ended_at=4.0), Severity.OK, "open for 60 s"),
        (
            life(end=End.ENDED, opened_at=5.0, ended_at=30.0),
            Severity.WARNING,
            "ended after 25 s, 25 s after the last",
        ),
        (life(end=End.ENDED, beats=(0.1,), ended_at=10.1), Severity.WARNING, "10 s after the last"),
        (life(end=End.NEVER_OPEN, opened_at=None), Severity.FAULT, "no connection in 60 s"),
        (life(end=End.REFUSED, opened_at=None), Severity.FAULT, "refused with a reason"),
    ],
)
def test_each_life_is_judged(given: Life, severity: Severity, words: str) -> None:
    finding = judge(given, seconds=60.0, heartbeat_seconds=25.0)
    assert finding.severity is severity
    assert words in finding.what


def test_a_look_shorter_than_a_heartbeat_proves_nothing() -> None:
    finding = judge(life(beats=(0.1,), ended_at=20.0), seconds=20.0, heartbeat_seconds=25.0)
    assert finding.severity is Severity.NOTE
    assert "--for" in finding.cure


async def test_the_websocket_sends_no_pings_which_would_keep_a_connection_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options: dict[str, object] = {}

    def connect(*_address: object, **given: object) -> None:
        options.update(given)
        raise ConnectionRefusedError

    monkeypatch.setattr(client, "connect", connect)
    url = f"http://127.0.0.1:{free_port()}"
    found = await check_through(
        url, "token", seconds=1.0, heartbeat_seconds=25.0, clock=time.monotonic
    )
    assert ["no connection" in each.what for each in found] == [True] * 3
    assert options["ping_interval"] is None


async def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(through, "_OPEN_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        found = await check_through(
            url, "token", seconds=60.0, heartbeat_seconds=25.0, clock=time.monotonic
        )
    assert time.monotonic() - began < 10.0
    assert ["(no answer)" in each.what for each in found] == [True] * 3
