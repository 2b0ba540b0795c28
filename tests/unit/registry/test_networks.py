"""Lists of networks: of both families, and what stops the start."""

from ipaddress import IPv6Address, ip_address, ip_network

import pytest

from registry.networks import networks, plain, within


def test_networks_are_those_of_both_families() -> None:
    is_ours = within([ip_network("10.0.0.0/8"), ip_network("fd00::/8")])
    assert is_ours("10.1.2.3")
    assert is_ours("::ffff:10.1.2.3")
    assert is_ours("fd00::1")
    assert not is_ours("11.0.0.1")
    assert not is_ours("::ffff:11.0.0.1")
    assert not is_ours("fe80::1%eth0")


def test_a_list_has_commas_and_a_bare_address_is_a_network_of_one() -> None:
    read = networks(" 10.0.0.0/8,192.0.2.7 , fd00::/8,")
    assert list(map(str, read)) == ["10.0.0.0/8", "192.0.2.7/32", "fd00::/8"]
    assert networks("") == ()


@pytest.mark.parametrize("bad", ["10.0.0.1/8", "10.0.0.0/33", "gateways", "10.0.0", "fd00::/8 x"])
def test_what_is_no_network_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match=bad.split("/", maxsplit=1)[0]):
        networks(f"127.0.0.0/8,{bad}")


def test_only_a_mapped_address_has_another_plain_one() -> None:
    assert plain(IPv6Address("::ffff:10.0.0.1")) == ip_address("10.0.0.1")
    for address in ("::10.0.0.1", "fd00::1", "10.0.0.1"):
        assert plain(ip_address(address)) == ip_address(address)
