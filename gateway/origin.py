"""Which web pages may connect: the Origin header (RFC 6454) against an allow-list."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class Origins:
    """An exact allow-list; a host may start with `*.`, which stands for whole labels.

    Empty means the same host only: that of the request's Host header.
    """

    def __init__(self, allowed: str) -> None:
        """Take a comma list of `scheme://host[:port]`.

        Raises:
            ValueError: an element is not of that form.
        """
        self._exact: set[tuple[str, str, int]] = set()
        self._below: set[tuple[str, str, int]] = set()
        for text in filter(None, (part.strip() for part in allowed.split(","))):
            parsed = _parse(text)
            if parsed is None:
                raise ValueError(f"{text!r} is no origin: write scheme://host or scheme://*.host")
            scheme, host, port = parsed
            if host.startswith("*."):
                self._below.add((scheme, host[1:], port))
            else:
                self._exact.add(parsed)

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
            (scheme, port) == (s, p) and host.endswith(suffix) for s, suffix, p in self._below
        )


def _parse(origin: str) -> tuple[str, str, int] | None:
    try:
        parts = urlsplit(origin)
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return None
    if port is None or not parts.hostname or parts.path or parts.query or "@" in parts.netloc:
        return None
    return parts.scheme, parts.hostname, port
