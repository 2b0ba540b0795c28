"""The head of a request on a transport's path: method, client address, header fields, query.

A handshake reads a dozen fields. starlette's headers scan the list of all fields for every read, so
the fields are put into a dict once.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from starlette.datastructures import QueryParams
from starlette.requests import cookie_parser
from starlette.types import Scope


class Head:
    """A request's method, client address and header fields; names of fields are in lower case.

    The values of a repeated field are joined with commas (RFC 9110 §5.3). Two Origin fields
    therefore make one invalid value, and neither field counts. `tls` says whether TLS ends at this
    process.
    """

    def __init__(self, scope: Scope) -> None:
        fields: dict[str, str] = {}
        for raw_name, raw_value in scope["headers"]:
            name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
            fields[name] = f"{fields[name]}, {value}" if name in fields else value
        client = scope["client"]
        self.method: str = scope["method"]
        self.tls: bool = scope["scheme"] == "https"
        self.address: str = client[0] if client else ""
        self.fields: Mapping[str, str] = fields
        self._query: bytes = scope["query_string"]

    @cached_property
    def query(self) -> Mapping[str, str]:
        """The query's parameters; of a repeated parameter the last value."""
        return QueryParams(self._query) if self._query else {}

    @property
    def cookies(self) -> Mapping[str, str]:
        """The cookies of the Cookie field, by name."""
        cookie = self.fields.get("cookie")
        return cookie_parser(cookie) if cookie else {}

    @property
    def subprotocols(self) -> list[str]:
        """The names that Sec-WebSocket-Protocol offers, in the client's order of preference."""
        offered = self.fields.get("sec-websocket-protocol")
        return [name.strip() for name in offered.split(",")] if offered else []

    @property
    def has_body(self) -> bool:
        """Whether a body follows the head (RFC 9112 §6)."""
        length = self.fields.get("content-length", "0")
        return length != "0" or "transfer-encoding" in self.fields
