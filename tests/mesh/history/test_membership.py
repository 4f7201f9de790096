"""The mesh as gossip knows it, as the history sees it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gossip.effects import Role, State
from gossip.election import Claim
from gossip.member import About, MemberView
from mesh.history.membership import view_of
from mesh.history.replicas import Mate


def member(peer: str, state: State, *, role: Role = "active", eligibility: int = 1, since: float = 90.0) -> MemberView:
    return MemberView(
        peer=peer,
        role=role,
        state=state,
        run=7,
        incarnation=1,
        about=About(eligibility=eligibility),
        since=since,
        is_connected=True,
    )


def agent(*members: MemberView, claim: Claim | None = None, eligibility: int = 1, signs: bool = True) -> Any:
    return SimpleNamespace(
        me="me",
        coordinator=claim,
        roster=SimpleNamespace(is_signer=lambda peer: signs),
        about=About(eligibility=eligibility),
        members=lambda: members,
        succession=lambda: ["b", "me"],
    )


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (member("b", "alive"), Mate(peer="b", is_alive=True, run=7)),
        (member("b", "suspect"), Mate(peer="b", is_alive=True, run=7)),
        (member("b", "dead"), Mate(peer="b", is_alive=False, since_ms=490_000, run=7)),
        (member("b", "left"), Mate(peer="b", is_alive=False, has_left=True, since_ms=490_000, run=7)),
        (member("b", "unknown"), Mate(peer="b", is_alive=False, run=7)),
        (member("b", "alive", role="guest"), Mate(peer="b", is_alive=True, is_guest=True, run=7)),
        (member("b", "alive", eligibility=0), Mate(peer="b", is_alive=True, is_eligible=False, run=7)),
    ],
)
def test_a_member_is_seen_as_gossip_has_it(seen: MemberView, expected: Mate) -> None:
    view = view_of(agent(seen), lambda: 100.0, lambda: 500_000)
    assert view.mates == {"b": expected}


def test_this_peer_and_who_coordinates_are_seen() -> None:
    view = view_of(agent(claim=Claim(term=3, peer="b")), lambda: 0.0, lambda: 0)
    assert (view.me, view.coordinator, view.succession) == ("me", "b", ("b", "me"))
    assert (view.is_guest, view.is_eligible, view.is_coordinator) == (False, True, False)
    assert view_of(agent(claim=Claim(term=3, peer="me")), lambda: 0.0, lambda: 0).is_coordinator
    assert view_of(agent(signs=False), lambda: 0.0, lambda: 0).is_guest
    assert not view_of(agent(eligibility=0), lambda: 0.0, lambda: 0).is_eligible
