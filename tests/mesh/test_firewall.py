"""What the doctor makes of a firewall, and the line that lets the mesh in."""

from __future__ import annotations

import pytest

from mesh.firewall import Firewall, let_in, ufw_lets_in, walls

RULES = """*filter
### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in
-A ufw-user-input -p tcp --dport 22 -j ACCEPT

### tuple ### deny tcp 8082 0.0.0.0/0 any 0.0.0.0/0 in
### tuple ### allow udp 8084 0.0.0.0/0 any 0.0.0.0/0 in
### tuple ### limit tcp 8080,9000:9010 0.0.0.0/0 any 0.0.0.0/0 in
"""


@pytest.mark.parametrize(
    ("port", "is_let_in"), [(22, True), (8081, False), (8082, False), (8084, False), (8080, True), (9005, True)]
)
def test_ufws_rules_are_read(port: int, is_let_in: bool) -> None:
    assert ufw_lets_in(RULES, port) is is_let_in


def test_a_rule_for_everything_lets_everything_in() -> None:
    assert ufw_lets_in("### tuple ### allow any any 0.0.0.0/0 any 192.168.1.0/24 in\n", 8081)


def test_only_a_firewall_that_is_seen_to_keep_others_out_warns() -> None:
    assert walls(None, system="Linux", tcp=[8081]).state == "ok"
    assert walls(Firewall(name="ufw", lets_in=True), system="Linux", tcp=[8081]).fix == ""
    unseen = walls(Firewall(name="ufw"), system="Linux", tcp=[8081])
    assert unseen.state == "ok" and "sudo ufw allow 8081/tcp" in unseen.fix
    shut = walls(Firewall(name="ufw", lets_in=False), system="Linux", tcp=[8080, 8081])
    assert shut.state == "warn" and "8081" in shut.found


@pytest.mark.parametrize(
    ("name", "system", "parts"),
    [
        ("ufw", "Linux", ["sudo ufw allow 8080/tcp && sudo ufw allow 8081/tcp && sudo ufw allow 5353/udp"]),
        ("firewalld", "Linux", ["--add-port=8080/tcp --add-port=8081/tcp --add-service=mdns", "--reload"]),
        ("", "Windows", ["netsh advfirewall firewall add rule", "localport=8080,8081", "localport=5353"]),
        ("the firewall of macOS", "Darwin", ["Network > Firewall", "Local Network"]),
    ],
)
def test_each_has_its_line(name: str, system: str, parts: list[str]) -> None:
    line = let_in(name, system=system, tcp=[8080, 8081])
    assert not [part for part in parts if part not in line], line
