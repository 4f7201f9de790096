"""The trial of multicast DNS, between hosts of a LAN: heard by others, filtered, without a network."""

from __future__ import annotations

import json
import sys

from gossip.multicast import Trial, tried
from tests.fixtures.lan import Host, Lan, needs_lan
from tests.fixtures.tree import ROOT

PEER = "a" * 52
TRY = (
    "import json; from gossip.interfaces import present, read; from gossip.multicast import tried\n"
    "own = frozenset(a.partition('/')[0] for i in present() for a in i.addresses)\n"
    "(found,) = tried(read().multicast, own=own)\n"
    "print(json.dumps([found.is_own_heard, sorted(found.machines), sorted(found.peers), repr(found.failure)]))"
)
ANNOUNCE = (
    "import sys\nfrom zeroconf import Zeroconf\nfrom gossip import records\n"
    f"own = records.own_service(me='{PEER}', port=8081, mesh='m', version='1', hosts=[sys.argv[1]])\n"
    "zeroconf = Zeroconf(interfaces=[sys.argv[1]])\nzeroconf.registry.async_add(own)\n"
    "print('ready', flush=True); sys.stdin.read()"
)


def trial(host: Host) -> tuple[bool, list[str], list[str], str]:
    is_own_heard, machines, peers, failure = json.loads(host.run([sys.executable, "-c", TRY], cwd=ROOT).stdout)
    return is_own_heard, machines, peers, failure


@needs_lan()
def test_a_peer_on_the_same_network_answers_and_is_known_as_one() -> None:
    with Lan(2) as lan:
        one, other = lan["h1"], lan["h2"]
        announcer = other.spawn([sys.executable, "-c", ANNOUNCE, other.ip], cwd=ROOT, stdin=-1, stdout=-1)
        assert announcer.stdout is not None and announcer.stdout.readline() == b"ready\n"
        assert trial(one) == (True, [other.ip], [PEER], "None")
        assert trial(other) == (True, [], [], "None")  # its own answers are no other machine's


@needs_lan()
def test_a_network_that_filters_multicast_leaves_this_machine_hearing_itself_alone() -> None:
    with Lan(2) as lan:
        other = lan["h2"]
        announcer = other.spawn([sys.executable, "-c", ANNOUNCE, other.ip], cwd=ROOT, stdin=-1, stdout=-1)
        assert announcer.stdout is not None and announcer.stdout.readline() == b"ready\n"
        lan.multicast("h1", False)
        assert trial(lan["h1"]) == (True, [], [], "None")


@needs_lan()
def test_over_ipv6_alone_it_works_too() -> None:
    with Lan(1) as lan:
        host = lan["h1"]
        host.run(["ip", "-4", "addr", "flush", "dev", "eth0"])
        assert trial(host) == (True, [], [], "None")


def test_an_address_that_this_machine_does_not_have_is_a_failure_and_no_exception() -> None:
    (found,) = tried(["203.0.113.77"], own=frozenset(), listen_s=0.1)
    assert found.failure is not None and not found.is_own_heard
    (gone,) = tried(["2001:db8::77"], own=frozenset(), listen_s=0.1)
    assert gone.failure is not None


def test_without_addresses_there_is_no_trial() -> None:
    none: list[Trial] = []
    assert tried([], own=frozenset()) == none
