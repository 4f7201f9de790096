"""Which of a machine's addresses are told to others, and in which order those of others are tried."""

from __future__ import annotations

import asyncio
import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.interfaces import (
    ADVERTISED_MAX,
    Choice,
    Interface,
    chosen,
    dial_order,
    is_dialable,
    is_private_or_local,
    is_public,
    joined,
    may_be_peer,
    read,
    split,
    watch,
    why_left_out,
    with_prefix,
)
from tests.fixtures.lan import Lan, needs_lan
from tests.fixtures.tree import ROOT


def up(name: str, *addresses: str) -> Interface:
    return Interface(name=name, is_up=True, addresses=addresses)


LO = up("lo", "127.0.0.1/8", "::1/128")
DOCKER = up("docker0", "172.17.0.1/16")
ETH = up("eth0", "192.168.1.20/24", "fe80::1/64", "fd00:1::20/64", "2001:db8::20/64")


def test_real_interfaces_are_advertised_private_ipv4_first() -> None:
    found = chosen([LO, DOCKER, ETH])
    assert found.advertised == ("192.168.1.20", "fd00:1::20", "2001:db8::20")
    assert found.multicast == ("192.168.1.20",)
    assert found.inner == {"127.0.0.1", "::1", "172.17.0.1"}


_PSEUDO = [
    "docker0",
    "docker_gwbridge",
    "br-0f3a9c1d22ee",
    "veth1a2b3c",
    "podman0",
    "virbr0",
    "cni0",
    "flannel.1",
    "cali12ab",
    "tun0",
    "tap0",
    "utun3",
    "wg0",
    "tailscale0",
    "zt5u4",
    "vmnet8",
    "vboxnet0",
    "lxdbr0",
    "awdl0",
    "bridge100",
    "lo",
    "lo0",
]


@pytest.mark.parametrize("name", [*_PSEUDO, "vEthernet (WSL)"])
def test_what_lies_inside_the_machine_or_in_a_tunnel_is_not_advertised(name: str) -> None:
    found = chosen([ETH, up(name, "172.20.0.1/16")])
    assert "172.20.0.1" not in found.advertised
    assert "172.20.0.1" not in found.multicast
    assert dial_order(["172.20.0.1"], found) == ()


@pytest.mark.parametrize("name", ["br0", "vmbr0", "bond0", "wlan0", "wlp3s0", "enp5s0", "en0", "Ethernet", "Wi-Fi"])
def test_lans_of_every_name_are_advertised(name: str) -> None:
    assert chosen([LO, up(name, "192.168.1.20/24")]).advertised == ("192.168.1.20",)


def test_link_local_addresses_and_interfaces_that_are_down_are_left_out() -> None:
    found = chosen(
        [up("eth0", "169.254.9.9/16", "fe80::1/64"), Interface(name="eth1", is_up=False, addresses=("10.0.0.9/8",))]
    )
    assert found == Choice()


def test_the_default_route_comes_first_among_its_kind() -> None:
    wifi = up("wlan0", "10.0.0.5/24")
    assert chosen([ETH, wifi]).advertised[:2] == ("10.0.0.5", "192.168.1.20")
    assert chosen([ETH, wifi], default="192.168.1.20").advertised[:2] == ("192.168.1.20", "10.0.0.5")
    assert set(chosen([ETH, wifi]).multicast) == {"10.0.0.5", "192.168.1.20"}


def test_a_public_address_never_goes_before_a_private_one() -> None:
    found = chosen([up("eth0", "203.0.113.7/24"), up("eth1", "192.168.1.20/24")], default="203.0.113.7")
    assert found.advertised == ("192.168.1.20", "203.0.113.7")


def test_a_tunnel_is_taken_when_it_is_all_there_is() -> None:
    found = chosen([LO, up("tun0", "10.8.0.2/24")], default="10.8.0.2")
    assert found.advertised == ("10.8.0.2",)
    assert "10.8.0.2" not in found.inner


def test_llm_node_ip_is_what_a_person_set() -> None:
    """F39: the address that other peers are told."""
    found = chosen([LO, ETH], node_ip="192.168.1.77")
    assert found.advertised == ("192.168.1.77",)
    assert found.multicast == ("192.168.1.20",)


def test_not_more_than_a_handful_is_advertised() -> None:
    many = up("eth0", "192.168.1.20/24", *(f"2001:db8::{n:x}/64" for n in range(1, 40)))
    found = chosen([many])
    assert len(found.advertised) == ADVERTISED_MAX
    assert found.advertised[0] == "192.168.1.20"


@given(st.randoms())
def test_the_order_in_which_the_system_lists_interfaces_does_not_matter(rng: random.Random) -> None:
    interfaces = [LO, DOCKER, ETH, up("wlan0", "10.0.0.5/24"), up("eth1", "10.0.1.5/24")]
    shuffled = rng.sample(interfaces, len(interfaces))
    assert chosen(shuffled, default="10.0.0.5") == chosen(interfaces, default="10.0.0.5")


def test_of_the_addresses_of_others_those_on_our_networks_are_tried_first() -> None:
    found = chosen([LO, DOCKER, ETH])
    others = [
        "172.17.0.1",
        "172.18.0.1",
        "10.9.9.9",
        "203.0.113.9",
        "fd00:1::30",
        "192.168.1.30",
        "nonsense",
        "127.0.0.1",
    ]
    assert dial_order(others, found) == ("192.168.1.30", "fd00:1::30", "172.18.0.1", "10.9.9.9", "203.0.113.9")


_LOCAL = [
    "10.1.2.3",
    "172.31.0.1",
    "192.168.0.1",
    "127.0.0.1",
    "169.254.1.1",
    "::1",
    "fd12::1",
    "fe80::1%eth0",
    "::ffff:192.168.0.1",
    "::ffff:127.0.0.1",
]


@pytest.mark.parametrize("address", _LOCAL)
def test_private_and_local(address: str) -> None:
    assert is_private_or_local(address)
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "172.32.0.1", "100.64.0.1", "2001:4860::1", "::ffff:8.8.8.8"])
def test_public(address: str) -> None:
    assert is_public(address)
    assert not is_private_or_local(address)


@pytest.mark.parametrize(
    "address", ["", "attic", "10.0.0", "10.0.0.1:80", "::g", "224.0.0.251", "0.0.0.0", "::", "ff02::fb"]
)
def test_what_is_no_machines_address_is_neither(address: str) -> None:
    assert not is_public(address)
    assert not is_private_or_local(address)
    assert not is_dialable(address)


@given(st.text())
def test_any_text_can_be_asked_about(text: str) -> None:
    assert not (is_public(text) and is_private_or_local(text))
    assert dial_order([text], Choice()) in ((), (text,))


def test_psutils_rows_become_addresses_with_their_prefix() -> None:
    assert with_prefix("192.168.1.20", "255.255.252.0") == "192.168.1.20/22"
    assert with_prefix("fe80::1%eth0", "ffff:ffff:ffff:ffff::") == "fe80::1/64"
    assert with_prefix("fd00::1", None) == "fd00::1/64"
    assert with_prefix("02:4c:41:4e:00:01", None) is None


@pytest.mark.parametrize("address", ["h:1", "192.168.1.20:8081", "[fd00::1]:8081", "attic.local:65535"])
def test_addresses_come_apart_and_together(address: str) -> None:
    assert joined(*split(address)) == address


@pytest.mark.parametrize(
    "address", ["", "h", "h:", ":80", "h:0", "h:65536", "h:x", "fd00::1:8081", "[h]:80", "h:٣", "h:-1"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError):
        split(address)


async def test_a_look_that_fails_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine runs out of descriptors; whoever watches must not end for it."""
    first, second = chosen([ETH]), chosen([ETH, up("wlan0", "10.0.0.5/24")])
    looks = 0
    told: asyncio.Queue[Choice] = asyncio.Queue()

    def look(node_ip: str) -> Choice:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise OSError("Too many open files")
        return second

    monkeypatch.setattr("gossip.interfaces.read", look)
    task = asyncio.create_task(watch(told.put, before=first, poll_s=0.001))
    assert await asyncio.wait_for(told.get(), 10) == second
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_only_changes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = chosen([ETH]), chosen([ETH, up("wlan0", "10.0.0.5/24")])
    seen = [first, first, second, second, first]
    told: list[Choice] = []
    done = asyncio.Event()

    def next_look(node_ip: str) -> Choice:
        if len(seen) == 1:
            done.set()
        return seen.pop(0) if seen else first

    async def tell(choice: Choice) -> None:
        told.append(choice)

    monkeypatch.setattr("gossip.interfaces.read", next_look)
    task = asyncio.create_task(watch(tell, before=first, poll_s=0.001))
    await asyncio.wait_for(done.wait(), 10)
    while len(told) < 2:
        await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert told == [second, first]


@pytest.mark.parametrize(
    ("interface", "reason"),
    [
        (Interface(name="eth0", is_up=True, addresses=("192.168.1.20/24",)), ""),
        (Interface(name="docker0", is_up=True, addresses=("172.17.0.1/16",)), "of containers or virtual machines"),
        (Interface(name="wg0", is_up=True, addresses=("10.8.0.2/24",)), "a tunnel"),
        (Interface(name="lo", is_up=True, addresses=("127.0.0.1/8",)), "leads back into this machine"),
        (Interface(name="awdl0", is_up=True, addresses=("fe80::1/64",)), "of Apple's own services"),
        (Interface(name="eth1", is_up=False, addresses=("192.168.9.1/24",)), "not connected"),
        (Interface(name="eth2", is_up=True), "without an address"),
        (Interface(name="eth3", is_up=True, addresses=("fe80::2/64",)), "link-local addresses only"),
    ],
)
def test_an_interface_that_nobody_is_told_of_has_its_reason(interface: Interface, reason: str) -> None:
    lan = Interface(name="eth0", is_up=True, addresses=("192.168.1.20/24",))
    assert why_left_out(interface, chosen([lan, interface])) == reason


def test_an_address_that_a_person_set_leaves_all_others_out() -> None:
    lan = Interface(name="eth0", is_up=True, addresses=("172.17.0.2/16",))
    assert why_left_out(lan, chosen([lan], node_ip="192.168.1.31")) == "others are told first"


def test_this_machine_can_be_read() -> None:
    found = read()
    assert not set(found.advertised) & found.inner
    assert "127.0.0.1" in found.inner


@needs_lan()
def test_a_hosts_own_address_and_its_change_are_read_and_docker_is_not() -> None:
    ask = [sys.executable, "-c", "from gossip.interfaces import read; print(*read().advertised)"]
    with Lan(1) as lan:
        host = lan["h1"]
        host.run(["ip", "link", "add", "docker0", "type", "bridge"])
        host.run(["ip", "addr", "add", "172.17.0.1/16", "dev", "docker0"])
        host.run(["ip", "link", "set", "docker0", "up"])
        assert host.run(ask, cwd=ROOT).stdout.split() == [host.ip, host.ip6]
        host.set_address("10.77.9.9")
        assert host.run(ask, cwd=ROOT).stdout.split() == ["10.77.9.9", host.ip6]
        lan.unplug("h1")
        assert host.run(ask, cwd=ROOT).stdout.split() == []


@pytest.mark.parametrize(
    ("address", "is_one"),
    [
        ("192.168.1.9:8081", True),
        ("[fd00::1]:8081", True),
        ("127.0.0.1:8081", True),
        ("169.254.169.254:80", False),
        ("metadata.google.internal:80", False),
        ("evil.example:443", False),
        ("224.0.0.1:80", False),
        ("255.255.255.255:80", False),
        ("0.0.0.0:8081", False),
        ("[::]:8081", False),
        ("2130706433:80", False),
        ("192.168.1.9:8081/join?x=", False),
        ("user@192.168.1.9:8081", False),
        ("192.168.1.9", False),
        ("x" * 4000, False),
    ],
)
def test_nobody_is_sent_where_no_peer_can_be(address: str, is_one: bool) -> None:
    assert may_be_peer(address) is is_one
