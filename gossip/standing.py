"""Which statements of a mesh count: a pure function of their set, whatever the order in which they came.

1. An entry counts when its signer is active (not a guest) by an entry that counts, back to the founding one. Who came
   by the door may let others in by the door and rename itself; for all else somebody has to trust it first.
2. A revocation counts when its signer is active and did not come by the door (or was trusted since). A peer may always
   revoke itself.
3. What a revoked peer signed falls, except what the revocation keeps, or another revocation of it that counts. No
   revocation falls by the hand of its target: two that revoke each other are both out.

These rules can still turn in a circle: a thief lets in a puppet, which revokes the one who revoked the thief. Nothing
in the set tells who was first (a thief leaves out what it wants, and its times are its own), so each circle is decided
to the safe side: its revocations and demotions all count, its entries do not, and nothing is kept for the sake of its
revocations. Then what follows from the circle is judged. So whoever is revoked by a member in good standing is out,
with all that it signed since, whatever it signs: at worst it takes along those who revoked it.

The method is the alternating fixpoint of the well-founded semantics (Van Gelder, Ross, Schlipf: The Well-Founded
Semantics for General Logic Programs, J. ACM 38(3), 1991): what certainly counts grows from nothing, what possibly
counts shrinks from everything, and each is computed against the other until both rest. What lies between is in circles
or follows from them; the first circles, which depend on no other, are decided, and it begins again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from gossip.identity import PeerId
from gossip.statements import Entry, Revocation, Statement


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What counts. `demotions` are entries that make a peer a guest if it is anything; most are `entries` too."""

    entries: frozenset[Entry]
    revocations: frozenset[Revocation]
    demotions: frozenset[Entry]


def standing(founding: Entry, statements: Collection[Statement]) -> Standing:
    """The statements that count. `statements` are those of one mesh, `founding` among them; signatures are checked."""
    waiting, decided = set(statements) - {founding}, set[Statement]()
    while True:
        certain, possible = _fixpoint(founding, waiting, decided)
        doubtful = possible.statements - certain.statements
        if not doubtful:
            break
        circles = _first_circles(doubtful)
        assert circles, "what depends on nothing doubtful is not doubtful itself"
        waiting -= circles
        decided |= {x for x in circles if isinstance(x, Revocation) or _is_demotion(x)}
    return Standing(
        entries=frozenset(x for x in certain.statements - decided if isinstance(x, Entry)),
        revocations=frozenset(x for x in certain.statements if isinstance(x, Revocation)),
        demotions=frozenset(x for x in certain.statements if isinstance(x, Entry) and _is_demotion(x)),
    )


class _World:
    """A growing set of statements that are taken to count, indexed by whom they are about."""

    def __init__(self, statements: Iterable[Statement] = ()) -> None:
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


def _fixpoint(founding: Entry, waiting: set[Statement], decided: set[Statement]) -> tuple[_World, _World]:
    """What certainly and what possibly counts, `decided` being held to count in any case."""
    signed: defaultdict[PeerId, list[Statement]] = defaultdict(list)
    for statement in waiting:
        signed[statement.signer].append(statement)
    certain = _World()
    while True:
        possible = _grounded(founding, signed, decided, certain)
        more = _grounded(founding, signed, decided, possible)
        if more.statements == certain.statements:
            return certain, possible
        certain = more


def _grounded(
    founding: Entry, signed: Mapping[PeerId, Collection[Statement]], decided: set[Statement], against: _World
) -> _World:
    """The least set of statements that support each other from the founding entry on, `against` being held to count."""
    world = _World([founding, *decided])
    changed = [founding.subject, *(statement.subject for statement in decided)]
    while changed:
        # Whether a statement holds depends on what is said of its signer, and on nothing else.
        for statement in signed.get(changed.pop(), ()):
            if statement not in world.statements and _holds(statement, world, decided, against):
                world.add(statement)
                changed.append(statement.subject)
    return world


def _holds(statement: Statement, world: _World, decided: set[Statement], against: _World) -> bool:
    """Rules 1 to 3. Holds the more, the larger `world`, and the less, the larger `against`."""
    signer = statement.signer
    grants = [x for x in world.active[signer] if not any(y.rank > x.rank for y in against.demoted[signer])]
    if not grants or not (_is_for_everybody(statement) or any(grant.via != "door" for grant in grants)):
        return False
    keepers = [x for x in world.revoked[signer] if x.signer != signer and x not in decided]
    return all(
        (isinstance(statement, Revocation) and statement.subject == revocation.signer)
        or statement.hash in revocation.keeps
        or any(statement.hash in keeper.keeps for keeper in keepers)
        for revocation in against.revoked[signer]
    )


def _is_for_everybody(statement: Statement) -> bool:
    """True for what those from the door may sign too."""
    if isinstance(statement, Revocation):
        return statement.signer == statement.subject
    return not statement.is_grant or (
        statement.revision == 1 and statement.state == "active" and statement.via == "door"
    )


def _is_demotion(statement: Statement) -> bool:
    return isinstance(statement, Entry) and statement.is_grant and statement.state == "guest"


def _first_circles(doubtful: set[Statement]) -> set[Statement]:
    """Those that depend only on what depends on them. A statement depends on all that is said of its signer.

    Seen as arrows from subject to signer these are the arrows inside the strongly connected components that no arrow
    leaves.
    """
    signers: defaultdict[PeerId, set[PeerId]] = defaultdict(set)
    for statement in doubtful:
        signers[statement.subject].add(statement.signer)
    component = _components(signers)
    left = {component[peer] for peer, others in signers.items() if any(component[x] != component[peer] for x in others)}
    return {x for x in doubtful if component[x.subject] not in left}


def _components(arrows: Mapping[PeerId, Collection[PeerId]]) -> dict[PeerId, int]:
    """The number of the strongly connected component of each node (Kosaraju's two walks, without recursion)."""
    against: defaultdict[PeerId, set[PeerId]] = defaultdict(set)
    for start, ends in arrows.items():
        for end in ends:
            against[end].add(start)
    left_last, seen = list[PeerId](), set[PeerId]()
    for root in {*arrows, *against}:
        path = [(root, iter(arrows.get(root, ())))] if root not in seen else []
        seen.add(root)
        while path:
            node, ahead = path[-1]
            unseen = next((x for x in ahead if x not in seen), None)
            if unseen is None:
                left_last.append(node)
                path.pop()
            else:
                seen.add(unseen)
                path.append((unseen, iter(arrows.get(unseen, ()))))
    component: dict[PeerId, int] = {}
    for number, root in enumerate(reversed(left_last)):
        ahead_of = [root] if root not in component else []
        while ahead_of:
            node = ahead_of.pop()
            if node not in component:
                component[node] = number
                ahead_of.extend(x for x in against[node] if x not in component)
    return component
