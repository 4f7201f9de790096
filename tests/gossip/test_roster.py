"""Who belongs: the same for the same statements, whoever tells them in whatever order; a thief is out for good."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gossip import roster as roster_module
from gossip.errors import BadStatement, NotAllowed, UnknownPeer
from gossip.identity import Identity
from gossip.roster import Roster
from gossip.statements import (
    ROSTER_BYTES_MAX,
    STATEMENT_BYTES_MAX,
    Entry,
    Revocation,
    State,
    Via,
    clean_name,
    mesh_id_of,
    read,
    signed_entry,
    signed_revocation,
)

Act = tuple[str, int, int, int, int]
KINDS = ["admit", "door", "guest", "revoke", "rename", "trust", "demote", "forge entry", "forge revocation", "merge"]
histories = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.integers(0, 5),
        st.integers(0, 5),
        st.integers(0, 2),
        st.integers(0, 2**16),
    ),
    max_size=25,
)


@functools.cache
def who(number: int) -> Identity:
    """The same few peers in every test: their signatures are checked once."""
    return Identity.of(Ed25519PrivateKey.from_private_bytes(bytes([number, *range(31)])))


def ids(*numbers: int) -> set[str]:
    return {who(number).peer_id for number in numbers}


def founded() -> Roster:
    return Roster.found(who(0), "founder", 0)


def admitted(roster: Roster, by: int, number: int, via: Via = "ask", state: State = "active") -> Roster:
    return roster.admit(who(by), who(number).certificate_der, f"peer {number}", via, state, 1)


def mesh_hash(roster: Roster) -> bytes:
    (root,) = [x for x in map(read, roster.statements) if isinstance(x, Entry) and x.is_founding]
    return root.hash


def by_hand(roster: Roster, by: int, of: int, *, state: State = "active", via: Via = "ask", revision: int = 1) -> bytes:
    """An entry that no roster was asked about."""
    return signed_entry(
        who(by),
        mesh_hash(roster),
        certificate=who(of).certificate_der,
        name=f"forged {of}",
        state=state,
        via=via,
        revision=revision,
        now_s=3,
    )


def revoked_by_hand(roster: Roster, by: int, of: int, keeps: set[bytes] | None = None) -> bytes:
    return signed_revocation(who(by), mesh_hash(roster), subject=who(of).peer_id, keeps=keeps or set(), now_s=3)


def changed(roster: Roster, act: Act, others: list[Roster]) -> Roster:
    """What one act of somebody, honest or not, makes of the copy it knows."""
    kind, by, of, _, chance = act
    rng, peer = random.Random(chance), who(of).peer_id
    match kind:
        case "admit" | "door":
            return admitted(roster, by, of, "ask" if kind == "admit" else "door")
        case "guest":
            return admitted(roster, by, of, "door", "guest")
        case "revoke":
            return roster.revoke(who(by), peer, 2)
        case "rename":
            return roster.rename(who(by), peer, f"name {chance}", 2)
        case "trust":
            return roster.trust(who(by), peer, 2)
        case "demote":
            return roster.demote(who(by), peer, 2)
        case "forge entry":
            state: State = rng.choice(["active", "guest"])
            return roster.merged([by_hand(roster, by, of, state=state, revision=rng.randint(1, 3))])
        case "forge revocation":
            keeps = {read(x).hash for x in roster.statements if rng.random() < 0.5}
            return roster.merged([revoked_by_hand(roster, by, of, keeps)])
        case _:
            return roster.merged(others[chance % 3].statements)


def history(acts: list[Act]) -> list[Roster]:
    """Three copies of a mesh that people and thieves change, each by what it knows."""
    copies = [founded()] * 3
    for act in acts:
        with contextlib.suppress(NotAllowed, UnknownPeer):
            copies[act[3]] = changed(copies[act[3]], act, copies)
    return copies


def seen(roster: Roster) -> tuple[object, ...]:
    return roster.digest, dict(roster.members), roster.revoked, roster.statements


# -- merging


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories, st.randoms(use_true_random=False))
def test_merging_is_commutative_associative_and_idempotent(steps: list[Act], rng: random.Random) -> None:
    a, b, c = history(steps)
    assert a.merged(b.statements) == b.merged(a.statements)
    assert a.merged(b.statements).merged(c.statements) == a.merged(b.merged(c.statements).statements)
    assert a.merged(a.statements) is a
    whole = a.merged(b.statements).merged(c.statements)
    shuffled = list(whole.statements) * 2
    rng.shuffle(shuffled)
    one_by_one = a
    for statement in shuffled:
        one_by_one = one_by_one.merged([statement])
    assert seen(one_by_one) == seen(whole) == seen(Roster.from_wire(shuffled))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories)
def test_whatever_happens_revoked_beats_active_and_rights_come_from_signers(steps: list[Act]) -> None:
    a, b, c = history(steps)
    whole = a.merged(b.statements).merged(c.statements)
    assert not whole.revoked & set(whole.members)
    for peer, member in whole.members.items():
        assert member.peer_id == peer
        assert not (member.state == "guest" and member.may_revoke)
    for copy in (a, b, c):
        gone = copy.revoked - whole.revoked
        for peer in gone:  # only because who revoked it was itself thrown out
            revokers = {x.signer for x in map(read, copy.statements) if isinstance(x, Revocation) and x.subject == peer}
            assert not revokers <= {m.peer_id for m in whole.members.values() if m.may_revoke}


def test_a_full_roster_keeps_the_same_statements_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    roster = founded()
    pieces = [by_hand(roster, 0, number, revision=revision) for number in range(1, 6) for revision in (1, 2, 3)]
    pieces += [revoked_by_hand(roster, 0, 5), revoked_by_hand(roster, 1, 4)]
    monkeypatch.setattr(roster_module, "STATEMENTS_MAX", 8)
    rng, ends = random.Random(7), set[tuple[bytes, ...]]()
    for _ in range(20):
        rng.shuffle(pieces)
        grown = roster
        for at in range(0, len(pieces), 3):
            grown = grown.merged(pieces[at : at + 3])
        grown = grown.merged(pieces)  # what came before its signer did comes again
        ends.add(grown.statements)
    assert len(ends) == 1
    end = Roster.from_wire(ends.pop())
    assert len(end.statements) == 8
    assert end.revoked == ids(4, 5)
    with pytest.raises(NotAllowed, match="full"):
        end.rename(who(0), who(0).peer_id, "another", 9)


@pytest.mark.parametrize("flooder", [1, 9])
def test_who_fills_the_roster_puts_nobody_out(monkeypatch: pytest.MonkeyPatch, flooder: int) -> None:
    """Peer 1 is a member and lets in puppets that sign as well; 9 is a stranger, whose statements a guest passes on."""
    honest = admitted(admitted(admitted(admitted(founded(), 0, 1), 0, 2), 2, 3), 0, 4).revoke(who(0), who(4).peer_id, 2)
    monkeypatch.setattr(roster_module, "STATEMENTS_MAX", 40)
    made = [by_hand(honest, flooder, puppet) for puppet in range(10, 30)]
    made += [revoked_by_hand(honest, flooder, puppet) for puppet in range(40, 80)]
    made += [revoked_by_hand(honest, puppet, 99) for puppet in range(10, 30)]
    made += [by_hand(honest, puppet, puppet + 100) for puppet in range(10, 30)]
    flooded = honest
    for at in range(0, len(made), 7):
        flooded = flooded.merged(made[at : at + 7])
    assert set(honest.statements) <= set(flooded.statements)
    assert honest.members.keys() <= flooded.members.keys() and honest.revoked <= flooded.revoked
    if flooder == 1:
        # there is still room to throw it out, with all that it let in
        assert flooded.revoke(who(0), who(1).peer_id, 3).members.keys() >= ids(0, 2, 3)


def test_long_statements_fill_no_roster_that_cannot_be_told() -> None:
    honest = admitted(admitted(founded(), 0, 1), 0, 2)
    junk = {bytes([number]) * 32 for number in range(256)}
    junk |= {bytes([first, second]) * 16 for first in range(256) for second in range(15)}
    long = [revoked_by_hand(honest, 1, number, set(sorted(junk)[number:])) for number in range(40, 80)]
    assert sum(map(len, long)) > ROSTER_BYTES_MAX
    flooded = honest.merged(long)
    assert sum(map(len, flooded.statements)) <= ROSTER_BYTES_MAX
    assert set(honest.statements) <= set(flooded.statements)


# -- letting in


def test_a_mesh_begins_with_one_founder() -> None:
    roster = founded()
    (member,) = roster.members.values()
    assert (member.name, member.state, member.via, member.may_revoke) == ("founder", "active", "founder", True)
    assert roster.mesh_id == mesh_id_of(roster.statements[0])
    assert len(roster.mesh_id) == 52
    assert Roster.found(who(0), "founder", 5).mesh_id != roster.mesh_id


def test_members_let_in_others_and_strangers_do_not() -> None:
    roster = admitted(admitted(founded(), 0, 1), 1, 2)
    assert set(roster.members) == ids(0, 1, 2)
    assert roster.members[who(2).peer_id].added_by == who(1).peer_id
    with pytest.raises(NotAllowed, match="not a member"):
        admitted(roster, 3, 4)
    assert set(roster.merged([by_hand(roster, 3, 4)]).members) == ids(0, 1, 2)
    # An entry counts as soon as its signer does, in whatever order they come.
    late = by_hand(roster, 3, 4)
    assert set(admitted(roster.merged([late]), 0, 3).members) == ids(0, 1, 2, 3, 4)


def test_guests_sign_nothing() -> None:
    roster = admitted(founded(), 0, 1, "door", "guest")
    member = roster.members[who(1).peer_id]
    assert (member.state, member.may_revoke, roster.is_signer(member.peer_id)) == ("guest", False, False)
    acts: list[Callable[[], Roster]] = [
        lambda: admitted(roster, 1, 2),
        lambda: roster.rename(who(1), who(1).peer_id, "x", 1),
        lambda: roster.revoke(who(1), who(1).peer_id, 1),
    ]
    for act in acts:
        with pytest.raises(NotAllowed, match="guest"):
            act()
    forged = [by_hand(roster, 1, 2), by_hand(roster, 1, 2, via="door"), by_hand(roster, 1, 1, revision=2)]
    forged.append(revoked_by_hand(roster, 1, 0))
    assert roster.merged(forged).members == roster.members


def test_who_came_by_the_door_passes_on_no_more_than_that_and_cannot_revoke() -> None:
    roster = admitted(admitted(admitted(founded(), 0, 1, "door"), 0, 2), 1, 3, "ask")
    assert roster.members[who(3).peer_id].via == "door"
    assert not roster.may_revoke(who(1).peer_id) and not roster.may_revoke(who(3).peer_id)
    acts: list[Callable[[], Roster]] = [
        lambda: roster.revoke(who(1), who(2).peer_id, 1),
        lambda: roster.trust(who(1), who(3).peer_id, 1),
        lambda: roster.demote(who(1), who(2).peer_id, 1),
        lambda: roster.rename(who(1), who(2).peer_id, "x", 1),
        lambda: admitted(roster, 1, 4, "ask", "guest"),
    ]
    for act in acts:
        with pytest.raises(NotAllowed, match="door"):
            act()
    forged = [
        revoked_by_hand(roster, 1, 2),
        by_hand(roster, 1, 4, via="ask"),
        by_hand(roster, 1, 3, via="trusted", revision=2),
        by_hand(roster, 1, 2, state="guest", via="door", revision=2),
        by_hand(roster, 1, 2, state="guest", via="door", revision=1),
    ]
    assert roster.merged(forged).members == roster.members
    assert roster.rename(who(1), who(1).peer_id, "itself", 1).name_of(who(1).peer_id) == "itself"


def test_trust_makes_full_members_of_guests_and_of_those_from_the_door() -> None:
    roster = admitted(admitted(founded(), 0, 1, "door"), 0, 2, "door", "guest")
    roster = roster.trust(who(0), who(1).peer_id, 2).trust(who(1), who(2).peer_id, 3)
    assert all(member.state == "active" and member.may_revoke for member in roster.members.values())
    assert roster.trust(who(0), who(1).peer_id, 4) is roster
    assert roster.revoke(who(2), who(1).peer_id, 5).revoked == ids(1)


def test_a_demoted_peer_is_a_guest_until_it_is_trusted_again() -> None:
    roster = admitted(admitted(founded(), 0, 1), 1, 2)
    demoted = roster.demote(who(0), who(1).peer_id, 2)
    assert demoted.members[who(1).peer_id].state == "guest"
    assert set(demoted.members) == ids(0, 1)  # what it alone let in falls
    assert set(demoted.trust(who(0), who(1).peer_id, 3).members) == ids(0, 1, 2)
    confirmed = roster.trust(who(0), who(2).peer_id, 2)
    assert confirmed is roster  # it is a full member already, by 1
    assert demoted.demote(who(0), who(1).peer_id, 4) is demoted


def test_two_who_demote_each_other_are_both_guests() -> None:
    roster = admitted(admitted(founded(), 0, 1), 0, 2)
    one, other = roster.demote(who(1), who(2).peer_id, 2), roster.demote(who(2), who(1).peer_id, 2)
    both = one.merged(other.statements)
    assert {peer for peer, member in both.members.items() if member.state == "guest"} == ids(1, 2)


def test_joining_again_changes_nothing_but_a_guest_may_rise() -> None:
    roster = admitted(founded(), 0, 1)
    assert admitted(roster, 0, 1, "door") is roster
    assert admitted(roster, 0, 1, "door", "guest") is roster
    guest = admitted(founded(), 0, 1, "door", "guest")
    assert admitted(guest, 0, 1, "door", "guest") is guest
    assert admitted(guest, 0, 1, "token").members[who(1).peer_id].state == "active"


def test_a_peer_names_itself_and_nothing_else() -> None:
    roster = admitted(founded(), 0, 1, "door")
    renamed = roster.rename(who(1), who(1).peer_id, "attic", 2)
    member = renamed.members[who(1).peer_id]
    assert (member.name, member.via, member.may_revoke, member.added_by) == ("attic", "door", False, who(0).peer_id)
    assert renamed.rename(who(0), who(1).peer_id, "cellar", 3).name_of(who(1).peer_id) == "cellar"
    forged = by_hand(roster, 1, 1, via="trusted", revision=2)
    assert not roster.merged([forged]).may_revoke(who(1).peer_id)
    with pytest.raises(UnknownPeer):
        roster.rename(who(0), who(5).peer_id, "x", 4)
    founder = admitted(roster, 0, 2).rename(who(2), who(0).peer_id, "old", 5).members[who(0).peer_id]
    assert (founder.name, founder.via, founder.may_revoke) == ("old", "founder", True)


# -- throwing out


def test_a_revoked_peer_never_comes_back() -> None:
    roster = admitted(founded(), 0, 1).revoke(who(0), who(1).peer_id, 2)
    assert set(roster.members) == ids(0)
    assert roster.revoked == ids(1)
    assert roster.name_of(who(1).peer_id) == "peer 1"
    with pytest.raises(NotAllowed, match="new identity"):
        admitted(roster, 0, 1)
    assert set(roster.merged([by_hand(roster, 0, 1, revision=9)]).members) == ids(0)
    assert roster.revoke(who(0), who(1).peer_id, 3) is roster


def test_what_a_revoked_peer_signed_before_stays_and_what_it_signs_later_is_void() -> None:
    before = admitted(admitted(admitted(founded(), 0, 1), 1, 2), 0, 3)
    stolen = before.revoke(who(1), who(3).peer_id, 2)
    assert stolen.revoke(who(0), who(1).peer_id, 3).revoked == ids(1, 3)  # known: an earlier one is kept
    after = before.revoke(who(0), who(1).peer_id, 3)
    assert set(after.merged(stolen.statements).members) == ids(0, 2, 3)  # not known: void
    assert set(after.merged(admitted(stolen, 1, 4).statements).members) == ids(0, 2, 3)
    assert set(after.members) == ids(0, 2, 3)


def test_two_who_revoke_each_other_are_both_out_and_what_they_let_in_stays() -> None:
    roster = admitted(admitted(admitted(admitted(founded(), 0, 1), 0, 2), 1, 3), 2, 4)
    one, other = roster.revoke(who(1), who(2).peer_id, 2), roster.revoke(who(2), who(1).peer_id, 2)
    both = one.merged(other.statements)
    assert both.revoked == ids(1, 2)
    assert set(both.members) == ids(0, 3, 4)


def test_three_who_revoke_each_other_in_a_ring_are_all_out() -> None:
    roster = functools.reduce(lambda grown, number: admitted(grown, 0, number), (1, 2, 3, 4), founded())
    ring = [(1, 2), (2, 3), (3, 1)]
    merged = functools.reduce(
        lambda grown, pair: grown.merged(roster.revoke(who(pair[0]), who(pair[1]).peer_id, 2).statements), ring, roster
    )
    assert merged.revoked == ids(1, 2, 3)
    assert set(merged.members) == ids(0, 4)


def test_a_thief_whom_two_revoked_takes_nobody_along() -> None:
    roster = functools.reduce(lambda grown, number: admitted(grown, 0, number), (1, 2, 3), founded())
    stolen = functools.reduce(lambda grown, of: grown.revoke(who(3), who(of).peer_id, 2), (1, 2, 0), roster)
    one, other = roster.revoke(who(1), who(3).peer_id, 2), roster.revoke(who(2), who(3).peer_id, 2)
    whole = stolen.merged(one.statements).merged(other.statements)
    assert whole.revoked == ids(3)
    assert set(whole.members) == ids(0, 1, 2)


def test_a_thief_with_puppets_takes_along_only_who_revoked_it() -> None:
    roster = functools.reduce(lambda grown, number: admitted(grown, 0, number), (1, 2, 3), founded())
    stolen = admitted(roster, 3, 4)  # the puppet
    for of in (1, 2, 0):
        stolen = stolen.revoke(who(4), who(of).peer_id, 2)
    whole = roster.revoke(who(1), who(3).peer_id, 2).merged(stolen.statements)
    assert whole.revoked == ids(1, 3)
    assert set(whole.members) == ids(0, 2)


def test_a_peer_may_revoke_itself_and_what_it_keeps_for_itself_then_counts_against_no_other_word() -> None:
    roster = admitted(admitted(founded(), 0, 1, "door"), 0, 2)
    gone = roster.revoke(who(1), who(1).peer_id, 2)
    assert gone.revoked == ids(1)
    stolen = admitted(roster, 2, 3)
    stolen = stolen.revoke(who(2), who(2).peer_id, 2)
    assert set(stolen.members) == ids(0, 1, 3)
    whole = roster.revoke(who(0), who(2).peer_id, 2).merged(stolen.statements)
    assert set(whole.members) == ids(0, 1)


def test_what_a_puppet_keeps_of_the_thief_brings_no_second_puppet_in() -> None:
    roster = functools.reduce(lambda grown, number: admitted(grown, 0, number), (1, 3), founded())
    puppets = [by_hand(roster, 3, 4), by_hand(roster, 3, 5)]
    made = [*puppets, revoked_by_hand(roster, 4, 1), revoked_by_hand(roster, 4, 3, {read(x).hash for x in puppets})]
    whole = roster.revoke(who(1), who(3).peer_id, 2).merged(made)
    assert set(whole.members) == ids(0)
    assert whole.revoked == ids(1, 3)


def test_a_puppet_made_a_guest_in_the_circle_is_no_guest_of_the_mesh() -> None:
    roster = functools.reduce(lambda grown, number: admitted(grown, 0, number), (1, 3), founded())
    made = [by_hand(roster, 3, 4), by_hand(roster, 3, 4, state="guest", revision=2), revoked_by_hand(roster, 4, 1)]
    whole = roster.revoke(who(1), who(3).peer_id, 2).merged(made)
    assert set(whole.members) == ids(0)


def test_a_thief_that_revoked_itself_cannot_show_later_what_it_kept() -> None:
    """It hides an entry behind a hash; who keeps its revocation of itself has not seen what the hash stands for."""
    roster = admitted(admitted(founded(), 0, 1), 0, 3)
    hidden = by_hand(roster, 3, 4)
    itself = revoked_by_hand(roster, 3, 3, {read(hidden).hash})
    seen_by_others = revoked_by_hand(roster, 0, 3, {read(itself).hash})
    assert set(roster.merged([hidden, itself]).members) == ids(0, 1, 4)
    assert set(roster.merged([hidden, itself, seen_by_others]).members) == ids(0, 1)


thefts = st.lists(
    st.tuples(
        st.sampled_from(["entry", "guest", "revocation"]),
        st.sampled_from([3, 4, 5]),  # the thief, and puppets
        st.integers(0, 5),
        st.integers(1, 3),
        st.sets(st.integers(0, 20)),
    ),
    max_size=12,
)


@settings(max_examples=300, deadline=None)
@given(thefts, st.sampled_from([0, 1, 2]), st.permutations([0, 1, 2]))
def test_whatever_a_thief_signs_it_stays_out_and_its_puppets_too(
    steps: list[tuple[str, int, int, int, set[int]]], revoker: int, admitters: list[int]
) -> None:
    """Honest: 0 founder, 1, 2. Peer 3 was stolen, 4 and 5 are made by the thief. It forges what it likes."""
    before = admitted(admitted(founded(), 0, 1), admitters[0] % 2, 2)
    before = admitted(before, admitters[1], 3)
    after = before.revoke(who(revoker), who(3).peer_id, 2)
    made: list[bytes] = []
    for kind, by, of, revision, kept in steps:
        known = [read(x).hash for x in (*before.statements, *made)]
        if kind == "revocation":
            keeps = {known[number] for number in kept if number < len(known)}
            made.append(revoked_by_hand(before, by, of, keeps))
        else:
            made.append(by_hand(before, by, of, state="guest" if kind == "guest" else "active", revision=revision))
    whole = after.merged(made)
    assert not set(whole.members) & ids(3, 4, 5)
    assert who(3).peer_id in whole.revoked


# -- what is written


def test_a_statement_says_nothing_in_another_mesh() -> None:
    here, there = founded(), Roster.found(who(0), "founder", 99)
    elsewhere = admitted(there, 0, 1).revoke(who(0), who(1).peer_id, 2)
    assert here.merged(elsewhere.statements) is here
    with pytest.raises(BadStatement, match="one founding entry"):
        Roster.from_wire((*here.statements, *there.statements))
    assert Roster.from_wire((*here.statements, *there.statements), there.mesh_id) == there
    with pytest.raises(BadStatement):
        Roster.from_wire(here.to_wire(), there.mesh_id)
    with pytest.raises(BadStatement):
        Roster.from_wire(())


@settings(max_examples=300, deadline=None)
@given(st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_a_changed_byte_makes_a_statement_void(at: int, change: int) -> None:
    roster = admitted(founded(), 0, 1).revoke(who(0), who(1).peer_id, 2)
    for statement in roster.statements:
        data = bytearray(statement)
        data[at % len(data)] ^= change
        with pytest.raises(BadStatement):
            read(bytes(data))


packed = st.recursive(
    st.integers(-(2**63), 2**64 - 1) | st.binary() | st.text(st.characters(codec="utf-8")) | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=8),
).map(msgpack.packb)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300) | packed)
def test_garbage_is_no_statement_and_never_another_error(data: bytes) -> None:
    with pytest.raises(BadStatement):
        read(data)
    assert founded().merged([data]) == founded()


def test_limits_of_what_is_written() -> None:
    with pytest.raises(BadStatement, match=str(STATEMENT_BYTES_MAX)):
        read(bytes(STATEMENT_BYTES_MAX + 1))
    for name in ("", " a", "a\nb", "a\x1b[2J", "x" * 65, "a\u202eb"):
        with pytest.raises(BadStatement, match="name"):
            Roster.found(who(0), name, 0)


@given(st.text())
def test_a_clean_name_is_clean(name: str) -> None:
    cleaned = clean_name(name)
    assert clean_name(cleaned) == cleaned
    assert len(cleaned) <= 64
    assert cleaned.isprintable()
