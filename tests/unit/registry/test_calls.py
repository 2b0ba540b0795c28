"""Calls to gateways: where they may go, over TLS or not, and what they show."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

from registry.calls import GatewayCalls, OutsideNetworks, tls_fault
from registry.directory import Node
from registry.networks import networks
from registry.proof import proof
from registry.settings import CallSettings
from tests.support.certificate import write_certificate

pytestmark = pytest.mark.anyio

SECRET = "internal secret of tests of thirty-two bytes or more"


def calls(allowed: str = "", **given: Any) -> GatewayCalls:
    return GatewayCalls(secret=SECRET, allowed=networks(allowed), **given)


def node(address: str) -> Node:
    return Node("gw-a", "e1", address)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CallSettings.model_fields:
        monkeypatch.delenv(f"PUSHGATE_{name.upper()}", raising=False)


def test_a_call_shows_a_proof_or_where_that_is_set_the_secret() -> None:
    made = node("10.0.0.1:8081")
    assert calls().headers(made) == {
        "authorization": f"Pushgate {proof(SECRET, made)}",
        "pushgate-node": "gw-a",
        "pushgate-epoch": "e1",
    }
    assert calls(auth="bearer").headers(made)["authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize("address", ["10.0.0.1:8081", "gw-a.gw:8081", "[fd00::1]:80"])
async def test_without_networks_every_address_is_called_as_it_is(address: str) -> None:
    assert await calls().url(node(address)) == f"http://{address}"


@pytest.mark.parametrize(
    ("allowed", "address"),
    [
        ("10.0.0.0/8", "10.1.2.3:8081"),
        ("192.0.2.0/24, 10.1.2.3", "10.1.2.3:8081"),
        ("fd00::/8", "[fd00::1]:80"),
        ("0.0.0.0/0", "10.1.2.3:8081"),
    ],
)
async def test_an_address_in_the_networks_is_called(allowed: str, address: str) -> None:
    assert await calls(allowed).url(node(address)) == f"http://{address}"


async def test_a_mapped_address_counts_as_the_address_that_it_maps() -> None:
    mapped = node("[::ffff:10.1.2.3]:80")
    assert await calls("10.0.0.0/8").url(mapped) == "http://10.1.2.3:80"
    with pytest.raises(OutsideNetworks):
        await calls("::/0").url(mapped)


@pytest.mark.parametrize(
    ("allowed", "address"),
    [
        ("10.0.0.0/8", "11.0.0.1:8081"),
        ("10.0.0.0/8", "169.254.169.254:80"),
        ("10.0.0.0/8", "[fd00::1]:80"),
        ("fd00::/8", "10.0.0.1:80"),
        ("0.0.0.0/0", "[fd00::1]:80"),
        # Names that are addresses to a resolver (inet_aton(3)), and the machine's own name.
        ("10.0.0.0/8", "0x7f000001:80"),
        ("10.0.0.0/8", "localhost:80"),
    ],
)
async def test_an_address_outside_the_networks_is_not_called(allowed: str, address: str) -> None:
    with pytest.raises(OutsideNetworks, match="PUSHGATE_GATEWAY_NETWORKS") as caught:
        await calls(allowed).url(node(address))
    assert address in str(caught.value)


async def test_a_name_is_called_by_the_address_that_was_checked() -> None:
    url = await calls("127.0.0.0/8").url(node("localhost:8081"))
    assert url == "http://127.0.0.1:8081"


async def test_a_name_that_nobody_has_is_an_error_of_the_resolver() -> None:
    with pytest.raises(socket.gaierror):
        await calls("10.0.0.0/8").url(node("nobody.invalid:80"))


async def test_with_a_ca_calls_are_over_tls_and_trust_this_ca_alone(tmp_path: Path) -> None:
    ca_file = str(write_certificate(tmp_path)[0])
    made = calls(ca_file=ca_file)
    assert await made.url(node("10.0.0.1:1")) == "https://10.0.0.1:1"
    assert made.tls.verify_mode is ssl.CERT_REQUIRED
    assert made.tls.minimum_version is ssl.TLSVersion.TLSv1_2
    assert made.tls.cert_store_stats()["x509"] == 1


def test_plaintext_loads_no_certificates() -> None:
    assert calls().tls.cert_store_stats()["x509"] == 0


def test_settings_describe_calls(tmp_path: Path) -> None:
    ca_file = str(write_certificate(tmp_path)[0])
    settings = CallSettings(
        internal_secret=SECRET,  # type: ignore[arg-type]
        internal_auth="bearer",
        internal_tls_ca=ca_file,
        gateway_networks="10.0.0.0/8",
    )
    made = GatewayCalls.of(settings)
    assert made.headers(node("10.0.0.1:1"))["authorization"] == f"Bearer {SECRET}"
    assert made.tls.cert_store_stats()["x509"] == 1


def test_a_fault_of_tls_is_found_among_causes() -> None:
    fault = ssl.SSLCertVerificationError("self-signed")
    outer, outermost = ConnectionError("all attempts failed"), ConnectionError()
    outer.__cause__, outermost.__context__ = fault, outer
    assert tls_fault(outermost) is fault
    assert tls_fault(ConnectionError()) is None
    assert tls_fault(None) is None
