"""Which pages may connect, and whose cookies count: listed ones, the own ones, and others."""

import pytest
from structlog.testing import capture_logs

from gateway.entry.origin import Origins, RefusedOrigins, Trust

HOST = "push.example.com"
NOW = 70_000.0


def trust(
    allowed: str, origin: str | None, host: str = HOST, *, tls: bool = False, local: bool = False
) -> Trust:
    return Origins(allowed, local_pages=local).trust(origin, host=host, tls=tls)


def allows(allowed: str, origin: str, host: str = HOST, *, tls: bool = False) -> bool:
    return trust(allowed, origin, host, tls=tls) is not Trust.NONE


@pytest.mark.parametrize(
    "origin",
    [
        "https://example.com",
        "https://example.com:443",
        "HTTPS://EXAMPLE.COM",
        "https://Example.com",
        "http://localhost:3000",
        "https://[::1]:8443",
    ],
)
def test_an_origin_on_the_list_may_connect(origin: str) -> None:
    listed = "https://example.com, http://localhost:3000,https://[::1]:8443"
    assert trust(listed, origin) is Trust.COOKIE


@pytest.mark.parametrize(
    "origin",
    [
        "",
        "null",
        "*",
        "example.com",
        "//example.com",
        "http://example.com",
        "https://example.com:8443",
        "https://example.com:80",
        "https://evilexample.com",
        "https://example.com.evil",
        "https://example.com.",
        "https://www.example.com",
        "https://example.com@evil",
        "https://evil@example.com",
        "https://example.com/",
        "https://example.com/path",
        "https://example.com?query",
        "https://example.com\\@evil",
        "https://example.com:443:443",
        "https://example.com:x",
        "https://example.com:99999",
        "https://example.com, https://evil",
        "https://example.com https://evil",
        "https://",
        "https://[",
        "https://[::1",
        "file://",
        "file:///etc/passwd",
        "data:text/html,x",
        "https://example\u2024com",
        "https://ex\u00e4mple.com",
        "https://example.com" + "x" * 100_000,
    ],
    ids=lambda origin: repr(origin[:40]),
)
def test_any_other_origin_may_not(origin: str) -> None:
    assert not allows("https://example.com", origin)
    assert not allows("https://example.com", origin, host="example.com", tls=True)


def test_a_port_of_zero_is_not_the_default_port() -> None:
    assert not allows("https://example.com", "https://example.com:0")


@pytest.mark.parametrize(
    "origin", ["https://a.example.com", "https://a.b.example.com", "https://A.EXAMPLE.com:443"]
)
def test_a_wildcard_stands_for_whole_labels(origin: str) -> None:
    assert trust("https://*.example.com", origin) is Trust.COOKIE


@pytest.mark.parametrize(
    "origin",
    [
        "https://example.com",
        "https://evilexample.com",
        "https://a.example.com.evil",
        "https://a.example.com:8443",
        "http://a.example.com",
        "https://a.example.comx",
        "https://a.example.com@evil",
        "https://evil/.example.com",
        "https://evil?.example.com",
        "https://evil#.example.com",
        "https://evil\\.example.com",
        "https://a..example.com",
        "https://..example.com",
        "https://.example.com",
        "https://a.example..com",
        "null",
    ],
)
def test_a_wildcard_stands_for_nothing_else(origin: str) -> None:
    assert not allows("https://*.example.com", origin)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://push.example.com", "push.example.com"),
        ("https://push.example.com", "PUSH.example.com"),
        ("https://push.example.com", "push.example.com:443"),
        ("https://push.example.com:8443", "push.example.com:8443"),
        ("http://localhost:8080", "localhost:8080"),
        ("http://127.0.0.1:8080", "127.0.0.1:8080"),
        ("http://[::1]:8080", "[::1]:8080"),
    ],
)
def test_the_own_origin_may_connect_whatever_the_list(origin: str, host: str) -> None:
    for listed in ("", " , ", "https://example.com", "*"):
        assert trust(listed, origin, host) is Trust.COOKIE


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://evil", HOST),
        ("https://evilpush.example.com", HOST),
        ("https://push.example.com.evil", HOST),
        ("https://example.com", HOST),
        ("https://a.push.example.com", HOST),
        ("http://push.example.com", "push.example.com:8080"),
        ("http://push.example.com:8080", "push.example.com"),
        ("null", HOST),
        ("null", "null"),
        ("null", ""),
        ("https://push.example.com", ""),
        ("https://", ""),
        ("https://push.example.com", "evil@push.example.com"),
        ("https://push.example.com", "push.example.com/evil"),
        ("https://push.example.com", "push.example.com, push.example.com"),
        ("capacitor://push.example.com", HOST),
        ("app://push.example.com", HOST),
    ],
)
def test_no_other_host_is_the_own_one(origin: str, host: str) -> None:
    assert not allows("", origin, host)
    assert not allows("https://example.org", origin, host)


def test_where_tls_ends_here_the_own_origin_is_one_of_https() -> None:
    assert allows("", "http://push.example.com")
    assert not allows("", "http://push.example.com", tls=True)
    assert allows("", "https://push.example.com", tls=True)


# Without an Origin


@pytest.mark.parametrize("listed", ["", "https://example.com", "*"])
def test_without_an_origin_the_cookie_counts_for_the_own_pages_alone(listed: str) -> None:
    def judged(fetch_site: str) -> Trust:
        return Origins(listed).trust(None, host=HOST, fetch_site=fetch_site)

    assert judged("same-origin") is Trust.COOKIE
    for other in ("", "none", "same-site", "cross-site", "Same-Origin", "same-origin, same-origin"):
        assert judged(other) is Trust.TOKEN


def test_what_a_browser_says_of_the_site_makes_no_foreign_origin_an_own_one() -> None:
    origins = Origins("https://example.com")
    evil = origins.trust("https://evil.example", host=HOST, fetch_site="same-origin")
    assert evil is Trust.NONE


# Any port, any origin, and pages of this machine


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "[::1]", "app.localhost"])
def test_any_port_of_a_loopback_host_can_be_allowed(host: str) -> None:
    for port in ("", ":80", ":1", ":65535"):
        assert trust(f"http://{host}:*", f"http://{host}{port}") is Trust.COOKIE


@pytest.mark.parametrize(
    "origin",
    [
        "https://localhost:3000",
        "http://127.0.0.1:3000",
        "http://localhost.evil:3000",
        "http://evil.localhost:3000",
        "http://evillocalhost:3000",
        "http://localhost:3000/",
        "http://localhost:*",
        "null",
    ],
)
def test_any_port_of_a_host_is_of_no_other_host_or_scheme(origin: str) -> None:
    assert not allows("http://localhost:*", origin)


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "file://", "app://-", "http://localhost:1", "x"]
)
def test_by_an_asterisk_every_page_may_connect_without_its_cookie(origin: str) -> None:
    assert trust("*", origin) is Trust.TOKEN
    assert trust("https://example.com, *", origin) is Trust.TOKEN


def test_an_origin_that_is_listed_beside_an_asterisk_keeps_its_cookie() -> None:
    assert trust("*,https://example.com", "https://example.com") is Trust.COOKIE
    assert Origins("*").allows_all
    assert not Origins("https://*.example.com, http://localhost:*").allows_all


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost:5173",
        "https://127.0.0.1",
        "http://[::1]:3000",
        "http://a.localhost:1",
        "null",
    ],
)
def test_pages_of_this_machine_may_connect_where_it_is_said_and_never_with_a_cookie(
    origin: str,
) -> None:
    assert trust("", origin, local=True) is Trust.TOKEN
    assert trust("https://example.com", origin, local=True) is Trust.TOKEN
    assert trust("", origin) is Trust.NONE


@pytest.mark.parametrize(
    "origin",
    [
        "http://192.168.1.2:3000",
        "http://localhost.evil",
        "https://evil.example",
        "",
        "null.",
        "Null",
    ],
)
def test_pages_of_other_machines_are_not_of_this_one(origin: str) -> None:
    assert trust("", origin, local=True) is Trust.NONE


# Apps and browser extensions

APPS = [
    "capacitor://localhost",
    "ionic://localhost",
    "tauri://localhost",
    "app://-",
    "chrome-extension://abcdefghijklmnopabcdefghijklmnop",
    "moz-extension://0a1b2c3d-0a1b-4c2d-8e3f-0a1b2c3d4e5f",
]


@pytest.mark.parametrize("origin", APPS)
def test_an_origin_of_an_app_can_be_allowed_exactly(origin: str) -> None:
    assert trust(f"https://example.com,{origin}", origin) is Trust.COOKIE
    assert not allows("https://example.com", origin)
    for other in APPS:
        assert allows(origin, other) is (other == origin)
    assert not allows(origin, f"{origin}:80")
    assert not allows(origin, f"{origin}x")
    assert not allows(origin, f"{origin}/")


# Lists


@pytest.mark.parametrize(
    "bad",
    [
        "example.com",
        "null",
        "https://",
        "https://example.com/",
        "https://example.com:x",
        "https://user@example.com",
        "https://example.com,**",
        "*:*",
        "*.example.com",
        "http://*:*",
        "https://example.com:*",
        "http://localhost:3000:*",
        "http://*.localhost:*",
        "capacitor://*.localhost",
        "chrome-extension://*",
        "https://a..example.com",
        "https://*..example.com",
        "https://*",
        "https://a.*.example.com",
        "https://*example.com",
    ],
)
def test_a_list_that_could_not_mean_what_it_says_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="origin"):
        Origins(bad)


# The log


def logged(refused: RefusedOrigins, origin: str, now: float) -> list[str]:
    with capture_logs() as lines:
        refused.note(origin, now)
    assert all("PUSHGATE_ORIGINS" in line["event"] for line in lines)
    return [line["origin"] for line in lines]


def test_a_refused_origin_is_logged_once_a_minute() -> None:
    refused = RefusedOrigins()
    assert logged(refused, "https://a.example", NOW) == ["https://a.example"]
    assert logged(refused, "https://a.example", NOW + 59.9) == []
    assert logged(refused, "https://b.example", NOW + 59.9) == ["https://b.example"]
    assert logged(refused, "https://a.example", NOW + 60.0) == ["https://a.example"]


def test_made_up_origins_do_not_fill_the_log() -> None:
    refused = RefusedOrigins()
    found = [logged(refused, f"https://{number}.example", NOW) for number in range(1_000)]
    assert sum(map(len, found)) == 20
    assert logged(refused, "https://again.example", NOW + 60.0) == ["https://again.example"]


def test_of_a_long_origin_the_start_is_logged() -> None:
    assert logged(RefusedOrigins(), "x" * 30_000, NOW) == ["x" * 200]
