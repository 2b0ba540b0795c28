"""Gateways under a supervisor: systemd hears of their lives, on a socket of the test's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.notify import NotifySocket
from tests.support.processes import GatewayProcess

pytestmark = pytest.mark.anyio


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[NotifySocket]:
    with NotifySocket(str(tmp_path / "notify")) as heard:
        yield heard


def supervised(process: GatewayProcess, systemd: NotifySocket) -> GatewayProcess:
    process.env["NOTIFY_SOCKET"] = systemd.address
    return process
