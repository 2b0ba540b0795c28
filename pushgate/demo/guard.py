"""Who may use the demo page's endpoints: the demo page, on this machine, and no other page.

The endpoints mint tokens and end connections for anyone, so a page of a foreign origin must not
reach the endpoints: neither by a cross-origin request (the Origin field is checked, and requests
that change something need a field that only a page of the same origin can set), nor by DNS
rebinding, through a foreign name that resolves to 127.0.0.1 (the Host field is checked).
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

#: A field that the page's script sets. A page of another origin would have to ask first (a
#: preflight, Fetch §4.8), and is answered without permission.
PAGE_FIELD: Final = "pushgate-demo"

Endpoint = Callable[[Request], Awaitable[Response]]


def own_page_only(endpoint: Endpoint) -> Endpoint:
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
        return "the demo page is for this machine only: open it as http://localhost or http://127.0.0.1"
    if origin is not None and origin.lower() != f"http://{host}".lower():
        return "this origin is not the demo page's"
    if method == "GET":
        return None
    # A browser sends Origin with every other method.
    if origin is None:
        return "no Origin: this is for the demo page only"
    if PAGE_FIELD not in headers:
        return f"no {PAGE_FIELD}: this is for the demo page only"
    return None


def _is_loopback(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False
