"""Which web pages may connect: the Origin header (RFC 6454) against an allow-list."""

from __future__ import annotations

import re
from typing import Final

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_ORIGIN: Final = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]*)://([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?"
)


class Origins:
    """An allow-list of origins, compared exactly, but for hosts that start with `*.`.

    `*.` stands for one or more whole labels of a host name. An empty list allows the same host
    only: the host of the request's Host header.
    """

    def __init__(self, allowed: str) -> None:
        """Take a comma list of `scheme://host[:port]`.

        Raises:
            ValueError: an element of the list is not an origin of this form.
        """
        self._exact: set[tuple[str, str, int]] = set()
        self._below: set[tuple[str, str, int]] = set()
        for text in filter(None, (part.strip() for part in allowed.split(","))):
            parsed = _parse(text.replace("://*.", "://", 1))
            if parsed is None:
                raise ValueError(f"{text!r} is no origin: write scheme://host or scheme://*.host")
            (self._below if "://*." in text else self._exact).add(parsed)

    def allow(self, origin: str, *, host: str) -> bool:
        """Whether a page of `origin` may connect to `host` (the request's Host header)."""
        parsed = _parse(origin)
        if parsed is None:
            return False
        if not (self._exact or self._below):
            return parsed == _parse(f"{parsed[0]}://{host}")
        return parsed in self._exact or self._is_below(parsed)

    def _is_below(self, origin: tuple[str, str, int]) -> bool:
        scheme, host, port = origin
        return any(
            (scheme, port) == (s, p) and host.endswith(f".{parent}") for s, parent, p in self._below
        )


def _parse(origin: str) -> tuple[str, str, int] | None:
    match = _ORIGIN.fullmatch(origin)
    if match is None:
        return None
    scheme, host, port = match.groups()
    number = int(port) if port else _DEFAULT_PORTS.get(scheme.lower())
    return None if number is None else (scheme.lower(), host.lower(), number)
