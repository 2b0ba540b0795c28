"""Which pages may connect: exact origins, whole labels below a wildcard, or the same host."""

import pytest

from gateway.entry.origin import Origins

HOST = "push.example.com"


def allows(allowed: str, origin: str, host: str = HOST) -> bool:
    return Origins(allowed).allow(origin, host=host)


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
    assert allows("https://example.com, http://localhost:3000,https://[::1]:8443", origin)


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
    assert not allows("https://example.com", origin, host="example.com")


def test_a_port_of_zero_is_not_the_default_port() -> None:
    assert not allows("https://example.com", "https://example.com:0")


@pytest.mark.parametrize(
    "origin", ["https://a.example.com", "https://a.b.example.com", "https://A.EXAMPLE.com:443"]
)
def test_a_wildcard_stands_for_whole_labels(origin: str) -> None:
    assert allows("https://*.example.com", origin)


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
def test_without_a_list_the_same_host_may_connect(origin: str, host: str) -> None:
    assert allows("", origin, host)
    assert allows(" , ", origin, host)


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
    ],
)
def test_without_a_list_no_other_host_may(origin: str, host: str) -> None:
    assert not allows("", origin, host)


def test_with_a_list_the_same_host_must_be_on_it() -> None:
    assert not allows("https://example.com", f"https://{HOST}")


@pytest.mark.parametrize(
    "bad",
    [
        "*",
        "example.com",
        "null",
        "https://",
        "https://example.com/",
        "https://example.com:x",
        "https://user@example.com",
        "https://example.com,*",
        "https://*",
        "https://a.*.example.com",
        "https://*example.com",
    ],
)
def test_a_list_that_could_not_mean_what_it_says_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="origin"):
        Origins(bad)
