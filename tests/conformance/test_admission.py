"""Who is let in, by what, from where; and how the others are refused."""

import time

import jwt
import pytest

from tests.conformance.conftest import ALLOWED_ORIGIN
from tests.support.clients import (
    Answer,
    Pusher,
    bearer,
    head,
    open_sse,
    open_websocket,
    request,
    token,
    upgrade_headers,
    wire_to,
)
from tests.support.processes import INTERNAL_SECRET, JWT_SECRET, GatewayProcess

pytestmark = pytest.mark.anyio

PATHS = ("/ws", "/sse", "/poll?wait=0")
BAD = "eyJhbGciOiJIUzI1NiJ9.e30.bad"


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


async def ask(
    gateway: GatewayProcess,
    path: str,
    headers: dict[str, str] | None = None,
    *,
    query: str = "",
) -> Answer:
    """Ask for a connection; an event stream's answer is its head."""
    target = f"{path}{'&' if '?' in path else '?'}{query}" if query else path
    fields = upgrade_headers() if path == "/ws" else {}
    async with wire_to(gateway.port) as wire:
        await wire.send(head("GET", target, {**fields, **(headers or {})}))
        return await wire.answer(bodiless=path == "/sse")


def is_in(answer: Answer) -> bool:
    return answer.status in (101, 200)


async def test_a_bearer_token_lets_in(gateway: GatewayProcess, path: str) -> None:
    assert is_in(await ask(gateway, path, bearer("u")))


async def test_the_scheme_of_authorization_has_no_case(gateway: GatewayProcess, path: str) -> None:
    assert is_in(await ask(gateway, path, {"authorization": f"bEARER {token('u')}"}))


async def test_a_token_in_the_query_lets_in(gateway: GatewayProcess, path: str) -> None:
    assert is_in(await ask(gateway, path, query=f"token={token('u')}"))


@pytest.mark.parametrize("offered", ["pushgate.v1", "pushgate.plain"])
async def test_a_token_as_subprotocol_lets_in_and_the_other_one_is_selected(
    gateway: GatewayProcess, offered: str
) -> None:
    for protocols in (f"{offered}, bearer.{token('u')}", f"bearer.{token('u')},{offered}"):
        answer = await ask(gateway, "/ws", {"Sec-WebSocket-Protocol": protocols})
        assert answer.status == 101
        assert answer.headers["sec-websocket-protocol"] == offered


async def test_no_subprotocol_is_selected_where_none_of_ours_is_offered(
    gateway: GatewayProcess,
) -> None:
    for offered in ({}, {"Sec-WebSocket-Protocol": "chat, superchat"}):
        answer = await ask(gateway, "/ws", {**bearer("u"), **offered})
        assert answer.status == 101
        assert "sec-websocket-protocol" not in answer.headers


async def test_subprotocols_in_two_header_lines_count_as_one_list(
    gateway: GatewayProcess,
) -> None:
    async with wire_to(gateway.port) as wire:
        raw = head("GET", "/ws", upgrade_headers()).removesuffix(b"\r\n")
        raw += b"Sec-WebSocket-Protocol: pushgate.v1\r\n"
        raw += f"Sec-WebSocket-Protocol: bearer.{token('u')}\r\n\r\n".encode()
        await wire.send(raw)
        answer = await wire.answer()
    assert answer.status == 101
    assert answer.headers["sec-websocket-protocol"] == "pushgate.v1"


async def test_a_cookie_lets_in_only_with_an_allowed_origin(
    gateway: GatewayProcess, path: str
) -> None:
    cookie = {"Cookie": f"theme=dark; pushgate_token={token('u')}; x=y"}
    assert is_in(await ask(gateway, path, {**cookie, "Origin": ALLOWED_ORIGIN}))
    assert (await ask(gateway, path, cookie)).status == 401
    foreign = await ask(gateway, path, {**cookie, "Origin": "https://evil.example"})
    assert foreign.status == 403


async def test_the_first_credential_present_decides(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    good, subprotocol = token(user), "Sec-WebSocket-Protocol"
    cookie = {"Cookie": f"pushgate_token={good}", "Origin": ALLOWED_ORIGIN}
    bad_header = {"Authorization": f"Bearer {BAD}"}
    bad_protocol = {subprotocol: f"pushgate.v1, bearer.{BAD}"}
    good_protocol = {subprotocol: f"pushgate.v1, bearer.{good}"}
    refused = [
        await ask(gateway, "/ws", bad_header | good_protocol, query=f"token={good}"),
        await ask(gateway, "/ws", bad_protocol | cookie, query=f"token={good}"),
        await ask(gateway, "/ws", cookie, query=f"token={BAD}"),
        await ask(gateway, "/sse", bad_header | cookie),
        await ask(gateway, "/poll?wait=0", bad_header, query=f"token={good}"),
        await ask(gateway, "/poll?wait=0", cookie, query=f"token={BAD}"),
        await ask(gateway, "/poll?wait=0", cookie, query="token="),
    ]
    assert [answer.status for answer in refused] == [401] * len(refused)
    accepted = [
        await ask(gateway, "/ws", bearer(user) | bad_protocol, query=f"token={BAD}"),
        await ask(gateway, "/ws", good_protocol, query=f"token={BAD}"),
        await ask(gateway, "/poll?wait=0", bearer(user), query=f"token={BAD}"),
    ]
    assert [answer.status for answer in accepted] == [101, 101, 200]


def hs256(claims: dict[str, object], *, secret: str = JWT_SECRET) -> str:
    return jwt.encode(claims, secret, algorithm="HS256")


def bad_tokens() -> dict[str, str]:
    later = int(time.time()) + 600
    none = jwt.encode({"sub": "u", "exp": later}, "", algorithm="none")
    return {
        "nonsense": "nonsense",
        "empty": "",
        "another-secret": token("u", secret="another secret of thirty-two bytes, or more"),
        "no-exp": hs256({"sub": "u"}),
        "no-sub": hs256({"exp": later}),
        "expired": hs256({"sub": "u", "exp": int(time.time()) - 60}),
        "exp-as-text": hs256({"sub": "u", "exp": "never"}),
        "exp-1e18": hs256({"sub": "u", "exp": 10**18}),
        "exp-1e18-as-float": hs256({"sub": "u", "exp": 1e18}),
        "exp-huge": hs256({"sub": "u", "exp": 10**400}),
        "sub-number": hs256({"sub": 7, "exp": later}),
        "sub-empty": hs256({"sub": "", "exp": later}),
        "sub-crlf": hs256({"sub": "a\r\nb", "exp": later}),
        "sub-long": hs256({"sub": "x" * 257, "exp": later}),
        "device-number": hs256({"sub": "u", "exp": later, "device": 7}),
        "not-yet": hs256({"sub": "u", "exp": later, "nbf": later}),
        "algorithm-none": none,
        "hs512": jwt.encode({"sub": "u", "exp": later}, JWT_SECRET * 2, algorithm="HS512"),
        "internal-secret": INTERNAL_SECRET.replace(" ", "-"),
        "not-ascii": "ü.ü.ü",
    }


@pytest.mark.parametrize("name", bad_tokens())
async def test_a_bad_token_is_401_before_the_upgrade_and_never_logged(
    gateway: GatewayProcess, path: str, name: str
) -> None:
    bad = bad_tokens()[name]
    answer = await ask(gateway, path, {"Authorization": f"Bearer {bad}"})
    assert answer.status == 401
    assert "upgrade" not in answer.headers
    assert len(bad) < 8 or bad not in gateway.log


async def test_no_token_is_401_and_says_how(gateway: GatewayProcess, path: str) -> None:
    answer = await ask(gateway, path)
    assert answer.status == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_an_unauthorized_request_is_refused_before_its_handshake_is_judged(
    gateway: GatewayProcess,
) -> None:
    assert (await request(gateway.port, "GET", "/ws")).status == 401


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "http://app.example.com", "https://app.example.com.evil.example",
     "https://evilapp.example.com", "https://app.example.com:444", "null", "", "file://",
     "https://x@app.example.com", "https://app.example.com/"],
)  # fmt: skip
async def test_a_foreign_origin_is_403_even_with_a_good_token(
    gateway: GatewayProcess, path: str, origin: str
) -> None:
    fields = upgrade_headers() if path == "/ws" else {}
    answer = await request(gateway.port, "GET", path, {**fields, **bearer("u"), "Origin": origin})
    assert answer.status == 403
    assert b"PUSHGATE_ORIGINS" in answer.body
    assert answer.headers["access-control-allow-origin"] == origin  # the page may read the body
    assert "access-control-allow-credentials" not in answer.headers


async def test_an_allowed_origin_gets_cors_headers(gateway: GatewayProcess, path: str) -> None:
    answer = await ask(gateway, path, {**bearer("u"), "Origin": ALLOWED_ORIGIN})
    assert is_in(answer)
    if path != "/ws":  # CORS does not apply to WebSocket
        assert answer.headers["access-control-allow-origin"] == ALLOWED_ORIGIN
        assert answer.headers["access-control-allow-credentials"] == "true"
        assert "origin" in answer.headers["vary"].lower()


async def test_a_waiting_poll_has_cors_headers_too(gateway: GatewayProcess, user: str) -> None:
    answer = await ask(gateway, "/poll?wait=0.1", {**bearer(user), "Origin": ALLOWED_ORIGIN})
    assert answer.headers["access-control-allow-origin"] == ALLOWED_ORIGIN


async def test_a_refusal_is_readable_for_an_allowed_origin(
    gateway: GatewayProcess, path: str
) -> None:
    answer = await ask(gateway, path, {"Origin": ALLOWED_ORIGIN})
    assert answer.status == 401
    assert answer.headers["access-control-allow-origin"] == ALLOWED_ORIGIN


@pytest.mark.parametrize("route", ["/sse", "/poll"])
async def test_a_preflight_is_answered_for_an_allowed_origin(
    gateway: GatewayProcess, route: str
) -> None:
    asked = {
        "Origin": ALLOWED_ORIGIN,
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "authorization",
    }
    answer = await request(gateway.port, "OPTIONS", route, asked)
    assert answer.status in (200, 204)
    assert answer.headers["access-control-allow-origin"] == ALLOWED_ORIGIN
    assert "GET" in answer.headers["access-control-allow-methods"]
    assert "authorization" in answer.headers["access-control-allow-headers"].lower()
    foreign = await request(gateway.port, "OPTIONS", route, {**asked, "Origin": "https://e.vil"})
    assert "access-control-allow-origin" not in foreign.headers


async def test_without_a_list_only_the_same_host_is_allowed(
    start_gateway: object,
) -> None:
    assert callable(start_gateway)
    default: GatewayProcess = start_gateway()
    same = {"Host": f"example.com:{default.port}", "Origin": f"http://example.com:{default.port}"}
    assert is_in(await ask(default, "/poll?wait=0", {**bearer("u"), **same}))
    other = same | {"Origin": f"http://evilexample.com:{default.port}"}
    assert (await ask(default, "/poll?wait=0", {**bearer("u"), **other})).status == 403


@pytest.mark.parametrize("path", ["/nowhere", "/ws/", "/sse/x", "/poll2", "/push", "/metrics", "/"])
async def test_an_unknown_path_is_404(gateway: GatewayProcess, path: str) -> None:
    assert (await request(gateway.port, "GET", path, bearer("u"))).status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", ["/ws", "/sse", "/poll"])
async def test_other_methods_are_405(gateway: GatewayProcess, path: str, method: str) -> None:
    answer = await request(gateway.port, method, path, {**bearer("u"), "Content-Length": "0"})
    assert answer.status == 405


@pytest.mark.parametrize("path", ["/ws", "/sse", "/poll?wait=30"])
async def test_a_head_request_holds_nothing(gateway: GatewayProcess, path: str) -> None:
    assert (await request(gateway.port, "HEAD", path, bearer("u"))).status == 405


async def test_a_body_is_413(gateway: GatewayProcess, path: str) -> None:
    fields = upgrade_headers() if path == "/ws" else {}
    declared = await request(
        gateway.port, "GET", path, {**bearer("u"), **fields, "Content-Length": "5"}, body=b"hello"
    )
    assert declared.status == 413
    chunked = await request(
        gateway.port,
        "GET",
        path,
        {**bearer("u"), **fields, "Transfer-Encoding": "chunked"},
        body=b"5\r\nhello\r\n0\r\n\r\n",
    )
    assert chunked.status == 413


async def test_a_body_of_no_bytes_is_none(gateway: GatewayProcess) -> None:
    answer = await ask(gateway, "/poll?wait=0", {**bearer("u"), "Content-Length": "0"})
    assert answer.status == 200


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"Upgrade": None}, 426),
        ({"Connection": None}, 426),
        ({"Connection": "keep-alive"}, 426),
        ({"Upgrade": "h2c"}, 426),
        ({"Sec-WebSocket-Version": "8"}, 426),
        ({"Sec-WebSocket-Version": None}, 426),
        ({"Sec-WebSocket-Key": None}, 400),
        ({"Sec-WebSocket-Key": "short"}, 400),
        ({"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZ!=="}, 400),
        ({"Sec-WebSocket-Key": ""}, 400),
    ],
)
async def test_a_bad_handshake_is_refused_with_its_reason(
    gateway: GatewayProcess, change: dict[str, str | None], status: int
) -> None:
    changed: dict[str, str | None] = {**upgrade_headers(), **bearer("u"), **change}
    fields = {name: value for name, value in changed.items() if value is not None}
    answer = await request(gateway.port, "GET", "/ws", fields)
    assert answer.status == status
    assert answer.body
    if status == 426:
        assert answer.headers["upgrade"] == "websocket"
        assert answer.headers["sec-websocket-version"] == "13"


async def test_upgrade_and_connection_have_no_case(gateway: GatewayProcess) -> None:
    fields = upgrade_headers() | {"Upgrade": "WebSocket", "Connection": "UPGRADE"}
    assert (await request(gateway.port, "GET", "/ws", {**bearer("u"), **fields})).status == 101


async def test_an_upgrade_request_elsewhere_is_an_ordinary_one(gateway: GatewayProcess) -> None:
    fields = {**bearer("u"), **upgrade_headers()}
    assert (await request(gateway.port, "GET", "/poll?wait=0", fields)).status == 200
    assert (await request(gateway.port, "GET", "/nowhere", fields)).status == 404


@pytest.mark.parametrize("user", ["ü@example.com", "a/b", "漢字 mit Leerzeichen", "x" * 256])
async def test_any_valid_user_id_is_one_here_too(
    gateway: GatewayProcess, pusher: Pusher, user: str
) -> None:
    async with wire_to(gateway.port) as first, wire_to(gateway.port) as second:
        websocket = await open_websocket(first, bearer(user))
        stream = await open_sse(second, bearer(user))
        assert await pusher.push([{"user": user, "data": "x"}]) == [2]
        assert (await websocket.message()).payload == b"x"
        assert (await stream.message()).payload == b"x"


async def test_garbage_is_answered_with_400_and_the_end(gateway: GatewayProcess) -> None:
    async with wire_to(gateway.port) as wire:
        await wire.send(b"\x16\x03\x01 not http\r\n\r\n")
        assert (await wire.answer()).status == 400
        await wire.ended()


async def test_the_browser_client_is_served(gateway: GatewayProcess) -> None:
    answer = await request(gateway.port, "GET", "/pushgate.js")
    assert answer.status == 200
    assert "javascript" in answer.headers["content-type"]


async def test_health_is_on_both_ports_for_everyone(gateway: GatewayProcess) -> None:
    for port in (gateway.port, gateway.internal_port):
        assert (await request(port, "GET", "/healthz")).status == 200
        assert (await request(port, "GET", "/readyz")).status == 200
