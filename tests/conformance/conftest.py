"""One suite over transports and wires: a real gateway process, a real Valkey, raw clients."""

import itertools
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from registry.redis_store import RedisRegistry
from tests.support.clients import TRANSPORTS, Pusher, pusher_to
from tests.support.processes import GatewayProcess
from tests.support.valkey import RedisServer

ALLOWED_ORIGIN = "https://app.example.com"
_numbers = itertools.count(1)


@pytest.fixture(scope="session", params=["epoll", "transport"])
def wire(request: pytest.FixtureRequest) -> str:
    """Give the wire that gateways hold sockets with; the suite runs once for each there is."""
    name: str = request.param
    return name


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    """Give each of the transports in turn."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def start_gateway(valkey: RedisServer, wire: str) -> Iterator[Callable[..., GatewayProcess]]:
    """Give a function that starts a gateway with settings; all end with the module."""
    started: list[GatewayProcess] = []

    def start(**settings: object) -> GatewayProcess:
        name = f"conformance-{next(_numbers)}"
        gateway = GatewayProcess(name, redis_url=valkey.url, wire=wire, **settings)
        started.append(gateway)
        return gateway.start()

    yield start
    for gateway in started:
        gateway.close()


@pytest.fixture(scope="module")
def gateway(start_gateway: Callable[..., GatewayProcess]) -> GatewayProcess:
    """Give the gateway that a module's tests share."""
    return start_gateway(origins=ALLOWED_ORIGIN)


@pytest.fixture
async def pusher(gateway: GatewayProcess) -> AsyncIterator[Pusher]:
    """Give what pushes into the shared gateway."""
    async with pusher_to(gateway.internal_port) as pushing:
        yield pushing


@pytest.fixture
async def registry(valkey: RedisServer) -> AsyncIterator[RedisRegistry]:
    """Give the registry as a processor sees it."""
    store = RedisRegistry(valkey.url)
    yield store
    await store.close()


@pytest.fixture
def user() -> str:
    """Give a user whom no other test has."""
    return f"user-{next(_numbers)}"
