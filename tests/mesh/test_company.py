"""What the doctor says of the other machines: as the running peer tells, as they answer, and those that are named."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from gossip.identity import Identity, uuid_of
from gossip.seeds import Own
from mesh import company
from mesh.check import Check
from mesh.company import Machine
from mesh.knock import Knock
from tests.fixtures.lan import Lan, needs_lan
from tests.fixtures.peer import Peer, until

ATTIC, TOWER = Identity.generate().peer_id, Identity.generate().peer_id
AT = "192.168.1.20:8081"


def overview(state: str = "alive", **more: Any) -> dict[str, Any]:
    """This machine, tower, and attic in that state."""
    peers = [
        {"id": str(uuid_of(TOWER)), "name": "tower", "state": "alive", "version": "0.1.0", "since_s": 100.0},
        {"id": str(uuid_of(ATTIC)), "name": "attic", "state": state, "version": "0.1.0", "since_s": 300.0},
    ]
    me = {"id": str(uuid_of(TOWER)), "name": "tower"}
    return {"name": "tower", "self": me, "door": {"open": False}, "peers": peers, "joining": None} | more


def attic(state: str = "alive") -> Machine:
    return Machine(id=str(uuid_of(ATTIC)), name="attic", state=state, addresses=(AT,))


def one(checks: list[Check], name: str) -> Check:
    (found,) = [check for check in checks if check.name == name]
    return found


def test_a_machine_alone_is_told_how_others_come_in() -> None:
    alone = overview()
    alone["peers"] = alone["peers"][:1]
    check = one(company.standing(alone), "mesh")
    assert check.state == "ok" and "no other yet" in check.found and "llm-router door open" in check.fix


@pytest.mark.parametrize(
    ("state", "parts"),
    [
        ("dead", ["attic has not answered for 5 min", "llm-router peers revoke attic"]),
        ("suspect", ["attic does not answer for 5 min", "wait"]),
        ("wrong-version", ["attic runs 0.1.0, which this machine does not understand", "update the older"]),
        ("unknown", ["attic has not been heard of", "llm-router doctor"]),
    ],
)
def test_a_machine_that_is_not_well_is_named(state: str, parts: list[str]) -> None:
    check = one(company.reached(overview(state), [attic(state)], []), "machine")
    assert check.state == "warn"
    assert not [part for part in parts if part not in f"{check.found}; {check.fix}"], check


@pytest.mark.parametrize(
    ("knock", "part"),
    [
        (Knock(address=AT, reason="refused"), "nothing listens"),
        (Knock(address=AT, reason="silent"), "client isolation"),
        (Knock(address=AT, reason="no route"), "no way there"),
        (Knock(address=AT, peer=TOWER), "another machine has that address now"),
    ],
)
def test_a_machine_that_does_not_answer_from_here_has_the_reason(knock: Knock, part: str) -> None:
    check = one(company.reached(overview(), [attic()], [knock]), "machine")
    assert check.state == "warn" and AT in check.found and part in f"{check.found} {check.fix}"


def test_a_machine_that_answers_is_fine_and_one_that_left_is_not_missed() -> None:
    (check,) = company.reached(overview(), [attic()], [Knock(address=AT, peer=ATTIC)])
    assert (check.state, check.found) == ("ok", f"answers: attic ({AT})")
    assert company.reached(overview("left"), [attic("left")], [Knock(address=AT, reason="refused")]) == []


@pytest.mark.parametrize(
    ("ahead_s", "state", "part"),
    [(0.4, "ok", "the same as attic"), (300.0, "warn", "5 min ahead of"), (-90_000.0, "warn", "25 h behind")],
)
def test_clocks_that_differ_by_more_than_half_a_minute_warn(ahead_s: float, state: str, part: str) -> None:
    (check,) = company.clocks([attic()], [Knock(address=AT, peer=ATTIC, ahead_s=ahead_s)])
    assert check.state == state and part in check.found


def test_the_clock_of_somebody_else_at_that_address_is_nobodys() -> None:
    assert company.clocks([attic()], [Knock(address=AT, peer=TOWER, ahead_s=300.0)]) == []


def test_versions_that_differ_and_machines_that_wait_are_told() -> None:
    mixed = overview(joins_waiting=1)
    mixed["peers"][1]["version"] = "0.2.0"
    checks = company.standing(mixed)
    assert one(checks, "versions").found == "the machines run different ones: 0.1.0, 0.2.0"
    assert one(checks, "waiting").fix == "llm-router approve"


def test_a_request_to_join_that_is_open_or_failed_is_told() -> None:
    asking = {"state": "asking", "name": "attic", "digits": "481 920"}
    assert "llm-router approve 481 920" in one(company.standing(overview(joining=asking)), "joining").fix
    denied = {"state": "denied", "name": "attic", "reason": "it was denied"}
    assert "did not join attic: it was denied" in one(company.standing(overview(joining=denied)), "joining").found


def test_names_of_other_machines_cannot_steer_the_terminal() -> None:
    evil = Machine(id=str(uuid_of(ATTIC)), name="\x1b[2J", state="alive", addresses=(AT,))
    checks = company.reached(overview(), [evil], [Knock(address=AT, peer=ATTIC, ahead_s=900.0)])
    checks += company.clocks([evil], [Knock(address=AT, peer=ATTIC, ahead_s=900.0)])
    assert len(checks) == 2 and not [check for check in checks if "\x1b" in check.found + check.fix]


def test_without_a_peer_it_says_so_and_asks_nobody() -> None:
    (check,) = company.mesh(None)
    assert check.state == "ok" and "no peer runs here" in check.found
    assert company.peer_port_of(None) is None


def test_a_seed_is_asked_once_and_the_reason_told() -> None:
    own = Own(ports=frozenset({8080, 8081}))
    assert company.seeds((), own, None) == []
    (wrong,) = company.seeds(("a b",), own, None)
    assert wrong.state == "fail" and "LLM_ROUTER_URL" in wrong.found
    itself, nobody = company.seeds(("localhost", "127.0.0.1:9"), own, None)
    assert itself.state == "ok" and "this machine itself" in itself.found
    assert nobody.state == "warn" and "nothing listens" in nobody.found and nobody.fix


def findings(peer: Peer) -> dict[str, list[Check]]:
    done = peer.command("doctor", "--json")
    checks = [Check(**check) for check in json.loads(done.stdout)["checks"]]
    assert done.returncode == 0 and done.stderr == ""
    return {name: [check for check in checks if check.name == name] for name in {check.name for check in checks}}


@needs_lan()
def test_the_doctor_beside_a_running_mesh_sees_who_is_there_and_who_died(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        lan = stack.enter_context(Lan(3))
        peers = []
        env = {"LLM_ROUTER_MDNS": "true", "LLM_ROUTER_URL": f"{lan['h2'].ip},{lan['h3'].ip}:8080"}
        for host in (lan["h1"], lan["h2"]):
            flags = ("--port", "8080", "--name", host.name)
            peers.append(Peer.spawned(tmp_path / host.name / "data", *flags, env=env, host=host))
            stack.callback(peers[-1].stop)
        for peer in peers:
            peer.wait_until_ready()
        one, other = peers
        until(lambda: len(one.get("/api/mesh").json["peers"]) == 2, "both are in one mesh")
        until(lambda: one.get("/api/mesh").json["peers"][1]["state"] == "alive", "they see each other")
        well = findings(one)
        assert well["peer port"][0].found == "8081 is this peer's"
        assert "1 other machine answers, 1 with llm-router" in well["mDNS"][0].found
        assert "2 machines, 2 of them alive" in well["mesh"][0].found
        assert well["reach"][0].found.startswith("answers: h2 (")
        assert well["clocks"][0].found == "the same as h2"
        assert [check.state for check in well["seeds"]] == ["ok", "warn"]
        assert "machine" not in well

        os.kill(other.process.pid, signal.SIGKILL)
        until(lambda: one.get("/api/mesh").json["peers"][1]["state"] == "dead", "the death is seen", 60)
        ill = findings(one)
        assert "h2 has not answered" in ill["machine"][0].found and "nothing listens" in ill["machine"][0].found
        assert [check.state for check in ill["seeds"]] == ["warn", "warn"]
