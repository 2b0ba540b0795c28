"""The head of a request: rules for all paths, and the head as a transport reads it.

A handshake reads a dozen fields. starlette's headers scan the list of all fields for every read, so
the fields are put into a dict once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import parse_qsl

from starlette.requests import cookie_parser
from starlette.types import Scope

#: Versions of HTTP that a request line may name. The parser also accepts 2.0, and a request line
#: without a version (HTTP/0.9).
_VERSIONS: Final = ("1.0", "1.1")
#: Bytes that no value of the Host field has, as far as is checked: delimiters of a URI, and white
#: space (RFC 9110 §7.2).
_NOT_IN_HOST: Final = b"/?#@\\ \t\n\r\f\v"


def refusal(
    version: str, fields: Sequence[tuple[bytes, bytes]], by_name: Mapping[bytes, bytes]
) -> tuple[int, str] | None:
    """Return status and reason of a refusal that holds for every path; None to take the request.

    `fields` are all fields of the head, with names in lower case; `by_name` has the last of each
    name. Two Host or two Authorization fields leave open which of the two counts, and a proxy on
    the way may have read the other one.
    """
    if version not in _VERSIONS:
        return 505, "HTTP/1.1 is spoken here"
    host = by_name.get(b"host")
    if host is None and version == "1.1":  # RFC 9112 §3.2
        return 400, "the request needs one Host field"
    if len(by_name) < len(fields):
        names = [name for name, _ in fields]
        if names.count(b"host") > 1:
            return 400, "the request needs one Host field"
        if names.count(b"authorization") > 1:
            return 400, "the request has more than one Authorization field"
    if host is not None and len(host.translate(None, _NOT_IN_HOST)) < len(host):
        return 400, "the Host field is no host"
    return None


def asks_for(fields: Mapping[str, str], protocol: str) -> bool:
    """Whether a request's fields ask to upgrade to the protocol, and no other (RFC 9110 §7.8)."""
    if fields.get("upgrade", "").lower() != protocol:
        return False
    connection = fields.get("connection", "").lower()
    return connection == "upgrade" or "upgrade" in map(str.strip, connection.split(","))


class Head:
    """A request's method, client address and header fields; names of fields are in lower case.

    The values of a repeated field are joined with commas (RFC 9110 §5.3). Two Origin fields
    therefore make one invalid value, and neither field counts. `tls` says whether TLS ends at this
    process.
    """

    def __init__(self, scope: Scope) -> None:
        raw_fields: Sequence[tuple[bytes, bytes]] = scope["headers"]
        fields = {name.decode("latin-1"): value.decode("latin-1") for name, value in raw_fields}
        if len(fields) < len(raw_fields):
            fields = _joined(raw_fields)
        if scope["http_version"] == "1.0":
            fields.pop("upgrade", None)  # to be ignored in a request of HTTP/1.0 (RFC 9110 §7.8)
        client = scope["client"]
        self.method: str = scope["method"]
        self.tls: bool = scope["scheme"] == "https"
        self.address: str = client[0] if client else ""
        self.fields: Mapping[str, str] = fields
        self._query_string: bytes = scope["query_string"]
        self._query: Mapping[str, str] | None = None  # read when it is asked for first

    @property
    def query(self) -> Mapping[str, str]:
        """The query's parameters; of a repeated parameter the last value."""
        if self._query is None:
            text = self._query_string.decode("latin-1")
            self._query = dict(parse_qsl(text, keep_blank_values=True)) if text else {}
        return self._query

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


def _joined(raw_fields: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return fields by name, with the values of repeated fields joined."""
    values: dict[str, list[str]] = {}
    for name, value in raw_fields:
        values.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
    return {name: ", ".join(all_values) for name, all_values in values.items()}
