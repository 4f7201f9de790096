"""Tests of what the listener binds and which names it answers to."""

from __future__ import annotations

import socket

import pytest

from mesh.errors import StartError
from mesh.hosts import (
    MESH_NAME,
    allowed_hosts,
    bound,
    check_open,
    has_ipv6_loopback,
    is_loopback,
    only_address,
    own_addresses,
    peer_hosts,
    public_addresses,
)


def test_the_listener_is_where_it_was_told_and_on_loopback() -> None:
    """F17, F41: LLM_ROUTER_HOST, and LLM_NODE_BIND_ADDRESS for the second port."""
    addresses = bound(host="192.168.1.5", port=8080, also=("10.0.0.1", 11435))
    assert addresses[:3] == [("192.168.1.5", 8080), ("10.0.0.1", 11435), ("127.0.0.1", 8080)]
    assert bound(host="0.0.0.0", port=8080, also=None)[0] == ("0.0.0.0", 8080)
    assert ("127.0.0.1", 8080) in bound(host="::", port=8080, also=None)


@pytest.mark.skipif(not has_ipv6_loopback(), reason="this machine has no ::1")
def test_localhost_is_answered_on_both_families() -> None:
    assert bound(host="0.0.0.0", port=8080, also=None) == [("0.0.0.0", 8080), ("::1", 8080)]


@pytest.mark.skipif(not has_ipv6_loopback(), reason="this machine has no ::1")
def test_localhost_as_a_host_is_bound_once() -> None:
    assert bound(host="localhost", port=8080, also=None) == [("127.0.0.1", 8080), ("::1", 8080)]


def test_any_free_port_is_one_port() -> None:
    assert bound(host="127.0.0.1", port=0, also=None) == [("127.0.0.1", 0)]


HOME = [
    "127.0.0.1",
    "192.168.1.5",
    "10.0.0.7",
    "172.17.0.1",
    "169.254.3.4",
    "100.101.102.103",
    "fe80::1",
    "fd00::5",
    "::1",
]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "attic.lan", "8.8.4.4"])
def test_an_open_peer_at_home_starts(host: str) -> None:
    assert public_addresses(host, HOME) == []
    check_open([host], HOME)


@pytest.mark.parametrize(
    ("host", "public"), [("0.0.0.0", "8.8.4.4"), ("::", "2606:4700:4700::1111"), ("::", "2606:4700:4700::1111%eth0")]
)
def test_an_open_peer_on_the_internet_does_not_start_by_chance(host: str, public: str) -> None:
    """175,000 exposed Ollamas: 0.0.0.0 stands in every tutorial."""
    with pytest.raises(StartError, match="the whole internet") as error:
        check_open(["127.0.0.1", host], [*HOME, public])
    assert public.partition("%")[0] in error.value.what and "--host" in error.value.fix


def test_whoever_names_a_public_address_means_it() -> None:
    check_open(["8.8.4.4"], [*HOME, "8.8.4.4"])


def test_only_the_family_that_is_bound_matters() -> None:
    check_open(["0.0.0.0"], [*HOME, "2606:4700:4700::1111"])
    check_open(["::"], [*HOME, "8.8.4.4"])


def test_this_machine_is_known_by_all_its_names() -> None:
    hosts = allowed_hosts(["Attic.Example ", ""], ["192.168.1.5"])
    name = socket.gethostname().lower().split(".")[0]
    assert {"localhost", "127.0.0.1", "::1", name, f"{name}.local", MESH_NAME, "192.168.1.5", "attic.example"} <= hosts
    assert "" not in hosts
    assert not {"0.0.0.0", "::"} & allowed_hosts(["0.0.0.0", "::", " 0.0.0.0"], [])
    assert "evil.example" not in hosts


def test_own_addresses_hold_loopback_without_a_zone() -> None:
    addresses = own_addresses()
    assert "127.0.0.1" in addresses
    assert not any("%" in address for address in addresses)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("LocalHost", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_loopback_is_told_from_everything_else(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_others_are_told_no_address_that_the_peer_port_is_not_bound_to() -> None:
    assert only_address(ip=None, bind="127.0.0.1") == "127.0.0.1"
    assert only_address(ip=None, bind="localhost") == "127.0.0.1"
    assert only_address(ip=None, bind="192.168.1.5") == "192.168.1.5"
    assert only_address(ip=None, bind="0.0.0.0") == only_address(ip=None, bind="::") == ""


def test_a_set_address_is_told_whatever_is_bound() -> None:
    assert only_address(ip="10.0.0.7", bind="0.0.0.0") == only_address(ip="10.0.0.7", bind="172.17.0.2") == "10.0.0.7"


def test_a_name_to_bind_is_told_to_others_as_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """The records of mDNS hold addresses: a name in them ended the start."""
    monkeypatch.setattr(socket, "gethostbyname", {"tower.lan": "192.168.1.9"}.__getitem__)
    assert only_address(ip=None, bind="tower.lan") == "192.168.1.9"
    assert only_address(ip="10.0.0.1", bind="nowhere.lan") == "10.0.0.1"


def test_a_name_without_an_address_is_told_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> str:
        raise socket.gaierror("unknown")

    monkeypatch.setattr(socket, "gethostbyname", unknown)
    assert only_address(ip=None, bind="nowhere.lan") == ""


@pytest.mark.skipif(not has_ipv6_loopback(), reason="this machine has no ::1")
@pytest.mark.parametrize("everywhere", ["0.0.0.0", "::"])
def test_others_who_are_told_all_addresses_reach_them_all(everywhere: str) -> None:
    assert only_address(ip=None, bind=everywhere) == ""
    assert peer_hosts(everywhere) == ["0.0.0.0", "::"]
    assert peer_hosts("192.168.1.9") == ["192.168.1.9"]
