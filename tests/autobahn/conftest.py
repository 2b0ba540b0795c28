"""The echo that the cases are run against, on each wire."""

from collections.abc import AsyncIterator

import pytest

from gateway.wires.choice import Choice
from tests.autobahn.echo import echoing
from tests.support.valkey import RedisServer


@pytest.fixture(scope="module", params=["epoll", "transport"])
def wire(request: pytest.FixtureRequest) -> Choice:
    """Give the wire that the gateway holds sockets with."""
    choice: Choice = request.param
    return choice


@pytest.fixture(scope="module")
async def echo_url(wire: Choice, valkey: RedisServer) -> AsyncIterator[str]:
    """Give the URL of an echo on `wire`."""
    async with echoing(wire, redis_url=valkey.url) as url:
        yield url
