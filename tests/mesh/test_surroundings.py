"""What the doctor makes of addresses, the peer port, mDNS, containers and the run folder."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from gossip.interfaces import Interface, chosen
from gossip.multicast import Trial
from mesh import surroundings
from mesh.config import load

LAN = Interface(name="eth0", is_up=True, addresses=("192.168.1.20/24",))
DOCKER = Interface(name="docker0", is_up=True, addresses=("172.17.0.1/16",))
LOOPBACK = Interface(name="lo", is_up=True, addresses=("127.0.0.1/8",))
UNPLUGGED = Interface(name="eth1", is_up=False)


def test_it_says_what_others_are_told_and_what_not_and_why() -> None:
    interfaces = [LAN, DOCKER, LOOPBACK, UNPLUGGED]
    choice = chosen(interfaces)
    assert surroundings.told(choice, "").found == "others are told 192.168.1.20"
    (check,) = surroundings.left_out(interfaces, choice)
    assert check.found == "docker0 (of containers or virtual machines)"
    assert surroundings.left_out([LAN, LOOPBACK], choice) == []


def test_without_an_address_the_interfaces_that_have_none_are_named() -> None:
    choice = chosen([UNPLUGGED, LOOPBACK])
    assert surroundings.told(choice, "").state == "warn"
    assert "eth1 (not connected)" in surroundings.left_out([UNPLUGGED, LOOPBACK], choice)[0].found


def test_an_address_that_was_set_is_told_unless_it_leads_nowhere() -> None:
    choice = chosen([LAN], node_ip="192.168.7.7")
    assert surroundings.told(choice, "192.168.7.7").found == "others are told 192.168.7.7, as set"
    nowhere = surroundings.told(chosen([LAN], node_ip="127.0.0.1"), "127.0.0.1")
    assert nowhere.state == "warn" and "LLM_NODE_BIND_ADDRESS" in nowhere.fix


@pytest.mark.parametrize(
    ("ip", "has_seeds", "state"),
    [("", False, "warn"), ("192.168.1.31", False, "warn"), ("", True, "warn"), ("192.168.1.31", True, "ok")],
)
def test_a_container_on_a_bridge_needs_a_seed_and_the_hosts_address(ip: str, has_seeds: bool, state: str) -> None:
    (check,) = surroundings.walled(kind="container", ip=ip, has_seeds=has_seeds)
    assert check.state == state
    assert state == "ok" or all(word in check.fix for word in ("network_mode: host", "LLM_ROUTER_URL", "LLM_NODE_IP"))


def test_wsl_has_its_own_advice_and_a_plain_machine_none() -> None:
    assert "networkingMode=mirrored" in surroundings.walled(kind="WSL", ip="", has_seeds=False)[0].fix
    assert surroundings.walled(kind="", ip="", has_seeds=False) == []


def test_a_peer_port_is_free_ours_or_somebody_elses() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.getsockname()[1]
        asked = load({"mesh_port": str(number)}, {}).config
        (taken,) = surroundings.peer_port(asked, None)
        assert taken.state == "fail" and f"process {os.getpid()}" in taken.found and "--mesh-port" in taken.fix
        (next_one,) = surroundings.peer_port(load({"port": str(number - 1)}, {}).config, None)
        assert next_one.state == "warn" and "next free one" in next_one.fix
        (ours,) = surroundings.peer_port(asked, number)
        assert (ours.state, ours.found) == ("ok", f"{number} is this peer's")
    assert surroundings.peer_port(asked, None)[0].found == f"{number} is free"
    assert surroundings.peer_port(load({"port": "0"}, {}).config, None)[0].found == "any free one"
    (moved,) = surroundings.peer_port(load({}, {}).config, 8083)
    assert moved.state == "ok" and "8081 was taken" in moved.found and "LLM_ROUTER_URL=its-address:8083" in moved.fix


@pytest.mark.parametrize(
    ("trial", "system", "state", "parts"),
    [
        (Trial(address="10.0.0.1", is_own_heard=True), "Linux", "ok", ["no other machine answers", "guest Wi-Fi"]),
        (Trial(address="10.0.0.1"), "Linux", "warn", ["does not come back", "let UDP port 5353 in"]),
        (
            Trial(address="10.0.0.1", is_own_heard=True, machines=frozenset({"10.0.0.2"})),
            "Linux",
            "ok",
            ["1 other machine answers, none with llm-router"],
        ),
        (
            Trial(address="10.0.0.1", is_own_heard=True, machines=frozenset({"10.0.0.2", "b"}), peers=frozenset("p")),
            "Linux",
            "ok",
            ["2 other machines answer, 1 with llm-router"],
        ),
        (
            Trial(address="10.0.0.1", failure=OSError(errno.EHOSTUNREACH, "No route to host")),
            "Darwin",
            "warn",
            ["No route to host", "Local Network"],
        ),
        (
            Trial(address="10.0.0.1", failure=OSError(errno.EPERM, "Operation not permitted")),
            "Linux",
            "warn",
            ["firewall"],
        ),
        (
            Trial(address="10.0.0.1", failure=OSError(errno.EADDRINUSE, "Address already in use")),
            "Linux",
            "warn",
            ["another program keeps UDP 5353", "LLM_ROUTER_URL"],
        ),
        (
            Trial(address="10.0.0.1", failure=OSError(errno.ENETUNREACH, "Network is unreachable")),
            "Linux",
            "warn",
            ["does not carry multicast", "LLM_ROUTER_URL"],
        ),
    ],
)
def test_what_a_trial_of_mdns_means_is_said(trial: Trial, system: str, state: str, parts: list[str]) -> None:
    (check,) = surroundings.heard([trial], system=system)
    assert check.state == state
    assert not [part for part in parts if part not in f"{check.found} {check.fix}"], check


def test_mdns_without_a_network_or_switched_off_is_no_trial() -> None:
    assert surroundings.heard([], system="Linux")[0].state == "warn"
    (check,) = surroundings.multicast(load({"mdns": "false"}, {}).config)
    assert check.state == "ok" and "switched off" in check.found


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
def test_a_run_folder_that_others_may_enter_warns(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert "is made at the first start" in surroundings.run_folder(folder)[0].found
    folder.mkdir(mode=0o700)
    assert surroundings.run_folder(folder)[0].state == "ok"
    folder.chmod(0o755)
    (check,) = surroundings.run_folder(folder)
    assert (check.state, check.fix) == ("warn", f"chmod 700 {folder}")


def test_a_proxy_that_would_stand_before_this_machine_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    assert surroundings.proxy() == []
    monkeypatch.setenv("HTTP_PROXY", "http://user:secret@proxy:3128")
    (check,) = surroundings.proxy()
    assert check.state == "warn" and "NO_PROXY" in check.fix and "secret" not in check.found
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
    assert surroundings.proxy() == []
