"""Heads of requests that break a rule of HTTP/1.1: refused on both ports, whatever the path."""

from collections.abc import Iterator

import pytest

from tests.support.clients import Answer, bearer, head, request, token, upgrade_headers, wire_to
from tests.support.processes import INTERNAL_SECRET, GatewayProcess
from tests.support.valkey import RedisServer

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def gateway(valkey: RedisServer) -> Iterator[GatewayProcess]:
    """Give a gateway; how it holds sockets does not matter."""
    with GatewayProcess("rules", redis_url=valkey.url) as process:
        yield process


@pytest.fixture(params=["public", "internal"])
def port(request: pytest.FixtureRequest, gateway: GatewayProcess) -> int:
    return gateway.port if request.param == "public" else gateway.internal_port


async def answer_to(port: int, *lines: str) -> Answer:
    """Send a head; a refusal has to be the last answer on its connection."""
    async with wire_to(port) as wire:
        await wire.send("\r\n".join([*lines, "", ""]).encode("latin-1"))
        answer = await wire.answer()
        if answer.status != 200:
            assert answer.headers["connection"] == "close"
            await wire.ended()
        return answer


@pytest.mark.parametrize(
    "hosts",
    [
        [],
        ["a", "a"],
        ["a", "b"],
        ["a", ""],
        ["a b"],
        ["a, b"],
        ["a/b"],
        ["user@a"],
        ["a?b"],
        ["a\\"],
    ],
    ids=repr,
)
async def test_a_request_has_one_host(port: int, hosts: list[str]) -> None:
    fields = [f"Host: {host}" for host in hosts]
    assert (await answer_to(port, "GET /healthz HTTP/1.1", *fields)).status == 400


@pytest.mark.parametrize(
    "host", ["", "a", "a.example.com.", "a_b:8080", "127.0.0.1:80", "[::1]", "[fe80::1%25lo]:80"]
)
async def test_a_host_may_be_any_host(port: int, host: str) -> None:
    assert (await answer_to(port, "GET /healthz HTTP/1.1", f"Host: {host}")).status == 200


async def test_a_request_of_http_1_0_may_have_no_host_but_not_two(port: int) -> None:
    assert (await answer_to(port, "GET /healthz HTTP/1.0")).status == 200
    assert (await answer_to(port, "GET /healthz HTTP/1.0", "Host: a", "Host: a")).status == 400


@pytest.mark.parametrize(
    "line",
    [
        "GET /healthz",
        "GET /healthz HTTP/0.9",
        "GET /healthz HTTP/1.2",
        "GET /healthz HTTP/2.0",
        "GET /healthz HTTP/3.0",
        "GET /healthz HTTP/1",
        "GET /healthz HTTP/11.1",
        "GET /healthz http/1.1",
        "PRI * HTTP/2.0",
    ],
)
async def test_another_version_of_http_is_refused(port: int, line: str) -> None:
    assert (await answer_to(port, line, "Host: a")).status in (400, 505)


@pytest.mark.parametrize("same", [True, False])
async def test_two_authorizations_are_refused(
    gateway: GatewayProcess, port: int, same: bool
) -> None:
    secret = INTERNAL_SECRET if port == gateway.internal_port else token("u")
    path = "/connections" if port == gateway.internal_port else "/poll?wait=0"
    lines = [f"GET {path} HTTP/1.1", "Host: a", f"Authorization: Bearer {secret}"]
    assert (await answer_to(port, *lines)).status == 200
    second = f"authorization: Bearer {secret if same else 'another'}"
    for more in ([*lines, second], [*lines[:2], second, lines[2]]):
        assert (await answer_to(port, *more)).status == 400


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
async def test_the_scheme_of_authorization_has_no_case_on_either_port(
    gateway: GatewayProcess, scheme: str
) -> None:
    poll = {"Authorization": f"{scheme} {token('u')}"}
    assert (await request(gateway.port, "GET", "/poll?wait=0", poll)).status == 200
    listing = {"Authorization": f"{scheme} {INTERNAL_SECRET}"}
    assert (await request(gateway.internal_port, "GET", "/connections", listing)).status == 200
    wrong = {"Authorization": f"{scheme} {INTERNAL_SECRET.upper()}"}
    assert (await request(gateway.internal_port, "GET", "/connections", wrong)).status == 403


async def test_an_upgrade_of_http_1_0_is_refused(gateway: GatewayProcess) -> None:
    fields = {**upgrade_headers(), **bearer("u")}
    async with wire_to(gateway.port) as wire:
        await wire.send(head("GET", "/ws", fields, version="1.0"))
        assert (await wire.answer()).status == 426
        await wire.ended()
