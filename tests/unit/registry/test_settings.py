"""How to reach Redis: which URLs there are, and settings that don't go with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from registry.directory import TIMINGS
from registry.settings import MAX_LOST_SECONDS, RedisAccess, RegistrySettings, TracingSettings
from tests.support.certificate import write_certificate


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RegistrySettings.model_fields:
        monkeypatch.delenv(f"PUSHGATE_{name.upper()}", raising=False)


def settings(**given: Any) -> RegistrySettings:
    return RegistrySettings(**given)


@pytest.mark.parametrize("tls", ["", "s"])
@pytest.mark.parametrize("kind", ["", "+sentinel", "+cluster"])
def test_servers_of_every_kind_can_be_reached_with_tls_and_without(tls: str, kind: str) -> None:
    url = f"redis{tls}{kind}://h1:1,h2:2"
    assert settings(redis_url=url).redis_url == url


@pytest.mark.parametrize(
    "url", ["http://h", "redis+tls://h", "redis+sentinels://h", "sredis://h", "redis+cluster:h"]
)
def test_other_urls_stop_the_start(url: str) -> None:
    with pytest.raises(ValidationError, match="redis_url"):
        settings(redis_url=url)


def test_nothing_but_the_url_is_needed() -> None:
    assert settings().redis_access == RedisAccess()


def test_elements_outlive_the_longest_time_that_a_node_may_be_lost() -> None:
    longest = settings(lost_node_seconds=MAX_LOST_SECONDS).lost_node_seconds
    last_assertion = TIMINGS.reassertion_seconds
    assert last_assertion + TIMINGS.lease_seconds + longest < TIMINGS.entry_seconds
    with pytest.raises(ValidationError, match="lost_node_seconds"):
        settings(lost_node_seconds=MAX_LOST_SECONDS + 1)


def test_the_account_at_the_sentinels_is_for_sentinels(tmp_path: Path) -> None:
    account = {"redis_sentinel_username": "u", "redis_sentinel_password": "secret word"}
    made = settings(redis_url="redis+sentinel://h", **account)
    expected = RedisAccess(sentinel_username="u", sentinel_password="secret word")
    assert made.redis_access == expected
    assert "secret word" not in repr(made) + repr(made.redis_access)
    with pytest.raises(ValidationError, match="PUSHGATE_REDIS_SENTINEL_USERNAME"):
        settings(redis_url="redis+cluster://h", **account)


def test_a_ca_is_a_readable_file_and_for_tls(tmp_path: Path) -> None:
    ca_file = str(write_certificate(tmp_path)[0])
    made = settings(redis_url="rediss+cluster://h", redis_ca_file=ca_file)
    assert made.redis_access == RedisAccess(ca_file=ca_file)
    with pytest.raises(ValidationError, match="PUSHGATE_REDIS_CA_FILE is for TLS"):
        settings(redis_url="redis://h", redis_ca_file=ca_file)
    with pytest.raises(ValidationError, match="no PEM file"):
        settings(redis_url="rediss://h", redis_ca_file=str(tmp_path / "missing"))


@pytest.mark.parametrize("url", ["http://collector:4318", "https://[::1]:4318/"])
def test_a_collectors_url_is_taken_where_the_extra_is_installed(url: str) -> None:
    assert TracingSettings(otlp_endpoint=url).otlp_endpoint == url


@pytest.mark.parametrize("url", ["collector:4318", "grpc://collector:4317", "http://"])
def test_what_is_no_url_of_a_collector_stops_the_start(url: str) -> None:
    with pytest.raises(ValidationError):
        TracingSettings(otlp_endpoint=url)


@pytest.mark.parametrize("has_parent", [True, False])
def test_a_collector_without_the_extra_stops_the_start_and_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, has_parent: bool
) -> None:
    def find_spec(name: str) -> None:
        if not has_parent:
            raise ModuleNotFoundError(name)

    monkeypatch.setattr("registry.settings.find_spec", find_spec)
    with pytest.raises(ValidationError, match=r"-r requirements/tracing\.txt"):
        TracingSettings(otlp_endpoint="http://collector:4318")
    assert TracingSettings().otlp_endpoint is None
