"""Machines on a real LAN: found by multicast alone, moved to other addresses, suspended, and called by one name."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.fixtures.house import alive, mesh, states
from tests.fixtures.lan import Host, Lan, inside, needs_lan
from tests.fixtures.make_gguf import tiny
from tests.fixtures.peer import Peer, chat_body, until

pytestmark = [pytest.mark.lan, pytest.mark.slow, needs_lan()]

WORKER = {"LLM_ROUTER_WORKER": "tests.fixtures.fake_worker --tokens 40 --rate 200"}


@contextlib.contextmanager
def running(folder: Path, hosts: Sequence[Host]) -> Iterator[list[Peer]]:
    """A peer on each host, nothing configured but its name; the last one has a model."""
    with contextlib.ExitStack() as stack:
        peers = []
        for host in hosts:
            models = folder / host.name / "models"
            models.mkdir(parents=True)
            if host is hosts[-1]:
                tiny(models / "tiny.gguf")
            flags = ["--port", "8080", "--name", host.name, "--models-dir", str(models)]
            env = WORKER | {"LLM_ROUTER_MDNS": "true"}
            peers.append(Peer.spawned(folder / host.name / "data", *flags, env=env, host=host))
            stack.callback(peers[-1].stop)
        for peer in peers:
            peer.wait_until_ready()
        yield peers


def see_each_other(peers: Sequence[Peer]) -> None:
    until(lambda: all(len(alive(peer)) == len(peers) for peer in peers), "all see all")


def test_machines_find_each_other_serve_for_each_other_and_follow_one_that_moves(tmp_path: Path) -> None:
    """F1-F2, F7: nothing is configured. An address that changes is told; a machine that slept is taken back."""
    with Lan(3) as lan, running(tmp_path, list(lan)) as peers:
        see_each_other(peers)
        one, two, _ = peers
        until(lambda: "tiny" in one.get("/v1/models").body.decode(), "the model is known")
        answer = one.post("/v1/chat/completions", chat_body("tiny", "Hello"))
        assert answer.status == 200 and answer.headers["x-llm-router-peer"] == "h3"
        three_id = next(p["id"] for p in mesh(one)["peers"] if p["name"] == "h3")

        lan["h3"].set_address("10.77.9.9")
        until(lambda: "10.77.9.9" in one.command("peers", "show", three_id[:8]).stdout, "the new address")
        until(lambda: len(alive(one)) == 3, "it is alive there")
        assert one.post("/v1/chat/completions", chat_body("tiny", "Hello again")).status == 200

        lan.freeze("h2")
        until(lambda: states(one)["h2"] == "dead", "it is asleep", 40.0)
        lan.thaw("h2")
        see_each_other(peers)
        assert "slept" in two.stderr


def test_the_name_of_the_mesh_leads_to_its_coordinator_and_moves_with_it(tmp_path: Path) -> None:
    """F37, F118 have the addresses; this is the name that outlives machines, llm-router.local."""
    with Lan(3) as lan, running(tmp_path, list(lan)) as peers:
        see_each_other(peers)
        until(lambda: mesh(peers[0])["coordinator"] is not None, "a coordinator")
        first = mesh(peers[0])["coordinator"]["name"]
        rest = [peer for peer, host in zip(peers, lan, strict=True) if host.name != first]
        asker = next(host for host in lan if host.name != first)
        until(lambda: resolved(asker) == lan[first].ip, "the name leads there")
        lan.power_off(first)
        until(lambda: all((mesh(p)["coordinator"] or {"name": first})["name"] != first for p in rest), "a new one")
        second = mesh(rest[0])["coordinator"]["name"]
        until(lambda: resolved(asker) == lan[second].ip, "the name has moved")


def resolved(host: Host) -> str | None:
    """The IPv4 address of llm-router.local by mDNS, asked on `host` (RFC 6762, a one-shot query)."""
    question = b"\0\0\0\0\0\1\0\0\0\0\0\0" + b"\x0allm-router\x05local\0" + b"\0\1\0\1"
    with inside(host), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(host.ip))
        asking.settimeout(1.0)
        asking.sendto(question, ("224.0.0.251", 5353))
        with contextlib.suppress(TimeoutError):
            while True:
                data = asking.recv(2000)
                at = data.find(b"\0\1\x80\1")
                at = at if at >= 0 else data.find(b"\0\1\0\1", 12 + 22)
                if at >= 0 and data[at + 8 : at + 10] == b"\0\4":
                    return socket.inet_ntoa(data[at + 10 : at + 14])
    return None
