"""Settings as flags: named when they are bad, never echoed when they are secret."""

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from pydantic import SecretStr
from pydantic_settings import BaseSettings

from pushgate.cli import cli
from pushgate.options import load, settings_options
from pushgate.settings import (
    AuditSettings,
    DevSettings,
    GatewayCommandSettings,
    ListenSettings,
    ProcessorCommandSettings,
    SendSettings,
    TokenSettings,
)
from tests.support.certificate import write_certificate

COMMANDS: dict[str, type[BaseSettings]] = {
    "dev": DevSettings,
    "gateway": GatewayCommandSettings,
    "processor": ProcessorCommandSettings,
    "send": SendSettings,
    "listen": ListenSettings,
    "token": TokenSettings,
    "audit": AuditSettings,
}
FIELDS = [(command, name) for command, made in COMMANDS.items() for name in made.model_fields]
SECRETS: dict[str, Any] = {"jwt_secret": "x" * 32, "internal_secret": "y" * 32}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for _, name in FIELDS:
        monkeypatch.delenv(f"PUSHGATE_{name.upper()}", raising=False)


def explained(settings: type[BaseSettings], **flags: Any) -> str:
    with pytest.raises(click.UsageError) as caught:
        load(settings, SECRETS | flags)
    assert caught.value.__suppress_context__
    return caught.value.message


def test_a_flag_beats_the_environment_which_beats_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert load(GatewayCommandSettings, SECRETS).port == 8080
    monkeypatch.setenv("PUSHGATE_PORT", "9000")
    assert load(GatewayCommandSettings, SECRETS | {"port": None}).port == 9000
    assert load(GatewayCommandSettings, SECRETS | {"port": "9001"}).port == 9001


def test_the_environment_beats_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("dev") / "dev.env"
    of_file, of_environment = "of-file".ljust(32, "x"), "of-environment".ljust(32, "x")
    file.write_text(f"PUSHGATE_JWT_SECRET={of_file}\nPUSHGATE_OTHER=ignored\n")
    given = load(TokenSettings, {}, files=(str(file),))
    assert given.jwt_secret.get_secret_value() == of_file
    monkeypatch.setenv("PUSHGATE_JWT_SECRET", of_environment)
    given = load(TokenSettings, {}, files=(str(file),))
    assert given.jwt_secret.get_secret_value() == of_environment


def test_a_file_that_is_not_there_is_no_error() -> None:
    assert load(TokenSettings, SECRETS, files=("/nonexistent/dev.env",)).jwt_secret


@pytest.mark.parametrize(
    ("settings", "name", "value"),
    [
        (GatewayCommandSettings, "port", "eighty"),
        (GatewayCommandSettings, "port", "65536"),
        (GatewayCommandSettings, "redis_url", "http://localhost"),
        (GatewayCommandSettings, "redis_url", "redis://localhost:x/0"),
        (GatewayCommandSettings, "redis_url", "redis+sentinel://localhost:x/main"),
        (GatewayCommandSettings, "node_name", "a b"),
        (GatewayCommandSettings, "log_json", "perhaps"),
        (GatewayCommandSettings, "heartbeat_seconds", "-1"),
        (GatewayCommandSettings, "origins", "example.com"),
        (GatewayCommandSettings, "advertise_address", "http://gw:8081"),
        (GatewayCommandSettings, "advertise_address", "gw:99999"),
        (GatewayCommandSettings, "advertise_address", "999.1.1.1:80"),
        (GatewayCommandSettings, "slow_consumer", "wait"),
        (GatewayCommandSettings, "drain_rate", "-1"),
        (GatewayCommandSettings, "workers", "0"),
        (GatewayCommandSettings, "jwks_url", "ftp://localhost/keys"),
        (GatewayCommandSettings, "gateway_networks", "10.0.0.1/8"),
        (GatewayCommandSettings, "proxy_protocol_from", "10.0.0.0/33"),
        (ProcessorCommandSettings, "gateway_networks", "gateways"),
        (ProcessorCommandSettings, "internal_tls_ca", "/nowhere/ca.pem"),
        (ProcessorCommandSettings, "internal_auth", "none"),
        (AuditSettings, "internal_auth", "secret"),
        (ProcessorCommandSettings, "kafka_bootstrap", "localhost:abc"),
        (ProcessorCommandSettings, "kafka_ca_file", "/nowhere/ca.pem"),
        (ProcessorCommandSettings, "kafka_topics", " , "),
        (ProcessorCommandSettings, "kafka_security_protocol", "TLS"),
        (ProcessorCommandSettings, "processor_port", "x"),
        (ListenSettings, "url", "ws://localhost"),
    ],
)
def test_a_bad_value_is_named_with_its_setting(
    settings: type[BaseSettings], name: str, value: str
) -> None:
    message = explained(settings, **{name: value})
    assert name.upper() in message.upper()
    assert repr(value) in message


def test_a_bad_value_of_the_environment_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUSHGATE_PORT", "eighty")
    message = explained(GatewayCommandSettings)
    assert "PUSHGATE_PORT" in message
    assert "'eighty'" in message


def test_every_bad_value_is_named_at_once() -> None:
    message = explained(GatewayCommandSettings, port="x", internal_port="y")
    assert "PUSHGATE_PORT" in message
    assert "PUSHGATE_INTERNAL_PORT" in message


def test_what_is_missing_is_named_with_what_it_is() -> None:
    with pytest.raises(click.UsageError) as caught:
        load(GatewayCommandSettings, {})
    assert "PUSHGATE_JWT_SECRET is not set: " in caught.value.message
    assert "PUSHGATE_INTERNAL_SECRET is not set: " in caught.value.message


def test_without_hs256_no_secret_is_asked_for() -> None:
    message = explained(GatewayCommandSettings, jwt_algorithms="RS256", jwt_secret=None)
    assert "PUSHGATE_JWKS_URL" in message
    assert "PUSHGATE_JWT_SECRET" not in message


def test_an_address_that_nobody_could_reach_is_explained() -> None:
    message = explained(GatewayCommandSettings, internal_host="0.0.0.0")
    assert "PUSHGATE_ADVERTISE_ADDRESS" in message
    assert "0.0.0.0" in message


def test_a_secret_is_never_echoed() -> None:
    bad = {"jwt_secret": "", "internal_secret": ""}
    assert "PUSHGATE_JWT_SECRET" in explained(GatewayCommandSettings, **bad)
    message = explained(GatewayCommandSettings, jwt_secret="marker", port="x")
    assert "marker" not in message
    sasl = {"kafka_security_protocol": "SASL_SSL", "kafka_sasl_password": "marker"}
    message = explained(ProcessorCommandSettings, **sasl)
    assert "PUSHGATE_KAFKA_SASL_USERNAME" in message
    assert "marker" not in message


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (GatewayCommandSettings, "jwt_secret"),
        (GatewayCommandSettings, "internal_secret"),
        (GatewayCommandSettings, "internal_secret_previous"),
        (ProcessorCommandSettings, "internal_secret"),
        (DevSettings, "jwt_secret"),
        (DevSettings, "internal_secret"),
        (TokenSettings, "jwt_secret"),
        (ListenSettings, "jwt_secret"),
        (AuditSettings, "internal_secret"),
    ],
)
def test_a_short_secret_is_named_with_its_cure_and_not_echoed(
    settings: type[BaseSettings], name: str
) -> None:
    message = explained(settings, **{name: "marker" * 5})
    assert f"PUSHGATE_{name.upper()}: shorter than 32 bytes" in message
    assert "openssl rand -hex 32" in message
    assert "marker" not in message


def test_dev_has_tls_at_both_ends_of_its_internal_calls_or_at_none(tmp_path: Path) -> None:
    cert, key = map(str, write_certificate(tmp_path))
    served = {"internal_tls_cert": cert, "internal_tls_key": key}
    for half in (served, {"internal_tls_ca": cert}):
        message = explained(DevSettings, **half)
        assert "PUSHGATE_INTERNAL_TLS_CERT" in message
        assert "PUSHGATE_INTERNAL_TLS_CA" in message
    assert load(DevSettings, {**served, "internal_tls_ca": cert})


def test_the_secrets_that_dev_makes_are_long_enough() -> None:
    made = load(DevSettings, {})
    for secret in (made.jwt_secret, made.internal_secret):
        assert load(TokenSettings, {"jwt_secret": secret.get_secret_value()})


@pytest.mark.parametrize(
    "url",
    [
        "http://user:marker@localhost",
        "redis:/user:marker@localhost",
        "user:marker@localhost:6379",
        "://:marker@localhost",
    ],
)
def test_a_password_in_a_bad_address_is_not_echoed(url: str) -> None:
    message = explained(GatewayCommandSettings, redis_url=url)
    assert "PUSHGATE_REDIS_URL" in message
    assert "marker" not in message
    assert "localhost" in message


@pytest.mark.parametrize(("command", "name"), FIELDS)
def test_every_setting_has_a_flag_a_variable_and_a_sentence(command: str, name: str) -> None:
    field = COMMANDS[command].model_fields[name]
    assert field.description
    assert field.description[0].isupper() or field.description.startswith("host:port")
    assert field.description.endswith(".")
    found = cli.get_command(click.Context(cli), command)
    assert found is not None
    parameters = {option: one for one in found.params for option in one.opts}
    option = parameters[f"--{name.replace('_', '-')}"]
    assert isinstance(option, click.Option)
    assert option.help is not None
    assert field.description in option.help
    assert f"PUSHGATE_{name.upper()}" in option.help


@pytest.mark.parametrize(("command", "name"), FIELDS)
def test_a_setting_that_holds_a_secret_has_no_default_to_show(command: str, name: str) -> None:
    field = COMMANDS[command].model_fields[name]
    if any(word in name for word in ("secret", "password")):
        assert field.annotation in (SecretStr, SecretStr | None)
        assert field.is_required() or field.default_factory or field.default is None


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_shows_every_flag(command: str) -> None:
    result = CliRunner().invoke(cli, [command, "--help"])
    assert result.exit_code == 0
    for name in COMMANDS[command].model_fields:
        assert f"--{name.replace('_', '-')}" in result.output


def test_a_bad_flag_stops_the_start_with_its_name_and_no_traceback() -> None:
    result = CliRunner().invoke(cli, ["gateway", "--port", "eighty"])
    assert result.exit_code == 2
    assert "PUSHGATE_PORT is 'eighty'" in result.output
    assert "Traceback" not in result.output


def test_a_flag_that_is_not_given_is_not_passed_on() -> None:
    seen: dict[str, Any] = {}

    @click.command()
    @settings_options(TokenSettings)
    def command(**flags: Any) -> None:
        seen.update(flags)

    assert CliRunner().invoke(command, []).exit_code == 0
    assert seen == dict.fromkeys(TokenSettings.model_fields)


def test_a_boolean_is_a_flag_without_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    @click.command()
    @settings_options(GatewayCommandSettings)
    def command(**flags: Any) -> None:
        seen.append(load(GatewayCommandSettings, flags | SECRETS).log_json)

    monkeypatch.setenv("PUSHGATE_LOG_JSON", "true")
    for words in (["--log-json"], ["--no-log-json"], []):
        assert CliRunner().invoke(command, words).exit_code == 0
    assert seen == [True, False, True]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_shows_no_pythons_own_words(command: str) -> None:
    shown = CliRunner().invoke(cli, [command, "--help"]).output
    for word in ("PydanticUndefined", "[None]", "[]", "[True]", "[False]"):
        assert word not in shown


def test_the_help_of_dev_shows_what_holds_there() -> None:
    shown = " ".join(CliRunner().invoke(cli, ["dev", "--help"]).output.split())
    for default in ("[127.0.0.1]", "[earliest]", "[push.outcomes]", "[9092]", "if not set."):
        assert default in shown
    for elsewhere in ("[redis://localhost:6379/0]", "[localhost:9092]", "[end]", "[0.0.0.0]"):
        assert elsewhere not in shown
