"""The demo page of `pushgate dev`, a console to try the system with, and the page's endpoints.

On loopback, for the demo page only (guard.py). The page learns of connections by the
gateways' internal ports, and of outcomes by the outcomes topic (reports.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from pushgate.demo.endpoints import HEADERS, Endpoints
from pushgate.demo.guard import own_page_only
from pushgate.demo.reports import Reports
from pushgate.ports import calling
from pushgate.publish import Publisher
from pushgate.settings import DevSettings
from pushgate.users import Users
from registry.calls import GatewayCalls
from registry.directory import Registry

__all__ = ["demo_routes"]

_SCRIPTS: Final = (
    "chart.js", "clients.js", "connections.js", "dom.js", "page.js", "sending.js", "snippets.js",
    "ways.js",
)  # fmt: skip
_FILES: Final = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/demo/page.css": ("page.css", "text/css; charset=utf-8"),
    **{f"/demo/{name}": (name, "text/javascript; charset=utf-8") for name in _SCRIPTS},
}


@asynccontextmanager
async def demo_routes(
    settings: DevSettings, *, publisher: Publisher, registry: Registry
) -> AsyncIterator[list[BaseRoute]]:
    """Yield the routes: the page with its files, and the page's endpoints under `/demo/`."""
    topic = settings.outcomes_topic
    reports = Reports(settings, topic) if topic else None
    async with calling(GatewayCalls.of(settings)) as ports:
        endpoints = Endpoints(
            settings, publisher=publisher, users=Users(registry, ports), reports=reports
        )
        routes = {
            ("GET", "/demo/about"): endpoints.about,
            ("POST", "/demo/token"): endpoints.token,
            ("POST", "/demo/send"): endpoints.send,
            ("GET", "/demo/state"): endpoints.state,
            ("DELETE", "/demo/connections"): endpoints.disconnect,
        }
        try:
            yield [
                *(
                    _file_route(path, name, media_type)
                    for path, (name, media_type) in _FILES.items()
                ),
                *(
                    Route(path, own_page_only(endpoint), methods=[method])
                    for (method, path), endpoint in routes.items()
                ),
            ]
        finally:
            if reports is not None:
                await reports.close()


def _file_route(path: str, name: str, media_type: str) -> Route:
    async def file(request: Request) -> Response:  # noqa: ARG001
        # Read at every request: while the page is edited, a reload shows the changes.
        content = files("pushgate.demo").joinpath(name).read_bytes()
        return Response(content, media_type=media_type, headers=HEADERS)

    return Route(path, own_page_only(file), methods=["GET"])
