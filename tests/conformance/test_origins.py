"""Pages of the own origin, listed ones, any one: whose cookie counts, and who reads the answer."""

from collections.abc import Callable
from typing import Final

import pytest

from tests.conformance.conftest import ALLOWED_ORIGIN
from tests.conformance.test_admission import PATHS, ask, is_in
from tests.support.clients import bearer, request, token
from tests.support.processes import GatewayProcess

pytestmark = pytest.mark.anyio

APP: Final = "capacitor://localhost"
EXTENSION: Final = "chrome-extension://abcdefghijklmnopabcdefghijklmnop"
FOREIGN: Final = "https://evil.example"
PREFLIGHT: Final = {"Access-Control-Request-Method": "GET"}

Start = Callable[..., GatewayProcess]


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture(scope="module")
def listing(start_gateway: Start) -> GatewayProcess:
    """Give a gateway that allows an app, an extension, and any port of localhost."""
    return start_gateway(origins=f"{APP}, {EXTENSION}, http://localhost:*, https://*.example.org")


@pytest.fixture(scope="module")
def open_to_all(start_gateway: Start) -> GatewayProcess:
    """Give a gateway that allows pages of every origin."""
    return start_gateway(origins=f"{ALLOWED_ORIGIN},*")


async def status(gateway: GatewayProcess, path: str, fields: dict[str, str]) -> int:
    answer = await ask(gateway, path, fields)
    assert is_in(answer) or answer.status in (401, 403), answer
    return 200 if is_in(answer) else answer.status


def cookie() -> dict[str, str]:
    return {"Cookie": f"pushgate_token={token('u')}"}


def own_origin(gateway: GatewayProcess) -> str:
    return f"http://127.0.0.1:{gateway.port}"


def own_host(gateway: GatewayProcess) -> dict[str, str]:
    return {"Host": f"127.0.0.1:{gateway.port}"}


# The cookie


async def test_the_cookie_counts_where_the_browser_says_that_the_page_is_the_gateways_own(
    gateway: GatewayProcess, path: str
) -> None:
    assert await status(gateway, path, {**cookie(), "Sec-Fetch-Site": "same-origin"}) == 200
    for site in ("none", "same-site", "cross-site", ""):
        assert await status(gateway, path, {**cookie(), "Sec-Fetch-Site": site}) == 401
    assert await status(gateway, path, cookie()) == 401


async def test_a_foreign_page_stays_foreign_whatever_the_browser_says_of_its_site(
    gateway: GatewayProcess, path: str
) -> None:
    fields = {**cookie(), "Origin": FOREIGN, "Sec-Fetch-Site": "same-origin"}
    assert await status(gateway, path, fields) == 403


async def test_a_cookie_that_does_not_count_is_said_not_to(gateway: GatewayProcess) -> None:
    answer = await request(gateway.port, "GET", "/poll?wait=0", cookie())
    assert answer.status == 401
    assert b"PUSHGATE_ORIGINS" in answer.body


async def test_the_own_origin_is_allowed_beside_a_list(gateway: GatewayProcess, path: str) -> None:
    own = {**own_host(gateway), "Origin": own_origin(gateway)}
    assert await status(gateway, path, {**own, **bearer("u")}) == 200
    assert await status(gateway, path, {**own, **cookie()}) == 200


# What a list may have


@pytest.mark.parametrize(
    "origin", [APP, EXTENSION, "http://localhost", "http://localhost:5173", "https://a.example.org"]
)
async def test_a_listed_origin_connects_with_its_cookie_and_reads_its_answers(
    listing: GatewayProcess, path: str, origin: str
) -> None:
    assert await status(listing, path, {**cookie(), "Origin": origin}) == 200
    refused = await ask(listing, path, {"Origin": origin})
    assert refused.status == 401
    assert refused.headers["access-control-allow-origin"] == origin
    preflight = await request(listing.port, "OPTIONS", path, {**PREFLIGHT, "Origin": origin})
    assert preflight.status == 204
    assert preflight.headers["access-control-allow-origin"] == origin


@pytest.mark.parametrize(
    "origin",
    ["capacitor://localhost:80", "ionic://localhost", "capacitor://127.0.0.1", f"{EXTENSION[:-1]}a",
     "https://localhost:5173", "http://localhost.evil:5173", "http://127.0.0.1:1",
     "https://a..example.org", "https://.example.org", "https://example.org", "null"],
)  # fmt: skip
async def test_an_origin_beside_a_listed_one_is_refused(
    listing: GatewayProcess, path: str, origin: str
) -> None:
    assert await status(listing, path, {**bearer("u"), "Origin": origin}) == 403


@pytest.mark.parametrize("origin", [FOREIGN, "null", "file://", "app://-"])
async def test_by_an_asterisk_any_page_connects_and_no_cookie_counts(
    open_to_all: GatewayProcess, path: str, origin: str
) -> None:
    assert await status(open_to_all, path, {**bearer("u"), "Origin": origin}) == 200
    assert await status(open_to_all, path, {**cookie(), "Origin": origin}) == 401
    refused = await ask(open_to_all, path, {"Origin": origin})
    assert refused.headers["access-control-allow-origin"] == origin


async def test_beside_an_asterisk_the_cookie_counts_where_it_would_without(
    open_to_all: GatewayProcess, path: str
) -> None:
    own = {**own_host(open_to_all), "Origin": own_origin(open_to_all)}
    for fields in (own, {"Origin": ALLOWED_ORIGIN}, {"Sec-Fetch-Site": "same-origin"}):
        assert await status(open_to_all, path, {**cookie(), **fields}) == 200
    assert await status(open_to_all, path, cookie()) == 401


async def test_an_asterisk_is_said_at_the_start(
    open_to_all: GatewayProcess, listing: GatewayProcess
) -> None:
    assert open_to_all.log.count("PUSHGATE_ORIGINS has *") == 1
    assert "PUSHGATE_ORIGINS has *" not in listing.log


# Who is told


async def test_a_refused_origin_is_logged_with_the_setting_and_not_each_time(
    start_gateway: Start,
) -> None:
    fresh = start_gateway()
    for number in range(50):
        fields = {**bearer("u"), "Origin": f"https://{number % 2}.evil.example"}
        assert (await request(fresh.port, "GET", "/poll?wait=0", fields)).status == 403
        assert (await request(fresh.port, "OPTIONS", "/sse", fields)).status == 403
    lines = [line for line in fresh.log.splitlines() if "PUSHGATE_ORIGINS" in line]
    assert len(lines) == 2
    assert all(f"https://{number}.evil.example" in lines[number] for number in range(2))


@pytest.mark.parametrize(
    "field", ["authorization", "cache-control", "last-event-id", "content-type", "x-requested-with"]
)
@pytest.mark.parametrize("route", ["/sse", "/poll"])
async def test_a_preflight_allows_what_clients_of_event_streams_send(
    gateway: GatewayProcess, route: str, field: str
) -> None:
    asked = {**PREFLIGHT, "Origin": ALLOWED_ORIGIN, "Access-Control-Request-Headers": field}
    answer = await request(gateway.port, "OPTIONS", route, asked)
    assert answer.status == 204
    allowed = answer.headers["access-control-allow-headers"].lower().split(",")
    assert field in [name.strip() for name in allowed]
