"""The demo page of `pushgate dev`, and the endpoints it needs: on loopback, for its own page only.

They mint tokens for anyone, so a page of another origin must not reach them: not by a request of
its own (Origin), and not by a name of its own that resolves to 127.0.0.1 (Host).
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
#: Enough for the largest payload with every byte escaped.
MAX_BODY_BYTES: Final = 512 * 1024

_FILES: Final = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/demo/page.css": ("page.css", "text/css; charset=utf-8"),
    "/demo/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_HEADERS: Final = {
    # `ws:` because not every browser counts it to 'self'.
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
    """The body of `POST /demo/send`; `headers` are those of the record."""

    user: str
    payload: str
    headers: dict[str, str] = {}


def demo_routes(*, publisher: Publisher, jwt_secret: str, registry: Registry) -> list[BaseRoute]:
    """Return the routes: the page and its files, and what it asks for under `/demo/`."""
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
        """`POST /demo/token` {user, device?} → {token}."""
        asked = await _body(request, TokenRequest)
        _check_user(asked.user)
        if asked.device is not None and not valid_device(asked.device):
            raise HTTPException(400, "a device is 1–128 bytes without control characters")
        token = mint(asked.user, self._jwt_secret, ttl_seconds=TOKEN_SECONDS, device=asked.device)
        return JSONResponse({"token": token}, headers=_HEADERS)

    async def send(self, request: Request) -> Response:
        """`POST /demo/send` {user, payload, headers?} → {coordinates}, once Kafka has it.

        Beyond the user nothing is checked here: the processor's verdict is part of the demo.
        """
        asked = await _body(request, SendRequest)
        _check_user(asked.user)
        try:
            coordinates = await self._publisher.publish(
                asked.user, asked.payload.encode(), asked.headers
            )
        except KafkaError as error:
            raise HTTPException(503, f"Kafka: {error}") from error
        return JSONResponse({"coordinates": coordinates}, headers=_HEADERS)

    async def state(self, request: Request) -> Response:
        """`GET /demo/state?user=U` → {nodes, registry_error, gateway, processor}."""
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
            await self._registry.refresh()  # nobody else keeps this one's node table fresh
            [nodes] = await self._registry.lookup([user])
        except RegistryUnavailable as error:
            return [], str(error)
        return [
            {"name": node.name, "epoch": node.epoch, "address": node.address}
            for node in nodes or ()
        ], None


def _values(metric: Any, label: str) -> dict[str, float]:
    """Return a metric's values by one of its labels, summed over the others."""
    values: dict[str, float] = {}
    for family in metric.collect():
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                name = sample.labels[label]
                values[name] = values.get(name, 0) + sample.value
    return values


def _file_route(path: str, name: str, media_type: str) -> Route:
    async def file(request: Request) -> Response:  # noqa: ARG001
        # Read each time: a page that is being worked on shows its changes on reload.
        content = files("pushgate.demo").joinpath(name).read_bytes()
        return Response(content, media_type=media_type, headers=_HEADERS)

    return Route(path, _own_page_only(file), methods=["GET"])


def _own_page_only(endpoint: Endpoint) -> Endpoint:
    """Refuse with 403 what does not come from the demo page at a loopback address."""

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
    # A browser sends an Origin with each POST, and with a GET of another origin's script.
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
