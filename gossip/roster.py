"""Who belongs to a mesh: a set of signed statements that only grows, and what follows from it.

No key of an authority can be stolen and no secret is shared by all: each member signs for itself. Two peers with the
same statements see the same members (gossip.standing), so merging is union: in any order, any number of times, with the
same end. A revoked peer never comes back: it makes a new identity. `mesh_id` is the hash of the founding entry.

A full set (4,096 statements, or 4 MiB) was filled by somebody who means harm. It drops first what nobody signed whom
this mesh ever let in. Of the rest each branch (one whom the founder let in, with all that came in through it) keeps as
many as any other: of those what was signed nearest to the founder, then revocations, then entries of low revision, by
hash.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from gossip.errors import BadStatement, NotAllowed, UnknownPeer
from gossip.identity import Identity, PeerId, base32, peer_id_of, short
from gossip.standing import Standing, standing
from gossip.statements import (
    ROSTER_BYTES_MAX,
    STATEMENTS_MAX,
    Entry,
    Revocation,
    State,
    Statement,
    Via,
    mesh_id_of,
    read,
    signed_entry,
    signed_revocation,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One that belongs. Guests serve and are served, and sign nothing. `added_at` is unix seconds."""

    peer_id: PeerId
    name: str
    certificate: bytes = field(repr=False)
    state: State
    via: Via
    added_by: PeerId
    added_at: int
    may_revoke: bool
    """False for guests and for those who came by the door and whom nobody has trusted since."""


class Roster:
    """Immutable. Each change returns another roster; who signs it needs the right to, else NotAllowed."""

    def __init__(self, founding: bytes, statements: Iterable[bytes]) -> None:
        """For `found` and `from_wire`. What cannot be read, or belongs to another mesh, is left out."""
        root = read(founding)
        if not (isinstance(root, Entry) and root.is_founding):
            raise BadStatement("the roster does not begin with a founding entry")
        self._root = root
        self._root_bytes = founding
        self._read = _accepted(root, founding, statements)

    @classmethod
    def found(cls, identity: Identity, name: str, now_s: float) -> Roster:
        """A mesh of one. Raises BadStatement for a name that is none (see `clean_name`)."""
        founding = signed_entry(
            identity,
            b"",
            certificate=identity.certificate_der,
            name=name,
            state="active",
            via="founder",
            revision=1,
            now_s=now_s,
        )
        return cls(founding, ())

    @classmethod
    def from_wire(cls, wire: Iterable[bytes], mesh_id: str | None = None) -> Roster:
        """The roster in these statements, of the mesh with that id if one is given.

        Raises BadStatement when its founding entry is missing, or, without an id, when there are several.
        """
        wire = tuple(wire)
        roots = {data for data in wire if _is_founding(data) and mesh_id in (None, mesh_id_of(data))}
        if len(roots) != 1:
            raise BadStatement(f"a roster has one founding entry of its mesh, this one has {len(roots)}")
        return cls(roots.pop(), wire)

    def to_wire(self) -> tuple[bytes, ...]:
        """All statements, for `from_wire` and for the disk."""
        return self.statements

    # -- what it says

    @functools.cached_property
    def mesh_id(self) -> str:
        """52 characters, lower case."""
        return base32(self._root.hash)

    @functools.cached_property
    def statements(self) -> tuple[bytes, ...]:
        """The set, in an order that depends on nothing but itself."""
        return tuple(sorted(self._read))

    @functools.cached_property
    def digest(self) -> bytes:
        """32 bytes: equal when the sets are."""
        hashes = sorted(statement.hash for statement in self._read.values())
        return hashlib.sha256(b"".join(hashes)).digest()

    @functools.cached_property
    def members(self) -> Mapping[PeerId, Member]:
        """Active ones and guests, by id."""
        entries: dict[PeerId, list[Entry]] = {}
        for entry in self._standing.entries:
            if entry.subject not in self.revoked:
                entries.setdefault(entry.subject, []).append(entry)
        found = {peer: self._member(of) for peer, of in sorted(entries.items()) if any(e.is_grant for e in of)}
        return MappingProxyType(found)

    @functools.cached_property
    def revoked(self) -> frozenset[PeerId]:
        """Those thrown out, for ever."""
        return frozenset(revocation.subject for revocation in self._standing.revocations)

    def revoked_by(self, peer_id: PeerId) -> PeerId | None:
        """Who threw it out, the first of several; None for one that nobody did."""
        found = [r for r in self._standing.revocations if r.subject == peer_id]
        return min(found, key=lambda r: (r.at, r.hash)).signer if found else None

    def may_revoke(self, peer_id: PeerId) -> bool:
        """True for active members who did not come by the door, or were trusted since."""
        member = self.members.get(peer_id)
        return member is not None and member.may_revoke

    def was_trusted(self, peer_id: PeerId) -> bool:
        """True for who was ever let in otherwise than by the door, or trusted later; also if it is out by now."""
        return peer_id in self._ever_trusted

    def is_signer(self, peer_id: PeerId) -> bool:
        """True for active members: they may let others in."""
        member = self.members.get(peer_id)
        return member is not None and member.state == "active"

    def name_of(self, peer_id: PeerId) -> str:
        """The name it has or last had here, else the short id."""
        member = self.members.get(peer_id)
        if member is not None:
            return member.name
        named = [x for x in self._read.values() if isinstance(x, Entry) and x.subject == peer_id]
        return max(named, key=lambda entry: entry.rank).name if named else short(peer_id)

    def peer_of_certificate(self, sha256: bytes) -> PeerId | None:
        """The member whose certificate has this hash."""
        return self._by_certificate.get(sha256)

    # -- how it changes

    def merged(self, statements: Iterable[bytes]) -> Roster:
        """This set and those statements. What cannot be read or belongs to another mesh is left out."""
        fresh = [data for data in statements if data not in self._read]
        if not fresh:
            return self
        roster = Roster(self._root_bytes, (*self._read, *fresh))
        return self if roster._read.keys() == self._read.keys() else roster

    def admit(self, identity: Identity, certificate: bytes, name: str, via: Via, state: State, now_s: float) -> Roster:
        """With this peer in it. A member stays what it is, but a guest may become active.

        Who came by the door itself can only pass that on: `via` is then "door". Raises BadCertificate, BadStatement.
        """
        signer = self._signer(identity)
        peer = peer_id_of(certificate)
        if peer in self.revoked:
            raise NotAllowed(f"{self.name_of(peer)} was revoked: it needs a new identity")
        member = self.members.get(peer)
        if member is not None and (member.state == "active" or state == "guest"):
            return self
        if not signer.may_revoke:
            if member is not None or state == "guest":
                raise NotAllowed("this machine came by the door: until it is trusted it only lets new machines in")
            via = "door"
        revision = self._revision_after(peer) if signer.may_revoke else 1
        return self._with_entry(identity, certificate, name, state, via, revision, now_s)

    def revoke(self, identity: Identity, peer_id: PeerId, now_s: float) -> Roster:
        """Without this peer. What it signed until now, as far as this roster knows, is kept."""
        signer = self._signer(identity)
        if peer_id in self.revoked:
            return self
        self._known(peer_id)
        if peer_id != signer.peer_id and not signer.may_revoke:
            raise NotAllowed("this machine came by the door: until it is trusted it cannot revoke others")
        counting: set[Statement] = {*self._standing.entries, *self._standing.revocations}
        keeps = [statement.hash for statement in counting if statement.signer == peer_id]
        return self._with(signed_revocation(identity, self._root.hash, subject=peer_id, keeps=keeps, now_s=now_s))

    def rename(self, identity: Identity, peer_id: PeerId, name: str, now_s: float) -> Roster:
        """With another name for this peer: its own, or anybody's for those who may revoke."""
        signer, member = self._signer(identity), self._known(peer_id)
        if peer_id != signer.peer_id and not signer.may_revoke:
            raise NotAllowed("this machine came by the door: until it is trusted it renames only itself")
        if name == member.name:
            return self
        via: Via = "self" if peer_id == signer.peer_id else "trusted" if member.via == "founder" else member.via
        return self._with_entry(
            identity, member.certificate, name, member.state, via, self._revision_after(peer_id), now_s
        )

    def trust(self, identity: Identity, peer_id: PeerId, now_s: float) -> Roster:
        """With this peer as a full member: a guest becomes active, one from the door may revoke."""
        member = self._confirming(identity, peer_id)
        if member.may_revoke:
            return self
        revision = self._revision_after(peer_id)
        return self._with_entry(identity, member.certificate, member.name, "active", "trusted", revision, now_s)

    def demote(self, identity: Identity, peer_id: PeerId, now_s: float) -> Roster:
        """With this peer as a guest. What it alone let in falls with that: confirm those that are to stay first."""
        member = self._confirming(identity, peer_id)
        if member.state == "guest":
            return self
        revision = self._revision_after(peer_id)
        return self._with_entry(identity, member.certificate, member.name, "guest", "trusted", revision, now_s)

    # -- how that is found

    @functools.cached_property
    def _standing(self) -> Standing:
        return standing(self._root, tuple(self._read.values()))

    @functools.cached_property
    def _ever_trusted(self) -> frozenset[PeerId]:
        grants = (entry for entry in self._standing.entries if entry.is_grant and entry.state == "active")
        return frozenset(entry.subject for entry in grants if entry.via != "door")

    @functools.cached_property
    def _by_certificate(self) -> dict[bytes, PeerId]:
        return {hashlib.sha256(member.certificate).digest(): peer for peer, member in self.members.items()}

    def _member(self, entries: list[Entry]) -> Member:
        """What a peer is by the entries that count for it."""
        grants = [entry for entry in entries if entry.is_grant]
        peer = grants[0].subject
        granted, latest = max(grants, key=lambda x: x.rank), max(entries, key=lambda x: x.rank)
        demotion = max((x.rank for x in self._standing.demotions if x.subject == peer), default=None)
        active = [x for x in grants if x.state == "active" and (demotion is None or x.rank > demotion)]
        return Member(
            peer_id=peer,
            name=latest.name,
            certificate=latest.certificate,
            state="active" if active else "guest",
            via="founder" if peer == self._root.subject else granted.via,
            added_by=granted.signer,
            added_at=min(x.at for x in grants),
            may_revoke=any(x.via != "door" for x in active),
        )

    def _signer(self, identity: Identity) -> Member:
        member = self.members.get(identity.peer_id)
        if member is None:
            raise NotAllowed("this machine is not a member of that mesh")
        if member.state == "guest":
            raise NotAllowed("this machine is a guest of the mesh: it signs nothing until a member trusts it")
        return member

    def _known(self, peer_id: PeerId) -> Member:
        member = self.members.get(peer_id)
        if member is None:
            raise UnknownPeer(f"no member of this mesh has the id {short(peer_id)}")
        return member

    def _confirming(self, identity: Identity, peer_id: PeerId) -> Member:
        """The member, for a signer who may say what it is."""
        signer, member = self._signer(identity), self._known(peer_id)
        if not signer.may_revoke:
            raise NotAllowed("this machine came by the door: until it is trusted it cannot trust others")
        return member

    def _revision_after(self, peer_id: PeerId) -> int:
        known = (*self._standing.entries, *self._standing.demotions)
        return 1 + max((entry.revision for entry in known if entry.subject == peer_id), default=0)

    def _with_entry(
        self, identity: Identity, certificate: bytes, name: str, state: State, via: Via, revision: int, now_s: float
    ) -> Roster:
        return self._with(
            signed_entry(
                identity,
                self._root.hash,
                certificate=certificate,
                name=name,
                state=state,
                via=via,
                revision=revision,
                now_s=now_s,
            )
        )

    def _with(self, statement: bytes) -> Roster:
        roster = self.merged((statement,))
        if statement not in roster._read:
            raise NotAllowed(f"the roster is full: it holds {STATEMENTS_MAX} statements")
        return roster

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Roster) and self._read.keys() == other._read.keys()

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"<Roster {self.mesh_id[:8]} of {len(self.members)}, {len(self._read)} statements>"


def _accepted(root: Entry, founding: bytes, statements: Iterable[bytes]) -> dict[bytes, Statement]:
    """The readable statements of this mesh, no more than the module's docstring says."""
    found: dict[bytes, Statement] = {founding: root}
    for data in statements:
        try:
            statement = read(data)
        except BadStatement:
            continue
        if statement.mesh == root.hash:
            found[data] = statement
    if len(found) > STATEMENTS_MAX or sum(map(len, found)) > ROSTER_BYTES_MAX:
        room = ROSTER_BYTES_MAX
        kept = [data for data in _by_need(root, found) if (room := room - len(data)) >= 0]
        found = {data: found[data] for data in kept[:STATEMENTS_MAX]}
    return found


def _by_need(root: Entry, found: Mapping[bytes, Statement]) -> list[bytes]:
    """All of them, those to keep first."""
    place = _places(root, found.values())
    branches: dict[PeerId, list[tuple[int, tuple[int, int, bytes], bytes]]] = {}
    strange: list[tuple[bool, int, tuple[int, int, bytes], bytes]] = []
    for data, statement in found.items():
        if statement.signer in place:
            depth, branch = place[statement.signer]
            branches.setdefault(branch, []).append((depth, _precedence(statement), data))
        else:
            strange.append((True, 0, _precedence(statement), data))
    known = [
        (False, at, precedence, data) for of in branches.values() for at, (_, precedence, data) in enumerate(sorted(of))
    ]
    return [data for *_, data in sorted(known + strange)]


def _places(root: Entry, statements: Iterable[Statement]) -> dict[PeerId, tuple[int, PeerId]]:
    """Of everybody who was ever let in: how far from the founder, and through whom of those next to it."""
    let_in: dict[PeerId, set[PeerId]] = {}
    for statement in statements:
        if isinstance(statement, Entry) and statement.is_grant:
            let_in.setdefault(statement.signer, set()).add(statement.subject)
    places = {root.subject: (0, root.subject)}
    ring = [root.subject]
    while ring:
        outer: list[PeerId] = []
        for signer in ring:
            depth, branch = places[signer]
            for subject in sorted(let_in.get(signer, set()) - places.keys()):
                places[subject] = depth + 1, branch if depth else subject
                outer.append(subject)
        ring = outer
    return places


def _precedence(statement: Statement) -> tuple[int, int, bytes]:
    if isinstance(statement, Revocation):
        return 1, 0, statement.hash
    return (0 if statement.is_founding else 2), statement.revision, statement.hash


def _is_founding(data: bytes) -> bool:
    try:
        statement = read(data)
    except BadStatement:
        return False
    return isinstance(statement, Entry) and statement.is_founding
