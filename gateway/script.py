"""`/pushgate.js`: the browser client, built from client/ and kept beside this file."""

from __future__ import annotations

import gzip
import hashlib
from importlib.resources import files
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

#: Behind a release of the gateway, pages have the client of the release before for so long.
_CACHE_SECONDS: Final = 600
_FIELDS: Final = {
    "access-control-allow-origin": "*",  # module scripts are fetched with CORS
    "cache-control": f"public, max-age={_CACHE_SECONDS}",
    "vary": "accept-encoding",
}


def script_route() -> Route:
    """Return the route of the browser client. The file is read and compressed here, once."""
    script = files("gateway").joinpath("pushgate.js").read_bytes()
    plain = _Representation(script)
    compressed = _Representation(gzip.compress(script, 9, mtime=0), encoding="gzip")

    async def serve(request: Request) -> Response:
        takes_gzip = accepts_gzip(request.headers.get("accept-encoding", ""))
        return (compressed if takes_gzip else plain).response(
            request.headers.get("if-none-match", "")
        )

    return Route("/pushgate.js", serve, methods=["GET"])


def accepts_gzip(accept_encoding: str) -> bool:
    """Whether a client takes gzip, by the value of its Accept-Encoding field (RFC 9110 §12.5.3)."""
    weights: dict[str, bool] = {}
    for element in accept_encoding.lower().split(","):
        coding, *parameters = (part.strip() for part in element.split(";"))
        weights[coding] = not any(_is_zero(parameter) for parameter in parameters)
    return weights.get("gzip", weights.get("*", False))


def _is_zero(parameter: str) -> bool:
    """Whether a parameter is a weight of zero: the coding is not acceptable."""
    name, _, value = parameter.partition("=")
    return name.strip() == "q" and not value.strip().strip("0.")


class _Representation:
    """The script in one encoding, with an entity tag of its own (RFC 9110 §8.8.3)."""

    def __init__(self, body: bytes, *, encoding: str | None = None) -> None:
        self._body = body
        self._tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        self._fields = {**_FIELDS, "etag": self._tag}
        self._coding = {} if encoding is None else {"content-encoding": encoding}

    def response(self, if_none_match: str) -> Response:
        """Return the script, or 304 where the client has it already (RFC 9110 §13.1.2)."""
        tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
        if self._tag in tags or "*" in tags:
            return Response(status_code=304, headers=self._fields)
        return Response(
            self._body,
            media_type="text/javascript; charset=utf-8",
            headers={**self._fields, **self._coding},
        )
