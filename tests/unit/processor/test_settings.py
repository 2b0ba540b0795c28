"""Where tools reach a processor: an address that other hosts reach, or the one that is set."""

from __future__ import annotations

import pytest
from pydantic import SecretStr, ValidationError

from processor.settings import ProcessorSettings


def settings(**fields: object) -> ProcessorSettings:
    return ProcessorSettings(internal_secret=SecretStr("s" * 32), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("host", "advertised", "address"),
    [
        ("127.0.0.1", None, None),
        ("::1", None, None),
        ("localhost", None, None),
        ("0.0.0.0", None, None),
        ("::", None, None),
        ("10.0.0.7", None, "10.0.0.7:8082"),
        ("fd00::7", None, "[fd00::7]:8082"),
        ("0.0.0.0", "10.0.0.7:9000", "10.0.0.7:9000"),
        ("127.0.0.1", "127.0.0.1:8082", "127.0.0.1:8082"),
    ],
)
def test_the_address_for_tools(host: str, advertised: str | None, address: str | None) -> None:
    made = settings(processor_host=host, processor_advertise_address=advertised)
    port = made.port_for_tools()
    assert (port.address if port else None) == address


def test_each_start_has_an_epoch_of_its_own_and_a_port_of_the_kernels_choice_no_address() -> None:
    made = settings(processor_host="10.0.0.7")
    first, second = made.port_for_tools(), made.port_for_tools()
    assert first
    assert second
    assert first.epoch != second.epoch
    assert settings(processor_host="10.0.0.7", processor_port=0).port_for_tools() is None


@pytest.mark.parametrize("address", ["0.0.0.0:8082", "nowhere", "[::]:1", "host:0"])
def test_nobodys_address_stops_the_start(address: str) -> None:
    with pytest.raises(ValidationError, match=r"no host:port|nobody's address"):
        settings(processor_advertise_address=address)


def test_an_address_outside_the_networks_stops_the_start() -> None:
    with pytest.raises(ValidationError, match="PUSHGATE_PROCESSOR_NETWORKS"):
        settings(processor_host="10.0.0.7", processor_networks="192.168.0.0/16")
    inside = settings(processor_host="10.0.0.7", processor_networks="10.0.0.0/8")
    assert inside.port_for_tools()
