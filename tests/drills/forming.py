"""Machines that are switched on become one mesh: by mDNS, by one address, many at once, on odd networks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.drills.clients import Answer, asked
from tests.drills.figure import Figure, seconds
from tests.drills.house import PORT, House, waited
from tests.drills.models import STORY
from tests.fixtures.lan import Host
from tests.fixtures.peer import chat_body

FORMED_S = 5.0
MANY = 12
MANY_S = 10.0
DOCKER = "172.17.0.1"
CLONE_ENDED_S = 10.0


def _figure(what: str, value: float, limit_s: float = FORMED_S) -> Figure:
    return seconds(what, value, limit_s)


def _assert_answered(house: House, name: str) -> None:
    """A chat through a peer that does not have the model is answered by one that has."""
    answer = asked(house.peers[name], Answer(chat_body("story", "Tell me a story"), is_stream=False))
    assert not answer.wrong(STORY), answer.wrong(STORY)
    assert answer.served_by and answer.served_by != name, answer.headers


def by_mdns(folder: Path, hosts: int) -> list[Figure]:
    """Nothing is configured."""
    with House.built(folder, hosts, holders=("h2",)) as house:
        formed_s = house.until_all_see_all()
        house.until_one_coordinator()
        house.until_all_know("story")
        _assert_answered(house, "h1")
    return [_figure(f"{hosts} hosts by mDNS: the last one ready to all see all", formed_s)]


def by_address(folder: Path, hosts: int) -> list[Figure]:
    """Multicast goes nowhere; the address of one machine was given to the others."""
    names = [f"h{number}" for number in range(2, hosts + 1)]
    with House.built(folder, hosts, holders=("h2",), is_started=False) as house:
        for host in house.lan:
            house.lan.multicast(host.name, False)
        for name in names:
            house.env_of[name] = {"LLM_ROUTER_URL": f"http://{house.lan['h1'].ip}:{PORT}"}
        house.spawn_all()
        house.until_ready()
        formed_s = house.until_all_see_all()
        house.until_all_know("story")
        _assert_answered(house, "h1")
    return [_figure(f"{hosts} hosts by one address, multicast off: the last one ready to all see all", formed_s)]


def many(folder: Path) -> list[Figure]:
    """A dozen machines switched on by one switch."""
    with House.built(folder, MANY, holders=("h2",)) as house:
        formed_s = house.until_all_see_all()
        agreed_s = house.until_one_coordinator()
        house.until_all_know("story")
        _assert_answered(house, "h1")
    return [
        _figure(f"{MANY} hosts at once: the last one ready to all see all", formed_s, MANY_S),
        _figure(f"{MANY} hosts at once: and one coordinator", formed_s + agreed_s, MANY_S),
    ]


def with_docker(folder: Path) -> list[Figure]:
    """Every host has the same address on an inner interface, as Docker makes it."""
    with House.built(folder, 3, holders=("h2",), is_started=False) as house:
        for host in house.lan:
            _add_docker0(host)
        house.spawn_all()
        house.until_ready()
        formed_s = house.until_all_see_all()
        house.until_all_know("story")
        _assert_answered(house, "h1")
        for name in house.names:
            shown = house.peers[name].command("peers", "show", "h2", "--json")
            told = json.loads(shown.stdout)["addresses"]
            assert told and not any(DOCKER in address for address in told), told
            assert any(address.startswith(house.lan["h2"].ip) for address in told), told
    return [_figure("docker0 everywhere: the last one ready to all see all", formed_s)]


def _add_docker0(host: Host) -> None:
    """A bridge with a container on it."""
    for words in (
        "link add docker0 type bridge",
        "link add veth0 type veth peer name veth1",
        "link set veth0 master docker0 up",
        "link set veth1 up",
        f"addr add {DOCKER}/16 dev docker0",
        "link set docker0 up",
    ):
        host.run(["ip", *words.split()])


def copied(folder: Path) -> list[Figure]:
    """A machine made from another one's disk: the copy stops and says why, the original serves on."""
    with House.built(folder, 3, holders=("h2",), is_started=False) as house:
        house.spawn("h1")
        house.spawn("h2")
        house.until_ready()
        house.until_all_see_all(("h1", "h2"))
        house.until_all_know("story", ("h1", "h2"))
        home = folder / "h3" / "data"
        shutil.copytree(folder / "h2" / "data", home, ignore=shutil.ignore_patterns("control.json", "run"))
        clone = house.spawn("h3")
        ended_s = waited(lambda: clone.process.poll() is not None, "the copy ends", 60.0)
        assert clone.process.returncode != 0
        said = clone.stderr
        assert "the same identity" in said and "identity reset" in said, said[-2000:]
        assert house.peers["h2"].process.poll() is None, "the original ended"
        assert house.states("h2", ("h1",)) == {"h1": "alive"}
        _assert_answered(house, "h1")
    return [_figure("a copied data folder: start of the copy to its end", ended_s, CLONE_ENDED_S)]
