"""Which web pages may connect: the Origin field (RFC 6454) against an allow-list."""

from __future__ import annotations

import enum
import math
import re
from ipaddress import ip_address
from typing import Final, NamedTuple

import structlog

#: The schemes of web pages. Origins of other schemes are those of apps and browser extensions.
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
#: Scheme, host and port of an origin. A host name has no empty label: `a..example.com` is none.
_ORIGIN: Final = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]*)://"
    r"((?:[A-Za-z0-9_-]+\.)*[A-Za-z0-9_-]+\.?|\[[0-9A-Fa-f:.]{2,45}\])"
    r"(?::([0-9]{1,5}))?"
)
#: How often a refused origin is logged again, how many origins are logged in this time, and how
#: much of an origin is logged.
_LOG_SECONDS: Final = 60.0
_MAX_LOGGED: Final = 20
_MAX_LOGGED_CHARACTERS: Final = 200

log = structlog.get_logger("gateway.origin")


class Trust(enum.Enum):
    """How far a request is trusted, judged by the web page from which the request comes."""

    NONE = "a page of a foreign origin: refused"
    TOKEN = "admitted with a token that the client itself puts into the request"  # noqa: S105
    COOKIE = "admitted also with the cookie, which the browser adds to the request"


class _Origin(NamedTuple):
    scheme: str
    host: str
    port: int | None  # None: no port is given, and the scheme has no default port


class Origins:
    """An allow-list of origins, besides the gateway's own origin, which is always allowed.

    Elements of the list are compared exactly, with three exceptions. `*.` at the start of a host
    stands for one or more whole labels. `:*` behind a loopback host stands for any port. `*` alone
    allows every origin, and trusts the pages without their cookies.
    """

    def __init__(self, allowed: str, *, local_pages: bool = False) -> None:
        """Take a comma list of `scheme://host[:port]`, with the exceptions of the class.

        With `local_pages`, pages of any loopback origin and pages opened from a file (their origin
        is `null`) may connect too, without their cookies.

        Raises:
            ValueError: an element of the list has none of these forms.
        """
        self.allows_all = False
        self._local_pages = local_pages
        self._exact: set[_Origin] = set()
        self._below: set[_Origin] = set()
        self._any_port: set[tuple[str, str]] = set()  # scheme and host
        for element in filter(None, (part.strip() for part in allowed.split(","))):
            self._add(element)

    def trust(
        self, origin: str | None, *, host: str, fetch_site: str = "", tls: bool = False
    ) -> Trust:
        """Return how far a request is trusted.

        `origin`, `host` and `fetch_site` are the request's fields Origin, Host and Sec-Fetch-Site;
        `tls` says whether TLS ends at this process. A browser sends no Origin with a GET to the
        page's own origin, and says so in Sec-Fetch-Site. Other clients send neither field.
        """
        if origin is None:
            return Trust.COOKIE if fetch_site == "same-origin" else Trust.TOKEN
        parsed = _parse(origin)
        if parsed is not None and (self._is_listed(parsed) or _is_own(parsed, host, tls=tls)):
            return Trust.COOKIE
        if self.allows_all or (self._local_pages and _is_local(origin, parsed)):
            return Trust.TOKEN
        return Trust.NONE

    def _add(self, element: str) -> None:
        if element == "*":
            self.allows_all = True
            return
        has_any_port, has_any_label = element.endswith(":*"), "://*." in element
        plain = element[:-1] + "0" if has_any_port else element.replace("://*.", "://", 1)
        parsed = _parse(plain)
        if parsed is None or not _can_vary(parsed, port=has_any_port, label=has_any_label):
            raise ValueError(
                f"{element!r} is no origin: write scheme://host[:port], https://*.host, "
                "http://localhost:* or *"
            )
        if has_any_port:
            self._any_port.add((parsed.scheme, parsed.host))
        else:
            (self._below if has_any_label else self._exact).add(parsed)

    def _is_listed(self, origin: _Origin) -> bool:
        scheme, host, port = origin
        return (
            origin in self._exact
            or (scheme, host) in self._any_port
            or any(
                (scheme, port) == (s, p) and host.endswith(f".{parent}")
                for s, parent, p in self._below
            )
        )


class RefusedOrigins:
    """Logs the origins that are refused, at a bounded rate: an allow-list is easily incomplete.

    Each origin is logged once a minute at most, and a minute has `_MAX_LOGGED` origins at most.
    """

    def __init__(self) -> None:
        self._minute_began = -math.inf
        self._logged: set[str] = set()

    def note(self, origin: str, now: float) -> None:
        """Log a refused origin, unless the rate is used up; `now` is in seconds of any clock."""
        if now - self._minute_began >= _LOG_SECONDS:
            self._minute_began = now
            self._logged.clear()
        origin = origin[:_MAX_LOGGED_CHARACTERS]
        if origin not in self._logged and len(self._logged) < _MAX_LOGGED:
            self._logged.add(origin)
            log.warning("refused an origin that is not in PUSHGATE_ORIGINS", origin=origin)


def _parse(origin: str) -> _Origin | None:
    match = _ORIGIN.fullmatch(origin)
    if match is None:
        return None
    scheme, host, port = match.groups()
    scheme = scheme.lower()
    return _Origin(scheme, host.lower(), int(port) if port else _DEFAULT_PORTS.get(scheme))


def _can_vary(origin: _Origin, *, port: bool, label: bool) -> bool:
    """Whether an element of the list may leave open the port, or the first labels, of `origin`.

    The ports of a loopback host are all of the user's own machine; the ports of a remote host may
    belong to strangers. Hosts of apps and extensions have no labels.
    """
    return not (port and not _is_loopback(origin.host)) and not (
        label and origin.scheme not in _DEFAULT_PORTS
    )


def _is_own(origin: _Origin, host: str, *, tls: bool) -> bool:
    """Whether a page's origin is the origin to which the page sends its request.

    The Host field has no scheme. Where TLS ends at a balancer, or nowhere, both schemes count.
    """
    schemes = ("https",) if tls else ("https", "http")
    return origin.scheme in schemes and origin == _parse(f"{origin.scheme}://{host}")


def _is_local(origin: str, parsed: _Origin | None) -> bool:
    return origin == "null" or (parsed is not None and _is_loopback(parsed.host))


def _is_loopback(host: str) -> bool:
    # Browsers resolve `localhost`, and all names below it, to the loopback address (RFC 6761 §6.3).
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
