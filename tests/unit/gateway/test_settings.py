"""A gateway's settings: what it registers under, and bad values that stop the start."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from gateway.settings import GatewaySettings

SECRETS: dict[str, Any] = {"jwt_secret": "x" * 32, "internal_secret": "y" * 32}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in GatewaySettings.model_fields:
        monkeypatch.delenv(f"PUSHGATE_{name.upper()}", raising=False)


def settings(**given: Any) -> GatewaySettings:
    return GatewaySettings(**(SECRETS | given))


def refusal(**given: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        settings(**given)
    return str(caught.value)


def test_the_defaults_are_those_of_the_product() -> None:
    made = settings()
    assert (made.host, made.port) == ("0.0.0.0", 8080)
    assert (made.internal_host, made.internal_port) == ("127.0.0.1", 8081)
    assert made.origins == ""
    assert made.max_payload_bytes == 65_536
    assert made.send_buffer_bytes == 262_144
    assert made.repeat_window_messages == 131_072
    assert (made.slow_consumer, made.max_age_seconds) == ("close", 1_800)
    assert (made.heartbeat_seconds, made.heartbeat_timeout_seconds) == (25, 10)
    assert (made.drain_seconds, made.drain_settle_seconds, made.drain_rate) == (60, 5, 0)
    assert (made.max_connections_per_user, made.max_connections_per_address) == (64, 0)
    assert made.algorithms == {"HS256"}
    assert (made.workers, made.tls_cert, made.trusted_networks) == (1, None, ())


def test_the_environment_sets_what_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUSHGATE_PORT", "9000")
    assert settings().port == 9000
    assert settings(port=9001).port == 9001


@pytest.mark.parametrize("name", SECRETS)
def test_without_a_secret_there_is_no_start(name: str) -> None:
    with pytest.raises(ValidationError, match=name):
        GatewaySettings(**{key: value for key, value in SECRETS.items() if key != name})
    assert name in refusal(**{name: ""})


def test_secrets_are_not_shown() -> None:
    shown = repr(
        settings(
            jwt_secret="marker" * 6,
            internal_secret="marker" * 6,
            internal_secret_previous="marker" * 6,
        )
    )
    assert "marker" not in shown


@pytest.mark.parametrize("name", ["jwt_secret", "internal_secret", "internal_secret_previous"])
@pytest.mark.parametrize("short", ["marker", "x" * 31, "marker" * 5])
def test_a_secret_that_can_be_guessed_stops_the_start(name: str, short: str) -> None:
    told = refusal(**{name: short})
    assert name in told
    assert "32 bytes" in told
    assert settings(**{name: short.ljust(32, "x")})


def test_the_length_of_a_secret_is_in_bytes() -> None:
    assert settings(jwt_secret="é" * 16)
    assert "jwt_secret" in refusal(jwt_secret="é" * 15 + "x")


@pytest.mark.parametrize("name", ["internal_secret", "internal_secret_previous"])
@pytest.mark.parametrize(
    "bad",
    ["", " ".rjust(32, "m"), " ".ljust(32, "m"), "mar\nker" * 6, "mar\rker" * 6, "märker" * 6,
     "\x00" * 32],
)  # fmt: skip
def test_a_secret_that_no_header_carries_stops_the_start(name: str, bad: str) -> None:
    told = refusal(**{name: bad})
    assert name in told
    assert "printable" in told


def test_the_internal_listener_takes_one_secret_or_two() -> None:
    new, old = SECRETS["internal_secret"], "x" * 32
    assert settings().internal_secrets == [new]
    assert settings(internal_secret_previous=old).internal_secrets == [new, old]


def test_a_node_registers_its_internal_address() -> None:
    assert settings().node(8083).address == "127.0.0.1:8083"
    assert settings(internal_host="::1").node(8083).address == "[::1]:8083"
    assert settings(internal_host="10.1.2.3").node(1).address == "10.1.2.3:1"


def test_a_node_registers_what_it_is_told_to_advertise() -> None:
    made = settings(internal_host="0.0.0.0", advertise_address="gw-0.gw:8081")
    assert made.node(8083).address == "gw-0.gw:8081"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "[::]", "0", "0:0:0:0:0:0:0:0", "::0"])
def test_a_wildcard_is_never_registered(host: str) -> None:
    assert "PUSHGATE_ADVERTISE_ADDRESS" in refusal(internal_host=host)


@pytest.mark.parametrize("address", ["0.0.0.0:8081", "[::]:8081"])
def test_a_wildcard_is_not_registered_by_command_either(address: str) -> None:
    assert address in refusal(advertise_address=address)


@pytest.mark.parametrize("address", ["http://gw:8081", "gw", "gw:", "", "gw:80/x", "gw:80\r\nx"])
def test_what_is_no_address_is_not_advertised(address: str) -> None:
    assert "advertise_address" in refusal(advertise_address=address)


@pytest.mark.parametrize("origins", ["example.com", "https://example.com/", "null"])
def test_a_list_that_is_not_of_origins_stops_the_start(origins: str) -> None:
    assert "origins" in refusal(origins=origins)


def test_each_start_is_an_epoch_of_its_own() -> None:
    made = settings(node_name="gw-a")
    first, second = made.node(8081), made.node(8081)
    assert first.name == second.name == "gw-a"
    assert first.epoch != second.epoch


@pytest.mark.parametrize(
    "host", ["gw", "gw.example.com", "g" * 64, "h\u00f4te", "a b:c/d\n", "", "\u0664"]
)
def test_a_node_is_named_after_its_host_and_port(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: host)
    first, second = settings().node(8081), settings().node(8082)
    assert first.name.endswith("-8081")
    assert first.name != second.name


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a" * 65, "gw\n", "g\u00e9"])
def test_a_name_that_could_break_an_entry_is_refused(name: str) -> None:
    assert "node_name" in refusal(node_name=name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", -1),
        ("port", 65_536),
        ("port", "http"),
        ("internal_port", 65_536),
        ("repeat_window_messages", -1),
        ("repeat_window_messages", 16_777_217),
        ("max_payload_bytes", 0),
        ("max_payload_bytes", 4 * 1024 * 1024 + 1),
        ("send_buffer_bytes", 0),
        ("heartbeat_seconds", 0),
        ("heartbeat_seconds", -1),
        ("heartbeat_seconds", "often"),
        ("heartbeat_timeout_seconds", 0),
        ("poll_grace_seconds", 0),
        ("poll_buffer_bytes", 0),
        ("inbound_bytes", 124),
        ("redis_timeout_seconds", 0),
        ("redis_url", "http://localhost"),
        ("redis_url", "localhost:6379"),
        ("jwt_algorithms", ""),
        ("jwt_algorithms", "none"),
        ("jwt_algorithms", "HS256,HS512"),
        ("jwt_max_seconds", 0),
        ("jwks_url", "file:///etc/passwd"),
        ("jwks_refresh_seconds", 0.5),
        ("max_connections", 0),
        ("max_connections_per_address", -1),
        ("max_connections_per_user", -1),
        ("handshakes_per_second", -1),
        ("max_memory_bytes", -1),
        ("head_seconds", 0),
        ("max_head_bytes", 1_023),
        ("inbound_frames_per_second", 0),
        ("kernel_buffer_bytes", -1),
        ("slow_consumer", "drop-newest"),
        ("max_age_seconds", -1),
        ("max_age_jitter_seconds", -1),
        ("reconnect_delay_seconds", -1),
        ("drain_seconds", -1),
        ("drain_settle_seconds", -1),
        ("drain_rate", -1),
        ("workers", 0),
        ("proxy_protocol_from", "10.0.0.1/8"),
        ("proxy_protocol_from", "balancer"),
    ],
)
def test_a_value_out_of_bounds_stops_the_start(name: str, value: object) -> None:
    assert name in refusal(**{name: value})


@pytest.mark.parametrize(
    "name", ["heartbeat_seconds", "heartbeat_timeout_seconds", "poll_grace_seconds"]
)
@pytest.mark.parametrize("value", [300, 86_400, math.inf, math.nan])
def test_what_the_clock_can_not_wait_for_stops_the_start(name: str, value: float) -> None:
    assert name in refusal(**{name: value})


def test_keys_are_needed_for_algorithms_of_two_keys_and_no_secret_is() -> None:
    assert "PUSHGATE_JWKS_URL" in refusal(jwt_algorithms="RS256")
    assert "PUSHGATE_JWKS_URL" in refusal(jwt_algorithms="HS256,ES256")
    made = settings(jwt_algorithms="RS256, ES256", jwt_secret=None, jwks_file="keys.json")
    assert made.algorithms == {"RS256", "ES256"}
    assert "PUSHGATE_JWKS_FILE" in refusal(jwks_url="https://id.example/keys", jwks_file="keys")
    assert "jwt_secret" in refusal(
        jwt_algorithms="HS256,RS256", jwt_secret=None, jwks_file="keys.json"
    )


@pytest.mark.parametrize("given", [{"tls_cert": "c.pem"}, {"tls_key": "k.pem"}])
def test_half_of_tls_stops_the_start(given: dict[str, str]) -> None:
    assert "PUSHGATE_TLS_CERT and PUSHGATE_TLS_KEY" in refusal(**given)


def test_networks_of_balancers_are_read_and_go_with_plaintext_alone() -> None:
    made = settings(proxy_protocol_from="10.0.0.0/8, 192.0.2.7,2001:db8::/32,")
    assert list(map(str, made.trusted_networks)) == ["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32"]
    assert "PUSHGATE_PROXY_PROTOCOL_FROM" in refusal(
        tls_cert="c.pem", tls_key="k.pem", proxy_protocol_from="10.0.0.0/8"
    )


def test_each_worker_has_an_internal_port_a_name_and_an_address_of_its_own() -> None:
    made = settings(workers=3, node_name="gw", advertise_address="[2001:db8::1]:8081")
    workers = [made.for_worker(index) for index in range(3)]
    assert [worker.internal_port for worker in workers] == [8081, 8082, 8083]
    nodes = [worker.node(worker.internal_port) for worker in workers]
    assert [node.name for node in nodes] == ["gw-0", "gw-1", "gw-2"]
    assert [node.address for node in nodes] == [f"[2001:db8::1]:{8081 + i}" for i in range(3)]
    assert {worker.port for worker in workers} == {8080}


@pytest.mark.parametrize(
    "given",
    [
        {"port": 0},
        {"internal_port": 0},
        {"internal_port": 65_534},
        {"port": 8_083},
        {"port": 8_081},
    ],
)
def test_ports_that_workers_would_fight_for_stop_the_start(given: dict[str, int]) -> None:
    assert "PUSHGATE_" in refusal(workers=3, **given)
    assert settings(**given)


@pytest.mark.parametrize(
    "key",
    [
        "-----BEGIN PUBLIC KEY-----\nmarker\n-----END PUBLIC KEY-----",
        '{"kty": "oct", "k": "bWFya2VyLW1hcmtlcg"}',
    ],
)
def test_a_key_of_another_kind_is_no_secret(key: str) -> None:
    told = refusal(jwt_secret=key)
    assert "jwt_secret" in told
    assert "marker" not in told


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"internal_host": "10.1.2.3"},
        {"internal_host": "::1"},
        {"internal_host": "0.0.0.0", "advertise_address": "192.168.0.1:8081"},
        {"advertise_address": "[fd00::1]:8081"},
    ],
)
def test_a_node_outside_the_gateways_networks_does_not_start(given: dict[str, str]) -> None:
    told = refusal(**given, gateway_networks="192.0.2.0/24, 2001:db8::/32")
    assert "PUSHGATE_GATEWAY_NETWORKS" in told
    assert "192.0.2.0/24" in told


@pytest.mark.parametrize(
    "given",
    [
        {"internal_host": "192.0.2.9"},
        {"internal_host": "2001:db8::9"},
        {"internal_host": "0.0.0.0", "advertise_address": "[2001:db8::1]:8081"},
        {"internal_host": "0.0.0.0", "advertise_address": "[::ffff:192.0.2.1]:8081"},
        {"advertise_address": "gw-0.gw:8081"},
    ],
)
def test_a_node_in_the_gateways_networks_starts_and_a_name_is_left_to_callers(
    given: dict[str, str],
) -> None:
    assert settings(**given, gateway_networks="192.0.2.0/24, 2001:db8::/32")


def test_tls_of_the_internal_port_needs_both_files() -> None:
    for name in ("internal_tls_cert", "internal_tls_key"):
        told = refusal(**{name: "file.pem"})
        assert "PUSHGATE_INTERNAL_TLS_CERT" in told
        assert "PUSHGATE_INTERNAL_TLS_KEY" in told
    assert settings(internal_tls_cert="cert.pem", internal_tls_key="key.pem")
