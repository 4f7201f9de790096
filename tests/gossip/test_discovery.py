"""Peers that find each other by real mDNS, between hosts of a LAN; and what strangers on that LAN cannot do."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gossip.hints import host_name, service_name
from tests.fixtures.lan import Host, Lan, needs_lan
from tests.fixtures.mdns_host import Node, peer

pytestmark = needs_lan()

NAME = "llm-router.local"


@pytest.fixture
def lan() -> Iterator[Lan]:
    with Lan(5) as lan:
        yield lan


def node(host: Host, *, number: int | None = None, mesh: str = "", port: int = 8081, poll_s: float = 5.0) -> Node:
    return Node(host, peer(host.number if number is None else number), mesh=mesh, port=port, poll_s=poll_s)


def both(host: Host, port: int = 8081) -> tuple[str, str]:
    return f"{host.ip}:{port}", f"[{host.ip6}]:{port}"


def meet(*nodes: Node) -> None:
    for one in nodes:
        for other in nodes:
            if one is not other:
                there = both(other.host)
                one.until(lambda: one.hears(other.peer_id, *there), f"{one.host.name} hears {other.host.name}")  # noqa: B023


def test_five_hosts_see_each_other_and_never_an_address_of_docker(lan: Lan) -> None:
    for host in lan:
        host.run(["ip", "link", "add", "docker0", "type", "bridge"])
        host.run(["ip", "addr", "add", "172.17.0.1/16", "dev", "docker0"])
        host.run(["ip", "link", "set", "docker0", "up"])
    nodes = [node(host, mesh="abcdefghijklmnopqrst") for host in lan]
    meet(*nodes)
    for one in nodes:
        assert one.peer_id not in one.hints, "a peer's own words are no news to it"
        assert {hint.mesh for hint in one.told} == {"abcdefghijklmnop"}
        assert not [hint for hint in one.told if "172.17.0.1" in hint.hosts]


def test_who_leaves_says_goodbye_and_who_crashes_does_not(lan: Lan) -> None:
    first, second, third = nodes = [node(lan[name]) for name in ("h1", "h2", "h3")]
    meet(*nodes)
    assert second.process.stdin is not None
    began = time.monotonic()
    second.process.stdin.close()
    assert second.answer() == {"closed": True}
    first.until(lambda: first.hints[second.peer_id].is_removed, "the goodbye")
    third.until(lambda: third.hints[second.peer_id].is_removed, "the goodbye")
    assert time.monotonic() - began < 10
    third.process.kill()
    third.process.wait()
    assert not first.hints[third.peer_id].is_removed
    again = node(lan["h2"])
    first.until(lambda: first.hears(again.peer_id, *both(again.host)), "it is back")


def test_a_new_address_a_new_mesh_and_a_new_port_are_told(lan: Lan) -> None:
    first, second = node(lan["h1"]), node(lan["h2"], mesh="aaaa", poll_s=0.2)
    meet(first, second)
    lan["h2"].set_address("10.77.9.9")
    first.until(lambda: first.hears(second.peer_id, *both(second.host)), "the new address, and it alone")
    second.do("update", mesh="bbbb", port=9000)
    first.until(lambda: first.hears(second.peer_id, *both(second.host, 9000)), "the new port")
    assert first.hints[second.peer_id].mesh == "bbbb"


def test_peers_meet_when_their_cable_comes_late(lan: Lan) -> None:
    lan.unplug("h2")
    first, second = node(lan["h1"]), node(lan["h2"], poll_s=0.2)
    third = node(lan["h3"])
    meet(first, third)
    assert second.do("state") == {"is_running": True, "hints": 0}
    lan.plug("h2")
    meet(first, second, third)


def test_peers_meet_over_any_of_several_interfaces(lan: Lan) -> None:
    first, second = lan["h1"], lan["h2"]
    first.run(["ip", "link", "add", "eth1", "type", "veth", "peer", "name", "eth1", "netns", second.namespace])
    for host, ip in ((first, "10.88.0.1"), (second, "10.88.0.2")):
        host.run(["ip", "addr", "add", f"{ip}/24", "dev", "eth1"])
        host.run(["ip", "link", "set", "eth1", "up"])
    lan.partition(["h1"], ["h2"])
    one, other = node(first), node(second)
    one.until(lambda: other.peer_id in one.hints, "h2 over the second cable")
    assert set(one.hints[other.peer_id].hosts) == {"10.88.0.2", second.ip, second.ip6}
    other.until(lambda: one.peer_id in other.hints, "h1 over the second cable")


def test_two_peers_on_one_host_meet(lan: Lan) -> None:
    first, second = node(lan["h1"], number=1), node(lan["h1"], number=2, port=9001)
    first.until(lambda: first.hears(second.peer_id, *both(lan["h1"], 9001)))
    second.until(lambda: second.hears(first.peer_id, *both(lan["h1"], 8081)))


def test_after_sleep_everybody_is_told_again(lan: Lan) -> None:
    first, second = node(lan["h1"]), node(lan["h2"])
    meet(first, second)
    before = len(first.told)
    first.do("refresh")
    first.until(lambda: len(first.told) > before, "told again")
    third = node(lan["h3"])
    first.until(lambda: first.hears(third.peer_id, *both(third.host)), "it still listens")


def test_a_copied_data_folder_is_heard_under_the_own_id(lan: Lan) -> None:
    first, third = node(lan["h1"], number=7), node(lan["h3"])
    meet(first, third)
    clone = node(lan["h2"], number=7)
    first.until(lambda: first.hears(clone.peer_id, *both(lan["h2"])), "the clone")
    third.until(lambda: third.hears(clone.peer_id, *both(lan["h2"])), "the later one")
    same_machine = node(lan["h1"], number=7, port=9001)
    first.until(lambda: first.hints[first.peer_id].port == 9001, "the clone beside it")
    same_machine.do("state")


# -- the name of the mesh


def resolved(asker: Node, *, until: list[str]) -> None:
    deadline = time.monotonic() + 30
    while (found := asker.do("resolve", name=f"{NAME}.")["resolved"]) != until:
        assert time.monotonic() < deadline, f"{found} instead of {until}"


def test_the_name_of_the_mesh_follows_the_coordinator(lan: Lan) -> None:
    first, second, asker = node(lan["h1"]), node(lan["h2"]), node(lan["h3"], poll_s=0.2)
    meet(first, second, asker)
    resolved(asker, until=[])
    first.do("publish", name=NAME, port=8080)
    resolved(asker, until=[lan["h1"].ip, lan["h1"].ip6])
    lan.power_off("h1")  # no goodbye: its record is still in every cache
    second.do("publish", name=NAME, port=8080)
    resolved(asker, until=[lan["h2"].ip, lan["h2"].ip6])
    asker.do("publish", name=NAME, port=8080)  # both claim it for a moment
    second.do("unpublish", name=NAME)
    asker_addresses = [lan["h3"].ip, lan["h3"].ip6]
    late = node(lan["h4"])
    resolved(late, until=asker_addresses)
    asker.do("unpublish", name=NAME)
    resolved(late, until=[])


def test_the_name_of_the_mesh_follows_the_coordinators_address(lan: Lan) -> None:
    first, asker = node(lan["h1"], poll_s=0.2), node(lan["h2"])
    first.do("publish", name=NAME, port=8080)
    resolved(asker, until=[lan["h1"].ip, lan["h1"].ip6])
    lan["h1"].set_address("10.77.9.9")
    resolved(asker, until=["10.77.9.9", lan["h1"].ip6])


# -- strangers


_SEND = """
import socket, sys, time
end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
end.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
end.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(sys.argv[1]))
for number, line in enumerate(open(sys.argv[2])):
    end.sendto(bytes.fromhex(line), ("224.0.0.251", 5353))
    if number % 10 == 9:
        time.sleep(0.005)  # a receiver's buffer holds 160 packets
"""


def shout(host: Host, packets: list[bytes], folder: Path) -> None:
    """Multicasts them from that host."""
    file = folder / "packets"
    file.write_text("\n".join(packet.hex() for packet in packets))
    host.run([sys.executable, "-c", _SEND, host.ip, file])


def _encoded(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.rstrip(".").split(".")) + b"\0"


def _record(name: str, kind: int, data: bytes, ttl: int = 120) -> bytes:
    return _encoded(name) + struct.pack(">HHIH", kind, 0x8001 if kind != 12 else 1, ttl, len(data)) + data


def announcement(peer_id: str, address: bytes, port: int, *, ttl: int = 4_500) -> bytes:
    """What a peer multicasts, made by hand."""
    name, server = service_name(peer_id), host_name(peer_id)
    answers = [
        _record("_llm-router._tcp.local.", 12, _encoded(name), ttl),
        _record(name, 33, struct.pack(">HHH", 0, 0, port) + _encoded(server), ttl),
        _record(name, 16, b"\x07v=0.1.0", ttl),
        _record(server, 1, address, ttl),
    ]
    return struct.pack(">HHHHHH", 0, 0x8400, 0, len(answers), 0, 0) + b"".join(answers)


def garbage(rng: random.Random, count: int) -> list[bytes]:
    """Random bytes, and announcements with a few bytes changed, cut or repeated."""
    found = []
    for number in range(count):
        good = bytearray(announcement(peer(1_000 + number), rng.randbytes(4), rng.randrange(1, 65_536)))
        match rng.randrange(4):
            case 0:
                good = bytearray(rng.randbytes(rng.randrange(1, 1_400)))
            case 1:
                for _ in range(rng.randrange(1, 20)):
                    good[rng.randrange(len(good))] = rng.randrange(256)
            case 2:
                del good[rng.randrange(12, len(good)) :]
            case 3:
                good[12:] = good[12:] * rng.randrange(1, 6)
        found.append(bytes(good))
    return found


def test_a_hand_made_announcement_is_heard(lan: Lan, tmp_path: Path) -> None:
    """So that the next tests do not pass because nothing was ever heard."""
    first = node(lan["h1"])
    shout(lan["h5"], [announcement(peer(99), bytes([10, 77, 0, 5]), 8081)], tmp_path)
    first.until(lambda: first.hears(peer(99), "10.77.0.5:8081"), "the announcement")


def test_a_thousand_packets_of_garbage_do_no_harm(lan: Lan, tmp_path: Path) -> None:
    first, second = node(lan["h1"]), node(lan["h2"])
    meet(first, second)
    for seed in range(1, 6):
        shout(lan["h5"], garbage(random.Random(seed), 200), tmp_path)
    third = node(lan["h3"])
    first.until(lambda: first.hears(third.peer_id, *both(third.host)), "a real peer after the garbage")
    assert first.hears(second.peer_id, *both(second.host))
    assert first.do("state")["hints"] <= 1_024
    first.process.terminate()
    assert "Traceback" not in first.errors()


def test_a_real_peer_is_heard_in_a_flood_of_invented_ones(lan: Lan, tmp_path: Path) -> None:
    first, second = node(lan["h1"]), node(lan["h2"])
    meet(first, second)
    flood = [announcement(peer(1_000 + n), bytes([10, 77, 1, n & 255]), 8081) for n in range(300)]
    shout(lan["h5"], flood, tmp_path)
    third = node(lan["h3"])
    first.until(lambda: first.hears(third.peer_id, *both(third.host)), "a real peer behind the flood")
    assert first.hears(second.peer_id, *both(second.host))


_OVERHEAR = """
import socket, sys
end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
end.bind(("224.0.0.251", 5353))
group = socket.inet_aton("224.0.0.251") + socket.inet_aton(sys.argv[1])
end.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
end.settimeout(30)
print("ready", flush=True)
while True:
    data, (ip, _) = end.recvfrom(9000)
    if ip == sys.argv[2] and data[2] & 0x80 and data[7] >= 4:  # all its records: no answer to a question
        print("announced", flush=True)
"""


def test_a_peer_objects_to_a_goodbye_in_its_name(lan: Lan, tmp_path: Path) -> None:
    argv = [sys.executable, "-c", _OVERHEAR, lan["h4"].ip, lan["h2"].ip]
    overhearing = lan["h4"].spawn(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert overhearing.stdout is not None
    assert overhearing.stdout.readline() == b"ready\n"
    second = Node(lan["h2"], peer(2), is_quiet=True)
    assert overhearing.stdout.readline() == b"announced\n"
    shout(lan["h5"], [announcement(second.peer_id, bytes([10, 77, 0, 2]), 8081, ttl=0)], tmp_path)
    assert overhearing.stdout.readline() == b"announced\n", "no objection"


def test_who_is_said_to_have_left_is_heard_again(lan: Lan, tmp_path: Path) -> None:
    first, second = node(lan["h1"]), node(lan["h2"])
    meet(first, second)
    lan.block("h2", "h1")
    shout(lan["h5"], [announcement(second.peer_id, bytes([10, 77, 0, 2]), 8081, ttl=0)], tmp_path)
    first.until(lambda: first.hints[second.peer_id].is_removed, "the forged goodbye")
    lan.heal()
    first.until(lambda: first.hears(second.peer_id, *both(second.host)), "the real peer")


# -- a machine without multicast

_OCCUPY = """
import socket, sys
end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
end.bind(("", 5353))
print("taken", flush=True)
sys.stdin.read()
"""


def test_where_the_port_is_taken_peers_run_without_mdns_until_it_is_free(lan: Lan) -> None:
    first = node(lan["h1"])
    other = lan["h2"].spawn([sys.executable, "-c", _OCCUPY], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"taken\n"
    second = node(lan["h2"])
    assert second.do("state")["is_running"] is False
    second.do("publish", name=NAME, port=8080)
    other.kill()
    meet(first, second)
    second.process.terminate()
    assert "multicast DNS does not work here" in second.errors()
