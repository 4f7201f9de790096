"""What this peer keeps of its mesh, in memory and on disk: roster, highest claim, door, good addresses.

Roster and claims are on disk before anybody hears of them; addresses are written now and then. A disk that takes
nothing (models fill disks) is an error in the log and ends nothing: what it missed is written when it can be. The door
is the mesh's: every peer tells the latest word it knows (`DoorWord`), and the newest word counts. Wall clock: a door
has minutes.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gossip.admission import MeshSummary
from gossip.codec import CodecError, pack, unpack
from gossip.election import Claim
from gossip.identity import Identity
from gossip.roster import Roster
from gossip.storage import MeshState, StoredClaim, StoredToken

log = logging.getLogger(__name__)

CLOCK_SLACK_S = 300.0
"""A word about the door from further in the future than this comes from a machine with a wrong clock: not taken."""
DOOR_S_MAX = 86_400.0


class Keeper(Protocol):
    """gossip.storage.MeshFile, or a test's."""

    def load(self) -> MeshState: ...

    def save(self, state: MeshState) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """How this peer came from one mesh into another. `was_young`: the old one was, so what was in it goes along;
    `has_left`: it left, so what it holds of the others goes; `brings_history`: a person wants the records along."""

    was_young: bool = False
    has_left: bool = False
    brings_history: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorWord:
    """What a peer tells of the door: open until `until_s`, said at `set_at_s` (unix seconds), and what is final."""

    set_at_s: float
    until_s: float
    is_mature: bool
    is_claimed: bool


class Home:
    """Owned by the loop. Calls that write block for one fsync; they are rare."""

    def __init__(
        self,
        *,
        identity: Identity,
        name: str,
        keeper: Keeper,
        now_s: Callable[[], float],
        door_s: float,
        is_claimed: bool = False,
    ) -> None:
        """Comes back to the mesh that was kept, or founds one of its own, with its door open for `door_s`."""
        self._identity = identity
        self._name = name
        self._keeper = keeper
        self._now_s = now_s
        self._state = keeper.load()
        self._is_dirty = False
        self._has_complained = False
        self.last_move = Move()
        self.brings_history = False
        """Whether the records go along with the next move."""
        if self._state.mesh_id:
            self._roster = Roster.from_wire(self._state.statements, self._state.mesh_id)
        if not self._state.mesh_id or identity.peer_id not in self._roster.members:
            self._found(door_s, is_claimed=is_claimed)

    # -- roster

    @property
    def roster(self) -> Roster:
        return self._roster

    def set_roster(self, roster: Roster) -> None:
        """New statements of the same mesh."""
        self._roster = roster
        self._save(statements=roster.to_wire())

    def move(self, roster: Roster, word: DoorWord | None = None) -> None:
        """Another mesh, with the word about its door: nothing of the old one is kept but addresses."""
        self.last_move = Move(was_young=self.is_young, brings_history=self.brings_history)
        self.brings_history = False
        self._roster = roster
        self._state = MeshState(mesh_id=roster.mesh_id, statements=roster.to_wire(), addresses=self._state.addresses)
        if word is not None:
            self.heard(word)
        self._save()

    def leave(self, door_s: float) -> None:
        """Out of the mesh, into one of its own, which moves to no other by itself: who leaves does not want back in."""
        self.last_move = Move(has_left=True)
        self._found(door_s, is_claimed=False, is_mature=True)

    def _found(self, door_s: float, *, is_claimed: bool, is_mature: bool = False) -> None:
        now = self._now_s()
        self._roster = Roster.found(self._identity, self._name, now)
        self._state = MeshState(
            mesh_id=self._roster.mesh_id,
            statements=self._roster.to_wire(),
            door_until=now + door_s,
            door_set_at=now,
            is_claimed=is_claimed,
            is_mature=is_mature,
        )
        self._save()

    @property
    def mesh_name(self) -> str:
        """The name of the machine that founded it; this one's when that machine is no member any more."""
        members = self._roster.members.values()
        return next((m.name for m in members if m.via == "founder"), self._roster.name_of(self._identity.peer_id))

    # -- claims

    @property
    def claim(self) -> Claim | None:
        stored = self._state.claim
        return None if stored is None else Claim(term=stored.term, peer=stored.peer_id, is_solo=stored.is_solo)

    def set_claim(self, claim: Claim) -> None:
        """Durable when this returns, unless the disk takes nothing."""
        self._save(claim=StoredClaim(term=claim.term, peer_id=claim.peer, is_solo=claim.is_solo))

    # -- addresses

    def remember(self, peer: str, address: str) -> None:
        """`peer` answered there."""
        state = self._state.with_address(f"{peer}@{address}")
        if state != self._state:
            self._state = state
            self._is_dirty = True

    def addresses(self, peer: str) -> tuple[str, ...]:
        """Where `peer` answered before, the latest first."""
        mark = f"{peer}@"
        return tuple(a.removeprefix(mark) for a in self._state.addresses if a.startswith(mark))

    # -- door

    @property
    def word(self) -> DoorWord:
        """What this peer tells of the door."""
        state = self._state
        return DoorWord(
            set_at_s=state.door_set_at,
            until_s=state.door_until,
            is_mature=state.is_mature,
            is_claimed=state.is_claimed,
        )

    def heard(self, word: DoorWord) -> bool:
        """Another member's word. True when this peer knows more now."""
        state, now = self._state, self._now_s()
        if word.set_at_s > now + CLOCK_SLACK_S:
            return False
        is_newer = word.set_at_s > state.door_set_at
        before = state
        state = dataclasses.replace(
            state,
            is_mature=state.is_mature or word.is_mature,
            is_claimed=state.is_claimed or word.is_claimed,
            door_set_at=word.set_at_s if is_newer else state.door_set_at,
            door_until=min(word.until_s, word.set_at_s + DOOR_S_MAX) if is_newer else state.door_until,
        )
        if state == before:
            return False
        self._state = state
        self._save()
        return True

    def set_door(self, seconds: float) -> None:
        """Opens the door for so long; 0 shuts it."""
        now = self._now_s()
        self._save(door_set_at=max(now, self._state.door_set_at + 0.001), door_until=now + seconds)

    def door_seconds_left(self) -> float:
        return max(0.0, self._state.door_until - self._now_s())

    @property
    def is_young(self) -> bool:
        """Its door is open, and nobody has claimed it, approved a machine or used a key from the LAN."""
        return self.door_seconds_left() > 0 and not self._state.is_mature and not self._state.is_claimed

    @property
    def is_claimed(self) -> bool:
        return self._state.is_claimed

    def own(self) -> None:
        """Somebody owns this mesh now: machines that come by the door from now on are guests."""
        if not self._state.is_claimed:
            self._save(is_claimed=True)

    def ripen(self) -> None:
        """From now on this mesh is never young again."""
        if not self._state.is_mature:
            self._save(is_mature=True)

    def summary(self) -> MeshSummary:
        """What strangers are told."""
        return MeshSummary(
            mesh_id=self._roster.mesh_id,
            members=len(self._roster.members),
            is_young=self.is_young,
            door_open=self.door_seconds_left() > 0,
        )

    # -- invitations

    @property
    def tokens(self) -> tuple[StoredToken, ...]:
        return self._state.tokens

    def set_tokens(self, tokens: tuple[StoredToken, ...]) -> None:
        self._save(tokens=tokens)

    # -- disk

    def flush(self) -> None:
        """Writes what was only remembered, or could not be written."""
        if self._is_dirty:
            self._save()

    def _save(self, **changes: object) -> None:
        self._state = dataclasses.replace(self._state, **changes)  # type: ignore[arg-type]
        try:
            self._keeper.save(self._state)
            self._is_dirty = self._has_complained = False
        except OSError as error:
            self._is_dirty = True
            if not self._has_complained:
                self._has_complained = True
                log.error("what this peer knows of its mesh cannot be written, it is tried again: %s", error)


def word_out(word: DoorWord) -> bytes:
    return pack(word)


def word_in(data: bytes) -> DoorWord | None:
    """None when it is no word of ours."""
    try:
        return unpack(DoorWord, data)
    except CodecError:
        return None
