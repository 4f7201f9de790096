"""A peer's part in the mesh: what it does of what gossip tells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gossip.frames import Hello
from gossip.home import Move
from gossip.identity import Identity
from gossip.roster import Roster
from mesh.governing import Refused
from tests.fixtures.lone_peer import peering


async def test_the_first_one_to_be_revoked_after_a_restart_is_gone_too(tmp_path: Path) -> None:
    """What it was asked for ends at once: nothing that it still says is believed."""
    folder, thief, gone = tmp_path / "data", Identity.generate(), list[str]()
    before = peering(folder, gone)
    before.agent.set_roster(
        before.home.roster.admit(before.identity, thief.certificate_der, "thief", "token", "active", 1_000_000.0)
    )
    after = peering(folder, gone)
    assert thief.peer_id in after.home.roster.members and not gone
    after.agent.set_roster(after.home.roster.revoke(after.identity, thief.peer_id, 1_000_001.0))
    assert gone == [thief.peer_id]


async def test_another_version_is_said_once_and_again_when_it_is_another(tmp_path: Path) -> None:
    said: list[str] = []
    mine = peering(tmp_path / "data", [], said)
    hello = Hello(proto_min=7, proto_max=9, mesh_id="m", run=1, version="9.0", digest=b"")
    for _ in range(3):
        mine._wrong_version("p" * 52, hello)
    assert len(said) == 1 and "9.0" in said[0]
    mine._wrong_version("p" * 52, replace(hello, version="9.1"))
    assert len(said) == 2


async def test_claiming_keeps_the_confirmed_machines_and_makes_guests_of_the_others(tmp_path: Path) -> None:
    mine = peering(tmp_path / "data", [])
    yours, theirs = Identity.generate(), Identity.generate()
    roster = mine.home.roster
    for identity, name in ((yours, "yours"), (theirs, "theirs")):
        roster = roster.admit(mine.identity, identity.certificate_der, name, "door", "active", 1_000_000.0)
    mine.agent.set_roster(roster)
    assert {machine["name"] for machine in mine.governing.unconfirmed()} == {"yours", "theirs"}
    await mine.governing.claim(frozenset({yours.peer_id}))
    members = mine.home.roster.members
    assert (members[yours.peer_id].state, members[yours.peer_id].may_revoke) == ("active", True)
    assert members[theirs.peer_id].state == "guest"
    assert mine.home.is_claimed and not mine.home.is_young


async def test_a_guest_that_is_confirmed_when_the_mesh_is_claimed_is_a_full_member(tmp_path: Path) -> None:
    """A claim that was cut off has made guests of machines that the person confirms when they try again."""
    mine = peering(tmp_path / "data", [])
    yours, theirs = Identity.generate(), Identity.generate()
    roster = mine.home.roster
    for identity, name in ((yours, "yours"), (theirs, "theirs")):
        roster = roster.admit(mine.identity, identity.certificate_der, name, "ask", "guest", 1_000_000.0)
    mine.agent.set_roster(roster)
    await mine.governing.claim(frozenset({yours.peer_id}))
    members = mine.home.roster.members
    assert (members[yours.peer_id].state, members[yours.peer_id].may_revoke) == ("active", True)
    assert members[theirs.peer_id].state == "guest"


async def test_a_guest_cannot_claim_the_mesh(tmp_path: Path) -> None:
    founder = Identity.generate()
    mine = peering(tmp_path / "data", [])
    roster = Roster.found(founder, "founder", 1_000_000.0)
    roster = roster.admit(founder, mine.identity.certificate_der, "mine", "ask", "guest", 1_000_001.0)
    mine.home.move(roster)
    with pytest.raises(Refused, match="claim the mesh on founder"):
        await mine.governing.claim(frozenset())
    assert not mine.home.is_claimed


async def test_who_came_by_the_door_cannot_claim_the_mesh(tmp_path: Path) -> None:
    founder = Identity.generate()
    mine = peering(tmp_path / "data", [])
    roster = Roster.found(founder, "founder", 1_000_000.0)
    roster = roster.admit(founder, mine.identity.certificate_der, "mine", "door", "active", 1_000_001.0)
    mine.home.move(roster)
    with pytest.raises(Refused, match="claim the mesh on founder"):
        await mine.governing.claim(None)
    assert not mine.home.is_claimed


async def test_how_this_peer_came_into_its_mesh_says_what_goes_along(tmp_path: Path) -> None:
    mine = peering(tmp_path / "data", [])
    founder = Identity.generate()

    def mesh_of(founder: Identity) -> Roster:
        roster = Roster.found(founder, "founder", 1_000_000.0)
        return roster.admit(founder, mine.identity.certificate_der, "mine", "token", "active", 1_000_001.0)

    mine.home.move(mesh_of(founder))
    assert mine.home.last_move == Move(was_young=True)
    mine.home.own()
    mine.home.brings_history = True
    mine.home.move(mesh_of(Identity.generate()))
    assert mine.home.last_move == Move(brings_history=True)
    mine.home.own()
    mine.home.move(mesh_of(Identity.generate()))
    assert mine.home.last_move == Move()
    mine.home.leave(0.0)
    assert mine.home.last_move == Move(has_left=True)
