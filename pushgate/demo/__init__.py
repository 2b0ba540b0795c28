"""The demo page of `pushgate dev`, and the page's endpoints: on loopback, for the demo page only.

The endpoints mint tokens for anyone, so a page of a foreign origin must not reach the endpoints:
neither by a cross-origin request (the Origin field is checked), nor by DNS rebinding, through a
foreign name that resolves to 127.0.0.1 (the Host field is checked).
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files
from ipaddress import ip_address
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from gateway import metrics as gateway_metrics
from processor import metrics as processor_metrics
from processor.reading.kafka import KafkaError
from pushgate.publish import Publisher
from pushgate.token import mint
from registry.directory import Registry, RegistryUnavailable
from registry.message import valid_device, valid_user

TOKEN_SECONDS: Final = 3_600
#: Enough for the largest payload with every byte escaped in JSON.
MAX_BODY_BYTES: Final = 512 * 1024

_FILES: Final = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/demo/page.css": ("page.css", "text/css; charset=utf-8"),
    "/demo/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_HEADERS: Final = {
    # `ws:`, because not every browser counts WebSockets to the own host among 'self'.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self' ws:; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}

Endpoint = Callable[[Request], Awaitable[Response]]


class TokenRequest(msgspec.Struct):
    """The body of `POST /demo/token`."""

    user: str
    device: str | None = None


class SendRequest(msgspec.Struct):
    """The body of `POST /demo/send`; `headers` are the headers of the Kafka record."""

    user: str
    payload: str
    headers: dict[str, str] = {}


def demo_routes(*, publisher: Publisher, jwt_secret: str, registry: Registry) -> list[BaseRoute]:
    """Return the routes: the page with its files, and the page's endpoints under `/demo/`."""
    demo = _Demo(publisher, jwt_secret, registry)
    return [
        *(_file_route(path, name, media_type) for path, (name, media_type) in _FILES.items()),
        Route("/demo/token", _own_page_only(demo.token), methods=["POST"]),
        Route("/demo/send", _own_page_only(demo.send), methods=["POST"]),
        Route("/demo/state", _own_page_only(demo.state), methods=["GET"]),
    ]


class _Demo:
    def __init__(self, publisher: Publisher, jwt_secret: str, registry: Registry) -> None:
        self._publisher = publisher
        self._jwt_secret = jwt_secret
        self._registry = registry

    async def token(self, request: Request) -> Response:
        """`POST /demo/token` {user, device?} → {token}, valid for an hour."""
        body = await _body(request, TokenRequest)
        _check_user(body.user)
        if body.device is not None and not valid_device(body.device):
            raise HTTPException(400, "a device is 1–128 bytes without control characters")
        token = mint(body.user, self._jwt_secret, ttl_seconds=TOKEN_SECONDS, device=body.device)
        return JSONResponse({"token": token}, headers=_HEADERS)

    async def send(self, request: Request) -> Response:
        """`POST /demo/send` {user, payload, headers?} → {coordinates}, once Kafka has the record.

        Only the user is checked here: the processor's verdict on bad records is part of the demo.
        """
        body = await _body(request, SendRequest)
        _check_user(body.user)
        try:
            coordinates = await self._publisher.publish(
                body.user, body.payload.encode(), body.headers
            )
        except KafkaError as error:
            raise HTTPException(503, f"Kafka: {error}") from error
        return JSONResponse({"coordinates": coordinates}, headers=_HEADERS)

    async def state(self, request: Request) -> Response:
        """`GET /demo/state?user=U` → {nodes, registry_error, gateway, processor}.

        `nodes` are the live nodes of the user; `gateway` and `processor` have counters.
        """
        user = request.query_params.get("user", "")
        _check_user(user)
        nodes, registry_error = await self._look_up(user)
        state = {
            "nodes": nodes,
            "registry_error": registry_error,
            "gateway": {
                "connections": _values(gateway_metrics.CONNECTIONS, "transport"),
                "pushed": _values(gateway_metrics.PUSHED, "result"),
            },
            "processor": {"outcomes": _values(processor_metrics.OUTCOMES, "outcome")},
        }
        return JSONResponse(state, headers=_HEADERS)

    async def _look_up(self, user: str) -> tuple[list[dict[str, str]], str | None]:
        try:
            # No task refreshes this registry's node table, unlike the processor's.
            await self._registry.refresh()
            [nodes] = await self._registry.lookup([user])
        except RegistryUnavailable as error:
            return [], str(error)
        return [
            {"name": node.name, "epoch": node.epoch, "address": node.address}
            for node in nodes or ()
        ], None


def _values(metric: Any, label: str) -> dict[str, float]:
    """Return a metric's values by `label`, summed over all other labels."""
    values: dict[str, float] = {}
    for family in metric.collect():
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                name = sample.labels[label]
                values[name] = values.get(name, 0) + sample.value
    return values


def _file_route(path: str, name: str, media_type: str) -> Route:
    async def file(request: Request) -> Response:  # noqa: ARG001
        # Read at every request: while the page is edited, a reload shows the changes.
        content = files("pushgate.demo").joinpath(name).read_bytes()
        return Response(content, media_type=media_type, headers=_HEADERS)

    return Route(path, _own_page_only(file), methods=["GET"])


def _own_page_only(endpoint: Endpoint) -> Endpoint:
    """Wrap `endpoint`: a request that the demo page at a loopback address did not send gets 403."""

    @functools.wraps(endpoint)
    async def guarded(request: Request) -> Response:
        refusal = _refusal(request.method, request.headers)
        if refusal is not None:
            raise HTTPException(403, refusal)
        return await endpoint(request)

    return guarded


def _refusal(method: str, headers: Mapping[str, str]) -> str | None:
    host, origin = headers.get("host", ""), headers.get("origin")
    if not _is_loopback(host):
        return "the demo is for this machine only: open it as http://localhost or http://127.0.0.1"
    # A browser sends Origin with every POST, and with a GET by a script of a foreign origin.
    if origin is None and method != "GET":
        return "no Origin: this is for the demo page only"
    if origin is not None and origin.lower() != f"http://{host}".lower():
        return "this origin is not the demo page's"
    return None


def _is_loopback(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


_Body = TypeVar("_Body", bound=msgspec.Struct)


async def _body(request: Request, shape: type[_Body]) -> _Body:
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_BODY_BYTES:
            raise HTTPException(413, f"at most {MAX_BODY_BYTES} bytes")
    try:
        return msgspec.json.decode(raw, type=shape)
    except msgspec.DecodeError as error:
        raise HTTPException(400, f"the body is not what was expected: {error}") from error


def _check_user(user: str) -> None:
    if not valid_user(user):
        raise HTTPException(400, "a user id is 1–256 bytes without control characters")
