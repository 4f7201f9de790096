"""Which statements of a mesh count: a pure function of their set, whatever the order in which they came.

A statement needs standing, given by others, back to the founding entry:

1. An entry counts when its signer is active (not a guest) by an entry that counts. Who came by the door may let others
   in by the door and rename itself; for all else somebody has to trust it first.
2. A revocation counts when its signer is active and did not come by the door (or was trusted since). A peer may always
   revoke itself.
3. What a revoked peer signed falls, except what a revocation of it that counts keeps.

So rules 2 and 3 may turn in a circle: A and B revoke each other. Nothing in the set tells who was first, for a thief
leaves out what it wants. These exceptions keep a circle from acquitting the accused:

a. A revocation does not fall by the hand of its own target: A and B are both out.
b. Nor by the hand of those whose only standing is what the target signed and the revocation does not keep: a thief
   lets in a puppet, which revokes the one who revoked the thief. (Unless the revoker too has its standing from the
   target alone: then the two cases look alike, and neither acquits the other.)
c. A revocation that takes away its own signer's standing never counts.

What circles are left are decided to the safe side: revocations (and demotions to guest) in them count, entries do not.

The method is the alternating fixpoint of the well-founded semantics (Van Gelder, Ross, Schlipf: The Well-Founded
Semantics for General Logic Programs, J. ACM 38(3), 1991): what certainly counts grows from nothing, what possibly
counts shrinks from everything, and each is computed against the other until both rest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from gossip.identity import PeerId
from gossip.statements import Entry, Revocation, Statement


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What counts. Entries that do so for certain; revocations and demotions that possibly do."""

    entries: frozenset[Entry]
    revocations: frozenset[Revocation]
    demotions: frozenset[Entry]


def standing(founding: Entry, statements: Collection[Statement]) -> Standing:
    """The statements that count. `statements` are those of one mesh, `founding` among them; signatures are checked."""
    reach = _Reach(founding, statements)
    candidates = [statement for statement in statements if not reach.is_self_defeating(statement)]
    certain = _World(())
    while True:
        possible = _grounded(founding, candidates, certain, reach)
        more = _grounded(founding, candidates, possible, reach)
        if more.statements == certain.statements:
            break
        certain = more
    return Standing(
        entries=frozenset(x for x in certain.statements if isinstance(x, Entry)),
        revocations=frozenset(x for x in possible.statements if isinstance(x, Revocation)),
        demotions=frozenset(x for x in possible.statements if isinstance(x, Entry) and _is_demotion(x)),
    )


class _World:
    """A growing set of statements that are taken to count, indexed by whom they are about."""

    def __init__(self, statements: Iterable[Statement]) -> None:
        self.statements: set[Statement] = set()
        self.active: defaultdict[PeerId, list[Entry]] = defaultdict(list)
        self.demoted: defaultdict[PeerId, list[Entry]] = defaultdict(list)
        self.revoked: defaultdict[PeerId, list[Revocation]] = defaultdict(list)
        for statement in statements:
            self.add(statement)

    def add(self, statement: Statement) -> None:
        self.statements.add(statement)
        if isinstance(statement, Revocation):
            self.revoked[statement.subject].append(statement)
        elif _is_demotion(statement):
            self.demoted[statement.subject].append(statement)
        elif statement.is_grant:
            self.active[statement.subject].append(statement)


class _Reach:
    """Who is let in by a chain of active entries from the founder, revocations aside, with some entries left out."""

    def __init__(self, founding: Entry, statements: Iterable[Statement]) -> None:
        self._founder = founding.subject
        self._entries: defaultdict[PeerId, list[Entry]] = defaultdict(list)
        self._known: dict[tuple[PeerId, frozenset[bytes]], frozenset[PeerId]] = {}
        for statement in statements:
            if isinstance(statement, Entry) and statement.state == "active":
                self._entries[statement.signer].append(statement)

    def without(self, peer: PeerId, keeps: frozenset[bytes] = frozenset()) -> frozenset[PeerId]:
        """Who still is when of what `peer` signed only `keeps` counts."""
        known = self._known.get((peer, keeps))
        if known is not None:
            return known
        found, ahead = {self._founder}, [self._founder]
        while ahead:
            signer = ahead.pop()
            for entry in self._entries[signer]:
                if entry.subject not in found and (signer != peer or entry.hash in keeps):
                    found.add(entry.subject)
                    ahead.append(entry.subject)
        self._known[peer, keeps] = frozenset(found)
        return self._known[peer, keeps]

    def is_self_defeating(self, statement: Statement) -> bool:
        return (
            isinstance(statement, Revocation)
            and statement.signer != statement.subject
            and statement.signer not in self.without(statement.subject, statement.keeps)
        )

    def is_acquittal(self, revocation: Revocation, accuser: PeerId) -> bool:
        """True when `accuser`, who revokes the signer of `revocation`, does so for its target: exceptions a and b."""
        target = revocation.subject
        return accuser == target or (
            accuser not in self.without(target, revocation.keeps) and revocation.signer in self.without(target)
        )


def _grounded(founding: Entry, candidates: Iterable[Statement], against: _World, reach: _Reach) -> _World:
    """The least set of statements that support each other from the founding entry on, `against` being held to count."""
    world = _World([founding])
    waiting = [statement for statement in candidates if statement != founding]
    while True:
        fresh: list[Statement] = []
        still: list[Statement] = []
        for statement in waiting:
            (fresh if _holds(statement, world, against, reach) else still).append(statement)
        if not fresh:
            return world
        for statement in fresh:
            world.add(statement)
        waiting = still


def _holds(statement: Statement, world: _World, against: _World, reach: _Reach) -> bool:
    """Rules 1 to 3. Holds the more, the larger `world`, and the less, the larger `against`."""
    signer = statement.signer
    grants = [
        grant
        for grant in world.active[signer]
        if not any(demotion.rank > grant.rank for demotion in against.demoted[signer])
    ]
    if not grants or not (any(grant.via != "door" for grant in grants) or _is_for_everybody(statement)):
        return False
    return all(_survives(statement, revocation, world, reach) for revocation in against.revoked[signer])


def _is_for_everybody(statement: Statement) -> bool:
    """True for what those from the door may sign too."""
    if isinstance(statement, Revocation):
        return statement.signer == statement.subject
    return not statement.is_grant or (
        statement.revision == 1 and statement.state == "active" and statement.via == "door"
    )


def _survives(statement: Statement, revocation: Revocation, world: _World, reach: _Reach) -> bool:
    """True when the statement counts although its signer is revoked by this revocation."""
    if statement.hash in revocation.keeps:
        return True
    if isinstance(statement, Revocation) and reach.is_acquittal(statement, revocation.signer):
        return True
    return any(
        statement.hash in other.keeps for other in world.revoked[statement.signer] if other.signer != statement.signer
    )


def _is_demotion(statement: Statement) -> bool:
    return isinstance(statement, Entry) and statement.is_grant and statement.state == "guest"
