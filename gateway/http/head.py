"""The head of a request that wants to connect, read once.

A dozen fields are looked at on each handshake; starlette's headers look through the list each time.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from starlette.datastructures import QueryParams
from starlette.requests import cookie_parser
from starlette.types import Scope


class Head:
    """A request's method, address and fields. A field that comes repeatedly is joined.

    (RFC 9110 §5.3.) So a second Origin or Authorization makes neither count.
    """

    def __init__(self, scope: Scope) -> None:
        fields: dict[str, str] = {}
        for raw_name, raw_value in scope["headers"]:
            name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
            fields[name] = f"{fields[name]}, {value}" if name in fields else value
        client = scope["client"]
        self.method: str = scope["method"]
        self.address: str = client[0] if client else ""
        self.fields: Mapping[str, str] = fields
        self._query: bytes = scope["query_string"]

    @cached_property
    def query(self) -> Mapping[str, str]:
        """The query's parameters; of repeated ones the last."""
        return QueryParams(self._query) if self._query else {}

    @property
    def cookies(self) -> Mapping[str, str]:
        """The cookies."""
        cookie = self.fields.get("cookie")
        return cookie_parser(cookie) if cookie else {}

    @property
    def subprotocols(self) -> list[str]:
        """What Sec-WebSocket-Protocol offers, in its order."""
        offered = self.fields.get("sec-websocket-protocol")
        return [name.strip() for name in offered.split(",")] if offered else []

    @property
    def has_body(self) -> bool:
        """Whether something follows the head."""
        length = self.fields.get("content-length", "0")
        return length != "0" or "transfer-encoding" in self.fields
