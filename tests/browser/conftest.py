"""The browser that these tests share, and where its pages are from."""

import os
from collections.abc import Iterator

import pytest

from tests.browser.chromium import Chromium, chromium_binary
from tests.browser.dev import DevProcess
from tests.support.processes import GatewayProcess
from tests.support.valkey import RedisServer


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    """Give a Chromium; skip where there is none, fail where PUSHGATE_REQUIRE_CHROMIUM is 1."""
    binary = chromium_binary()
    if binary is None:
        missing = "no chromium: apt-get install chromium"
        if os.environ.get("PUSHGATE_REQUIRE_CHROMIUM") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    with Chromium(binary) as browser:
        yield browser


@pytest.fixture(scope="module")
def dev() -> Iterator[DevProcess]:
    """Give the whole system of `pushgate dev`."""
    with DevProcess() as process:
        yield process


@pytest.fixture(scope="module")
def origin(valkey: RedisServer) -> Iterator[GatewayProcess]:
    """Give a gateway that serves pages their script."""
    with GatewayProcess("origin", redis_url=valkey.url) as process:
        yield process
