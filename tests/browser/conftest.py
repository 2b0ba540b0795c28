"""The browser that these tests share."""

import os
from collections.abc import Iterator

import pytest

from tests.browser.chromium import Chromium, chromium_binary


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
